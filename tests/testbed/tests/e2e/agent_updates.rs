//! A generation that changes, breaks or removes the agent that switches to it (I4, I9).

use muster_protocol::operator::Condition;
use muster_protocol::report::EventKind;
use muster_testbed::fleet::{Fleet, both};
use muster_testbed::stand_in::processes;
use rustix::process::Signal;

use crate::common::{assert_agrees_with_itself, assert_runs_published, only_outcome};

/// The machine's agent job with a change, as part of the next generation.
fn change_job(fleet: &Fleet, name: &str, from: &str, to: &str) {
    let job = std::fs::read_to_string(fleet.machine(name).agent_job()).unwrap();
    let changed = job.replacen(from, to, 1);
    assert!(from == to || changed != job, "{name}: {from} is not in its job");
    fleet.fixture.say(&format!("agent-job.{name}"), changed.trim_end()).unwrap();
}

#[test]
fn an_agent_that_is_changed_by_its_own_switch_ends_it() {
    let fleet = Fleet::start(&both()).unwrap();
    for (name, _) in both() {
        // The kind of change that a new version or a changed setting makes.
        change_job(&fleet, name, "info,muster_agent=debug", "debug,muster_agent=debug");
    }
    let old: Vec<_> = both().iter().map(|(name, _)| fleet.agent_pids(name)).collect();
    fleet.update(&[]).unwrap();
    for ((name, _), old) in both().iter().zip(&old) {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
        assert!(matches!(only_outcome(&fleet, name, 1), EventKind::Confirmed { .. }));
        assert_runs_published(&fleet, name);
        fleet
            .until(name, "the new agent", |_| {
                let now = fleet.agent_pids(name);
                now.len() == 1 && &now != old
            })
            .unwrap();
    }
}

#[test]
fn failure_mode_15_an_agent_that_its_switch_boots_out_and_does_not_load_again_is_loaded_and_confirms() {
    let fleet = Fleet::start(&both()[1..]).unwrap();
    let name = "stibnite";
    let old = fleet.agent_pids(name);
    change_job(&fleet, name, "info,muster_agent=debug", "debug,muster_agent=debug");
    fleet.fixture.say("lose-agent", "yes").unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled(name, 1, Condition::UpToDate).unwrap();
    assert!(matches!(only_outcome(&fleet, name, 1), EventKind::Confirmed { .. }));
    assert_runs_published(&fleet, name);
    let now = fleet.agent_pids(name);
    assert!(now.len() == 1 && now != old, "{old:?} {now:?}");
}

#[test]
fn i4_a_generation_that_breaks_the_agent_is_undone_though_its_activator_is_killed_or_the_power_fails() {
    for power_failure in [false, true] {
        let fleet = Fleet::start(&both()).unwrap();
        for (name, _) in both() {
            change_job(&fleet, name, "RUST_LOG", "RUST_LOG");
        }
        fleet.update(&[]).unwrap();
        let agent = muster_testbed::programs::find("muster-agent").unwrap().display().to_string();
        let mut good = Vec::new();
        for (name, _) in both() {
            fleet.settled(name, 1, Condition::UpToDate).unwrap();
            good.push(fleet.machine(name).running());
            change_job(&fleet, name, &agent, "/bin/false");
        }
        fleet.fixture.say("deadline-seconds", "10").unwrap();
        fleet.update(&[]).unwrap();
        for ((name, _), good) in both().iter().zip(&good) {
            let waits = |machine: &muster_testbed::machine::Machine| {
                let record = machine.root.at("/var/lib/muster/activation.json");
                std::fs::read_to_string(record).is_ok_and(|record| record.contains("\"activated\""))
            };
            fleet.until(name, "the wait for a verdict", waits).unwrap();
            assert_ne!(&fleet.machine(name).running(), good);
            if power_failure {
                fleet.machine(name).stop(true).unwrap();
                fleet.machine(name).start().unwrap();
            } else {
                for pid in fleet.pids(name, &["activate"]) {
                    processes::signal(pid, Signal::KILL);
                }
            }
        }
        for ((name, _), good) in both().iter().zip(&good) {
            fleet.settled(name, 2, Condition::RolledBack).unwrap();
            assert_eq!(&fleet.machine(name).running(), good, "{name}");
            assert_agrees_with_itself(&fleet, name);
            only_outcome(&fleet, name, 2);
        }
    }
}

#[test]
fn a_generation_that_breaks_the_agent_is_undone_by_the_machine_alone() {
    let fleet = Fleet::start(&both()[1..]).unwrap();
    let name = "stibnite";
    change_job(&fleet, name, "RUST_LOG", "RUST_LOG");
    fleet.update(&[]).unwrap();
    fleet.settled(name, 1, Condition::UpToDate).unwrap();
    let good = fleet.machine(name).running();

    fleet.fixture.say("deadline-seconds", "10").unwrap();
    let agent = muster_testbed::programs::find("muster-agent").unwrap();
    change_job(&fleet, name, &agent.display().to_string(), "/bin/false");
    fleet.update(&[]).unwrap();
    fleet.settled(name, 2, Condition::RolledBack).unwrap();
    assert_eq!(fleet.machine(name).running(), good);
    assert_agrees_with_itself(&fleet, name);
    only_outcome(&fleet, name, 2);
}

#[test]
fn a_generation_that_removes_the_agent_is_undone_by_the_machine_alone() {
    let fleet = Fleet::start(&both()[1..]).unwrap();
    let name = "stibnite";
    change_job(&fleet, name, "RUST_LOG", "RUST_LOG");
    fleet.update(&[]).unwrap();
    fleet.settled(name, 1, Condition::UpToDate).unwrap();
    let good = fleet.machine(name).running();

    fleet.fixture.say("deadline-seconds", "10").unwrap();
    fleet.fixture.unsay(&format!("agent-job.{name}")).unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled(name, 2, Condition::RolledBack).unwrap();
    assert_eq!(fleet.machine(name).running(), good);
    assert_agrees_with_itself(&fleet, name);
    only_outcome(&fleet, name, 2);
}
