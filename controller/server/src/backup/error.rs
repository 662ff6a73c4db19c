//! Why a backup failed, or its return.

use std::io;
use std::path::PathBuf;

use crate::config::ConfigError;
use crate::core::machines::MachineRefusal;
use crate::roots::RootsError;
use crate::server::ServerError;
use crate::store::StoreError;
use crate::store::copy::CopyError;

/// Why there is no backup, or why nothing was restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    #[error("{0} exists: name a folder that does not")]
    Exists(PathBuf),
    #[error("{0}: {1}")]
    File(PathBuf, io::Error),
    #[error("{0} is not a backup that this muster reads: {1}")]
    Manifest(PathBuf, String),
    #[error("{0} is not what the backup's manifest says: it was damaged or changed; take another backup")]
    Changed(PathBuf),
    #[error(
        "there is a database already, {0}: a backup is restored where none is; move that one away, or name \
            another folder as data in controller.toml"
    )]
    NotEmpty(PathBuf),
    #[error(
        "{0} is not the root of that number in the backup: these are two fleets, or two histories of one; \
            name the right root folder in controller.toml"
    )]
    OtherRoot(PathBuf),
    #[error("the backup's log ends at another entry than its manifest says: take another backup")]
    OtherLog,
    /// Somebody cannot be revoked.
    #[error(transparent)]
    Revoke(#[from] MachineRefusal),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Roots(#[from] RootsError),
    /// A controller runs there.
    #[error(transparent)]
    Folder(#[from] ServerError),
}
