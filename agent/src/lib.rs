//! Muster's agent. See `docs/design.md` for how its rooms fit together.

// Everything is printed by muster_protocol::terminal, which shows what others wrote.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
extern crate muster_protocol;

pub mod activator;
pub mod buildlog;
pub mod cache;
pub mod cli;
pub mod client;
pub mod config;
pub mod core;
pub mod doctor;
pub mod durable;
pub mod enrol;
pub mod environment;
pub mod identity;
pub mod journal;
pub mod local;
pub mod logs;
pub mod nix;
pub mod outbox;
pub mod paste;
pub mod platform;
pub mod probes;
pub mod process;
pub mod runner;
#[cfg(test)]
mod scripts;
pub mod secrets;
pub mod service;
pub mod status;
mod stops;
pub mod supervisor;
pub mod surroundings;
pub mod trust;
pub mod uninstall;
