//! Delegated targets roles, and the search through them (TUF 4.5, 5.6.7). A machine's own repository has none: the search
//! is here for the conformance suite, and nothing that is shipped contains it.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::client::{Stage, Update};
use super::keyring::{Holders, Keys};
use super::metadata::{Listed, Pin, Role, Signed, Targets};
use super::{Result, TufError, require_form};
use crate::ids::Sha256;

/// The most delegated roles that one document may name, and that one search may visit.
const MAX_DELEGATIONS: usize = 1024;
const MAX_VISITS: usize = 32;

/// The roles that a document delegates to, in their order. Without `roles` they are succinct roles (TAP 15), which are
/// refused.
#[derive(Deserialize)]
pub(super) struct Delegations {
    keys: Keys,
    roles: Vec<Delegation>,
}

/// One role that another trusts for some paths.
#[derive(Clone, Deserialize)]
pub(super) struct Delegation {
    name: String,
    #[serde(flatten)]
    pub(super) holders: Holders,
    #[serde(default)]
    terminating: bool,
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
    fn covers(&self, path: &str) -> bool {
        let hash = Sha256::of(path.as_bytes()).hex();
        self.paths.iter().flatten().any(|pattern| path_matches(pattern, path))
            || self.path_hash_prefixes.iter().flatten().any(|prefix| hash.starts_with(prefix.as_str()))
    }

    /// The role's file in the words of the snapshot.
    pub(super) fn file(&self) -> String {
        format!("{}.json", self.name)
    }
}

/// `*` and `?` of the shell; neither matches `/`. Any other character stands for itself.
fn path_matches(pattern: &str, path: &str) -> bool {
    let (patterns, names) = (pattern.split('/'), path.split('/'));
    patterns.clone().count() == names.clone().count()
        && patterns.zip(names).all(|(pattern, name)| segment_matches(pattern, name))
}

/// Keeps which beginnings of the name the pattern so far may stand for: pattern × name steps, whatever stands in them.
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

/// A search for one path, depth first and in the order of the metadata.
pub(super) struct Search {
    pub(super) path: String,
    /// The next role to visit is the last.
    waiting: Vec<(Keys, Delegation)>,
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
        let Some(Delegations { keys, roles }) = &targets.delegations else { return };
        let mut below = Vec::new();
        for role in roles.iter().filter(|role| role.covers(&self.path)) {
            below.push((keys.clone(), role.clone()));
            if role.terminating {
                self.waiting.clear();
                break;
            }
        }
        self.waiting.extend(below.into_iter().rev());
    }

    /// The next role that was not visited yet; its metadata is verified by the one that delegated to it on this way.
    pub(super) fn next(&mut self) -> Result<Option<(Keys, Delegation)>> {
        while let Some(next) = self.waiting.pop() {
            if self.visited.insert(next.1.name.clone()) {
                if self.visited.len() > MAX_VISITS {
                    return Err(TufError::TooManyDelegations { path: self.path.clone(), max: MAX_VISITS });
                }
                return Ok(Some(next));
            }
        }
        Ok(None)
    }
}

/// What searches found, by path.
pub(super) type Found = BTreeMap<String, Listed>;

/// The role that is asked for now, and the search that it belongs to.
pub(super) struct Visit {
    search: Search,
    keys: Keys,
    role: Delegation,
    pin: Pin,
}

impl Visit {
    pub(super) fn file(&self) -> String {
        self.role.file()
    }
    pub(super) fn pin(&self) -> &Pin {
        &self.pin
    }
}

impl Update {
    /// Looks for a target through the delegations (5.6.7); go on with [`Update::next`], then ask [`Update::listed`].
    pub fn find(&mut self, path: &str) -> Result<()> {
        match (&self.stage, &self.targets) {
            (Stage::Done, Some(targets)) if self.listed(path).is_none() => {
                self.visit_next(Search::start(path, &targets.body))
            }
            _ => Ok(()),
        }
    }

    fn visit_next(&mut self, mut search: Search) -> Result<()> {
        self.stage = Stage::Refused;
        self.stage = match search.next()? {
            None => Stage::Done,
            Some((keys, role)) => {
                let pins = self.snapshot.as_ref().map(|snapshot| &snapshot.body.meta.delegated);
                let pin = pins.and_then(|pins| pins.get(&role.file())).cloned();
                let pin = pin.ok_or_else(|| TufError::Missing { what: role.file() })?;
                Stage::Delegated(Box::new(Visit { search, keys, role, pin }))
            }
        };
        Ok(())
    }

    pub(super) fn take_delegated(&mut self, visit: Visit, bytes: &[u8]) -> Result<()> {
        let Visit { mut search, keys, role, pin } = visit;
        let targets: Signed<Targets> = pin.open(&role.file(), (&keys, &role.holders), bytes, self.now)?;
        if let Some(listed) = targets.body.targets.get(&search.path) {
            self.found.insert(search.path, listed.clone());
            self.stage = Stage::Done;
            return Ok(());
        }
        search.descend(&targets.body);
        self.visit_next(search)
    }
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
