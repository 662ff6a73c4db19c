//! What the runner does next: a function of what was observed, what is wanted and the time.

use std::time::Duration;

use muster_protocol::ids::StorePath;
use muster_protocol::report::Reason;
use muster_protocol::target::Target;

use super::health::{self, CheckResult, Evidence, Verdict};
use super::records::{
    Activation, ActivationPhase as Phase, Confirmation, GivenVerdict, Journal, Quarantined, Transaction,
};
use super::state::{Input, State};

/// Everything that the decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    pub transaction: Option<&'a Transaction>,
    /// The activator's record, of whichever transaction.
    pub activation: Option<&'a Activation>,
    /// Whether an activator holds its lock, or was started so lately that it may not have it yet.
    pub activator_alive: bool,
    /// The verdict that lies on disk, of whichever transaction.
    pub given: Option<&'a Confirmation>,
    pub running: Option<&'a StorePath>,
    pub boot: &'a str,
    /// What the checks of this transaction found, once they have ended.
    pub probed: Option<&'a Probed>,
    pub controller: Controller,
    /// Somebody at the machine asked for the system before this one.
    pub rollback_asked: bool,
    /// No step is taken before this time awake: the last one failed, or the next one has its time.
    pub not_before: Option<Duration>,
    /// Time awake.
    pub now: Duration,
}

/// What the health checks and the service manager said after the activation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probed {
    pub checks: Vec<CheckResult>,
    pub failed_after: Vec<String>,
}

/// What is known of the controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Controller {
    /// It answered the last request.
    pub answers: bool,
    /// It answered a check-in that was sent after the activation.
    pub reached_since_activation: bool,
}

/// The next thing to do. Those that change nothing end when something was observed anew.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// Until something changes.
    Idle,
    /// Until something changes, or this time awake.
    Wait(Duration),
    /// Until the activator's record changes.
    Watch,
    /// Open a transaction for the wanted target.
    Begin,
    /// Report that the wanted target is not tried: its derivation failed before.
    Refuse(Quarantined),
    /// Open a transaction back to this system.
    BeginRollback(StorePath),
    /// Forget a transaction that changed nothing: a newer generation takes its place.
    Supersede,
    Fetch,
    Build,
    Preflight,
    /// Record OLD and start the activator.
    StartActivator,
    /// Start it again for the same record.
    RestartActivator,
    /// Take over what the activator did.
    Enter(Input),
    Probe,
    /// Write the verdict for the activator.
    Give(GivenVerdict),
    /// Take a final state into the journal and tell it.
    Settle,
}

/// Decides what is next. `wanted` is the newest verified target, if there is one.
pub fn next(observed: &Observed<'_>, journal: &Journal, wanted: Option<&Target>) -> Step {
    let step = match observed.transaction {
        None => begin(observed, journal, wanted),
        Some(transaction) => go_on(observed, journal, transaction, wanted),
    };
    match observed.not_before {
        Some(time) if time > observed.now && waits(&step) => Step::Wait(time),
        _ => step,
    }
}

/// Whether a step that failed is worth a pause: it asks something of a machine that has just said no.
fn waits(step: &Step) -> bool {
    matches!(
        step,
        Step::Begin
            | Step::Refuse(_)
            | Step::Fetch
            | Step::Build
            | Step::Preflight
            | Step::StartActivator
            | Step::RestartActivator
            | Step::Probe
            | Step::Settle
            | Step::Enter(Input::Retried)
    )
}

fn begin(observed: &Observed<'_>, journal: &Journal, wanted: Option<&Target>) -> Step {
    // An activation whose transaction was lost comes to its end first; unconfirmed, that is OLD.
    if let Some(lost) = observed.activation.filter(|record| !record.phase.is_final())
        && (lost.phase != Phase::AwaitingReboot || lost.boot != observed.boot)
    {
        return watch(observed);
    }
    if observed.rollback_asked
        && let Some(previous) = &journal.previous
    {
        return Step::BeginRollback(previous.clone());
    }
    let Some(target) = wanted else { return Step::Idle };
    // I2 and I5: only a higher number is new; the same one again only after it fell to an absent controller.
    let new = journal.tried.is_none_or(|tried| target.generation > tried);
    let again = journal.may_retry(target.generation) && observed.controller.answers;
    if !new && !again {
        return Step::Idle;
    }
    match journal.quarantined(&target.derivation) {
        Some(entry) => Step::Refuse(entry.clone()),
        None => Step::Begin,
    }
}

