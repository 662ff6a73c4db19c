//! Everything that can differ between two moments: the disk, the processes, the network, the controller.

use std::collections::VecDeque;

use muster_agent::core::activate::Course;
use muster_agent::core::book::{Book, Write};
use muster_agent::core::records::{Activation, Confirmation, Journal, Transaction};
use muster_protocol::report::{EventKind, Reason};
use muster_protocol::target::Action;

use crate::scene::{Budget, Scene, System};

/// One moment.
#[derive(Debug, Clone, Hash)]
pub struct World {
    pub disk: Disk,
    /// `/run/current-system`.
    pub running: System,
    /// Whose units or daemons are in place; another one than `running` while an activation is half done.
    pub daemons: System,
    /// Whose daemons lie in /Library/LaunchDaemons, a bit a system (a Mac), and whose users there are.
    pub plists: u8,
    pub users: System,
    pub boot: u8,
    pub agent: Option<Agent>,
    /// Whether the supervisor has the agent's job.
    pub loaded: bool,
    pub activator: Option<Activator>,
    /// Whether the supervisor has the activator's job, and so starts it again when it is killed.
    pub job: bool,
    /// A script that runs on though its activator was killed.
    pub leftover: Option<Script>,
    pub network: bool,
    /// The newest generation at the controller.
    pub published: u8,
    /// Enough machines have signed that they run it well.
    pub gate: bool,
    /// Root holders have begun the new epoch.
    pub new_epoch: bool,
    pub budget: Budget,
    pub history: History,
}

/// What a power cut leaves.
#[derive(Debug, Clone, Hash)]
pub struct Disk {
    pub transaction: Option<Transaction>,
    pub activation: Option<Activation>,
    pub confirmation: Option<Confirmation>,
    pub journal: Journal,
    /// Whether the activator's job is one that the next boot starts.
    pub boot_job: bool,
    /// The newest verified generation (the trusted metadata).
    pub held: Option<u8>,
    /// The trusted root is of the new epoch.
    pub new_epoch: bool,
    pub profile: System,
    /// What the boot loader boots (NixOS).
    pub entry: System,
    /// Every event that was ever put into the outbox; its number is its place, counted from 1.
    pub told: Vec<Told>,
    /// How many of them are removed, because the controller said that it has them.
    pub acknowledged: usize,
    /// How many the controller has.
    pub stored: usize,
    pub next_id: u8,
}

/// An event as far as the properties look at it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Told {
    pub transaction: String,
    pub kind: String,
}

/// The agent's memory.
#[derive(Debug, Clone, Default, Hash)]
pub struct Agent {
    pub book: Book,
    /// What is still to be done of a step that was begun.
    pub todo: VecDeque<Effect>,
    /// Whether its checks have ended, and how.
    pub probed: Option<bool>,
    pub probing: bool,
    pub reached: bool,
    pub answers: bool,
    pub rollback_asked: bool,
    /// What the last statements proved about the gate, if any were fetched.
    pub proven: Option<bool>,
    /// The controller gave leave, and did not take it back.
    pub leave: bool,
}

/// One change of the disk, or the start of another process. A crash comes between any two.
#[derive(Debug, Clone, Hash)]
pub enum Effect {
    Write(Write),
    StartActivator,
}

#[derive(Debug, Clone, Hash)]
pub struct Activator {
    /// `None` until it has looked.
    pub course: Option<Course>,
    pub script: Option<Script>,
}

/// A system's activation under way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Script {
    pub system: System,
    pub action: Action,
    pub stage: u8,
}

/// What nobody on the machine keeps, and the properties need.
#[derive(Debug, Clone, Default, Hash)]
pub struct History {
    /// The highest generation that an activation was started for.
    pub highest: u8,
    /// The agent was in the middle of a step when the root of the new epoch came: that step was decided
    /// before it.
    pub decided_before: bool,
    /// Systems whose generation was told to have failed by its own fault.
    pub failed: Vec<System>,
    /// How often the activation of one generation was begun.
    pub begun: Vec<u8>,
    /// What the machine may be on when all is at rest: what ran before the last activation, and what it
    /// brought.
    pub old: System,
    pub new: System,
    pub violation: Option<String>,
}

impl World {
    pub fn new(scene: &Scene) -> Self {
        let profile = if scene.foreign_profile { crate::scene::FOREIGN } else { 0 };
        Self {
            disk: Disk {
                transaction: None,
                activation: None,
                confirmation: None,
                journal: Journal::default(),
                boot_job: false,
                held: None,
                new_epoch: false,
                profile,
                entry: profile,
                told: Vec::new(),
                acknowledged: 0,
                stored: 0,
                next_id: 1,
            },
            running: 0,
            daemons: 0,
            plists: 1,
            users: 0,
            boot: 1,
            agent: Some(Agent::default()),
            loaded: true,
            activator: None,
            job: false,
            leftover: None,
            network: true,
            published: 0,
            gate: false,
            new_epoch: false,
            budget: scene.budget,
            history: History { begun: vec![0; scene.published.len() + 1], ..History::default() },
        }
    }

    /// Notes the first property that does not hold.
    pub fn violate(&mut self, what: impl Into<String>) {
        self.history.violation.get_or_insert(what.into());
    }

    pub fn boot_name(&self) -> String {
        format!("boot-{}", self.boot)
    }

    pub fn push(&mut self, transaction: &str, event: &EventKind) {
        let kind = kind(event);
        self.disk.told.push(Told { transaction: transaction.to_owned(), kind });
    }
}

/// The name of an event, with what the properties need of it.
pub fn kind(event: &EventKind) -> String {
    match event {
        EventKind::RolledBack { reason, .. } => format!("rolled-back {reason:?}"),
        other => {
            let value = serde_json::to_value(other).unwrap_or_default();
            value["kind"].as_str().unwrap_or("unknown").to_owned()
        }
    }
}

/// Whether a generation that was undone for this reason is at fault itself.
pub fn is_own_fault(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::ActivationFailed
            | Reason::HealthCheckFailed
            | Reason::NotRunning
            | Reason::DidNotBoot
            | Reason::Deadline
    )
}
