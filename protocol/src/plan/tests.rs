use std::collections::BTreeMap;

use super::*;
use crate::ids::{Epoch, MachineName, Sha256, StorePath};
use crate::keys::{SecretKey, Signature};

/// A plan of these waves, each given by its machines, of which all vouch and one must.
pub(crate) struct Fixture {
    pub plan: Plan,
    keys: BTreeMap<MachineName, SecretKey>,
}

fn name(text: &str) -> MachineName {
    text.parse().unwrap()
}

fn output(text: &str) -> StorePath {
    format!("/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system-{text}").parse().unwrap()
}

impl Fixture {
    pub(crate) fn new(waves: &[&[&str]]) -> Self {
        let mut keys = BTreeMap::new();
        let waves = waves.iter().enumerate().map(|(number, members)| {
            let vouchers = members.iter().map(|member| {
                let key = SecretKey::generate().unwrap();
                let voucher = Voucher { machine: name(member), key: key.public(), output: output(member) };
                keys.insert(name(member), key);
                voucher
            });
            Wave {
                name: format!("wave-{number}"),
                vouchers: vouchers.collect(),
                members: members.iter().map(|member| name(member)).collect(),
                at_least: 1,
                percent: 0,
                soak_seconds: 60,
                max_in_flight: 1,
                windows: vec![],
            }
        });
        let plan = Plan {
            fleet: Sha256::of(b"fleet"),
            epoch: Epoch::default(),
            name: "weekly".parse().unwrap(),
            nonce: Sha256::of(b"nonce"),
            waves: waves.collect(),
            after: vec![],
            budget: 0,
            failures: Failure::all(),
        };
        Self { plan, keys }
    }

    fn hash(&self) -> Sha256 {
        Sha256::of(&self.plan.to_bytes().unwrap())
    }

    fn signature(&self, by: &str, as_machine: &str, said: Said) -> Signature {
        let voucher = self.plan.voucher(&name(as_machine)).unwrap();
        Claim { hash: self.hash(), plan: &self.plan, voucher, said }.sign(&self.keys[&name(by)])
    }

    fn says(&self, machine: &str, said: Said) -> Statement {
        Statement { machine: name(machine), said, signature: self.signature(machine, machine, said) }
    }

    fn gate(&self, machine: &str, statements: &[Statement]) -> Gate {
        let wave = self.plan.waves_of()[&name(machine)];
        gate((self.hash(), &self.plan), &name(machine), wave, statements)
    }
}

fn three_waves() -> Fixture {
    Fixture::new(&[&["canary-1", "canary-2"], &["early-1", "early-2", "early-3"], &["late-1"]])
}

#[test]
fn the_first_wave_waits_for_nobody_and_a_later_one_for_the_first_and_the_one_before() {
    let fleet = three_waves();
    assert_eq!(fleet.gate("canary-1", &[]), Gate::Open);
    let lack =
        |wave: usize, have| Gate::Closed(Lack::Wave { wave, name: format!("wave-{wave}"), have, need: 1 });
    assert_eq!(fleet.gate("early-1", &[]), lack(0, 0));
    let canary = fleet.says("canary-1", Said::Soaked);
    assert_eq!(fleet.gate("early-1", std::slice::from_ref(&canary)), Gate::Open);
    assert_eq!(fleet.gate("late-1", std::slice::from_ref(&canary)), lack(1, 0));
    let early = fleet.says("early-2", Said::Soaked);
    // Stolen keys of a wave in between do not skip the canaries.
    assert_eq!(fleet.gate("late-1", std::slice::from_ref(&early)), lack(0, 0));
    assert_eq!(fleet.gate("late-1", &[early, canary]), Gate::Open);
}

