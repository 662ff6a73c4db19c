//! Muster's controller: what `muster serve` runs. It knows nothing of the operators' command line.
//!
//! Each room uses those below it, and none above:
//!
//! - `server` starts and stops the rest.
//! - `http` answers: who asks and what they may take is decided there, and nothing else.
//! - `services` is what every part of the controller works with, whether a request or a loop of its own. It holds
//!   `store`, `roots` (the chain of root files), `signer` (the online key), `wakers` (machines that wait) and `notify`
//!   (operators who wait). None of these knows HTTP.
//! - `rates` counts requests; `config` is read once and passed on as a value.
//! - `core` decides: pure functions, told what is stored, what came and the time. The others use it, and it uses none.

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
