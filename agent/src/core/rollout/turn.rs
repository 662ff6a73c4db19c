//! Whether it is a machine's turn. A gated target is switched to when its signatures are valid, its gate is
//! proven open, and the controller gives leave; in that order, and each of them is looked at again right
//! before the activator starts. The controller can only hold a machine back: its word opens nothing.

use std::time::Duration;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Sha256;
use muster_protocol::plan::{Gate, Leave, Place};

use crate::core::policy::{Deferral, Hold};

/// What is known about the turn of one target.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Turn {
    /// The place that all of this is about.
    pub place: Place,
    /// The rest of it means nothing while the plan is missing; this is why it is.
    pub missing: Option<String>,
    /// The signatures over the target have expired, or those over it are no longer held.
    pub is_expired: bool,
    /// What the last statements prove; `None` where none were fetched and some are needed.
    pub gate: Option<Gate>,
    pub says: Says,
}

/// What the controller last said about a plan.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub enum Says {
    #[default]
    Nothing,
    Wait(String),
    Go,
    /// It gave leave, which has ended.
    Lapsed,
}

/// What a check-in's reply said, and when the check-in was sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answered {
    pub leave: Leave,
    /// Awake time.
    pub sent: Duration,
    /// The wall clock.
    pub sent_at: UnixMillis,
}

impl Answered {
    /// What it says about this plan now. Awake time stands still while the machine sleeps, and the wall clock
    /// may be set: leave ends by whichever says so first, and a clock that was set back counts as later.
    pub fn says(&self, plan: &Sha256, now: Duration, at: UnixMillis) -> Says {
        let Leave { plan: about, seconds, why } = &self.leave;
        if about != plan {
            return Says::Nothing;
        }
        if *seconds == 0 {
            return why.clone().map_or(Says::Nothing, Says::Wait);
        }
        let awake = now.saturating_sub(self.sent) < Duration::from_secs(*seconds);
        let wall = at.abs_diff(self.sent_at) < seconds.saturating_mul(1000);
        if awake && wall { Says::Go } else { Says::Lapsed }
    }
}

/// Why the target at this place may not be switched to now, if it may not.
pub fn held(place: Place, turn: Option<&Turn>) -> Option<Deferral> {
    let Some(turn) = turn.filter(|turn| turn.place == place) else {
        return Some(Deferral::new(Hold::Plan, "waits for the plan of its rollout"));
    };
    if let Some(why) = &turn.missing {
        return Some(Deferral::new(Hold::Plan, format!("waits for the plan of its rollout: {why}")));
    }
    if turn.is_expired {
        let why = "the signatures over it expired while it waited: an operator must sign it again";
        return Some(Deferral::new(Hold::Expired, why));
    }
    let why = match (&turn.gate, &turn.says) {
        (Some(Gate::Open), Says::Go) => return None,
        (Some(Gate::Open), says) => {
            let why = match says {
                Says::Wait(why) => why.clone(),
                _ => "waits for the controller's leave".to_owned(),
            };
            return Some(Deferral::new(Hold::Rollout, why));
        }
        // Leave that ended was leave all the same: a text that changes each time would be told each time.
        (Some(Gate::Closed(lack)), Says::Go | Says::Lapsed) => format!("the controller says go, but {lack}"),
        (Some(Gate::Closed(lack)), _) => format!("waits for its wave: {lack}"),
        (None, Says::Go | Says::Lapsed) => {
            "waits for its wave: the controller says go, and is asked for the proof".to_owned()
        }
        (None, Says::Wait(why)) => format!("waits for its wave: {why}"),
        (None, Says::Nothing) => "waits for its wave".to_owned(),
    };
    Some(Deferral::new(Hold::Wave, why))
}

/// Whether a target that is held like this waits for its turn alone.
pub fn is_turn(hold: Hold) -> bool {
    matches!(hold, Hold::Wave | Hold::Rollout)
}

#[cfg(test)]
mod tests {
    use muster_protocol::plan::Lack;

    use super::*;

    const NOW: Duration = Duration::from_secs(5000);
    const AT: UnixMillis = 1_800_000_000_000;

    fn place() -> Place {
        Place { plan: Sha256::of(b"plan"), wave: 1 }
    }

    fn turn(gate: Option<Gate>, says: Says) -> Turn {
        Turn { place: place(), missing: None, is_expired: false, gate, says }
    }

    fn closed() -> Gate {
        Gate::Closed(Lack::Wave { wave: 0, name: "canaries".into(), have: 1, need: 2 })
    }

    fn answered(seconds: u64) -> Answered {
        let leave = Leave { plan: place().plan, seconds, why: None };
        Answered { leave, sent: NOW, sent_at: AT }
    }

    #[test]
    fn only_an_open_gate_with_leave_lets_a_machine_switch() {
        let says = [Says::Nothing, Says::Wait("the brake is on".into()), Says::Go, Says::Lapsed];
        for gate in [None, Some(closed()), Some(Gate::Open)] {
            for says in says.clone() {
                let may = gate == Some(Gate::Open) && says == Says::Go;
                let turn = turn(gate.clone(), says);
                assert_eq!(held(place(), Some(&turn)).is_none(), may, "{turn:?}");
                for worse in [
                    Turn { missing: Some("it has too many bytes".into()), ..turn.clone() },
                    Turn { is_expired: true, ..turn.clone() },
                    Turn { place: Place { wave: 2, ..place() }, ..turn.clone() },
                    Turn { place: Place { plan: Sha256::of(b"other"), ..place() }, ..turn },
                ] {
                    assert!(held(place(), Some(&worse)).is_some(), "{worse:?}");
                }
            }
        }
        assert_eq!(held(place(), None).unwrap().hold, Hold::Plan);
    }

    #[test]
    fn what_a_machine_waits_for_is_said_in_its_own_words() {
        let why = |gate, says| held(place(), Some(&turn(gate, says))).unwrap();
        let waits = why(Some(closed()), Says::Nothing);
        assert_eq!(waits.hold, Hold::Wave);
        assert_eq!(
            waits.why,
            "waits for its wave: 1 of the 2 machines of wave 'canaries' that must have soaked have"
        );
        assert!(why(Some(closed()), Says::Go).why.starts_with("the controller says go, but 1 of the 2"));
        assert_eq!(why(Some(Gate::Open), Says::Nothing).why, "waits for the controller's leave");
        let braked = why(Some(Gate::Open), Says::Wait("the brake is on".into()));
        assert_eq!((braked.hold, braked.why.as_str()), (Hold::Rollout, "the brake is on"));
    }

    #[test]
    fn leave_holds_for_its_seconds_by_whichever_clock_ends_it_first() {
        let says = |awake: u64, wall: i64| {
            answered(60).says(&place().plan, NOW + Duration::from_secs(awake), AT + wall * 1000)
        };
        assert_eq!((says(0, 0), says(59, 59)), (Says::Go, Says::Go));
        assert_eq!(says(60, 5), Says::Lapsed);
        // The machine slept for an hour, in which awake time stood still.
        assert_eq!(says(2, 3600), Says::Lapsed);
        assert_eq!(says(2, -3600), Says::Lapsed, "the clock was set back");
    }

    #[test]
    fn leave_of_another_plan_and_of_no_time_is_none() {
        assert_eq!(answered(60).says(&Sha256::of(b"other"), NOW, AT), Says::Nothing);
        assert_eq!(answered(0).says(&place().plan, NOW, AT), Says::Nothing);
    }
}
