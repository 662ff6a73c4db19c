//! The controller is lost: with a backup that is older than what its machines hold, and with none.

use std::fs;

use muster_protocol::operator::Condition;
use muster_testbed::fleet::{Fleet, both, said};

use crate::common::{assert_events_in_order, assert_runs_published};

const NAME: &str = "cinnabar";

/// The running system says this.
#[track_caller]
fn says(fleet: &Fleet, words: &str) {
    assert_eq!(fleet.machine(NAME).greeting().unwrap(), words);
}

fn publish(fleet: &Fleet, words: &str) {
    fleet.fixture.say("greeting", words).unwrap();
    fleet.update(&[]).unwrap();
}

#[test]
fn a_lost_controller_comes_back_from_an_older_backup_and_from_nothing_and_its_machines_go_on() {
    let mut fleet = Fleet::start(&both()[..1]).unwrap();
    publish(&fleet, "one");
    fleet.settled(NAME, 1, Condition::UpToDate).unwrap();
    // While it runs.
    let folder = fleet.folder().join("backup");
    let folder = folder.to_str().unwrap().to_owned();
    let told = fleet.must(&["backup", &folder]).unwrap();
    assert!(told.contains("No key is in it"), "{told}");
    let again = fleet.run(&["backup", &folder]).unwrap();
    assert!(!again.status.success() && said(&again).contains("exists"), "{}", said(&again));
    let early = fleet.run(&["restore", &folder]).unwrap();
    assert!(!early.status.success() && said(&early).contains("another controller uses"), "{}", said(&early));
    publish(&fleet, "two");
    fleet.settled(NAME, 2, Condition::UpToDate).unwrap();

    fleet.stop_controller().unwrap();
    let data = fleet.controller_folder().join("data");
    fs::remove_dir_all(&data).unwrap();
    let told = fleet.must(&["restore", &folder]).unwrap();
    assert!(told.contains("is restored") && told.contains("`muster machines revoke`"), "{told}");
    fleet.start_controller().unwrap();
    // It runs on what it holds, and refuses what is older.
    let view = fleet.wait(NAME, "a check-in with what it holds", |view| view.holds.targets == 2).unwrap();
    assert!(!view.clone_alarm && view.published.unwrap().target.generation.get() == 1);
    says(&fleet, "two");
    publish(&fleet, "three");
    let view = fleet.settled(NAME, 3, Condition::UpToDate).unwrap();
    assert!(!view.clone_alarm && view.attack.is_none(), "{view:?}");
    says(&fleet, "three");
    assert_runs_published(&fleet, NAME);
    assert_events_in_order(&fleet, NAME);

    // Without any backup: its key is in the list that an operator kept.
    let list = fleet.folder().join("machines.json");
    fs::write(&list, fleet.must(&["machines", "list", "--json"]).unwrap()).unwrap();
    let key = fleet.view(NAME).unwrap().key;
    fleet.stop_controller().unwrap();
    fs::remove_dir_all(&data).unwrap();
    fleet.start_controller().unwrap();
    let list = list.to_str().unwrap();
    let told = fleet.must(&["machines", "readmit", list]).unwrap();
    assert!(told.contains("1 machine admitted, 0 known already"), "{told}");
    let told = fleet.must(&["machines", "readmit", list, NAME]).unwrap();
    assert!(told.contains("0 machines admitted, 1 known already"), "{told}");
    let view = fleet.wait(NAME, "a check-in with what it holds", |view| view.holds.targets == 3).unwrap();
    assert_eq!((view.key, view.clone_alarm), (key, false));
    says(&fleet, "three");
    publish(&fleet, "four");
    let view = fleet.settled(NAME, 4, Condition::UpToDate).unwrap();
    assert!(!view.clone_alarm && view.attack.is_none(), "{view:?}");
    says(&fleet, "four");
    assert_runs_published(&fleet, NAME);
    assert_events_in_order(&fleet, NAME);
}
