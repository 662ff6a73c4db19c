//! How much is kept of what machines report: the newest, in bounds of bytes and of age. What decided on a generation goes
//! last.

use muster_protocol::clock::UnixMillis;

use super::change::{Change, Decided};

/// How many events one transaction removes; other writers wait for no more.
pub const AT_ONCE: u32 = 512;

/// What an event of so many bytes counts for.
pub fn cost(bytes: usize) -> u64 {
    bytes as u64 + 128
}

/// What a machine's events are cut down to, if they take more than they may. A little less than they may, so that this is not
/// done again for each event.
pub fn cut_down_to(bytes: u64, keep: u64) -> Option<u64> {
    (bytes > keep).then(|| keep - keep / 64)
}

/// Forgets what has ended by itself: bearers, nonces, drafts and requests.
pub fn sweep(now_s: i64) -> Decided<()> {
    Decided { changes: vec![Change::EndedForgotten { now_s }], answer: () }
}

/// Forgets events that came before `before`, but for those that decided on a generation; it is repeated until none is left.
pub fn forget_events(before: UnixMillis) -> Decided<()> {
    Decided { changes: vec![Change::EventsForgotten { before, most: AT_ONCE }], answer: () }
}