#[test]
fn only_a_soak_counts_and_a_word_that_was_withdrawn_does_not() {
    let fleet = three_waves();
    assert_ne!(fleet.gate("early-1", &[fleet.says("canary-1", Said::Confirmed)]), Gate::Open);
    let soaked = fleet.says("canary-1", Said::Soaked);
    let withdrawn = fleet.says("canary-1", Said::Withdrawn);
    assert_ne!(fleet.gate("early-1", &[soaked.clone(), withdrawn]), Gate::Open);
    // Only the machine itself withdraws its word.
    let forged = Statement { said: Said::Withdrawn, ..fleet.says("canary-1", Said::Confirmed) };
    assert_eq!(fleet.gate("early-1", &[soaked, forged]), Gate::Open);
}

#[test]
fn a_word_of_another_machine_plan_output_or_kind_opens_nothing() {
    let fleet = three_waves();
    let by = |by: &str, of: &str, said| Statement {
        machine: name(of),
        said: Said::Soaked,
        signature: fleet.signature(by, of, said),
    };
    let mut other = three_waves();
    other.keys.clone_from(&fleet.keys);
    other.plan = Plan { nonce: Sha256::of(b"another"), ..fleet.plan.clone() };
    let mut older = fleet.plan.clone();
    older.waves[0].vouchers[0].output = output("older");
    let older = Fixture { plan: older, keys: fleet.keys.clone() };
    for (what, statement) in [
        ("signed by a machine of a later wave", by("early-1", "canary-1", Said::Soaked)),
        ("signed by the machine that waits", by("late-1", "canary-1", Said::Soaked)),
        ("its confirmation", by("canary-1", "canary-1", Said::Confirmed)),
        ("of a rollout with another nonce", other.says("canary-1", Said::Soaked)),
        ("of another output", older.says("canary-1", Said::Soaked)),
        (
            "of a machine that is no voucher",
            Statement { machine: name("x"), ..by("late-1", "late-1", Said::Soaked) },
        ),
    ] {
        assert_ne!(fleet.gate("early-1", &[statement]), Gate::Open, "{what}");
    }
}

#[test]
fn one_machine_counts_once_and_costs_one_check_of_a_kind() {
    let mut fleet = three_waves();
    fleet.plan.waves[0].at_least = 2;
    let soaked = fleet.says("canary-1", Said::Soaked);
    assert_ne!(fleet.gate("early-1", &vec![soaked.clone(); 9]), Gate::Open);
    let checks = std::cell::Cell::new(0);
    let many = vec![soaked; 200];
    let counted = gate::gate_by(&fleet.plan, &name("early-1"), 1, &many, |_, _, _| {
        checks.set(checks.get() + 1);
        true
    });
    assert_ne!(counted, Gate::Open);
    assert_eq!(checks.get(), 1);
}

#[test]
fn a_machine_that_comes_after_another_waits_for_its_confirmation() {
    let mut fleet = three_waves();
    fleet.plan.after = vec![After { machine: name("early-2"), first: name("early-1") }];
    fleet.plan.check().unwrap();
    let canary = fleet.says("canary-2", Said::Soaked);
    let waits = Gate::Closed(Lack::Machine { first: name("early-1") });
    assert_eq!(fleet.gate("early-2", std::slice::from_ref(&canary)), waits);
    assert_eq!(fleet.gate("early-3", std::slice::from_ref(&canary)), Gate::Open);
    for said in [Said::Confirmed, Said::Soaked] {
        assert_eq!(fleet.gate("early-2", &[canary.clone(), fleet.says("early-1", said)]), Gate::Open);
    }
    let gone = [fleet.says("early-1", Said::Confirmed), fleet.says("early-1", Said::Withdrawn)];
    assert_eq!(fleet.gate("early-2", &[&[canary], &gone[..]].concat()), waits);
}

#[test]
fn a_wave_that_the_plan_does_not_have_stays_closed() {
    let fleet = three_waves();
    let found = gate((fleet.hash(), &fleet.plan), &name("late-1"), 7, &[]);
    assert_eq!(found, Gate::Closed(Lack::NoSuchWave));
}

#[test]
fn a_plan_survives_its_bytes_and_its_hash_is_of_them() {
    let fleet = three_waves();
    let bytes = fleet.plan.to_bytes().unwrap();
    assert_eq!(Plan::parse_named(&bytes, Sha256::of(&bytes)).unwrap(), fleet.plan);
    assert!(matches!(Plan::parse_named(&bytes, Sha256::of(b"x")), Err(PlanError::OtherPlan { .. })));
}

