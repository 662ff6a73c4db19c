//! What the controller decides: functions of what is stored, what arrived, the time, and random bytes where
//! needed. Each returns what to write ([`Change`]) and the answer, or a refusal. Nothing here is
//! asynchronous, and nothing knows the store, HTTP, SQL or logging.
//!
//! The store reads the facts that a decision names (its `Stored`), calls it and writes its changes, all in
//! one transaction. It may run the decision again from the start, so a decision has no side effects.
//!
//! `rows` is at the bottom; `seals`, `change` and `audit` are above it, and the decisions above those. No
//! decision uses another, but `restored` revokes what `machines` knows; `census` counts machines by their
//! `condition`.

pub mod access;
pub mod audit;
pub mod census;
pub mod change;
pub mod checkin;
pub mod condition;
pub mod cut;
pub mod drafts;
pub mod enrolment;
pub mod garbage;
pub mod log;
pub mod machines;
pub mod publication;
pub mod reports;
pub mod requests;
pub mod restored;
pub mod retention;
pub mod rollouts;
pub mod roots;
pub mod rows;
#[cfg(test)]
mod samples;
pub mod seals;
pub mod settings;

pub use change::{Change, Decided};
