//! Moves a stopped controller to another database: `muster database copy`.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::config::{ConfigError, ServerConfig};
use crate::roots::{Roots, RootsError};
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
    #[error("{0} and {1} name the same database")]
    Same(PathBuf, PathBuf),
}

/// Copies everything from the database that one configuration names to the empty one that another names, and
/// the roots along with it. The files of the cache stay where they are. Returns how many rows each table has.
pub async fn copy(from: &Path, to: &Path) -> Result<Vec<(String, u64)>, DatabaseError> {
    let (source, target) = (ServerConfig::load(from)?, ServerConfig::load(to)?);
    if source.database.is_sqlite() && target.database.is_sqlite() && source.data == target.data {
        return Err(DatabaseError::Same(from.to_owned(), to.to_owned()));
    }
    let _locks = lock(&[&source.data, &target.data])?;
    let (roots, target_roots) = (Roots::open(&source.root)?, Roots::open(&target.root)?);
    let fleet = roots.current().fleet();
    if target_roots.current().fleet() != fleet {
        return Err(DatabaseError::OtherFleet(from.to_owned(), to.to_owned()));
    }
    let from = Store::open_in(&source.database, &source.data, &fleet).await?;
    let to = Store::open_in(&target.database, &target.data, &fleet).await?;
    let copied = from.copy_to(&to, &fleet).await?;
    let files = match from.shared_roots() {
        Some(shared) => shared.after(0).await?,
        None => (1..).map_while(|version| roots.current().file(version).map(|file| file.to_vec())).collect(),
    };
    for (file, version) in files.iter().zip(1..) {
        match to.shared_roots() {
            Some(shared) => drop(shared.add(version, file).await?),
            None if target_roots.current().file(version).is_none() => target_roots.put(version, file)?,
            None => {}
        }
    }
    from.close().await;
    to.close().await;
    Ok(copied)
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
