//! Connections: which ones are accepted, whom they belong to, and whose turn it is.
//!
//! `listen` and `stream` deal with the kernel and do not know peers; `parties` and `turns` know parties but
//! no connections; `arrival` handles what precedes a first request; `peer` joins them, and `gate` is the
//! entrance.

mod arrival;
pub mod gate;
pub mod listen;
pub mod parties;
pub mod peer;
mod stream;
pub mod turns;
