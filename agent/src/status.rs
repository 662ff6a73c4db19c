//! `muster-agent status`: what the agent reports, or else what its files and the machine show, for people to
//! read.

use anyhow::{Result, bail};
use muster_protocol::checkin::{Health, Phase, Runs};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Generation;
use muster_protocol::plan::{Plan, Said};
use muster_protocol::target::Target;
use muster_protocol::{moment, shown};

use crate::config::Config;
use crate::core::policy::{Hold, Stage};
use crate::core::records::{Cause, Journal, Transaction};
use crate::core::rollout::{Followed, is_turn};
use crate::core::state::State;
use crate::core::witness::contradict;
use crate::identity::Identity;
use crate::journal::Files;
use crate::local::{InRollout, Status, Vouches};
use crate::log_shown;
use crate::outbox::{self, Outbox};
use crate::platform::Layout;
use crate::trust::Trust;

/// The status of a machine whose agent is not running.
pub fn from_files(config: &Config) -> Result<Status> {
    let Some(identity) = Identity::load(config)? else {
        bail!("this machine is not enrolled: run muster-agent enrol -");
    };
    let trust = Trust::open(config, &identity)?;
    let files = Files::new(&config.state_dir);
    let journal = files.journal()?.whole().unwrap_or_default();
    let transaction = files.transaction()?.whole();
    let (phase, generation, note) = match (&transaction, &journal.last) {
        (Some(open), _) => {
            (open.state.phase(), Some(open.generation()), open.state.note().map(str::to_owned))
        }
        (None, Some(last)) => {
            let layout = Layout::new(config, identity.class);
            let remark = journal.remark(layout.specialisation().as_deref());
            let words: Vec<String> = last.note.iter().cloned().chain(remark).collect();
            (last.phase, Some(last.generation), Some(words.join("; ")).filter(|words| !words.is_empty()))
        }
        (None, None) => (Phase::Idle, None, None),
    };
    let held = trust.held().map(|target| target.generation);
    let next = next(
        transaction.as_ref().map(Transaction::generation),
        transaction.as_ref().map(|open| &open.state),
        held,
        &journal,
    );
    let paused_until = journal.pause.as_ref().map(|pause| pause.until.unwrap_or(UnixMillis::MAX));
    let layout = Layout::new(config, identity.class);
    let runs = layout.running().map(|running| Runs {
        generation: journal
            .confirmed
            .as_ref()
            .filter(|known| known.output == running)
            .map(|known| known.generation),
        profile: profile(&layout),
        running,
    });
    let log = log_shown::read(&config.state_dir, &identity.fleet).log;
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
        verified: held,
        runs,
        holds: trust.holds(),
        refused: None,
        health: Health { paused_until, ..Health::default() },
        next,
        last_contact: None,
        reports_waiting: waiting,
        shut_out: None,
        age: Some(identity.age),
        key: Some(identity.key.public()),
        log,
        rollout: in_rollout(
            transaction.as_ref(),
            trust.held().as_ref(),
            trust.plan().as_ref().map(|(_, plan)| plan.as_ref()),
        ),
        vouches: journal.followed.as_ref().map(vouches),
    })
}

/// The rollout of what is under way, or else of what is wanted; `plan` is the plan that is wanted.
pub fn in_rollout(
    open: Option<&Transaction>,
    wanted: Option<&Target>,
    plan: Option<&Plan>,
) -> Option<InRollout> {
    let target = open.and_then(Transaction::target).or(wanted)?;
    let place = target.rollout?;
    let plan = plan.filter(|_| wanted.and_then(|wanted| wanted.rollout) == Some(place));
    let wave = plan.and_then(|plan| plan.waves.get(usize::try_from(place.wave).ok()?));
    let waits = open.and_then(|open| match &open.state {
        State::Deferred { deferral, .. } if is_of_rollout(deferral.hold) => Some(deferral.why.clone()),
        _ => None,
    });
    Some(InRollout {
        plan: place.plan,
        name: plan.map(|plan| plan.name.clone()),
        wave: wave.map(|wave| wave.name.clone()),
        number: place.wave.saturating_add(1),
        of: plan.map(|plan| plan.waves.len()),
        since: open.filter(|_| waits.is_some()).and_then(|open| open.awaits_since),
        waits,
    })
}

/// Whether a hold is one of a rollout.
pub fn is_of_rollout(hold: Hold) -> bool {
    is_turn(hold) || matches!(hold, Hold::Plan | Hold::Expired)
}

/// What it says in a rollout.
pub fn vouches(followed: &Followed) -> Vouches {
    Vouches {
        plan: followed.plan,
        name: followed.name.clone(),
        wave: followed.wave.clone(),
        generation: followed.generation,
        said: followed.said,
        soaked_seconds: followed.soaked_ms / 1000,
        soak_seconds: followed.soak_seconds,
    }
}

/// Resolves the system profile: `system` → `system-7-link` → the store.
pub fn profile(layout: &Layout) -> Option<muster_protocol::ids::StorePath> {
    let profile = layout.profile();
    let step = std::fs::read_link(&profile).ok()?;
    let generation = profile.parent()?.join(&step);
    layout.logical(&std::fs::read_link(generation).unwrap_or(step))
}

