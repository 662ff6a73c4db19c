//! What every command reports about the flake that it reads.

use muster_protocol::shown;

use super::evaluate::{Flake, FlakeError};
use crate::terminal::error::Hint;

/// Prints Nix's warnings, and says if the tree cannot be reproduced from a commit.
pub fn tell_of(flake: &Flake) {
    tell_warnings(flake);
    if flake.is_dirty {
        tell!(
            "note: the git tree of {} has changes that are not committed: it is read as it is now, and \
             nobody can evaluate it again from a commit",
            flake.reference
        );
    }
}

/// Prints Nix's warnings. Anyone working on secrets has uncommitted changes most of the time.
pub fn tell_warnings(flake: &Flake) {
    for warning in flake.warnings() {
        let mut lines = shown::lines(&warning);
        tell!("{}", lines.next().unwrap_or_default());
        for more in lines {
            tell!("    {more}");
        }
    }
}

pub fn with_hint(error: FlakeError) -> anyhow::Error {
    let hint = error.hint();
    anyhow::Error::new(error).context(Hint(hint))
}

/// The same, where a signature was asked for.
pub fn unsigned(error: FlakeError) -> anyhow::Error {
    let hint = format!("{}; nothing was signed", error.hint());
    anyhow::Error::new(error).context(Hint(hint))
}
