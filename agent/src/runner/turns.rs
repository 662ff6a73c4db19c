//! What is known about this machine's turn in a rollout. The contact writes it; the work, check-ins and
//! people read it. All but the plan is in memory alone: the next process has no leave and no proof, and asks.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::plan::{Gate, Leave, Place, Plan, Statement, gate};
use muster_protocol::target::Target;

use crate::core::rollout::{Answered, Says, Turn};
use crate::trust::Trust;

/// How often the controller is asked again for leave that ended before it could be used.
const ASKED_APART: Duration = Duration::from_secs(60);

/// Why a plan is missing that nobody asked for.
pub const NOT_YET: &str = "it was not fetched yet";

pub struct Turns {
    machine: MachineName,
    /// The plan of the newest verified target.
    plan: RefCell<Option<(Sha256, Arc<Plan>)>>,
    missing: RefCell<String>,
    expires: Cell<Option<(Generation, i64)>>,
    /// What was proven about the gate at this place.
    gate: RefCell<Option<(Place, Gate)>>,
    answered: RefCell<Option<Answered>>,
    /// When leave was last used, in awake time: what was said before then is used up.
    used: Cell<Option<Duration>>,
    /// The plan in whose rollout the machine waits for its turn alone.
    awaits: Cell<Option<Sha256>>,
    /// When it was last asked for leave again, in awake time.
    asked: Cell<Option<Duration>>,
}

impl Turns {
    pub fn new(machine: &MachineName, trust: &Trust) -> Self {
        let turns = Self {
            machine: machine.clone(),
            plan: RefCell::new(None),
            missing: RefCell::new(NOT_YET.to_owned()),
            expires: Cell::new(None),
            gate: RefCell::new(None),
            answered: RefCell::new(None),
            used: Cell::new(None),
            awaits: Cell::new(None),
            asked: Cell::new(None),
        };
        turns.hold(trust);
        turns
    }

    /// Takes over what is held now.
    pub fn hold(&self, trust: &Trust) {
        self.expires.set(trust.expires());
        self.plan.replace(trust.plan());
    }

    pub fn set_missing(&self, why: String) {
        self.missing.replace(why);
    }

    pub fn plan(&self, hash: &Sha256) -> Option<Arc<Plan>> {
        self.plan.borrow().as_ref().filter(|(held, _)| held == hash).map(|(_, plan)| Arc::clone(plan))
    }

    /// What is known about the turn of this target; `None` if it has no place in a rollout.
    pub fn turn(&self, target: &Target, now: Duration, at: UnixMillis) -> Option<Turn> {
        let place = target.rollout?;
        let plan = self.plan(&place.plan);
        let expires = self.expires.get().filter(|(of, _)| *of == target.generation);
        let answered = self.answered.borrow();
        Some(Turn {
            place,
            missing: if plan.is_some() { None } else { Some(self.missing.borrow().clone()) },
            is_expired: expires.is_none_or(|(_, expires)| at.div_euclid(1000) >= expires),
            gate: plan.and_then(|plan| self.gate(place, &plan)),
            says: answered.as_ref().map_or(Says::Nothing, |said| said.says(&place.plan, now, at)),
        })
    }

    /// As proven; a gate that needs no statement is open by the plan alone.
    fn gate(&self, place: Place, plan: &Plan) -> Option<Gate> {
        let known = self.gate.borrow().as_ref().filter(|(of, _)| *of == place).map(|(_, gate)| gate.clone());
        known.or_else(|| Some(self.evaluate(place, plan, &[])).filter(|gate| *gate == Gate::Open))
    }

    fn evaluate(&self, place: Place, plan: &Plan, statements: &[Statement]) -> Gate {
        let wave = usize::try_from(place.wave).unwrap_or(usize::MAX);
        gate((place.plan, plan), &self.machine, wave, statements)
    }

    /// Takes in the statements that the controller has for this gate. One that was proven open stays so.
    pub fn prove(&self, place: Place, plan: &Plan, statements: &[Statement]) -> Gate {
        let gate = self.evaluate(place, plan, statements);
        let open = self.gate(place, plan) == Some(Gate::Open);
        if !open {
            self.gate.replace(Some((place, gate.clone())));
        }
        if open { Gate::Open } else { gate }
    }

    /// What the reply to a check-in says, which was sent then. It replaces what was said before; a reply that
    /// says nothing takes leave back, and so does one to a check-in from before the last start.
    pub fn answered(&self, leave: Option<Leave>, sent: Duration, sent_at: UnixMillis) {
        let leave = leave.filter(|_| self.used.get().is_none_or(|used| sent > used));
        self.answered.replace(leave.map(|leave| Answered { leave, sent, sent_at }));
    }

    /// The activator is started: the leave is used up.
    pub fn use_leave(&self, now: Duration) {
        self.answered.replace(None);
        self.used.set(Some(now));
    }

    pub fn awaits(&self) -> Option<Sha256> {
        self.awaits.get()
    }

    /// Returns whether the controller is to be told: it changed, or leave ended before it could be used.
    pub fn set_awaits(&self, plan: Option<Sha256>, says: &Says, now: Duration) -> bool {
        let changed = self.awaits.replace(plan) != plan;
        let late = self.asked.get().is_none_or(|asked| now.saturating_sub(asked) >= ASKED_APART);
        let again = plan.is_some() && *says == Says::Lapsed && late;
        if changed || again {
            self.asked.set(Some(now));
        }
        changed || again
    }
}
