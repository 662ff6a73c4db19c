//! What the audit log is told, and how its entries are chained.

use muster_protocol::audit::{Checkpoint, Entry, hash};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;

/// Who does something, and when: what an entry of the log has beside the action.
#[derive(Debug, Clone, Copy)]
pub struct AuditContext<'a> {
    /// An operator's key, or a root key.
    pub operator: &'a PublicKey,
    pub at: UnixMillis,
}

/// What an entry says. Its number and its hash follow from the entry before it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewEntry {
    pub at: UnixMillis,
    /// None where a machine or the controller itself was the cause.
    pub by: Option<PublicKey>,
    pub action: &'static str,
    pub machine: Option<MachineName>,
    pub detail: String,
}

impl NewEntry {
    /// What an operator did.
    pub fn by(context: &AuditContext<'_>, action: &'static str, detail: impl Into<String>) -> Self {
        let by = Some(*context.operator);
        Self { at: context.at, by, action, machine: None, detail: detail.into() }
    }

    /// What a machine caused, or what happened by itself.
    pub fn by_itself(at: UnixMillis, action: &'static str, detail: impl Into<String>) -> Self {
        Self { at, by: None, action, machine: None, detail: detail.into() }
    }

    /// The machine that it is about.
    pub fn on(self, machine: &MachineName) -> Self {
        Self { machine: Some(machine.clone()), ..self }
    }

    /// The entry that follows `before`.
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
