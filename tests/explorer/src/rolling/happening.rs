//! What can happen in a rollout.

use super::machine::{End, Lot};
use super::plans::MOST;

/// Machines by their number, plans by that of their generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Prepares(u8),
    CheckIn(u8, Way),
    Arrives,
    /// It asks again for what proves its gate.
    Fetches(u8),
    Reports(u8),
    Decides,
    Begins(u8),
    Ends(u8, End),
    Tick,
    Sleeps(u8),
    Wakes(u8),
    Reboots(u8),
    Drifts(u8),
    IsRestored(u8),
    FallsIll(u8),
    Heals(u8),
    GoesBack(u8),
    Rotates(u8),
    IsReplaced(u8),
    Operator(Wish),
    Retries(u8),
    Publishes,
    /// A controller that lies.
    Hides(u8),
    Shows(u8, u8),
    Says(u8, u8),
    Hands(u8, Lot),
}

/// What becomes of a check-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Answered,
    /// Its reply is lost.
    Unheard,
    /// Its reply is late.
    Late,
    /// It comes late itself.
    Delayed,
    /// The statements after it are lost.
    Unproven,
    /// The controller decides later.
    Undecided,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wish {
    Stop,
    Pause,
    Resume,
    Brake,
    Release,
    Forgive,
}

impl Action {
    pub fn all() -> Vec<Self> {
        use Action as A;
        let ways = [Way::Answered, Way::Unheard, Way::Late, Way::Delayed, Way::Unproven, Way::Undecided];
        let wishes = [Wish::Stop, Wish::Pause, Wish::Resume, Wish::Brake, Wish::Release, Wish::Forgive];
        let lots = [Lot::Honest, Lot::Kept, Lot::Mixed, Lot::Raised, Lot::Forged, Lot::Nothing];
        let mut all = Vec::new();
        for who in (0_u8..).take(MOST) {
            all.extend([A::Prepares(who), A::Begins(who), A::Fetches(who), A::Reports(who)]);
            all.extend([A::Ends(who, End::Confirmed), A::Ends(who, End::Failed)]);
            all.extend(ways.map(|way| A::CheckIn(who, way)));
            all.extend([A::Sleeps(who), A::Wakes(who), A::Reboots(who), A::Drifts(who), A::IsRestored(who)]);
            all.extend([A::FallsIll(who), A::Heals(who), A::GoesBack(who), A::Rotates(who)]);
            all.extend([A::IsReplaced(who), A::Retries(who), A::Hides(who)]);
            for plan in [1, 2] {
                all.extend([A::Shows(who, plan), A::Says(who, plan)]);
            }
            all.extend(lots.map(|lot| A::Hands(who, lot)));
        }
        all.extend([A::Arrives, A::Decides, A::Tick, A::Publishes]);
        all.extend(wishes.map(A::Operator));
        all
    }

    /// Whether it happens sooner or later where nobody hinders it: machines and an honest controller go on, a
    /// lid is opened again, and people do what they are told.
    pub fn is_sure(self) -> bool {
        use Action as A;
        matches!(
            self,
            A::Prepares(_)
                | A::CheckIn(_, Way::Answered)
                | A::Arrives
                | A::Fetches(_)
                | A::Reports(_)
                | A::Decides
                | A::Begins(_)
                | A::Ends(_, End::Confirmed)
                | A::Tick
                | A::Wakes(_)
                | A::IsRestored(_)
                | A::Heals(_)
                | A::Operator(Wish::Resume | Wish::Release | Wish::Forgive)
        )
    }
}
