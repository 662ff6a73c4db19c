//! Files and folders that only their owner reads, written durably and never over others.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use muster_protocol::ids::Sha256;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use tempfile::TempDir;

use super::error::BackupError;

const PIECE: usize = 256 * 1024;

/// What a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    pub bytes: u64,
    pub sha256: Sha256,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> BackupError + '_ {
    |error| BackupError::File(path.to_owned(), error)
}

/// Whether there is anything of this name.
pub fn exists(path: &Path) -> Result<bool, BackupError> {
    match std::fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(failed(path)(error)),
    }
}

/// The folder that a path is in.
pub fn parent(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A new, empty file. Its folder is made if needed.
pub fn create_private(path: &Path) -> Result<File, BackupError> {
    let folder = parent(path);
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed(folder))?;
    File::options().write(true).create_new(true).mode(0o600).open(path).map_err(failed(path))
}

pub fn write(path: &Path, bytes: &[u8]) -> Result<(), BackupError> {
    create_private(path)?.write_all(bytes).map_err(failed(path))
}

pub fn copy(from: &Path, to: &Path) -> Result<(), BackupError> {
    let mut target = create_private(to)?;
    read(from, |piece| target.write_all(piece).map_err(failed(to)))?;
    target.sync_all().map_err(failed(to))
}

/// The size and the hash of a file.
pub fn measured(path: &Path) -> Result<Stored, BackupError> {
    let (mut hasher, mut bytes) = (sha2::Sha256::new(), 0);
    read(path, |piece| {
        hasher.update(piece);
        bytes += piece.len() as u64;
        Ok(())
    })?;
    Ok(Stored { bytes, sha256: Sha256::from_bytes(hasher.finalize().into()) })
}

fn read(path: &Path, mut each: impl FnMut(&[u8]) -> Result<(), BackupError>) -> Result<(), BackupError> {
    let mut file = File::open(path).map_err(failed(path))?;
    let mut piece = vec![0; PIECE];
    loop {
        match file.read(&mut piece).map_err(failed(path))? {
            0 => return Ok(()),
            read => each(piece.get(..read).unwrap_or_default())?,
        }
    }
}

/// At most this many bytes of a file.
pub fn read_at_most(path: &Path, most: u64) -> Result<Vec<u8>, BackupError> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed(path))?;
    file.take(most).read_to_end(&mut bytes).map_err(failed(path))?;
    Ok(bytes)
}

/// A file or a folder is on the disk.
pub fn sync(path: &Path) -> Result<(), BackupError> {
    File::open(path).and_then(|file| file.sync_all()).map_err(failed(path))
}

/// A folder that only its owner reads. What goes wrong removes it.
pub fn unfinished(within: &Path, named: &mut tempfile::Builder<'_, '_>) -> Result<TempDir, BackupError> {
    named.permissions(Permissions::from_mode(0o700)).tempdir_in(within).map_err(failed(within))
}

/// Gives a finished folder its name.
pub fn put(finished: TempDir, to: &Path) -> Result<(), BackupError> {
    for entry in std::fs::read_dir(finished.path()).map_err(failed(finished.path()))? {
        let path = entry.map_err(failed(finished.path()))?.path();
        if path.is_dir() {
            sync(&path)?;
        }
    }
    sync(finished.path())?;
    if exists(to)? {
        return Err(BackupError::Exists(to.to_owned()));
    }
    // It never replaces a folder that is not empty.
    std::fs::rename(finished.path(), to).map_err(failed(to))?;
    // It has another name now, so there is nothing to remove.
    let _ = finished.keep();
    sync(parent(to))
}
