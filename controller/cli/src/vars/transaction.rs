//! Writes to the fleet's folder: all or nothing, whatever happens in between. Git is not involved.
//!
//! New files are first written to `.muster-vars`, then a journal says what goes where. From that moment on
//! the change is made: the next run finishes it if this one does not. Before that moment nothing has changed.

mod disk;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::{Component, Path, PathBuf};

use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};

use self::disk::{Disk, Real};
use super::change::Change;

/// Where a change is prepared. Removed when the change is made.
const STAGE: &str = ".muster-vars";
const JOURNAL: &str = "journal.json";
const IGNORE: &str = ".gitignore";
/// The version of the journal that this program writes and reads.
const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum TransactionError {
    #[error("there is no folder {}: give the flake's folder with --flake", .0.display())]
    NoFolder(PathBuf),
    #[error("another muster works in {}: wait until it has ended, then run this again", .0.display())]
    Busy(PathBuf),
    #[error("{} cannot be written: {source}; nothing was changed", path.display())]
    Stage { path: PathBuf, source: io::Error },
    #[error("{} is in the way: take it away, then run this again; nothing was changed", .0.display())]
    InTheWay(PathBuf),
    #[error("{} lies on another file system than the flake, and cannot be changed as one with \
         it", .0.display())]
    Elsewhere(PathBuf),
    #[error("{} cannot be written: {source}; fix that and run `muster vars fix`, which finishes what was \
         begun", path.display())]
    Unfinished { path: PathBuf, source: io::Error },
    #[error("{} was written by another version of muster: finish with that version what it \
         began", .0.display())]
    Foreign(PathBuf),
    #[error("{} is changed twice at once; this is a mistake in muster, please report it", .0.display())]
    Twice(PathBuf),
}

/// What is done once the journal exists. Each operation may be repeated.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum FileOperation {
    Write { path: PathBuf, from: String },
    Link { path: PathBuf, target: PathBuf },
    Remove { path: PathBuf },
    RemoveTree { path: PathBuf },
}

#[derive(Debug, Serialize, Deserialize)]
struct Journal {
    version: u32,
    steps: Vec<FileOperation>,
}

/// The fleet's folder, locked against other writers until this is dropped.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    lock: File,
    /// Whether an interrupted change was finished when the folder was taken.
    pub finished: bool,
}

impl Drop for Folder {
    /// Closing is not enough: a child has the file open until it executes its program.
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

impl Folder {
    /// Locks the folder, and first finishes or clears away what an interrupted run left.
    pub fn take(root: &Path) -> Result<Self, TransactionError> {
        Self::take_with(&Real, root)
    }

    fn take_with(disk: &dyn Disk, root: &Path) -> Result<Self, TransactionError> {
        if !root.is_dir() {
            return Err(TransactionError::NoFolder(root.to_owned()));
        }
        let stage = |source| TransactionError::Stage { path: root.to_owned(), source };
        let lock = File::open(root).map_err(stage)?;
        match rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(TransactionError::Busy(root.to_owned())),
            Err(error) => return Err(stage(error.into())),
        }
        let finished = recover(disk, root)?;
        Ok(Self { root: root.to_owned(), lock, finished })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Makes all the changes.
    pub fn commit(&self, changes: &[Change]) -> Result<(), TransactionError> {
        self.commit_with(&Real, changes)
    }

