//! Whether a machine's turn has come: a pure function of the plan and of what other machines signed.

use std::collections::BTreeMap;
use std::fmt;

use super::document::{Plan, Voucher, Wave};
use super::statement::{Claim, Said, Statement};
use crate::ids::{MachineName, Sha256};
use crate::keys::Signature;

/// Whether a machine may switch, as far as the plan is concerned.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Gate {
    /// Enough machines have vouched.
    Open,
    /// Not yet.
    Closed(Lack),
}

/// What is missing. A part of a gate: the first one that is not met.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Lack {
    /// A wave has not soaked.
    Wave {
        /// Its number, counted from 0.
        wave: usize,
        /// Its name.
        name: String,
        /// How many of its vouchers have soaked.
        have: u32,
        /// How many must have.
        need: u32,
    },
    /// A machine that comes first is not confirmed.
    Machine {
        /// Its name.
        first: MachineName,
    },
    /// The plan has no such wave.
    NoSuchWave,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Wave { name, have, need, .. } => {
                write!(f, "{have} of the {need} machines of wave '{name}' that must have soaked have")
            }
            Self::Machine { first } => write!(f, "{first} comes first and has not confirmed it"),
            Self::NoSuchWave => f.write_str("its plan has no such wave"),
        }
    }
}

/// The waves whose word a wave waits for: the first one, so that a few stolen keys in between skip no canary,
/// and the one before it.
pub fn needed(wave: usize) -> impl Iterator<Item = usize> {
    let before = wave.checked_sub(1);
    before.map(|_| 0).into_iter().chain(before.filter(|before| *before > 0))
}

/// Whether the statements open the gate of `machine` in `wave` of the plan with this hash.
pub fn gate(
    (hash, plan): (Sha256, &Plan),
    machine: &MachineName,
    wave: usize,
    statements: &[Statement],
) -> Gate {
    gate_by(plan, machine, wave, statements, |voucher, said, signature| {
        Claim { hash, plan, voucher, said }.verify(signature).is_ok()
    })
}

/// The same with signatures that `is_signed` judges, for models and simulators.
///
/// Each voucher has one word of a kind: duplicates are dropped before a signature is checked, so that a gate
/// costs at most as many checks as it has vouchers.
pub fn gate_by(
    plan: &Plan,
    machine: &MachineName,
    wave: usize,
    statements: &[Statement],
    is_signed: impl Fn(&Voucher, Said, &Signature) -> bool,
) -> Gate {
    let mut words: BTreeMap<(&MachineName, Said), &Signature> = BTreeMap::new();
    for Statement { machine, said, signature } in statements {
        words.entry((machine, *said)).or_insert(signature);
    }
    let says = |voucher: &Voucher, said: Said| {
        words.get(&(&voucher.machine, said)).is_some_and(|signature| is_signed(voucher, said, signature))
    };
    match wave_lacks(plan, wave, &says).or_else(|| machine_lacks(plan, machine, &says)) {
        Some(lack) => Gate::Closed(lack),
        None => Gate::Open,
    }
}

/// What a wave's gate lacks, given what each voucher is proven to have said.
pub fn wave_lacks(plan: &Plan, wave: usize, says: &impl Fn(&Voucher, Said) -> bool) -> Option<Lack> {
    if wave >= plan.waves.len() {
        return Some(Lack::NoSuchWave);
    }
    let has_soaked = |voucher: &&Voucher| says(voucher, Said::Soaked) && !says(voucher, Said::Withdrawn);
    needed(wave).find_map(|number| {
        let Wave { name, vouchers, at_least, .. } = &plan.waves[number];
        // No more than needed, so that what is left over costs nothing.
        let soaked = vouchers.iter().filter(has_soaked).take(*at_least as usize).count();
        let (name, have, need) = (name.clone(), u32::try_from(soaked).unwrap_or(u32::MAX), *at_least);
        (have < need).then_some(Lack::Wave { wave: number, name, have, need })
    })
}

/// The machine that this one still waits for besides its wave's gate.
pub fn machine_lacks(
    plan: &Plan,
    machine: &MachineName,
    says: &impl Fn(&Voucher, Said) -> bool,
) -> Option<Lack> {
    let is_confirmed = |voucher: &Voucher| {
        (says(voucher, Said::Confirmed) || says(voucher, Said::Soaked)) && !says(voucher, Said::Withdrawn)
    };
    let mut first = plan.first_of(machine);
    let missing = first.find(|first| !plan.voucher(first).is_some_and(is_confirmed));
    missing.map(|first| Lack::Machine { first: first.clone() })
}
