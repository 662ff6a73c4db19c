//! Keeps [`LogShown`] durably, but cheaply: at most once an hour and once a start, since it is no promise.

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use muster_protocol::audit::{Checkpoint, MAX_SHOWN, ShownLog};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::SecretKey;

use crate::core::witness::LogShown;
use crate::durable;

/// Its file in the state folder.
const FILE: &str = "log-shown.json";
const MOST_BYTES: u64 = 4096;
const APART: Duration = Duration::from_secs(3600);

pub struct LogWitness {
    path: PathBuf,
    kept: RefCell<Kept>,
}

struct Kept {
    shown: LogShown,
    /// Not on disk yet.
    unwritten: bool,
    /// When it was last written, in awake time.
    written: Option<Duration>,
    /// The statement about it, by the key that made it.
    signed: Option<ShownLog>,
}

/// What the last process kept. A file that is damaged or of another fleet is ignored.
pub fn read(state_dir: &Path, fleet: &Sha256) -> LogShown {
    let bytes = durable::read(&state_dir.join(FILE), MOST_BYTES).ok().flatten();
    let shown = bytes.and_then(|bytes| serde_json::from_slice::<LogShown>(&bytes).ok());
    let ours = shown.filter(|shown| shown.fleet == *fleet && shown.log.len() <= MAX_SHOWN);
    ours.unwrap_or_else(|| LogShown::nothing(*fleet))
}

impl LogWitness {
    pub fn open(state_dir: &Path, fleet: &Sha256) -> Self {
        let shown = read(state_dir, fleet);
        let kept = Kept { shown, unwritten: false, written: None, signed: None };
        Self { path: state_dir.join(FILE), kept: RefCell::new(kept) }
    }

    /// Takes in what a reply showed, at this wall-clock and awake time.
    pub fn heard(&self, shown: Option<Checkpoint>, now: UnixMillis, awake: Duration) {
        let mut kept = self.kept.borrow_mut();
        if shown.is_some_and(|shown| kept.shown.heard(shown, now)) {
            kept.unwritten = true;
            kept.signed = None;
        }
        let due = kept.written.is_none_or(|written| awake >= written + APART);
        if kept.unwritten && due {
            // A disk that is full loses no more than a restart would.
            kept.written = Some(awake);
            match serde_json::to_vec(&kept.shown).map_err(std::io::Error::other) {
                Ok(bytes) => match durable::rewrite(&self.path, &bytes, 0o600) {
                    Ok(()) => kept.unwritten = false,
                    Err(error) => tracing::debug!(%error, "what the log showed is not kept yet"),
                },
                Err(error) => tracing::debug!(%error, "what the log showed cannot be written"),
            }
        }
    }

    pub fn shown(&self) -> Vec<Checkpoint> {
        self.kept.borrow().shown.log.clone()
    }

    /// The statement for a check-in, by this key; `None` if nothing was shown.
    pub fn statement(&self, key: &SecretKey, machine: &MachineName) -> Option<ShownLog> {
        let mut kept = self.kept.borrow_mut();
        if kept.shown.log.is_empty() {
            return None;
        }
        let (fleet, public) = (kept.shown.fleet, key.public());
        let good = kept.signed.as_ref().filter(|signed| signed.verify(&fleet, machine, &public).is_ok());
        if good.is_none() {
            let LogShown { log, at, .. } = kept.shown.clone();
            kept.signed = Some(ShownLog::sign(key, &fleet, machine, log, at));
        }
        kept.signed.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(id: u64) -> Checkpoint {
        Checkpoint { id, hash: Sha256::of(&id.to_be_bytes()) }
    }

    #[test]
    fn it_is_kept_at_most_once_an_hour_and_signed_by_the_key_in_force() {
        let folder = tempfile::tempdir().unwrap();
        let (fleet, machine): (Sha256, MachineName) = (Sha256::of(b"fleet"), "tin".parse().unwrap());
        let stored = || read(folder.path(), &fleet).log.len();
        let minutes = |minutes: u64| Duration::from_secs(minutes * 60);
        let witness = LogWitness::open(folder.path(), &fleet);
        let key = SecretKey::generate().unwrap();
        assert!(witness.statement(&key, &machine).is_none());
        witness.heard(Some(checkpoint(1)), 5, minutes(1));
        witness.heard(Some(checkpoint(2)), 6, minutes(2));
        witness.heard(None, 7, minutes(60));
        assert_eq!((stored(), witness.shown().len()), (1, 2));
        witness.heard(None, 8, minutes(61));
        assert_eq!(stored(), 2);
        assert_eq!(LogWitness::open(folder.path(), &fleet).shown(), witness.shown());
        assert!(read(folder.path(), &Sha256::of(b"another")).log.is_empty());
        let statement = witness.statement(&key, &machine).unwrap();
        assert!(statement.verify(&fleet, &machine, &key.public()).is_ok());
        assert_eq!((statement.log.len(), statement.at), (2, 6));
        let next = SecretKey::generate().unwrap();
        assert!(witness.statement(&next, &machine).unwrap().verify(&fleet, &machine, &next.public()).is_ok());
        std::fs::write(folder.path().join(FILE), "{").unwrap();
        assert_eq!(stored(), 0);
    }
}
