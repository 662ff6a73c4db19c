//! A new key for this machine: made, shown to the controller by a check-in that both sign, and put in force.
//!
//! [`identity::next_key`] says why a crash at any instant locks nobody out.

use std::time::Duration;

use muster_protocol::clock::Clock as _;
use muster_protocol::keys::SecretKey;
use muster_protocol::report::EventKind;

use super::Shared;
use crate::client::Client;
use crate::identity::{self, IdentityError};

/// A controller that asks for one key after the other is not followed.
const APART: Duration = Duration::from_secs(60);

impl Shared {
    /// Makes the next key; the check-in that follows brings it.
    fn begin_rotation(&self) -> Result<SecretKey, IdentityError> {
        let next = identity::make_next_key(&self.config.state_dir)?;
        *self.next_key.borrow_mut() = Some(next.clone());
        self.changed();
        Ok(next)
    }

    /// The controller passes on that an operator asks for a new key. It could ask by itself: that costs a key.
    pub(super) fn rotation_wanted(&self) {
        let now = self.clock.awake();
        let lately = self.rotated.get().is_some_and(|at| now.saturating_sub(at) < APART);
        if lately || self.next_key.borrow().is_some() {
            return;
        }
        match self.begin_rotation() {
            Ok(key) => tracing::info!(key = key.public().short(), "a new key was asked for"),
            Err(error) => tracing::error!("a new key was asked for and cannot be made: {error}"),
        }
    }

    /// Somebody at this machine asks for a new key.
    pub(super) fn ask_rotation(&self) -> Result<String, String> {
        let key = self.begin_rotation().map_err(|error| error.to_string())?;
        Ok(format!(
            "the new key {} is made, and in force as soon as the controller has it; the old one ends then",
            key.public().short()
        ))
    }

    /// The controller has the new key: it takes the old one's place here too.
    pub(super) fn rotated(&self, client: &Client, next: &SecretKey) -> Result<(), IdentityError> {
        identity::take_next_key(&self.config.state_dir)?;
        client.use_key(next);
        *self.next_key.borrow_mut() = None;
        self.rotated.set(Some(self.clock.awake()));
        tracing::info!(key = next.public().short(), "this machine signs with its new key");
        let event = EventKind::KeyRotated { key: next.public() };
        if let Err(error) = self.ledger.borrow_mut().tell(None, event, self.clock.unix_ms()) {
            tracing::error!(%error, "the new key cannot be reported; the controller knows it all the same");
        }
        Ok(())
    }
}
