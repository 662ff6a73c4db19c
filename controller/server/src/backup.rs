//! `muster backup` and `muster restore`: a controller's database, roots and settings in a folder, and back.
//!
//! A backup is `muster.db`, whatever the controller's database is, with `root/`, `controller.toml`, on demand
//! `keys/`, and `manifest.json` with the hashes of all of them. The keys of bearers are never in it: machines
//! get new bearers with their next check-in, and old ones must not count again. Nor are the files of the
//! cache, which operators push again.

mod error;
mod files;
mod manifest;
mod restore;

use std::collections::BTreeMap;
use std::path::Path;

use muster_protocol::clock::Clock;
use tempfile::TempDir;

use crate::config::ServerConfig;
use crate::roots::Roots;
use crate::store::Store;

pub use error::BackupError;
use files::Stored;
pub use manifest::Backup;
use manifest::{CONFIG, DATABASE, KEYS, Manifest, root};
pub use restore::restore;

/// Makes a backup of the controller that `config` describes, while it runs. The folder `to` appears complete,
/// or not at all.
pub async fn backup(
    config: &Path,
    to: &Path,
    with_keys: bool,
    clock: &dyn Clock,
) -> Result<Backup, BackupError> {
    let settings = ServerConfig::load(config)?;
    if files::exists(to)? {
        return Err(BackupError::Exists(to.to_owned()));
    }
    let fleet = Roots::open(&settings.root)?.current().fleet();
    let folder = files::parent(to);
    let unfinished = files::unfinished(folder, tempfile::Builder::new().prefix(".muster-backup."))?;
    let mut writing = Writing { folder: &unfinished, files: BTreeMap::new() };
    let made_at = clock.unix_ms();

    files::create_private(&unfinished.path().join(DATABASE))?;
    let (log, roots) = Store::back_up(&settings.database, &settings.data, unfinished.path(), &fleet).await?;
    writing.made(DATABASE)?;
    // After the database: the roots that it names are among these.
    let chain = Roots::open(&settings.root)?.current();
    let in_folder = (1..).map_while(|version| chain.file(version).map(|file| file.to_vec()));
    let roots: Vec<Vec<u8>> = if roots.is_empty() { in_folder.collect() } else { roots };
    for (document, version) in roots.iter().zip(1_u64..) {
        writing.write(&root(version), document)?;
    }
    writing.copy(CONFIG, config)?;
    if with_keys {
        writing.copy(&format!("{KEYS}/online_key"), &settings.online_key_file)?;
        if let Some(tls) = &settings.tls {
            writing.copy(&format!("{KEYS}/tls.certificate"), &tls.certificate)?;
            writing.copy(&format!("{KEYS}/tls.key"), &tls.key)?;
        }
    }
    let manifest = Manifest::new(fleet, made_at, log, writing.files);
    manifest.write(unfinished.path())?;
    files::put(unfinished, to)?;
    Ok(manifest.told())
}

/// A backup that is not complete yet.
struct Writing<'a> {
    folder: &'a TempDir,
    files: BTreeMap<String, Stored>,
}

impl Writing<'_> {
    /// Somebody else wrote this file.
    fn made(&mut self, name: &str) -> Result<(), BackupError> {
        let path = self.folder.path().join(name);
        files::sync(&path)?;
        self.files.insert(name.to_owned(), files::measured(&path)?);
        Ok(())
    }

    fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), BackupError> {
        files::write(&self.folder.path().join(name), bytes)?;
        self.made(name)
    }

    fn copy(&mut self, name: &str, from: &Path) -> Result<(), BackupError> {
        files::copy(from, &self.folder.path().join(name))?;
        self.made(name)
    }
}
