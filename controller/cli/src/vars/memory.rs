//! A folder in memory: what scripts read and write in plaintext is there and nowhere else.
//!
//! On Linux it is in an existing tmpfs; a Mac has none, so a RAM disk is made for the run.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use muster_protocol::ids::to_hex;
use muster_protocol::random::{self, RandomError};
use rustix::fs::FlockOperation;
use rustix::process::Pid;

const PREFIX: &str = "muster-vars-";
/// The size of a Mac's RAM disk, in sectors of 512 bytes: 64 MiB.
const SECTORS: u32 = 131_072;

#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    #[error(
        "no folder in memory can be written, and scripts must not leave secrets on a disk: mount a tmpfs at \
         /dev/shm, or let XDG_RUNTIME_DIR name one"
    )]
    None,
    #[error("{} cannot be used for what scripts read and write: {source}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("`{program}` made no disk in memory: {message}")]
    RamDisk { program: &'static str, message: String },
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Removed with everything in it when dropped; leftovers of a killed run are removed by the next one.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    _lock: File,
    /// The device of a Mac's RAM disk.
    device: Option<String>,
}

impl Memory {
    pub fn open() -> Result<Self, MemoryError> {
        match cfg!(target_os = "macos") {
            true => {
                sweep(&std::env::temp_dir(), Some(Path::new("/usr/bin")));
                Self::ram_disk(&std::env::temp_dir(), &[Path::new("/usr/bin"), Path::new("/sbin")])
            }
            false => {
                let given = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
                Self::tmpfs(given.into_iter().chain([PathBuf::from("/dev/shm")]))
            }
        }
    }

    fn tmpfs(candidates: impl Iterator<Item = PathBuf>) -> Result<Self, MemoryError> {
        for parent in candidates.filter(|path| is_memory(path)) {
            sweep(&parent, None);
            if let Ok(memory) = Self::make(&parent) {
                return Ok(memory);
            }
        }
        Err(MemoryError::None)
    }

    fn make(parent: &Path) -> Result<Self, MemoryError> {
        let name = format!("{PREFIX}{}-{}", std::process::id(), to_hex(&random::bytes::<8>()?));
        let path = parent.join(name);
        let error = |source| MemoryError::Folder { path: path.clone(), source };
        fs::DirBuilder::new().mode(0o700).create(&path).map_err(error)?;
        let lock = File::open(&path).map_err(error)?;
        rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).map_err(|it| error(it.into()))?;
        Ok(Self { path, _lock: lock, device: None })
    }

    /// hdiutil(1), newfs_hfs(8) and mount(8), as they come with macOS.
    fn ram_disk(parent: &Path, programs: &[&Path]) -> Result<Self, MemoryError> {
        let mut memory = Self::make(parent)?;
        let run = |program: &'static str, arguments: &[&str]| {
            let path = programs.iter().map(|folder| folder.join(program)).find(|path| path.exists());
            let ended = Command::new(path.unwrap_or_else(|| program.into()))
                .args(arguments)
                .stdin(Stdio::null())
                .output()
                .map_err(|error| MemoryError::RamDisk { program, message: error.to_string() })?;
            match ended.status.success() {
                true => Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned()),
                false => Err(MemoryError::RamDisk {
                    program,
                    message: String::from_utf8_lossy(&ended.stderr).trim().to_owned(),
                }),
            }
        };
        let device = run("hdiutil", &["attach", "-nomount", &format!("ram://{SECTORS}")])?;
        memory.device = Some(device.clone());
        run("newfs_hfs", &["-s", &device])?;
        let mountpoint = memory.path.display().to_string();
        run("mount", &["-t", "hfs", "-o", "nobrowse,nodev,nosuid,-m=0700", &device, &mountpoint])?;
        Ok(memory)
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        let _ = remove_tree(&self.path);
        if let Some(device) = &self.device {
            let _ = Command::new("/usr/bin/hdiutil")
                .args(["detach", "-force", device])
                .stdout(Stdio::null())
                .status();
            let _ = fs::remove_dir(&self.path);
        }
    }
}

