//! What machines send and ask for, one file a subject.

pub mod check_in;
pub mod enrol;
pub mod poll;
pub mod reports;
pub mod tuf;
