//! What must hold when a cell has ended.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use muster_protocol::report::{EventKind, Reason};
use serde_json::Value;

use super::steps::Way;
use crate::fleet::Fleet;
use crate::machine::Machine;
use crate::stand_in::wire::find;

/// The time between two looks at what is awaited.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A document of the machine's state folder.
pub fn document(fleet: &Fleet, name: &str, file: &str) -> Option<Value> {
    let path = fleet.machine(name).root.at("/var/lib/muster").join(file);
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// Whether the machine has finished with this generation, according to its own files.
pub fn is_over(fleet: &Fleet, name: &str, generation: u64) -> bool {
    let tried = document(fleet, name, "journal.json").and_then(|journal| journal["tried"].as_u64());
    tried >= Some(generation) && document(fleet, name, "transaction.json").is_none()
}

/// Whether the agent answers and has no pending reports.
pub fn has_no_pending_reports(fleet: &Fleet, name: &str) -> bool {
    let Ok(status) = fleet.agent(name, &["status", "--json"]) else { return false };
    let status: Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
    status["agent_running"] == true && status["reports_waiting"] == 0
}

/// Whether its last failure was an absent controller, and it has not given up: it starts again as soon as the
/// controller answers.
pub fn comes_again(fleet: &Fleet, name: &str, generation: u64) -> bool {
    let events = fleet.events(name, generation).unwrap_or_default();
    let last = events.iter().rev().find(|event| {
        matches!(event, EventKind::Confirmed { .. } | EventKind::RolledBack { .. } | EventKind::Failed { .. })
    });
    matches!(
        last,
        Some(EventKind::RolledBack { reason: Reason::ControllerUnreachable, quarantined: false, .. })
    )
}

/// I1 to I5 and I9, and that the report arrived exactly once.
pub fn check(fleet: &Fleet, name: &str, way: Way, old: &StorePath, generation: u64) -> Result<&'static str> {
    let machine = fleet.machine(name);
    let view = fleet.view(name)?;
    let published = view.published.as_ref().map(|published| published.target.clone());
    let new = published.as_ref().map(|target| target.output.clone());
    let running = machine.running();
    let gave_up = way == Way::OldFails;

    ensure!(
        running.as_ref() == Some(old) || running == new,
        "I1, I3: it runs {running:?}, neither OLD ({old}) nor what was signed ({new:?})"
    );
    let journal = document(fleet, name, "journal.json").unwrap_or_default();
    ensure!(
        journal["tried"].as_u64() == Some(generation),
        "I2: it was taken to generation {generation} and remembers {}",
        journal["tried"]
    );
    if !gave_up {
        ensure!(
            machine.profile() == running,
            "I3: it runs {running:?} and would boot {:?}",
            machine.profile()
        );
        if machine.class() == Class::Nixos {
            let entry = fs::read_to_string(machine.root.at("/boot/entry"))?;
            let boots = entry.trim().strip_prefix("default ").and_then(|path| path.parse().ok());
            ensure!(boots == running, "I3: it runs {running:?} and its boot loader has {entry}");
        }
        if machine.class() == Class::Darwin {
            // A job that was just reloaded is missing for a moment.
            let mut seen = whole(machine);
            for _ in 0..50 {
                if seen.is_ok() {
                    break;
                }
                std::thread::sleep(LOOK_AGAIN);
                seen = whole(machine);
            }
            seen?;
        }
        let ill = matches!(way, Way::Ill | Way::BuildFails | Way::Dry);
        ensure!(!ill || running.as_ref() == Some(old), "I4: a generation that is not well was left running");
    }

    let events = fleet.events(name, generation)?;
    let ends: Vec<&EventKind> = events
        .iter()
        .filter(|event| match event {
            EventKind::Confirmed { .. } | EventKind::RolledBack { .. } | EventKind::Failed { .. } => true,
            EventKind::NeedsHuman { .. } => gave_up,
            _ => false,
        })
        .collect();
    let unreachable = |event: &&EventKind| {
        matches!(event, EventKind::RolledBack { reason: Reason::ControllerUnreachable, .. })
    };
    // An update that failed because the controller was absent is reported as such, and retried when it
    // answers.
    let again = ends.iter().copied().filter(|event| unreachable(event)).count();
    ensure!(
        ends.len() == again + 1 || ends.last().is_some_and(unreachable),
        "reported as ended {} times: {ends:#?}",
        ends.len()
    );
    let begun = events.iter().filter(|event| matches!(event, EventKind::Activating { .. })).count();
    ensure!(begun <= again + 1, "I5: it was activated {begun} times: {events:#?}");
    for kind in ["verified", "fetched", "built"] {
        let times = events.iter().filter(|event| is(event, kind)).count();
        ensure!(times <= again + 1, "'{kind}' was reported {times} times");
    }
    let mut numbers: Vec<u64> =
        fleet.history(name)?.iter().flat_map(|entry| entry.events.iter().map(|event| event.seq)).collect();
    let arrived = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    ensure!(numbers.len() == arrived, "I7: a report arrived twice");

    // A child of the agent has the agent's name for a moment, until exec.
    let alone = || fleet.agent_pids(name).len() == 1;
    ensure!(
        (0..50).any(|_| alone() || {
            std::thread::sleep(LOOK_AGAIN);
            false
        }),
        "I9: {} agents run",
        fleet.agent_pids(name).len()
    );
    Ok(match ends.last() {
        Some(EventKind::Confirmed { .. }) if way == Way::Dry => "OLD, tried",
        Some(EventKind::Confirmed { .. }) => "NEW",
        Some(EventKind::RolledBack { .. }) => "OLD",
        Some(EventKind::Failed { .. }) => "OLD, failed",
        _ => "person",
    })
}

/// I3 on a Mac: what its system brings is there, and nothing of another system.
fn whole(machine: &Machine) -> Result<()> {
    let running = machine.running().context("it runs nothing")?;
    let system = machine.physical(&running);
    let names = |folder: PathBuf| -> BTreeSet<String> {
        let entries = fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    };
    let daemons = machine.root.at("/Library/LaunchDaemons");
    let mut installed = names(daemons.clone());
    for own in ["org.muster.agent.plist", "org.muster.activator.plist"] {
        installed.remove(own);
    }
    let wanted = names(system.join("Library/LaunchDaemons"));
    ensure!(installed == wanted, "I3: {running} has the jobs {wanted:?}, and there are {installed:?}");
    for name in &wanted {
        let same =
            fs::read(daemons.join(name))? == fs::read(system.join("Library/LaunchDaemons").join(name))?;
        ensure!(same, "I3: {name} is of another system than {running}");
        let label = name.trim_end_matches(".plist");
        ensure!(find(&machine.root, label)?.is_some(), "I3: launchd does not have {label}");
    }
    let users: BTreeSet<String> =
        fs::read_to_string(system.join("users"))?.lines().map(str::to_owned).collect();
    let made = names(machine.root.at("/var/db/users"));
    ensure!(made == users, "I3: {running} has the users {users:?}, and there are {made:?}");
    for name in names(system.join("etc")) {
        let file = machine.root.resolve(&Path::new("/etc").join(&name))?;
        let same = fs::read(&file).ok() == fs::read(system.join("etc").join(&name)).ok();
        ensure!(same, "I3: /etc/{name} is of another system than {running}");
    }
    Ok(())
}

fn is(event: &EventKind, kind: &str) -> bool {
    serde_json::to_value(event).is_ok_and(|value| value["kind"] == kind)
}
