//! The fleet's cursor: what has changed since this process started, in memory. Wakes those who wait for
//! changes and tells them whose they were.
//!
//! A cursor is the process's instance and a number in it. A reader from another instance, such as the
//! process before a restart, cannot know what it missed and reads everything once.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use muster_protocol::ids::{MachineName, to_hex};
use muster_protocol::random::{self, RandomError};
use tokio::sync::watch;

/// The number of the newest change; it only grows while the process lives.
pub type Cursor = u64;

#[derive(Debug, Clone)]
pub struct Notify(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    instance: String,
    cursor: watch::Sender<Cursor>,
    changes: Mutex<Changes>,
}

/// The newest change of each machine, both ways.
#[derive(Debug, Default)]
struct Changes {
    last: Cursor,
    by_machine: HashMap<MachineName, Cursor>,
    in_order: BTreeMap<Cursor, MachineName>,
}

impl Notify {
    /// Begins anywhere: a reader that knows no instances is not to mistake this process's numbers for
    /// another's.
    pub fn new() -> Result<Self, RandomError> {
        let (instance, start) = (to_hex(&random::bytes::<8>()?), u64::from_be_bytes(random::bytes()?));
        // JSON readers that use floating-point numbers represent it exactly.
        let last = (start >> 17) + 1;
        let changes = Mutex::new(Changes { last, ..Changes::default() });
        Ok(Self(Arc::new(Inner { instance, cursor: watch::Sender::new(last), changes })))
    }

    /// Which process counts.
    pub fn instance(&self) -> &str {
        &self.0.instance
    }

    /// These machines' changes are committed: whoever waits is woken, and finds them in the store.
    pub fn changed(&self, machines: impl IntoIterator<Item = MachineName>) {
        let last = {
            let mut changes = self.0.changes.lock().unwrap_or_else(PoisonError::into_inner);
            machines.into_iter().for_each(|machine| changes.put(machine));
            changes.last
        };
        self.0.cursor.send_if_modified(|held| {
            let newer = last > *held;
            *held = last.max(*held);
            newer
        });
    }

    /// Whose changes came after this one, in their order; `None` if they are more than `most`, or if this is
    /// no number of this process.
    pub fn since(&self, instance: Option<&str>, after: Cursor, most: usize) -> Option<Vec<MachineName>> {
        let changes = self.0.changes.lock().unwrap_or_else(PoisonError::into_inner);
        if instance != Some(self.instance()) || after > changes.last {
            return None;
        }
        let mut found = changes.in_order.range(after.saturating_add(1)..).map(|(_, machine)| machine);
        let some: Vec<MachineName> = found.by_ref().take(most).cloned().collect();
        found.next().is_none().then_some(some)
    }

    /// Subscribes: nothing that happens after this call is missed.
    pub fn listen(&self) -> watch::Receiver<Cursor> {
        self.0.cursor.subscribe()
    }

    /// How many subscribers there are.
    pub fn listeners(&self) -> usize {
        self.0.cursor.receiver_count()
    }
}

impl Changes {
    fn put(&mut self, machine: MachineName) {
        self.last += 1;
        if let Some(before) = self.by_machine.insert(machine.clone(), self.last) {
            self.in_order.remove(&before);
        }
        self.in_order.insert(self.last, machine);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<MachineName> {
        names.iter().map(|name| name.parse().unwrap()).collect()
    }

    #[test]
    fn it_tells_whose_changes_came_after_a_number_each_once_and_in_order() {
        let notify = Notify::new().unwrap();
        let start = *notify.listen().borrow();
        notify.changed(names(&["zinc", "tin"]));
        let middle = *notify.listen().borrow();
        notify.changed(names(&["lead", "zinc"]));
        let since = |after| notify.since(Some(notify.instance()), after, 3);
        assert_eq!(since(start), Some(names(&["tin", "lead", "zinc"])));
        assert_eq!(since(middle), Some(names(&["lead", "zinc"])));
        assert_eq!(since(*notify.listen().borrow()), Some(vec![]));
    }

    #[test]
    fn what_it_cannot_know_or_would_be_too_long_may_be_any_machine() {
        let (notify, other) = (Notify::new().unwrap(), Notify::new().unwrap());
        let start = *notify.listen().borrow();
        notify.changed(names(&["zinc", "tin"]));
        assert_eq!(notify.since(Some(notify.instance()), start, 1), None, "too many");
        assert_eq!(notify.since(Some(other.instance()), start, 9), None, "of another process");
        assert_eq!(notify.since(None, start, 9), None);
        assert_eq!(notify.since(Some(notify.instance()), start + 3, 9), None, "of the future");
    }

    #[tokio::test]
    async fn a_change_wakes_who_waits() {
        let notify = Notify::new().unwrap();
        let mut waiting = notify.listen();
        notify.changed([]);
        assert!(!waiting.has_changed().unwrap(), "of nobody");
        notify.changed(names(&["tin"]));
        waiting.changed().await.unwrap();
        assert_eq!(notify.listeners(), 1);
    }
}
