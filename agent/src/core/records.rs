//! What the agent and its activator keep on disk. Versioned and additive: unknown fields are kept, none is
//! ever removed.
//!
//! `journal` (what the agent remembers) and `activation` (what its activator writes) depend on `transaction`.

mod activation;
mod journal;
mod known;
#[cfg(test)]
pub(crate) mod tests;
mod transaction;

pub use activation::{Activation, ActivationPhase, sets_profile};
pub use journal::{Again, Cause, Chance, Journal, Last, Quarantined, Settled, UNREACHABLE_RETRIES};
pub use known::Known;
pub use transaction::{Confirmation, GivenVerdict, Old, Origin, Telling, Transaction, Unknown, VERSION};
