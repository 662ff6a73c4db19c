//! Everything that Nix is asked for.
//!
//! `program` runs it, and `closure` and `profile` add more requests; `store` is the same behind a trait, so
//! that the runner can be tested without Nix. They depend on `error`.

mod closure;
mod error;
mod profile;
mod program;
mod store;

pub use error::NixError;
#[doc(hidden)]
pub use error::{message, tail};
pub use program::{BuildLimits, Nix, RESERVE_BYTES};
pub use store::Store;
