//! The Update Framework, specification 1.0.x: metadata, canonical JSON, the verifying client and the signing side.
//!
//! Numbers such as 5.4.3 in these files are sections of the specification
//! (<https://theupdateframework.github.io/specification/latest/>).

pub mod canonical;
pub mod client;
mod delegation;
mod keyring;
pub mod metadata;
#[cfg(feature = "conformance")]
mod p256;
pub mod repository;
mod scope;

use crate::ids::MachineName;
use crate::keys::KeyError;
use crate::machine::Class;
use crate::report::Attack;
use crate::target::TargetError;

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
        match self {
            Self::Malformed { .. } => Some(Attack::Malformed),
            Self::Signatures { .. } => Some(Attack::ForgedSignature),
            Self::Expired { .. } => Some(Attack::Freeze),
            Self::Rollback { .. } => Some(Attack::Rollback),
            Self::NotThePinned { .. } => Some(Attack::MixAndMatch),
            Self::TooLong { .. } | Self::TooManyDelegations { .. } => Some(Attack::EndlessData),
            Self::ForeignMachine { .. } => Some(Attack::ForeignMachine),
            Self::WrongClass { .. } => Some(Attack::WrongClass),
            Self::Target(error) => Some(match error {
                TargetError::OtherMachine { .. } => Attack::ForeignMachine,
                TargetError::OtherGeneration { .. } => Attack::MixAndMatch,
                TargetError::TooLarge(_) => Attack::EndlessData,
                TargetError::Machine(_) => Attack::WrongClass,
                _ => Attack::Malformed,
            }),
            Self::Missing { .. }
            | Self::TooManyRoots(_)
            | Self::NotAsked
            | Self::RootSpec(_)
            | Self::Key(_) => None,
        }
    }

    fn malformed(what: &str, why: impl std::fmt::Display) -> Self {
        Self::Malformed { what: what.to_owned(), why: why.to_string() }
    }

    fn not_the_pinned(what: &str, why: impl Into<String>) -> Self {
        Self::NotThePinned { what: what.to_owned(), why: why.into() }
    }
}
