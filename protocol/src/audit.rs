//! The audit log: who did what, and when, each entry chained by its hash to the one before it.
//!
//! The chain shows an entry that was changed, left out or put in. Whoever owns the database could compute the whole
//! chain anew, so whoever reads the log keeps the last entry that was seen ([`Checkpoint`]) and asks for it again.

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::bounded;
use crate::clock::UnixMillis;
use crate::ids::{MachineName, Sha256};
use crate::keys::PublicKey;

/// The most entries that one answer carries.
pub const MAX_PAGE: u32 = 1000;

/// One line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Counted from 1 on, without gaps.
    pub id: u64,
    /// By the controller's clock.
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    /// The operator's or root key that asked for it; none where a machine or the controller itself was the cause.
    #[serde(default)]
    pub by: Option<PublicKey>,
    pub action: String,
    #[serde(default)]
    pub machine: Option<MachineName>,
    #[serde(default)]
    pub detail: String,
    /// See [`hash`].
    pub hash: Sha256,
}

/// `GET /v1/operator/audit?after=N&limit=M`: the entries after `N`, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Page {
    pub entries: Vec<Entry>,
    /// The number of the newest entry of the log.
    pub last: u64,
}

/// An entry that was seen and believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    pub id: u64,
    pub hash: Sha256,
}

/// Why a log is not believed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AuditError {
    #[error("entry {wanted} of the audit log is missing: entry {found} stands in its place")]
    Gap { wanted: u64, found: u64 },
    #[error("entry {0} of the audit log does not fit the one before it: the log was changed")]
    Changed(u64),
    #[error("the audit log ends with entry {last}, and entry {seen} was seen before: it was cut or replaced")]
    Shortened { seen: u64, last: u64 },
    #[error("entry {0} of the audit log is another one than was seen before: the log was written anew")]
    Rewritten(u64),
}

/// What the first entry of a fleet's log is chained to.
pub fn origin(fleet: &Sha256) -> Checkpoint {
    let mut hash = sha2::Sha256::new();
    hash.update(b"muster-audit-v1\0");
    hash.update(fleet.as_bytes());
    Checkpoint { id: 0, hash: Sha256::from_bytes(hash.finalize().into()) }
}

/// The hash of an entry: over that of the entry before it, and everything that the entry says, each part with its length.
pub fn hash(before: &Sha256, entry: &Entry) -> Sha256 {
    let (id, at) = (entry.id.to_be_bytes(), entry.at.to_be_bytes());
    let parts: [Option<&[u8]>; 7] = [
        Some(before.as_bytes()),
        Some(&id),
        Some(&at),
        entry.by.as_ref().map(|key| &key.as_bytes()[..]),
        Some(entry.action.as_bytes()),
        entry.machine.as_ref().map(|machine| machine.as_str().as_bytes()),
        Some(entry.detail.as_bytes()),
    ];
    let mut hash = sha2::Sha256::new();
    for part in parts {
        // What is absent is told apart from what is empty.
        hash.update([u8::from(part.is_some())]);
        let part = part.unwrap_or_default();
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Sha256::from_bytes(hash.finalize().into())
}

/// Checks the entries that follow `seen`; gives the last one.
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
            // Hashed anew, it is the next one that does not fit.
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
