//! Rollouts as the controller shows them: finding one, how far it is, and following it.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, anyhow};
use muster_protocol::api::{OPERATOR_ROLLOUTS, ProblemCode, operator_rollout};
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::Sha256;
use muster_protocol::operator::{MemberState, RolloutState, RolloutView, WaveView};
use muster_protocol::terminal;

use super::watch;
use crate::api::client::{Api, Refused};
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;

/// The fewest digits that name a rollout.
const DIGITS: usize = 8;
/// The least time between two looks at a rollout: many machines change at once.
const APART: Duration = Duration::from_secs(2);

/// Every rollout, the newest first and without its machines; none where the controller knows of none.
pub async fn all(api: &Api) -> Result<Vec<RolloutView>> {
    let all: Result<Vec<RolloutView>> = api.get(OPERATOR_ROLLOUTS).await;
    match all {
        Err(error) if refused(&error) == Some(ProblemCode::NotFound) => Ok(Vec::new()),
        all => all,
    }
}

fn refused(error: &anyhow::Error) -> Option<ProblemCode> {
    error.downcast_ref::<Refused>().map(|refused| refused.code)
}

/// Those that have not ended.
pub async fn open(api: &Api) -> Result<Vec<RolloutView>> {
    Ok(all(api).await?.into_iter().filter(is_open).collect())
}

/// Whether machines may still begin in it. One that is done may have machines that come back.
pub fn is_open(view: &RolloutView) -> bool {
    match view.state {
        RolloutState::Running | RolloutState::Paused | RolloutState::Halted | RolloutState::Unknown => true,
        RolloutState::Done => view.waves.iter().any(|wave| wave.away > 0),
        RolloutState::Stopped | RolloutState::Superseded => false,
    }
}

/// Which rollouts a word may mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Among {
    Open,
    /// Also those that have ended, where none of its name is open.
    All,
    /// The same, if it is the newest of its name: a command that ends it must not mean another one when it
    /// is repeated.
    Newest,
}

/// The rollout that a name or the first digits of its plan's hash mean, with its machines.
pub async fn find(api: &Api, word: &str, among: Among) -> Result<RolloutView> {
    let all = all(api).await?;
    let found = meant(&all, word, among);
    if let Some(found) = found
        && let Some(newer) = newer(&all, word, found).filter(|_| among == Among::Newest)
    {
        let told = |view: &RolloutView| format!("{} ({})", view.plan.short(), view.state.as_str());
        return Err(anyhow!("'{word}' may mean {} or the newer {}", told(found), told(newer)))
            .hint("name one by the digits of its plan; `muster rollout show DIGITS` says which it is");
    }
    let Some(found) = found else {
        let (error, hint) = unknown(&all, word, among);
        return Err(anyhow!(error)).hint(hint);
    };
    let view: RolloutView = api.get(&operator_rollout(&found.plan)).await?;
    match view.plan == found.plan {
        true => Ok(view),
        false => {
            Err(anyhow!("the controller shows the rollout {} as {}", view.plan.short(), found.plan.short()))
                .hint("sign nothing that it says before you know who holds it")
        }
    }
}

/// Why a word means none, and what to do. Pure.
fn unknown(all: &[RolloutView], word: &str, among: Among) -> (String, String) {
    if let Some(ended) = meant(all, word, Among::All) {
        let (name, plan) = (&ended.name, ended.plan.short());
        let hint = match ended.state {
            RolloutState::Superseded => "`muster rollout list` shows those that have not".to_owned(),
            _ => format!(
                "`muster rollout undo {plan}` takes back the machines that run it; `muster update` publishes \
                 what they should run"
            ),
        };
        return (format!("the rollout {name} ({plan}) has ended: it is {}", ended.state.as_str()), hint);
    }
    if all.is_empty() {
        let hint = "`muster update --rollout NAME` begins one".to_owned();
        return (format!("there is no rollout '{word}', nor any other"), hint);
    }
    let kind = if among == Among::Open { "open rollout" } else { "rollout" };
    let known = all.iter().filter(|view| among != Among::Open || is_open(view));
    let known = listed(known.map(|view| format!("{} ({})", view.name, view.plan.short())));
    let error = format!("there is no {kind} '{word}'; there is {known}");
    (error, "`muster rollout list --all` shows every one".to_owned())
}

