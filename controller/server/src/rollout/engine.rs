//! The decisions about one rollout: a pure function of what operators signed and asked, what machines said,
//! and the time.
//!
//! It gives a machine *leave* to begin, for [`LEAVE_SECONDS`], when the gate of its wave is proven, fewer
//! than `maxInFlight` of its wave may be switching, and nothing holds the rollout. The order in which things
//! were reported makes no difference, nor does deciding twice.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MemberState, RolloutState, WaveView, Wish};
use muster_protocol::plan::{Failure, Lack, Plan, Said, Voucher, machine_lacks, wave_lacks};

use super::standing::{self, Hold, Place};

/// For how long a machine may begin once it has leave, in seconds.
pub const LEAVE_SECONDS: u64 = 600;
/// The same in milliseconds.
pub(super) const LEAVE_MS: UnixMillis = 600_000;

/// Everything that the decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The signed plan.
    pub plan: &'a Plan,
    /// What an operator asked last.
    pub wish: Wish,
    /// Why.
    pub wish_why: Option<&'a str>,
    /// Why the brake is on, while it is.
    pub brake: Option<&'a str>,
    /// Every machine of the plan; a machine that is missing here counts as one without a generation.
    pub members: &'a BTreeMap<MachineName, Member>,
    /// The statements whose signatures are those of the plan's keys.
    pub proven: &'a BTreeSet<(MachineName, Said)>,
    /// Machines whose failure, or revocation, an operator has seen and accepted.
    pub forgiven: &'a BTreeSet<MachineName>,
    /// How long a machine may be silent before it counts as away, in milliseconds.
    pub away_ms: UnixMillis,
    /// The wall clock.
    pub now: UnixMillis,
}

/// What is known of one machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Member {
    /// Its last check-in; `None`: it has never checked in.
    pub seen: Option<UnixMillis>,
    /// Whether it belongs to this rollout.
    pub belongs: Belongs,
    /// Where it is with the plan's generation.
    pub stage: Stage,
    /// What it says that it waits for.
    pub note: Option<String>,
    /// The leave that it was given last.
    pub leave: Option<Given>,
    /// The first failure that was seen in this rollout; it stays.
    pub failed: Option<Failure>,
    /// It runs the generation with failed units.
    pub degraded: bool,
}

/// Whether a machine belongs to a rollout.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Belongs {
    /// Its latest generation names the plan.
    Here,
    /// A generation without the plan was published for it later.
    Elsewhere,
    /// An operator revoked it.
    Revoked,
    /// It was removed.
    Gone,
    /// No generation that names the plan has been published for it yet.
    #[default]
    Unpublished,
}

/// Where a machine is with the plan's generation, by its last check-in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Stage {
    /// It has not heard of it, fetches, builds, or waits for something of its own.
    #[default]
    Behind,
    /// It waits for its turn, and for nothing else.
    Ready,
    /// It switches, or goes back.
    Switching,
    /// It runs it, confirmed.
    Confirmed,
    /// It runs its old system again, or needs somebody.
    Failed,
}

/// Leave to begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Given {
    /// When it ends.
    pub until: UnixMillis,
    /// It was taken back; the machine may have begun before it heard of that.
    pub taken_back: bool,
}

/// What to do, and what to tell people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Where the rollout is.
    pub state: RolloutState,
    /// What it waits for and what would change that.
    pub why: String,
    /// How many failures count against the budget.
    pub failures: u32,
    /// Machines that get leave, until [`LEAVE_SECONDS`] from now.
    pub leave: Vec<MachineName>,
    /// Machines whose leave is taken back.
    pub take_back: Vec<MachineName>,
    /// Where each machine is, and its sentence.
    pub members: BTreeMap<MachineName, (MemberState, String)>,
    /// How far each wave is.
    pub waves: Vec<WaveView>,
    /// When to decide again although nothing changes.
    pub look_again: Option<UnixMillis>,
}

/// What a machine that was never mentioned is.
static NOBODY: Member = Member {
    seen: None,
    belongs: Belongs::Unpublished,
    stage: Stage::Behind,
    note: None,
    leave: None,
    failed: None,
    degraded: false,
};

