//! From the order as it is written to the plan that is signed: who is in which wave, who vouches, and what
//! percentages come to.
//!
//! What is not written is what a careful operator would write. Percentages are rounded up, save the budget's:
//! there the smaller number is the careful one.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ids::{Epoch, MachineName, Sha256, StorePath, Tag};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::Class;
use muster_protocol::plan::{
    After, Failure, MAX_MEMBERS, MAX_PLAN_BYTES, MAX_VOUCHERS, Plan, PlanError, RolloutName, Voucher, Wave,
};

use super::order::sorted;
use super::written::{Quantity, Written, WrittenWave};
use crate::terminal::count::count;
use crate::terminal::list::listed;

/// The wave of the machines that no other one takes.
const REST: &str = "rest";
/// The soak of the first wave and of the others, in seconds.
const FIRST_SOAK: u64 = 3600;
const SOAK: u64 = 15 * 60;
/// Of every 100 that vouch, in a wave of more than [`SMALL`].
const AT_LEAST: u8 = 90;
/// In a wave this small, all must have soaked.
pub const SMALL: usize = 2;
/// Of every 100 machines of a wave, how many may switch at the same time.
const MAX_IN_FLIGHT: u8 = 25;
/// Of every 100 machines, how many may fail.
const BUDGET: u8 = 1;
/// A generation that failed units were confirmed with is none of them: a unit that worked before and fails
/// now rolls the machine back.
const FAILURES: [Failure; 2] = [Failure::RolledBack, Failure::NeedsHuman];

/// A machine that is updated.
#[derive(Debug, Clone)]
pub struct Member {
    pub machine: MachineName,
    pub class: Class,
    /// The flake's, its class and `all`. Those that the controller names would let it choose who goes first.
    pub tags: BTreeSet<String>,
    pub output: StorePath,
    /// The key that it signs with, as it proved it; or why nobody should believe its word, and what to do.
    pub key: Result<PublicKey, String>,
}

/// What makes a plan this one and no other.
#[derive(Debug, Clone)]
pub struct Identity {
    pub fleet: Sha256,
    pub epoch: Epoch,
    pub name: RolloutName,
    pub nonce: Sha256,
}

/// The names that a rollout may use, whether those machines are updated or not.
#[derive(Debug, Default)]
pub struct Known {
    pub machines: BTreeSet<MachineName>,
    pub tags: BTreeSet<String>,
}

/// A plan, and what to know before signing it.
#[derive(Debug)]
pub struct Worked {
    pub plan: Plan,
    pub notes: Vec<String>,
    /// Machines whose word would count if they had proved their key, and what to do.
    pub cannot_vouch: Vec<(MachineName, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum RolloutError {
    #[error("wave '{wave}' names {machine}, and neither the flake nor the controller knows such a machine")]
    UnknownMachine { wave: String, machine: MachineName },
    #[error("after.{machine} names {name}, and neither the flake nor the controller knows such a machine")]
    UnknownOrder { machine: MachineName, name: MachineName },
    #[error("wave '{wave}' names the tag {tag}, which no machine has; there are {known}")]
    UnknownTag { wave: String, tag: Tag, known: String },
    #[error("wave '{0}' has none of the machines that are updated")]
    Empty(String),
    #[error("no machine of wave '{wave}' can vouch for it: {why}")]
    NoVoucher { wave: String, why: String },
    #[error(
        "wave '{wave}' wants {asked} that have soaked, and {vouchers} of its {members} can vouch for it{why}"
    )]
    AtLeast { wave: String, asked: String, vouchers: usize, members: usize, why: String },
    #[error("{machine} waits for {first}, whose word nobody can believe: {why}")]
    First { machine: MachineName, first: MachineName, why: String },
    #[error("{first} machines of wave '{wave}' come first for others; {MAX_VOUCHERS} are the limit")]
    TooManyFirst { wave: String, first: usize },
    #[error(transparent)]
    Plan(#[from] PlanError),
}

impl RolloutError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::UnknownMachine { .. } | Self::UnknownOrder { .. } => {
                "correct it where the rollout is written"
            }
            Self::UnknownTag { .. } => {
                "correct it where the rollout is written; only the flake's tags count, not those that were given \
                 with `muster machines add --tag`"
            }
            Self::Empty(_) => {
                "its machines are unchanged, not chosen, or in an earlier wave: update them, too (--force \
                 where nothing changed), or use another rollout"
            }
            Self::NoVoucher { .. } | Self::First { .. } => {
                "`muster machines prove` proves the keys of the machines that you invited; another operator \
                 who invited them runs it, and commits machine-keys.toml"
            }
            Self::AtLeast { .. } => {
                "ask for fewer or for a percentage, or prove more keys with `muster machines prove`"
            }
            Self::TooManyFirst { .. } => "divide the wave, or put those machines into an earlier one",
            Self::Plan(_) => "correct the rollout where it is written",
        }
    }
}

