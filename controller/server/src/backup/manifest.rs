//! What a backup says of itself.

use std::collections::BTreeMap;
use std::path::Path;

use muster_protocol::audit::Checkpoint;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Sha256;
use serde::{Deserialize, Serialize};

use super::error::BackupError;
use super::files::{self, Stored};

/// The names in a backup.
pub const DATABASE: &str = "muster.db";
pub const CONFIG: &str = "controller.toml";
pub const ROOTS: &str = "root";
pub const KEYS: &str = "keys";
const FILE: &str = "manifest.json";
/// Of a few dozen files.
const MOST_BYTES: u64 = 1024 * 1024;
/// The form that this program writes, and the newest that it reads.
const FORMAT: u32 = 1;

/// A backup, as it is told to people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    pub made_at: UnixMillis,
    /// The newest entry of its audit log.
    pub log: Checkpoint,
    /// Its size in bytes.
    pub bytes: u64,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    /// The version of the program that made it, for people.
    muster: String,
    pub fleet: Sha256,
    pub made_at: UnixMillis,
    /// The newest entry of its audit log.
    pub log: Checkpoint,
    /// All other files of the backup, by their names in it.
    pub files: BTreeMap<String, Stored>,
}

impl Manifest {
    pub fn new(fleet: Sha256, made_at: UnixMillis, log: Checkpoint, files: BTreeMap<String, Stored>) -> Self {
        Self { format: FORMAT, muster: env!("CARGO_PKG_VERSION").to_owned(), fleet, made_at, log, files }
    }

    pub fn write(&self, folder: &Path) -> Result<(), BackupError> {
        let path = folder.join(FILE);
        let text = serde_json::to_vec_pretty(self)
            .map_err(|error| BackupError::Manifest(path.clone(), error.to_string()))?;
        files::write(&path, &text)?;
        files::sync(&path)
    }

    /// Reads the manifest of a backup, and checks every file that it names.
    pub fn read(folder: &Path) -> Result<Self, BackupError> {
        let wrong = |why: String| BackupError::Manifest(folder.to_owned(), why);
        let text = files::read_at_most(&folder.join(FILE), MOST_BYTES)?;
        let value: serde_json::Value = serde_json::from_slice(&text).map_err(|e| wrong(e.to_string()))?;
        match value["format"].as_u64() {
            Some(format) if format == u64::from(FORMAT) => {}
            Some(format) if format > u64::from(FORMAT) => {
                return Err(wrong(format!("its format is {format}; use the muster that made it")));
            }
            _ => return Err(wrong("it has no format".into())),
        }
        let manifest: Self = serde_json::from_value(value).map_err(|error| wrong(error.to_string()))?;
        if let Some(name) = manifest.files.keys().find(|name| !is_name(name)) {
            return Err(wrong(format!("it names {name:?}")));
        }
        for needed in [DATABASE, &root(1)] {
            if !manifest.files.contains_key(needed) {
                return Err(wrong(format!("it has no {needed}")));
            }
        }
        for (name, stored) in &manifest.files {
            let path = folder.join(name);
            if files::measured(&path)? != *stored {
                return Err(BackupError::Changed(path));
            }
        }
        Ok(manifest)
    }

    pub fn told(&self) -> Backup {
        let bytes = self.files.values().map(|stored| stored.bytes).sum();
        Backup { made_at: self.made_at, log: self.log, bytes }
    }

    /// How many roots it has.
    pub fn roots(&self) -> u64 {
        (1..).take_while(|version| self.files.contains_key(&root(*version))).count() as u64
    }
}

/// The name of a root.
pub fn root(version: u64) -> String {
    format!("{ROOTS}/{version}.root.json")
}

/// Whether a backup may have a file of this name.
fn is_name(name: &str) -> bool {
    match name.split_once('/') {
        None => [DATABASE, CONFIG].contains(&name),
        Some((folder, file)) => {
            let plain = |c: char| c.is_ascii_alphanumeric() || ['.', '_'].contains(&c);
            [ROOTS, KEYS].contains(&folder)
                && file.starts_with(|c: char| c.is_ascii_alphanumeric())
                && file.chars().all(plain)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backup_names_only_its_own_files() {
        for good in ["muster.db", "controller.toml", "root/12.root.json", "keys/tls.key"] {
            assert!(is_name(good), "{good}");
        }
        for bad in ["", "..", "x", "/etc/passwd", "root/..", "root/../x", "root/a/b", "keys/", "lib/a"] {
            assert!(!is_name(bad), "{bad}");
        }
    }
}
