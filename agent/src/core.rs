//! The decisions of the agent: pure functions of what was observed, what is wanted and the time.

pub mod activate;
pub mod answers;
pub mod backoff;
pub mod blame;
pub mod book;
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
pub mod schedule;
pub mod sparing;
pub mod state;
pub mod window;
