//! Connections: which ones are accepted, whom they belong to, and whose turn it is.
//!
//! `listen` and `stream` deal with the kernel and do not know peers; `parties` and `turns` know parties but
//! no connections; `arrival` handles what precedes a first request; `peer` joins them, and `gate` is the
//! entrance. `serve` accepts connections, brings them through the gate and hands them to hyper; `refuse` says
//! what those hear that find no place.

mod arrival;
pub mod gate;
pub mod listen;
pub mod parties;
pub mod peer;
mod refuse;
pub mod serve;
mod stream;
pub mod turns;
