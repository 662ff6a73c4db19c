use muster_protocol::ids::Epoch;
use muster_protocol::machine::Class;
use muster_protocol::plan::{Failure, Wave};

use super::*;
use crate::core::records::tests::{path, target};
use crate::core::records::{Journal, Known, Settled, Transaction};
use crate::core::state::State;

const MINUTE: u64 = 60_000;

/// A plan in which machine `m` vouches with this key for this output, in its second wave.
fn plan(key: &SecretKey, output: &StorePath) -> Plan {
    let wave = |name: &str, machine: &str, key, output: &StorePath| Wave {
        name: name.into(),
        members: vec![machine.parse().unwrap()],
        vouchers: vec![Voucher { machine: machine.parse().unwrap(), key, output: output.clone() }],
        at_least: 1,
        percent: 0,
        soak_seconds: 180,
        max_in_flight: 1,
        windows: vec![],
    };
    let other = SecretKey::generate().unwrap().public();
    Plan {
        fleet: Sha256::of(b"fleet"),
        epoch: Epoch::default(),
        name: "weekly".parse().unwrap(),
        nonce: Sha256::of(b"nonce"),
        waves: vec![wave("canaries", "first", other, &path("other")), wave("all", "m", key.public(), output)],
        after: vec![],
        budget: 0,
        failures: Failure::all(),
    }
}

fn gated(number: u64, plan: Sha256) -> Target {
    Target {
        rollout: Some(Place { plan, wave: 1 }),
        requires: vec!["rollouts".into()],
        output: path("system"),
        ..target(number, Class::Nixos)
    }
}

fn followed(key: &SecretKey) -> Followed {
    let plan = plan(key, &path("system"));
    let hash = Sha256::of(&plan.to_bytes().unwrap());
    Followed::of(&plan, &"m".parse().unwrap(), &gated(4, hash)).unwrap()
}

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

fn runs(passed_ms: u64) -> Seen {
    Seen { runs: true, drifted: false, passed_ms }
}

fn changed(counted: Counted) -> Followed {
    match counted {
        Counted::Changed(followed) => *followed,
        other => panic!("{other:?}"),
    }
}

#[test]
fn only_a_machine_that_the_plan_has_as_a_voucher_of_its_output_follows_it() {
    let key = key();
    let plan = plan(&key, &path("system"));
    let hash = Sha256::of(&plan.to_bytes().unwrap());
    let machine = "m".parse().unwrap();
    let of = |machine: &MachineName, target: &Target| Followed::of(&plan, machine, target).is_some();
    assert!(of(&machine, &gated(4, hash)));
    assert!(!of(&"n".parse().unwrap(), &gated(4, hash)));
    assert!(!of(&machine, &Target { output: path("other"), ..gated(4, hash) }));
    assert!(!of(&machine, &Target { rollout: Some(Place { plan: hash, wave: 0 }), ..gated(4, hash) }));
    assert!(!of(&machine, &Target { rollout: Some(Place { plan: hash, wave: 9 }), ..gated(4, hash) }));
    assert!(!of(&machine, &Target { rollout: None, ..gated(4, hash) }));
}

#[test]
fn a_soak_is_counted_in_time_awake_and_a_restart_loses_what_was_not_stored() {
    let mut it = followed(&key());
    assert_eq!(it.count(runs(MINUTE - 1)), Counted::Nothing, "not worth a write");
    assert_eq!(it.again(runs(0)), Some(MINUTE));
    it = changed(it.count(runs(MINUTE)));
    it = changed(it.count(runs(MINUTE)));
    assert_eq!(it.soaked_ms, 2 * MINUTE);
    // The next process counts from there, and from when it looks first.
    it = serde_json::from_str(&serde_json::to_string(&it).unwrap()).unwrap();
    assert_eq!((it.count(runs(0)), it.again(runs(0))), (Counted::Nothing, Some(MINUTE)));
    assert_eq!(it.again(runs(59_000)), Some(1_000));
    assert_eq!(it.count(runs(MINUTE)), Counted::Over);
    // What a machine does not run is not counted, however long.
    let elsewhere = Seen { runs: false, ..runs(MINUTE * 100) };
    assert_eq!((it.count(elsewhere), it.again(elsewhere)), (Counted::Nothing, None));
}

#[test]
fn at_the_end_of_a_soak_an_ill_machine_begins_it_anew() {
    let mut it = followed(&key());
    (it.soaked_ms, it.failed) = (3 * MINUTE, vec!["old.service".into()]);
    let well = it.examined(true, &["old.service".into()]);
    assert_eq!(well.said, Said::Soaked);
    for ill in [it.examined(false, &[]), it.examined(true, &["new.service".into()])] {
        assert_eq!((ill.said, ill.soaked_ms), (Said::Confirmed, 0));
    }
    assert_eq!(well.count(runs(MINUTE * 9)), Counted::Nothing, "it is said once");
}

