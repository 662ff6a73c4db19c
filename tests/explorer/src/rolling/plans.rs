//! The plans of a scene, the targets that name them, and what machines can sign about them, made once.

use muster_protocol::ids::{Epoch, Generation, MachineName, Sha256, StorePath};
use muster_protocol::keys::Signature;
use muster_protocol::machine::Class;
use muster_protocol::plan::{After, Claim, FEATURE, Failure, Place, Plan, Said, Voucher, Wave};
use muster_protocol::target::{Action, Target};
use muster_server::rollout::engine::LEAVE_SECONDS;

use crate::server::{Cast, MACHINES, STRANGER, system};

/// The most machines in a scene.
pub const MOST: usize = 4;
/// One step of time: as long as leave holds, and as long as a machine may be silent.
pub const TICK_S: u64 = LEAVE_SECONDS;
pub const TICK_MS: u64 = TICK_S * 1000;
/// The keys of machines that change theirs, after those that the plans name.
const ROTATED: u8 = MACHINES + 4;
const REPLACED: u8 = MACHINES + 5;

/// A wave as a scene writes it.
#[derive(Debug, Clone, Copy)]
pub struct Rank {
    pub machines: &'static [u8],
    /// Those that do not vouch.
    pub silent: &'static [u8],
    pub at_least: u32,
    pub percent: u8,
    /// In ticks.
    pub soak: u64,
    pub most: u32,
}

/// A plan as a scene writes it.
#[derive(Debug, Clone, Copy)]
pub struct Outline {
    pub waves: &'static [Rank],
    /// Who comes after whom.
    pub after: &'static [(u8, u8)],
    pub budget: u32,
    /// Which system it brings.
    pub system: u8,
}

/// Which key a machine has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Key {
    /// The one in the plans.
    #[default]
    Named,
    /// Another, with the former still at hand.
    Rotated,
    /// That of a computer which has taken its place.
    Replaced,
}

/// Whose signature is under a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Signed {
    Itself,
    /// Another machine of the plan.
    Other,
    Stranger,
}

pub struct Planned {
    pub hash: Sha256,
    pub plan: Plan,
    pub document: Vec<u8>,
    /// By machine; none for those that are not in it.
    pub targets: Vec<Option<Target>>,
    /// By machine, word and signer.
    words: Vec<[[Signature; 3]; 3]>,
}

pub const SAID: [Said; 3] = [Said::Confirmed, Said::Soaked, Said::Withdrawn];

pub fn number(said: Said) -> usize {
    match said {
        Said::Confirmed => 0,
        Said::Soaked => 1,
        Said::Withdrawn => 2,
    }
}

pub fn names() -> Option<Vec<MachineName>> {
    (0..MOST).map(|n| format!("m{n}").parse().ok()).collect()
}

/// The n-th system, or its derivation.
pub fn path(system: u8, end: &str) -> Option<StorePath> {
    format!("/nix/store/{system}c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system{end}").parse().ok()
}

/// The key of the machine in the cast.
pub fn key_of(who: usize, key: Key) -> u8 {
    match key {
        Key::Named => MACHINES + u8::try_from(who).unwrap_or(0),
        Key::Rotated => ROTATED,
        Key::Replaced => REPLACED,
    }
}

impl Planned {
    /// The plan of the generation with this number.
    pub fn new(outline: &Outline, generation: u8, cast: &Cast, names: &[MachineName]) -> Option<Self> {
        let name = |n: &u8| names[usize::from(*n)].clone();
        let output = path(outline.system, "")?;
        let voucher = |n: &u8| Voucher {
            machine: name(n),
            key: cast.key(key_of(usize::from(*n), Key::Named)),
            output: output.clone(),
        };
        let wave = |(number, rank): (usize, &Rank)| Wave {
            name: format!("w{number}"),
            members: rank.machines.iter().map(name).collect(),
            vouchers: rank.machines.iter().filter(|n| !rank.silent.contains(n)).map(voucher).collect(),
            at_least: rank.at_least,
            percent: rank.percent,
            soak_seconds: rank.soak * TICK_S,
            max_in_flight: rank.most,
            windows: vec![],
        };
        let after = outline.after.iter().map(|(who, first)| After { machine: name(who), first: name(first) });
        let plan = Plan {
            fleet: cast.fleet,
            epoch: Epoch::default(),
            name: "weekly".parse().ok()?,
            nonce: Sha256::of(&[generation]),
            waves: outline.waves.iter().enumerate().map(wave).collect(),
            after: after.collect(),
            budget: outline.budget,
            failures: vec![Failure::RolledBack, Failure::NeedsHuman],
        };
        let document = plan.to_bytes().ok()?;
        let hash = Sha256::of(&document);
        let plan = Plan::parse_named(&document, hash).ok()?;
        let targets = names.iter().map(|name| target(&plan, hash, name, generation, outline.system));
        let targets = targets.collect();
        let words = (0..MOST).map(|who| words((hash, &plan), cast, &names[who], &output, who)).collect();
        Some(Self { hash, plan, document, targets, words })
    }

    pub fn word(&self, who: usize, said: Said, signed: Signed) -> Signature {
        let by = match signed {
            Signed::Itself => 0,
            Signed::Other => 1,
            Signed::Stranger => 2,
        };
        self.words[who][number(said)][by]
    }
}

fn target(plan: &Plan, hash: Sha256, name: &MachineName, generation: u8, brings: u8) -> Option<Target> {
    let wave = u32::try_from(*plan.waves_of().get(name)?).ok()?;
    Some(Target {
        rollout: Some(Place { plan: hash, wave }),
        machine: name.clone(),
        class: Class::Nixos,
        generation: Generation::of(Epoch::default(), generation.into()).ok()?,
        system: system(Class::Nixos)?,
        derivation: path(brings, ".drv")?,
        output: path(brings, "")?,
        action: Action::Switch,
        deadline_seconds: 60,
        checks: vec![],
        trusted_nix_keys: vec![],
        policy: Default::default(),
        requires: vec![FEATURE.to_owned()],
        message: None,
        evaluation: Default::default(),
    })
}

fn words(
    (hash, plan): (Sha256, &Plan),
    cast: &Cast,
    name: &MachineName,
    output: &StorePath,
    who: usize,
) -> [[Signature; 3]; 3] {
    let own = key_of(who, Key::Named);
    let other = key_of((who + 1) % MOST, Key::Named);
    let voucher = Voucher { machine: name.clone(), key: cast.key(own), output: output.clone() };
    SAID.map(|said| {
        let claim = Claim { hash, plan, voucher: &voucher, said };
        [own, other, STRANGER].map(|key| claim.sign(cast.secret(key)))
    })
}
