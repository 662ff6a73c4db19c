//! Wakes the contact when there is something to report, and the work when there is something to look at.

use std::cell::Cell;

use tokio::sync::Notify;

/// Anyone sets it; the contact and the work wait for it.
pub struct Wakes {
    /// Whether something has changed that the controller does not know about.
    to_tell: Cell<bool>,
    /// Whether to report it without waiting for more changes.
    hurry: Cell<bool>,
    contact: Notify,
    work: Notify,
    soak: Notify,
}

impl Wakes {
    /// The start of the agent is itself worth reporting.
    pub fn new() -> Self {
        let [contact, work, soak] = [(); 3].map(|()| Notify::new());
        Self { to_tell: Cell::new(true), hurry: Cell::new(true), contact, work, soak }
    }

    /// Something that a check-in reports has changed. It is sent along with other changes within a moment.
    pub fn changed(&self) {
        self.to_tell.set(true);
        self.contact.notify_one();
    }

    /// The same, and somebody waits for it.
    pub fn changed_now(&self) {
        self.hurry.set(true);
        self.changed();
    }

    /// There is something to report, whenever the contact gets to it.
    pub fn mark(&self) {
        self.to_tell.set(true);
    }

    pub fn has_to_tell(&self) -> bool {
        self.to_tell.get()
    }

    /// The same, once: later changes belong to the next check-in.
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

    /// What the machine runs may have changed.
    pub fn wake_soak(&self) {
        self.soak.notify_one();
    }

    pub async fn contact(&self) {
        self.contact.notified().await;
    }

    pub async fn work(&self) {
        self.work.notified().await;
    }

    pub async fn soak(&self) {
        self.soak.notified().await;
    }
}
