//! The trust core against a repository that an attacker serves: one test for each attack, named after it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::needless_pass_by_value)]

mod ambiguous;
#[cfg(feature = "delegations")]
mod delegations;
mod epochs;
mod fleet;
mod foreign;
mod forged;
mod freeze;
mod limits;
mod mix_and_match;
mod publication;
mod rollback;
mod roots;
mod security_keys;
mod size;
mod workflow;
