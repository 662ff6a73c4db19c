//! Requests of people at this machine. The local commands write them; the contact and the work take them.

use std::cell::{Cell, RefCell};

use tokio::sync::oneshot;

/// Receives the controller's answer to a requested check.
pub type Waiting = oneshot::Sender<Result<String, String>>;

#[derive(Default)]
pub struct Asks {
    rollback: Cell<bool>,
    /// The transaction that is wanted at the next boot.
    at_boot: RefCell<Option<String>>,
    /// The metadata is to be refreshed: a person asked, or a request names an operator of a root that is not
    /// held yet.
    refresh: Cell<bool>,
    /// The work retries what it put off.
    again: Cell<bool>,
    waiting: RefCell<Vec<Waiting>>,
}

impl Asks {
    pub fn for_rollback(&self) {
        self.rollback.set(true);
    }
    pub fn wants_rollback(&self) -> bool {
        self.rollback.get()
    }
    pub fn rollback_begun(&self) {
        self.rollback.set(false);
    }

    pub fn for_boot(&self, transaction: String) {
        *self.at_boot.borrow_mut() = Some(transaction);
        self.for_another_try();
    }
    pub fn wants_at_boot(&self, transaction: &str) -> bool {
        self.at_boot.borrow().as_deref() == Some(transaction)
    }

    pub fn for_refresh(&self) {
        self.refresh.set(true);
    }
    pub fn wants_refresh(&self) -> bool {
        self.refresh.get()
    }
    pub fn refreshed(&self) {
        self.refresh.set(false);
    }

    pub fn for_another_try(&self) {
        self.again.set(true);
    }
    /// Whether this was requested since the last look.
    pub fn take_another_try(&self) -> bool {
        self.again.replace(false)
    }

    /// Asks the controller now; its answer goes to this channel.
    pub fn for_check(&self, to: Waiting) {
        self.waiting.borrow_mut().push(to);
        self.for_refresh();
        self.for_another_try();
    }

    /// Passes the controller's answer to everyone who asked.
    pub fn answer(&self, answer: &Result<String, String>) {
        for to in self.waiting.borrow_mut().drain(..) {
            // The requester may be gone: that is no error.
            let _ = to.send(answer.clone());
        }
    }
}
