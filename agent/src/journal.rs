//! The files of the switch transaction: each is written atomically, and each has one writer.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::core::records::{Activation, Confirmation, Journal, Transaction};
use crate::{durable, stops};

const TRANSACTION: &str = "transaction.json";
const ACTIVATION: &str = "activation.json";
const CONFIRMATION: &str = "confirmation.json";
const JOURNAL: &str = "journal.json";
/// The largest of these files; a target has at most 64 KiB.
const MAX_BYTES: u64 = 4 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("{} cannot be read: {source}; {}", path.display(), crate::durable::read_remedy(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be written: {source}; {}", path.display(), crate::durable::remedy(source))]
    Write { path: PathBuf, source: io::Error },
}

/// What was found in place of a document.
#[derive(Debug, Clone, PartialEq)]
pub enum Found<T> {
    Nothing,
    Whole(T),
    /// It was moved aside to this file; the agent continues by looking at the machine.
    Damaged(PathBuf),
}

impl<T> Found<T> {
    pub fn whole(self) -> Option<T> {
        match self {
            Self::Whole(document) => Some(document),
            Self::Nothing | Self::Damaged(_) => None,
        }
    }
}

/// The identity of a document's file, without reading it: it changes with each write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileId {
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
}

/// The documents in the state folder.
#[derive(Debug, Clone)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_path_buf() }
    }

    pub fn transaction(&self) -> Result<Found<Transaction>, JournalError> {
        self.read(TRANSACTION)
    }
    pub fn write_transaction(&self, transaction: &Transaction) -> Result<(), JournalError> {
        self.write(TRANSACTION, transaction)
    }
    pub fn activation(&self) -> Result<Found<Activation>, JournalError> {
        self.read(ACTIVATION)
    }
    pub fn write_activation(&self, activation: &Activation) -> Result<(), JournalError> {
        self.write(ACTIVATION, activation)
    }
    pub fn confirmation(&self) -> Result<Found<Confirmation>, JournalError> {
        self.read(CONFIRMATION)
    }
    pub fn write_confirmation(&self, confirmation: &Confirmation) -> Result<(), JournalError> {
        self.write(CONFIRMATION, confirmation)
    }
    pub fn journal(&self) -> Result<Found<Journal>, JournalError> {
        self.read(JOURNAL)
    }
    pub fn write_journal(&self, journal: &Journal) -> Result<(), JournalError> {
        self.write(JOURNAL, journal)
    }

    /// The file of the activator's record, if any.
    pub fn activation_file(&self) -> Option<FileId> {
        self.file(ACTIVATION)
    }
    /// The file of the verdict, if any.
    pub fn confirmation_file(&self) -> Option<FileId> {
        self.file(CONFIRMATION)
    }

    fn file(&self, name: &str) -> Option<FileId> {
        let data = std::fs::metadata(self.folder.join(name)).ok()?;
        Some(FileId { inode: data.ino(), seconds: data.mtime(), nanoseconds: data.mtime_nsec() })
    }

    pub fn clear_transaction(&self) -> Result<(), JournalError> {
        self.clear(TRANSACTION)
    }
    pub fn clear_activation(&self) -> Result<(), JournalError> {
        self.clear(ACTIVATION)
    }
    pub fn clear_confirmation(&self) -> Result<(), JournalError> {
        self.clear(CONFIRMATION)
    }

    /// A missing document is no error.
    fn clear(&self, name: &str) -> Result<(), JournalError> {
        let path = self.folder.join(name);
        let was = path.exists();
        let removed = durable::retire(&path).map_err(|source| JournalError::Write { path, source });
        if was {
            stops::reached(&self.folder, "after", name, b"");
        }
        removed
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Found<T>, JournalError> {
        let path = self.folder.join(name);
        let bytes = match durable::read(&path, MAX_BYTES) {
            Ok(None) => return Ok(Found::Nothing),
            Ok(Some(bytes)) => bytes,
            // Too long is as bad as malformed.
            Err(error) if error.kind() == io::ErrorKind::Other => Vec::new(),
            Err(source) => return Err(JournalError::Read { path, source }),
        };
        match serde_json::from_slice(&bytes) {
            Ok(document) => Ok(Found::Whole(document)),
            Err(error) => {
                let aside = self.folder.join(format!("{name}.damaged"));
                std::fs::rename(&path, &aside)
                    .map_err(|source| JournalError::Write { path: path.clone(), source })?;
                tracing::error!(
                    "{} is damaged ({error}); it is kept as {} and the machine itself is looked at instead",
                    path.display(),
                    aside.display()
                );
                Ok(Found::Damaged(aside))
            }
        }
    }

    fn write(&self, name: &str, document: &impl Serialize) -> Result<(), JournalError> {
        let path = self.folder.join(name);
        let written = serde_json::to_vec_pretty(document).map_err(io::Error::from).and_then(|bytes| {
            stops::reached(&self.folder, "before", name, &bytes);
            durable::rewrite(&path, &bytes, 0o600)?;
            stops::reached(&self.folder, "after", name, &bytes);
            Ok(())
        });
        written.map_err(|source| {
            stops::failed(&self.folder);
            JournalError::Write { path, source }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::records::tests::transaction;
    use crate::core::state::State;

    #[test]
    fn documents_come_back_as_they_were_written() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path());
        assert_eq!(files.transaction().unwrap(), Found::Nothing);
        let written = transaction(4, State::Probing);
        files.write_transaction(&written).unwrap();
        assert_eq!(files.transaction().unwrap(), Found::Whole(written));
        for _ in 0..2 {
            files.clear_transaction().unwrap();
            assert_eq!(files.transaction().unwrap(), Found::Nothing);
        }
    }

    #[test]
    fn a_damaged_file_is_kept_aside_and_the_agent_goes_on() {
        let folder = tempfile::tempdir().unwrap();
        let files = Files::new(folder.path());
        for text in [&b"{\"version\":1,\"id\""[..], b"", b"null", b"[1]", &[0xff; 100], &[b' '; 5_000_000]] {
            std::fs::write(folder.path().join(TRANSACTION), text).unwrap();
            let Found::Damaged(aside) = files.transaction().unwrap() else { panic!("it is damaged") };
            assert_eq!(std::fs::read(aside).unwrap(), text);
            assert_eq!(files.transaction().unwrap(), Found::Nothing);
        }
    }
}
