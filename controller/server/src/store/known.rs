//! What is known of machines, in memory: whatever each of their requests is checked against, so that a
//! request costs no statement for it. Filled on demand, and emptied by each committed change that it would
//! contradict.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use tokio::time::Instant;

use super::alone::alone;
use super::stir::Moved;
use crate::core::Change;
use crate::core::checkin::is_news;
use crate::core::rows::KnownMachine;

/// How many machines are kept in memory. With more, all are forgotten and read again.
const MOST: usize = 100_000;

#[derive(Debug)]
pub struct Known {
    inner: Mutex<Inner>,
    /// How long what was read holds, where other processes write to the same database.
    lease: Option<Duration>,
}

#[derive(Debug, Default)]
struct Inner {
    machines: HashMap<MachineName, Entry>,
    /// Grows with each change that something read before it may contradict.
    version: u64,
}

#[derive(Debug)]
struct Entry {
    known: KnownMachine,
    read_at: Instant,
    /// What its last check-in told, and when operators were last told of it.
    told: Option<(u64, UnixMillis)>,
}

/// A moment before the database was read.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    version: u64,
    at: Instant,
}

impl Known {
    pub fn new(lease: Option<Duration>) -> Self {
        Self { inner: Mutex::default(), lease }
    }

    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        alone(&self.inner, work)
    }

    pub fn get(&self, machine: &MachineName) -> Option<KnownMachine> {
        let entry = |inner: &mut Inner| inner.machines.get(machine).map(|entry| (entry.known, entry.read_at));
        let (known, read_at) = self.with(entry)?;
        self.lease.is_none_or(|lease| read_at.elapsed() < lease).then_some(known)
    }

    /// To be called before the database is read.
    pub fn before(&self) -> Before {
        Before { version: self.with(|inner| inner.version), at: Instant::now() }
    }

    /// Keeps what was read, unless something has changed since.
    pub fn fill(&self, machine: &MachineName, known: KnownMachine, before: Before) {
        self.with(|inner| {
            if inner.version != before.version {
                return;
            }
            if inner.machines.len() >= MOST && !inner.machines.contains_key(machine) {
                inner.machines.clear();
            }
            let told = inner.machines.get(machine).and_then(|entry| entry.told);
            inner.machines.insert(machine.clone(), Entry { known, read_at: before.at, told });
        });
    }

    /// Forgets the machines whose identity these changes may have changed.
    pub fn forget(&self, machines: &[MachineName]) {
        self.with(|inner| {
            for machine in machines {
                inner.machines.remove(machine);
                inner.version += 1;
            }
        });
    }

    /// Forgets the machines whose identity these changes may have changed: they were committed, or may have
    /// been.
    pub fn doubt(&self, effects: &Effects) {
        self.forget(&effects.identities);
        if effects.everybody {
            self.with(|inner| {
                inner.machines.clear();
                inner.version += 1;
            });
        }
    }

    /// These changes are committed. Returns the machines whose change operators are told of.
    pub fn committed(&self, effects: Effects) -> Vec<MachineName> {
        self.doubt(&effects);
        self.with(|inner| {
            for (machine, at) in &effects.seen {
                if let Some(entry) = inner.machines.get_mut(machine) {
                    entry.known.seen_at = *at;
                }
            }
            let news = effects.changed.into_iter().filter(|changed| inner.changed(changed));
            news.map(|changed| changed.machine).collect()
        })
    }
}

impl Inner {
    /// Whether operators are told of it.
    fn changed(&mut self, changed: &Changed) -> bool {
        let Some(said) = &changed.said else { return true };
        let Some(entry) = self.machines.get_mut(&changed.machine) else {
            self.version += 1;
            return true;
        };
        entry.known.seq = entry.known.seq.max(said.seq);
        entry.known.seen_at = said.at;
        let now = (said.told, said.at);
        let news = changed.more || is_news(now, entry.told);
        if news {
            entry.told = Some(now);
        }
        news
    }
}

