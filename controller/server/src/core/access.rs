//! Operator sessions, and what becomes of everybody's access when a backup is restored.

use muster_protocol::audit::Checkpoint;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Sha256;
use muster_protocol::moment::date;
use muster_protocol::operator::SESSION_SECONDS;

use super::audit::{AuditContext, NewEntry};
use super::change::{Bearer, Change, Decided};

/// Opens a session for an operator's `nix copy`. The bearer is 32 random bytes in hex, so a plain hash hides
/// it.
pub fn open_session(bearer: &str, context: &AuditContext<'_>) -> Decided<()> {
    let expires = context.at.div_euclid(1000).saturating_add_unsigned(SESSION_SECONDS);
    let (hash, of) = (Sha256::of(bearer.as_bytes()), *context.operator);
    let changes = vec![
        Change::BearerGranted(Bearer { hash, of, expires }),
        Change::Audited(NewEntry::by(context, "session-opened", "")),
    ];
    Decided { changes, answer: () }
}

/// The audit action for a restored backup.
pub const RESTORED: &str = "controller-restored";

/// A backup was restored. What was used or ended after it was made must not count again, so all bearers,
/// sessions and unused tokens end. The counters go on above every number that they had meanwhile: nothing
/// raises one once a second.
pub fn restored(made_at: UnixMillis, log: &Checkpoint, now: UnixMillis) -> Decided<()> {
    let detail = format!("from a backup of {}, which ends at entry {}", date(made_at), log.id);
    let changes = vec![
        Change::CounterRaised { machine: None, to: floor(now) },
        Change::AccessEnded,
        Change::Audited(NewEntry::by_itself(now, RESTORED, detail)),
    ];
    Decided { changes, answer: () }
}

/// Where counters go on that a lost database may have had higher.
pub(super) fn floor(now: UnixMillis) -> u64 {
    u64::try_from(now.div_euclid(1000)).unwrap_or(0)
}
