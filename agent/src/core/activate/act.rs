//! The effects of an activator, what became of each, and what is seen before and after.

use std::time::Duration;

use muster_protocol::ids::StorePath;
use muster_protocol::target::Action;

use crate::core::records::GivenVerdict;

/// One effect.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Act {
    /// Write the record of [`super::Course`] durably.
    Write,
    /// Ask who else switches this machine just now.
    AskOthers,
    SetProfile(StorePath),
    /// Take the profile away: there was none.
    RemoveProfile,
    /// Run the system's own activation to its end, or to the limit and then end all that it started.
    Run {
        system: StorePath,
        action: Action,
        limit: Duration,
    },
    /// Remove what each of `from` has left in place and `to` does not have (a Mac's launchd jobs).
    Tidy {
        from: Vec<StorePath>,
        to: StorePath,
    },
    /// Make sure that the agent's own job runs, as `to` defines it; `from` is the system before.
    EnsureAgent {
        from: Option<StorePath>,
        to: StorePath,
    },
    Pause(Duration),
    End,
}

/// What became of an [`Act`].
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
    /// The end of what it said.
    pub output: String,
    pub timed_out: bool,
    pub outcome: Outcome,
    /// What a person has to do first, if it asked for one.
    pub person: Option<String>,
    pub ailing: Ailing,
}

/// What an activation says that failed, though it came to its end.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Ailing {
    pub units: Vec<String>,
    /// Users whose own units did not follow, in words for people. They are no reason to go back.
    pub sessions: Vec<String>,
}

/// To NEW, or back to OLD.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Way {
    Forth,
    Back,
}

/// What the exit code of an activation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    Done,
    /// It is done, and some units failed, unrelated ones perhaps.
    UnitsFailed,
    RebootNeeded,
    /// Somebody else activates just now.
    Locked,
    /// Its checks or the boot loader refused; the running system was not touched.
    Refused,
    /// Its checks refused, and it had touched nothing at all.
    Untouched,
    /// Its script failed; whatever comes behind was done all the same.
    ScriptFailed,
    Failed,
}

/// What is seen before each step and after it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Sight<'a> {
    pub running: Option<&'a StorePath>,
    pub profile: Option<&'a StorePath>,
    /// The agent's verdict on this record.
    pub verdict: Option<&'a GivenVerdict>,
    /// Time awake, of this process.
    pub now: Duration,
}
