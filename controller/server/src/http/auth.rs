//! Authentication, as extractor types: a handler that takes one of them has proof of who sent the request.
//!
//! `machine`: documents signed by the machine that they name, or sent in its `session`. `operator`:
//! requests signed by an operator, or with a key that may read on their behalf (`sign_in`). `bearer`:
//! bearers issued to either. Only these types decide what is refused, and in which order.

pub mod bearer;
pub mod machine;
pub mod operator;
mod revoked;
pub mod session;
pub mod sign_in;
