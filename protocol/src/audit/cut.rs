//! Cutting a log at an entry that was exported: the controller forgets the entries up to it, and the chain
//! goes on from that entry's number and hash.

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use super::chain::{Checkpoint, Entry, feed};
use crate::ids::Sha256;

/// The action of the entry that tells of a cut.
pub const LOG_CUT: &str = "log-cut";

/// How old an entry must be before the log may be cut at it, in days: what the controller itself asks of the
/// log concerns the last days.
pub const CUT_DAYS: i64 = 30;

/// `POST /v1/operator/audit/cut`: the log is to begin after this entry.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CutLog {
    /// The last entry that is forgotten.
    pub through: Checkpoint,
    /// What [`Possession`] computes over the entries to be forgotten: whoever sends it has read them.
    pub holds: Sha256,
    /// SHA-256 of the file that they were exported to, for the log.
    pub export: Sha256,
}

/// The reply to [`CutLog`].
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogCut {
    /// Where the log begins now.
    pub anchor: Checkpoint,
}

/// A hash over the whole contents of entries, which their own hashes do not reveal.
pub struct Possession(sha2::Sha256);

impl Default for Possession {
    fn default() -> Self {
        let mut hash = sha2::Sha256::new();
        hash.update(b"muster-audit-held-v1\0");
        Self(hash)
    }
}

impl Possession {
    /// Adds the next entry.
    pub fn add(&mut self, entry: &Entry) {
        feed(&mut self.0, &entry.hash, entry);
    }

    /// The hash over all that were added.
    pub fn finish(self) -> Sha256 {
        Sha256::from_bytes(self.0.finalize().into())
    }
}
