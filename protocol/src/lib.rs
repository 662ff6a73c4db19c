//! What Muster's agent and controller must agree on.
//!
//! Everything here is pure: no file, no socket, no clock but the [`clock::Clock`] that the caller hands in.

pub mod age;
pub mod api;
pub mod audit;
pub mod checkin;
pub mod clock;
pub mod draft;
pub mod enrol;
pub mod evaluation;
pub mod ids;
pub mod keys;
pub mod machine;
pub mod operator;
pub mod packages;
pub mod policy;
pub mod random;
pub mod report;
pub mod target;
pub mod tuf;
pub mod witness;
