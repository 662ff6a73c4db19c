//! A database that was copied to another one: the copy counts from then on, and no controller starts on the
//! original, or the fleet would have two histories.

use std::path::Path;

use muster_protocol::clock::UnixMillis;

use super::{Database, Store, StoreError, postgres, sqlite};
use crate::config::DatabaseSettings;

/// The file in the data folder that says where its database went.
const FILE: &str = "moved-to";
/// A path is no longer.
const MOST: usize = 8192;

impl Store {
    /// Whether there is a database with a fleet's state. Creates and changes nothing.
    pub async fn exists(database: &DatabaseSettings, folder: &Path) -> Result<bool, StoreError> {
        match database {
            DatabaseSettings::Sqlite => sqlite::Sqlite::exists(&folder.join("muster.db")).await,
            DatabaseSettings::Postgres(settings) => postgres::Postgres::exists(settings).await,
        }
    }

    /// Refuses a database that was moved.
    pub async fn require_here(&self, folder: &Path) -> Result<(), StoreError> {
        let file = folder.join(FILE);
        let (moved, undo) = match &self.database {
            Database::Sqlite(_) => (read(&file)?, format!("remove {}", file.display())),
            Database::Postgres(database) => {
                (database.moved_to().await?, "run COMMENT ON TABLE fleet IS NULL in it with psql".to_owned())
            }
        };
        match moved {
            Some(to) => Err(StoreError::Moved { to, undo }),
            None => Ok(()),
        }
    }

    /// From now on the database that this configuration names counts.
    pub async fn mark_moved(&self, folder: &Path, to: &Path) -> Result<(), StoreError> {
        let to = to.display().to_string();
        match &self.database {
            Database::Sqlite(_) => write(&folder.join(FILE), &to),
            Database::Postgres(database) => database.set_moved_to(Some(&to)).await,
        }
    }

    /// This is the copy that counts.
    pub async fn unmark_moved(&self, folder: &Path) -> Result<(), StoreError> {
        match &self.database {
            Database::Sqlite(_) => match std::fs::remove_file(folder.join(FILE)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(of_io(&error)),
                _ => Ok(()),
            },
            Database::Postgres(database) => database.set_moved_to(None).await,
        }
    }

    /// The database's clock; `now` where it is this host's.
    pub async fn clock(&self, now: UnixMillis) -> Result<UnixMillis, StoreError> {
        match &self.database {
            Database::Sqlite(_) => Ok(now),
            Database::Postgres(database) => database.clock().await,
        }
    }

    /// Where other controllers that work on this database connect from.
    pub async fn at_work(&self) -> Result<Vec<String>, StoreError> {
        match &self.database {
            // The lock of the data folder says so.
            Database::Sqlite(_) => Ok(Vec::new()),
            Database::Postgres(database) => database.at_work().await,
        }
    }
}

fn read(file: &Path) -> Result<Option<String>, StoreError> {
    use std::io::Read as _;
    let mut text = String::new();
    match std::fs::File::open(file) {
        Ok(open) => open.take(MOST as u64).read_to_string(&mut text).map_err(|error| of_io(&error))?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(of_io(&error)),
    };
    Ok(Some(text.trim().to_owned()))
}

fn write(file: &Path, text: &str) -> Result<(), StoreError> {
    use std::io::Write as _;
    let written = || -> std::io::Result<()> {
        let mut file = std::fs::File::create(file)?;
        writeln!(file, "{text}")?;
        file.sync_all()
    };
    written().map_err(|error| of_io(&error))
}

fn of_io(error: &std::io::Error) -> StoreError {
    StoreError::Open(format!("its file {FILE}: {error}"))
}
