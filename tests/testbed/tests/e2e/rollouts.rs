//! Updates in waves, with real agents of both classes: canaries first, a laptop that is away, a controller
//! that is killed in the middle, a generation that fails, and holding it all.

use std::fs;
use std::path::PathBuf;

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::operator::{Condition, MemberState, RolloutState, RolloutView};
use muster_protocol::report::EventKind;
use muster_testbed::fleet::{Fleet, PATIENCE};
use muster_testbed::stand_in::processes;
use muster_testbed::{printed, programs};
use rustix::process::Signal;

use crate::common::{assert_events_in_order, assert_runs_published};
use crate::operators::flake;

const CANARIES: [&str; 2] = ["canary-host", "canary-mac"];
const EARLY: [&str; 4] = ["early-1", "early-2", "early-mac-1", "early-mac-2"];
const LATE: [&str; 6] = ["late-1", "late-2", "late-3", "late-mac-1", "late-mac-2", "late-mac-3"];
/// The laptop that is closed when the update begins.
const AWAY: &str = "late-mac-2";

/// Twelve machines, six of each class.
fn twelve() -> Vec<(&'static str, String)> {
    let system = |name: &str| match name.contains("mac") {
        true => "aarch64-darwin".to_owned(),
        false => programs::host_system().replace("darwin", "linux"),
    };
    CANARIES.iter().chain(&EARLY).chain(&LATE).map(|name| (*name, system(name))).collect()
}

/// Three waves that soak for a moment.
fn written(fleet: &Fleet, budget: u32) -> PathBuf {
    let list = |names: &[&str]| names.iter().map(|name| format!("\"{name}\"")).collect::<Vec<_>>().join(", ");
    let text = format!(
        "budget = {budget}\n\
         [[waves]]\nname = \"canaries\"\nmachines = [{}]\natLeast = 2\nsoak = \"2s\"\nmaxInFlight = 2\n\
         [[waves]]\nname = \"early\"\nmachines = [{}]\natLeast = 3\nsoak = \"1s\"\nmaxInFlight = 2\n\
         [[waves]]\nname = \"late\"\nmaxInFlight = 6\nsoak = \"1s\"\n",
        list(&CANARIES),
        list(&EARLY)
    );
    let path = fleet.folder().join("waves.toml");
    fs::write(&path, text).unwrap();
    path
}

fn update(fleet: &Fleet, budget: u32) {
    let file = written(fleet, budget);
    let file = file.to_str().unwrap();
    let arguments = ["update", "--yes", "--flake", &flake(fleet), "--rollout-file", file];
    let said = fleet.must(&arguments).unwrap();
    assert!(said.contains("canaries"), "the plan is shown: {said}");
}

