//! Which statements a machine is handed for its gate: enough to open it, and whatever closes it.

use std::collections::BTreeMap;

use muster_protocol::ids::MachineName;
use muster_protocol::keys::Signature;
use muster_protocol::plan::{MAX_STATEMENTS, Plan, Said, Statement, Statements, needed};

use crate::core::rollouts::facts::Recorded;

/// The machines whose word counts for the gate of this machine's wave.
pub fn heard<'a>(plan: &'a Plan, machine: &'a MachineName, wave: usize) -> Vec<&'a MachineName> {
    let waves = needed(wave).filter_map(|wave| plan.waves.get(wave));
    let vouchers = waves.flat_map(|wave| &wave.vouchers).map(|voucher| &voucher.machine);
    vouchers.chain(plan.first_of(machine)).collect()
}

/// For each wave as many that have soaked as it asks for; for each machine that comes first, what it said;
/// then who has withdrawn, as far as there is room: whoever has is not among the others.
pub fn statements(
    plan: &Plan,
    machine: &MachineName,
    wave: usize,
    recorded: &BTreeMap<MachineName, Recorded>,
    is_signed: impl Fn(&MachineName, Said, &Signature) -> bool,
) -> Statements {
    let said = |name: &MachineName, said: Said| {
        let signature = recorded.get(name)?.said().find(|(known, _)| *known == said)?.1;
        is_signed(name, said, &signature).then(|| Statement { machine: name.clone(), said, signature })
    };
    let withdrawn = |name: &MachineName| said(name, Said::Withdrawn);
    let stands = |name: &&MachineName| withdrawn(name).is_none();
    let mut found = Vec::new();
    for wave in needed(wave).filter_map(|wave| plan.waves.get(wave)) {
        let vouchers = wave.vouchers.iter().map(|voucher| &voucher.machine);
        let soaked = vouchers.filter(stands).filter_map(|name| said(name, Said::Soaked));
        found.extend(soaked.take(wave.at_least as usize));
    }
    for first in plan.first_of(machine).filter(stands) {
        // Either will do.
        found.extend(said(first, Said::Soaked).or_else(|| said(first, Said::Confirmed)));
    }
    found.extend(heard(plan, machine, wave).into_iter().filter_map(withdrawn));
    found.truncate(MAX_STATEMENTS);
    Statements { statements: found }
}

#[cfg(test)]
mod tests;
