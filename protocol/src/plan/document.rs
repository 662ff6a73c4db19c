//! The plan itself: its form, and what must hold for every one.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::ids::{Epoch, IdError, MachineName, Sha256, StorePath};
use crate::keys::PublicKey;
use crate::policy::{MAX_WINDOWS, PolicyError, Window};
use crate::text_id;

/// The largest plan, in bytes: 10,000 machines with long names in 32 waves.
pub const MAX_PLAN_BYTES: u64 = 2 * 1024 * 1024;
/// The most waves in a plan.
pub const MAX_WAVES: usize = 32;
/// The most machines in a plan.
pub const MAX_MEMBERS: usize = 10_000;
/// The most machines of one wave that may vouch for it, so that a gate stays small.
pub const MAX_VOUCHERS: usize = 64;
/// The most machines that one machine waits for by [`Plan::after`].
pub const MAX_PREDECESSORS: usize = 16;
/// The longest soak: 30 days.
pub const MAX_SOAK_SECONDS: u64 = 30 * 86_400;
/// The longest name of a wave, in bytes.
pub const MAX_WAVE_NAME: usize = 64;
/// The feature of agents that a gated target requires ([`crate::target::Target::requires`]).
pub const FEATURE: &str = "rollouts";

text_id!(
    /// The name of a rollout, as the flake gives it; safe as a path segment.
    RolloutName,
    IdError::RolloutName,
    crate::ids::is_plain_name
);

/// Where a target stands in a rollout.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Place {
    /// SHA-256 of the plan's bytes.
    pub plan: Sha256,
    /// The machine's wave, counted from 0.
    pub wave: u32,
}

/// The order of one rollout. Unknown fields are ignored, and a field is never removed.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Plan {
    /// The fleet (SHA-256 of `1.root.json`).
    pub fleet: Sha256,
    /// The epoch of the root that its targets are signed under.
    #[serde(default, skip_serializing_if = "Epoch::is_first")]
    pub epoch: Epoch,
    /// What people call it.
    pub name: RolloutName,
    /// 32 random bytes: two rollouts of the same systems never share a statement.
    pub nonce: Sha256,
    /// In their order; 1 to [`MAX_WAVES`].
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_WAVES>")]
    pub waves: Vec<Wave>,
    /// Machines that wait for another one besides.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::list::<_, _, MAX_MEMBERS>"
    )]
    pub after: Vec<After>,
    /// How many machines may fail; one more halts the rollout. Kept by the controller.
    #[serde(default)]
    pub budget: u32,
    /// What counts as a failure. Kept by the controller.
    #[serde(default = "Failure::all", deserialize_with = "bounded::list::<_, _, 8>")]
    pub failures: Vec<Failure>,
}

/// Machines that switch in one go.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Wave {
    /// What people call it, `canaries` for example.
    #[serde(deserialize_with = "bounded::text::<_, MAX_WAVE_NAME>")]
    pub name: String,
    /// Its machines, in the order in which they begin; at least one.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_MEMBERS>")]
    pub members: Vec<MachineName>,
    /// Those of its machines whose word counts for it.
    #[serde(default, deserialize_with = "bounded::list::<_, _, MAX_VOUCHERS>")]
    pub vouchers: Vec<Voucher>,
    /// How many of the vouchers must have soaked before a later wave begins. 0 for the last wave alone.
    pub at_least: u32,
    /// How many of every 100 members must have, before an honest controller lets the next wave begin. Where
    /// all members are vouchers this says the same as `at_least`.
    #[serde(default)]
    pub percent: u8,
    /// How long a machine runs its output well before it says so, in seconds of its time awake.
    #[serde(default)]
    pub soak_seconds: u64,
    /// How many of its machines may switch at the same time. Kept by the controller.
    pub max_in_flight: u32,
    /// When its machines may switch; empty: at any time. Besides the windows of the target's own policy.
    #[serde(
        default,
        skip_serializing_if = "Vec::is_empty",
        deserialize_with = "bounded::list::<_, _, MAX_WINDOWS>"
    )]
    pub windows: Vec<Window>,
}

