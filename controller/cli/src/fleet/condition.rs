//! What is wrong with a machine, or awaited: dangers, notes, and which machines are shown. Pure, apart from
//! one printed line.

use muster_protocol::checkin::Health;
use muster_protocol::clock::UnixMillis;
use muster_protocol::operator::{Condition, MachineSummary, MemberState, Standing};
use muster_protocol::report::Attack;

use crate::terminal::table;

/// Everything that looks like an attack, readable without colour: a name, and what to know and do.
pub fn dangers(view: &MachineSummary, now: i64) -> Vec<(&'static str, String)> {
    let mut dangers = Vec::new();
    if let Some(attack) = &view.attack {
        dangers.push((
            "attack refused",
            format!(
                "{}, {}: {}",
                attack.attack.as_str(),
                table::ago(attack.received_at, now),
                attack.detail.lines().next().unwrap_or_default()
            ),
        ));
    } else if let Some(attack) = view.refused {
        dangers.push(("attack refused", attack.as_str().to_owned()));
    }
    if let Some(attack) = view.attack.as_ref().map(|attack| attack.attack).or(view.refused) {
        dangers.push(("how it ends", end_of(attack, view)));
    }
    if view.clone_alarm {
        let since =
            view.clone_alarm_at.map(|at| format!(", first seen {}", table::ago(at, now))).unwrap_or_default();
        dangers.push(("clone alarm", format!("somebody else holds this machine's key{since}")));
        let remedy = format!(
            "enrol it anew with `muster machines add {0} --replace`, which ends the copy's access; if the \
             machine was brought back from a backup, `muster machines acknowledge {0}`",
            view.machine
        );
        dangers.push(("how it ends", remedy));
    }
    dangers
}

/// What ends an attack, and what to look into.
fn end_of(attack: Attack, view: &MachineSummary) -> String {
    match attack {
        Attack::FastForward => {
            "the machine is untouched and took no number so far above its own; it ends by itself once what \
             the controller gives is sound again. If operators did sign it, root holders leave it behind \
             with `muster keys new-epoch`"
                .to_owned()
        }
        Attack::SkippedWave => {
            "the machine is untouched, and switches only once enough machines of the waves before have signed \
             that they run it well; it ends by itself once the controller shows that, or says that the \
             machine must wait. Find out who holds the controller, or what is between"
                .to_owned()
        }
        Attack::AlteredArchive | Attack::WrongOutput | Attack::WrongClass | Attack::Unknown => format!(
            "the machine is untouched, and waits for the next generation unless a later try comes through \
             whole. Find out who changes what the cache gives, or who signed it so, then `muster update \
             --force {}`",
            view.machine
        ),
        _ => "the machine is untouched and takes nothing from this controller; it ends by itself once what \
             the controller gives is sound again. Find out who holds the controller, or what is between"
            .to_owned(),
    }
}

/// The machines that are shown, and how many are hidden: removed and revoked ones, unless `all` is set.
pub fn members<T>(mut machines: Vec<T>, standing: impl Fn(&T) -> Standing, all: bool) -> (Vec<T>, usize) {
    let before = machines.len();
    machines.retain(|view| all || standing(view) != Standing::Revoked);
    let gone = before - machines.len();
    (machines, gone)
}

pub fn tell_of_gone(gone: usize) {
    if gone > 0 {
        tell!("{gone} removed or revoked: --all shows them.");
    }
}

/// The units that have failed, if any.
pub fn failed_units(health: &Health) -> Option<String> {
    let units = health.degraded.as_ref().filter(|units| !units.is_empty())?;
    Some(format!("failed: {}", units.join(", ")))
}

/// What a reboot is due for, and why it waits.
pub fn due_reboot(health: &Health) -> Option<String> {
    let waits = health.reboot_waits.as_deref().map(|why| format!(", {why}")).unwrap_or_default();
    let due = (!health.reboot.is_empty()).then(|| health.reboot.join(", "))?;
    Some(format!("reboot due for {due}{waits}"))
}

/// What is wrong or awaited, briefly.
pub fn note(view: &MachineSummary) -> String {
    let mut parts = Vec::new();
    if view.clone_alarm {
        parts.push("CLONE: somebody else holds this machine's key".to_owned());
    }
    if let Some(attack) = view.attack.as_ref().map(|attack| attack.attack).or(view.refused) {
        parts.push(format!("ATTACK REFUSED: {}", attack.as_str()));
    }
    if let (Condition::Updating, Some(phase), generation) =
        (view.condition, view.phase, view.phase_generation)
    {
        let of = generation.map_or_else(String::new, |generation| format!(" {generation}"));
        parts.push(format!("{}{of}", phase.as_str()));
    }
    parts.extend(view.note.as_deref().map(first_line));
    // What the controller knows of its turn; the machine's own words may be older, and say nothing of its
    // wave.
    if let Some(rollout) = view.rollout.as_ref().filter(|rollout| rollout.state == MemberState::Waiting) {
        parts.push(first_line(&format!("{}, {}: {}", rollout.name, rollout.wave_name, rollout.why)));
    }
    parts.extend(failed_units(&view.health).as_deref().map(first_line));
    parts.extend(due_reboot(&view.health).as_deref().map(first_line));
    if let Some(until) = view.health.paused_until {
        let until = if until == UnixMillis::MAX { "resumed".to_owned() } else { table::date(until) };
        parts.push(format!("paused at the machine until {until}"));
    }
    parts.join("; ")
}

/// A note may be as long as a log; the table shows its beginning. `machines show` has all of it.
fn first_line(note: &str) -> String {
    const SHOWN: usize = 160;
    let line = note.lines().next().unwrap_or_default();
    match line.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line.to_owned(),
    }
}
