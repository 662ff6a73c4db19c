//! Follows an update until every machine has settled.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use muster_protocol::api::{OPERATOR_CHANGES, OPERATOR_SUMMARIES, ProblemCode, operator_machine};
use muster_protocol::checkin::Phase;
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::operator::{Changes, Condition, MAX_CHANGED, MachineSummary};
use muster_protocol::terminal;

use super::condition;
use crate::api::client::{Api, Refused};

/// The exit code if some machines had not settled by the time limit.
pub(super) const UNSETTLED: u8 = 3;
pub(super) const WAIT_SECONDS: u64 = 30;
/// Up to so many machines are asked for one by one.
const FEW: usize = 8;
/// How long to leave the controller alone for each machine that it was asked for: a follower costs it the
/// same in a fleet where everything changes all the time.
const REST: Duration = Duration::from_millis(2);
/// The least time between two lists of all machines, where these are many.
const LISTS_APART: Duration = Duration::from_secs(15);

/// The fleet's newest change that was seen: its number, and the controller's process that counts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cursor {
    number: u64,
    instance: Option<String>,
}

impl Cursor {
    fn query(&self) -> String {
        let instance = self.instance.as_deref().map(|instance| format!("&instance={instance}"));
        format!("after={}{}", self.number, instance.unwrap_or_default())
    }
}

/// The controller's latest change.
pub async fn cursor(api: &Api) -> Result<Cursor> {
    Ok(changes(api, &Cursor::default(), 0).await?.0)
}

