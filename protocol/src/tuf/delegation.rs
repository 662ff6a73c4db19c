//! Delegated targets roles, and the search through them (TUF 4.5, 5.6.7). A machine's own repository has none;
//! the search is here for the conformance suite, and so that one core reads every TUF repository.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::TufError;
use super::keyring::{Authority, Key, RawRole};
use super::metadata::{Role, Targets};
use crate::ids::Sha256;

/// The most delegated roles that one document may name, and that one search may visit.
const MAX_DELEGATIONS: usize = 1024;
const MAX_VISITS: usize = 32;

/// The roles that a document delegates to, in their order.
#[derive(Clone, Deserialize)]
#[serde(try_from = "RawDelegations")]
pub(super) struct Delegations(Vec<Delegation>);

/// One role that another trusts for some paths.
#[derive(Clone)]
pub(super) struct Delegation {
    pub(super) name: String,
    pub(super) authority: Authority,
    terminating: bool,
    /// Either these or those.
    paths: Option<Vec<String>>,
    path_hash_prefixes: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct RawDelegations {
    keys: BTreeMap<String, Key>,
    // Without `roles` they are succinct roles (TAP 15), which are refused.
    roles: Vec<RawDelegation>,
}

#[derive(Deserialize)]
struct RawDelegation {
    name: String,
    #[serde(flatten)]
    role: RawRole,
    #[serde(default)]
    terminating: bool,
    paths: Option<Vec<String>>,
    path_hash_prefixes: Option<Vec<String>>,
}

impl TryFrom<RawDelegations> for Delegations {
    type Error = String;
    fn try_from(raw: RawDelegations) -> Result<Self, String> {
        if raw.roles.len() > MAX_DELEGATIONS {
            return Err(format!("it delegates to more than {MAX_DELEGATIONS} roles"));
        }
        let mut taken: BTreeSet<String> = Role::ALL.iter().map(Role::to_string).collect();
        taken.insert(String::new());
        let mut delegations = Vec::new();
        for RawDelegation { name, role, terminating, paths, path_hash_prefixes } in raw.roles {
            if !taken.insert(name.clone()) {
                return Err(format!("it delegates to '{name}', a name that is reserved or taken"));
            }
            if paths.is_some() == path_hash_prefixes.is_some() {
                return Err(format!("'{name}' needs either paths or path_hash_prefixes"));
            }
            let authority = Authority::new(&raw.keys, role)?;
            delegations.push(Delegation { name, authority, terminating, paths, path_hash_prefixes });
        }
        Ok(Self(delegations))
    }
}

impl Delegation {
    fn covers(&self, path: &str) -> bool {
        let hash = Sha256::of(path.as_bytes()).hex();
        self.paths.iter().flatten().any(|pattern| path_matches(pattern, path))
            || self.path_hash_prefixes.iter().flatten().any(|prefix| hash.starts_with(prefix.as_str()))
    }

    /// The role's file in the words of the snapshot.
    pub(super) fn file(&self) -> String {
        format!("{}.json", self.name)
    }

    /// The same as one segment of a URL.
    pub(super) fn url_file(&self) -> String {
        format!("{}.json", quoted(&self.name))
    }
}

/// `*` and `?` of the shell; neither matches `/`. Any other character stands for itself.
fn path_matches(pattern: &str, path: &str) -> bool {
    let (patterns, names) = (pattern.split('/'), path.split('/'));
    patterns.clone().count() == names.clone().count()
        && patterns.zip(names).all(|(pattern, name)| segment_matches(pattern, name))
}

/// The greedy match: on a mismatch the last `*` takes one character more. Linear in memory, at worst pattern × name in time.
fn segment_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == '*')
}

/// A search for one path, depth first and in the order of the metadata.
pub(super) struct Search {
    pub(super) path: String,
    /// The next role to visit is the last.
    waiting: Vec<Delegation>,
    visited: BTreeSet<String>,
}

impl Search {
    pub(super) fn start(path: &str, targets: &Targets) -> Self {
        let mut search = Self { path: path.to_owned(), waiting: Vec::new(), visited: BTreeSet::new() };
        search.descend(targets);
        search
    }

    /// Puts what `targets` delegates for this path before all that waits; a terminating delegation ends the rest.
    pub(super) fn descend(&mut self, targets: &Targets) {
        let mut below = Vec::new();
        let all = targets.delegations.iter().flat_map(|delegations| &delegations.0);
        for delegation in all.filter(|delegation| delegation.covers(&self.path)) {
            below.push(delegation.clone());
            if delegation.terminating {
                self.waiting.clear();
                break;
            }
        }
        self.waiting.extend(below.into_iter().rev());
    }

    /// The next role that was not visited yet; its metadata is verified by the one that delegated to it on this way.
    pub(super) fn next(&mut self) -> Result<Option<Delegation>, TufError> {
        while let Some(delegation) = self.waiting.pop() {
            if self.visited.insert(delegation.name.clone()) {
                if self.visited.len() > MAX_VISITS {
                    return Err(TufError::TooManyDelegations { path: self.path.clone(), max: MAX_VISITS });
                }
                return Ok(Some(delegation));
            }
        }
        Ok(None)
    }
}

/// A role's name as one segment of a URL.
fn quoted(name: &str) -> String {
    use std::fmt::Write as _;
    name.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || b"_.-~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
        text
    })
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

    #[test]
    fn a_role_name_is_one_harmless_segment() {
        assert_eq!(quoted("../a b?#é"), "..%2Fa%20b%3F%23%C3%A9");
    }
}