/// A machine whose word counts, and what it counts for.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Voucher {
    /// A member of its wave.
    pub machine: MachineName,
    /// The key it signed with when the plan was made, as the machine itself proved it to an operator.
    pub key: PublicKey,
    /// The only output that its word counts for.
    pub output: StorePath,
}

/// A machine that switches only after another one is confirmed.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct After {
    /// The machine that waits.
    pub machine: MachineName,
    /// The machine that comes first: a voucher of the same wave or of an earlier one.
    pub first: MachineName,
}

/// What counts against a plan's budget.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Failure {
    /// The generation was undone, or ended before its activation and was quarantined.
    RolledBack,
    /// It was confirmed with failed units.
    Degraded,
    /// Somebody must look.
    NeedsHuman,
    /// A kind of a later version; it counts for nothing here.
    #[serde(other)]
    Unknown,
}

impl Failure {
    /// Every kind that this version knows.
    pub fn all() -> Vec<Self> {
        vec![Self::RolledBack, Self::Degraded, Self::NeedsHuman]
    }
}

/// Why a document is not a plan, or not this target's.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// Not the JSON of a plan.
    #[error("this is not a rollout plan: {0}")]
    Format(#[from] serde_json::Error),
    /// Longer than [`MAX_PLAN_BYTES`].
    #[error("the plan has {0} bytes; {MAX_PLAN_BYTES} are the limit")]
    TooLarge(usize),
    /// It has no waves, or too many.
    #[error("the plan has {0} waves; 1 to {MAX_WAVES} are allowed")]
    Waves(usize),
    /// It has too many machines.
    #[error("the plan has {0} machines; {MAX_MEMBERS} are the limit")]
    Members(usize),
    /// A wave without machines.
    #[error("wave '{0}' has no machine")]
    EmptyWave(String),
    /// A machine that is in two waves, or twice in one.
    #[error("{0} is in the plan twice; a machine belongs to one wave")]
    Twice(MachineName),
    /// A voucher that is no member of its wave, or is listed twice.
    #[error("{machine} vouches for wave '{wave}' but is not one of its machines, or is listed twice")]
    Voucher {
        /// Its name.
        machine: MachineName,
        /// The wave.
        wave: String,
    },
    /// One key that would count twice.
    #[error("{first} and {second} have the same key in the plan, so one machine could speak for two")]
    SharedKey {
        /// One of them.
        first: MachineName,
        /// The other one.
        second: MachineName,
    },
    /// A voucher's key is none that a machine has.
    #[error("{0} cannot vouch with a security key: a machine signs with a plain one")]
    NotPlain(MachineName),
    /// More successes than vouchers can give.
    #[error(
        "wave '{wave}' asks for {at_least} machines that have soaked, and {vouchers} of its machines can \
         vouch: ask for fewer, or for a percentage"
    )]
    AtLeast {
        /// The wave.
        wave: String,
        /// What it asks for.
        at_least: u32,
        /// How many can vouch.
        vouchers: usize,
    },
    /// A gate that anybody passes.
    #[error("wave '{0}' asks for no machine that has soaked, so it holds nothing back: ask for 1 or more")]
    NoGate(String),
    /// A number that is out of its bounds.
    #[error("{what} of wave '{wave}' is {value}; {bounds}")]
    Bounds {
        /// Which number.
        what: &'static str,
        /// The wave.
        wave: String,
        /// Its value.
        value: u64,
        /// What is allowed.
        bounds: &'static str,
    },
    /// Its windows make no sense.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// An order between machines that cannot be kept.
    #[error("{machine} cannot wait for {first}: {why}")]
    After {
        /// The machine that waits.
        machine: MachineName,
        /// What it waits for.
        first: MachineName,
        /// Why it cannot.
        why: &'static str,
    },
    /// It is of another fleet or epoch.
    #[error("the plan is of another {0}")]
    Foreign(&'static str),
    /// Its bytes are not those that the target names.
    #[error("the plan has SHA-256 {}, and the target names {}", found.short(), wanted.short())]
    OtherPlan {
        /// What the target names.
        wanted: Sha256,
        /// What came.
        found: Sha256,
    },
    /// The target's machine is not where the target says.
    #[error("the plan does not have {machine} in wave {wave} with the output of its target")]
    NotItsPlace {
        /// The target's machine.
        machine: MachineName,
        /// The wave that the target names, counted from 1.
        wave: u32,
    },
}