/// Pure. A name is that of the newest open one, else of the newest.
fn meant<'a>(all: &'a [RolloutView], word: &str, among: Among) -> Option<&'a RolloutView> {
    // A plan that was only sent, for a draft say, takes the name from none that machines are in.
    let newest = |named: &dyn Fn(&RolloutView) -> bool, open: bool| {
        let named = all.iter().filter(|view| named(view) && (!open || is_open(view)));
        named.max_by_key(|view| (view.published, view.at))
    };
    let by_name = |view: &RolloutView| view.name.as_str() == word;
    let digits = word.to_ascii_lowercase();
    let by_digits = |view: &RolloutView| digits.len() >= DIGITS && view.plan.hex().starts_with(&digits);
    let open = newest(&by_name, true).or_else(|| newest(&by_digits, true));
    match among {
        Among::Open => open,
        Among::All | Among::Newest => {
            open.or_else(|| newest(&by_name, false)).or_else(|| newest(&by_digits, false))
        }
    }
}

/// The newest of this name that other generations have not replaced, if it is newer than `found`. Pure.
fn newer<'a>(all: &'a [RolloutView], word: &str, found: &RolloutView) -> Option<&'a RolloutView> {
    let counts = |view: &&RolloutView| {
        let same = view.name.as_str() == word && view.published;
        same && view.at > found.at && view.state != RolloutState::Superseded
    };
    all.iter().filter(counts).max_by_key(|view| view.at)
}

/// How far a wave is, in one line.
pub fn progress(wave: &WaveView) -> String {
    let counted = [
        (wave.soaked, "soaked"),
        (wave.confirmed, "confirmed"),
        (wave.in_flight, "in flight"),
        (wave.preparing, "preparing"),
        (wave.waiting, "waiting"),
        (wave.failed, "FAILED"),
        (wave.away, "away"),
        (wave.left, "left"),
    ];
    let parts: Vec<String> = counted
        .iter()
        .filter(|(count, _)| *count > 0)
        .map(|(count, word)| format!("{count} {word}"))
        .collect();
    if parts.is_empty() { "nobody".to_owned() } else { parts.join(", ") }
}

/// What a follower has printed.
#[derive(Default)]
struct Printed(Vec<String>);

impl Printed {
    /// The lines of this view that are new.
    fn news(&mut self, view: &RolloutView) -> Vec<String> {
        let mut lines = vec![format!("{}: {}: {}", view.name, view.state.as_str(), view.why)];
        lines.extend(view.waves.iter().map(|wave| format!("  {}: {}", wave.name, progress(wave))));
        // Only what somebody should know: a wave may have thousands of machines.
        let notable = view
            .members
            .iter()
            .filter(|member| matches!(member.state, MemberState::Failed | MemberState::Away));
        lines.extend(
            notable.map(|member| format!("  {} {}: {}", member.machine, member.state.as_str(), member.why)),
        );
        let news = lines.iter().filter(|line| !self.0.contains(line)).cloned().collect();
        self.0 = lines;
        news
    }
}

/// Prints what changes of a rollout until it ends or halts.
pub async fn follow(api: &Api, plan: &Sha256, limit: Duration) -> Result<ExitCode> {
    let end = api.clock.awake() + limit;
    let mut after = watch::cursor(api).await?;
    let mut printed = Printed::default();
    loop {
        let view: RolloutView = api.get(&operator_rollout(plan)).await?;
        for line in printed.news(&view) {
            say!("{line}");
        }
        if let Some(code) = code(view.state) {
            if view.state == RolloutState::Halted {
                say!("`muster rollout show {}` says more, and what to do.", view.plan.short());
            }
            return Ok(code);
        }
        let left = end.saturating_sub(api.clock.awake());
        if left.is_zero() {
            tell!(
                "It has not ended within {} s; see `muster rollout show {}`.",
                limit.as_secs(),
                plan.short()
            );
            return Ok(ExitCode::from(watch::UNSETTLED));
        }
        // Nobody reads the output any longer.
        if terminal::is_lost() {
            return Ok(ExitCode::from(watch::UNSETTLED));
        }
        let wait = watch::WAIT_SECONDS.min(left.as_secs().max(1));
        after = watch::changes(api, &after, wait).await?.0;
        tokio::time::sleep(APART.min(left)).await;
    }
}

