//! Files that are either as they were or as they should be, whatever happens in between.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// Replaces `path` atomically: temporary file, fsync, rename, fsync of the directory. `mode` is its
/// permissions.
///
/// On an error (a full disk, say) the old contents remain and the temporary file is removed.
pub fn write(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let (folder, temporary) = beside(path)?;
    let written = (|| {
        let new = || OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary);
        let mut file = match new() {
            // A file left by a crash may have other permissions; it was never read, so it may go.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                fs::remove_file(&temporary)?;
                new()?
            }
            made => made?,
        };
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        sync_folder(folder)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Like [`write()`], for a document that is replaced often: file and temporary file change places, so nothing
/// has to be created or deleted on disk. The previous contents stay beside it as `NAME.new`: not for secrets.
pub fn rewrite(path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let (folder, temporary) = beside(path)?;
    let written = fill(&temporary, contents, mode)
        .and_then(|()| exchange(&temporary, path))
        .and_then(|()| sync_folder(folder));
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Durably removes a document that [`rewrite`] writes; its disk space is kept for the next one. A missing
/// document is no error.
pub fn retire(path: &Path) -> io::Result<()> {
    let (folder, temporary) = beside(path)?;
    match fs::rename(path, temporary) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => sync_folder(folder),
    }
}

/// Makes `path` out of `spare`, an unused file of the same folder; creates it if there is none.
pub fn write_over(spare: &Path, path: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file needs a folder"))?;
    let written =
        fill(spare, contents, mode).and_then(|()| fs::rename(spare, path)).and_then(|()| sync_folder(folder));
    if written.is_err() {
        let _ = fs::remove_file(spare);
    }
    written
}

/// In place rather than truncated first, so that a full disk accepts anything no longer than the old
/// contents.
fn fill(file: &Path, contents: &[u8], mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(false).mode(mode).open(file)?;
    let found = file.metadata()?;
    if found.permissions().mode() & 0o7777 != mode {
        file.set_permissions(Permissions::from_mode(mode))?;
    }
    file.write_all(contents)?;
    let length = contents.len() as u64;
    if found.len() > length {
        file.set_len(length)?;
    }
    file.sync_all()
}

/// If there is nothing to exchange with, or the file system cannot do it, the file is simply renamed.
fn exchange(temporary: &Path, path: &Path) -> io::Result<()> {
    #[cfg(any(target_os = "linux", target_os = "macos"))]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, temporary, CWD, path, RenameFlags::EXCHANGE).is_ok() {
            return Ok(());
        }
    }
    fs::rename(temporary, path)
}

/// The folder of a file, and its temporary file.
fn beside(path: &Path) -> io::Result<(&Path, PathBuf)> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file needs a folder"))?;
    let mut name = path.file_name().ok_or_else(|| io::Error::other("a file needs a name"))?.to_owned();
    name.push(".new");
    Ok((folder, folder.join(name)))
}

/// Durably moves the file `from` over `to`: afterwards one of the two is there, complete.
pub fn replace(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    to.parent().map_or(Ok(()), sync_folder)
}

/// Durably removes a file; a missing file is no error.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(()) => path.parent().map_or(Ok(()), sync_folder),
    }
}

/// The contents, or `None` if there is no such file. Refuses a file of more than `limit` bytes.
pub fn read(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    use io::Read as _;
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut contents = Vec::new();
    file.take(limit + 1).read_to_end(&mut contents)?;
    if contents.len() as u64 > limit {
        return Err(io::Error::other(format!("{} has more than {limit} bytes", path.display())));
    }
    Ok(Some(contents))
}

/// Makes creations, renames and removals in a folder durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// What to do if a file cannot be written.
pub fn remedy(error: &io::Error) -> &'static str {
    remedy_for(error.kind(), is_root())
}

/// What to do if a file cannot be read, or a program cannot be run.
pub fn read_remedy(error: &io::Error) -> &'static str {
    read_remedy_for(error.kind(), is_root())
}

/// Does not advise root to become root.
fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

const REFUSED_TO_ROOT: &str =
    "even root is refused: check for flags (lsattr, or ls -lO on a Mac) and the system's own protection";

