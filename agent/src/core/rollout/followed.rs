//! What a machine says of the generation of a plan that it runs. `confirmed` at once; `soaked` after it has
//! run well for the soak, by its own time awake; `withdrawn`, for good, if it went back later.

use muster_protocol::ids::{Generation, MachineName, Sha256, StorePath};
use muster_protocol::keys::{PublicKey, SecretKey};
use muster_protocol::plan::{Claim, Place, Plan, RolloutName, Said, Vouch, Voucher};
use muster_protocol::target::Target;
use serde::{Deserialize, Serialize};

/// How much soak may be lost in a crash, in milliseconds.
const WRITTEN_EVERY_MS: u64 = 60_000;

/// The part of a plan that a voucher needs, and what it has to say.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Followed {
    pub plan: Sha256,
    /// The rollout's name, for people.
    pub name: RolloutName,
    /// The name of the machine's wave, for people.
    pub wave: String,
    /// The newest confirmed generation of the plan. Refreshed signatures raise it, and change nothing else.
    pub generation: Generation,
    pub output: StorePath,
    /// The key that the plan has of this machine. Nothing is said once that is gone.
    pub key: PublicKey,
    #[serde(default)]
    pub soak_seconds: u64,
    /// How long it has run well, in milliseconds of time awake.
    #[serde(default)]
    pub soaked_ms: u64,
    pub said: Said,
    /// The units that had failed when it was confirmed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub failed: Vec<String>,
}

/// What is observed of the machine while it soaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// It runs the followed generation, and nothing else is being activated.
    pub runs: bool,
    /// Somebody else changed its system.
    pub drifted: bool,
    /// How long it has run since it was last counted, in milliseconds of time awake.
    pub passed_ms: u64,
}

/// What follows from it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counted {
    Nothing,
    /// To be stored.
    Changed(Box<Followed>),
    /// The soak is over: look whether the machine is well, and then see [`Followed::examined`].
    Over,
}

impl Followed {
    /// What a machine will have to say of this target; `None` where the plan does not ask it.
    pub fn of(plan: &Plan, machine: &MachineName, target: &Target) -> Option<Self> {
        let Place { plan: hash, wave } = target.rollout?;
        let wave = plan.waves.get(usize::try_from(wave).ok()?)?;
        let own = |voucher: &&Voucher| &voucher.machine == machine && voucher.output == target.output;
        let voucher = wave.vouchers.iter().find(own)?;
        Some(Self {
            plan: hash,
            name: plan.name.clone(),
            wave: wave.name.clone(),
            generation: target.generation,
            output: target.output.clone(),
            key: voucher.key,
            soak_seconds: wave.soak_seconds,
            soaked_ms: 0,
            said: Said::Confirmed,
            failed: Vec::new(),
        })
    }

    /// What is followed after a generation at `place` was confirmed that `begins` to be followed, or is not.
    /// A generation without a place leaves it as it is: a newer generation says nothing about an older one.
    pub fn confirmed(
        before: Option<Self>,
        begins: Option<Self>,
        place: Option<Place>,
        degraded: &[String],
    ) -> Option<Self> {
        match (before, begins) {
            (Some(before), Some(begins)) if before.is_of(&begins) => {
                Some(Self { generation: begins.generation, ..before })
            }
            (_, Some(begins)) => Some(Self { failed: degraded.to_vec(), ..begins }),
            (before, None) => before.filter(|before| place.is_none_or(|place| place.plan == before.plan)),
        }
    }

    fn is_of(&self, other: &Self) -> bool {
        (&self.plan, &self.output, &self.key) == (&other.plan, &other.output, &other.key)
    }

    /// Somebody at the machine went back from `generation`.
    #[must_use]
    pub fn went_back(self, generation: Generation) -> Self {
        if self.generation == generation { self.withdrawn() } else { self }
    }

    fn withdrawn(self) -> Self {
        Self { said: Said::Withdrawn, ..self }
    }

    /// Counts the time that passed. Drift begins a soak anew, and voids one that was said to be over.
    pub fn count(&self, seen: Seen) -> Counted {
        match self.said {
            Said::Soaked if seen.drifted => return Counted::Changed(Box::new(self.clone().withdrawn())),
            Said::Confirmed if seen.drifted && self.soaked_ms > 0 => {
                return Counted::Changed(Box::new(Self { soaked_ms: 0, ..self.clone() }));
            }
            Said::Confirmed if seen.runs && !seen.drifted => {}
            Said::Confirmed | Said::Soaked | Said::Withdrawn => return Counted::Nothing,
        }
        let soaked_ms = self.soaked_ms.saturating_add(seen.passed_ms);
        if soaked_ms >= self.soak_ms() {
            Counted::Over
        } else if seen.passed_ms >= WRITTEN_EVERY_MS {
            Counted::Changed(Box::new(Self { soaked_ms, ..self.clone() }))
        } else {
            Counted::Nothing
        }
    }

    /// When to count again, in milliseconds of time awake; `None` if there is nothing to count.
    pub fn again(&self, seen: Seen) -> Option<u64> {
        let left = self.soak_ms().saturating_sub(self.soaked_ms).saturating_sub(seen.passed_ms);
        let soaks = self.said == Said::Confirmed && seen.runs && !seen.drifted;
        soaks.then(|| left.clamp(1, WRITTEN_EVERY_MS))
    }

    fn soak_ms(&self) -> u64 {
        self.soak_seconds.saturating_mul(1000)
    }

    /// After the soak its checks were asked once more, and the failed units listed. A unit that had failed
    /// when the generation was confirmed says nothing about it.
    #[must_use]
    pub fn examined(&self, checks_pass: bool, failed: &[String]) -> Self {
        if checks_pass && failed.iter().all(|unit| self.failed.contains(unit)) {
            Self { said: Said::Soaked, soaked_ms: self.soak_ms(), ..self.clone() }
        } else {
            Self { soaked_ms: 0, ..self.clone() }
        }
    }

    /// What is said now, signed by `key`; `None` if that is not the key that the plan has.
    pub fn vouch(&self, fleet: &Sha256, machine: &MachineName, key: &SecretKey) -> Option<Vouch> {
        if key.public() != self.key {
            return None;
        }
        let Self { plan: hash, output, said, .. } = self;
        // A claim names the fleet and the epoch of its plan, and nothing else of it but its hash.
        let plan = Plan {
            fleet: *fleet,
            epoch: self.generation.epoch(),
            name: self.name.clone(),
            nonce: *hash,
            waves: Vec::new(),
            after: Vec::new(),
            budget: 0,
            failures: Vec::new(),
        };
        let voucher = Voucher { machine: machine.clone(), key: self.key, output: output.clone() };
        let claim = Claim { hash: *hash, plan: &plan, voucher: &voucher, said: *said };
        Some(Vouch { plan: *hash, said: *said, signature: claim.sign(key) })
    }
}

#[cfg(test)]
mod tests;
