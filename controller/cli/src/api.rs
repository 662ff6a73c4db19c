//! The controller as the operator's program calls it: signed requests, sign-in sessions, TLS. `client` uses the others.

pub mod client;
pub mod signed_in;
mod signing;
pub mod tls;
