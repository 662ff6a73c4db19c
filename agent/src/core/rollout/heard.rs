//! What a machine has heard of its turn, and what was proven of its gate. In memory alone: the next process
//! has no leave and no proof, and asks.

use std::time::Duration;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::plan::{Gate, Leave, Place, Plan, Statement, gate};

use super::turn::{Answered, Says};

/// What is known of one machine's turn besides its plan.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Heard {
    /// What was proven about the gate at this place.
    pub proven: Option<(Place, Gate)>,
    pub answered: Option<Answered>,
    /// When leave was last used, in awake time: what was said before then is used up.
    pub used: Option<Duration>,
}

impl Heard {
    /// As proven; a gate that needs no statement is open by the plan alone.
    pub fn gate(&self, machine: &MachineName, place: Place, plan: &Plan) -> Option<Gate> {
        let known = self.proven.as_ref().filter(|(of, _)| *of == place).map(|(_, gate)| gate.clone());
        known.or_else(|| Some(evaluate(machine, place, plan, &[])).filter(|gate| *gate == Gate::Open))
    }

    /// Takes in the statements that the controller has for this gate. One that was proven open stays so.
    pub fn prove(
        &mut self,
        machine: &MachineName,
        place: Place,
        plan: &Plan,
        statements: &[Statement],
    ) -> Gate {
        if self.gate(machine, place, plan) == Some(Gate::Open) {
            return Gate::Open;
        }
        let gate = evaluate(machine, place, plan, statements);
        self.proven = Some((place, gate.clone()));
        gate
    }

    /// What the reply to a check-in says, which was sent then. It replaces what was said before; a reply that
    /// says nothing takes leave back, and so does one to a check-in from before the last start.
    pub fn answered(&mut self, leave: Option<Leave>, sent: Duration, sent_at: UnixMillis) {
        let leave = leave.filter(|_| self.used.is_none_or(|used| sent > used));
        self.answered = leave.map(|leave| Answered { leave, sent, sent_at });
    }

    /// The activator is started: the leave is used up.
    pub fn use_leave(&mut self, now: Duration) {
        (self.answered, self.used) = (None, Some(now));
    }

    /// What the controller says about this plan now.
    pub fn says(&self, plan: &Sha256, now: Duration, at: UnixMillis) -> Says {
        self.answered.as_ref().map_or(Says::Nothing, |said| said.says(plan, now, at))
    }
}

fn evaluate(machine: &MachineName, place: Place, plan: &Plan, statements: &[Statement]) -> Gate {
    let wave = usize::try_from(place.wave).unwrap_or(usize::MAX);
    gate((place.plan, plan), machine, wave, statements)
}
