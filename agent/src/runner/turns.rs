//! What is known about this machine's turn in a rollout (`core::rollout::Heard`). The contact writes it; the
//! work, check-ins and people read it. All but the plan is in memory alone: the next process has no leave and
//! no proof, and asks.

use std::cell::{Cell, RefCell};
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::plan::{Gate, Leave, Place, Plan, Statement};
use muster_protocol::target::Target;

use crate::core::rollout::{Heard, Says, Turn};
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
    heard: RefCell<Heard>,
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
            heard: RefCell::default(),
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
        let heard = self.heard.borrow();
        Some(Turn {
            place,
            missing: if plan.is_some() { None } else { Some(self.missing.borrow().clone()) },
            is_expired: expires.is_none_or(|(_, expires)| at.div_euclid(1000) >= expires),
            gate: plan.and_then(|plan| heard.gate(&self.machine, place, &plan)),
            says: heard.says(&place.plan, now, at),
        })
    }

    /// Takes in the statements that the controller has for this gate. One that was proven open stays so.
    pub fn prove(&self, place: Place, plan: &Plan, statements: &[Statement]) -> Gate {
        self.heard.borrow_mut().prove(&self.machine, place, plan, statements)
    }

    /// What the reply to a check-in says, which was sent then.
    pub fn answered(&self, leave: Option<Leave>, sent: Duration, sent_at: UnixMillis) {
        self.heard.borrow_mut().answered(leave, sent, sent_at);
    }

    /// The activator is started: the leave is used up.
    pub fn use_leave(&self, now: Duration) {
        self.heard.borrow_mut().use_leave(now);
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