impl Plan {
    /// Reads and checks a plan; nothing of it is used before this succeeds.
    pub fn parse(bytes: &[u8]) -> Result<Self, PlanError> {
        if bytes.len() as u64 > MAX_PLAN_BYTES {
            return Err(PlanError::TooLarge(bytes.len()));
        }
        let plan: Self = serde_json::from_slice(bytes)?;
        plan.check()?;
        Ok(plan)
    }

    /// Reads the plan that a target names, from bytes that anybody may have sent.
    pub fn parse_named(bytes: &[u8], wanted: Sha256) -> Result<Self, PlanError> {
        let found = Sha256::of(bytes);
        if found == wanted { Self::parse(bytes) } else { Err(PlanError::OtherPlan { wanted, found }) }
    }

    /// Its bytes, as they are hashed and stored.
    pub fn to_bytes(&self) -> Result<Vec<u8>, PlanError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Checks what must hold for every plan, whoever made it.
    pub fn check(&self) -> Result<(), PlanError> {
        if !(1..=MAX_WAVES).contains(&self.waves.len()) {
            return Err(PlanError::Waves(self.waves.len()));
        }
        let count = self.waves.iter().map(|wave| wave.members.len()).sum();
        if count > MAX_MEMBERS {
            return Err(PlanError::Members(count));
        }
        let mut seen = BTreeSet::new();
        if let Some(twice) = self.waves.iter().flat_map(|wave| &wave.members).find(|name| !seen.insert(*name))
        {
            return Err(PlanError::Twice(twice.clone()));
        }
        let mut keys = BTreeMap::new();
        for voucher in self.waves.iter().flat_map(|wave| &wave.vouchers) {
            voucher.key.require_plain().map_err(|_| PlanError::NotPlain(voucher.machine.clone()))?;
            if let Some(first) = keys.insert(*voucher.key.as_bytes(), &voucher.machine) {
                let (first, second) = (first.clone(), voucher.machine.clone());
                return Err(PlanError::SharedKey { first, second });
            }
        }
        let last = self.waves.len() - 1;
        for (number, wave) in self.waves.iter().enumerate() {
            wave.check(number == last)?;
        }
        self.check_after()
    }

    fn check_after(&self) -> Result<(), PlanError> {
        let waves = self.waves_of();
        let mut first_of: BTreeMap<&MachineName, Vec<&MachineName>> = BTreeMap::new();
        for After { machine, first } in &self.after {
            let refused = |why| PlanError::After { machine: machine.clone(), first: first.clone(), why };
            let (Some(own), Some(other)) = (waves.get(machine), waves.get(first)) else {
                return Err(refused("both must be machines of the plan"));
            };
            if other > own {
                return Err(refused("it is in a later wave"));
            }
            if self.voucher(first).is_none() {
                return Err(refused("the plan has no key of it"));
            }
            let all = first_of.entry(machine).or_default();
            all.push(first);
            if all.len() > MAX_PREDECESSORS {
                return Err(refused("it waits for 16 machines already"));
            }
        }
        // What waits for nothing that is left is taken away; what remains waits for itself.
        let mut left: BTreeSet<&MachineName> = first_of.keys().copied().collect();
        loop {
            let free: Vec<_> = left
                .iter()
                .copied()
                .filter(|name| first_of[name].iter().all(|first| !left.contains(first)))
                .collect();
            if free.is_empty() {
                break;
            }
            left.retain(|name| !free.contains(name));
        }
        match self.after.iter().find(|after| left.contains(&after.machine) && left.contains(&after.first)) {
            Some(After { machine, first }) => Err(PlanError::After {
                machine: machine.clone(),
                first: first.clone(),
                why: "it waits for the other in turn",
            }),
            None => Ok(()),
        }
    }

