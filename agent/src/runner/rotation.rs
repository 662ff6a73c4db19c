//! A new key for this machine: generated, shown to the controller by a check-in that both keys sign, and put
//! in force.
//!
//! [`identity::next_key`] says why a crash at any instant locks nobody out.

use std::time::Duration;

use muster_protocol::keys::{PublicKey, SecretKey};
use muster_protocol::report::EventKind;

use super::shared::Shared;
use crate::client::Client;
use crate::identity::{self, IdentityError};

/// Operators' requests change this machine's key at most this often, in milliseconds: only a few previous
/// keys are kept.
const APART_MS: i64 = 3_600_000;

impl Shared {
    /// Generates the next key; the following check-in brings it.
    fn begin_rotation(&self) -> Result<SecretKey, IdentityError> {
        let next = identity::make_next_key(&self.config.state_dir)?;
        self.next_key.set(Some(next.clone()));
        self.wakes.changed();
        Ok(next)
    }

    /// An operator requests a replacement of `key`. Returns whether nothing more is to be done for it.
    pub(super) fn rotation_wanted(&self, key: &PublicKey, client: &Client) -> Result<bool, IdentityError> {
        let in_force = client.key().is_some_and(|held| held.public() == *key);
        if !in_force {
            return Ok(true);
        }
        // Only a replaced key is done with: whoever answers may refuse the next one.
        if self.next_key.get().is_some() {
            return Ok(false);
        }
        let now = self.clock.unix_ms();
        let rotated = identity::rotated_at(&self.config.state_dir)?;
        if rotated.is_some_and(|at| (0..APART_MS).contains(&now.saturating_sub(at))) {
            tracing::debug!("another key is requested too soon after the last one; delaying it");
            return Ok(false);
        }
        let next = self.begin_rotation()?;
        tracing::info!(key = next.public().short(), "an operator asks for a new key");
        Ok(false)
    }

    /// The controller claims that another machine has the next key. That may be a lie of one that accepted
    /// it, so the key stays; it is shown again after an hour, or as soon as the key in force is unknown to
    /// the controller.
    pub(super) fn next_key_is_doubted(&self) {
        let pause = Duration::from_millis(APART_MS.unsigned_abs());
        if self.next_key.show_from(self.clock.awake().saturating_add(pause)) {
            tracing::warn!(
                "the controller does not accept this machine's next key; showing it again in an hour"
            );
        }
    }

    /// Somebody at this machine requests a new key.
    pub(super) fn ask_rotation(&self) -> Result<String, String> {
        let key = self.begin_rotation().map_err(|error| error.to_string())?;
        Ok(format!(
            "the new key {} is made, and in force as soon as the controller has it",
            key.public().short()
        ))
    }

    /// The controller has the new key: put it in force here too.
    pub(super) fn rotated(&self, client: &Client, next: &SecretKey) -> Result<(), IdentityError> {
        if let Err(error) = identity::take_next_key(&self.config.state_dir, self.clock.unix_ms()) {
            // Only the rename removes the file: after it the key is in force, whatever else failed.
            if identity::next_key(&self.config.state_dir)?.is_some() {
                return Err(error);
            }
        }
        client.use_key(next);
        self.next_key.set(None);
        tracing::info!(key = next.public().short(), "this machine signs with its new key");
        let event = EventKind::KeyRotated { key: next.public() };
        if let Err(error) = self.ledger.borrow_mut().tell(None, event, self.clock.unix_ms()) {
            tracing::error!(%error, "the new key cannot be reported; the controller knows it all the same");
        }
        Ok(())
    }
}