/// The newest change, and whose changes came after `after`; `None` if they may be anybody's.
pub(super) async fn changes(
    api: &Api,
    after: &Cursor,
    wait: u64,
) -> Result<(Cursor, Option<Vec<MachineName>>)> {
    let path = format!("{OPERATOR_CHANGES}?{}&wait={wait}", after.query());
    let changes: Changes = api.get_waiting(&path, Duration::from_secs(wait)).await?;
    // It goes into the next request's query.
    let instance = changes
        .instance
        .filter(|instance| instance.len() <= 64 && instance.bytes().all(|byte| byte.is_ascii_alphanumeric()));
    let cursor = Cursor { number: changes.cursor, instance };
    // A controller of version 0.1 names nobody.
    let nothing = cursor == *after && changes.machines.is_none();
    Ok((cursor, if nothing { Some(Vec::new()) } else { changes.machines }))
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

fn settled(view: &MachineSummary, generation: Generation) -> Settled {
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
fn waits(view: &MachineSummary, generation: Generation) -> bool {
    let health = &view.health;
    let away = health.waits_until.is_some() || health.paused_until.is_some();
    view.phase_generation == Some(generation)
        && match view.phase {
            Some(Phase::Deferred) => away,
            Some(Phase::AwaitingReboot) => true,
            _ => false,
        }
}

/// A followed machine.
struct Followed {
    generation: Generation,
    /// `None` if the controller does not know it.
    settled: Option<Settled>,
    printed: String,
}

/// The machines that are followed, and what was seen of the fleet.
struct Follower<'a> {
    api: &'a Api,
    machines: BTreeMap<MachineName, Followed>,
    cursor: Cursor,
    /// Before this moment all machines are not listed again.
    list_again: Duration,
}

/// Prints each change of a followed machine; the exit code says whether all succeeded.
pub async fn follow(
    api: &Api,
    followed: &[(MachineName, Generation)],
    after: Cursor,
    limit: Duration,
) -> Result<ExitCode> {
    let end = api.clock.awake() + limit;
    let machines = followed.iter().map(|(name, generation)| {
        (name.clone(), Followed { generation: *generation, settled: None, printed: String::new() })
    });
    let mut follower =
        Follower { api, machines: machines.collect(), cursor: after, list_again: Duration::ZERO };
    follower.look_at_all().await?;
    loop {
        // Nobody reads the output any longer.
        if terminal::is_lost() {
            return Ok(ExitCode::from(UNSETTLED));
        }
        if let Some(code) = follower.end() {
            return Ok(code);
        }
        let left = end.saturating_sub(api.clock.awake());
        if left.is_zero() {
            tell!("Not every machine has settled within {} s; see `muster status`.", limit.as_secs());
            return Ok(ExitCode::from(UNSETTLED));
        }
        follower.wait(left).await?;
    }
}

impl Follower<'_> {
    /// Waits for changes for at most `left`, and looks at what changed.
    async fn wait(&mut self, left: Duration) -> Result<()> {
        let wait = WAIT_SECONDS.min(left.as_secs().max(1));
        let (now, changed) = changes(self.api, &self.cursor, wait).await?;
        let before = std::mem::replace(&mut self.cursor, now);
        let Some(changed) = changed else {
            let rest = self.list_again.saturating_sub(self.api.clock.awake());
            if !rest.is_zero() {
                tokio::time::sleep(rest.min(left)).await;
                // Before the list: a change between the two is seen twice, and not missed.
                self.cursor = cursor(self.api).await?;
            }
            return self.look_at_all().await;
        };
        let ours: Vec<MachineName> =
            changed.into_iter().filter(|name| self.machines.contains_key(name)).collect();
        let asked = match ours.len() {
            0 => 0,
            1..=FEW => self.look_at_each(&ours).await?,
            _ => self.look_at_list(&format!("{OPERATOR_SUMMARIES}&{}", before.query())).await?,
        };
        let rest = REST.saturating_mul(u32::try_from(asked).unwrap_or(u32::MAX));
        tokio::time::sleep(rest.min(left)).await;
        Ok(())
    }

    async fn look_at_all(&mut self) -> Result<()> {
        if self.machines.len() <= FEW {
            let names: Vec<MachineName> = self.machines.keys().cloned().collect();
            return self.look_at_each(&names).await.map(drop);
        }
        let listed = self.look_at_list(OPERATOR_SUMMARIES).await?;
        let apart = if listed > MAX_CHANGED { LISTS_APART } else { Duration::ZERO };
        self.list_again = self.api.clock.awake() + apart;
        Ok(())
    }

    async fn look_at_each(&mut self, names: &[MachineName]) -> Result<usize> {
        for name in names {
            let view: Result<MachineSummary> = self.api.get(&operator_machine(name)).await;
            match view {
                Ok(view) => self.seen(&view),
                Err(error) if is_unknown(&error) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(names.len())
    }

    async fn look_at_list(&mut self, path: &str) -> Result<usize> {
        let views: Vec<MachineSummary> = self.api.get(path).await?;
        views.iter().for_each(|view| self.seen(view));
        Ok(views.len())
    }

    /// Prints how the machine is, if that has changed.
    fn seen(&mut self, view: &MachineSummary) {
        let Some(followed) = self.machines.get_mut(&view.machine) else { return };
        followed.settled = Some(settled(view, followed.generation));
        let note = condition::note(view);
        let separator = if note.is_empty() { "" } else { ": " };
        let line = format!("{}  {}{separator}{note}", view.machine, view.condition.as_str());
        if followed.printed != line {
            say!("{line}");
            followed.printed = line;
        }
    }

    /// The exit code, once nobody has to be waited for.
    fn end(&self) -> Option<ExitCode> {
        let any = |wanted| self.machines.values().any(|followed| followed.settled == Some(wanted));
        if any(Settled::NotYet) {
            return None;
        }
        if any(Settled::Later) {
            say!(
                "Machines that are offline, not yet enrolled, or wait for their window or a reboot take it \
                 later."
            );
        }
        Some(if any(Settled::Bad) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }
}

fn is_unknown(error: &anyhow::Error) -> bool {
    error.downcast_ref::<Refused>().is_some_and(|refused| refused.code == ProblemCode::UnknownMachine)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(phase: &str, more: serde_json::Value) -> MachineSummary {
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
