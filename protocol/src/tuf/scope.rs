//! What a machine wants of its repository beyond TUF: that it is its own, and never goes back.

use serde::Deserialize;

use super::TufError;
use super::client::Stored;
use super::metadata::{Listed, Role, Signed, Targets};
use crate::api;
use crate::ids::{Generation, MachineName};
use crate::machine::Class;
use crate::target::MAX_TARGET_BYTES;

/// Whose repository this is, and the lowest generation to accept.
#[derive(Debug, Clone)]
pub struct Scope {
    pub machine: MachineName,
    pub class: Class,
    pub lowest: Generation,
}

impl Scope {
    /// A machine's targets list its one target and nothing else, and say whose it is, and which.
    pub(super) fn require_target<'a>(&self, targets: &'a Signed<Targets>) -> Result<&'a Listed, TufError> {
        #[derive(Deserialize)]
        struct Custom {
            machine: String,
            class: String,
            generation: u64,
        }
        let (what, path) = (Role::Targets.file(), api::target_name(&self.machine));
        let Targets { targets: list, delegations: None } = &targets.body else {
            return Err(TufError::malformed(what, "a machine's targets delegate to nobody"));
        };
        let Some(listed) = list.get(&path).filter(|_| list.len() == 1) else {
            return Err(TufError::malformed(what, format!("it must list {path} and nothing else")));
        };
        let custom = listed.custom.as_ref().unwrap_or(&serde_json::Value::Null);
        let custom = Custom::deserialize(custom).map_err(|why| TufError::malformed(what, why))?;
        if custom.machine != self.machine.as_str() {
            let (wanted, found) = (self.machine.clone(), Some(custom.machine));
            return Err(TufError::ForeignMachine { what: path, wanted, found });
        }
        if custom.class != self.class.as_str() {
            return Err(TufError::WrongClass { wanted: self.class, found: custom.class });
        }
        if custom.generation != targets.version() {
            let why = format!("generation {} stands in version {}", custom.generation, targets.version());
            return Err(TufError::not_the_pinned(&path, why));
        }
        if listed.hashes.sha256.is_none() {
            return Err(TufError::malformed(what, "its target has no sha256"));
        }
        if listed.length > MAX_TARGET_BYTES {
            return Err(TufError::TooLong { what: path, max: MAX_TARGET_BYTES });
        }
        Ok(listed)
    }

    /// No rotation of keys lowers the generation: what was held once is the floor, whoever may sign today.
    pub(super) fn floor(&self, stored: &Stored) -> u64 {
        let held = stored.targets.as_deref().and_then(|bytes| Signed::<Targets>::unverified(bytes).ok());
        let held = held.filter(|targets| targets.require_machine(&self.machine).is_ok());
        held.map_or(0, |targets| targets.version()).max(self.lowest.get())
    }
}