fn read_remedy_for(kind: io::ErrorKind, is_root: bool) -> &'static str {
    match kind {
        io::ErrorKind::PermissionDenied if is_root => REFUSED_TO_ROOT,
        io::ErrorKind::PermissionDenied => "run this as root, with sudo for example",
        io::ErrorKind::NotFound => "check that it exists, and that its file system is mounted",
        io::ErrorKind::IsADirectory => "a folder is in its place: move that away",
        _ => "check the disk for errors (dmesg)",
    }
}

fn remedy_for(kind: io::ErrorKind, is_root: bool) -> &'static str {
    match kind {
        io::ErrorKind::ReadOnlyFilesystem => {
            "its file system is read-only: check the disk for errors (dmesg), then mount it writable again"
        }
        io::ErrorKind::PermissionDenied if is_root => REFUSED_TO_ROOT,
        io::ErrorKind::PermissionDenied => "run this as root, with sudo for example",
        io::ErrorKind::IsADirectory => "a folder is in its place: move that away",
        io::ErrorKind::QuotaExceeded => "raise the quota of root, or free some space there",
        io::ErrorKind::NotFound => "create the folder, or mount what should be there",
        io::ErrorKind::StorageFull => "free some space there",
        _ => "free some space there, and check the disk for errors",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn advice_fits_its_cause_and_tells_nobody_to_be_root_who_is() {
        let denied = io::ErrorKind::PermissionDenied;
        for advice in [remedy_for, read_remedy_for] {
            assert!(advice(denied, false).contains("as root"));
            assert!(!advice(denied, true).contains("as root") && !advice(denied, true).contains("space"));
            assert!(advice(io::ErrorKind::IsADirectory, true).contains("folder is in its place"));
        }
        assert!(remedy_for(io::ErrorKind::StorageFull, true).contains("free some space"));
        assert!(!read_remedy_for(io::ErrorKind::Other, true).contains("root"));
    }

    #[test]
    fn a_file_is_replaced_whole_with_its_mode() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        fs::write(folder.path().join("state.json.new"), "left by a crash").unwrap();
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o600).unwrap();
        assert_eq!(read(&path, 100).unwrap().unwrap(), b"two");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_file_that_is_replaced_again_and_again_is_whole_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        let spare = folder.path().join("state.json.new");
        // Left by a crash: longer than what is written, and with other permissions.
        fs::write(&spare, "left by a crash, and long").unwrap();
        fs::set_permissions(&spare, Permissions::from_mode(0o644)).unwrap();
        for contents in ["one", "a longer one", "2", "", "three"] {
            rewrite(&path, contents.as_bytes(), 0o600).unwrap();
            assert_eq!(read(&path, 100).unwrap().unwrap(), contents.as_bytes());
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
        remove(&path).unwrap();
        rewrite(&path, b"again", 0o600).unwrap();
        assert_eq!(read(&path, 100).unwrap().unwrap(), b"again");
        assert!(!spare.exists(), "there was nothing to change places with");
        fs::create_dir(&spare).unwrap();
        assert!(rewrite(&path, b"not this", 0o600).is_err());
        assert_eq!(read(&path, 100).unwrap().unwrap(), b"again");
        fs::remove_dir(&spare).unwrap();
        retire(&path).unwrap();
        retire(&path).unwrap();
        assert!(!path.exists() && spare.exists());
        let other = folder.path().join("other.json");
        for contents in ["out of a spare", "out of nothing"] {
            write_over(&spare, &other, contents.as_bytes(), 0o600).unwrap();
            assert_eq!(read(&other, 100).unwrap().unwrap(), contents.as_bytes());
            assert!(!spare.exists());
        }
    }

    #[test]
    fn a_write_that_fails_leaves_the_old_contents() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("state.json");
        write(&path, b"one", 0o600).unwrap();
        fs::create_dir(folder.path().join("state.json.new")).unwrap();
        assert!(write(&path, b"two", 0o600).is_err());
        assert_eq!(read(&path, 100).unwrap().unwrap(), b"one");
    }

    #[test]
    fn a_file_that_is_too_long_or_missing_is_told_apart() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x");
        assert!(read(&path, 2).unwrap().is_none());
        write(&path, b"123", 0o600).unwrap();
        assert!(read(&path, 2).is_err());
        remove(&path).unwrap();
        remove(&path).unwrap();
    }
}
