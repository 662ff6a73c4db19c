//! What routine check-ins are decided by, in memory, where this process is the only one that writes. A group
//! of check-ins then reads nothing.
//!
//! What is kept of a machine is what its last check-in stored, and only while nothing else is going on with
//! it. A check-in takes it out, and its commit puts the new one in its place: what failed halfway is read
//! again. Any other change of the machine removes it, while that change still holds the right to write, so
//! nothing is decided by facts that a commit has contradicted.

use std::collections::HashMap;
use std::sync::Mutex;

use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;

use super::alone::alone;
use super::queue::Asking;
use crate::core::change::Change;
use crate::core::checkin::Stored;

/// How many machines are kept in memory. With more, all are forgotten and read again.
const MOST: usize = 100_000;

#[derive(Debug, Default)]
pub struct Facts(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    machines: HashMap<MachineName, Box<Fact>>,
    /// Grows with each change that what was read before it may contradict.
    version: u64,
}

/// What is stored of a machine that is enrolled with this key.
#[derive(Debug, PartialEq)]
pub struct Fact {
    key: [u8; 32],
    stored: Stored,
}

impl Fact {
    /// What a check-in with this key left behind, if the machine's next one needs nothing else.
    pub fn of(key: &PublicKey, stored: Stored) -> Option<Self> {
        stored.is_routine().then(|| Self { key: *key.as_bytes(), stored })
    }
}

/// A moment while this process alone may write.
#[derive(Debug, Clone, Copy)]
pub struct Before(u64);

impl Facts {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        alone(&self.0, work)
    }

    /// Takes out what is known of the machines of new check-ins. To be called while nobody else may write. A
    /// check-in that is not newer than the last one is decided by what is in the database.
    pub fn take(&self, asked: &[Asking<'_>]) -> Vec<Option<Stored>> {
        self.with(|inner| asked.iter().map(|asking| inner.take(asking)).collect())
    }

    /// These changes are about to be committed, and nobody else may write until they are.
    pub fn before_commit(&self, changes: &[Change]) -> Before {
        self.with(|inner| {
            for change in changes {
                match contradicts(change) {
                    Concerns::One(machine) => drop(inner.machines.remove(machine)),
                    Concerns::Everybody => inner.machines.clear(),
                    Concerns::Nobody => continue,
                }
                inner.version += 1;
            }
            Before(inner.version)
        })
    }

    /// They are committed. Keeps what they left behind, unless somebody has written since.
    pub fn keep(&self, before: Before, facts: Vec<(MachineName, Fact)>) {
        self.with(|inner| {
            if inner.version != before.0 {
                return;
            }
            if inner.machines.len() + facts.len() > MOST {
                inner.machines.clear();
            }
            inner.machines.extend(facts.into_iter().map(|(machine, fact)| (machine, Box::new(fact))));
        });
    }
}

impl Inner {
    fn take(&mut self, asking: &Asking<'_>) -> Option<Stored> {
        let held = self.machines.get(asking.machine)?;
        if held.key != *asking.key.as_bytes() || asking.seq <= held.stored.seq {
            return None;
        }
        self.machines.remove(asking.machine).map(|fact| fact.stored)
    }
}

/// Whose check-ins are decided by what a change may concern.
enum Concerns<'a> {
    One(&'a MachineName),
    Everybody,
    Nobody,
}

