use muster_protocol::keys::SecretKey;
use serde_json::json;

use super::*;

pub fn output(name: &str) -> StorePath {
    format!("/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-{name}").parse().unwrap()
}

fn member(name: &str, class: Class, tags: &[&str]) -> Member {
    let own = [class.as_str(), "all"];
    Member {
        machine: name.parse().unwrap(),
        class,
        tags: tags.iter().chain(&own).map(ToString::to_string).collect(),
        output: output(name),
        key: Ok(SecretKey::generate().unwrap().public()),
    }
}

fn hosts(count: usize) -> Vec<Member> {
    (0..count).map(|number| member(&format!("m{number}"), Class::Nixos, &[])).collect()
}

pub fn identity() -> Identity {
    Identity {
        fleet: Sha256::of(b"fleet"),
        epoch: Epoch::default(),
        name: "weekly".parse().unwrap(),
        nonce: Sha256::of(b"nonce"),
    }
}

fn worked(written: &serde_json::Value, members: &[Member]) -> Result<Worked, RolloutError> {
    let written = Written::read("x", written).unwrap();
    let known = Known {
        machines: members.iter().map(|one| one.machine.clone()).chain(["away".parse().unwrap()]).collect(),
        tags: members.iter().flat_map(|one| one.tags.clone()).chain(["empty".into()]).collect(),
    };
    work_out(&written, &identity(), members, &known)
}

/// The plan of a written rollout, for other modules' tests.
pub fn plan_of(written: &serde_json::Value, names: &[&str]) -> Plan {
    let members: Vec<Member> = names.iter().map(|name| member(name, Class::Nixos, &[])).collect();
    worked(written, &members).unwrap().plan
}

fn names(wave: &Wave) -> Vec<&str> {
    let mut names: Vec<&str> = wave.members.iter().map(MachineName::as_str).collect();
    names.sort_unstable();
    names
}

#[test]
fn a_machine_goes_into_the_first_wave_that_matches_and_the_rest_into_the_last() {
    let members = [
        member("tin", Class::Nixos, &["canary"]),
        member("iron", Class::Darwin, &["canary"]),
        member("lead", Class::Nixos, &[]),
        member("zinc", Class::Darwin, &[]),
    ];
    let worked = worked(
        &json!({ "waves": [
            { "name": "canaries", "machines": ["tin"], "tags": ["canary"] },
            { "name": "macs", "class": "darwin" },
        ] }),
        &members,
    )
    .unwrap();
    let all: Vec<_> = worked.plan.waves.iter().map(|wave| (wave.name.as_str(), names(wave))).collect();
    assert_eq!(all, [("canaries", vec!["iron", "tin"]), ("macs", vec!["zinc"]), ("rest", vec!["lead"])]);
    assert_eq!(worked.notes, ["1 machine that no wave takes is in a last wave 'rest'"]);
}

#[test]
fn a_class_narrows_names_and_tags() {
    let members = [
        member("tin", Class::Nixos, &["a"]),
        member("iron", Class::Darwin, &["a"]),
        member("z", Class::Nixos, &[]),
    ];
    let plan = worked(&json!({ "waves": [{ "name": "x", "tags": ["a"], "class": "darwin" }] }), &members);
    assert_eq!(names(&plan.unwrap().plan.waves[0]), ["iron"]);
}

#[test]
fn a_percentage_is_of_what_is_left_and_rounded_up() {
    let written = json!({ "waves": [
        { "name": "a", "percent": 10 }, { "name": "b", "percent": 50 }, { "name": "c" },
    ] });
    let sizes = |count| -> Vec<usize> {
        worked(&written, &hosts(count)).unwrap().plan.waves.iter().map(|wave| wave.members.len()).collect()
    };
    assert_eq!(sizes(21), [3, 9, 9]);
    assert_eq!(sizes(3), [1, 1, 1]);
    // Of the last wave nobody waits; each other one would leave its gate to nobody.
    let few = worked(&written, &hosts(2)).unwrap();
    assert_eq!(
        (few.plan.waves.len(), &few.notes[..]),
        (2, &["wave 'c' has none of the machines that are updated".to_owned()][..])
    );
    assert!(matches!(worked(&written, &hosts(1)), Err(RolloutError::Empty(wave)) if wave == "b"));
}

#[test]
fn a_machine_that_joins_does_not_reshuffle_the_others() {
    let written = json!({ "waves": [{ "name": "a", "percent": 10 }, { "name": "b", "percent": 30 }] });
    let members = hosts(40);
    let before = worked(&written, &members[..39]).unwrap().plan;
    let after = worked(&written, &members).unwrap().plan;
    let order = |plan: &Plan| -> Vec<MachineName> {
        plan.waves
            .iter()
            .flat_map(|wave| &wave.members)
            .filter(|name| name.as_str() != "m39")
            .cloned()
            .collect()
    };
    assert_eq!(order(&before), order(&after));
    assert_eq!(before.waves[0].members.len(), 4, "39 hosts");
}

