//! Generation after generation, good ones and a bad one.

use muster_protocol::checkin::Phase;
use muster_protocol::operator::Condition;
use muster_protocol::report::{EventKind, Reason};
use muster_testbed::fleet::{Fleet, Wishes, both};

use crate::common::{assert_events_in_order, assert_runs_published, has_words, only_outcome, reported};

#[test]
fn three_generations_reach_both_classes_and_the_unhealthy_one_is_undone_and_quarantined() {
    let fleet = Fleet::start(&both()).unwrap();
    let names = ["cinnabar", "stibnite"];
    let words = std::fs::read_to_string(fleet.fixture.words().join("own")).unwrap();
    for name in names {
        let view = fleet.view(name).unwrap();
        assert_eq!(view.condition, Condition::NoGeneration);
        assert_eq!(fleet.machine(name).greeting().unwrap(), "fresh from the installer");
        assert!(
            !has_words(&fleet, name, &words),
            "{name} knows the locked input before anything was published"
        );
    }

    fleet.fixture.say("greeting", "one").unwrap();
    fleet.update(&[]).unwrap();
    // The input's source is gone; whatever a machine builds from can only have come through the cache.
    std::fs::remove_dir_all(fleet.fixture.words()).unwrap();
    for name in names {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
        assert_runs_published(&fleet, name);
        assert_eq!(fleet.machine(name).greeting().unwrap(), "one");
        assert!(has_words(&fleet, name, &words));
    }

    fleet.fixture.say("greeting", "two").unwrap();
    fleet.update(&["@macs", "@hosts"]).unwrap();
    for name in names {
        fleet.settled(name, 2, Condition::UpToDate).unwrap();
        assert_runs_published(&fleet, name);
        assert_eq!(fleet.machine(name).greeting().unwrap(), "two");
    }
    let good: Vec<_> = names.iter().map(|name| fleet.machine(name).running()).collect();

    fleet.fixture.say("greeting", "three").unwrap();
    fleet.fixture.say("health", "ill").unwrap();
    fleet.update(&[]).unwrap();
    for (name, good) in names.iter().zip(&good) {
        fleet.settled(name, 3, Condition::RolledBack).unwrap();
        let machine = fleet.machine(name);
        assert_eq!(&machine.running(), good, "{name} runs generation 2 again");
        assert_eq!(&machine.profile(), good, "{name} will boot generation 2");
        assert_eq!(machine.greeting().unwrap(), "two");
        match only_outcome(&fleet, name, 3) {
            EventKind::RolledBack { reason, quarantined, detail, .. } => {
                assert_eq!(reason, Reason::HealthCheckFailed);
                assert!(quarantined);
                assert!(detail.contains("greeter"), "{detail}");
            }
            other => panic!("{name}: {other:?}"),
        }
        assert_events_in_order(&fleet, name);
    }

    // Asked again, the machine does not retry it (I5).
    for name in names {
        assert!(fleet.agent(name, &["check-now"]).unwrap().status.success());
        fleet.kill_agent(name).unwrap();
        fleet.until(name, "another agent", |_| !fleet.agent_pids(name).is_empty()).unwrap();
        let seen = fleet.view(name).unwrap().last_seen;
        fleet.wait(name, "a check-in of the new agent", |view| view.last_seen > seen).unwrap();
        let tried = reported(&fleet, name, 3);
        let activations = tried.iter().filter(|kind| matches!(kind, EventKind::Activating { .. })).count();
        assert_eq!(activations, 1, "{name}: {tried:#?}");
    }

    fleet.fixture.unsay("health").unwrap();
    fleet.update(&[]).unwrap();
    for name in names {
        fleet.settled(name, 4, Condition::UpToDate).unwrap();
        assert_eq!(fleet.machine(name).greeting().unwrap(), "three");
        assert_runs_published(&fleet, name);
    }
}

#[test]
fn a_machine_without_any_system_takes_its_first() {
    let machines = both();
    let mut fleet = Fleet::prepare(&machines, &Wishes { bare: true, ..Wishes::default() }).unwrap();
    for (name, _) in &machines {
        fleet.invite_and_enrol(name).unwrap();
        fleet.machine(name).start().unwrap();
    }
    fleet.update(&[]).unwrap();
    // NixOS does not switch a machine that does not run NixOS: the first system comes with a boot.
    fleet.wait("cinnabar", "a reboot to wait for", |view| view.phase == Some(Phase::AwaitingReboot)).unwrap();
    fleet.machine("cinnabar").stop(false).unwrap();
    fleet.machine("cinnabar").start().unwrap();
    for (name, _) in &machines {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
        assert_runs_published(&fleet, name);
    }
}

#[test]
fn only_the_machines_that_were_named_get_a_generation() {
    let fleet = Fleet::start(&both()).unwrap();
    fleet.update(&["@macs"]).unwrap();
    fleet.settled("stibnite", 1, Condition::UpToDate).unwrap();
    assert_eq!(fleet.view("cinnabar").unwrap().condition, Condition::NoGeneration);
}

#[test]
fn an_unrelated_failed_unit_degrades_a_good_switch_and_does_not_undo_it() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    let failed = fleet.machine("cinnabar").root.at("/run/stand-in-failed");
    std::fs::write(failed, "backup.service\n").unwrap();
    fleet.fixture.say("fail-at", "units").unwrap();
    fleet.fixture.say("fail-exit", "4").unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 1, Condition::Degraded).unwrap();
    assert_runs_published(&fleet, "cinnabar");
}

#[test]
fn an_operator_sees_what_would_change_before_anything_is_signed() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    let flake = format!("path:{}", fleet.fixture.flake().display());
    let said = fleet.must(&["update", "--dry-run", "--flake", &flake]).unwrap();
    assert!(said.contains("cinnabar"), "{said}");
    assert!(fleet.view("cinnabar").unwrap().published.is_none());
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    fleet.update(&[]).unwrap();
    let published = fleet.view("cinnabar").unwrap().published.unwrap();
    assert_eq!(published.target.generation.get(), 1, "an unchanged flake makes no generation");
}