/// Removes the folders of runs that no longer exist. `programs` has hdiutil, for folders that are mounted
/// disks.
fn sweep(parent: &Path, programs: Option<&Path>) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(rest) = name.to_str().and_then(|name| name.strip_prefix(PREFIX)) else { continue };
        let pid = rest.split('-').next().and_then(|pid| pid.parse().ok()).and_then(Pid::from_raw);
        if pid.is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok()) {
            continue;
        }
        let Ok(folder) = File::open(entry.path()) else { continue };
        if rustix::fs::flock(&folder, FlockOperation::NonBlockingLockExclusive).is_ok() {
            drop(folder);
            if let Some(programs) = programs {
                let _ = Command::new(programs.join("hdiutil"))
                    .args(["detach", "-force"])
                    .arg(entry.path())
                    .stdout(Stdio::null())
                    .stderr(Stdio::null())
                    .status();
            }
            let _ = remove_tree(&entry.path());
        }
    }
}

/// Removes a folder even if a script removed the permission to.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    if fs::remove_dir_all(path).is_ok() {
        return Ok(());
    }
    let mut left = vec![path.to_owned()];
    while let Some(folder) = left.pop() {
        fs::set_permissions(&folder, fs::Permissions::from_mode(0o700))?;
        for entry in fs::read_dir(&folder)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            }
        }
    }
    fs::remove_dir_all(path)
}

#[cfg(target_os = "linux")]
fn is_memory(path: &Path) -> bool {
    const TMPFS: u32 = 0x0102_1994;
    const RAMFS: u32 = 0x8584_58f6;
    // The kernel's number has 32 bits; its type depends on the architecture.
    rustix::fs::statfs(path).is_ok_and(|found| [TMPFS, RAMFS].contains(&(found.f_type as u32)))
}

#[cfg(not(target_os = "linux"))]
fn is_memory(_: &Path) -> bool {
    false
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[cfg(target_os = "linux")]
    #[test]
    fn the_folder_is_in_memory_for_its_owner_alone_and_goes_with_all_that_is_in_it() {
        let disk = tempfile::tempdir().unwrap();
        let memory = Memory::tmpfs([PathBuf::from("/nowhere"), "/dev/shm".into()].into_iter()).unwrap();
        let path = memory.path().to_owned();
        assert!(path.starts_with("/dev/shm"));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        fs::create_dir(path.join("closed")).unwrap();
        fs::write(path.join("closed/secret"), "x").unwrap();
        fs::set_permissions(path.join("closed"), fs::Permissions::from_mode(0o000)).unwrap();
        drop(memory);
        assert!(!path.exists());
        if !is_memory(disk.path()) {
            let refused = Memory::tmpfs([disk.path().to_owned()].into_iter()).unwrap_err();
            assert!(matches!(refused, MemoryError::None));
            assert_eq!(fs::read_dir(disk.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn what_a_killed_run_left_is_removed_and_what_lives_stays() {
        let folder = tempfile::tempdir().unwrap();
        let living = Memory::make(folder.path()).unwrap();
        // No process has this number: it is above the kernel's limit.
        let left = folder.path().join(format!("{PREFIX}1073741824-00"));
        fs::create_dir_all(left.join("out")).unwrap();
        fs::create_dir(folder.path().join("other")).unwrap();
        sweep(folder.path(), None);
        assert!(!left.exists());
        assert!(living.path().exists() && folder.path().join("other").exists());
    }

    #[test]
    fn a_macs_disk_in_memory_is_made_formatted_and_mounted() {
        let folder = tempfile::tempdir().unwrap();
        let programs = folder.path().join("programs");
        fs::create_dir(&programs).unwrap();
        let log = folder.path().join("log");
        for (name, says) in [("hdiutil", "echo '/dev/disk7   '"), ("newfs_hfs", ":"), ("mount", ":")] {
            let text = format!("#!/bin/sh\necho {name} \"$@\" >> {}\n{says}\n", log.display());
            let write = "printf %s \"$1\" > \"$0\" && chmod 755 \"$0\"";
            let path = programs.join(name);
            let status = Command::new("/bin/sh").arg("-c").arg(write).arg(&path).arg(&text).status().unwrap();
            assert!(status.success());
        }
        let memory = Memory::ram_disk(folder.path(), &[&programs]).unwrap();
        let path = memory.path().display().to_string();
        assert_eq!(memory.device.as_deref(), Some("/dev/disk7"));
        assert_eq!(
            fs::read_to_string(&log).unwrap(),
            format!(
                "hdiutil attach -nomount ram://131072\nnewfs_hfs -s /dev/disk7\nmount -t hfs -o \
                 nobrowse,nodev,nosuid,-m=0700 /dev/disk7 {path}\n"
            )
        );
    }
}