    /// The wave of each machine, counted from 0.
    pub fn waves_of(&self) -> BTreeMap<&MachineName, usize> {
        let waves = self.waves.iter().enumerate();
        waves.flat_map(|(number, wave)| wave.members.iter().map(move |name| (name, number))).collect()
    }

    /// The voucher of this name, in whichever wave.
    pub fn voucher(&self, machine: &MachineName) -> Option<&Voucher> {
        self.waves.iter().flat_map(|wave| &wave.vouchers).find(|voucher| &voucher.machine == machine)
    }

    /// The machines that this one waits for besides its gate.
    pub fn first_of<'a>(&'a self, machine: &'a MachineName) -> impl Iterator<Item = &'a MachineName> {
        self.after.iter().filter(move |after| &after.machine == machine).map(|after| &after.first)
    }

    /// Requires that the plan is of this fleet and epoch, and has the machine in that wave; where the machine
    /// vouches, for the same output.
    pub fn require_place(
        &self,
        (fleet, epoch): (&Sha256, Epoch),
        machine: &MachineName,
        output: &StorePath,
        place: &Place,
    ) -> Result<(), PlanError> {
        if self.fleet != *fleet {
            return Err(PlanError::Foreign("fleet"));
        }
        if self.epoch != epoch {
            return Err(PlanError::Foreign("epoch"));
        }
        let wave = usize::try_from(place.wave).ok().and_then(|wave| self.waves.get(wave));
        let own = wave.filter(|wave| wave.members.contains(machine));
        let same = |wave: &&Wave| {
            wave.vouchers.iter().all(|voucher| &voucher.machine != machine || &voucher.output == output)
        };
        match own.filter(same) {
            Some(_) => Ok(()),
            None => {
                let wave = place.wave.saturating_add(1);
                Err(PlanError::NotItsPlace { machine: machine.clone(), wave })
            }
        }
    }
}

impl Wave {
    fn check(&self, is_last: bool) -> Result<(), PlanError> {
        let name = || self.name.clone();
        if self.members.is_empty() {
            return Err(PlanError::EmptyWave(name()));
        }
        let members: BTreeSet<&MachineName> = self.members.iter().collect();
        let mut listed = BTreeSet::new();
        for Voucher { machine, .. } in &self.vouchers {
            if !members.contains(machine) || !listed.insert(machine) {
                return Err(PlanError::Voucher { machine: machine.clone(), wave: name() });
            }
        }
        if self.at_least as usize > self.vouchers.len() {
            let (at_least, vouchers) = (self.at_least, self.vouchers.len());
            return Err(PlanError::AtLeast { wave: name(), at_least, vouchers });
        }
        if self.at_least == 0 && !is_last {
            return Err(PlanError::NoGate(name()));
        }
        let bounds = [
            ("maxInFlight", u64::from(self.max_in_flight), 1, MAX_MEMBERS as u64, "1 to 10000 are allowed"),
            ("soak", self.soak_seconds, 0, MAX_SOAK_SECONDS, "30 days are the limit"),
            ("percent", u64::from(self.percent), 0, 100, "100 is the limit"),
        ];
        for (what, value, low, high, bounds) in bounds {
            if !(low..=high).contains(&value) {
                return Err(PlanError::Bounds { what, wave: name(), value, bounds });
            }
        }
        Ok(crate::policy::check_windows(&self.windows)?)
    }
}
