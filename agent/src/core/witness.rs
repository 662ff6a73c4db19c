//! What the controller showed of its audit log. The agent carries and shows it, and obeys nothing about it.

use muster_protocol::audit::{Checkpoint, MAX_SHOWN};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Sha256;
use serde::{Deserialize, Serialize};

/// `log-shown.json`: the last different checkpoints, in the order in which they were first shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogShown {
    pub fleet: Sha256,
    pub log: Vec<Checkpoint>,
    /// When the last of them was first shown.
    pub at: UnixMillis,
}

impl LogShown {
    pub fn nothing(fleet: Sha256) -> Self {
        Self { fleet, log: Vec::new(), at: 0 }
    }

    /// Takes in what a reply showed; returns whether that is new. The oldest is forgotten for it, whatever
    /// the numbers are: no lie about a number stays for ever.
    pub fn heard(&mut self, shown: Checkpoint, now: UnixMillis) -> bool {
        if self.log.contains(&shown) {
            return false;
        }
        self.log.push(shown);
        let over = self.log.len().saturating_sub(MAX_SHOWN);
        self.log.drain(..over);
        self.at = now;
        true
    }
}

/// Whether no single log, however it grew, was ever shown like this: one number with two hashes, or a lower
/// number after a higher one.
pub fn contradict(shown: &[Checkpoint]) -> bool {
    shown.windows(2).any(|pair| matches!(pair, [before, after] if after.id <= before.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(id: u64, history: &str) -> Checkpoint {
        Checkpoint { id, hash: Sha256::of(format!("{history} {id}").as_bytes()) }
    }

    #[test]
    fn the_last_few_that_differ_are_carried_and_no_number_stays_for_ever() {
        let mut shown = LogShown::nothing(Sha256::of(b"fleet"));
        assert!(shown.heard(checkpoint(7, "a"), 1) && !shown.heard(checkpoint(7, "a"), 2));
        assert!(shown.heard(checkpoint(7, "b"), 3) && contradict(&shown.log));
        // A controller that goes to and fro leaves both in place.
        assert!(!shown.heard(checkpoint(7, "a"), 4));
        assert_eq!((shown.log.len(), shown.at), (2, 3));
        assert!(shown.heard(checkpoint(u64::MAX, "a"), 5));
        for id in 8..8 + MAX_SHOWN as u64 {
            assert!(shown.heard(checkpoint(id, "a"), 6));
        }
        assert_eq!(shown.log.len(), MAX_SHOWN);
        assert!(!contradict(&shown.log), "{:?}", shown.log);
    }
}
