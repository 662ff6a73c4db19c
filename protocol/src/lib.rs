//! What Muster's agent and controller must agree on.
//!
//! Everything here is pure: no file, no socket, no clock but the [`clock::Clock`] that the caller hands in. Only
//! [`terminal`] prints, for both programs, and `logging` begins their logs.

pub mod age;
pub mod announce;
pub mod api;
pub mod audit;
pub mod bounded;
pub mod checkin;
pub mod clock;
pub mod draft;
pub mod enrol;
pub mod evaluation;
pub mod ids;
pub mod keys;
#[cfg(feature = "logging")]
pub mod logging;
pub mod machine;
pub mod moment;
pub mod narinfo;
pub mod operator;
pub mod packages;
pub mod policy;
pub mod random;
pub mod report;
pub mod request;
pub mod shown;
pub mod signin;
pub mod target;
pub mod terminal;
pub mod tuf;
pub mod witness;
