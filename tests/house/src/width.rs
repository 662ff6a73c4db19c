//! Lines that are too wide to be read beside others. rustfmt breaks code, and neither comments nor texts.
//! Rows of a table cannot be broken, and some texts should not be: a line with either may be as wide as it
//! has to.

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
            let wide = text.lines().enumerate().filter(|(_, line)| is_too_wide(line));
            found.extend(wide.map(|(at, _)| (path.clone(), at + 1)));
        }
    }
    Ok(found)
}

fn is_too_wide(line: &str) -> bool {
    let comment =
        line.trim_start().strip_prefix("//").map(|comment| comment.trim_start_matches(['/', '!', ' ']));
    let unbroken = comment.map_or(line.contains('"'), |comment| comment.starts_with('|'));
    line.chars().count() > COLUMNS && !unbroken
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_code_are_measured_in_characters_and_tables_and_texts_left_alone() {
        let wide = "ä".repeat(COLUMNS);
        assert!(is_too_wide(&format!("// {wide}")) && is_too_wide(&format!("    {wide}()")));
        assert!(is_too_wide(&format!("    /// the \"text\" of {wide}")));
        assert!(!is_too_wide(&wide));
        assert!(!is_too_wide(&format!("//! | {wide} |")) && !is_too_wide(&format!("    \"{wide}\",")));
    }
}
