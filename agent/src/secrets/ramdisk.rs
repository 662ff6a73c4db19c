//! A Mac has no tmpfs: a disk in memory is mounted where secrets go, once after each boot.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::error::SecretsError;
use crate::platform::Layout;

/// In sectors of 512 bytes: 16 MiB.
const SECTORS: u32 = 32_768;
/// A file on the disk that identifies it.
const MARK: &str = ".in-memory";

/// hdiutil(1), newfs_hfs(8) and mount(8), as they come with macOS.
pub fn ensure(layout: &Layout, place: &Path) -> Result<(), SecretsError> {
    let mark = place.join(MARK);
    if mark.exists() {
        return Ok(());
    }
    let failed = |words: String| SecretsError::RamDisk { at: place.to_owned(), words };
    let run = |program: &str, arguments: &[&str]| {
        let ended = Command::new(program)
            .args(arguments)
            .env("PATH", layout.search_path())
            .stdin(Stdio::null())
            .output()
            .map_err(|error| failed(format!("{program} cannot be run: {error}")))?;
        match ended.status.success() {
            true => Ok(String::from_utf8_lossy(&ended.stdout).trim().to_owned()),
            false => Err(failed(format!("{program}: {}", String::from_utf8_lossy(&ended.stderr).trim()))),
        }
    };
    let device = run("hdiutil", &["attach", "-nomount", &format!("ram://{SECTORS}")])?;
    let made = run("newfs_hfs", &["-s", &device]).and_then(|_| {
        let at = place.to_string_lossy();
        run("mount", &["-t", "hfs", "-o", "nobrowse,nodev,nosuid,noexec,-m=0711", &device, &at])
    });
    if let Err(error) = made {
        let _ = run("hdiutil", &["detach", "-force", &device]);
        return Err(error);
    }
    fs::write(&mark, "").map_err(|error| failed(error.to_string()))?;
    fs::set_permissions(place, Permissions::from_mode(0o711)).map_err(|error| failed(error.to_string()))
}
