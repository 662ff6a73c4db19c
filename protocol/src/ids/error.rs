//! Why a name, a hash or a number is refused.

use super::limits::{MAX_EPOCH, MAX_NUMBER};

/// Why a text is not the identifier that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// For a [`MachineName`](super::MachineName).
    #[error(
        "'{0}' is not a machine name: 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or \
         digit"
    )]
    MachineName(String),
    /// For a [`Tag`](super::Tag).
    #[error("'{0}' is not a tag: 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit")]
    Tag(String),
    /// For a [`RolloutName`](crate::plan::RolloutName).
    #[error(
        "'{0}' is not the name of a rollout: 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or \
         digit"
    )]
    RolloutName(String),
    /// For a [`StorePath`](super::StorePath).
    #[error("'{0}' is not a store path: it must look like /nix/store/<32 characters>-<name>")]
    StorePath(String),
    /// A store path, but not of a derivation.
    #[error("'{0}' is not a derivation: it must be a store path that ends in .drv")]
    NotADerivation(String),
    /// For a [`Sha256`](super::Sha256).
    #[error("'{0}' is not a SHA-256 hash: it must be 64 lower-case hexadecimal digits")]
    Sha256(String),
    /// For a [`Sha512`](super::Sha512).
    #[error("'{0}' is not a SHA-512 hash: it must be 128 lower-case hexadecimal digits")]
    Sha512(String),
    /// For a [`Stream`](crate::report::Stream).
    #[error("'{0}' is not the name of a stream of events: it must be 16 lower-case hexadecimal digits")]
    Stream(String),
    /// A generation numbered 0.
    #[error("0 is not a generation: generations begin at 1")]
    Generation,
    /// For a [`Generation`](super::Generation) as text; at most 64 characters of it are kept.
    #[error("'{0}' is not a generation: it must be NUMBER, or EPOCH.NUMBER")]
    NotAGeneration(String),
    /// A generation above [`MAX_NUMBER`].
    #[error(
        "generation {0} is above {MAX_NUMBER}, the highest number: root holders restart the numbers with \
         `muster keys new-epoch`"
    )]
    TooHigh(u64),
    /// An epoch above [`Epoch::MAX`](super::Epoch::MAX).
    #[error("epoch {0} is above {max}, the highest", max = MAX_EPOCH)]
    Epoch(u64),
}
