//! State shared by the contact, the work and the local commands. Nothing is borrowed across an await.
//!
//! Each part says who writes it. What concerns two of them is combined here.

use std::cell::RefCell;
use std::sync::Arc;

use muster_protocol::clock::Clock;
use tracing::{Span, info_span};

use super::asks::Asks;
use super::counted::Counted;
use super::doing::Doing;
use super::heard::Heard;
use super::ledger::Ledger;
use super::next_key::NextKey;
use super::turns::Turns;
use super::wakes::Wakes;
use crate::config::Config;
use crate::core::plan::{Controller, RebootNote};
use crate::identity::{AgeClaims, Identity};
use crate::log_shown::LogWitness;
use crate::platform::Platform;

pub struct Shared {
    /// Constant while the agent runs.
    pub config: Config,
    pub identity: Identity,
    pub platform: Arc<dyn Platform>,
    pub clock: Arc<dyn Clock>,
    pub boot: String,
    /// Everything durable. Its own methods control what may be written.
    pub ledger: RefCell<Ledger>,
    pub heard: Heard,
    pub turns: Turns,
    pub doing: Doing,
    pub asks: Asks,
    pub next_key: NextKey,
    pub wakes: Wakes,
    /// Only for check-ins.
    pub numbers: Counted,
    pub age: AgeClaims,
    /// Written by the contact.
    pub log: LogWitness,
}

impl Shared {
    pub fn controller(&self) -> Controller {
        let since = self.doing.probing_since();
        let reached_since_activation = since.is_some_and(|since| self.heard.reached_since(since));
        let answers = self.heard.answers() && !self.heard.speaks_of_news();
        Controller { answers, reached_since_activation }
    }

    /// The controller answered something.
    pub fn answered(&self) {
        if self.heard.answered(self.clock.unix_ms()) {
            self.wakes.wake_work();
        }
    }

    pub fn set_problem(&self, problem: Option<String>) {
        if self.doing.set_problem(problem) {
            self.wakes.changed();
        }
    }

    /// `None`: what is known still holds.
    pub fn note_reboot(&self, note: Option<Option<RebootNote>>) {
        if note.is_some_and(|note| self.doing.set_reboot(note)) {
            self.wakes.changed();
        }
    }

    /// Something that the work depends on has changed.
    pub fn look_again(&self) {
        self.wakes.changed_now();
        self.wakes.wake_work();
    }

    /// Every log line names its machine.
    pub fn machine_span(&self) -> Span {
        info_span!("agent", machine = %self.identity.machine)
    }

    /// And lines about a switch name the generation and the attempt.
    pub fn span(&self) -> Span {
        let ledger = self.ledger.borrow();
        let machine = &self.identity.machine;
        match ledger.transaction() {
            Some(open) => {
                info_span!("switch", %machine, generation = %open.generation(), transaction = open.id)
            }
            None => info_span!("agent", %machine),
        }
    }
}