/// What committed changes mean for what is kept in memory.
#[derive(Debug, Default)]
pub struct Effects {
    /// Machines whose identity may have changed.
    identities: Vec<MachineName>,
    /// The identity of every machine has changed.
    everybody: bool,
    seen: Vec<(MachineName, UnixMillis)>,
    changed: Vec<Changed>,
    /// What they move in rollouts.
    pub moved: Vec<Moved>,
}

#[derive(Debug)]
struct Changed {
    machine: MachineName,
    /// Its check-in.
    said: Option<Said>,
    /// Whether anything else changed with it.
    more: bool,
}

#[derive(Debug, Clone, Copy)]
struct Said {
    seq: u64,
    at: UnixMillis,
    told: u64,
}

impl Effects {
    /// Of the changes of one decision or more: [`Change::MachineChanged`] is the last one of each.
    pub fn of(changes: &[Change]) -> Self {
        let mut effects = Self::default();
        let (mut said, mut more) = (None, false);
        for change in changes {
            effects.identities.extend(identity(change).cloned());
            effects.moved.extend(Moved::of(change));
            match change {
                Change::CounterRaised { machine: None, .. } => effects.everybody = true,
                Change::CheckedIn(one) => said = Some(Said { seq: one.seq, at: one.at, told: one.told }),
                Change::MachineSeen { machine, at } => effects.seen.push((machine.clone(), *at)),
                Change::ReportsThrough(count) => {
                    more = true;
                    effects.seen.push((count.machine.clone(), count.seen_at));
                }
                Change::MachineChanged { machine } => {
                    let (said, more) = (said.take(), std::mem::take(&mut more));
                    effects.changed.push(Changed { machine: machine.clone(), said, more });
                }
                _ => more = true,
            }
        }
        effects
    }
}

/// The machine whose identity a change may have changed: its key, its class, its life, or whether it is one
/// of the fleet's.
fn identity(change: &Change) -> Option<&MachineName> {
    match change {
        Change::MachineAdded { machine, .. } | Change::MachineInvited(machine) => Some(&machine.machine),
        Change::Enrolled(enrolled) => Some(&enrolled.machine),
        Change::MachineRevoked { machine, .. }
        | Change::KeyReplaced { machine, .. }
        | Change::BearersEnded { machine }
        | Change::CounterRaised { machine: Some(machine), .. } => Some(machine),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::SecretKey;
    use muster_protocol::machine::Class;

    use super::*;

    fn known(seq: u64) -> KnownMachine {
        let key = SecretKey::generate().unwrap().public();
        KnownMachine { key, class: Class::Nixos, revoked: false, enrolment: 1, counter: 0, seq, seen_at: 0 }
    }

    #[test]
    fn what_was_read_before_a_change_is_not_kept_after_it() {
        let (machines, tin) = (Known::new(None), "tin".parse().unwrap());
        let before = machines.before();
        machines.forget(std::slice::from_ref(&tin));
        machines.fill(&tin, known(1), before);
        assert!(machines.get(&tin).is_none());
        machines.fill(&tin, known(1), machines.before());
        assert_eq!(machines.get(&tin).unwrap().seq, 1);
        machines.forget(std::slice::from_ref(&tin));
        assert!(machines.get(&tin).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn where_others_write_what_was_read_holds_for_its_lease() {
        let (machines, tin) = (Known::new(Some(Duration::from_secs(1))), "tin".parse().unwrap());
        let before = machines.before();
        tokio::time::advance(Duration::from_millis(400)).await;
        machines.fill(&tin, known(1), before);
        tokio::time::advance(Duration::from_millis(599)).await;
        assert!(machines.get(&tin).is_some());
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(machines.get(&tin).is_none(), "a second after the read began");
    }

    #[test]
    fn it_takes_bounded_room() {
        let machines = Known::new(None);
        let one = known(1);
        for n in 0..MOST + 10 {
            machines.fill(&format!("m{n}").parse().unwrap(), one, machines.before());
        }
        assert_eq!(machines.with(|inner| inner.machines.len()), 10);
    }
}
