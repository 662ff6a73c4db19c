//! Cutting the audit log at an entry that an operator has exported.

use muster_protocol::audit::{AuditError, CUT_DAYS, Checkpoint, Entry, LOG_CUT, Possession, verify};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Sha256;
use muster_protocol::moment;
use muster_protocol::signed_cut::SignedCut;

use super::audit::{AuditContext, NewEntry};
use super::change::{Change, Decided};

/// How old an entry must be before the log may be cut at it.
const CUT_AGE_MS: i64 = CUT_DAYS * 86_400_000;

/// Where the log begins and ends, and the entry that it is to be cut at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// What its first entry is chained to.
    pub anchor: Checkpoint,
    pub newest: Checkpoint,
    pub entry: Option<Checkpoint>,
}

/// What was read of the entries that are to be forgotten. Entries never change, so it is still true when the
/// cut is decided.
pub struct Reading {
    at: Checkpoint,
    held: Possession,
    youngest: UnixMillis,
}

/// The same, once all are read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Read {
    through: Checkpoint,
    holds: Sha256,
    youngest: UnixMillis,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CutRefusal {
    #[error("{}", no_further(*.0))]
    Cut(u64),
    #[error("the audit log has no entry {wanted}: its newest is {newest}; export it again")]
    Unknown { wanted: u64, newest: u64 },
    #[error(
        "entry {0} of the audit log is not the one that was exported: the two are different histories; find \
            out which one is true with `muster audit verify`"
    )]
    Other(u64),
    #[error(
        "an entry up to {id} is not {CUT_DAYS} days old yet: the log can be cut there in {}",
        moment::wait(*wait_seconds)
    )]
    Young { id: u64, wait_seconds: i64 },
    #[error("whoever asks for the cut does not hold the entries: export the log again")]
    NotHeld,
    #[error(
        "the audit log cannot be cut: {0}; keep a copy of the database, and find out who could change it"
    )]
    Damaged(AuditError),
}

fn no_further(anchor: u64) -> String {
    match anchor {
        0 => "the audit log begins with entry 1: name an entry to cut it at".to_owned(),
        _ => format!("the audit log was cut at entry {anchor} already: export it again to cut more of it"),
    }
}

impl Reading {
    /// Begins where the log begins.
    pub fn from(anchor: Checkpoint) -> Self {
        Self { at: anchor, held: Possession::default(), youngest: UnixMillis::MIN }
    }

    /// The next entries; those after `through` are left out. Returns whether more are needed.
    pub fn add(&mut self, entries: &[Entry], through: u64) -> Result<bool, CutRefusal> {
        let wanted = entries.partition_point(|entry| entry.id <= through);
        let entries = entries.get(..wanted).unwrap_or_default();
        self.at = verify(self.at, entries).map_err(CutRefusal::Damaged)?;
        for entry in entries {
            self.held.add(entry);
            self.youngest = self.youngest.max(entry.at);
        }
        Ok(!entries.is_empty() && self.at.id < through)
    }

    pub fn at(&self) -> u64 {
        self.at.id
    }

    pub fn done(self) -> Read {
        Read { through: self.at, holds: self.held.finish(), youngest: self.youngest }
    }
}

/// Decides a cut.
pub fn cut(
    stored: &Stored,
    read: &Read,
    signed: &SignedCut,
    context: &AuditContext<'_>,
    now: UnixMillis,
) -> Result<Decided<Checkpoint>, CutRefusal> {
    let asked = &signed.asked;
    let through = asked.through;
    if through.id <= stored.anchor.id {
        return Err(CutRefusal::Cut(stored.anchor.id));
    }
    let entry = stored.entry.ok_or(CutRefusal::Unknown { wanted: through.id, newest: stored.newest.id })?;
    if entry != through || read.through != through {
        return Err(CutRefusal::Other(through.id));
    }
    if read.holds != asked.holds {
        return Err(CutRefusal::NotHeld);
    }
    let wait = read.youngest.saturating_add(CUT_AGE_MS).saturating_sub(now);
    if wait > 0 {
        return Err(CutRefusal::Young { id: through.id, wait_seconds: wait / 1000 + 1 });
    }
    // The database lets nothing be cut unless the newest entry tells of it, in these words.
    let entry = NewEntry::by(context, LOG_CUT, signed.detail());
    let changes = vec![Change::Audited(entry), Change::LogCut { through }];
    Ok(Decided { changes, answer: through })
}

