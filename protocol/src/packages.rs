//! How two closures differ, by package names. Pure.

use std::collections::{BTreeMap, BTreeSet};

/// Packages that were added, removed or have another version.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changes {
    /// In both, with other versions: `bash 5.1 -> 5.2`.
    pub changed: Vec<String>,
    /// Only in the new closure: `vim 9.1`.
    pub added: Vec<String>,
    /// Only in the old closure.
    pub removed: Vec<String>,
}

/// Compares two closures by names such as `bash-5.2`.
pub fn changes(old: &BTreeSet<String>, new: &BTreeSet<String>) -> Changes {
    let (gone, come) = (by_name(old.difference(new)), by_name(new.difference(old)));
    let mut changes = Changes::default();
    for (name, versions) in &come {
        match gone.get(name) {
            Some(before) => {
                changes.changed.push(format!("{name} {} -> {}", or_none(before), or_none(versions)));
            }
            None => changes.added.push(whole(name, versions)),
        }
    }
    let removed = gone.iter().filter(|(name, _)| !come.contains_key(*name));
    changes.removed.extend(removed.map(|(name, versions)| whole(name, versions)));
    changes
}

/// `name-1.2` as name and version, which begins at the first dash followed by a digit
/// (`builtins.parseDrvName`).
pub fn split(package: &str) -> (&str, &str) {
    let bytes = package.as_bytes();
    let dash = (1..bytes.len()).find(|&at| bytes[at - 1] == b'-' && bytes[at].is_ascii_digit());
    dash.map_or((package, ""), |at| (&package[..at - 1], &package[at..]))
}

fn by_name<'a>(packages: impl Iterator<Item = &'a String>) -> BTreeMap<&'a str, Vec<&'a str>> {
    let mut names: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (name, version) in packages.map(|package| split(package)) {
        names.entry(name).or_default().push(version);
    }
    names
}

fn or_none(versions: &[&str]) -> String {
    let named: Vec<&str> = versions.iter().copied().filter(|version| !version.is_empty()).collect();
    if named.is_empty() { "(no version)".to_owned() } else { named.join(", ") }
}

fn whole(name: &str, versions: &[&str]) -> String {
    let named: Vec<&str> = versions.iter().copied().filter(|version| !version.is_empty()).collect();
    if named.is_empty() { name.to_owned() } else { format!("{name} {}", named.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_additions_and_removals_are_told_apart() {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let changes =
            changes(&set(&["bash-5.1", "etc", "nano-7.2"]), &set(&["bash-5.2", "etc", "vim-9.1", "motd"]));
        assert_eq!(changes.changed, ["bash 5.1 -> 5.2"]);
        assert_eq!(changes.added, ["motd", "vim 9.1"]);
        assert_eq!(changes.removed, ["nano 7.2"]);
    }

    #[test]
    fn names_are_split_as_nix_splits_them() {
        assert_eq!(split("bash-5.2-p15"), ("bash", "5.2-p15"));
        assert_eq!(split("hicolor-icon-theme-0.17"), ("hicolor-icon-theme", "0.17"));
        assert_eq!(split("source"), ("source", ""));
    }
}
