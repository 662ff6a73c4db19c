//! Waiting long polls, by machine. Only open polls take up memory here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use muster_protocol::ids::MachineName;
use tokio::sync::watch;

type Waiting = Mutex<HashMap<MachineName, watch::Sender<()>>>;

/// How many polls of one machine may wait at once: an old one may linger when its machine changes networks.
const MOST_POLLS: usize = 8;

#[derive(Debug, Clone, Default)]
pub struct Wakers {
    waiting: Arc<Waiting>,
}

impl Wakers {
    /// Subscribes: nothing that happens after this call is missed. `None` if too many polls of this machine
    /// are waiting.
    pub fn listen(&self, machine: &MachineName) -> Option<Listener> {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = waiting.entry(machine.clone()).or_default();
        if sender.receiver_count() >= MOST_POLLS {
            return None;
        }
        let receiver = sender.subscribe();
        Some(Listener { machine: machine.clone(), receiver, waiting: self.waiting.clone() })
    }

    /// Wakes every poll of this machine.
    pub fn wake(&self, machine: &MachineName) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = waiting.get(machine) {
            sender.send_replace(());
        }
    }

    /// How many machines are waiting.
    pub fn len(&self) -> usize {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[derive(Debug)]
pub struct Listener {
    machine: MachineName,
    receiver: watch::Receiver<()>,
    waiting: Arc<Waiting>,
}

impl Listener {
    pub async fn woken(&mut self) {
        // The sender lives as long as any receiver.
        let _ = self.receiver.changed().await;
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.get(&self.machine).is_some_and(|sender| sender.receiver_count() == 1) {
            waiting.remove(&self.machine);
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
        assert!(!c.receiver.has_changed().unwrap());
        wakers.wake(&other);
        c.woken().await;
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
