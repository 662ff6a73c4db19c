//! Where a rollout and each of its machines are, each with a sentence that says what it waits for and what
//! would change that.

use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MemberState, RolloutState, WaveView, Wish};
use muster_protocol::plan::{Lack, Said, Voucher};

use super::observed::{Belongs, Decision, Hold, Member, Observed, Stage, Wait};

impl Hold {
    fn state(&self) -> RolloutState {
        match self {
            Self::Stopped(_) => RolloutState::Stopped,
            Self::Brake(_) | Self::Paused(_) => RolloutState::Paused,
            Self::Revoked(_) | Self::Budget { .. } => RolloutState::Halted,
        }
    }

    fn why(&self, name: &str) -> String {
        let because = |why: &Option<String>| why.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
        match self {
            Self::Stopped(why) => {
                format!(
                    "it was stopped for good{}: publish what the machines shall run instead",
                    because(why)
                )
            }
            Self::Brake(why) if why.is_empty() => {
                "the brake is on: 'muster brake --off' releases it".to_owned()
            }
            Self::Brake(why) => format!("the brake is on ({why}): 'muster brake --off' releases it"),
            Self::Revoked(machine) => format!(
                "{machine} was revoked, and may have vouched for others: its word counts no longer, and \
                 'muster rollout retry {name}' goes on without it"
            ),
            Self::Budget { failures, budget } => format!(
                "{} failed and the budget is {budget}: see 'muster rollout show {name}', then retry, undo or stop it",
                machines(u64::from(*failures))
            ),
            Self::Paused(why) => {
                format!("it is paused{}: 'muster rollout resume {name}' goes on", because(why))
            }
        }
    }
}

/// One machine in its wave.
pub(super) struct Place<'a> {
    pub member: &'a Member,
    pub voucher: Option<&'a Voucher>,
    /// It is given leave now.
    pub given: bool,
    pub hold: Option<&'a Hold>,
    /// What it waits for if nothing holds the whole rollout.
    pub wait: Wait,
    pub soak_seconds: u64,
}

/// Where a machine is, and its sentence.
pub(super) fn of(observed: &Observed<'_>, place: &Place<'_>) -> (MemberState, String) {
    let (member, rollout) = (place.member, observed.plan.name.as_str());
    let left = |why: &str| (MemberState::Left, why.to_owned());
    match member.belongs {
        Belongs::Elsewhere => return left("another generation was published for it"),
        Belongs::Revoked => return left("it was revoked"),
        Belongs::Gone => return left("it was removed"),
        Belongs::Unpublished => {
            return (MemberState::Waiting, "its generation is not published yet".to_owned());
        }
        Belongs::Here => {}
    }
    if place.voucher.is_some_and(|voucher| observed.has_soaked(voucher)) && member.stage != Stage::Failed {
        return (MemberState::Soaked, format!("it has run it well for {}", duration(place.soak_seconds)));
    }
    if member.stage == Stage::Failed {
        let note = member.note.as_ref().map(|note| format!(" ({note})")).unwrap_or_default();
        return (
            MemberState::Failed,
            format!("it failed{note}: 'muster rollout retry {rollout}' tries it again"),
        );
    }
    if place.given || observed.is_in_flight(member) {
        let why = match member.stage {
            Stage::Switching => "it is switching",
            _ if observed.is_away(member) => "it had leave to begin and has not been heard of since",
            _ => "it may begin",
        };
        return (MemberState::InFlight, why.to_owned());
    }
    if observed.is_away(member) {
        let had = if member.stage == Stage::Confirmed {
            "it runs it, but no longer answers"
        } else {
            "it does not answer"
        };
        return (MemberState::Away, format!("{had}; it goes on when it is back"));
    }
    match member.stage {
        Stage::Confirmed => (MemberState::Confirmed, confirmed(observed, place)),
        Stage::Ready => (MemberState::Waiting, waits(place, rollout)),
        Stage::Behind | Stage::Switching | Stage::Failed => {
            let note = member.note.clone();
            (MemberState::Preparing, note.unwrap_or_else(|| "it fetches and builds".to_owned()))
        }
    }
}

fn confirmed(observed: &Observed<'_>, place: &Place<'_>) -> String {
    if place.member.degraded {
        return "it runs it with failed units: it counts as well once they are mended".to_owned();
    }
    match place.voucher {
        Some(voucher) if observed.says(voucher, Said::Withdrawn) => {
            "it went back after it had vouched, so its word no longer counts".to_owned()
        }
        Some(_) => format!("it runs it, and vouches after {} of time awake", duration(place.soak_seconds)),
        None => "it runs it".to_owned(),
    }
}

fn waits(place: &Place<'_>, rollout: &str) -> String {
    if let Some(hold) = place.hold {
        return hold.why(rollout);
    }
    match &place.wait {
        Wait::Gate(lack) => gate(lack),
        Wait::Percent { name, well, need, answer } => {
            format!(
                "its turn comes when {need} of the {answer} machines of wave '{name}' that answer run it well; {well} do"
            )
        }
        Wait::Turn { in_flight, most } => format!(
            "its turn comes when one of the {} of its wave that switch now is through (maxInFlight {most})",
            machines(u64::from(*in_flight))
        ),
    }
}

fn gate(lack: &Lack) -> String {
    match lack {
        Lack::Wave { name, have, need, .. } => {
            let have = if *have == 0 {
                "none has".to_owned()
            } else {
                format!("{have} of them {}", have_verb(*have))
            };
            let (need, verb) = (machines(u64::from(*need)), have_verb(*need));
            format!("its turn comes when {need} of wave '{name}' {verb} soaked; {have}")
        }
        Lack::Machine { first } => format!("its turn comes when {first} has confirmed its own"),
        Lack::NoSuchWave => "its plan has no such wave: publish it again".to_owned(),
    }
}

