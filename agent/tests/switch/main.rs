//! The switch, driven as in production: the real activator and agent, a real Nix store and profile in a
//! folder, and small stand-ins for systemd and launchd. Slow by nature: an undo waits for a deadline of ten
//! seconds or more.
#![cfg(feature = "stand-in")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod activator;
mod agent;
mod bed;
mod circumstances;
mod controller;
mod machine;
mod macs;
mod nixos;
mod policies;
mod reboots;
mod secrets;
mod specialisations;
mod telling;
