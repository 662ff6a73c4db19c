//! Whether a machine's turn has come: a pure function of the plan and of what other machines signed.

use std::collections::BTreeMap;
use std::fmt;

use super::statement::{Claim, Said, Statement};
use super::{Plan, Voucher};
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

/// The same with signatures that `is_signed` knows about, for models and simulators.
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
    if wave >= plan.waves.len() {
        return Gate::Closed(Lack::NoSuchWave);
    }
    let mut words: BTreeMap<(&MachineName, Said), &Signature> = BTreeMap::new();
    for Statement { machine, said, signature } in statements {
        words.entry((machine, *said)).or_insert(signature);
    }
    let says = |voucher: &Voucher, said: Said| {
        words.get(&(&voucher.machine, said)).is_some_and(|signature| is_signed(voucher, said, signature))
    };
    let has_soaked = |voucher: &Voucher| says(voucher, Said::Soaked) && !says(voucher, Said::Withdrawn);
    for number in needed(wave) {
        let earlier = &plan.waves[number];
        let soaked = earlier.vouchers.iter().filter(|voucher| has_soaked(voucher));
        // No more than needed, so that what is left over costs nothing.
        let have = u32::try_from(soaked.take(earlier.at_least as usize).count()).unwrap_or(u32::MAX);
        if have < earlier.at_least {
            let (name, need) = (earlier.name.clone(), earlier.at_least);
            return Gate::Closed(Lack::Wave { wave: number, name, have, need });
        }
    }
    for first in plan.first_of(machine) {
        let confirmed = plan.voucher(first).is_some_and(|voucher| {
            (says(voucher, Said::Confirmed) || says(voucher, Said::Soaked)) && !says(voucher, Said::Withdrawn)
        });
        if !confirmed {
            return Gate::Closed(Lack::Machine { first: first.clone() });
        }
    }
    Gate::Open
}
