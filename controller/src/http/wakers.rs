//! Long polls that wait, by machine. Only polls that are open take room here.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use muster_protocol::ids::MachineName;
use tokio::sync::watch;

type Waiting = Mutex<HashMap<MachineName, watch::Sender<()>>>;

#[derive(Debug, Clone, Default)]
pub struct Wakers {
    waiting: Arc<Waiting>,
}

impl Wakers {
    /// Listens from now on: what happens after this call is not missed.
    pub fn listen(&self, machine: &MachineName) -> Listener {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let receiver = waiting.entry(machine.clone()).or_default().subscribe();
        Listener { machine: machine.clone(), receiver, waiting: self.waiting.clone() }
    }

    /// Wakes every poll of this machine.
    pub fn wake(&self, machine: &MachineName) {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = waiting.get(machine) {
            sender.send_replace(());
        }
    }

    /// How many machines wait.
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
        // The sender lives as long as a listener does.
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
        let (mut a, mut b, mut c) = (wakers.listen(&one), wakers.listen(&one), wakers.listen(&other));
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
        let (a, b) =
            (wakers.listen(&"cinnabar".parse().unwrap()), wakers.listen(&"cinnabar".parse().unwrap()));
        assert_eq!(wakers.len(), 1);
        drop(a);
        assert_eq!(wakers.len(), 1);
        drop(b);
        assert!(wakers.is_empty());
    }
}
