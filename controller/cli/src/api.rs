//! The controller as seen by the operator's program: signed requests, sign-in sessions, TLS. `client` uses
//! the others.

pub mod client;
pub mod signed_in;
mod signing;
pub mod tls;
