//! Follows an update until every machine has settled.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use muster_protocol::api::{OPERATOR_CHANGES, OPERATOR_MACHINES};
use muster_protocol::checkin::Phase;
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::operator::{Changes, Condition, MachineView};
use muster_protocol::terminal;

use super::condition;
use crate::api::client::Api;

/// The exit code if some machines had not settled by the time limit.
const UNSETTLED: u8 = 3;
const WAIT_SECONDS: u64 = 30;

/// The number of the controller's latest change.
pub async fn cursor(api: &Api) -> Result<u64> {
    changes(api, 0, 0).await
}

async fn changes(api: &Api, after: u64, wait: u64) -> Result<u64> {
    let path = format!("{OPERATOR_CHANGES}?after={after}&wait={wait}");
    let changes: Changes = api.get_waiting(&path, Duration::from_secs(wait)).await?;
    Ok(changes.cursor)
}

/// How a followed machine stands with respect to its generation. Pure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Settled {
    Good,
    Bad,
    /// Joins when it is back; nobody waits for it.
    Later,
    NotYet,
}

fn settled(view: &MachineView, generation: Generation) -> Settled {
    let superseded =
        view.published.as_ref().is_some_and(|published| published.target.generation > generation);
    match view.condition {
        _ if superseded => Settled::Later,
        Condition::UpToDate | Condition::Degraded => Settled::Good,
        Condition::Offline | Condition::Invited | Condition::Paused => Settled::Later,
        condition if condition.is_bad() => Settled::Bad,
        Condition::Updating if waits(view, generation) => Settled::Later,
        _ => Settled::NotYet,
    }
}

/// Whether the machine waits for something that may be hours away: its window, the end of a pause, a reboot.
fn waits(view: &MachineView, generation: Generation) -> bool {
    let health = &view.health;
    let away = health.waits_until.is_some() || health.paused_until.is_some();
    view.phase_generation == Some(generation)
        && match view.phase {
            Some(Phase::Deferred) => away,
            Some(Phase::AwaitingReboot) => true,
            _ => false,
        }
}

/// Prints each change of a followed machine; the exit code says whether all succeeded.
pub async fn follow(
    api: &Api,
    followed: &[(MachineName, Generation)],
    mut after: u64,
    limit: Duration,
) -> Result<ExitCode> {
    let end = api.clock.awake() + limit;
    let mut printed: BTreeMap<MachineName, String> = BTreeMap::new();
    loop {
        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        let views: Vec<(&MachineView, Settled)> = followed
            .iter()
            .filter_map(|(name, generation)| {
                let view = machines.iter().find(|view| &view.machine == name)?;
                Some((view, settled(view, *generation)))
            })
            .collect();
        for (view, _) in &views {
            let note = condition::note(view);
            let separator = if note.is_empty() { "" } else { ": " };
            let line = format!("{}  {}{separator}{note}", view.machine, view.condition.as_str());
            if printed.get(&view.machine) != Some(&line) {
                say!("{line}");
                printed.insert(view.machine.clone(), line);
            }
        }
        // Nobody reads the output any longer.
        if terminal::is_lost() {
            return Ok(ExitCode::from(UNSETTLED));
        }
        let any = |wanted: Settled| views.iter().any(|(_, settled)| *settled == wanted);
        if !any(Settled::NotYet) {
            if any(Settled::Later) {
                say!(
                    "Machines that are offline, not yet enrolled, or wait for their window or a reboot take \
                     it later."
                );
            }
            return Ok(if any(Settled::Bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS });
        }
        let left = end.saturating_sub(api.clock.awake());
        if left.is_zero() {
            tell!("Not every machine has settled within {} s; see `muster status`.", limit.as_secs());
            return Ok(ExitCode::from(UNSETTLED));
        }
        after = changes(api, after, WAIT_SECONDS.min(left.as_secs().max(1))).await?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(phase: &str, more: serde_json::Value) -> MachineView {
        let mut view = serde_json::json!({
            "machine": "cinnabar", "class": "nixos", "system": "x86_64-linux", "tags": [],
            "standing": "enrolled",
            "condition": "updating", "published": null, "runs": null, "phase": phase, "phase_generation": 3,
            "note": null, "refused": null, "clone_alarm": false,
            "holds": { "root": 1, "timestamp": 1, "snapshot": 1, "targets": 3 }, "agent": null, "age": null,
            "key": null, "enrolled_at": null, "last_seen": null, "clock_skew_ms": null,
        });
        view["health"] = more;
        serde_json::from_value(view).unwrap()
    }

    #[test]
    fn nobody_sits_and_waits_for_a_window_or_a_reboot() {
        let generation = Generation::new(3).unwrap();
        let nothing = serde_json::json!({});
        let until = serde_json::json!({ "waits_until": 5 });
        assert_eq!(settled(&view("deferred", until.clone()), generation), Settled::Later);
        assert_eq!(
            settled(&view("deferred", serde_json::json!({ "paused_until": 5 })), generation),
            Settled::Later
        );
        // A state that ends by itself in a moment: keep waiting.
        assert_eq!(settled(&view("deferred", nothing.clone()), generation), Settled::NotYet);
        assert_eq!(settled(&view("awaiting-reboot", nothing.clone()), generation), Settled::Later);
        assert_eq!(settled(&view("building", nothing), generation), Settled::NotYet);
        assert_eq!(settled(&view("deferred", until), generation.next().unwrap()), Settled::NotYet);
    }
}
