//! Delegated targets roles (TUF 4.5). A machine's own repository has none: only the conformance suite needs
//! them, and no shipped program contains this code.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::keyring::{Holders, Keys};
use super::role::Role;
use super::{Result, require_form};
use crate::ids::Sha256;

/// The most delegated roles that one document may name.
const MAX_DELEGATIONS: usize = 1024;

/// The roles that a document delegates to, in order. A document without `roles` uses succinct roles (TAP
/// 15), which are refused.
#[derive(Deserialize)]
pub(super) struct Delegations {
    pub(super) keys: Keys,
    pub(super) roles: Vec<Delegation>,
}

/// One role that another trusts for some paths.
#[derive(Clone, Deserialize)]
pub(super) struct Delegation {
    pub(super) name: String,
    #[serde(flatten)]
    pub(super) holders: Holders,
    #[serde(default)]
    pub(super) terminating: bool,
    /// Either these or those.
    paths: Option<Vec<String>>,
    path_hash_prefixes: Option<Vec<String>>,
}

impl Delegations {
    pub(super) fn check(&self, what: &str) -> Result<()> {
        let few = self.roles.len() <= MAX_DELEGATIONS;
        require_form(what, few, format_args!("it delegates to more than {MAX_DELEGATIONS} roles"))?;
        let mut taken = BTreeSet::from(Role::ALL.map(Role::as_str));
        taken.insert("");
        for Delegation { name, paths, path_hash_prefixes, .. } in &self.roles {
            let why = format_args!("it delegates to '{name}', a name that is reserved or taken");
            require_form(what, taken.insert(name), why)?;
            let why = format_args!("'{name}' needs either paths or path_hash_prefixes");
            require_form(what, paths.is_some() != path_hash_prefixes.is_some(), why)?;
        }
        Ok(())
    }
}

impl Delegation {
    pub(super) fn covers(&self, path: &str) -> bool {
        let hash = Sha256::of(path.as_bytes()).hex();
        self.paths.iter().flatten().any(|pattern| path_matches(pattern, path))
            || self.path_hash_prefixes.iter().flatten().any(|prefix| hash.starts_with(prefix.as_str()))
    }

    /// The role's file, as the snapshot names it.
    pub(super) fn file(&self) -> String {
        format!("{}.json", self.name)
    }
}

/// The shell's `*` and `?`; neither matches `/`. Any other character matches itself.
fn path_matches(pattern: &str, path: &str) -> bool {
    let (patterns, names) = (pattern.split('/'), path.split('/'));
    patterns.clone().count() == names.clone().count()
        && patterns.zip(names).all(|(pattern, name)| segment_matches(pattern, name))
}

/// Tracks which prefixes of the name the pattern so far can match: pattern × name steps for any input.
fn segment_matches(pattern: &str, name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let mut fits = vec![false; name.len() + 1];
    fits[0] = true;
    for p in pattern.chars() {
        let before = fits.clone();
        for n in 0..=name.len() {
            let one = n > 0 && before[n - 1] && (p == '?' || p == name[n - 1]);
            let any = p == '*' && (before[n] || n > 0 && fits[n - 1]);
            fits[n] = one || any;
        }
    }
    fits[name.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wildcards_stay_within_a_segment() {
        for (pattern, path) in [
            ("*", "a"),
            ("*", ""),
            ("a*b*c", "axxbyybzc"),
            ("foo-?.tgz", "foo-1.tgz"),
            ("releases/*/*.zip", "releases/x/y.zip"),
            ("**", "ab"),
            ("é?", "éü"),
        ] {
            assert!(path_matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("*", "a/b"),
            ("?", ""),
            ("?", "/"),
            ("a/*", "a"),
            ("a*b", "axc"),
            ("foo-?.tgz", "foo-12.tgz"),
            ("[ab]", "a"),
            ("README.md", "README.MD"),
        ] {
            assert!(!path_matches(pattern, path), "{pattern} {path}");
        }
    }
}
