use muster_protocol::ids::Sha256;
use muster_protocol::keys::SecretKey;
use muster_protocol::plan::{After, Failure, Gate, MAX_STATEMENTS_BYTES, Voucher, Wave, gate_by};

use super::*;

fn name(text: &str) -> MachineName {
    text.parse().unwrap()
}

/// Waves of so many machines with the longest names, all of which vouch, the first 16 before the last
/// machine.
fn plan(sizes: &[usize], at_least: u32) -> Plan {
    let output = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system";
    let machine = |wave: usize, number: usize| name(&format!("{wave:0>30}-{number:0>32}"));
    let waves: Vec<Wave> = sizes
        .iter()
        .enumerate()
        .map(|(wave, size)| {
            let members: Vec<MachineName> = (0..*size).map(|number| machine(wave, number)).collect();
            let key = || SecretKey::generate().unwrap().public();
            let voucher = |machine: &MachineName| Voucher {
                machine: machine.clone(),
                key: key(),
                output: output.parse().unwrap(),
            };
            Wave {
                name: format!("w{wave}"),
                vouchers: members.iter().map(voucher).collect(),
                members,
                at_least,
                percent: 0,
                soak_seconds: 1,
                max_in_flight: 1,
                windows: vec![],
            }
        })
        .collect();
    let last = waves.last().unwrap().members.last().unwrap().clone();
    let first = waves[0].members.iter().filter(|first| **first != last).take(16);
    let after = first.map(|first| After { machine: last.clone(), first: first.clone() }).collect();
    Plan {
        fleet: Sha256::of(b"fleet"),
        epoch: Default::default(),
        name: "weekly".parse().unwrap(),
        nonce: Sha256::of(b"nonce"),
        waves,
        after,
        budget: 0,
        failures: Failure::all(),
    }
}

fn all(plan: &Plan, recorded: &Recorded) -> BTreeMap<MachineName, Recorded> {
    plan.waves.iter().flat_map(|wave| &wave.members).map(|name| (name.clone(), recorded.clone())).collect()
}

fn signature(n: u8) -> Option<Signature> {
    Some(Signature::from_bytes([n; 64]))
}

#[test]
fn a_machine_gets_enough_to_open_its_gate_and_no_more_than_it_fetches() {
    let plan = plan(&[64, 64, 64], 60);
    plan.check().unwrap();
    let soaked = Recorded { confirmed: signature(1), soaked: signature(2), ..Recorded::default() };
    let mut recorded = all(&plan, &soaked);
    for name in plan.waves[0].members.iter().take(4).chain(plan.waves[1].members.iter().take(4)) {
        recorded.get_mut(name).unwrap().withdrawn = signature(3);
    }
    let last = plan.waves[2].members.last().unwrap().clone();
    let found = statements(&plan, &last, 2, &recorded, |_, _, _| true);
    let count = |said| found.statements.iter().filter(|one| one.said == said).count();
    // 12 of the 16 that come first have not withdrawn; they are among those that soaked, too.
    assert_eq!((count(Said::Soaked), count(Said::Withdrawn)), (120 + 12, 8 + 4));
    let without = Plan { after: vec![], ..plan.clone() };
    let opens = gate_by(&without, &last, 2, &found.statements, |_, _, _| true);
    assert_eq!(opens, Gate::Open);
    assert!(serde_json::to_vec(&found).unwrap().len() as u64 <= MAX_STATEMENTS_BYTES);
    let everything = Recorded { withdrawn: signature(3), ..soaked };
    let found = statements(&plan, &last, 2, &all(&plan, &everything), |_, _, _| true);
    assert!(found.statements.iter().all(|one| one.said == Said::Withdrawn));
    assert!(found.statements.len() <= MAX_STATEMENTS);
    assert!(serde_json::to_vec(&found).unwrap().len() as u64 <= MAX_STATEMENTS_BYTES);
}

#[test]
fn what_is_not_signed_is_not_handed_on_and_hides_nothing() {
    let plan = plan(&[2, 1], 1);
    let recorded = Recorded { soaked: signature(1), withdrawn: signature(2), ..Recorded::default() };
    let (recorded, last) = (all(&plan, &recorded), plan.waves[1].members[0].clone());
    let found = statements(&plan, &last, 1, &recorded, |_, said, _| said == Said::Soaked);
    assert!(!found.statements.is_empty() && found.statements.iter().all(|one| one.said == Said::Soaked));
    assert!(statements(&plan, &last, 1, &recorded, |_, _, _| false).statements.is_empty());
}

#[test]
fn the_first_wave_waits_for_nobody() {
    let plan = plan(&[2, 1], 1);
    let recorded = all(&plan, &Recorded { soaked: signature(1), ..Recorded::default() });
    let found = statements(&plan, &plan.waves[0].members[0], 0, &recorded, |_, _, _| true);
    assert!(found.statements.is_empty());
}
