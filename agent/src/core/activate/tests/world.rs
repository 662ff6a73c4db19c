//! A simulated machine for the tests of this module.

use std::collections::VecDeque;
use std::time::Duration;

use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::super::*;
use crate::core::records::tests::{path, transaction};
use crate::core::records::{Activation, GivenVerdict, Transaction};
use crate::core::state::State;

/// A machine that does what an activator says, without a clock of its own.
pub struct World {
    pub running: Option<StorePath>,
    pub profile: Option<StorePath>,
    pub disk: Option<Activation>,
    pub verdict: Option<GivenVerdict>,
    pub now: Duration,
    /// Who else switches, one answer per question.
    pub others: VecDeque<Option<String>>,
    /// How NEW's and OLD's activations end; the last answer repeats.
    pub new: VecDeque<(i32, Outcome)>,
    pub old: VecDeque<(i32, Outcome)>,
    /// What is done, as text.
    pub did: Vec<String>,
    pub full: bool,
    pub timed_out: bool,
    /// The system whose daemons, users and files are in place, if they all belong to one.
    pub whole: Option<StorePath>,
}

impl World {
    pub fn new() -> Self {
        Self {
            running: Some(path("old")),
            profile: Some(path("old")),
            disk: None,
            verdict: None,
            now: Duration::ZERO,
            others: VecDeque::new(),
            new: VecDeque::from([(0, Outcome::Done)]),
            old: VecDeque::from([(0, Outcome::Done)]),
            did: Vec::new(),
            full: false,
            timed_out: false,
            whole: Some(path("old")),
        }
    }

    pub fn seen<T>(&self, look: impl FnOnce(&Sight<'_>) -> T) -> T {
        look(&Sight {
            running: self.running.as_ref(),
            profile: self.profile.as_ref(),
            verdict: self.verdict.as_ref(),
            now: self.now,
        })
    }

    pub fn perform(&mut self, act: &Act, record: &Activation) -> Done {
        match act {
            Act::Write if self.full => return Done::Failed("no space".into()),
            Act::Write => {
                self.did.push(format!("write {:?}", record.phase));
                self.disk = Some(record.clone());
            }
            Act::AskOthers => return Done::Others(self.others.pop_front().flatten()),
            Act::SetProfile(system) => {
                self.did.push(format!("profile {}", system.name()));
                self.profile = Some(system.clone());
            }
            Act::RemoveProfile => {
                self.did.push("no profile".into());
                self.profile = None;
            }
            Act::Tidy { from, .. } => {
                self.did.extend(from.iter().map(|from| format!("tidy {}", from.name())));
            }
            Act::Run { system, action, .. } => {
                self.did.push(format!("{} {}", action.as_str(), system.name()));
                let answers = if system == &record.new { &mut self.new } else { &mut self.old };
                let (exit, outcome) =
                    if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0] };
                let links = matches!(action, Action::Switch | Action::Test)
                    && matches!(outcome, Outcome::Done | Outcome::UnitsFailed | Outcome::ScriptFailed);
                if links {
                    self.running = Some(system.clone());
                    self.whole = Some(system.clone());
                }
                let timed_out = self.timed_out && system == &record.new;
                return Done::Ran(Ran {
                    exit,
                    output: "words".into(),
                    timed_out,
                    outcome,
                    person: None,
                    ailing: Ailing::default(),
                });
            }
            Act::EnsureAgent { to, .. } => self.did.push(format!("agent of {}", to.name())),
            Act::Pause(pause) => self.now += *pause,
            Act::End => {}
        }
        Done::Well
    }

    /// Follows the course to its end, or until `stop` returns true for the next act.
    pub fn follow(&mut self, mut course: Course, stop: impl Fn(&Self, &Act) -> bool) -> Course {
        for _ in 0..200_000 {
            let act = self.seen(|sight| course.next(sight));
            if act == Act::End || stop(self, &act) {
                return course;
            }
            let done = self.perform(&act, &course.record);
            self.seen(|sight| course.done(done, sight));
        }
        panic!("it never ends: {:?}", self.did);
    }

    pub fn run(&mut self, action: Action) -> Activation {
        let course = Course::begin(record(action), "boot", self.now);
        self.follow(course, |_, _| false);
        self.disk.clone().unwrap()
    }
}

pub fn of(action: Action) -> Transaction {
    let mut open = transaction(2, State::Activating);
    let crate::core::records::Origin::Signed { target } = &mut open.origin else { panic!("signed") };
    (target.action, target.class) = (action, Class::Nixos);
    open
}

pub fn record(action: Action) -> Activation {
    Activation::new(&of(action), "boot")
}

pub fn mac_record() -> Activation {
    Activation { class: Class::Darwin, ..record(Action::Switch) }
}

pub const CONFIRM: GivenVerdict = GivenVerdict::Confirm { degraded: Vec::new() };

pub fn undo() -> GivenVerdict {
    GivenVerdict::Undo { reason: Reason::HealthCheckFailed, detail: "ssh".into() }
}