    fn commit_with(&self, disk: &dyn Disk, changes: &[Change]) -> Result<(), TransactionError> {
        if changes.is_empty() {
            return Ok(());
        }
        check(&self.root, changes)?;
        let stage = self.root.join(STAGE);
        let journal = match prepare(disk, &stage, changes) {
            Ok(journal) => journal,
            Err(source) => {
                // What was prepared is no longer needed; if it cannot be removed now, the next run does so.
                let _ = clear(disk, &stage);
                return Err(TransactionError::Stage { path: stage, source });
            }
        };
        apply(disk, &self.root, &journal)?;
        finish(disk, &stage)
    }
}

/// Whether an interrupted change waits to be finished.
pub fn is_pending(root: &Path) -> bool {
    root.join(STAGE).join(JOURNAL).exists()
}

fn recover(disk: &dyn Disk, root: &Path) -> Result<bool, TransactionError> {
    let stage = root.join(STAGE);
    let path = stage.join(JOURNAL);
    let unfinished = |source| TransactionError::Unfinished { path: path.clone(), source };
    match std::fs::read(&path) {
        Ok(bytes) => {
            let journal: Journal =
                serde_json::from_slice(&bytes).map_err(|_| TransactionError::Foreign(path.clone()))?;
            if journal.version != VERSION {
                return Err(TransactionError::Foreign(path));
            }
            apply(disk, root, &journal)?;
            finish(disk, &stage)?;
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            clear(disk, &stage).map_err(|source| TransactionError::Stage { path: stage, source })?;
            Ok(false)
        }
        Err(source) => Err(unfinished(source)),
    }
}

/// Finds everything that is known to fail before anything is done.
fn check(root: &Path, changes: &[Change]) -> Result<(), TransactionError> {
    let mut seen: BTreeSet<&Path> = BTreeSet::new();
    for change in changes {
        let path = change.path();
        // Repeating an operation must not undo another: no path is changed twice, nor below one that is
        // removed.
        let leads_out = path.components().any(|part| !matches!(part, Component::Normal(_)));
        let removes = |other: &Change| match other {
            Change::RemoveTree { path: tree } => path != tree && path.starts_with(tree),
            _ => false,
        };
        if leads_out || changes.iter().any(removes) || !seen.insert(path) {
            return Err(TransactionError::Twice(path.to_owned()));
        }
        let full = root.join(path);
        if matches!(change, Change::Write { .. } | Change::Link { .. })
            && full.symlink_metadata().is_ok_and(|found| found.is_dir())
        {
            return Err(TransactionError::InTheWay(full));
        }
        let Some(parent) = full.ancestors().skip(1).find(|folder| folder.symlink_metadata().is_ok()) else {
            return Err(TransactionError::NoFolder(root.to_owned()));
        };
        if !parent.is_dir() {
            return Err(TransactionError::InTheWay(parent.to_owned()));
        }
        let stage = |source| TransactionError::Stage { path: parent.to_owned(), source };
        rustix::fs::access(parent, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK)
            .map_err(|error| stage(error.into()))?;
        if device(parent).map_err(stage)? != device(root).map_err(stage)? {
            return Err(TransactionError::Elsewhere(parent.to_owned()));
        }
    }
    Ok(())
}

fn device(path: &Path) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    Ok(path.metadata()?.dev())
}

/// Writes the new files, and the journal last. Once this returns, the change is made.
fn prepare(disk: &dyn Disk, stage: &Path, changes: &[Change]) -> io::Result<Journal> {
    disk.create_folder(stage)?;
    // So that git never shows what is only prepared.
    disk.write(&stage.join(IGNORE), b"*\n")?;
    let mut steps = Vec::new();
    for (number, change) in changes.iter().enumerate() {
        steps.push(match change {
            Change::Write { path, contents } => {
                let from = number.to_string();
                disk.write(&stage.join(&from), contents)?;
                FileOperation::Write { path: path.clone(), from }
            }
            Change::Link { path, target } => {
                FileOperation::Link { path: path.clone(), target: target.clone() }
            }
            Change::Remove { path } => FileOperation::Remove { path: path.clone() },
            Change::RemoveTree { path } => FileOperation::RemoveTree { path: path.clone() },
        });
    }
    let journal = Journal { version: VERSION, steps };
    let new = stage.join("journal.json.new");
    disk.write(&new, &serde_json::to_vec(&journal)?)?;
    disk.sync_folder(stage)?;
    disk.rename(&new, &stage.join(JOURNAL))?;
    disk.sync_folder(stage)?;
    Ok(journal)
}

