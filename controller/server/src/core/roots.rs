//! The next root: whether it follows, who may send it, and what is logged about it.

use muster_protocol::clock::UnixMillis;
use muster_protocol::keys::PublicKey;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::metadata::{Role, Root};

use super::audit::{AuditContext, NewEntry};
use super::change::{Change, Decided};

/// The largest root, in bytes.
pub const MAX_ROOT_BYTES: usize = 1024 * 1024;

/// Why this is not the next root, or its sender may not send it.
#[derive(Debug, thiserror::Error)]
pub enum RootRefusal {
    #[error("this has more than {MAX_ROOT_BYTES} bytes, so it is not a root")]
    TooLarge,
    #[error("this is not a root: {0}")]
    Unreadable(TufError),
    #[error("root {found} does not follow: the newest here is {held}, so the next one is {}", .held + 1)]
    NotNext { held: u64, found: u64 },
    #[error("this is not a root that machines would accept: {0}")]
    Unsound(TufError),
    #[error(transparent)]
    OnlineKey(#[from] OnlineKeyTooStrong),
    #[error(
        "the root is valid, but this request is signed with a key that neither it nor the current root \
            names: send it with an operator key or a root key"
    )]
    Stranger,
}

/// The root gives an online key a role that only people may have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the root lets the online key {0} sign what machines run, or roots: a controller must hold no such key; \
        make another with `muster keys generate` and have the root holders name it instead"
)]
pub struct OnlineKeyTooStrong(pub String);

/// I8: nothing on a controller can make a machine run anything, so an online key has no other role.
pub fn require_online_keys_apart(root: &Root) -> Result<(), OnlineKeyTooStrong> {
    let strong = [root.keys_of(Role::Targets), root.keys_of(Role::Root)].concat();
    match root.keys_of(Role::Timestamp).into_iter().find(|online| strong.contains(online)) {
        Some(online) => Err(OnlineKeyTooStrong(online.short())),
        None => Ok(()),
    }
}

/// The next root, if these bytes are one that machines would accept after the current one.
pub fn next(current: &Root, bytes: &[u8]) -> Result<Root, RootRefusal> {
    if bytes.len() > MAX_ROOT_BYTES {
        return Err(RootRefusal::TooLarge);
    }
    let held = current.version();
    let found = Root::draft(bytes).map_err(RootRefusal::Unreadable)?.version();
    if found != held + 1 {
        return Err(RootRefusal::NotNext { held, found });
    }
    let next = current.successor(bytes).map_err(RootRefusal::Unsound)?;
    require_online_keys_apart(&next)?;
    Ok(next)
}

/// The next root may come from an operator or a holder of a root key, in the current root or in the next one:
/// after a key is lost, only the new one may be available. Whether the root is valid is decided by its own
/// signatures.
pub fn require_named(current: &Root, next: &Root, by: &PublicKey) -> Result<(), RootRefusal> {
    let names = |root: &Root| [Role::Targets, Role::Root].iter().any(|role| root.keys_of(*role).contains(by));
    if names(current) || names(next) { Ok(()) } else { Err(RootRefusal::Stranger) }
}

/// Logs that a root is in force, once. Without a context it was found in the folder and not published here.
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

#[cfg(test)]
mod tests;
