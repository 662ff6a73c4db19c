//! The key that is waiting to replace this machine's. See [`crate::identity::next_key`].

use std::cell::{Cell, RefCell};
use std::time::Duration;

use muster_protocol::keys::{PublicKey, SecretKey};

pub struct NextKey {
    key: RefCell<Option<SecretKey>>,
    /// Before this awake time it is not shown.
    shown_from: Cell<Option<Duration>>,
}

impl NextKey {
    pub fn new(key: Option<SecretKey>) -> Self {
        Self { key: RefCell::new(key), shown_from: Cell::new(None) }
    }

    pub fn get(&self) -> Option<SecretKey> {
        self.key.borrow().clone()
    }
    pub fn public(&self) -> Option<PublicKey> {
        self.key.borrow().as_ref().map(SecretKey::public)
    }

    /// The key, if it is to be shown now.
    pub fn to_show(&self, now: Duration) -> Option<PublicKey> {
        self.public().filter(|_| self.shown_from.get().is_none_or(|from| now >= from))
    }

    /// Replaces or removes it; a new one is shown at once.
    pub fn set(&self, key: Option<SecretKey>) {
        *self.key.borrow_mut() = key;
        self.show();
    }

    pub fn show(&self) {
        self.shown_from.set(None);
    }

    /// Returns whether it was being shown until now.
    pub fn show_from(&self, from: Duration) -> bool {
        self.shown_from.replace(Some(from)).is_none()
    }
}
