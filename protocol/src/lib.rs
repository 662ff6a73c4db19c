//! What Muster's agent and controller must agree on. Its rooms, from the top; each uses only those below it,
//! and no two modules use one another:
//!
//! - **Trust**: [`tuf`] verifies and signs the metadata that leads a machine to its target; [`draft`]
//!   carries metadata from one signer to the next.
//! - **Conversation**, what is sent over HTTP: [`checkin`] and [`report`] from a machine; [`operator`] and
//!   [`signin`] from an operator; [`request`] from an operator, through the controller, to a machine;
//!   [`cache`] (what operators have removed from the cache); [`audit`] from the controller; [`announce`] in
//!   front of a body; [`session`] in place of a signature; [`api`] with the paths, headers and
//!   errors.
//! - **Content**, what a signature vouches for: [`target`], with its [`policy`], its health checks, the
//!   [`evaluation`] it came from, and its place in a rollout's [`plan`].
//! - **Identity**: [`enrol`] brings a machine into the fleet, [`witness`] proves whose an [`age`] key is,
//!   [`keys`] signs and verifies.
//! - **Words of both programs**: [`ids`] (names, hashes, store paths, generations), [`machine`] (classes and
//!   systems), [`narinfo`] (what a binary cache states), [`derivation`] (what is built), [`packages`] (how
//!   closures differ), [`bounded`] (limits of unsigned fields), [`terminal`] and `logging` (what is printed)
//!   above [`moment`] and [`shown`] (how), [`clock`] and [`random`].
//!
//! Everything here is pure: no files, no sockets, and no clock but the [`clock::Clock`] that the caller
//! passes in. Only [`terminal`] and `logging` write, to standard output, standard error and the journal.
#![warn(missing_docs)]

pub mod age;
pub mod announce;
pub mod api;
pub mod audit;
pub mod bounded;
pub mod cache;
pub mod checkin;
pub mod clock;
pub mod derivation;
pub mod draft;
pub mod enrol;
pub mod evaluation;
pub mod ids;
pub mod keys;
#[cfg(feature = "logging")]
pub mod logging;
pub mod machine;
pub mod moment;
pub mod narinfo;
#[cfg(feature = "openapi")]
mod openapi;
pub mod operator;
pub mod packages;
pub mod plan;
pub mod policy;
pub mod random;
pub mod report;
pub mod request;
pub mod session;
pub mod shown;
pub mod signed_cut;
pub mod signin;
pub mod target;
pub mod terminal;
pub mod tuf;
pub mod witness;
