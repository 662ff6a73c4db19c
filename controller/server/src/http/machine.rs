//! What machines send and request, one file per subject.

pub mod check_in;
pub mod enrol;
mod files;
pub mod poll;
pub mod reports;
pub mod tuf;
