//! Connections: which ones are accepted, whom they belong to, and whose turn it is.
//!
//! `listen` and `stream` deal with the kernel and do not know peers; `parties`, `turns` and `seats` know
//! parties but no connections; `arrival` handles what precedes a first request; `peer` joins them, and `gate`
//! is the entrance. `serve` accepts connections and brings them through the gate; `refuse` says what those
//! hear that find no place. `keep` has them from then on: it gives them to hyper while bytes move, and
//! `exchange` knows when that is.

mod arrival;
pub mod exchange;
pub mod gate;
mod keep;
pub mod listen;
pub mod parties;
pub mod peer;
mod refuse;
mod seats;
pub mod serve;
mod stream;
pub mod turns;
