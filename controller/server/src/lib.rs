//! Muster's controller: what `muster serve` runs. It does not know the operators' command line.
//!
//! Each module uses only those below it:
//!
//! - `server` starts and stops the rest; `database` copies a stopped controller's database, and `backup` a
//!   running one's, which it also restores.
//! - `http` authenticates requests, applies limits and replies; it decides nothing else.
//! - `collector` removes from the cache what nothing needs.
//! - `following` hears what other controllers on the same database did.
//! - `services` is what every part of the controller works with, in a request or in a background loop:
//!   `store`, `roots` (the chain of root files), `signer` (the online key),
//!   `keyring` (what seals bearers and sessions), `certificate` (what connections are accepted with),
//!   `settings` (what controllers on one database must have the same), `wakers` (waiting machines) and
//!   `notify` (waiting operators). None of these knows HTTP.
//! - `metrics` counts what happens, for those who watch; every part counts in it, and it uses none.
//! - `rates` counts requests; `config` is read once and passed as a value.
//! - `threads` keeps CPU-heavy work from blocking other tasks.
//! - `rollout` decides whose turn it is in a rollout, and carries that out.
//! - `core` decides: pure functions of what is stored, what arrived and the time. All others use it; it uses
//!   none.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod backup;
mod certificate;
mod collector;
pub mod config;
pub mod core;
pub mod database;
mod following;
pub mod http;
mod keyring;
mod metrics;
mod notify;
mod rates;
pub mod rollout;
mod roots;
pub mod server;
mod services;
mod settings;
mod signer;
pub mod store;
pub mod threads;
mod wakers;
