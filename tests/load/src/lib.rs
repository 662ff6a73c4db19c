//! A fleet's worth of machines, for measuring and for testing controllers: real signatures and real HTTP, and
//! what is handed out is verified.
//!
//! `fleet` makes keys and configuration and signs as operators and machines do; `client` is one connection;
//! `server` runs `muster serve`, and `filled` gives it a past. `agents`, `checkins`, `followers`, `waiting`,
//! `publish` and `herd` are the loads that `muster-load` measures. `cluster` runs several controllers over
//! one database while things are killed.

pub mod agents;
pub mod checkins;
pub mod client;
pub mod cluster;
pub mod filled;
pub mod fleet;
pub mod followers;
pub mod herd;
pub mod publish;
pub mod server;
pub mod waiting;
