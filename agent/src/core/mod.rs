//! The decisions of the agent: pure functions of what was observed, what is wanted and the time.

pub mod backoff;
pub mod health;
pub mod plan;
pub mod records;
pub mod resume;
pub mod state;
