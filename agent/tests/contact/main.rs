//! The agent's edges against a real HTTP server, real signed metadata and a real Nix.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod cache;
mod client;
mod controller;
mod enrol;
mod nix;
#[cfg(feature = "stand-in")]
mod printed;
mod proxy;
mod replayed;
mod trust;
