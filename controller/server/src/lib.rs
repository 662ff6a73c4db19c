//! Muster's controller: what `muster serve` runs. It knows nothing of the operators' command line.
//!
//! `server` starts and stops it. `http` answers; it uses `services`, which holds what the work is done with: `store` (rows and
//! blobs), `roots`, `signer`, `wakers` and `notify`. None of these knows HTTP. `config` is read once; `rates` counts.

#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod config;
pub mod core;
pub mod http;
mod notify;
mod rates;
mod roots;
pub mod server;
mod services;
mod signer;
pub mod store;
mod wakers;
