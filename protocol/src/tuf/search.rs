//! The search for a target through delegated roles (TUF 5.6.7), for the conformance suite alone.

use std::collections::{BTreeMap, BTreeSet};

use super::delegation::{Delegation, Delegations};
use super::keyring::Keys;
use super::metadata::{Listed, Pin, Targets};
use super::{Result, TufError};

/// The most delegated roles that one search may visit.
const MAX_VISITS: usize = 32;

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

    /// Puts what `targets` delegates for this path in front of everything that waits; a terminating
    /// delegation drops the rest.
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

    /// The next role that has not been visited; its metadata is verified with the keys of the role that
    /// delegated to it on this path.
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

/// What searches have found, by path.
pub(super) type Found = BTreeMap<String, Listed>;

/// The role being fetched, and the search it belongs to.
pub(super) struct Visit {
    pub(super) search: Search,
    pub(super) keys: Keys,
    pub(super) role: Delegation,
    pub(super) pin: Pin,
}

impl Visit {
    pub(super) fn file(&self) -> String {
        self.role.file()
    }
    pub(super) fn pin(&self) -> &Pin {
        &self.pin
    }
}