/// Works a rollout out for the machines that are updated.
pub fn work_out(
    written: &Written,
    identity: &Identity,
    members: &[Member],
    known: &Known,
) -> Result<Worked, RolloutError> {
    let seed = written.seed.as_deref().unwrap_or(identity.name.as_str());
    let by_name: BTreeMap<&MachineName, &Member> = members.iter().map(|one| (&one.machine, one)).collect();
    let order = sorted(seed, by_name.keys().map(|name| (*name).clone()));
    let mut left: Vec<&Member> = order.iter().filter_map(|name| by_name.get(name).copied()).collect();
    let mut notes = Vec::new();
    let mut divided: Vec<(WrittenWave, Vec<&Member>)> = Vec::new();
    for (number, wave) in written.waves.iter().enumerate() {
        require_known(wave, known)?;
        let taken = take(wave, &mut left);
        if taken.is_empty() {
            // Nobody waits for the last one.
            if number > 0 && number + 1 == written.waves.len() && left.is_empty() {
                notes.push(format!("wave '{}' has none of the machines that are updated", wave.name));
                continue;
            }
            return Err(RolloutError::Empty(wave.name.clone()));
        }
        divided.push((wave.clone(), taken));
    }
    if !left.is_empty() {
        let is_taken = written.waves.iter().any(|wave| wave.name == REST);
        let name = if is_taken { "the rest" } else { REST }.to_owned();
        if !written.waves.is_empty() {
            let many = count(left.len(), "machine that no wave takes is", "machines that no wave takes are");
            notes.push(format!("{many} in a last wave '{name}'"));
        }
        divided.push((WrittenWave { name, ..WrittenWave::default() }, left));
    }

    for (machine, names) in &written.after {
        if let Some(name) = [machine].into_iter().chain(names).find(|name| !known.machines.contains(*name)) {
            return Err(RolloutError::UnknownOrder { machine: machine.clone(), name: name.clone() });
        }
    }
    let (after, first) = orders(written, &by_name, &mut notes)?;
    let last = divided.len().saturating_sub(1);
    let (mut waves, mut cannot_vouch) = (Vec::new(), Vec::new());
    for (number, (written, members)) in divided.iter().enumerate() {
        waves.push(wave(written, members, &first, (number, number == last))?);
        // Nobody waits for the word of the last wave.
        if number < last {
            let unproven = members.iter().filter_map(|one| Some((one, one.key.as_ref().err()?)));
            cannot_vouch.extend(unproven.map(|(one, why)| (one.machine.clone(), why.clone())));
        }
    }
    let budget = written.budget.unwrap_or(Quantity::Percent(BUDGET)).at_most_of(members.len());
    let plan = Plan {
        fleet: identity.fleet,
        epoch: identity.epoch,
        name: identity.name.clone(),
        nonce: identity.nonce,
        waves,
        after,
        budget,
        failures: written.failures.clone().unwrap_or_else(|| FAILURES.to_vec()),
    };
    plan.check()?;
    let bytes = plan.to_bytes()?.len();
    if bytes as u64 > MAX_PLAN_BYTES {
        return Err(PlanError::TooLarge(bytes).into());
    }
    Ok(Worked { plan, notes, cannot_vouch })
}

fn require_known(wave: &WrittenWave, known: &Known) -> Result<(), RolloutError> {
    if let Some(machine) = wave.machines.iter().find(|machine| !known.machines.contains(*machine)) {
        return Err(RolloutError::UnknownMachine { wave: wave.name.clone(), machine: machine.clone() });
    }
    match wave.tags.iter().find(|tag| !known.tags.contains(tag.as_str())) {
        Some(tag) => Err(RolloutError::UnknownTag {
            wave: wave.name.clone(),
            tag: tag.clone(),
            known: listed(&known.tags),
        }),
        None => Ok(()),
    }
}

