//! The audit log: who did what, and when. Each entry is chained to the one before it by a hash.
//!
//! The chain reveals an entry that was changed, removed or inserted. Whoever owns the database can
//! recompute the whole chain, so a reader keeps the last entry they verified ([`Checkpoint`]) and asks for
//! it again.

mod chain;
mod cut;
mod note;
mod shown;

pub use chain::{AuditError, Checkpoint, Entry, MAX_ENTRY, MAX_PAGE, Page, hash, origin, verify};
pub use cut::{CUT_DAYS, CutLog, LOG_CUT, LogCut, Possession};
pub use note::{MAX_NOTE_BYTES, NotANote, Note, verifier_key};
pub use shown::{MAX_SHOWN, ShownLog};
