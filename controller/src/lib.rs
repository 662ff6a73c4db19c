//! Muster's server, and the operators' command line.

pub mod fleet;
pub mod http;
pub mod server;
pub mod server_config;
pub mod signer;
pub mod store;
