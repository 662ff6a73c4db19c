//! The binary cache, in the protocol of Nix's HTTP binary cache store: machines and operators read, operators
//! write.

pub mod many;
mod name;
mod range;
pub mod read;
pub mod upload;
