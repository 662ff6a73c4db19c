//! What the log says of roots.

use muster_protocol::clock::UnixMillis;

use super::audit::{AuditContext, NewEntry};
use super::change::{Change, Decided};

/// Logs that a root is in force, once. Without a context it was found in the folder: nobody published it here.
pub fn in_force(
    logged: u64,
    version: u64,
    context: Option<&AuditContext<'_>>,
    now: UnixMillis,
) -> Decided<()> {
    if logged >= version {
        return Decided::unchanged(());
    }
    let detail = format!("version {version}");
    let entry = match context {
        Some(context) => NewEntry::by(context, "root-published", detail),
        None => NewEntry::by_itself(now, "root-found", detail),
    };
    Decided { changes: vec![Change::RootInForce { version }, Change::Audited(entry)], answer: () }
}
