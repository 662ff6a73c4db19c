//! Moves a stopped controller to another database: `muster database copy`.

use std::fs::File;
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;
use muster_protocol::ids::Sha256;

use crate::config::{ConfigError, ServerConfig};
use crate::roots::{Roots, RootsError, write_root};
use crate::server::{ServerError, open_data};
use crate::store::copy::CopyError;
use crate::store::{Store, StoreError};

/// Why a database was not copied.
#[derive(Debug, thiserror::Error)]
pub enum DatabaseError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Roots(#[from] RootsError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Copy(#[from] CopyError),
    /// A controller runs there.
    #[error(transparent)]
    Folder(#[from] ServerError),
    #[error("{0} and {1} name different fleets: their 1.root.json must be the same")]
    OtherFleet(PathBuf, PathBuf),
    #[error("there is no database in {0}, which {1} names: name the controller.toml of the one to copy")]
    None(String, PathBuf),
    #[error("controllers work on the database of {0}, connected from {1}: stop them")]
    AtWork(PathBuf, String),
    #[error("{0} and {1} name the same database")]
    Same(PathBuf, PathBuf),
}

/// Copies everything from the database that one configuration names to the empty one that another names, and
/// the roots along with it. From then on the copy counts: no controller starts on the original. The files of
/// the cache stay where they are. Returns how many rows each table has.
pub fn copy<'a>(from: &'a Path, to: &'a Path) -> BoxFuture<'a, Result<Vec<(String, u64)>, DatabaseError>> {
    Box::pin(copy_all(from, to))
}

async fn copy_all(from: &Path, to: &Path) -> Result<Vec<(String, u64)>, DatabaseError> {
    let (source, target) = (ServerConfig::load(from)?, ServerConfig::load(to)?);
    if source.database.is_sqlite() && target.database.is_sqlite() && source.data == target.data {
        return Err(DatabaseError::Same(from.to_owned(), to.to_owned()));
    }
    // Before anything is created.
    if !exists(&source).await? {
        let place = match source.database.is_sqlite() {
            true => source.data.display().to_string(),
            false => "PostgreSQL".to_owned(),
        };
        return Err(DatabaseError::None(place, from.to_owned()));
    }
    let _locks = lock(&[&source.data, &target.data])?;
    let roots = Roots::open(&source.root)?;
    let target_roots = match Roots::open(&target.root) {
        Err(RootsError::Empty(_)) => None,
        opened => Some(opened?),
    };
    let fleet = roots.current().fleet();
    if target_roots.as_ref().is_some_and(|roots| roots.current().fleet() != fleet) {
        return Err(DatabaseError::OtherFleet(from.to_owned(), to.to_owned()));
    }
    let old = open(&source, &fleet).await?;
    Box::pin(require_idle(&old, from)).await?;
    let new = open(&target, &fleet).await?;
    require_idle(&new, to).await?;
    let copied = Box::pin(old.copy_to(&new, &fleet)).await?;
    let files = match old.shared_roots() {
        Some(shared) => shared.after(0).await?,
        None => (1..).map_while(|version| roots.current().file(version).map(|file| file.to_vec())).collect(),
    };
    let held = |version| target_roots.as_ref().is_some_and(|roots| roots.current().file(version).is_some());
    for (file, version) in files.iter().zip(1..) {
        // A folder needs the first one in any case.
        if !held(version) && (version == 1 || new.shared_roots().is_none()) {
            write_root(&target.root, version, file)?;
        }
        if let Some(shared) = new.shared_roots() {
            shared.add(version, file).await?;
        }
    }
    new.unmark_moved(&target.data).await?;
    let counts = std::fs::canonicalize(to).unwrap_or_else(|_| to.to_owned());
    old.mark_moved(&source.data, &counts).await?;
    // One that started meanwhile has not seen the mark.
    require_idle(&old, from).await?;
    old.close().await;
    new.close().await;
    Ok(copied)
}

/// What opens a database is large, so it has a box and is made in a frame of its own.
fn open<'a>(config: &'a ServerConfig, fleet: &'a Sha256) -> BoxFuture<'a, Result<Store, StoreError>> {
    Box::pin(Store::open_in(&config.database, &config.data, fleet))
}

fn exists(config: &ServerConfig) -> BoxFuture<'_, Result<bool, StoreError>> {
    Box::pin(Store::exists(&config.database, &config.data))
}

async fn require_idle(store: &Store, config: &Path) -> Result<(), DatabaseError> {
    let at_work = store.at_work().await?;
    match at_work.is_empty() {
        true => Ok(()),
        false => Err(DatabaseError::AtWork(config.to_owned(), at_work.join(", "))),
    }
}

/// Both may be the same folder.
fn lock(folders: &[&Path]) -> Result<Vec<File>, ServerError> {
    let mut locks = Vec::new();
    let mut locked: Vec<PathBuf> = Vec::new();
    for folder in folders {
        let known = std::fs::canonicalize(folder).is_ok_and(|folder| locked.contains(&folder));
        if !known {
            locks.push(open_data(folder)?);
            locked.extend(std::fs::canonicalize(folder));
        }
    }
    Ok(locks)
}
