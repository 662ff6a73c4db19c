//! Lines that are too wide to be read beside others. rustfmt breaks code, and neither comments nor texts.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// What rustfmt.toml says as well.
pub const COLUMNS: usize = 110;

/// The lines below a folder that have more than [`COLUMNS`] characters, by file and number.
pub fn wide_lines(folder: &Path) -> io::Result<Vec<(PathBuf, usize)>> {
    let mut found = Vec::new();
    let mut entries: Vec<_> = fs::read_dir(folder)?.collect::<io::Result<_>>()?;
    entries.sort_by_key(fs::DirEntry::path);
    for entry in entries {
        let path = entry.path();
        if path.is_dir() {
            found.extend(wide_lines(&path)?);
        } else if path.extension().is_some_and(|kind| kind == "rs") {
            let text = fs::read_to_string(&path)?;
            let wide = text.lines().enumerate().filter(|(_, line)| line.chars().count() > COLUMNS);
            found.extend(wide.map(|(at, _)| (path.clone(), at + 1)));
        }
    }
    Ok(found)
}
