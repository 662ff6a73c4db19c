//! Who asks, as types that handlers take: a handler that holds one of them has its proof.
//!
//! `machine`: documents signed by the machine that they name. `operator`: requests signed by an operator,
//! some of them with a key that `sign_in` lets read. `bearer`: what was given to either of them. What they
//! refuse, in which order, is theirs alone.

pub mod bearer;
pub mod machine;
pub mod operator;
mod revoked;
pub mod sign_in;
