//! `muster-agent status`: what the agent tells, or else what its files and the machine say, for people to read.

use std::fmt::Write as _;

use anyhow::{Result, bail};
use muster_protocol::checkin::{Phase, Runs};
use muster_protocol::clock::UnixMillis;

use crate::config::Config;
use crate::identity::Identity;
use crate::journal::Files;
use crate::local::Status;
use crate::outbox::{self, Outbox};
use crate::platform::Layout;
use crate::trust::Trust;

/// The status of a machine whose agent does not run.
pub fn from_files(config: &Config) -> Result<Status> {
    let Some(identity) = Identity::load(config)? else {
        bail!("this machine is not enrolled: run muster-agent enroll TOKEN");
    };
    let trust = Trust::open(config, &identity)?;
    let files = Files::new(&config.state_dir);
    let journal = files.journal()?.whole().unwrap_or_default();
    let transaction = files.transaction()?.whole();
    let (phase, generation, note) = match (&transaction, journal.last) {
        (Some(open), _) => {
            (open.state.phase(), Some(open.generation()), open.state.note().map(str::to_owned))
        }
        (None, Some(last)) => (last.phase, Some(last.generation), last.note),
        (None, None) => (Phase::Idle, None, None),
    };
    let layout = Layout::new(config, identity.class);
    let link = |path| std::fs::read_link(path).ok().and_then(|text| layout.logical(&text));
    let runs = link(layout.current_system()).map(|running| Runs {
        generation: journal.confirmed.filter(|known| known.output == running).map(|known| known.generation),
        profile: profile(&layout),
        running,
    });
    let waiting = Outbox::count(&config.state(outbox::FOLDER));
    Ok(Status {
        agent_running: false,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        machine: identity.machine,
        class: identity.class,
        system: identity.system,
        controller: identity.url,
        fleet: identity.fleet,
        phase,
        phase_generation: generation,
        note,
        verified: trust.held().map(|target| target.generation),
        runs,
        holds: trust.holds(),
        refused: None,
        last_contact: None,
        reports_waiting: waiting,
    })
}

/// What the system profile means: `system` → `system-7-link` → the store.
pub fn profile(layout: &Layout) -> Option<muster_protocol::ids::StorePath> {
    let profile = layout.profile();
    let step = std::fs::read_link(&profile).ok()?;
    let generation = profile.parent()?.join(&step);
    layout.logical(&std::fs::read_link(generation).unwrap_or(step))
}

/// Lines for people.
pub fn text(status: &Status, now: UnixMillis) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<12} {value}");
    };
    line("machine", &format!("{} ({}, {})", status.machine, status.class, status.system));
    if !status.agent_running {
        line("agent", "does not run; this is what its files say");
    }
    let generation = status.phase_generation.map(|n| format!(", generation {n}")).unwrap_or_default();
    line("phase", &format!("{}{generation}", status.phase.as_str()));
    if let Some(note) = &status.note {
        line("note", note);
    }
    match &status.runs {
        Some(runs) => {
            let generation = runs.generation.map(|n| format!(" (generation {n})")).unwrap_or_default();
            line("running", &format!("{}{generation}", runs.running));
            if let Some(profile) = runs.profile.as_ref().filter(|profile| **profile != runs.running) {
                line("profile", &format!("{profile} (another than what runs)"));
            }
        }
        None => line("running", "not known"),
    }
    line("verified", &status.verified.map_or("nothing yet".to_owned(), |n| format!("generation {n}")));
    if let Some(attack) = status.refused {
        line("refused", &format!("the last answer, as {}", attack.as_str()));
    }
    let contact = match status.last_contact {
        Some(at) => format!(", answered {} s ago", (now - at).max(0) / 1000),
        None if status.agent_running => ", not reached since the agent started".to_owned(),
        None => String::new(),
    };
    line("controller", &format!("{}{contact}", status.controller));
    line("reports", &format!("{} waiting", status.reports_waiting));
    text
}