#[test]
fn drift_begins_a_soak_anew_and_voids_one_that_is_over() {
    let mut it = followed(&key());
    let drifts = Seen { runs: false, drifted: true, passed_ms: 0 };
    it.soaked_ms = 2 * MINUTE;
    let anew = changed(it.count(drifts));
    assert_eq!((anew.said, anew.soaked_ms), (Said::Confirmed, 0));
    assert_eq!(anew.count(drifts), Counted::Nothing);
    let soaked = it.examined(true, &[]);
    let gone = changed(soaked.count(drifts));
    assert_eq!(gone.said, Said::Withdrawn);
    // And for good, whatever runs later.
    for seen in [drifts, runs(MINUTE * 100)] {
        assert_eq!(gone.count(seen), Counted::Nothing);
    }
}

/// Confirms this target over whatever ran before, as a transaction of the agent does.
fn confirm(journal: &mut Journal, target: &Target, begins: Option<Followed>) {
    let mut open = Transaction::signed(format!("t{}", target.generation), target.clone(), 1);
    open.state = State::Confirmed { degraded: vec!["ill.service".into()] };
    open.follows = begins.map(Box::new);
    journal.settle(&open, Settled { running: Some(&target.output), at: 1, ..Settled::default() });
}

#[test]
fn what_is_confirmed_is_followed_and_refreshed_signatures_keep_its_soak() {
    let it = followed(&key());
    let mut journal = Journal::default();
    confirm(&mut journal, &gated(4, it.plan), Some(it.clone()));
    let begun = journal.followed.clone().unwrap();
    assert_eq!((begun.said, &begun.failed), (Said::Confirmed, &vec!["ill.service".to_owned()]));
    journal.followed = Some(Followed { soaked_ms: 2 * MINUTE, ..begun });
    let refreshed = Followed { generation: gated(5, it.plan).generation, ..it.clone() };
    confirm(&mut journal, &gated(5, it.plan), Some(refreshed.clone()));
    let kept = journal.followed.clone().unwrap();
    assert_eq!((kept.soaked_ms, kept.generation.get()), (2 * MINUTE, 5));
    // What was withdrawn stays so under every number of that plan.
    journal.followed = Some(kept.withdrawn());
    confirm(&mut journal, &gated(6, it.plan), Some(refreshed));
    assert_eq!(journal.followed.as_ref().unwrap().said, Said::Withdrawn);
    // Another plan begins anew, and one that does not ask this machine ends it.
    let other = Followed { plan: Sha256::of(b"other"), ..it };
    confirm(&mut journal, &gated(7, other.plan), Some(other));
    assert_eq!(journal.followed.as_ref().unwrap().said, Said::Confirmed);
    confirm(&mut journal, &gated(8, Sha256::of(b"third")), None);
    assert_eq!(journal.followed, None);
}

#[test]
fn a_newer_generation_withdraws_nothing_and_going_back_does() {
    let it = Followed { said: Said::Soaked, ..followed(&key()) };
    let mut journal = Journal::default();
    confirm(&mut journal, &gated(4, it.plan), Some(it.clone()));
    confirm(&mut journal, &target(5, Class::Nixos), None);
    assert_eq!(journal.followed.as_ref().unwrap().said, Said::Soaked);
    // Somebody goes back from generation 5, which says nothing about 4 …
    let back = |from: &Known| {
        let mut open = Transaction::rollback("r".into(), from, path("before"), Class::Nixos, 2);
        open.state = State::Confirmed { degraded: vec![] };
        open
    };
    let known = journal.confirmed.clone().unwrap();
    journal.settle(&back(&known), Settled::default());
    assert_eq!(journal.followed.as_ref().unwrap().said, Said::Soaked);
    // … and from 4 itself, which does.
    let mut journal = Journal::default();
    confirm(&mut journal, &gated(4, it.plan), Some(it));
    let known = journal.confirmed.clone().unwrap();
    journal.settle(&back(&known), Settled::default());
    assert_eq!(journal.followed.as_ref().unwrap().said, Said::Withdrawn);
}

#[test]
fn what_is_said_is_signed_for_the_plan_and_by_its_key_alone() {
    let (key, other) = (key(), key());
    let plan = plan(&key, &path("system"));
    let it = followed(&key);
    let machine: MachineName = "m".parse().unwrap();
    for said in [Said::Confirmed, Said::Soaked, Said::Withdrawn] {
        let vouch = Followed { said, ..it.clone() }.vouch(&plan.fleet, &machine, &key).unwrap();
        let voucher = plan.voucher(&machine).unwrap();
        let claim = Claim { hash: it.plan, plan: &plan, voucher, said };
        assert!(claim.verify(&vouch.signature).is_ok());
        assert_eq!((vouch.plan, vouch.said), (it.plan, said));
    }
    assert_eq!(it.vouch(&plan.fleet, &machine, &other), None);
}

#[test]
fn what_a_later_version_says_does_not_damage_a_journal() {
    let mut journal = serde_json::to_value(Journal {
        followed: Some(followed(&key())),
        tried: Some(target(4, Class::Nixos).generation),
        ..Journal::default()
    })
    .unwrap();
    journal["followed"]["said"] = "thought-better-of-it".into();
    let read: Journal = serde_json::from_value(journal).unwrap();
    assert_eq!((read.followed, read.tried.map(|tried| tried.get())), (None, Some(4)));
}
