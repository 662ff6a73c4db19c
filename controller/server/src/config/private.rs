//! Files with secrets.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// A private key that others can read is not private.
pub fn require_private(path: &Path) -> Result<(), String> {
    let path_shown = path.display();
    let meta = std::fs::metadata(path)
        .map_err(|error| format!("names {path_shown}, which cannot be read: {error}"))?;
    let mode = meta.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(format!(
            "names {path_shown}, which others may read (mode {mode:04o}): run `chmod 600 {path_shown}`"
        ));
    }
    Ok(())
}
