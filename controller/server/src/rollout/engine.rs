//! The decisions about one rollout: a pure function of what operators signed and asked, what machines said,
//! and the time.
//!
//! It gives a machine *leave* to begin, for [`LEAVE_SECONDS`], when the gate of its wave is proven, fewer
//! than `maxInFlight` of its wave may be switching, and nothing holds the rollout. The order in which things
//! were reported makes no difference, nor does deciding twice.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{RolloutState, WaveView};
use muster_protocol::plan::{Voucher, machine_lacks};

use super::observed::Wait;
pub use super::observed::{Belongs, Decision, Given, Member, Observed, Stage};
use super::standing::{self, Place};

/// For how long a machine may begin once it has leave, in seconds.
pub const LEAVE_SECONDS: u64 = 600;
/// The same in milliseconds.
pub(super) const LEAVE_MS: UnixMillis = 600_000;

/// Decides what is next.
pub fn decide(observed: &Observed<'_>) -> Decision {
    let plan = observed.plan;
    let all = || plan.waves.iter().flat_map(|wave| &wave.members);
    let failures = all().filter(|name| observed.counts(name, observed.member(name))).count();
    let failures = u32::try_from(failures).unwrap_or(u32::MAX);
    let hold = observed.hold(failures);
    let waits_for: BTreeSet<&MachineName> = plan.after.iter().map(|after| &after.machine).collect();

    let mut decision = Decision {
        state: RolloutState::Running,
        why: String::new(),
        failures,
        leave: Vec::new(),
        take_back: Vec::new(),
        members: BTreeMap::new(),
        waves: Vec::with_capacity(plan.waves.len()),
        look_again: None,
    };
    for (number, wave) in plan.waves.iter().enumerate() {
        let lacks = observed.lacks(number);
        let in_flight =
            wave.members.iter().filter(|name| observed.is_in_flight(observed.member(name))).count();
        let in_flight = u32::try_from(in_flight).unwrap_or(u32::MAX);
        // What a machine lacks is its wave's gate, and the machines that come before it.
        let lack_of = |name: &MachineName| {
            let first = || {
                let says = |voucher: &Voucher, said| observed.says(voucher, said);
                waits_for.contains(name).then(|| machine_lacks(plan, name, &says)).flatten().map(Wait::Gate)
            };
            lacks.clone().or_else(first)
        };
        let ready = |name: &&MachineName| {
            let member = observed.member(name);
            member.belongs == Belongs::Here && member.stage == Stage::Ready && !observed.is_away(member)
        };
        let mut given = BTreeSet::new();
        if hold.is_none() && lacks.is_none() {
            let mut slots = wave.max_in_flight.saturating_sub(in_flight);
            let mut next: Vec<&MachineName> =
                wave.members.iter().filter(ready).filter(|name| lack_of(name).is_none()).collect();
            // Those that did not use their leave go last, so that they keep nobody else waiting. The sort is
            // stable: otherwise the plan's order counts.
            next.sort_by_key(|name| observed.member(name).leave.map(|leave| leave.until));
            for name in next {
                let member = observed.member(name);
                let holds_slot = observed.is_in_flight(member);
                // Leave that was taken back needs no slot of its own when it is given again.
                let again = member.leave.is_some_and(|leave| leave.taken_back && observed.now <= leave.until);
                if !again && (holds_slot || slots == 0) {
                    continue;
                }
                slots -= u32::from(!holds_slot);
                given.insert(name);
                decision.leave.push(name.clone());
            }
        }
        let in_flight = in_flight
            + u32::try_from(
                given.iter().filter(|name| !observed.is_in_flight(observed.member(name))).count(),
            )
            .unwrap_or(0);
        let mut view = WaveView {
            name: wave.name.clone(),
            at_least: wave.at_least,
            soak_seconds: wave.soak_seconds,
            max_in_flight: wave.max_in_flight,
            open: lacks.is_none(),
            ..WaveView::default()
        };
        let vouchers: BTreeMap<&MachineName, &Voucher> =
            wave.vouchers.iter().map(|voucher| (&voucher.machine, voucher)).collect();
        for name in &wave.members {
            let member = observed.member(name);
            let lack = lack_of(name);
            let has_leave =
                member.leave.is_some_and(|leave| !leave.taken_back && observed.now <= leave.until);
            let unfounded = hold.is_some() || lack.is_some() || member.belongs != Belongs::Here;
            if has_leave && unfounded && !given.contains(name) {
                decision.take_back.push(name.clone());
            }
            let place = Place {
                member,
                voucher: vouchers.get(name).copied(),
                given: given.contains(name),
                hold: hold.as_ref(),
                wait: lack.unwrap_or(Wait::Turn { in_flight, most: wave.max_in_flight }),
                soak_seconds: wave.soak_seconds,
            };
            let (state, why) = standing::of(observed, &place);
            standing::count(&mut view, state);
            decision.members.insert(name.clone(), (state, why));
            decision.look_again = earliest(decision.look_again, changes_at(observed, member));
        }
        decision.waves.push(view);
    }
    (decision.state, decision.why) = standing::whole(observed, hold.as_ref(), &decision);
    if !decision.leave.is_empty() {
        decision.look_again = earliest(decision.look_again, Some(observed.now.saturating_add(LEAVE_MS)));
    }
    decision
}

/// When what is known of a machine means something else, if nobody says anything: its leave ends, or it
/// counts as away.
fn changes_at(observed: &Observed<'_>, member: &Member) -> Option<UnixMillis> {
    let leave = member.leave.map(|given| given.until);
    let forgotten = leave.map(|until| until.saturating_add(observed.away_ms));
    let away = member.seen.map(|seen| seen.saturating_add(observed.away_ms));
    let times = [leave, forgotten, away].into_iter().flatten();
    times.map(|at| at.saturating_add(1)).filter(|at| *at > observed.now).min()
}

fn earliest(one: Option<UnixMillis>, other: Option<UnixMillis>) -> Option<UnixMillis> {
    one.into_iter().chain(other).min()
}