#[test]
fn plans_that_cannot_be_kept_are_refused() {
    type Change = fn(&mut Plan);
    let changes: [(&str, Change); 15] = [
        ("no waves", |plan| plan.waves.clear()),
        ("an empty wave", |plan| {
            plan.waves[1].members.clear();
            plan.waves[1].vouchers.clear();
        }),
        ("a machine in two waves", |plan| plan.waves[1].members.push(name("late-1"))),
        ("a machine twice in a wave", |plan| plan.waves[1].members.push(name("early-1"))),
        ("a voucher of another wave", |plan| {
            let voucher = plan.waves[2].vouchers.remove(0);
            plan.waves[0].vouchers.push(voucher);
        }),
        ("a voucher twice", |plan| {
            let twice =
                Voucher { key: plan.waves[2].vouchers.remove(0).key, ..plan.waves[0].vouchers[0].clone() };
            plan.waves[0].vouchers.push(twice);
        }),
        ("one key for two machines", |plan| {
            plan.waves[0].vouchers[1].key = plan.waves[0].vouchers[0].key;
        }),
        ("more soaked than vouch", |plan| plan.waves[0].at_least = 3),
        ("a gate that holds nothing", |plan| plan.waves[1].at_least = 0),
        ("nobody in flight", |plan| plan.waves[0].max_in_flight = 0),
        ("a soak of years", |plan| plan.waves[0].soak_seconds = MAX_SOAK_SECONDS + 1),
        ("more than all", |plan| plan.waves[0].percent = 101),
        ("waiting for itself", |plan| {
            plan.after = vec![After { machine: name("early-1"), first: name("early-1") }];
        }),
        ("waiting in a circle", |plan| {
            plan.after = [("early-1", "early-2"), ("early-2", "early-3"), ("early-3", "early-1")]
                .map(|(machine, first)| After { machine: name(machine), first: name(first) })
                .to_vec();
        }),
        ("waiting for a later wave", |plan| {
            plan.after = vec![After { machine: name("canary-1"), first: name("late-1") }];
        }),
    ];
    for (what, change) in changes {
        let mut plan = three_waves().plan;
        plan.check().unwrap();
        change(&mut plan);
        assert!(plan.check().is_err(), "{what}");
    }
}

#[test]
fn a_target_is_held_to_its_place() {
    let fleet = three_waves();
    let place = |wave| Place { plan: fleet.hash(), wave };
    let own = (&fleet.plan.fleet, Epoch::default());
    let asks = |machine: &str, out: &str, wave| {
        fleet.plan.require_place(own, &name(machine), &output(out), &place(wave)).is_ok()
    };
    assert!(asks("early-1", "early-1", 1));
    assert!(!asks("early-1", "early-1", 0), "another wave");
    assert!(!asks("early-1", "early-1", u32::MAX), "no wave");
    assert!(!asks("early-1", "early-2", 1), "another output");
    assert!(!asks("stranger", "early-1", 1), "no member");
    let foreign = (&Sha256::of(b"another fleet"), Epoch::default());
    assert!(fleet.plan.require_place(foreign, &name("early-1"), &output("early-1"), &place(1)).is_err());
    let later = (&fleet.plan.fleet, Epoch::new(1).unwrap());
    assert!(fleet.plan.require_place(later, &name("early-1"), &output("early-1"), &place(1)).is_err());
}

#[test]
fn leave_is_bounded_whatever_the_controller_says() {
    let long = "x".repeat(9000);
    let text = format!(r#"{{"plan":"{}","seconds":18446744073709551615,"why":"{long}"}}"#, Sha256::of(b""));
    let leave: Leave = serde_json::from_str(&text).unwrap();
    assert_eq!((leave.seconds, leave.why.unwrap().len()), (MAX_LEAVE_SECONDS, 512));
}
