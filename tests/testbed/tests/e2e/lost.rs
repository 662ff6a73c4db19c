//! The recoveries that docs/operators.md describes: a lost operator key, a lost online key, an expired root.

use std::fs;

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::operator::Condition;
use muster_protocol::report::Attack;
use muster_protocol::tuf::repository::{RootSpec, sign_root};
use muster_testbed::caller::key_in;
use muster_testbed::fleet::{Fleet, both, said as words_of};

use crate::operators::{Operator, flake, refused};

#[test]
fn a_lost_operator_key_is_replaced_by_the_root_holder_and_what_it_signed_is_signed_anew() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    let running = fleet.machine("cinnabar").running();
    let lost = fleet.config_folder().join("keys/operator.pem");
    let old = key_in(&lost).unwrap().public();
    fs::rename(&lost, fleet.folder().join("lost.pem")).unwrap();
    refused(&fleet.run(&["status"]).unwrap(), &["operator.pem"]);

    // As described in docs/operators.md.
    let new = fleet.must(&["keys", "generate", lost.to_str().unwrap(), "--plain"]).unwrap();
    let said = fleet.must(&["keys", "rotate", "operator", &old.short(), new.trim(), "--yes"]).unwrap();
    assert!(said.contains("muster update --refresh"), "{said}");
    let status = fleet.must(&["status"]).unwrap();
    assert!(status.contains("cinnabar"), "{status}");
    // The finder of the lost key learns that it is worthless.
    let finder = Operator::new(&fleet, "finder");
    fs::copy(fleet.folder().join("lost.pem"), finder.config.with_file_name("keys/operator.pem")).unwrap();
    finder.refused(&fleet, &["status"], &["is not an operator key"]);

    let renewed = fleet.must(&["update", "--refresh", "--yes", "--flake", &flake(&fleet)]).unwrap();
    assert!(renewed.contains("signed anew: too few of today's operators"), "{renewed}");
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    assert_eq!(fleet.machine("cinnabar").running(), running, "nothing else changed");
    fleet.fixture.say("greeting", "new hands").unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 3, Condition::UpToDate).unwrap();
    assert_eq!(fleet.machine("cinnabar").greeting().unwrap(), "new hands");
    // None of this is ever called an attack.
    assert!(fleet.must(&["history", "cinnabar", "--attacks"]).unwrap().contains("no attack"));
}

#[test]
fn a_lost_online_key_is_replaced_without_a_restart_and_without_an_alarm() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    let online = fleet.controller_folder().join("online.pem");
    let old = key_in(&online).unwrap().public();
    let new_file = fleet.folder().join("online-2.pem");
    let new = fleet.must(&["keys", "generate", new_file.to_str().unwrap(), "--plain"]).unwrap();
    fs::remove_file(&online).unwrap();
    let said = fleet.must(&["keys", "rotate", "online", &old.short(), new.trim(), "--yes"]).unwrap();
    assert!(said.contains("put the new one in the place of its online_key"), "{said}");
    // Until the new key is there, the controller signs nothing, and machines wait.
    fleet.fixture.say("greeting", "fresh").unwrap();
    let early = fleet.run(&["update", "--yes", "--flake", &flake(&fleet)]);
    fs::rename(&new_file, &online).unwrap();
    let early = early.unwrap();
    assert!(
        !early.status.success() && String::from_utf8_lossy(&early.stderr).contains("online_key"),
        "{}",
        words_of(&early)
    );
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    assert!(fleet.must(&["history", "cinnabar", "--attacks"]).unwrap().contains("no attack"));
}

#[test]
fn an_expired_root_stops_machines_where_they_are_and_a_renewed_one_sets_them_going() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    let before = fleet.machine("cinnabar").running();
    // The test cannot wait for a root to expire: this one has already expired.
    let keys = fleet.config_folder();
    let (root, operator) =
        (key_in(&keys.join("keys/root.pem")).unwrap(), key_in(&keys.join("keys/operator.pem")).unwrap());
    let spec = RootSpec {
        version: 2,
        epoch: Default::default(),
        expires: SystemClock::new().unix_seconds() - 60,
        root: (vec![root.public()], 1),
        operators: (vec![operator.public()], 1),
        online: vec![key_in(&fleet.controller_folder().join("online.pem")).unwrap().public()],
    };
    fs::write(fleet.controller_folder().join("root/2.root.json"), sign_root(&spec, &[&root]).unwrap())
        .unwrap();
    fleet.fixture.say("greeting", "late").unwrap();
    fleet.update(&[]).unwrap();
    let view = fleet.wait("cinnabar", "a refusal", |view| view.attack.is_some()).unwrap();
    assert_eq!((view.attack.unwrap().attack, view.condition), (Attack::Freeze, Condition::UnderAttack));
    assert_eq!(fleet.machine("cinnabar").running(), before);
    let listed = fleet.must(&["keys", "list"]).unwrap();
    assert!(listed.contains("muster keys renew"), "{listed}");

    fleet.must(&["keys", "renew", "--yes", "--days", "30"]).unwrap();
    // The daily commands warn before it happens again.
    let status = fleet.must(&["status"]).unwrap();
    assert!(status.contains("Root 3 ends on") && status.contains("muster keys renew"), "{status}");
    fleet.must(&["keys", "renew", "--yes"]).unwrap();
    assert!(!fleet.must(&["status"]).unwrap().contains("muster keys renew"));
    let asked = fleet.agent("cinnabar", &["check-now"]).unwrap();
    assert!(asked.status.success());
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    assert_eq!(fleet.machine("cinnabar").greeting().unwrap(), "late");
    let printed = fleet.must(&["history", "cinnabar", "--attacks"]).unwrap();
    assert!(printed.contains("freeze") && !printed.contains("goes on"), "{printed}");
}
