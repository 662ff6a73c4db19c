//! Which files in an activation's way in /etc were not made by nix-darwin. Its own check comes after the
//! place where `checkActivation` ends, so a preflight does not reach it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use muster_protocol::ids::{Sha256, StorePath};

use super::super::layout::Layout;
use crate::durable;

/// The start of nix-darwin's list of contents that it may overwrite.
const HASHES: &str = "declare -A etcSha256Hashes=(";
/// The contents it knows are those of small files.
const MAX_KNOWN_BYTES: u64 = 1024 * 1024;
/// How deep to look below /etc.
const MAX_DEPTH: usize = 16;

/// Their paths, sorted. `script` is the text of the system's `activate`: one without such a list is from
/// another version, and only running it tells.
pub fn foreign(layout: &Layout, new: &StorePath, script: &str) -> Vec<String> {
    let Some(known) = known_hashes(script) else { return Vec::new() };
    let mut found = Vec::new();
    links(&layout.physical(new).join("etc"), Path::new(""), 0, &mut found);
    found.sort();
    found.retain(|below| is_foreign(layout, below, &known));
    found.iter().map(|below| Path::new("/etc").join(below).to_string_lossy().into_owned()).collect()
}

fn is_foreign(layout: &Layout, below: &Path, known: &BTreeMap<&str, Vec<&str>>) -> bool {
    let file = layout.system("/etc").join(below);
    let Ok(facts) = std::fs::symlink_metadata(&file) else { return false };
    if facts.is_symlink() && std::fs::read_link(&file).ok() == Some(layout.system("/etc/static").join(below))
    {
        return false;
    }
    // A dangling link is in the way as well: the new one cannot be created.
    let Ok(target) = std::fs::metadata(&file) else { return true };
    if !target.is_file() {
        return true;
    }
    let hashes = below.to_str().and_then(|below| known.get(below));
    let Some(hashes) = hashes.filter(|hashes| !hashes.is_empty()) else { return true };
    match durable::read(&file, MAX_KNOWN_BYTES) {
        Ok(Some(bytes)) => !hashes.contains(&Sha256::of(&bytes).to_string().as_str()),
        _ => true,
    }
}

/// Every link in a folder, by its relative path.
fn links(folder: &Path, below: &Path, depth: usize, found: &mut Vec<PathBuf>) {
    let entries = std::fs::read_dir(folder.join(below)).into_iter().flatten().flatten();
    for entry in entries {
        let path = below.join(entry.file_name());
        match entry.file_type() {
            Ok(kind) if kind.is_symlink() => found.push(path),
            Ok(kind) if kind.is_dir() && depth < MAX_DEPTH => links(folder, &path, depth + 1, found),
            _ => {}
        }
    }
}

/// `[nix/nix.conf]='HASH HASH'`, one per line, with or without quotation marks.
fn known_hashes(script: &str) -> Option<BTreeMap<&str, Vec<&str>>> {
    let list = script[script.find(HASHES)? + HASHES.len()..].lines();
    let entries = list.map(str::trim).take_while(|line| *line != ")").filter_map(|line| {
        let (name, hashes) = line.strip_prefix('[')?.split_once("]=")?;
        Some((name.trim_matches('\''), hashes.trim_matches('\'').split_whitespace().collect()))
    });
    Some(entries.collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use muster_protocol::machine::Class;

    use super::super::super::testing::layout;
    use super::*;
    use crate::core::records::tests::path;

    #[test]
    fn failure_mode_6_foreign_files_are_found_before_anything_is_changed() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Darwin);
        let new = layout.physical(&path("new")).join("etc");
        std::fs::create_dir_all(new.join("nix")).unwrap();
        std::fs::create_dir_all(layout.system("/etc/nix")).unwrap();
        for name in ["zshrc", "shells", "nix/nix.conf", "mine", "absent", "gone", "folder"] {
            symlink("/nix/store/x", new.join(name)).unwrap();
        }
        let etc = |name: &str| layout.system("/etc").join(name);
        let hash = Sha256::of(b"of Apple");
        std::fs::write(etc("zshrc"), "of Apple").unwrap();
        std::fs::write(etc("shells"), "of somebody").unwrap();
        symlink(layout.system("/etc/static/nix/nix.conf"), etc("nix/nix.conf")).unwrap();
        std::fs::write(etc("mine"), "").unwrap();
        symlink("/nowhere", etc("gone")).unwrap();
        std::fs::create_dir(etc("folder")).unwrap();
        std::fs::write(etc("not-of-new"), "").unwrap();
        let script = format!(
            "declare -A etcSha256Hashes=(\n  ['zshrc']='0000 {hash}'\n  [shells]={hash}\n  \
             [nix/nix.conf]=''\n  [mine]=''\n)\n"
        );
        let found = foreign(&layout, &path("new"), &script);
        assert_eq!(found, ["/etc/folder", "/etc/gone", "/etc/mine", "/etc/shells"]);
        assert!(foreign(&layout, &path("new"), "a script of another age").is_empty());
    }
}