#[test]
fn what_is_not_written_is_careful() {
    let plan = worked(
        &json!({ "waves": [{ "name": "a", "machines": ["m0", "m1"] }, { "name": "b", "percent": 34 }] }),
        &hosts(60),
    )
    .unwrap()
    .plan;
    let of = |wave: &Wave| (wave.at_least, wave.percent, wave.soak_seconds, wave.max_in_flight);
    assert_eq!(of(&plan.waves[0]), (2, 100, 3600, 1));
    assert_eq!(of(&plan.waves[1]), (18, 90, 900, 5), "20 machines");
    assert_eq!(of(&plan.waves[2]), (0, 0, 900, 10), "nobody waits for the last one");
    assert_eq!((plan.budget, plan.failures), (0, vec![Failure::RolledBack, Failure::NeedsHuman]));
    let budget = |count, budget: serde_json::Value| {
        worked(&json!({ "budget": budget }), &hosts(count)).unwrap().plan.budget
    };
    assert_eq!([99, 100, 250].map(|count| budget(count, json!(null))), [0, 1, 2]);
    assert_eq!((budget(99, json!("2%")), budget(3, json!(3))), (1, 3));
}

#[test]
fn at_most_64_of_a_wave_vouch_and_percentages_are_of_them() {
    let written = json!({ "waves": [{ "name": "a", "percent": 50, "atLeast": "90%" }] });
    let members = hosts(300);
    let plan = worked(&written, &members).unwrap().plan;
    assert_eq!((plan.waves[0].vouchers.len(), plan.waves[0].at_least, plan.waves[0].percent), (64, 58, 90));
    assert_eq!(plan, worked(&written, &members).unwrap().plan, "a sample by the seed");
    // Who comes first is among them wherever it stands.
    for first in plan.waves[0].members.iter().rev().take(3) {
        let last_of_wave = json!({
            "waves": [{ "name": "a", "percent": 50 }],
            "after": { plan.waves[1].members[0].as_str(): [first] },
        });
        let plan = worked(&last_of_wave, &members).unwrap().plan;
        assert!(plan.voucher(first).is_some() && plan.waves[0].vouchers.len() == 64);
    }
}

#[test]
fn only_a_proved_key_vouches_and_a_wave_that_asks_for_more_is_refused() {
    let mut members = hosts(4);
    members[0].key = Err("bob invited it".into());
    let of_three = ["m0", "m1", "m2"];
    let written = |at_least: serde_json::Value| {
        json!({
            "waves": [{ "name": "a", "machines": of_three, "atLeast": at_least }],
        })
    };
    let found = worked(&written(json!(null)), &members).unwrap();
    assert_eq!((found.plan.waves[0].vouchers.len(), found.plan.waves[0].at_least), (2, 2));
    assert_eq!(found.cannot_vouch, [("m0".parse().unwrap(), "bob invited it".to_owned())]);
    assert!(worked(&written(json!(2)), &members).is_ok());
    let refused = worked(&written(json!(3)), &members).unwrap_err().to_string();
    assert!(refused.contains("wants 3 machines") && refused.contains("2 of its 3 can vouch"), "{refused}");
    assert!(refused.contains("m0: bob invited it"), "{refused}");
    for one in &mut members {
        one.key = Err("bob invited it".into());
    }
    let refused = worked(&written(json!(null)), &members).unwrap_err();
    assert!(matches!(refused, RolloutError::NoVoucher { .. }), "{refused}");
    // One wave alone asks nobody.
    assert!(worked(&json!({}), &members).is_ok());
    let first = worked(&json!({ "after": { "m1": ["m0"] } }), &members).unwrap_err();
    assert!(matches!(first, RolloutError::First { .. }), "{first}");
}

#[test]
fn empty_waves_and_unknown_names_are_refused() {
    let members = hosts(3);
    let wave = |more: serde_json::Value| worked(&json!({ "waves": [more] }), &members);
    assert!(matches!(wave(json!({ "name": "a", "machines": ["away"] })), Err(RolloutError::Empty(_))));
    assert!(matches!(wave(json!({ "name": "a", "tags": ["empty"] })), Err(RolloutError::Empty(_))));
    assert!(matches!(wave(json!({ "name": "a", "class": "darwin" })), Err(RolloutError::Empty(_))));
    let unknown = wave(json!({ "name": "a", "machines": ["m9"] })).unwrap_err().to_string();
    assert!(unknown.contains("'a' names m9"), "{unknown}");
    let unknown = wave(json!({ "name": "a", "tags": ["canry"] })).unwrap_err().to_string();
    assert!(unknown.contains("canry") && unknown.contains("all, empty, nixos"), "{unknown}");
}

#[test]
fn an_order_that_cannot_be_kept_is_refused_and_one_without_its_first_is_told() {
    let members = hosts(3);
    let after = |after: serde_json::Value| {
        worked(&json!({ "waves": [{ "name": "a", "machines": ["m0"] }], "after": after }), &members)
    };
    assert!(matches!(after(json!({ "m0": ["m1"] })), Err(RolloutError::Plan(PlanError::After { .. }))));
    assert!(after(json!({ "m1": ["m2"], "m2": ["m1"] })).is_err());
    let told = after(json!({ "m1": ["away", "m0"], "away": ["m0"] })).unwrap();
    assert_eq!(told.notes[1], "m1 does not wait for away, which is not updated");
    assert_eq!(told.plan.after.len(), 1);
    // A name that nobody has is a misspelled one, on either side.
    for misspelled in [json!({ "m7": ["m0"] }), json!({ "m1": ["m7"] })] {
        assert!(
            matches!(after(misspelled), Err(RolloutError::UnknownOrder { name, .. }) if name.as_str() == "m7")
        );
    }
}

#[test]
fn one_key_of_two_machines_is_refused() {
    let mut members = hosts(2);
    members[1].key = members[0].key.clone();
    let refused = worked(&json!({}), &members).unwrap_err();
    assert!(matches!(refused, RolloutError::Plan(PlanError::SharedKey { .. })), "{refused}");
}