/// Waits until the rollout of this name is as wanted.
#[track_caller]
fn wait(fleet: &Fleet, name: &str, what: &str, wanted: impl Fn(&RolloutView) -> bool) -> RolloutView {
    let clock = SystemClock::new();
    loop {
        let printed = fleet.must(&["rollout", "show", name, "--json"]).unwrap();
        let view: RolloutView = printed::read(&printed).unwrap();
        if wanted(&view) {
            return view;
        }
        let shown = || serde_json::to_string_pretty(&view).unwrap();
        assert!(clock.awake() < PATIENCE, "{what} did not come about: {}", shown());
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

/// When the machine began to switch to its generation, and when that was confirmed.
fn times(fleet: &Fleet, name: &str, generation: u64) -> (i64, Option<i64>) {
    let history = fleet.history(name).unwrap();
    let entry = history.iter().find(|entry| entry.published.target.generation.get() == generation).unwrap();
    let when =
        |wanted: fn(&EventKind) -> bool| entry.events.iter().find(|event| wanted(&event.kind)).map(|e| e.at);
    let began = when(|kind| matches!(kind, EventKind::Activating { .. }));
    let confirmed = when(|kind| matches!(kind, EventKind::Confirmed { .. }));
    (began.unwrap_or_else(|| panic!("{name} never began")), confirmed)
}

fn has_begun(fleet: &Fleet, name: &str, generation: u64) -> bool {
    let events = fleet.events(name, generation).unwrap();
    events.iter().any(|kind| matches!(kind, EventKind::Activating { .. }))
}

#[test]
fn twelve_machines_take_a_generation_in_three_waves_through_a_killed_controller_and_a_closed_lid() {
    let mut fleet = Fleet::start(&twelve()).unwrap();
    fleet.must(&["machines", "prove"]).unwrap();
    fleet.machine(AWAY).stop(true).unwrap();
    update(&fleet, 0);

    // The canaries soak; then the controller dies.
    wait(&fleet, "waves", "confirmed canaries", |view| view.waves[0].confirmed + view.waves[0].soaked == 2);
    processes::signal(i32::try_from(fleet.controller_pid().unwrap()).unwrap(), Signal::KILL);
    fleet.stop_controller().unwrap();
    fleet.start_controller().unwrap();

    let there = || twelve().into_iter().map(|(name, _)| name).filter(|name| *name != AWAY);
    for name in there() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
    }
    let canaries = CANARIES.map(|name| times(&fleet, name, 1).1.unwrap());
    let early: Vec<_> = EARLY.iter().map(|name| times(&fleet, name, 1)).collect();
    let late: Vec<_> = LATE.iter().filter(|name| **name != AWAY).map(|name| times(&fleet, name, 1)).collect();
    for (began, _) in &early {
        assert!(canaries.iter().all(|confirmed| began - confirmed >= 2000), "{canaries:?}, {early:?}");
    }
    // Three of four early machines must have soaked.
    let mut soaked: Vec<i64> = early.iter().map(|(_, confirmed)| confirmed.unwrap() + 1000).collect();
    soaked.sort_unstable();
    assert!(late.iter().all(|(began, _)| *began >= soaked[2]), "{early:?}, {late:?}");

    // The laptop comes back and joins.
    fleet.machine(AWAY).start().unwrap();
    fleet.settled(AWAY, 1, Condition::UpToDate).unwrap();
    for (name, _) in twelve() {
        assert_runs_published(&fleet, name);
        assert_events_in_order(&fleet, name);
    }
    let done = wait(&fleet, "waves", "the end", |view| view.state == RolloutState::Done);
    assert!(done.members.iter().all(|member| member.state == MemberState::Soaked), "{done:?}");
}

#[test]
fn a_generation_that_fails_on_a_canary_reaches_nobody_else_and_the_brake_holds_the_next_one() {
    let fleet = Fleet::start(&twelve()[..6]).unwrap();
    fleet.must(&["machines", "prove"]).unwrap();
    fleet.fixture.say("health", "bad").unwrap();
    let two = fleet.folder().join("two.toml");
    fs::write(
        &two,
        "[[waves]]\nname = \"canaries\"\nmachines = [\"canary-host\", \"canary-mac\"]\natLeast = 1\nsoak = \"1s\"\n\
         [[waves]]\nname = \"rest\"\nsoak = \"1s\"\n",
    )
    .unwrap();
    let update = ["update", "--yes", "--flake", &flake(&fleet), "--rollout-file", two.to_str().unwrap()];
    fleet.must(&update).unwrap();
    wait(&fleet, "two", "a halt", |view| view.state == RolloutState::Halted);
    for name in EARLY {
        assert!(!has_begun(&fleet, name, 1), "{name}");
        let said = fleet.view(name).unwrap().rollout.map(|member| member.why).unwrap_or_default();
        assert!(said.contains("failed"), "{name} says what holds it: {said}");
    }

    // What is good takes its place; the brake holds it.
    fleet.fixture.unsay("health").unwrap();
    fleet.must(&["brake"]).unwrap();
    fleet.must(&update).unwrap();
    wait(&fleet, "two", "the brake", |view| view.why.contains("brake"));
    // One canary tried it, since one at a time may; the other was held.
    let tried = CANARIES.iter().filter(|name| has_begun(&fleet, name, 1));
    assert_eq!(tried.count(), 1);
    assert!(CANARIES.iter().all(|name| !has_begun(&fleet, name, 2)));
    fleet.must(&["brake", "--off"]).unwrap();
    for (name, _) in &twelve()[..6] {
        fleet.settled(name, 2, Condition::UpToDate).unwrap();
    }
}
