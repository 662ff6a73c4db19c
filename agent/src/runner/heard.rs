//! What the controller sent. The contact writes it; the work, check-ins and people read it.

use std::cell::{Cell, Ref, RefCell};
use std::time::Duration;

use muster_protocol::checkin::Holds;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Epoch, Generation, Sha256};
use muster_protocol::report::Attack;
use muster_protocol::target::Target;

pub struct Heard {
    /// The newest verified target.
    wanted: RefCell<Option<Target>>,
    holds: Cell<Holds>,
    /// The last answer that was refused, until one is accepted.
    refused: Cell<Option<Attack>>,
    /// The operators' requests that were followed, and that the controller still passes on.
    followed: RefCell<Vec<Sha256>>,
    answers: Cell<bool>,
    /// The controller hints at a generation that was not requested yet: retries wait for that.
    hinted: Cell<bool>,
    /// When the last answered check-in was sent, in awake time.
    reached: Cell<Option<Duration>>,
    last_contact: Cell<Option<UnixMillis>>,
    /// Why the controller no longer accepts this machine, until it does again.
    shut_out: RefCell<Option<String>>,
}

impl Heard {
    /// What was verified before this process.
    pub fn new(wanted: Option<Target>, holds: Holds) -> Self {
        Self {
            wanted: RefCell::new(wanted),
            holds: Cell::new(holds),
            refused: Cell::new(None),
            followed: RefCell::new(Vec::new()),
            answers: Cell::new(false),
            hinted: Cell::new(false),
            reached: Cell::new(None),
            last_contact: Cell::new(None),
            shut_out: RefCell::new(None),
        }
    }

    pub fn wanted(&self) -> Ref<'_, Option<Target>> {
        self.wanted.borrow()
    }
    pub fn wanted_generation(&self) -> Option<Generation> {
        self.wanted.borrow().as_ref().map(|target| target.generation)
    }
    pub fn holds(&self) -> Holds {
        self.holds.get()
    }
    pub fn refused(&self) -> Option<Attack> {
        self.refused.get()
    }
    pub fn followed(&self) -> Vec<Sha256> {
        self.followed.borrow().clone()
    }
    pub fn answers(&self) -> bool {
        self.answers.get()
    }
    pub fn speaks_of_news(&self) -> bool {
        self.hinted.get()
    }
    /// Whether a check-in sent at or after this awake time was answered.
    pub fn reached_since(&self, since: Duration) -> bool {
        self.reached.get().is_some_and(|sent| sent >= since)
    }
    pub fn last_contact(&self) -> Option<UnixMillis> {
        self.last_contact.get()
    }
    pub fn shut_out(&self) -> Option<String> {
        self.shut_out.borrow().clone()
    }

    pub fn verified(&self, target: Option<Target>) {
        if *self.wanted.borrow() != target {
            *self.wanted.borrow_mut() = target;
        }
    }

    /// Returns what was held before.
    pub fn set_holds(&self, holds: Holds) -> Holds {
        self.holds.replace(holds)
    }

    /// Drops a target of an earlier epoch. Returns whether there was one.
    pub fn disown_before(&self, epoch: Epoch) -> bool {
        let mut wanted = self.wanted.borrow_mut();
        wanted.take_if(|target| target.generation.epoch() < epoch).is_some()
    }

    /// Returns what was refused before.
    pub fn set_refused(&self, attack: Option<Attack>) -> Option<Attack> {
        self.refused.replace(attack)
    }

    pub fn set_followed(&self, requests: Vec<Sha256>) {
        self.followed.replace(requests);
    }

    pub fn set_speaks_of_news(&self, news: bool) {
        self.hinted.set(news);
    }

    /// A check-in sent at this awake time was answered.
    pub fn check_in_answered(&self, sent: Duration) {
        self.reached.set(Some(sent));
        self.shut_out.borrow_mut().take();
    }

    /// Anything was answered. Returns whether it was unknown that the controller answers.
    pub fn answered(&self, now: UnixMillis) -> bool {
        self.last_contact.set(Some(now));
        !self.answers.replace(true)
    }

    /// The controller is unreachable; or, for the work, its last answer predates what happened since.
    pub fn forget_answers(&self) {
        self.answers.set(false);
    }

    pub fn set_shut_out(&self, why: String) {
        *self.shut_out.borrow_mut() = Some(why);
    }
}