fn have_verb(count: u32) -> &'static str {
    if count == 1 { "has" } else { "have" }
}

/// Counts a machine in its wave.
pub(super) fn count(wave: &mut WaveView, state: MemberState) {
    let number = match state {
        MemberState::Waiting => &mut wave.waiting,
        MemberState::Preparing => &mut wave.preparing,
        MemberState::InFlight => &mut wave.in_flight,
        MemberState::Confirmed => &mut wave.confirmed,
        MemberState::Soaked => &mut wave.soaked,
        MemberState::Failed => &mut wave.failed,
        MemberState::Away => &mut wave.away,
        MemberState::Left | MemberState::Unknown => &mut wave.left,
    };
    *number += 1;
}

/// Where the rollout is as a whole.
pub(super) fn whole(
    observed: &Observed<'_>,
    hold: Option<&Hold>,
    decision: &Decision,
) -> (RolloutState, String) {
    let plan = observed.plan;
    let total = |number: fn(&WaveView) -> u32| decision.waves.iter().map(number).map(u64::from).sum::<u64>();
    let all = decision.members.len() as u64;
    if all == total(|wave| wave.left) && observed.wish != Wish::Stop {
        return (RolloutState::Superseded, "other generations took its place on every machine".to_owned());
    }
    if let Some(hold) = hold {
        return (hold.state(), hold.why(plan.name.as_str()));
    }
    let vouches = |name: &MachineName| plan.voucher(name).is_some();
    let goes_on = decision.members.iter().any(|(name, (state, _))| match state {
        MemberState::Waiting | MemberState::Preparing | MemberState::InFlight | MemberState::Unknown => true,
        MemberState::Confirmed => vouches(name),
        MemberState::Soaked | MemberState::Failed | MemberState::Away | MemberState::Left => false,
    });
    let (failed, away) = (total(|wave| wave.failed), total(|wave| wave.away));
    // Nothing is done while the machines that are away are all that a wave has.
    let untried =
        |wave: &WaveView| wave.away > 0 && (!wave.open || wave.soaked + wave.confirmed + wave.failed == 0);
    if !goes_on && !decision.waves.iter().any(untried) {
        let well = machines(total(|wave| wave.soaked) + total(|wave| wave.confirmed));
        let mut why = format!("{well} took it");
        if failed > 0 {
            why += &format!(", {failed} failed");
        }
        if away > 0 {
            why += &format!(", {away} do not answer and join when they are back");
        }
        return (RolloutState::Done, why);
    }
    (RolloutState::Running, running(observed, decision, away))
}

/// What a rollout that goes on waits for: the first wave that is not through.
fn running(observed: &Observed<'_>, decision: &Decision, away: u64) -> String {
    let next = decision.waves.iter().position(|wave| !wave.open);
    if let Some(next) = next {
        let closed = &decision.waves[next];
        let waits = observed.plan.waves[next].members.iter().find_map(|name| match &decision.members[name] {
            (MemberState::Waiting, why) => Some(why.clone()),
            _ => None,
        });
        let waits = waits.unwrap_or_else(|| {
            let before = &decision.waves[next.saturating_sub(1)];
            format!(
                "its turn comes when {} of wave '{}' {} soaked",
                machines(u64::from(before.at_least)),
                before.name,
                have_verb(before.at_least)
            )
        });
        let asks = match nobody_answers(decision, next) {
            true => {
                "; nobody of an earlier wave answers: bring one of them back, or sign a plan that skips it"
            }
            false => "",
        };
        return format!("wave '{}' waits: {waits}{asks}", closed.name);
    }
    let sum = |number: fn(&WaveView) -> u32| decision.waves.iter().map(number).map(u64::from).sum::<u64>();
    let left = sum(|wave| wave.waiting) + sum(|wave| wave.preparing) + sum(|wave| wave.in_flight);
    let soak = sum(|wave| wave.confirmed);
    let verb = |count: u64, one: &'static str, many: &'static str| if count == 1 { one } else { many };
    let answers = |count: u64| verb(count, "does not answer", "do not answer");
    let why = match (left, soak) {
        (0, 0) => return format!("{} {}: it goes on when one is back", machines(away), answers(away)),
        (0, soak) => {
            format!("every wave has begun; {} still {}", machines(soak), verb(soak, "soaks", "soak"))
        }
        (left, _) => format!("every wave has begun; {} {} left", machines(left), verb(left, "is", "are")),
    };
    if away > 0 { format!("{why}, and {away} {}", answers(away)) } else { why }
}

/// Whether a wave that others wait for has machines that could still vouch, all of them away.
fn nobody_answers(decision: &Decision, next: usize) -> bool {
    let before = &decision.waves[next.saturating_sub(1)];
    before.away > 0 && before.waiting + before.preparing + before.in_flight + before.confirmed == 0
}

fn machines(count: u64) -> String {
    if count == 1 { "1 machine".to_owned() } else { format!("{count} machines") }
}

fn duration(seconds: u64) -> String {
    match seconds {
        0 => "no time at all".to_owned(),
        seconds if seconds % 86_400 == 0 => format!("{} d", seconds / 86_400),
        seconds if seconds % 3600 == 0 => format!("{} h", seconds / 3600),
        seconds if seconds % 60 == 0 => format!("{} min", seconds / 60),
        seconds => format!("{seconds} s"),
    }
}
