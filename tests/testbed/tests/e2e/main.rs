//! The main job end to end: real Nix, real signatures, real HTTP, a real database, real files.
//!
//! Operator and machines never share a Nix store: whatever a machine builds came through the cache.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod agent_updates;
mod asked;
mod bad_input;
mod common;
mod epochs;
mod faults;
mod flakes;
mod foreign_cache;
mod generations;
mod hardware;
mod identity;
mod keys;
mod lies;
mod limits;
mod lost;
mod many;
mod members;
mod operators;
mod printed;
mod restored;
mod rollback;
mod rollouts;
mod sign_in;
mod stolen;
mod undone;
