//! Follows delegations to a target (TUF 5.6.7), for the conformance suite alone.

use super::{Stage, Update};
use crate::tuf::metadata::{Signed, Targets};
use crate::tuf::search::{Search, Visit};
use crate::tuf::{Result, TufError};

impl Update {
    /// Searches the delegations for a target (5.6.7). Continue with [`Update::next`], then call
    /// [`Update::listed`].
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
