//! Why secrets cannot be put in place.

use std::io;
use std::path::PathBuf;

/// Where a system lists what it needs (`nix/modules/secrets.nix`).
pub const MANIFEST: &str = "etc/muster/activation-secrets.json";
/// The manifest version that this agent reads.
pub const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be written: {source}; {}", path.display(), crate::durable::remedy(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("{} of the new system is damaged ({detail}): build it with another Muster", MANIFEST)]
    Manifest { detail: String },
    #[error(
        "the new system has secrets of version {0}, and this agent reads version {VERSION}: publish a newer \
         muster-agent first"
    )]
    Version(u32),
    #[error(
        "this machine's key does not read {name}: run `muster machines accept` for it and publish the \
         system again ({words})"
    )]
    NoKey { name: String, words: String },
    #[error(
        "{name} cannot be decrypted: sops {how} ({words}); run `muster vars check` and publish the system \
         again"
    )]
    Decrypt { name: String, how: String, words: String },
    #[error("{} cannot be run: {source}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("{name} cannot be given to {owner}:{group}: {words}")]
    Owner { name: String, owner: String, group: String, words: String },
    #[error("no disk in memory can be created at {}: {words}", at.display())]
    RamDisk { at: PathBuf, words: String },
}

impl SecretsError {
    /// Whether the same system will fail again, so that a retry is useless.
    pub fn is_of_the_system(&self) -> bool {
        matches!(
            self,
            Self::Manifest { .. }
                | Self::Version(_)
                | Self::NoKey { .. }
                | Self::Decrypt { .. }
                | Self::Owner { .. }
        )
    }
}
