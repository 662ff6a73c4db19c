//! The unanswered check-in. The same bytes are sent until it is answered, even by the next process; only then
//! is the next one made. So a lost answer is given again, and the machine is not mistaken for a second holder
//! of the key.

use std::io;
use std::path::{Path, PathBuf};

use muster_protocol::checkin::{CheckIn, MAX_CHECKIN_BYTES};
use muster_protocol::ids::{MachineName, Sha256};

use crate::durable;

/// The file of the check-in in the state folder.
pub const FILE: &str = "checkin.json";

/// A check-in as sent.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub check_in: CheckIn,
    pub bytes: Vec<u8>,
    /// Made by this process just now. The content of an older one is no longer news.
    pub fresh: bool,
}

/// Where it is stored.
pub struct Unanswered {
    path: PathBuf,
    outgoing: Option<Outgoing>,
}

impl Unanswered {
    /// What the last process left unanswered. A file that is damaged, or of another machine, is ignored.
    pub fn open(state_dir: &Path, fleet: &Sha256, machine: &MachineName) -> io::Result<Self> {
        let path = state_dir.join(FILE);
        let bytes = match durable::read(&path, MAX_CHECKIN_BYTES as u64) {
            Err(error) if error.kind() == io::ErrorKind::Other => None,
            read => read?,
        };
        let outgoing = bytes.and_then(|bytes| {
            let check_in: CheckIn = serde_json::from_slice(&bytes).ok()?;
            let ours = check_in.audience == *fleet && check_in.machine == *machine;
            ours.then_some(Outgoing { check_in, bytes, fresh: false })
        });
        Ok(Self { path, outgoing })
    }

    /// The number of the unanswered one.
    pub fn number(&self) -> u64 {
        self.outgoing.as_ref().map_or(0, |outgoing| outgoing.check_in.seq)
    }

    /// Returns the unanswered one, which from now on is an old one.
    pub fn take(&mut self) -> Option<Outgoing> {
        let outgoing = self.outgoing.clone();
        if let Some(kept) = &mut self.outgoing {
            kept.fresh = false;
        }
        outgoing
    }

    /// Durably stores the next one.
    pub fn keep(&mut self, check_in: CheckIn) -> io::Result<()> {
        let bytes = serde_json::to_vec(&check_in).map_err(io::Error::other)?;
        durable::rewrite(&self.path, &bytes, 0o600)?;
        self.outgoing = Some(Outgoing { check_in, bytes, fresh: true });
        Ok(())
    }

    /// It is answered. Made durable with the next one: the controller recognises one that is sent again.
    pub fn answered(&mut self) {
        self.outgoing = None;
        let mut spare = self.path.clone().into_os_string();
        spare.push(".new");
        if let Err(error) = std::fs::rename(&self.path, spare) {
            tracing::debug!(%error, "the answered check-in stays; it is sent once more");
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::checkin::{Health, Holds, Phase};

    use super::*;

    fn check_in(seq: u64) -> CheckIn {
        CheckIn {
            understands: vec![],
            signing: None,
            vouch: None,
            awaits: None,
            audience: Sha256::of(b"fleet"),
            machine: "tin".parse().unwrap(),
            class: muster_protocol::machine::Class::Nixos,
            system: "x86_64-linux".parse().unwrap(),
            boot_id: "b".into(),
            seq,
            clock: 5,
            agent: "1".into(),
            runs: None,
            holds: Holds::default(),
            phase: Phase::Idle,
            phase_generation: None,
            note: None,
            refused: None,
            health: Health::default(),
            new_key: None,
            age: None,
            followed: vec![],
            shown: None,
            session: None,
        }
    }
    fn open(folder: &Path) -> Unanswered {
        Unanswered::open(folder, &Sha256::of(b"fleet"), &"tin".parse().unwrap()).unwrap()
    }

    #[test]
    fn the_same_bytes_wait_until_they_are_answered_whatever_becomes_of_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let mut kept = open(folder.path());
        assert!(kept.take().is_none());
        kept.keep(check_in(7)).unwrap();
        let outgoing = kept.take().unwrap();
        assert!(outgoing.fresh);
        for _ in 0..3 {
            let mut again = open(folder.path());
            let repeated = again.take().unwrap();
            assert_eq!((&repeated.bytes, repeated.fresh, again.number()), (&outgoing.bytes, false, 7));
        }
        kept.answered();
        assert!(open(folder.path()).take().is_none());
        kept.keep(check_in(8)).unwrap();
        assert_eq!(open(folder.path()).number(), 8);
    }

    #[test]
    fn a_damaged_one_and_one_of_another_machine_are_none() {
        let folder = tempfile::tempdir().unwrap();
        for damaged in [b"{".to_vec(), vec![b' '; MAX_CHECKIN_BYTES + 1]] {
            std::fs::write(folder.path().join(FILE), damaged).unwrap();
            assert!(open(folder.path()).take().is_none());
        }
        let other = CheckIn { machine: "zinc".parse().unwrap(), ..check_in(3) };
        open(folder.path()).keep(other).unwrap();
        assert!(open(folder.path()).take().is_none());
    }
}
