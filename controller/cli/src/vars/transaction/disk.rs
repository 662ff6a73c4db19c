//! What a transaction does to the disk, one operation at a time; tests stop the world before any of them.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, symlink};
use std::path::Path;

pub trait Disk {
    /// Called before each operation.
    fn before(&self) -> io::Result<()> {
        Ok(())
    }

    /// Creates a folder unless it exists.
    fn create_folder(&self, path: &Path) -> io::Result<()> {
        self.before()?;
        match fs::create_dir(path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
            done => done,
        }
    }

    /// Writes a new file; it is on disk when this returns.
    fn write(&self, path: &Path, contents: &[u8]) -> io::Result<()> {
        self.before()?;
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o644).open(path)?;
        let (first, second) = contents.split_at(contents.len() / 2);
        file.write_all(first)?;
        self.before()?;
        file.write_all(second)?;
        self.before()?;
        file.sync_all()
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.before()?;
        fs::rename(from, to)
    }

    fn link(&self, target: &Path, path: &Path) -> io::Result<()> {
        self.before()?;
        symlink(target, path)
    }

    /// Removes a file or link unless it is gone.
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.before()?;
        gone(fs::remove_file(path))
    }

    fn remove_folder(&self, path: &Path) -> io::Result<()> {
        self.before()?;
        gone(fs::remove_dir(path))
    }

    fn remove_tree(&self, path: &Path) -> io::Result<()> {
        self.before()?;
        gone(fs::remove_dir_all(path))
    }

    fn sync_folder(&self, path: &Path) -> io::Result<()> {
        self.before()?;
        File::open(path)?.sync_all()
    }
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

pub struct Real;
impl Disk for Real {}
