//! Entries of the audit log, and how they are chained.

use muster_protocol::audit::{Checkpoint, Entry, hash};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;

/// Who acts, and when: what every entry has besides the action.
#[derive(Debug, Clone, Copy)]
pub struct AuditContext<'a> {
    /// An operator key or a root key.
    pub operator: &'a PublicKey,
    pub at: UnixMillis,
}

/// The contents of an entry. Its number and hash follow from the entry before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    pub at: UnixMillis,
    /// `None` if a machine or the controller itself was the cause.
    pub by: Option<PublicKey>,
    pub action: &'static str,
    pub machine: Option<MachineName>,
    pub detail: String,
}

impl NewEntry {
    /// An operator's action.
    pub fn by(context: &AuditContext<'_>, action: &'static str, detail: impl Into<String>) -> Self {
        let by = Some(*context.operator);
        Self { at: context.at, by, action, machine: None, detail: detail.into() }
    }

    /// Caused by a machine, or by the passing of time.
    pub fn by_itself(at: UnixMillis, action: &'static str, detail: impl Into<String>) -> Self {
        Self { at, by: None, action, machine: None, detail: detail.into() }
    }

    /// Names the machine that it is about.
    pub fn on(self, machine: &MachineName) -> Self {
        Self { machine: Some(machine.clone()), ..self }
    }

    /// The entry chained to `before`.
    pub fn chained(&self, before: &Checkpoint) -> Entry {
        let entry = Entry {
            id: before.id.saturating_add(1),
            at: self.at,
            by: self.by,
            action: self.action.to_owned(),
            machine: self.machine.clone(),
            detail: self.detail.clone(),
            hash: before.hash,
        };
        Entry { hash: hash(&before.hash, &entry), ..entry }
    }
}
