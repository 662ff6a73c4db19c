//! A backup comes back, into a place where no database is.

use std::path::Path;

use muster_protocol::clock::Clock;
use muster_protocol::ids::MachineName;

use super::error::BackupError;
use super::files;
use super::manifest::{Backup, DATABASE, Manifest, ROOTS, root};
use crate::config::ServerConfig;
use crate::core::restored::Restored;
use crate::roots::Roots;
use crate::server::open_data;
use crate::store::{Failed, Store};

/// Where a backup is prepared, in the data folder.
const PREPARED: &str = "restoring";

/// Restores the backup in the folder `from` into the database that `config` names, which must be empty, and
/// the roots that its root folder lacks. Machines that were revoked after the backup was made are `revoked`
/// again. Nothing is in place until everything was checked.
pub async fn restore(
    config: &Path,
    from: &Path,
    revoked: &[MachineName],
    clock: &dyn Clock,
) -> Result<Backup, BackupError> {
    let settings = ServerConfig::load(config)?;
    let manifest = Manifest::read(from)?;
    let data = &settings.data;
    let _lock = open_data(data)?;
    if settings.database.is_sqlite() {
        for name in [DATABASE, "muster.db-wal", "muster.db-shm"] {
            if files::exists(&data.join(name))? {
                return Err(BackupError::NotEmpty(data.join(name)));
            }
        }
    }
    let fleet = Roots::open(&from.join(ROOTS))?.current().fleet();
    if fleet != manifest.fleet {
        return Err(BackupError::OtherRoot(from.join(root(1))));
    }
    require_same_roots(&settings, from, &manifest)?;

    // What an earlier try left behind when it was killed.
    let prepared = data.join(PREPARED);
    if files::exists(&prepared)? {
        std::fs::remove_dir_all(&prepared).map_err(|error| BackupError::File(prepared.clone(), error))?;
    }
    let preparing = files::unfinished(data, tempfile::Builder::new().prefix(PREPARED).rand_bytes(0))?;
    let file = preparing.path().join(DATABASE);
    files::copy(&from.join(DATABASE), &file)?;
    let store = Store::open(preparing.path(), &fleet).await?;
    let prepared = async {
        if store.require_sound(&fleet).await? != manifest.log {
            return Err(BackupError::OtherLog);
        }
        let (made_at, log, now) = (manifest.made_at, &manifest.log, clock.unix_ms());
        store.restored(&Restored { made_at, log, revoked, now }).await.map_err(|failed| match failed {
            Failed::Refused(refusal) => BackupError::Revoke(refusal),
            Failed::Store(error) => BackupError::Store(error),
        })?;
        put_roots(&settings, from, &manifest)?;
        if !settings.database.is_sqlite() {
            let target = Store::open_in(&settings.database, data, &fleet).await?;
            let copied = store.copy_to(&target, &fleet).await;
            target.close().await;
            copied?;
        }
        Ok(())
    };
    let prepared = prepared.await;
    // All of it is in one file once nobody has it open.
    store.close().await;
    prepared?;
    if settings.database.is_sqlite() {
        files::sync(&file)?;
        let place = data.join(DATABASE);
        std::fs::rename(&file, &place).map_err(|error| BackupError::File(place, error))?;
    }
    files::sync(data)?;
    Ok(manifest.told())
}

/// The roots that are there must be those of the backup; they may go on after them.
fn require_same_roots(settings: &ServerConfig, from: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    for version in 1..=manifest.roots() {
        let there = settings.root.join(format!("{version}.root.json"));
        if files::exists(&there)? && files::measured(&there)? != files::measured(&from.join(root(version)))? {
            return Err(BackupError::OtherRoot(there));
        }
    }
    Ok(())
}

/// A shared database takes them from there at the controller's next start.
fn put_roots(settings: &ServerConfig, from: &Path, manifest: &Manifest) -> Result<(), BackupError> {
    for version in 1..=manifest.roots() {
        let there = settings.root.join(format!("{version}.root.json"));
        if !files::exists(&there)? {
            files::copy(&from.join(root(version)), &there)?;
        }
    }
    files::sync(&settings.root)
}