fn apply(disk: &dyn Disk, root: &Path, journal: &Journal) -> Result<(), TransactionError> {
    let stage = root.join(STAGE);
    let mut touched: BTreeSet<PathBuf> = BTreeSet::new();
    for step in &journal.steps {
        let path = match step {
            FileOperation::Write { path, .. }
            | FileOperation::Link { path, .. }
            | FileOperation::Remove { path }
            | FileOperation::RemoveTree { path } => path,
        };
        let full = root.join(path);
        let unfinished = |source| TransactionError::Unfinished { path: full.clone(), source };
        match step {
            FileOperation::Write { from, .. } => {
                folders(disk, root, &full, &mut touched).map_err(unfinished)?;
                let from = stage.join(from);
                // It is gone if this was done before.
                if from.exists() {
                    disk.rename(&from, &full).map_err(unfinished)?;
                }
            }
            FileOperation::Link { target, .. } => {
                folders(disk, root, &full, &mut touched).map_err(unfinished)?;
                if std::fs::read_link(&full).ok().as_ref() != Some(target) {
                    let new = stage.join("link");
                    disk.remove(&new).map_err(unfinished)?;
                    disk.link(target, &new).map_err(unfinished)?;
                    disk.rename(&new, &full).map_err(unfinished)?;
                }
            }
            FileOperation::Remove { .. } => {
                disk.remove(&full).map_err(unfinished)?;
                prune(disk, root, &full, &mut touched).map_err(unfinished)?;
            }
            FileOperation::RemoveTree { .. } => {
                disk.remove_tree(&full).map_err(unfinished)?;
                prune(disk, root, &full, &mut touched).map_err(unfinished)?;
            }
        }
    }
    for folder in touched.iter().filter(|folder| folder.exists()) {
        disk.sync_folder(folder)
            .map_err(|source| TransactionError::Unfinished { path: folder.clone(), source })?;
    }
    Ok(())
}

/// Creates the folders above `path`, and collects those to be synced.
fn folders(disk: &dyn Disk, root: &Path, path: &Path, touched: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    let above: Vec<&Path> = path.ancestors().skip(1).take_while(|folder| *folder != root).collect();
    for folder in above.into_iter().rev() {
        if !folder.is_dir() {
            disk.create_folder(folder)?;
            touched.extend(folder.parent().map(Path::to_owned));
        }
        touched.insert(folder.to_owned());
    }
    touched.insert(path.parent().unwrap_or(root).to_owned());
    Ok(())
}

/// Removes the folders above `path` that are now empty.
fn prune(disk: &dyn Disk, root: &Path, path: &Path, touched: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for folder in path.ancestors().skip(1).take_while(|folder| *folder != root) {
        touched.insert(folder.to_owned());
        if std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none()) {
            disk.remove_folder(folder)?;
            touched.extend(folder.parent().map(Path::to_owned));
        } else if folder.exists() {
            break;
        }
    }
    Ok(())
}

/// The journal goes first: without it nothing is repeated.
fn finish(disk: &dyn Disk, stage: &Path) -> Result<(), TransactionError> {
    let unfinished = |source| TransactionError::Unfinished { path: stage.to_owned(), source };
    disk.remove(&stage.join(JOURNAL)).map_err(unfinished)?;
    disk.sync_folder(stage).map_err(unfinished)?;
    clear(disk, stage).map_err(unfinished)
}

/// Removes what was prepared; the file that hides it from git goes last.
fn clear(disk: &dyn Disk, stage: &Path) -> io::Result<()> {
    let entries = match std::fs::read_dir(stage) {
        Ok(entries) => entries.collect::<Result<Vec<_>, _>>()?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries.iter().filter(|entry| entry.file_name() != IGNORE) {
        disk.remove(&entry.path())?;
    }
    disk.remove(&stage.join(IGNORE))?;
    disk.remove_folder(stage)
}