/// What comes next, in one sentence.
pub fn next(
    open: Option<Generation>,
    state: Option<&State>,
    verified: Option<Generation>,
    journal: &Journal,
) -> String {
    if let (Some(generation), Some(state)) = (open, state) {
        return match state {
            State::Verified => format!("fetch generation {generation}"),
            State::Fetched => format!("build generation {generation}"),
            State::Built | State::Checked => format!("switch to generation {generation}"),
            State::Deferred { deferral, .. } if is_turn(deferral.hold) => format!(
                "switch to generation {generation} when its turn in the rollout comes; a newer one takes its \
                 place"
            ),
            State::Deferred { stage, .. } => {
                let what = match stage {
                    Stage::Fetch => "fetch",
                    Stage::Build => "build",
                    Stage::Switch => "switch to",
                };
                format!(
                    "{what} generation {generation} as soon as the policy allows it; a newer one takes its \
                     place"
                )
            }
            State::NeedsHuman { .. } => {
                format!(
                    "generation {generation} resumes once somebody has done that and run muster-agent \
                     check-now"
                )
            }
            State::Activating | State::Probing => {
                format!("confirm generation {generation}, or undo it at its deadline")
            }
            State::AwaitingReboot => format!("run generation {generation} after the next reboot"),
            State::RollingBack { .. } => "activate the previous system again".to_owned(),
            _ => format!("record how generation {generation} ended"),
        };
    }
    let Some(verified) = verified else { return "waiting for a first generation".to_owned() };
    if journal.tried.is_none_or(|tried| verified > tried) {
        return format!("begin generation {verified}");
    }
    match journal.again.filter(|again| again.generation == verified).map(|again| again.cause) {
        Some(Cause::Controller) => {
            format!("try generation {verified} again when the controller answers")
        }
        Some(Cause::Person) => format!(
            "try generation {verified} again once somebody has done what it asks for and run muster-agent \
             check-now"
        ),
        Some(Cause::Machine) => format!(
            "try generation {verified} again in an hour, then less often, or when somebody runs \
             muster-agent check-now"
        ),
        Some(Cause::Lifted) => format!("try generation {verified} again, as somebody asked"),
        None => format!("waiting for a generation newer than {verified}"),
    }
}

/// A moment as text, in the machine's own time zone.
pub fn until(moment: UnixMillis) -> String {
    match jiff::Timestamp::from_millisecond(moment) {
        Ok(at) if moment < UnixMillis::MAX / 2 => {
            let at = at.to_zoned_datetime(jiff::tz::TimeZone::system());
            format!("until {}", at.strftime("%a %F %H:%M %Z"))
        }
        _ => "until 'muster-agent resume'".to_owned(),
    }
}

/// The rollout by its name, and the wave.
pub fn place(rollout: &InRollout) -> String {
    let InRollout { plan, name, wave, number, of, .. } = rollout;
    match (name, wave, of) {
        (Some(name), Some(wave), Some(of)) => format!("{name}, wave '{wave}' ({number} of {of})"),
        _ => format!("plan {}, wave {number}; the plan is not here", plan.short()),
    }
}

fn said(vouches: &Vouches) -> String {
    let Vouches { name, generation, soaked_seconds, soak_seconds, .. } = vouches;
    let seconds = |seconds: u64| moment::span(i64::try_from(seconds).unwrap_or(i64::MAX));
    match vouches.said {
        Said::Confirmed => format!(
            "generation {generation} is confirmed in rollout {name}; it has run well for {} of {}",
            seconds(*soaked_seconds),
            seconds(*soak_seconds)
        ),
        Said::Soaked => format!("generation {generation} has run well for the whole soak of rollout {name}"),
        Said::Withdrawn => {
            format!("not any more for generation {generation} in rollout {name}: it went back")
        }
    }
}

/// Lines for people.
pub fn lines(status: &Status, now: UnixMillis) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: &str| {
        let mut name = name;
        for value in shown::lines(value) {
            lines.push(format!("{name:<12} {value}"));
            name = "";
        }
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
    let health = &status.health;
    if let Some(moment) = health.waits_until {
        line("waits", &until(moment));
    }
    if let Some(moment) = health.paused_until {
        line("paused", &until(moment));
    }
    if let Some(units) = health.degraded.as_ref().filter(|units| !units.is_empty()) {
        line("degraded", &format!("{} failed", units.join(", ")));
    }
    if !health.reboot.is_empty() {
        let waits = health.reboot_waits.as_deref().map(|why| format!(": {why}")).unwrap_or_default();
        line("reboot", &format!("is due for {}{waits}", health.reboot.join(", ")));
    }
    if let Some(rollout) = &status.rollout {
        line("rollout", &place(rollout));
        let since = rollout.since.map(|at| format!(", since {}", moment::ago(at, now)));
        if let Some(why) = &rollout.waits {
            line("", &format!("{why}{}", since.unwrap_or_default()));
        }
    }
    if let Some(vouches) = &status.vouches {
        line("vouches", &said(vouches));
    }
    line("next", &status.next);
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
        Some(at) => format!(", answered {}", moment::ago(at, now)),
        None if status.agent_running => ", not reached since the agent started".to_owned(),
        None => String::new(),
    };
    line("controller", &format!("{}{contact}", status.controller));
    line("reports", &format!("{} waiting", status.reports_waiting));
    for (at, shown) in status.log.iter().enumerate().rev() {
        let name = if at + 1 == status.log.len() { "log" } else { "" };
        line(name, &format!("the controller showed entry {} {}", shown.id, shown.hash));
    }
    if contradict(&status.log) {
        line(
            "",
            "the controller showed two histories of its audit log, or was restored from a backup: tell an \
             operator, who finds out with 'muster audit verify'",
        );
    }
    if let Some(key) = &status.key {
        line("key", &key.to_string());
    }
    if let Some(age) = &status.age {
        line("secrets", &format!("for {age}"));
    }
    lines
}

#[cfg(test)]
mod tests;