fn contradicts(change: &Change) -> Concerns<'_> {
    match change {
        Change::MachineAdded { machine: invited, .. } | Change::MachineInvited(invited) => {
            Concerns::One(&invited.machine)
        }
        Change::Enrolled(enrolled) => Concerns::One(&enrolled.machine),
        Change::CheckedIn(checked_in) => Concerns::One(&checked_in.machine),
        Change::ReportsThrough(count) => Concerns::One(&count.machine),
        Change::AttackOpened(attack) => Concerns::One(&attack.machine),
        Change::MachineRevoked { machine, .. }
        | Change::KeyReplaced { machine, .. }
        | Change::CloneAlarm { machine, .. }
        | Change::CloneAlarmEnded { machine }
        | Change::BearersEnded { machine }
        | Change::CounterRaised { machine: Some(machine), .. }
        | Change::RequestKept { machine, .. }
        | Change::RequestsDropped { machine, .. }
        | Change::RequestsHandedOn { machine }
        | Change::KeyRotationAsked { machine, .. }
        | Change::AttacksTrimmed { machine, .. }
        | Change::AttacksEnded { machine, .. }
        | Change::Published { machine, .. } => Concerns::One(machine),
        Change::TurnChanged(new) => Concerns::One(&new.machine),
        Change::CounterRaised { machine: None, .. } => Concerns::Everybody,
        // Nothing of these is among what a check-in is decided by.
        Change::TagsReplaced { .. }
        | Change::MachineSeen { .. }
        | Change::TokenMade(_)
        | Change::TokenUsed { .. }
        | Change::TokensEnded { .. }
        | Change::BearerGranted(_)
        | Change::AccessEnded
        | Change::EventStored(_)
        | Change::EventsTrimmed { .. }
        | Change::EventsForgotten { .. }
        | Change::GenerationStored(_)
        | Change::TimestampStored { .. }
        | Change::DraftKept(_)
        | Change::DraftDropped { .. }
        | Change::RootInForce { .. }
        | Change::CacheMarked { .. }
        | Change::Audited(_)
        | Change::LogCut { .. }
        | Change::CutEntriesForgotten { .. }
        | Change::MachineChanged { .. }
        | Change::TokensForgotten { .. }
        | Change::AttacksForgotten { .. }
        | Change::GenerationsForgotten { .. }
        | Change::PlanStored(_)
        | Change::RolloutAsked { .. }
        | Change::RolloutDecided { .. }
        | Change::MemberFailed { .. }
        | Change::MembersForgiven { .. }
        | Change::MemberTriesAgain { .. }
        | Change::Said(_)
        | Change::BrakeSet { .. }
        | Change::PlansForgotten { .. }
        // They end requests and what was asked; a machine with either is not kept.
        | Change::EndedForgotten { .. } => Concerns::Nobody,
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::SecretKey;

    use super::*;
    use crate::core::rows::Request;

    fn machine() -> (MachineName, PublicKey) {
        ("tin".parse().unwrap(), SecretKey::generate().unwrap().public())
    }
    fn stored(seq: u64) -> Stored {
        Stored { seq, ..Stored::default() }
    }
    fn kept(facts: &Facts, tin: &MachineName, key: &PublicKey, seq: u64) {
        let fact = Fact::of(key, stored(seq)).unwrap();
        facts.keep(facts.before_commit(&[]), vec![(tin.clone(), fact)]);
    }
    fn take(facts: &Facts, machine: &MachineName, key: &PublicKey, seq: u64) -> Option<Stored> {
        facts.take(&[Asking { machine, key, seq }]).pop().unwrap()
    }

    #[test]
    fn what_a_check_in_left_behind_decides_the_next_one_and_no_other() {
        let (facts, (tin, key)) = (Facts::default(), machine());
        kept(&facts, &tin, &key, 7);
        assert_eq!(take(&facts, &tin, &key, 7), None, "the same number again");
        assert_eq!(take(&facts, &tin, &machine().1, 8), None, "another key");
        assert_eq!(take(&facts, &tin, &key, 8), Some(stored(7)));
        assert_eq!(take(&facts, &tin, &key, 8), None, "its commit has to put it back");
    }

    #[test]
    fn any_other_change_removes_it_and_what_was_decided_before_that_is_not_put_back() {
        let (facts, (tin, key)) = (Facts::default(), machine());
        kept(&facts, &tin, &key, 7);
        facts.before_commit(&[Change::BearersEnded { machine: tin.clone() }]);
        assert_eq!(take(&facts, &tin, &key, 8), None);
        kept(&facts, &tin, &key, 7);
        facts.before_commit(&[Change::CounterRaised { machine: None, to: 9 }]);
        assert_eq!(take(&facts, &tin, &key, 8), None);
        let before = facts.before_commit(&[]);
        facts.before_commit(&[Change::MachineRevoked { machine: tin.clone(), at: 1 }]);
        facts.keep(before, vec![(tin.clone(), Fact::of(&key, stored(7)).unwrap())]);
        assert_eq!(take(&facts, &tin, &key, 8), None);
    }

    #[test]
    fn a_machine_that_something_is_going_on_with_is_read_each_time() {
        let key = machine().1;
        let request = Request {
            id: muster_protocol::ids::Sha256::of(b"1"),
            asks: "logs".into(),
            document: None,
            ends: 1,
            handed_on: false,
        };
        for busy in [
            Stored { requests: vec![request], ..Stored::default() },
            Stored { key_rotation_asked: true, ..Stored::default() },
            Stored { clone_alarm: true, ..Stored::default() },
            Stored { attack_open: true, ..Stored::default() },
        ] {
            assert_eq!(Fact::of(&key, busy), None);
        }
    }

    #[test]
    fn it_takes_bounded_room() {
        let (facts, key) = (Facts::default(), machine().1);
        for n in 0..MOST + 10 {
            kept(&facts, &format!("m{n}").parse().unwrap(), &key, 1);
        }
        assert_eq!(facts.with(|inner| inner.machines.len()), 10);
    }
}