/// Takes the wave's machines out of those that are left.
fn take<'a>(wave: &WrittenWave, left: &mut Vec<&'a Member>) -> Vec<&'a Member> {
    let names_some = !wave.machines.is_empty() || !wave.tags.is_empty();
    let matches = |one: &&Member| {
        let named = wave.machines.contains(&one.machine)
            || wave.tags.iter().any(|tag| one.tags.contains(tag.as_str()));
        (named || !names_some) && wave.class.is_none_or(|class| class == one.class)
    };
    let matching = left.iter().filter(|one| matches(one)).count();
    let mut room = match wave.percent {
        Some(percent) => Quantity::Percent(percent).of(matching) as usize,
        None => matching,
    };
    let (taken, others) = std::mem::take(left).into_iter().partition(|one| {
        let is_taken = room > 0 && matches(one);
        room -= usize::from(is_taken);
        is_taken
    });
    *left = others;
    taken
}

/// The order between single machines, and those that come first.
fn orders(
    written: &Written,
    members: &BTreeMap<&MachineName, &Member>,
    notes: &mut Vec<String>,
) -> Result<(Vec<After>, BTreeSet<MachineName>), RolloutError> {
    let (mut after, mut all_first) = (Vec::new(), BTreeSet::new());
    for (machine, names) in written.after.iter().filter(|(machine, _)| members.contains_key(machine)) {
        for first in names.iter().collect::<BTreeSet<_>>() {
            let Some(member) = members.get(first) else {
                notes.push(format!("{machine} does not wait for {first}, which is not updated"));
                continue;
            };
            if let Err(why) = &member.key {
                let (machine, first) = (machine.clone(), first.clone());
                return Err(RolloutError::First { machine, first, why: why.clone() });
            }
            all_first.insert(first.clone());
            after.push(After { machine: machine.clone(), first: first.clone() });
        }
    }
    Ok((after, all_first))
}

fn wave(
    written: &WrittenWave,
    members: &[&Member],
    first: &BTreeSet<MachineName>,
    (number, is_last): (usize, bool),
) -> Result<Wave, RolloutError> {
    let name = || written.name.clone();
    let vouchers = vouchers(written, members, first)?;
    let unproven = || -> Vec<String> {
        let all = members.iter().filter_map(|one| Some((one, one.key.as_ref().err()?)));
        all.map(|(one, why)| format!("{}: {why}", one.machine)).collect()
    };
    if vouchers.is_empty() && !is_last {
        return Err(RolloutError::NoVoucher { wave: name(), why: listed(unproven()) });
    }
    let (at_least, percent) = match written.at_least {
        None if is_last => (0, 0),
        None => by_default(members.len(), vouchers.len()),
        Some(Quantity::Percent(percent)) => (Quantity::Percent(percent).of(vouchers.len()), percent),
        Some(Quantity::Count(asked)) => (asked, 0),
    };
    if at_least as usize > vouchers.len() {
        let unproven = unproven();
        let why = if unproven.is_empty() { String::new() } else { format!(" ({})", listed(unproven)) };
        return Err(RolloutError::AtLeast {
            wave: name(),
            asked: count(at_least, "machine", "machines"),
            vouchers: vouchers.len(),
            members: members.len(),
            why,
        });
    }
    let at_once = written.max_in_flight.unwrap_or(Quantity::Percent(MAX_IN_FLIGHT)).of(members.len());
    let soak = if number == 0 { FIRST_SOAK } else { SOAK };
    Ok(Wave {
        name: name(),
        members: members.iter().map(|one| one.machine.clone()).collect(),
        vouchers,
        at_least,
        percent,
        soak_seconds: written.soak_seconds.unwrap_or(soak),
        max_in_flight: at_once.clamp(1, MAX_MEMBERS as u32),
        windows: written.windows.clone(),
    })
}

/// How many must have soaked where nothing is written: of the vouchers, and of every 100 members.
pub fn by_default(members: usize, vouchers: usize) -> (u32, u8) {
    let percent = if members <= SMALL { 100 } else { AT_LEAST };
    (Quantity::Percent(percent).of(vouchers), percent)
}

/// Those that come first for others, and of the others as many as there is room for, in the wave's order.
fn vouchers(
    written: &WrittenWave,
    members: &[&Member],
    first: &BTreeSet<MachineName>,
) -> Result<Vec<Voucher>, RolloutError> {
    let must = members.iter().filter(|one| first.contains(&one.machine)).count();
    let Some(mut room) = MAX_VOUCHERS.checked_sub(must) else {
        return Err(RolloutError::TooManyFirst { wave: written.name.clone(), first: must });
    };
    let mut chosen = Vec::new();
    for one in members {
        let Ok(key) = one.key else { continue };
        if !first.contains(&one.machine) {
            if room == 0 {
                continue;
            }
            room -= 1;
        }
        chosen.push(Voucher { machine: one.machine.clone(), key, output: one.output.clone() });
    }
    Ok(chosen)
}

#[cfg(test)]
pub mod tests;
