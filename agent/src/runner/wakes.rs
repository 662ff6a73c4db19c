//! Who is to be woken: the contact when there is something to tell, the work when there is something to look at.

use std::cell::Cell;

use tokio::sync::Notify;

/// Anybody asks for it; the contact and the work wait.
pub struct Wakes {
    /// Whether something has changed that the controller does not know.
    to_tell: Cell<bool>,
    /// Whether that is told without waiting for more of it.
    hurry: Cell<bool>,
    contact: Notify,
    work: Notify,
}

impl Wakes {
    /// The start of the agent is itself something to tell.
    pub fn new() -> Self {
        let (contact, work) = (Notify::new(), Notify::new());
        Self { to_tell: Cell::new(true), hurry: Cell::new(true), contact, work }
    }

    /// Something that a check-in tells has changed. It is told with what else changes within a moment.
    pub fn changed(&self) {
        self.to_tell.set(true);
        self.contact.notify_one();
    }

    /// The same, and somebody waits for it to be told.
    pub fn changed_now(&self) {
        self.hurry.set(true);
        self.changed();
    }

    /// There is something to tell, whenever the contact comes to it.
    pub fn mark(&self) {
        self.to_tell.set(true);
    }

    pub fn has_to_tell(&self) -> bool {
        self.to_tell.get()
    }

    /// The same, once: what changes from now on is for the next check-in.
    pub fn take_to_tell(&self) -> bool {
        self.to_tell.replace(false)
    }

    pub fn take_hurry(&self) -> bool {
        self.hurry.replace(false)
    }

    pub fn wake_contact(&self) {
        self.contact.notify_one();
    }

    pub fn wake_work(&self) {
        self.work.notify_one();
    }

    pub async fn contact(&self) {
        self.contact.notified().await;
    }

    pub async fn work(&self) {
        self.work.notified().await;
    }
}
