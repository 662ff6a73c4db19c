//! What the engine is told, and what it answers.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MemberState, RolloutState, WaveView, Wish};
use muster_protocol::plan::{Failure, Lack, Plan, Said, Voucher, wave_lacks};

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
    /// An operator revoked it while the rollout was under way, if another one has its name now.
    pub was_revoked: bool,
}

impl Member {
    /// Whether it is revoked, or the one that had its name was.
    pub(super) fn is_revoked(&self) -> bool {
        self.belongs == Belongs::Revoked || self.was_revoked
    }
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
    was_revoked: false,
};

impl Observed<'_> {
    pub(super) fn member(&self, name: &MachineName) -> &Member {
        self.members.get(name).unwrap_or(&NOBODY)
    }

    /// Whether a voucher is proven to have said this. A revoked machine's word no longer counts, nor does
    /// that of one that has failed since.
    pub(super) fn says(&self, voucher: &Voucher, said: Said) -> bool {
        let member = self.member(&voucher.machine);
        let counts = member.belongs != Belongs::Revoked && member.stage != Stage::Failed;
        (said == Said::Withdrawn || counts) && self.proven.contains(&(voucher.machine.clone(), said))
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
    pub(super) fn counts(&self, name: &MachineName, member: &Member) -> bool {
        let kinds = [
            member.failed,
            (member.stage == Stage::Failed).then_some(Failure::RolledBack),
            (member.stage == Stage::Confirmed && member.degraded).then_some(Failure::Degraded),
        ];
        !self.forgiven.contains(name)
            && kinds.into_iter().flatten().any(|kind| self.plan.failures.contains(&kind))
    }

    /// What holds the whole rollout, the strongest first.
    pub(super) fn hold(&self, failures: u32) -> Option<Hold> {
        let words = |why: Option<&str>| why.map(str::to_owned);
        if self.wish == Wish::Stop {
            return Some(Hold::Stopped(words(self.wish_why)));
        }
        if let Some(why) = self.brake {
            return Some(Hold::Brake(why.to_owned()));
        }
        let mut members = self.plan.waves.iter().flat_map(|wave| &wave.members);
        let blocks = |name: &MachineName| self.member(name).is_revoked() && !self.forgiven.contains(name);
        let revoked = members.find(|name| blocks(name));
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
    pub(super) fn lacks(&self, wave: usize) -> Option<Wait> {
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
            // A signed word stands; of any other machine that is away nobody knows how it is.
            let seems_well = || member.stage == Stage::Confirmed && !member.degraded && !self.is_away(member);
            let is_well = soaked.unwrap_or_else(seems_well);
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

/// What holds a whole rollout.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Hold {
    Stopped(Option<String>),
    Brake(String),
    Revoked(MachineName),
    Budget { failures: u32, budget: u32 },
    Paused(Option<String>),
}
