//! The operators' command line.

// Everything is printed by muster_protocol::terminal, which shows what others wrote.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
extern crate muster_protocol;

pub mod cli;
pub mod flake;
pub mod vars;