#[cfg(test)]
mod tests {
    use muster_protocol::audit::{CutLog, hash, origin};
    use muster_protocol::keys::SecretKey;
    use muster_protocol::operator::{Request, RequestSignature};

    use super::*;

    const DAY: i64 = 86_400_000;

    fn entries(count: u64) -> (Checkpoint, Vec<Entry>) {
        let origin = origin(&Sha256::of(b"fleet"));
        let (mut before, mut entries) = (origin, Vec::new());
        for id in 1..=count {
            let at = i64::try_from(id).unwrap() * DAY;
            let (by, machine, action) = (None, None, "enrolled".to_owned());
            let mut entry = Entry { id, at, by, action, machine, detail: id.to_string(), hash: origin.hash };
            entry.hash = hash(&before.hash, &entry);
            before = Checkpoint { id, hash: entry.hash };
            entries.push(entry);
        }
        (origin, entries)
    }

    fn checkpoint(entry: &Entry) -> Checkpoint {
        Checkpoint { id: entry.id, hash: entry.hash }
    }

    #[test]
    fn only_old_entries_go_that_the_operator_holds_and_that_are_those_of_this_log() {
        let (anchor, entries) = entries(10);
        let mut reading = Reading::from(anchor);
        assert!(reading.add(&entries[..3], 6).unwrap());
        assert!(!reading.add(&entries[3..], 6).unwrap());
        let read = reading.done();
        let mut held = Possession::default();
        entries[..6].iter().for_each(|entry| held.add(entry));
        let (through, export) = (checkpoint(&entries[5]), Sha256::of(b"file"));
        let asked = CutLog { through, holds: held.finish(), export };
        let stored = Stored { anchor, newest: checkpoint(&entries[9]), entry: Some(through) };
        let key = SecretKey::generate().unwrap();
        let operator = key.public();
        let request = Request { audience: &Sha256::of(b"fleet"), method: "POST", path: "/", body: b"" };
        let signature = RequestSignature::make(&key, request, 5, [7; 16]);
        let now = (6 + CUT_DAYS) * DAY;
        let context = AuditContext { operator: &operator, at: now };
        let cut = |stored: &Stored, asked: &CutLog, now| {
            let signed = SignedCut { asked: *asked, signature: signature.clone() };
            cut(stored, &read, &signed, &context, now)
        };
        let decided = cut(&stored, &asked, now).unwrap();
        assert_eq!(decided.changes[1], Change::LogCut { through });
        let Change::Audited(told) = &decided.changes[0] else { panic!("{decided:?}") };
        let signed = SignedCut { asked, signature: signature.clone() };
        assert_eq!((told.by, &told.detail), (Some(operator), &signed.detail()));
        assert_eq!(
            SignedCut::of(&told.chained(&through)),
            Some(SignedCut { signature: RequestSignature { body: None, ..signature.clone() }, ..signed })
        );
        let nothing = CutLog { through: anchor, ..asked };
        let refused = cut(&stored, &nothing, now).unwrap_err().to_string();
        assert!(refused.contains("begins with entry 1"), "{refused}");
        assert_eq!(cut(&stored, &asked, now - 1), Err(CutRefusal::Young { id: 6, wait_seconds: 1 }));
        assert_eq!(cut(&Stored { anchor: through, ..stored }, &asked, now), Err(CutRefusal::Cut(6)));
        let gone = Stored { entry: None, ..stored };
        assert_eq!(cut(&gone, &asked, now), Err(CutRefusal::Unknown { wanted: 6, newest: 10 }));
        let other = Checkpoint { hash: Sha256::of(b"other"), ..through };
        let of_other = CutLog { through: other, ..asked };
        assert_eq!(cut(&stored, &of_other, now), Err(CutRefusal::Other(6)));
        let empty = CutLog { holds: Sha256::of(b""), ..asked };
        assert_eq!(cut(&stored, &empty, now), Err(CutRefusal::NotHeld));
    }

    #[test]
    fn a_log_that_was_changed_is_not_cut() {
        let (anchor, mut entries) = entries(5);
        entries[2].detail = "another".into();
        let added = Reading::from(anchor).add(&entries, 4);
        assert_eq!(added, Err(CutRefusal::Damaged(AuditError::Changed(3))));
    }
}
