//! The agent's decisions: pure functions of what was observed, what is wanted and the time.
//!
//! `plan` decides what the work does next and `schedule` what the contact does; `book` decides what is
//! written for it, and `activate` and `resume` what an activator does. They depend on `policy`, `window`,
//! `reboot`, `boots`, `health`, `rollout`, `hints`, `pace` and `backoff`, and on `state` and `records`, the
//! documents themselves.

pub mod activate;
pub mod answers;
pub mod backoff;
pub mod blame;
pub mod book;
pub mod boots;
pub mod cause;
pub mod health;
pub mod hints;
pub mod pace;
pub mod plan;
pub mod policy;
pub mod progress;
pub mod prune;
pub mod reboot;
pub mod records;
pub mod resume;
pub mod rollout;
pub mod schedule;
pub mod sparing;
pub mod state;
pub mod window;
pub mod witness;
