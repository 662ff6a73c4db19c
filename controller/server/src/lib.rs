//! Muster's controller: what `muster serve` runs. It knows nothing of the operators' command line.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod fleet;
pub mod http;
pub mod server;
pub mod server_config;
pub mod signer;
pub mod store;
