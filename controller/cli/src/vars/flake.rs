//! What a flake says about variables: the generators of all machines, in one evaluation per class (in a Clan,
//! in one), and the scripts to run, built for this computer. `scripts` uses `opened`, which uses `folder`.

mod folder;
mod opened;
mod scripts;

pub use self::folder::{FolderError, local};
pub use self::opened::{VarsFlake, VarsFlakeError, root_of};
pub use self::scripts::{Script, physical_store};
