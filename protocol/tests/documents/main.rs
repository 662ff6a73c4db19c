//! The small words that both sides agree on: names, hashes, keys, limits, targets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ids;
mod keys;
mod recorded;
mod targets;
mod words;
