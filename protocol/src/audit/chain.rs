//! The log's entries, and how they are chained.

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::bounded;
use crate::clock::UnixMillis;
use crate::ids::{MachineName, Sha256};
use crate::keys::PublicKey;

/// The most entries in one reply.
pub const MAX_PAGE: u32 = 1000;
/// The highest number of an entry; no log reaches it, and databases hold none that is higher.
pub const MAX_ENTRY: u64 = i64::MAX as u64;

/// One line of the log.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted from 1, without gaps.
    pub id: u64,
    /// By the controller's clock.
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    /// The operator's or root key that requested it; `None` where a machine or the controller itself was
    /// the cause.
    #[serde(default)]
    pub by: Option<PublicKey>,
    /// What was done, `generation-published` for example. New versions add words.
    pub action: String,
    /// The machine it was done to; `None` where it concerns the fleet.
    #[serde(default)]
    pub machine: Option<MachineName>,
    /// What else is known, in one line for people; empty where there is nothing to add.
    #[serde(default)]
    pub detail: String,
    /// The hash that [`hash`] computes for this entry.
    pub hash: Sha256,
}

/// `GET /v1/operator/audit?after=N&limit=M`: the entries after `N`, oldest first.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    /// In order of their numbers; at most [`MAX_PAGE`].
    pub entries: Vec<Entry>,
    /// The number of the newest entry of the log.
    pub last: u64,
    /// Where the log begins if it was cut: the entries up to this one were exported and forgotten.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<Checkpoint>,
}

/// The last entry that a reader has verified, which the next entries must follow.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The entry's number; 0 for the [`origin`].
    #[serde(deserialize_with = "bounded::number::<_, 0, MAX_ENTRY>")]
    pub id: u64,
    /// The entry's hash.
    pub hash: Sha256,
}

/// Why a log is rejected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    /// An entry is missing.
    #[error("entry {wanted} of the audit log is missing: entry {found} is in its place")]
    Gap {
        /// The number that comes next.
        wanted: u64,
        /// The number that came instead.
        found: u64,
    },
    /// The entry's hash does not match its content and the entry before it.
    #[error("entry {0} of the audit log does not match the one before it: the log was changed")]
    Changed(u64),
    /// The log ends before an entry that was verified earlier.
    #[error("the audit log ends with entry {last}, and entry {seen} was seen before: it was cut or replaced")]
    Shortened {
        /// The number of the entry that was verified.
        seen: u64,
        /// The number of the newest entry of the log.
        last: u64,
    },
    /// The entry that was verified earlier now has another hash.
    #[error("entry {0} of the audit log differs from the one seen before: the log was rewritten")]
    Rewritten(u64),
}

/// The checkpoint before the first entry of a fleet's log: number 0 and a hash of the fleet's name.
pub fn origin(fleet: &Sha256) -> Checkpoint {
    let mut hash = sha2::Sha256::new();
    hash.update(b"muster-audit-v1\0");
    hash.update(fleet.as_bytes());
    Checkpoint { id: 0, hash: Sha256::from_bytes(hash.finalize().into()) }
}

/// The hash of an entry: SHA-256 over the hash of the entry before it and every field of this one, each
/// with its length in front.
pub fn hash(before: &Sha256, entry: &Entry) -> Sha256 {
    let mut hash = sha2::Sha256::new();
    feed(&mut hash, before, entry);
    Sha256::from_bytes(hash.finalize().into())
}

pub(super) fn feed(hash: &mut sha2::Sha256, before: &Sha256, entry: &Entry) {
    let (id, at) = (entry.id.to_be_bytes(), entry.at.to_be_bytes());
    let by = entry.by.as_ref().map(PublicKey::to_bytes);
    let parts: [Option<&[u8]>; 7] = [
        Some(before.as_bytes()),
        Some(&id),
        Some(&at),
        by.as_deref(),
        Some(entry.action.as_bytes()),
        entry.machine.as_ref().map(|machine| machine.as_str().as_bytes()),
        Some(entry.detail.as_bytes()),
    ];
    for part in parts {
        // An absent field hashes differently from an empty one.
        hash.update([u8::from(part.is_some())]);
        let part = part.unwrap_or_default();
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
}

/// Checks that `entries` follow `seen`, and returns a checkpoint for the last one.
pub fn verify(seen: Checkpoint, entries: &[Entry]) -> Result<Checkpoint, AuditError> {
    entries.iter().try_fold(seen, |before, entry| {
        let wanted = before.id.saturating_add(1);
        if entry.id != wanted {
            return Err(AuditError::Gap { wanted, found: entry.id });
        }
        if entry.hash != hash(&before.hash, entry) {
            return Err(AuditError::Changed(entry.id));
        }
        Ok(Checkpoint { id: entry.id, hash: entry.hash })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log() -> (Checkpoint, Vec<Entry>) {
        let origin = origin(&Sha256::of(b"fleet"));
        let (mut before, mut entries) = (origin, Vec::new());
        for (id, action) in (1..).zip(["machine-added", "enrolled", "generation-published"]) {
            let mut entry = Entry {
                id,
                at: 1_800_000_000_000 + i64::try_from(id).unwrap(),
                by: None,
                action: action.into(),
                machine: Some("cinnabar".parse().unwrap()),
                detail: String::new(),
                hash: origin.hash,
            };
            entry.hash = hash(&before.hash, &entry);
            before = Checkpoint { id, hash: entry.hash };
            entries.push(entry);
        }
        (origin, entries)
    }

    #[test]
    fn a_log_that_nobody_touched_is_believed_from_any_entry_on() {
        let (origin, entries) = log();
        let last = verify(origin, &entries).unwrap();
        assert_eq!(last.id, 3);
        assert_eq!(verify(Checkpoint { id: 1, hash: entries[0].hash }, &entries[1..]).unwrap(), last);
        assert_eq!(verify(last, &[]).unwrap(), last);
    }

    #[test]
    fn every_change_of_an_entry_shows() {
        let (origin, good) = log();
        let changes: [fn(&mut Entry); 7] = [
            |entry| entry.at += 1,
            |entry| entry.action = "machine-revoked".into(),
            |entry| entry.machine = None,
            |entry| entry.machine = Some("stibnite".parse().unwrap()),
            |entry| entry.detail = " ".into(),
            |entry| entry.by = Some(crate::keys::SecretKey::generate().unwrap().public()),
            |entry| entry.hash = Sha256::of(b"x"),
        ];
        for change in changes {
            let mut entries = good.clone();
            change(&mut entries[1]);
            assert_eq!(verify(origin, &entries), Err(AuditError::Changed(2)));
            // With its hash recomputed, the next entry no longer matches.
            entries[1].hash = hash(&entries[0].hash, &entries[1]);
            let next = verify(origin, &entries);
            assert!(next == Err(AuditError::Changed(3)) || entries[1] == good[1], "{next:?}");
        }
    }

    #[test]
    fn an_entry_that_was_left_out_or_put_in_shows() {
        let (origin, good) = log();
        let without = [good[0].clone(), good[2].clone()];
        assert_eq!(verify(origin, &without), Err(AuditError::Gap { wanted: 2, found: 3 }));
        let twice = [good[0].clone(), good[0].clone()];
        assert_eq!(verify(origin, &twice), Err(AuditError::Gap { wanted: 2, found: 1 }));
        let of_another_fleet = super::origin(&Sha256::of(b"another"));
        assert_eq!(verify(of_another_fleet, &good), Err(AuditError::Changed(1)));
    }
}
