//! The Update Framework, specification 1.0.x: metadata, canonical JSON, the verifying client and the signing
//! side.
//!
//! Numbers such as 5.4.3 in these files are sections of the specification
//! (<https://theupdateframework.github.io/specification/latest/>).
//!
//! [`client`] refreshes the metadata held, for one `scope` (a machine); [`repository`] is the signing side.
//! Both build on [`metadata`] (the four roles), which builds on `keyring` (who may sign), `envelope` (a
//! document and its signatures) and [`canonical`] (the bytes that are signed). Only the conformance suite
//! needs `delegation`, `search` and `p256`.

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

/// A result whose error is a refusal.
pub type Result<T, E = TufError> = std::result::Result<T, E>;

/// Why metadata or a target is refused. Nothing that was refused is kept. `what` names the document.
#[derive(Debug, thiserror::Error)]
pub enum TufError {
    /// Not of the form that the specification or the profile of a machine's repository requires.
    #[error("{what} is malformed: {why}")]
    Malformed {
        /// The document.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Too few of its holders signed it (5.4.2, 5.5.3, 5.6.3).
    #[error("{what} has too few valid signatures: {found} of {threshold}")]
    Signatures {
        /// The document.
        what: String,
        /// Valid signatures by distinct keys of its role.
        found: usize,
        /// How many it needs.
        threshold: u32,
    },
    /// It has expired: perhaps a freeze attack (5.3.10, 5.4.4, 5.5.6, 5.6.5).
    #[error("{what} expired at {expires}: it must be signed again")]
    Expired {
        /// The document.
        what: String,
        /// When it did.
        expires: jiff::Timestamp,
    },
    /// Older than what was seen before (5.3.5, 5.4.3, 5.5.5).
    #[error("{what} is version {found}; {held} was seen before: it is a replay of an old one")]
    Rollback {
        /// The document.
        what: String,
        /// Its version.
        found: u64,
        /// The lowest version that is accepted.
        held: u64,
    },
    /// So far above the version held that hardly any numbers would be left.
    #[error(
        "{what} is version {found}; the highest accepted now is {most}: at most {MAX_JUMP} numbers may \
         be skipped at once, and {MAX_NUMBER} is the last"
    )]
    TooHigh {
        /// The document.
        what: String,
        /// Its version.
        found: u64,
        /// The highest version that is accepted now.
        most: u64,
    },
    /// Signed in another epoch than the trusted root's.
    #[error("{what} is of epoch {found}, and the trusted root is of epoch {wanted}")]
    OtherEpoch {
        /// The document.
        what: String,
        /// Its epoch.
        found: Epoch,
        /// The root's epoch.
        wanted: Epoch,
    },
    /// Contradicts what another signed document says about it (5.5.2, 5.5.4, 5.6.2, 5.6.4).
    #[error("{what} is not the one that was pinned: {why}")]
    NotThePinned {
        /// The document.
        what: String,
        /// What differs.
        why: String,
    },
    /// Longer than it may be: perhaps endless data.
    #[error("{what} is longer than {max} bytes, its limit")]
    TooLong {
        /// The document.
        what: String,
        /// The most bytes that it may have.
        max: u64,
    },
    /// Not served, though other signed metadata names it.
    #[error("{what} is missing, though signed metadata lists it")]
    Missing {
        /// The document.
        what: String,
    },
    /// Signed for another machine.
    #[error("{what} is signed for {}, not for {wanted}", .found.as_deref().unwrap_or("no machine"))]
    ForeignMachine {
        /// The document.
        what: String,
        /// This machine.
        wanted: MachineName,
        /// The machine it names, if any.
        found: Option<String>,
    },
    /// The target is listed for another class.
    #[error("the target is signed for class {found}; this machine is of class {wanted}")]
    WrongClass {
        /// This machine's class.
        wanted: Class,
        /// What the metadata says.
        found: String,
    },
    /// The chain of new roots is longer than one refresh follows (5.3.3).
    #[error("more than {0} new roots at once: refresh again to continue")]
    TooManyRoots(u32),
    /// A target could not be found within the limit of delegated roles (5.6.7.1).
    #[error("the search for '{path}' met more than {max} delegated roles")]
    TooManyDelegations {
        /// The target.
        path: String,
        /// The limit.
        max: usize,
    },
    /// The caller fed an answer that was not asked for.
    #[error("an answer came that nobody asked for")]
    NotAsked,
    /// A root cannot be made like this.
    #[error("the root cannot be signed: {0}")]
    RootSpec(&'static str),
    /// The target itself is refused.
    #[error(transparent)]
    Target(#[from] TargetError),
    /// A key is malformed, or its holder did not sign.
    #[error(transparent)]
    Key(#[from] KeyError),
}

impl TufError {
    /// The attack that believing it would have enabled; `None` where plain trouble looks the same.
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
            // A root published in between looks the same; the next refresh gets it.
            Self::RootSpec(_) | Self::Key(_) | Self::OtherEpoch { .. } => return None,
        })
    }

    fn malformed(what: &str, why: impl std::fmt::Display) -> Self {
        Self::Malformed { what: what.to_owned(), why: why.to_string() }
    }
}

/// Requires the form that the specification or the profile prescribes.
fn require_form(what: &str, sound: bool, why: impl std::fmt::Display) -> Result<()> {
    if sound { Ok(()) } else { Err(TufError::malformed(what, why)) }
}

/// Refuses a document that contradicts its pin in another one.
fn require_pinned(what: &str, fits: bool, why: impl Into<String>) -> Result<()> {
    if fits { Ok(()) } else { Err(TufError::NotThePinned { what: what.to_owned(), why: why.into() }) }
}

/// Refuses a version below one that was seen before.
fn require_no_lower(what: &str, found: u64, held: u64) -> Result<()> {
    if found < held { Err(TufError::Rollback { what: what.to_owned(), found, held }) } else { Ok(()) }
}

/// Refuses a version far above the one held: numbers are finite, and within its epoch a floor never drops.
fn require_near(what: &str, found: u64, held: u64) -> Result<()> {
    let (what, most) = (what.to_owned(), held.saturating_add(MAX_JUMP).min(MAX_NUMBER));
    if found <= most { Ok(()) } else { Err(TufError::TooHigh { what, found, most }) }
}

/// Refuses what was signed in another epoch than the trusted root's.
fn require_epoch(what: &str, found: Epoch, wanted: Epoch) -> Result<()> {
    let what = what.to_owned();
    if found == wanted { Ok(()) } else { Err(TufError::OtherEpoch { what, found, wanted }) }
}