impl Observed<'_> {
    pub(super) fn member(&self, name: &MachineName) -> &Member {
        self.members.get(name).unwrap_or(&NOBODY)
    }

    /// Whether a voucher is proven to have said this. A revoked machine's word no longer counts.
    pub(super) fn says(&self, voucher: &Voucher, said: Said) -> bool {
        let proven = |said| self.proven.contains(&(voucher.machine.clone(), said));
        proven(said) && (said == Said::Withdrawn || self.member(&voucher.machine).belongs != Belongs::Revoked)
    }

    pub(super) fn has_soaked(&self, voucher: &Voucher) -> bool {
        self.says(voucher, Said::Soaked) && !self.says(voucher, Said::Withdrawn)
    }

    pub(super) fn is_away(&self, member: &Member) -> bool {
        member.seen.is_none_or(|seen| self.now.saturating_sub(seen) > self.away_ms)
    }

    /// Whether the machine may be switching. One that had leave and has not been heard of since may have
    /// begun: it counts until it is away.
    pub(super) fn is_in_flight(&self, member: &Member) -> bool {
        if member.belongs != Belongs::Here {
            return false;
        }
        match member.stage {
            Stage::Switching => !self.is_away(member),
            Stage::Confirmed | Stage::Failed => false,
            Stage::Behind | Stage::Ready => member.leave.is_some_and(|given| {
                let heard_since = member.seen.is_some_and(|seen| seen > given.until);
                let forgotten = given.until.saturating_add(self.away_ms);
                self.now <= given.until || (!heard_since && self.now <= forgotten)
            }),
        }
    }

    /// Whether its failure counts against the budget.
    fn counts(&self, name: &MachineName, member: &Member) -> bool {
        let kinds = [
            member.failed,
            (member.stage == Stage::Failed).then_some(Failure::RolledBack),
            (member.stage == Stage::Confirmed && member.degraded).then_some(Failure::Degraded),
        ];
        !self.forgiven.contains(name)
            && kinds.into_iter().flatten().any(|kind| self.plan.failures.contains(&kind))
    }

    /// What holds the whole rollout, the strongest first.
    fn hold(&self, failures: u32) -> Option<Hold> {
        let words = |why: Option<&str>| why.map(str::to_owned);
        if self.wish == Wish::Stop {
            return Some(Hold::Stopped(words(self.wish_why)));
        }
        if let Some(why) = self.brake {
            return Some(Hold::Brake(why.to_owned()));
        }
        let mut members = self.plan.waves.iter().flat_map(|wave| &wave.members);
        let revoked = members
            .find(|name| self.member(name).belongs == Belongs::Revoked && !self.forgiven.contains(*name));
        if let Some(name) = revoked {
            return Some(Hold::Revoked(name.clone()));
        }
        if failures > self.plan.budget {
            return Some(Hold::Budget { failures, budget: self.plan.budget });
        }
        (self.wish == Wish::Pause).then(|| Hold::Paused(words(self.wish_why)))
    }

    /// What the gate of a wave lacks, an honest controller's own condition included: so many of every hundred
    /// machines that answer run it well.
    fn lacks(&self, wave: usize) -> Option<Wait> {
        if let Some(lack) = wave_lacks(self.plan, wave, &|voucher, said| self.says(voucher, said)) {
            return Some(Wait::Gate(lack));
        }
        let before = &self.plan.waves[wave.checked_sub(1)?];
        let vouchers: BTreeMap<&MachineName, &Voucher> =
            before.vouchers.iter().map(|voucher| (&voucher.machine, voucher)).collect();
        let (mut answer, mut well) = (0_u64, 0_u64);
        for name in &before.members {
            let member = self.member(name);
            let soaked = vouchers.get(name).map(|voucher| self.has_soaked(voucher));
            let is_well = soaked.unwrap_or(member.stage == Stage::Confirmed && !member.degraded);
            if member.belongs == Belongs::Here && (is_well || !self.is_away(member)) {
                answer += 1;
                well += u64::from(is_well);
            }
        }
        let need = (answer * u64::from(before.percent)).div_ceil(100);
        (well < need).then(|| Wait::Percent { name: before.name.clone(), well, need, answer })
    }
}

/// What a wave or a machine waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wait {
    Gate(Lack),
    Percent {
        name: String,
        well: u64,
        need: u64,
        answer: u64,
    },
    /// Others of its wave switch first.
    Turn {
        in_flight: u32,
        most: u32,
    },
}

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
                let has_leave =
                    member.leave.is_some_and(|leave| !leave.taken_back && observed.now <= leave.until);
                if has_leave || (!holds_slot && slots == 0) {
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
