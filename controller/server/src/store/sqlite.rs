//! SQLite, embedded: everything that knows SQL, one file per subject. `columns` converts to and from column
//! values.

mod access;
mod apply;
mod attacks;
mod audit;
mod checkins;
mod columns;
mod connection;
mod copy;
mod drafts;
mod enrolment;
mod garbage;
mod machines;
mod publication;
mod reports;
mod requests;
mod retention;
mod rollouts;

pub(super) use connection::{Sqlite, Transaction};
