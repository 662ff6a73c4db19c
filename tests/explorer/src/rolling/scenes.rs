//! What is walked of a rollout, and where each guard is missed.

use std::rc::Rc;

use super::guard::Break;
use super::happening::Action;
use super::plans::{Outline, Rank};
use super::properties;
use super::stage::{Budget, Stage};
use super::steps;
use super::world::World;
use crate::explore::{self, Goal};
use crate::server::Cast;

impl explore::Scene for Stage {
    type World = World;
    type Action = Action;

    fn name(&self) -> String {
        format!("rollout: {}", self.name)
    }

    fn first(&self) -> World {
        steps::first(self)
    }

    fn actions(&self) -> Vec<Action> {
        Action::all()
    }

    fn after(&self, world: &World, action: Action) -> Option<World> {
        steps::after(self, world, action)
    }

    fn violated(&self, world: &World) -> Option<String> {
        world.violation.map(str::to_owned)
    }

    fn goals(&self) -> Vec<Goal<Self>> {
        if self.thief {
            return Vec::new();
        }
        vec![Goal {
            property: "nothing stands in its way, and the rollout never ends from here",
            is_reached: properties::is_over,
            may: Action::is_sure,
        }]
    }
}

const fn rank(machines: &'static [u8], at_least: u32, soak: u64, most: u32) -> Rank {
    Rank { machines, silent: &[], at_least, percent: 0, soak, most }
}

const LINE: Outline = Outline {
    waves: &[rank(&[0], 1, 2, 1), rank(&[1], 1, 1, 1), rank(&[2], 0, 1, 1)],
    after: &[],
    budget: 0,
    system: 1,
};
const CANARY: Outline =
    Outline { waves: &[rank(&[0], 1, 2, 1), rank(&[1, 2], 0, 0, 1)], after: &[], budget: 0, system: 1 };
const DUO: Outline =
    Outline { waves: &[rank(&[0], 1, 1, 1), rank(&[1], 0, 0, 1)], after: &[], budget: 0, system: 1 };
const PAIR: Outline =
    Outline { waves: &[rank(&[0, 1], 2, 1, 1), rank(&[2], 0, 0, 1)], after: &[], budget: 0, system: 1 };
const FORGIVING: Outline =
    Outline { waves: &[rank(&[0, 1], 1, 1, 2), rank(&[2], 0, 0, 1)], after: &[], budget: 1, system: 1 };
const AFTER: Outline =
    Outline { waves: &[rank(&[0], 1, 1, 1), rank(&[1, 2], 0, 1, 2)], after: &[(1, 2)], budget: 0, system: 1 };
const SHARE: Outline = Outline {
    waves: &[
        Rank { machines: &[0, 1], silent: &[1], at_least: 1, percent: 100, soak: 1, most: 2 },
        rank(&[2], 0, 0, 1),
    ],
    after: &[],
    budget: 1,
    system: 1,
};
const MENDED: Outline = Outline { system: 2, ..DUO };
/// The canary is skipped, and comes last.
const SKIPPED: Outline =
    Outline { waves: &[rank(&[1], 1, 1, 1), rank(&[0], 0, 0, 1)], after: &[], budget: 0, system: 1 };

/// Every scene, with half as many faults at once as the agent has.
pub fn scenes(cast: &Rc<Cast>, faults: u8) -> Option<Vec<Stage>> {
    let none = Budget::default();
    // Three machines have many more states than one: a fault here costs what two cost there.
    let one = Budget { faults: faults / 2, ..none };
    let honest = |name, outlines, may| Stage::new(name, cast, outlines, may);
    let thief = |name, outlines, stolen, may| {
        let stage = Stage::new(name, cast, outlines, may)?;
        Some(Stage { thief: true, stolen, ..stage })
    };
    Some(vec![
        honest("three waves", &[LINE], one)?,
        honest("a canary and two others", &[CANARY], one).map(|stage| Stage { reports: true, ..stage })?,
        honest("a silent machine", &[CANARY], one).map(|stage| Stage { patience: 2, ..stage })?,
        honest("two canaries, one after the other", &[PAIR], one)?,
        honest("a wave whose machines fail", &[FORGIVING], Budget { failures: 2, ..none })?,
        honest("one of two others fails", &[CANARY], Budget { failures: 1, ..none })?,
        honest("a machine tries again", &[DUO], Budget { failures: 1, retries: 1, ..one })?,
        honest("one that comes first", &[AFTER], one)?,
        honest("so many of a hundred", &[SHARE], Budget { failures: 1, ..one })?,
        honest("machines that are changed, ill or taken back", &[DUO], Budget { troubles: 2, ..none })?,
        honest("machines with other keys", &[DUO], Budget { keys: 1, ..one })?,
        honest("an operator holds it", &[DUO], Budget { asks: 2, ..none })?,
        honest("another generation", &[DUO, MENDED], Budget { publications: 1, failures: 1, ..none })?,
        honest("a wave is skipped", &[DUO, SKIPPED], Budget { publications: 1, ..one })?,
        thief("a thief, and three waves", &[LINE], &[], Budget { troubles: 1, failures: 1, ..one })?,
        thief("a thief with a key of the second wave", &[LINE], &[1], one)?,
        thief("a thief with one of two canaries' keys", &[PAIR], &[1], Budget { troubles: 1, ..one })?,
        thief("a thief, and one that comes first", &[AFTER], &[], one)?,
        thief("a thief, and another plan", &[DUO, SKIPPED], &[], Budget { publications: 1, ..one })?,
        thief(
            "a thief, and a machine that is replaced",
            &[CANARY],
            &[],
            Budget { keys: 1, troubles: 1, ..one },
        )?,
    ])
}

/// The scene in which the properties notice that the guard is gone, with one fault.
pub fn without(guard: Break, cast: &Rc<Cast>) -> Option<Stage> {
    use Break as B;
    let name = match guard {
        B::SkipFirstWave => "a thief with a key of the second wave",
        B::SkipWaveBefore | B::SkipSoak | B::TakeAnyKey | B::BeginWithoutGate | B::BeginWithoutLeave => {
            "a thief, and three waves"
        }
        B::CountTwice => "a thief with one of two canaries' keys",
        B::SkipPredecessors => "a thief, and one that comes first",
        B::TakeOtherPlans | B::TakeAnyLeave => "a thief, and another plan",
        B::KeepLeave
        | B::CountLeaveAwake
        | B::SoakAsleep
        | B::IgnoreMaxInFlight
        | B::ForgetGiven
        | B::GiveOnce => "a canary and two others",
        B::IgnoreBudget => "one of two others fails",
        B::UseLeaveTwice | B::TakeStaleReply | B::ForgetRetries => "a machine tries again",
        B::SoakThroughDrift | B::SkipLastChecks | B::NeverWithdraw | B::IgnoreWithdrawn => {
            "machines that are changed, ill or taken back"
        }
        B::ForgetWish | B::IgnoreBrake | B::NeverTakeBack => "an operator holds it",
        B::CountAway => "two canaries, one after the other",
    };
    let stage = scenes(cast, 2)?.into_iter().find(|stage| stage.name == name)?;
    Some(Stage { broken: Some(guard), ..stage })
}
