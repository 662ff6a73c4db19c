//! Muster's controller: the server, and the command line that operators use against it.
//! `docs/design.md` shows how its rooms fit together.

pub mod cli;
pub mod flake;
pub mod fleet;
pub mod http;
pub mod server;
pub mod server_config;
pub mod signer;
pub mod store;
pub mod vars;