/// The exit code of a rollout that waits for nobody but operators.
fn code(state: RolloutState) -> Option<ExitCode> {
    match state {
        RolloutState::Done | RolloutState::Superseded => Some(ExitCode::SUCCESS),
        RolloutState::Halted | RolloutState::Stopped => Some(ExitCode::FAILURE),
        RolloutState::Running | RolloutState::Paused | RolloutState::Unknown => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(name: &str, number: u8, state: &str) -> RolloutView {
        serde_json::from_value(serde_json::json!({
            "plan": Sha256::of(&[number]), "name": name, "at": number,
            "by": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
            "state": state, "why": "it waits", "budget": 0, "failures": 0,
            "waves": [{ "name": "canaries", "soaked": 1, "waiting": 2 }],
            "members": [
                { "machine": "tin", "wave": 0, "state": "failed", "why": "it went back", "said": null },
                { "machine": "lead", "wave": 0, "state": "waiting", "why": "for tin", "said": null },
            ],
        }))
        .unwrap()
    }

    #[test]
    fn a_name_means_the_newest_open_rollout_and_digits_mean_a_plan() {
        let all = [
            view("weekly", 4, "done"),
            view("weekly", 3, "running"),
            view("weekly", 2, "halted"),
            view("nightly", 1, "done"),
        ];
        let at = |word: &str, among| meant(&all, word, among).map(|view| view.at);
        assert_eq!(at("weekly", Among::Open), Some(3));
        assert_eq!(at("nightly", Among::Open), None);
        assert_eq!(at("nightly", Among::All), Some(1));
        let hex = all[0].plan.hex();
        assert_eq!(at(&hex[..8].to_ascii_uppercase(), Among::All), Some(4));
        assert_eq!(at(&hex[..7], Among::All), None);
        assert_eq!(at(&hex, Among::Open), None);
        let why = |all: &[RolloutView], word: &str| unknown(all, word, Among::Open).0;
        assert!(why(&all, "nightly").contains("has ended: it is done"));
        assert!(why(&all, "nigthly").contains("no open rollout 'nigthly'; there is weekly ("));
        assert!(why(&[], "weekly").contains("nor any other"));
        // 3 is open, and 4 is newer.
        assert_eq!(newer(&all, "weekly", &all[1]).map(|view| view.at), Some(4));
        assert!(newer(&all, "weekly", &all[0]).is_none() && newer(&all, &hex, &all[1]).is_none());
        // The newest is a draft: a pause is for the one that machines are in.
        let mut drafted = [view("weekly", 5, "running"), view("weekly", 3, "running")];
        drafted[0].published = false;
        assert_eq!(meant(&drafted, "weekly", Among::Open).map(|view| view.at), Some(3));
        assert!(newer(&drafted, "weekly", &drafted[1]).is_none());
        // It is done, and a machine of it may come back: it can be paused.
        let mut done = [view("weekly", 4, "done")];
        assert!(meant(&done, "weekly", Among::Open).is_none());
        done[0].waves[0].away = 1;
        assert!(meant(&done, "weekly", Among::Open).is_some());
        let replaced = [view("weekly", 4, "superseded"), view("weekly", 3, "running")];
        assert!(newer(&replaced, "weekly", &replaced[1]).is_none());
    }

    #[test]
    fn a_follower_prints_what_changed_and_names_only_those_that_failed_or_are_away() {
        let mut printed = Printed::default();
        let mut view = view("weekly", 1, "running");
        let first = printed.news(&view);
        assert_eq!(
            first,
            ["weekly: running: it waits", "  canaries: 1 soaked, 2 waiting", "  tin failed: it went back"]
        );
        assert!(printed.news(&view).is_empty());
        view.waves[0].soaked = 2;
        assert_eq!(printed.news(&view), ["  canaries: 2 soaked, 2 waiting"]);
        assert!(code(RolloutState::Halted).is_some() && code(RolloutState::Paused).is_none());
    }
}
