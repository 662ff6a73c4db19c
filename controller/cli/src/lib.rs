//! `muster`: the operators' command line.
//!
//! | room | what is in it | uses |
//! | --- | --- | --- |
//! | [`verbs`] | one file per verb: arguments, calls of the rooms, output | all rooms |
//! | `release` | from a flake to published generations, in waves | fleet, trust, api, flake, config |
//! | `fleet` | machines and rollouts as the controller shows them | vars, trust, api, keys, config |
//! | [`vars`] | variables and secrets in the fleet's repository | flake |
//! | `log` | the audit log, verified, and what others saw of it | trust, api, config |
//! | `trust` | the roots that this operator trusts, and their next | api, config |
//! | `api` | requests to the controller, signed in or not; TLS | config, keys, flake |
//! | `config` | the operator's muster.toml | keys |
//! | [`flake`] | reading flakes, and pushing what they make | |
//! | `simulator` | a fleet in simulated time | (the controller's engine) |
//! | `keys` | private keys in files and in ssh-agent | |
//! | [`terminal`] | errors with hints, tables, JSON, questions | (used by all) |
//!
//! Every arrow points down this table. A verb uses no other verb.

// Everything is printed by muster_protocol::terminal, which shows what others wrote.
#![deny(clippy::print_stdout, clippy::print_stderr)]

#[macro_use]
extern crate muster_protocol;

mod api;
mod config;
pub mod flake;
mod fleet;
mod keys;
mod log;
mod release;
mod simulator;
pub mod terminal;
mod trust;
pub mod vars;
pub mod verbs;
