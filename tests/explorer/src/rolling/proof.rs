//! What a machine is handed for its gate, and what the gate that ships makes of it.

use std::collections::BTreeMap;

use muster_protocol::keys::{PublicKey, Signature};
use muster_protocol::plan::{Claim, Gate, Plan, Said, Statement, Voucher, gate, gate_by, needed};
use muster_server::core::rollouts::facts::Recorded;
use muster_server::rollout::statements;

use super::guard::Break;
use super::machine::Lot;
use super::plans::{Key, MOST, SAID, Signed, number};
use super::stage::{Stage, once};

/// The bit of a word in what was signed.
pub fn bit(plan: u8, who: usize, said: Said) -> u32 {
    let before = usize::from(plan.saturating_sub(1)) * MOST + who;
    1 << (before * SAID.len() + number(said))
}

/// Everything that the keys in a thief's hands can sign.
pub fn stolen(stage: &Stage) -> u32 {
    let plans = (1_u8..).zip(&stage.plans).map(|(plan, _)| plan);
    let words = plans.flat_map(|plan| stage.stolen.iter().map(move |who| (plan, usize::from(*who))));
    words.fold(0, |all, (plan, who)| all | bit(plan, who, Said::Confirmed) | bit(plan, who, Said::Soaked))
}

/// The statements of a lot, for the gate of this machine.
pub fn statements(stage: &Stage, plan: u8, who: usize, lot: Lot, signed: u32) -> Vec<Statement> {
    let (Some(planned), Some(wave)) = (stage.plan(plan), stage.wave(plan, who)) else { return Vec::new() };
    let all = || stage.everyone().filter(|who| stage.voucher(plan, *who).is_some());
    let has = |of: u8, who: usize, said| signed & bit(of, who, said) != 0;
    let word = |of: u8, who: usize, said: Said, by: Signed, called: Said| {
        let signature = stage.plan(of)?.word(who, said, by);
        Some(Statement { machine: stage.names[who].clone(), said: called, signature })
    };
    let kept = || {
        let words = all().flat_map(|who| [Said::Confirmed, Said::Soaked].map(|said| (who, said)));
        let mine = words.filter(|(who, said)| has(plan, *who, *said));
        mine.filter_map(|(who, said)| word(plan, who, said, Signed::Itself, said))
    };
    match lot {
        Lot::Honest => {
            let recorded = |who: usize| {
                let of = |said| has(plan, who, said).then(|| planned.word(who, said, Signed::Itself));
                let recorded = Recorded {
                    confirmed: of(Said::Confirmed),
                    soaked: of(Said::Soaked),
                    withdrawn: of(Said::Withdrawn),
                    ..Recorded::default()
                };
                (stage.names[who].clone(), recorded)
            };
            let recorded: BTreeMap<_, _> = stage.everyone().map(recorded).collect();
            let name = &stage.names[who];
            statements::statements(&planned.plan, name, wave, &recorded, |_, _, _| true).statements
        }
        Lot::Kept => kept().collect(),
        Lot::Mixed => {
            let others = (1_u8..).zip(&stage.plans).map(|(of, _)| of).filter(|of| *of != plan);
            let words = others.flat_map(|of| all().map(move |who| (of, who)));
            let foreign = words
                .filter(|(of, who)| has(*of, *who, Said::Soaked))
                .filter_map(|(of, who)| word(of, who, Said::Soaked, Signed::Itself, Said::Soaked));
            kept().chain(kept()).chain(kept()).chain(foreign).collect()
        }
        Lot::Raised => {
            let confirmed = all().filter(|who| has(plan, *who, Said::Confirmed));
            confirmed
                .filter_map(|who| word(plan, who, Said::Confirmed, Signed::Itself, Said::Soaked))
                .collect()
        }
        Lot::Forged => {
            let words =
                all().map(|who| if who % 2 == 0 { (who, Signed::Stranger) } else { (who, Signed::Other) });
            words.filter_map(|(who, by)| word(plan, who, Said::Soaked, by, Said::Soaked)).collect()
        }
        Lot::Nothing => Vec::new(),
    }
}

