//! Connections: who is let in, who is at the other end, whose turn it is.
//!
//! `listen` and `stream` know the kernel and no peers; `parties` and `turns` know parties and no connections;
//! `arrival` is what comes before a first request; `peer` joins them, and `gate` is the door in front.

mod arrival;
pub mod gate;
pub mod listen;
pub mod parties;
pub mod peer;
mod stream;
pub mod turns;
