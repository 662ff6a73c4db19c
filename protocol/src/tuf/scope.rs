//! What a machine requires of its repository beyond TUF: that it is its own, and never goes back.

use serde::Deserialize;

use super::metadata::{Body, Listed, Role, Signed, Targets};
use super::stored::Stored;
use super::{Result, TufError, require_epoch, require_form, require_near, require_pinned};
use crate::api;
use crate::ids::{Epoch, Generation, MAX_NUMBER, MachineName};
use crate::machine::Class;
use crate::target::MAX_TARGET_BYTES;

/// Whose repository this is, and the lowest generation to accept.
#[derive(Debug, Clone)]
pub struct Scope {
    /// Metadata for any other machine is refused.
    pub machine: MachineName,
    /// Targets for the other class are refused.
    pub class: Class,
    /// From the enrolment token: the floor while the machine holds nothing.
    pub lowest: Generation,
}

impl Scope {
    /// Requires that targets list this machine's target and nothing else, and name the machine, its class
    /// and the generation.
    pub(super) fn require_target<'a>(&self, targets: &'a Signed<Targets>) -> Result<&'a Listed> {
        #[derive(Deserialize)]
        struct Custom {
            machine: String,
            class: String,
            generation: Generation,
        }
        let (what, list) = (Role::Targets.file(), &targets.body.targets);
        let [plain, gated] = [api::target_name(&self.machine), api::gated_name(&self.machine)];
        let path = if list.contains_key(&gated) { gated } else { plain };
        require_form(what, targets.body.delegations.is_none(), "a machine's targets delegate to nobody")?;
        let Some(listed) = list.get(&path).filter(|_| list.len() == 1) else {
            return Err(TufError::malformed(what, format_args!("it must list {path} and nothing else")));
        };
        let Custom { machine, class, generation } =
            Custom::deserialize(&listed.custom).map_err(|why| TufError::malformed(what, why))?;
        if machine != self.machine.as_str() {
            let (wanted, found) = (self.machine.clone(), Some(machine));
            return Err(TufError::ForeignMachine { what: path, wanted, found });
        }
        if class != self.class.as_str() {
            return Err(TufError::WrongClass { wanted: self.class, found: class });
        }
        let why = format!("it is generation {generation}, and its metadata is version {}", targets.version());
        let own = generation.epoch() == targets.epoch && generation.get() == targets.version();
        require_pinned(&path, own, why)?;
        require_form(what, listed.hashes.sha256.is_some(), "its target has no sha256")?;
        if listed.length > MAX_TARGET_BYTES {
            return Err(TufError::TooLong { what: path, max: MAX_TARGET_BYTES });
        }
        Ok(listed)
    }

    /// Requires metadata of this machine and of the root's epoch, with a number that leaves room above it.
    pub(super) fn require_own<B: Body>(&self, signed: &Signed<B>, epoch: Epoch) -> Result<()> {
        signed.require_machine(&self.machine)?;
        require_epoch(B::ROLE.file(), signed.epoch, epoch)?;
        require_near(B::ROLE.file(), signed.version(), MAX_NUMBER)
    }

    /// The lowest generation to accept. Rotating keys does not lower it: what was held once is the floor,
    /// whoever may sign today. Only a new epoch leaves it behind, and the token's lowest generation with
    /// it.
    pub(super) fn floor(&self, stored: &Stored, epoch: Epoch) -> Result<u64> {
        if self.lowest.epoch() > epoch {
            require_epoch(Role::Root.file(), epoch, self.lowest.epoch())?;
        }
        let held = stored.targets.as_deref().and_then(|bytes| Signed::<Targets>::unverified(bytes).ok());
        let held = held.filter(|held| held.require_machine(&self.machine).is_ok() && held.epoch == epoch);
        let lowest = if self.lowest.epoch() == epoch { self.lowest.get() } else { 0 };
        Ok(held.map_or(0, |targets| targets.version()).max(lowest))
    }
}