/// Whether these statements open the gate of this machine.
pub fn gate_of(stage: &Stage, plan: u8, who: usize, lot: Lot, signed: u32) -> Gate {
    let key = (plan, u8::try_from(who).unwrap_or(0), lot, signed);
    once(&stage.known.gates, key, || {
        let statements = statements(stage, plan, who, lot, signed);
        judge(stage, plan, who, &statements)
    })
}

/// Whether the order of statements makes a difference, or that they come again.
pub fn order_matters(stage: &Stage, plan: u8, who: usize, lot: Lot, signed: u32) -> bool {
    let mut turned = statements(stage, plan, who, lot, signed);
    turned.extend(turned.clone());
    turned.reverse();
    let distinct = matches!(lot, Lot::Honest | Lot::Kept);
    distinct && judge(stage, plan, who, &turned) != gate_of(stage, plan, who, lot, signed)
}

fn judge(stage: &Stage, number: u8, who: usize, statements: &[Statement]) -> Gate {
    let (Some(planned), Some(wave)) = (stage.plan(number), stage.wave(number, who)) else {
        return Gate::Closed(muster_protocol::plan::Lack::NoSuchWave);
    };
    let (hash, name) = (planned.hash, &stage.names[who]);
    let mut plan = planned.plan.clone();
    let asks_both = wave > 1;
    let is = |guard| stage.breaks(guard);
    if is(Break::SkipFirstWave) && asks_both {
        plan.waves[0].at_least = 0;
    }
    if is(Break::SkipWaveBefore) && asks_both {
        plan.waves[wave - 1].at_least = 0;
    }
    if is(Break::SkipPredecessors) {
        plan.after.clear();
    }
    let by = |key: PublicKey, voucher: &Voucher, of: &super::plans::Planned, said, signature: &Signature| {
        let voucher = Voucher { key, ..voucher.clone() };
        Claim { hash: of.hash, plan: &of.plan, voucher: &voucher, said }.verify(signature).is_ok()
    };
    if is(Break::SkipSoak) {
        return gate_by(&plan, name, wave, statements, |voucher, said, signature| {
            let says = |said| by(voucher.key, voucher, planned, said, signature);
            says(said) || (said == Said::Soaked && says(Said::Confirmed))
        });
    }
    if is(Break::TakeOtherPlans) {
        return gate_by(&plan, name, wave, statements, |voucher, said, signature| {
            stage.plans.iter().any(|of| by(voucher.key, voucher, of, said, signature))
        });
    }
    if is(Break::TakeAnyKey) {
        let stranger = stage.cast.key(crate::server::STRANGER);
        let keys: Vec<PublicKey> =
            (0..MOST).map(|who| stage.key(who, Key::Named)).chain([stranger]).collect();
        return gate_by(&plan, name, wave, statements, |voucher, said, signature| {
            keys.iter().any(|key| by(*key, voucher, planned, said, signature))
        });
    }
    if is(Break::CountTwice) && plan.after.is_empty() {
        return counting_each((hash, &plan), wave, statements);
    }
    gate((hash, &plan), name, wave, statements)
}

/// As often as a word is there.
fn counting_each(
    (hash, plan): (muster_protocol::ids::Sha256, &Plan),
    wave: usize,
    all: &[Statement],
) -> Gate {
    for number in needed(wave) {
        let wave = &plan.waves[number];
        let soaked = |statement: &&Statement| {
            let voucher = wave.vouchers.iter().find(|voucher| voucher.machine == statement.machine);
            voucher.is_some_and(|voucher| {
                let claim = Claim { hash, plan, voucher, said: Said::Soaked };
                statement.said == Said::Soaked && claim.verify(&statement.signature).is_ok()
            })
        };
        if all.iter().filter(soaked).count() < wave.at_least as usize {
            return Gate::Closed(muster_protocol::plan::Lack::NoSuchWave);
        }
    }
    Gate::Open
}