fn go_on(
    observed: &Observed<'_>,
    journal: &Journal,
    transaction: &Transaction,
    wanted: Option<&Target>,
) -> Step {
    // A generation that came to its end takes nobody's place: a local rollback may be from the one before it.
    let newer = wanted.is_some_and(|target| {
        target.generation > transaction.generation()
            && journal.tried.is_none_or(|tried| target.generation > tried)
    });
    if newer && transaction.state.is_before_activation() {
        return Step::Supersede;
    }
    let activation = observed.activation.filter(|record| record.transaction == transaction.id);
    match &transaction.state {
        State::Verified => Step::Fetch,
        State::Fetched => Step::Build,
        State::Built => Step::Preflight,
        State::Checked => Step::StartActivator,
        State::Deferred { .. } | State::NeedsHuman { .. } => Step::Enter(Input::Retried),
        State::Activating => activating(observed, activation),
        State::Probing => probing(observed, transaction, activation),
        State::AwaitingReboot => awaiting_reboot(observed, activation, newer),
        State::RollingBack { .. } => rolling_back(observed, activation),
        State::Confirmed { .. }
        | State::Finished { .. }
        | State::RolledBack { .. }
        | State::UndoFailed { .. }
        | State::Failed { .. } => Step::Settle,
    }
}

fn watch(observed: &Observed<'_>) -> Step {
    if observed.activator_alive { Step::Watch } else { Step::RestartActivator }
}

fn undo(activation: &Activation) -> Step {
    let reason = activation.reason.unwrap_or(Reason::Interrupted);
    Step::Enter(Input::Undo { reason, detail: activation.detail.clone() })
}

fn activating(observed: &Observed<'_>, activation: Option<&Activation>) -> Step {
    let Some(activation) = activation else { return watch(observed) };
    match activation.phase {
        Phase::Recorded | Phase::ProfileSet | Phase::Activating => watch(observed),
        Phase::Activated | Phase::Confirmed => Step::Enter(Input::Activated),
        Phase::AwaitingReboot => Step::Enter(Input::ActivatedToBoot),
        Phase::Undoing | Phase::Undone | Phase::UndoFailed => undo(activation),
        Phase::Finished => Step::Enter(Input::Finished { exit: activation.exit.unwrap_or_default() }),
    }
}

fn probing(observed: &Observed<'_>, transaction: &Transaction, activation: Option<&Activation>) -> Step {
    let Some(activation) = activation else { return watch(observed) };
    match activation.phase {
        Phase::Confirmed => {
            return Step::Enter(Input::Confirmed { degraded: activation.degraded.clone() });
        }
        Phase::Undoing | Phase::Undone | Phase::UndoFailed => return undo(activation),
        Phase::Activated => {}
        _ => return watch(observed),
    }
    // Without an activator nobody keeps the deadline: that comes before all else.
    if !observed.activator_alive {
        return Step::RestartActivator;
    }
    let given = observed.given.filter(|given| given.transaction == transaction.id);
    if given.is_some_and(|given| !matches!(given.verdict, GivenVerdict::Waiting { .. })) {
        return Step::Watch;
    }
    let Some(probed) = observed.probed else { return Step::Probe };
    let verdict = match health::judge(&Evidence {
        new: transaction.output(),
        running: observed.running,
        checks: &probed.checks,
        failed_before: &transaction.failed_before,
        failed_after: &probed.failed_after,
        controller_reached: observed.controller.reached_since_activation,
    }) {
        Verdict::Confirm { degraded } => GivenVerdict::Confirm { degraded },
        Verdict::Undo { reason, detail } => GivenVerdict::Undo { reason, detail },
        Verdict::Wait { missing } => GivenVerdict::Waiting { missing },
    };
    if given.is_some_and(|given| given.verdict == verdict) { Step::Watch } else { Step::Give(verdict) }
}

fn awaiting_reboot(observed: &Observed<'_>, activation: Option<&Activation>, newer: bool) -> Step {
    let Some(activation) = activation else { return watch(observed) };
    match activation.phase {
        Phase::Activated | Phase::Confirmed => Step::Enter(Input::Rebooted),
        Phase::Undoing | Phase::Undone | Phase::UndoFailed => undo(activation),
        Phase::AwaitingReboot if activation.boot != observed.boot => watch(observed),
        Phase::AwaitingReboot if newer => {
            let told = observed.given.is_some_and(|given| {
                given.transaction == activation.transaction
                    && matches!(given.verdict, GivenVerdict::Undo { .. })
            });
            if told {
                return watch(observed);
            }
            let detail = "a newer generation took its place before the reboot".to_owned();
            Step::Give(GivenVerdict::Undo { reason: Reason::Interrupted, detail })
        }
        Phase::AwaitingReboot => Step::Idle,
        Phase::Recorded | Phase::ProfileSet | Phase::Activating | Phase::Finished => watch(observed),
    }
}

fn rolling_back(observed: &Observed<'_>, activation: Option<&Activation>) -> Step {
    match activation {
        Some(activation) if activation.phase == Phase::Undone => Step::Enter(Input::Undone),
        Some(activation) if activation.phase == Phase::UndoFailed => {
            Step::Enter(Input::UndoFailed { detail: activation.detail.clone() })
        }
        _ => watch(observed),
    }
}

#[cfg(test)]
mod tests;
