//! The Update Framework, specification 1.0.x: metadata, canonical JSON, the verifying client and the signing side.
//!
//! Numbers such as 5.4.3 in these files are sections of the specification
//! (<https://theupdateframework.github.io/specification/latest/>).
//!
//! [`client`] refreshes what is held, for one `scope` (a machine); [`repository`] is the signing side. Both stand on
//! [`metadata`] (the four roles), which stands on `keyring` (who may sign), `envelope` (a document and its signatures) and
//! [`canonical`] (the bytes that are signed). `delegation`, `search` and `p256` serve the conformance suite alone.

pub mod canonical;
pub mod client;
#[cfg(feature = "delegations")]
mod delegation;
mod envelope;
mod keyring;
pub mod metadata;
#[cfg(feature = "conformance")]
mod p256;
pub mod repository;
mod role;
mod scope;
#[cfg(feature = "delegations")]
mod search;
mod stored;

use crate::ids::{Epoch, MAX_JUMP, MAX_NUMBER, MachineName};
use crate::keys::KeyError;
use crate::machine::Class;
use crate::report::Attack;
use crate::target::TargetError;

pub type Result<T, E = TufError> = std::result::Result<T, E>;

/// Why metadata or a target is not believed. Nothing of what is refused is kept.
#[derive(Debug, thiserror::Error)]
pub enum TufError {
    #[error("{what} is malformed: {why}")]
    Malformed { what: String, why: String },
    #[error("{what} carries {found} good signatures of the {threshold} that it needs")]
    Signatures { what: String, found: usize, threshold: u32 },
    #[error("{what} expired at {expires}: it must be signed anew")]
    Expired { what: String, expires: jiff::Timestamp },
    #[error("{what} is version {found}; {held} was seen before, so it is an old one played again")]
    Rollback { what: String, found: u64, held: u64 },
    #[error(
        "{what} is version {found}; the highest that is taken now is {most}: at most {MAX_JUMP} numbers are skipped at once, and {MAX_NUMBER} is the last"
    )]
    TooHigh { what: String, found: u64, most: u64 },
    #[error("{what} is of epoch {found}, and the trusted root is of epoch {wanted}")]
    OtherEpoch { what: String, found: Epoch, wanted: Epoch },
    #[error("{what} is not the one that was pinned: {why}")]
    NotThePinned { what: String, why: String },
    #[error("{what} is longer than the {max} bytes that it may have")]
    TooLong { what: String, max: u64 },
    #[error("{what} is missing, though signed metadata promises it")]
    Missing { what: String },
    #[error("{what} is signed for {}, not for {wanted}", .found.as_deref().unwrap_or("no machine"))]
    ForeignMachine { what: String, wanted: MachineName, found: Option<String> },
    #[error("the target is signed for class {found}; this machine is of class {wanted}")]
    WrongClass { wanted: Class, found: String },
    #[error("more than {0} new roots at once: refresh again to go on")]
    TooManyRoots(u32),
    #[error("the search for '{path}' met more than {max} delegated roles")]
    TooManyDelegations { path: String, max: usize },
    #[error("nothing was asked for, so no answer is taken")]
    NotAsked,
    #[error("the root cannot be signed: {0}")]
    RootSpec(&'static str),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl TufError {
    /// Which attack it would have been to believe this; none where plain trouble looks the same.
    pub fn attack(&self) -> Option<Attack> {
        use {Attack as A, TargetError as T};
        Some(match self {
            Self::Signatures { .. } => A::ForgedSignature,
            Self::Expired { .. } => A::Freeze,
            Self::Rollback { .. } => A::Rollback,
            Self::OtherEpoch { found, wanted, .. } if found < wanted => A::Rollback,
            Self::TooHigh { .. } => A::FastForward,
            Self::NotThePinned { .. } | Self::Target(T::OtherGeneration { .. }) => A::MixAndMatch,
            Self::TooLong { .. } | Self::TooManyDelegations { .. } => A::EndlessData,
            Self::Target(T::TooLarge(_)) => A::EndlessData,
            Self::ForeignMachine { .. } | Self::Target(T::OtherMachine { .. }) => A::ForeignMachine,
            Self::WrongClass { .. } | Self::Target(T::Machine(_)) => A::WrongClass,
            Self::Malformed { .. } | Self::Target(_) => A::Malformed,
            Self::Missing { .. } | Self::TooManyRoots(_) | Self::NotAsked => return None,
            // A root that came in between looks the same; the next refresh has it.
            Self::RootSpec(_) | Self::Key(_) | Self::OtherEpoch { .. } => return None,
        })
    }

    fn malformed(what: &str, why: impl std::fmt::Display) -> Self {
        Self::Malformed { what: what.to_owned(), why: why.to_string() }
    }
}

/// Refuses a document for its form.
fn require_form(what: &str, sound: bool, why: impl std::fmt::Display) -> Result<()> {
    if sound { Ok(()) } else { Err(TufError::malformed(what, why)) }
}

/// Refuses a document that another one speaks of otherwise.
fn require_pinned(what: &str, fits: bool, why: impl Into<String>) -> Result<()> {
    if fits { Ok(()) } else { Err(TufError::NotThePinned { what: what.to_owned(), why: why.into() }) }
}

/// Refuses a version below one that was seen before.
fn require_no_lower(what: &str, found: u64, held: u64) -> Result<()> {
    if found < held { Err(TufError::Rollback { what: what.to_owned(), found, held }) } else { Ok(()) }
}

/// Refuses a version far above what is held: numbers end, and one that is a floor cannot be taken back within its epoch.
fn require_near(what: &str, found: u64, held: u64) -> Result<()> {
    let (what, most) = (what.to_owned(), held.saturating_add(MAX_JUMP).min(MAX_NUMBER));
    if found <= most { Ok(()) } else { Err(TufError::TooHigh { what, found, most }) }
}

/// Refuses what was signed in another epoch than that of the trusted root.
fn require_epoch(what: &str, found: Epoch, wanted: Epoch) -> Result<()> {
    let what = what.to_owned();
    if found == wanted { Ok(()) } else { Err(TufError::OtherEpoch { what, found, wanted }) }
}
