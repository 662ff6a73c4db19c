//! What both sides agree on besides TUF: names, hashes, keys, limits, targets.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod ids;
mod keys;
mod limits_and_names;
mod recorded;
mod security_keys;
mod targets;
