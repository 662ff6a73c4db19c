//! A backup was restored: what was used or ended after it was made must not count again.

use muster_protocol::audit::Checkpoint;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::moment::date;

use super::audit::NewEntry;
use super::change::{Change, Decided};
use super::machines::{self, MachineRefusal};
use super::rows::counters_go_on;

/// The audit action for it.
pub const RESTORED: &str = "controller-restored";

/// A backup, and who was revoked after it was made.
#[derive(Debug, Clone, Copy)]
pub struct Restored<'a> {
    pub made_at: UnixMillis,
    /// The newest entry of its audit log.
    pub log: &'a Checkpoint,
    pub revoked: &'a [MachineName],
    pub now: UnixMillis,
}

/// All bearers, sessions and unused tokens end, and these machines are revoked again; `stored` is in their
/// order. The counters of bearers go on above every number that they had meanwhile: nothing raises one once a
/// second.
pub fn restored(
    stored: &[Option<machines::Stored>],
    restored: &Restored<'_>,
) -> Result<Decided<()>, MachineRefusal> {
    let Restored { made_at, log, revoked, now } = *restored;
    let detail = format!("from a backup of {}, which ends at entry {}", date(made_at), log.id);
    let mut changes = vec![
        Change::CounterRaised { machine: None, to: counters_go_on(now) },
        Change::AccessEnded,
        Change::Audited(NewEntry::by_itself(now, RESTORED, detail)),
    ];
    for (machine, stored) in revoked.iter().zip(stored) {
        let stored = stored.ok_or_else(|| MachineRefusal::Unknown(machine.clone()))?;
        let at = stored.revoked_at.unwrap_or(now);
        let entry = NewEntry::by_itself(now, "machine-revoked", "as it was before a backup was restored");
        changes.push(Change::MachineRevoked { machine: machine.clone(), at });
        changes.push(Change::Audited(entry.on(machine)));
    }
    Ok(Decided { changes, answer: () })
}
