//! How much is kept of what machines report: the newest, bounded in bytes and in age. Events that decided a
//! generation are removed last.

use muster_protocol::clock::UnixMillis;

use super::change::{Change, Decided};

/// How many events one transaction removes, which is how long other writers wait.
pub const AT_ONCE: u32 = 512;

/// The cost of an event of this many bytes.
pub fn cost(bytes: usize) -> u64 {
    bytes as u64 + 128
}

/// What a machine's events are cut down to if they take more than allowed. A little less than allowed, so
/// that this is not repeated for every event.
pub fn cut_down_to(bytes: u64, keep: u64) -> Option<u64> {
    (bytes > keep).then(|| keep - keep / 64)
}

/// Removes expired bearers, nonces, drafts and requests.
pub fn sweep(now_s: i64) -> Decided<()> {
    Decided { changes: vec![Change::EndedForgotten { now_s }], answer: () }
}

/// Removes events that arrived before `before`, except those that decided a generation; the caller repeats it
/// until none is left.
pub fn forget_events(before: UnixMillis) -> Decided<()> {
    Decided { changes: vec![Change::EventsForgotten { before, most: AT_ONCE }], answer: () }
}
