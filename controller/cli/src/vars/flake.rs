//! What a flake says of its variables: the generators of all machines, in one evaluation for each class (in a Clan, in one),
//! and the scripts of those that are to run, built for this computer.

mod folder;
mod opened;
mod scripts;

pub use self::folder::FolderError;
pub use self::opened::{VarsFlake, VarsFlakeError, root_of};
pub use self::scripts::{Script, physical_store};
