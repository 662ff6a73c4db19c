//! Muster's controller: the server, and the command line that operators use against it.
//! `docs/design.md` shows how its rooms fit together.

// Everything is printed by muster_protocol::terminal, which shows what others wrote.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
extern crate muster_protocol;

pub mod cli;
pub mod flake;
pub mod fleet;
pub mod http;
pub mod server;
pub mod server_config;
pub mod signer;
pub mod store;
pub mod vars;
