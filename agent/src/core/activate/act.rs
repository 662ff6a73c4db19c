//! The effects of an activator, their results, and what is observed before and after.

use std::time::Duration;

use muster_protocol::ids::StorePath;
use muster_protocol::target::Action;

use crate::core::records::GivenVerdict;

/// One effect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Act {
    /// Durably write the record of [`super::Course`].
    Write,
    /// Find out who else is switching this machine.
    AskOthers,
    SetProfile(StorePath),
    /// Remove the profile: there was none before.
    RemoveProfile,
    /// Run the system's own activation to its end, or to the limit and then kill everything it started.
    Run {
        system: StorePath,
        action: Action,
        limit: Duration,
    },
    /// Remove what each system of `from` has left in place and `to` does not have (a Mac's launchd jobs).
    Tidy {
        from: Vec<StorePath>,
        to: StorePath,
    },
    /// Make sure that the agent's own job runs as `to` defines it; `from` is the system before.
    EnsureAgent {
        from: Option<StorePath>,
        to: StorePath,
    },
    Pause(Duration),
    End,
}

/// The result of an [`Act`].
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Done {
    Well,
    Failed(String),
    /// Of [`Act::AskOthers`]: who it is, if anybody.
    Others(Option<String>),
    /// Of [`Act::Run`].
    Ran(Ran),
}

/// How an activation ended.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ran {
    pub exit: i32,
    /// The end of its output.
    pub output: String,
    pub timed_out: bool,
    pub outcome: Outcome,
    /// What a person has to do first, if it asked for that.
    pub person: Option<String>,
    pub ailing: Ailing,
}

/// What failed according to an activation that ran to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ailing {
    pub units: Vec<String>,
    /// Users whose own units did not follow, as text for people. They are no reason to go back.
    pub sessions: Vec<String>,
}

/// To NEW, or back to OLD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    Forth,
    Back,
}

/// The meaning of an activation's exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Done,
    /// Done, but some units failed, possibly unrelated ones.
    UnitsFailed,
    RebootNeeded,
    /// Somebody else is activating.
    Locked,
    /// Its checks or the boot loader refused; the running system was not touched.
    Refused,
    /// Its checks refused, and it had touched nothing at all.
    Untouched,
    /// Its script failed; everything after it was done all the same.
    ScriptFailed,
    Failed,
}

/// What is observed before each step and after it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sight<'a> {
    pub running: Option<&'a StorePath>,
    pub profile: Option<&'a StorePath>,
    /// The agent's verdict on this record.
    pub verdict: Option<&'a GivenVerdict>,
    /// Awake time of this process.
    pub now: Duration,
}
