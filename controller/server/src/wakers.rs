//! Waiting long polls, by machine. Only open polls take up memory here.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::operator::Publication;
use tokio::sync::Notify;

/// How many polls of one machine may wait at once: an old one may linger when its machine changes networks.
const MOST_POLLS: usize = 8;

/// A `watch` channel would do the same, at half a kilobyte for each waiting machine.
#[derive(Debug, Default)]
struct Bell {
    rung: AtomicU64,
    notify: Notify,
    /// What the last ring told.
    tells: Mutex<Wake>,
}

impl Bell {
    fn ring(&self) {
        self.rung.fetch_add(1, Ordering::Release);
        self.notify.notify_waiters();
    }
}

#[derive(Debug, Default)]
struct Waiting {
    bell: Arc<Bell>,
    polls: usize,
}

type Machines = HashMap<MachineName, Waiting>;

/// Why a poll wakes.
#[derive(Debug, Clone, Default)]
pub enum Wake {
    /// Something changed: look.
    #[default]
    Look,
    /// This was published and is stored: there is no need to look for it. It is held for as long as the poll
    /// waits, and thus not at all where no machine waits.
    Published(Arc<Fresh>),
}

/// A generation that was published just now.
#[derive(Debug)]
pub struct Fresh {
    /// The version of the root that it was checked under.
    pub root: u64,
    pub publication: Publication,
    /// The bytes of its `timestamp.json`.
    pub timestamp: Vec<u8>,
}

impl Fresh {
    pub fn generation(&self) -> Generation {
        self.publication.generation
    }
}

#[derive(Debug, Clone, Default)]
pub struct Wakers {
    waiting: Arc<Mutex<Machines>>,
}

impl Wakers {
    /// Subscribes: nothing that happens after this call is missed. `None` if too many polls of this machine
    /// are waiting.
    pub fn listen(&self, machine: &MachineName) -> Option<Listener> {
        let mut machines = self.machines();
        let waiting = machines.entry(machine.clone()).or_default();
        if waiting.polls >= MOST_POLLS {
            return None;
        }
        waiting.polls += 1;
        let bell = waiting.bell.clone();
        let heard = bell.rung.load(Ordering::Acquire);
        Some(Listener { machine: machine.clone(), bell, heard, wakers: self.clone() })
    }

    /// Wakes every poll of this machine.
    pub fn wake(&self, machine: &MachineName) {
        self.wake_for(machine, || Wake::Look);
    }

    /// Wakes every poll of this machine with what was published for it, which is made only if one waits.
    pub fn wake_with(&self, machine: &MachineName, fresh: impl FnOnce() -> Fresh) {
        self.wake_for(machine, || Wake::Published(Arc::new(fresh())));
    }

    fn wake_for(&self, machine: &MachineName, wake: impl FnOnce() -> Wake) {
        if let Some(Waiting { bell, .. }) = self.machines().get(machine) {
            *bell.tells.lock().unwrap_or_else(PoisonError::into_inner) = wake();
            bell.ring();
        }
    }

    /// Wakes every poll of every machine.
    pub fn wake_all(&self) {
        for Waiting { bell, .. } in self.machines().values() {
            *bell.tells.lock().unwrap_or_else(PoisonError::into_inner) = Wake::Look;
            bell.ring();
        }
    }

    /// How many machines are waiting.
    pub fn len(&self) -> usize {
        self.machines().len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn machines(&self) -> MutexGuard<'_, Machines> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub struct Listener {
    machine: MachineName,
    bell: Arc<Bell>,
    /// How often the bell had been rung when it was last heard.
    heard: u64,
    wakers: Wakers,
}

impl Listener {
    pub async fn woken(&mut self) -> Wake {
        loop {
            // Created before the count is read: whoever rings after that is noticed.
            let rings = self.bell.notify.notified();
            let rung = self.bell.rung.load(Ordering::Acquire);
            if rung != self.heard {
                self.heard = rung;
                return self.bell.tells.lock().unwrap_or_else(PoisonError::into_inner).clone();
            }
            rings.await;
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut machines = self.wakers.machines();
        if let Entry::Occupied(mut waiting) = machines.entry(self.machine.clone()) {
            waiting.get_mut().polls -= 1;
            if waiting.get().polls == 0 {
                waiting.remove();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waking_reaches_every_poll_of_that_machine_and_no_other() {
        let wakers = Wakers::default();
        let (one, other) = ("cinnabar".parse().unwrap(), "stibnite".parse().unwrap());
        let listen = |name| wakers.listen(name).unwrap();
        let (mut a, mut b, mut c) = (listen(&one), listen(&one), listen(&other));
        wakers.wake(&one);
        a.woken().await;
        b.woken().await;
        assert_eq!(c.bell.rung.load(Ordering::Acquire), c.heard, "nobody rang there");
        wakers.wake(&other);
        c.woken().await;
    }

    #[tokio::test]
    async fn what_was_published_is_held_only_where_a_poll_waits_for_it() {
        let wakers = Wakers::default();
        let machine = "cinnabar".parse().unwrap();
        let fresh = || Fresh {
            root: 1,
            publication: Publication {
                generation: Generation::FIRST,
                targets: "{}".into(),
                snapshot: "{}".into(),
                target: "{}".into(),
            },
            timestamp: b"{}".to_vec(),
        };
        wakers.wake_with(&machine, || unreachable!("nobody waits"));
        let mut listener = wakers.listen(&machine).unwrap();
        wakers.wake_with(&machine, fresh);
        let Wake::Published(held) = listener.woken().await else { panic!("it looks") };
        assert_eq!(held.generation(), Generation::FIRST);
        drop(listener);
        assert_eq!(Arc::strong_count(&held), 1, "it is dropped with the poll");
        // What comes later is looked for.
        let mut listener = wakers.listen(&machine).unwrap();
        wakers.wake_with(&machine, fresh);
        wakers.wake(&machine);
        assert!(matches!(listener.woken().await, Wake::Look));
    }

    #[test]
    fn only_open_polls_take_room() {
        let wakers = Wakers::default();
        wakers.wake(&"nobody".parse().unwrap());
        assert!(wakers.is_empty());
        let listen = || wakers.listen(&"cinnabar".parse().unwrap());
        let (a, b) = (listen().unwrap(), listen().unwrap());
        let more: Vec<_> = std::iter::from_fn(listen).collect();
        assert_eq!(more.len(), MOST_POLLS - 2, "a machine has so many and no more");
        assert!(wakers.listen(&"stibnite".parse().unwrap()).is_some(), "another one has its own");
        drop(more);
        assert_eq!(wakers.len(), 1);
        drop(a);
        assert_eq!(wakers.len(), 1);
        drop(b);
        assert!(wakers.is_empty());
    }
}
