//! Operator sessions.

use muster_protocol::ids::Sha256;
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
