//! Why a name, a hash or a number is refused.

use super::limits::{MAX_EPOCH, MAX_NUMBER};

/// Why a text is not the identifier that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    #[error(
        "'{0}' is no machine name: 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit"
    )]
    MachineName(String),
    #[error("'{0}' is no tag: 1 to 63 letters, digits, '.', '_' or '-', beginning with a letter or digit")]
    Tag(String),
    #[error("'{0}' is no store path: it must look like /nix/store/<32 characters>-<name>")]
    StorePath(String),
    #[error("'{0}' is no derivation: it must be a store path that ends in .drv")]
    NotADerivation(String),
    #[error("'{0}' is no SHA-256 hash: it must be 64 lower-case hexadecimal digits")]
    Sha256(String),
    #[error("'{0}' is no SHA-512 hash: it must be 128 lower-case hexadecimal digits")]
    Sha512(String),
    #[error("'{0}' is no name of a count of events: it must be 16 lower-case hexadecimal digits")]
    Stream(String),
    #[error("0 is no generation: generations begin at 1")]
    Generation,
    #[error("'{0}' is no generation: it must be NUMBER, or EPOCH.NUMBER")]
    NotAGeneration(String),
    #[error(
        "generation {0} is above {MAX_NUMBER}, the highest number: root holders begin to count anew with `muster keys new-epoch`"
    )]
    TooHigh(u64),
    #[error("epoch {0} is above {max}, the highest", max = MAX_EPOCH)]
    Epoch(u64),
}
