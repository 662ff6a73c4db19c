//! The binary cache, as Nix's HTTP binary cache store speaks it: machines and operators read, operators
//! write.

mod name;
pub mod read;
pub mod upload;
