//! Delegated targets roles, and the search through them (TUF 4.5, 5.6.7). A machine's own repository has none;
//! the search is here for the conformance suite, and so that one core reads every TUF repository.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::Value;

use super::TufError;
use super::keyring::{Authority, KeyRing, RawKey, RawRole};
use super::metadata::{Role, Targets};
use crate::ids::Sha256;

/// The most delegated roles that one document may name, and that one search may visit.
const MAX_DELEGATIONS: usize = 1024;
pub(super) const MAX_VISITS: usize = 32;

/// One role that another trusts for some paths.
#[derive(Clone)]
pub(super) struct Delegation {
    pub(super) name: String,
    pub(super) authority: Authority,
    terminating: bool,
    paths: Paths,
}

#[derive(Clone)]
enum Paths {
    Patterns(Vec<String>),
    HashPrefixes(Vec<String>),
}

impl Delegation {
    pub(super) fn parse_all(what: &str, value: &Value) -> Result<Vec<Self>, TufError> {
        #[derive(Deserialize)]
        struct Raw {
            keys: BTreeMap<String, RawKey>,
            // Without `roles` it would be succinct roles (TAP 15), which nobody here uses.
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
        let raw = Raw::deserialize(value).map_err(|why| TufError::malformed(what, why))?;
        if raw.roles.len() > MAX_DELEGATIONS {
            return Err(TufError::malformed(
                what,
                format!("it delegates to more than {MAX_DELEGATIONS} roles"),
            ));
        }
        let ring = KeyRing::parse(what, &raw.keys)?;
        let mut delegations: Vec<Self> = Vec::new();
        for role in raw.roles {
            let reserved = Role::ALL.iter().any(|reserved| reserved.as_str() == role.name);
            if reserved || role.name.is_empty() {
                return Err(TufError::malformed(
                    what,
                    format!("it delegates to the reserved name '{}'", role.name),
                ));
            }
            if delegations.iter().any(|other| other.name == role.name) {
                return Err(TufError::malformed(what, format!("it delegates twice to '{}'", role.name)));
            }
            let paths = match (role.paths, role.path_hash_prefixes) {
                (Some(patterns), None) => Paths::Patterns(patterns),
                (None, Some(prefixes)) => Paths::HashPrefixes(prefixes),
                _ => {
                    let why = format!("'{}' needs either paths or path_hash_prefixes", role.name);
                    return Err(TufError::malformed(what, why));
                }
            };
            let authority = ring.authority(what, &role.role)?;
            delegations.push(Self { name: role.name, authority, terminating: role.terminating, paths });
        }
        Ok(delegations)
    }

    fn covers(&self, path: &str) -> bool {
        match &self.paths {
            Paths::Patterns(patterns) => patterns.iter().any(|pattern| path_matches(pattern, path)),
            Paths::HashPrefixes(prefixes) => {
                let hash = Sha256::of(path.as_bytes()).hex();
                prefixes.iter().any(|prefix| hash.starts_with(prefix.as_str()))
            }
        }
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
        for delegation in targets.delegations.iter().filter(|delegation| delegation.covers(&self.path)) {
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
            if !self.visited.insert(delegation.name.clone()) {
                continue;
            }
            if self.visited.len() > MAX_VISITS {
                return Err(TufError::TooManyDelegations { path: self.path.clone(), max: MAX_VISITS });
            }
            return Ok(Some(delegation));
        }
        Ok(None)
    }
}

/// A role's name as one segment of a URL and of a file's name.
pub(super) fn quoted(name: &str) -> String {
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
