//! Muster's agent. See `docs/design.md` for how its rooms fit together.

pub mod activator;
pub mod buildlog;
pub mod cli;
pub mod client;
pub mod config;
pub mod core;
pub mod doctor;
pub mod durable;
pub mod enroll;
pub mod identity;
pub mod journal;
pub mod local;
pub mod logs;
pub mod netrc;
pub mod nix;
pub mod outbox;
pub mod platform;
pub mod probes;
pub mod runner;
pub mod secrets;
pub mod status;
mod stops;
pub mod supervisor;
pub mod trust;
pub mod uninstall;
