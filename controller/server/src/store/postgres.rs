//! PostgreSQL: everything that knows its SQL, one file per subject, like `sqlite`. `locks` and `connection`
//! say how transactions keep out of one another's way; `notify` and `listen` are how controllers wake one
//! another.

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
mod listen;
mod locks;
mod machines;
mod migrations;
mod moved;
mod notify;
mod publication;
mod reach;
mod reports;
mod requests;
mod retention;
mod rollouts;
mod roots;
mod settings;

pub(super) use connection::{LONGEST, Postgres, Transaction, listen_options, silent};
pub(super) use listen::Listener;
