//! Muster's agent: the program on each machine. Each line below depends only on the lines under it;
//! `tests/circles` checks that there are no circles. See `docs/design.md` for how the modules fit together.
//!
//! | rooms | |
//! | --- | --- |
//! | [`cli`] | the verbs of `muster-agent` |
//! | [`enrol`] | joining a fleet |
//! | [`runner`] | `run`: the contact with the controller, and the work on the machine |
//! | [`activator`], [`doctor`] | `activate`: switches, and goes back by itself; `doctor`: says what is wrong |
//! | [`nix`], [`status`] | what Nix is asked for; what people are told |
//! | [`cache`], [`local`], [`trust`], [`uninstall`] | the cache as Nix sees it, the local socket, the trusted metadata |
//! | [`client`], [`probes`], [`secrets`], [`service`] | HTTP, health checks, secrets before an activation, the agent's job |
//! | [`identity`], [`platform`], [`surroundings`] | who this machine is, NixOS and macOS, proxies and Nix's settings |
//! | [`config`], [`journal`], [`outbox`], [`process`] | agent.toml, the files of a switch, waiting reports, child processes |
//! | [`core`] | every decision, pure |
//! | [`durable`], [`environment`], [`buildlog`], [`logs`], [`paste`], [`supervisor`] | files, variables, logs, the terminal |

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
mod log_shown;
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
