//! Muster's agent. See `docs/design.md` for how its rooms fit together.
pub mod client;
pub mod config;
pub mod durable;
pub mod enroll;
pub mod identity;
pub mod local;
pub mod nix;
pub mod outbox;
pub mod trust;
pub mod platform;
pub mod core;
pub mod journal;
pub mod doctor;
pub mod logs;
pub mod status;
