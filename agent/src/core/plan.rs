//! What the runner does next: a function of what was observed, what is wanted and the time.

use std::time::Duration;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Epoch, StorePath};
use muster_protocol::policy::{DriftPolicy, RebootPolicy};
use muster_protocol::report::Reason;
use muster_protocol::target::Target;

use super::health::{self, CheckResult, Evidence, Verdict};
use super::policy::{Circumstances, Deferral, Hold, LOOK_AGAIN, Rules, Stage, gate};
use super::reboot::{self, Decision, Due};
use super::records::{
    Activation, ActivationPhase as Phase, Chance, Confirmation, GivenVerdict, Journal, Quarantined,
    Transaction,
};
use super::rollout::{self, Turn};
use super::state::{Input, State};

/// Everything that the decision rests on.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    pub transaction: Option<&'a Transaction>,
    /// The epoch of the trusted root.
    pub epoch: Epoch,
    /// The activator's record, of any transaction.
    pub activation: Option<&'a Activation>,
    /// Whether an activator holds its lock, or was started so recently that it may not have it yet.
    pub activator_alive: bool,
    /// The verdict on disk, of any transaction.
    pub given: Option<&'a Confirmation>,
    pub running: Option<&'a StorePath>,
    pub boot: &'a str,
    /// What the checks of this transaction found, once they have ended.
    pub probed: Option<&'a Probed>,
    pub controller: Controller,
    /// Somebody at the machine asked for the system before this one.
    pub rollback_asked: bool,
    /// Somebody at the machine asked for another try.
    pub asked: bool,
    /// The user at a Mac's screen, if any.
    pub console: Option<u32>,
    /// The policies of the open transaction, or else of the confirmed generation.
    pub rules: &'a Rules,
    /// The machine's circumstances, if they were looked at since the last step.
    pub circumstances: Option<&'a Circumstances>,
    /// What is known about the turn of the open transaction's target, if it has a place in a rollout.
    pub turn: Option<&'a Turn>,
    /// What a reboot would bring, if anything.
    pub due: Option<&'a Due>,
    /// Who is logged in and what inhibits a reboot, if that was looked at recently.
    pub blockers: Option<&'a [String]>,
    /// The wall clock.
    pub at: UnixMillis,
    /// No step is taken before this awake time: the last one failed, or the next one is scheduled.
    pub not_before: Option<Duration>,
    /// Time awake.
    pub now: Duration,
}

/// What the health checks and the service manager reported after the activation.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Probed {
    pub checks: Vec<CheckResult>,
    pub failed_after: Vec<String>,
}

/// What is known about the controller.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Controller {
    /// It answered the last request, and hinted at no generation that is unknown here.
    pub answers: bool,
    /// It answered a check-in that was sent after the activation.
    pub reached_since_activation: bool,
}

/// The next thing to do. Steps that change nothing end when something new is observed.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Step {
    /// Wait until something changes.
    Idle,
    /// Wait until something changes, or until this awake time.
    Wait(Duration),
    /// Wait until the activator's record changes.
    Watch,
    /// Open a transaction for the wanted target.
    Begin,
    /// Report that the wanted target is not tried because its derivation is quarantined.
    Refuse(Quarantined),
    /// Open a transaction back to this system.
    BeginRollback(StorePath),
    /// Open a transaction for the confirmed target: somebody else changed the system.
    Enforce(Box<Target>),
    /// Observe the machine's circumstances, for a step of this stage.
    Look(Stage),
    /// Put off the next step.
    Defer(Deferral),
    /// Find out who is logged in and what inhibits a reboot.
    LookForBlockers,
    Reboot(Due),
    /// Forget a transaction that changed nothing: a newer generation replaces it.
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
    /// Take a final state into the journal and report it.
    Settle,
}

/// Decides what is next. `wanted` is the newest verified target, if any.
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

/// Whether a failed step is worth a pause: it asks something of a machine that has just refused.
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
            | Step::Enforce(_)
            | Step::LookForBlockers
            | Step::Reboot(_)
            | Step::Enter(Input::Retried)
    )
}

fn begin(observed: &Observed<'_>, journal: &Journal, wanted: Option<&Target>) -> Step {
    // An activation whose transaction was lost ends first; unconfirmed, it ends on OLD.
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
    // A target of an earlier epoch is not begun, whoever wants it.
    let wanted = wanted.filter(|target| target.generation.epoch() >= observed.epoch);
    let Some(target) = wanted else { return rest(observed, journal) };
    // I2 and I5: only a higher number is new; the same one again only if it was undone for a reason that may
    // pass.
    let new = journal.tried.is_none_or(|tried| target.generation > tried);
    let chance = Chance {
        answers: observed.controller.answers,
        asked: observed.asked,
        console: observed.console,
        at: observed.at,
    };
    if !new && !journal.may_retry(target.generation, chance) {
        return rest(observed, journal);
    }
    match journal.quarantined(&target.derivation) {
        Some(entry) => Step::Refuse(entry.clone()),
        None => Step::Begin,
    }
}

/// Nothing new is wanted: the machine is restored to what was confirmed, or rebooted, if its policies say so.
fn rest(observed: &Observed<'_>, journal: &Journal) -> Step {
    let drifted = journal.drift.as_ref().is_some_and(|drift| observed.running == Some(drift));
    let confirmed = journal.confirmed.as_ref().and_then(|known| known.target.as_ref());
    // What an earlier epoch confirmed keeps running, and is not enforced.
    let confirmed = confirmed.filter(|target| target.generation.epoch() >= observed.epoch);
    if let Some(target) = confirmed
        && drifted
        && observed.rules.drift == DriftPolicy::Enforce
        && journal.left != journal.drift
        && journal.quarantined(&target.derivation).is_none()
    {
        return Step::Enforce(target.clone());
    }
    match observed.due {
        Some(due) => reboot(observed, journal, due),
        None => Step::Idle,
    }
}

fn reboot(observed: &Observed<'_>, journal: &Journal, due: &Due) -> Step {
    if observed.rules.reboot == RebootPolicy::Never {
        return Step::Idle;
    }
    let Some(seen) = observed.circumstances else { return Step::Look(Stage::Switch) };
    match reboot::decide(due, &view(observed, journal, seen)) {
        Decision::Look => Step::LookForBlockers,
        Decision::Reboot => Step::Reboot(due.clone()),
        Decision::Wait { until, .. } => Step::Wait(again(observed, until)),
    }
}

fn view<'a>(observed: &Observed<'a>, journal: &'a Journal, seen: &'a Circumstances) -> reboot::View<'a> {
    reboot::View {
        rules: observed.rules,
        seen,
        pause: journal.pause.as_ref(),
        blockers: observed.blockers,
        asked: journal.rebooted.as_ref(),
        boot: observed.boot,
        now: observed.at,
    }
}

/// A reboot that is due, and why it has not happened yet.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RebootNote {
    pub what: Vec<String>,
    pub waits: String,
    pub until: Option<UnixMillis>,
}

/// What to report about reboots: `None` while that is unknown and the last report still holds.
pub fn reboot_note(observed: &Observed<'_>, journal: &Journal) -> Option<Option<RebootNote>> {
    let awaited = observed.transaction.filter(|open| open.state == State::AwaitingReboot).map(awaited);
    let Some(due) = awaited.as_ref().or(observed.due) else { return Some(None) };
    let nothing = Circumstances::default();
    let seen = match observed.circumstances {
        Some(seen) => seen,
        None if observed.rules.reboot == RebootPolicy::Never => &nothing,
        None => return None,
    };
    match reboot::decide(due, &view(observed, journal, seen)) {
        Decision::Look => None,
        Decision::Reboot => Some(Some(RebootNote {
            what: due.what.clone(),
            waits: "the machine is about to reboot".to_owned(),
            until: None,
        })),
        Decision::Wait { why, until } => Some(Some(RebootNote { what: due.what.clone(), waits: why, until })),
    }
}

/// What a transaction that waits for a reboot needs one for.
fn awaited(transaction: &Transaction) -> Due {
    Due { what: vec!["system".to_owned()], mark: transaction.output().as_str().to_owned() }
}

/// When to look again at something awaited, in awake time: soon, and once more when it should be over.
fn again(observed: &Observed<'_>, until: Option<UnixMillis>) -> Duration {
    let left = until.and_then(|until| u64::try_from(until.saturating_sub(observed.at)).ok());
    observed.now + left.map_or(LOOK_AGAIN, |left| Duration::from_millis(left).min(LOOK_AGAIN))
}

fn go_on(
    observed: &Observed<'_>,
    journal: &Journal,
    transaction: &Transaction,
    wanted: Option<&Target>,
) -> Step {
    // A generation that has ended supersedes nothing: a local rollback may start from an earlier one.
    let newer = wanted.is_some_and(|target| {
        target.generation > transaction.generation()
            && journal.tried.is_none_or(|tried| target.generation > tried)
    });
    // Root holders disowned it. A rollback at the machine itself needs nobody's permission.
    let disowned = transaction.generation().epoch() < observed.epoch && !transaction.is_rollback();
    let newer = newer || disowned;
    let activation = observed.activation.filter(|record| record.transaction == transaction.id);
    let before = transaction.state.is_before_activation();
    if newer && before {
        return Step::Supersede;
    }
    // Somebody asks for the previous system: what waits gives way.
    if observed.rollback_asked && before && !transaction.is_rollback() && journal.previous.is_some() {
        return Step::Supersede;
    }
    let held = |stage| held(observed, journal, transaction, stage);
    match &transaction.state {
        State::Verified => held(Stage::Fetch).unwrap_or(Step::Fetch),
        State::Fetched => held(Stage::Build).unwrap_or(Step::Build),
        State::Built => held(Stage::Switch).unwrap_or(Step::Preflight),
        State::Checked => held(Stage::Switch).unwrap_or(Step::StartActivator),
        State::Deferred { deferral, stage } => match held(*stage) {
            Some(Step::Defer(now)) if same(&now, deferral) => Step::Wait(again(observed, now.until)),
            Some(step) => step,
            None => Step::Enter(Input::Retried),
        },
        State::NeedsHuman { .. } => Step::Enter(Input::Retried),
        // A later version left it before anything was activated.
        State::Unknown if activation.is_none() && !observed.activator_alive => Step::Supersede,
        State::Activating | State::Unknown => activating(observed, activation),
        State::Probing => probing(observed, transaction, activation),
        State::AwaitingReboot => awaiting_reboot(observed, journal, transaction, activation, newer),
        State::RollingBack { .. } => rolling_back(observed, activation),
        State::Confirmed { .. }
        | State::Finished { .. }
        | State::RolledBack { .. }
        | State::UndoFailed { .. }
        | State::Failed { .. } => Step::Settle,
    }
}

/// What has to come before a step of this stage, if anything.
fn held(observed: &Observed<'_>, journal: &Journal, transaction: &Transaction, stage: Stage) -> Option<Step> {
    // Neither an attack nor a failure: the next version of the agent installs it.
    let unknown = transaction.target().map(Target::not_understood).unwrap_or_default();
    if !unknown.is_empty() {
        let why = format!(
            "it needs a newer muster-agent than {}: this one does not know {}",
            env!("CARGO_PKG_VERSION"),
            unknown.join(", ")
        );
        return Some(Step::Defer(Deferral::new(Hold::Newer, why)));
    }
    let Some(seen) = observed.circumstances else { return Some(Step::Look(stage)) };
    // A rollback at the machine itself ignores pauses.
    let pause = journal.pause.as_ref().filter(|_| !transaction.is_rollback());
    let deferral = gate(stage, observed.rules, seen, pause, observed.at);
    deferral.or_else(|| not_its_turn(transaction, stage, observed.turn)).map(Step::Defer)
}

/// Why a gated target may not be switched to yet. A rollback at the machine itself and a confirmed generation
/// that is restored ask nobody, and urgency opens no gate.
pub fn not_its_turn(transaction: &Transaction, stage: Stage, turn: Option<&Turn>) -> Option<Deferral> {
    let place = transaction.target().and_then(|target| target.rollout)?;
    let asks = stage == Stage::Switch && !transaction.enforcing;
    asks.then(|| rollout::held(place, turn)).flatten()
}

/// Whether the machine waits for its turn alone, as check-ins say it; `None` where this step does not decide
/// that. Between leave and the start of the activator it still does: what is said too early takes leave back.
pub fn awaits_turn(step: &Step, transaction: Option<&Transaction>) -> Option<bool> {
    let Some(open) = transaction.filter(|open| open.state.is_before_activation()) else { return Some(false) };
    match (step, &open.state) {
        (Step::Defer(deferral), _) => Some(rollout::is_turn(deferral.hold)),
        (Step::Wait(_), State::Deferred { deferral, stage: Stage::Switch }) => {
            Some(rollout::is_turn(deferral.hold))
        }
        (Step::Look(_) | Step::Enter(Input::Retried) | Step::Preflight | Step::StartActivator, _) => None,
        (Step::Wait(_), State::Built | State::Checked) => None,
        _ => Some(false),
    }
}

/// Whether a deferral says nothing new. Numbers in its text change from look to look; what the machine waits
/// for in a rollout does not by itself.
fn same(now: &Deferral, before: &Deferral) -> bool {
    let turn = rollout::is_turn(now.hold) || now.hold == Hold::Plan;
    now.hold == before.hold && now.until == before.until && (!turn || now.why == before.why)
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
        Phase::Recorded | Phase::ProfileSet | Phase::Activating | Phase::Unknown => watch(observed),
        Phase::Untouched => {
            let deferral = Deferral::new(Hold::Busy, activation.detail.clone());
            Step::Enter(Input::Untouched { deferral })
        }
        Phase::Activated | Phase::Confirmed => Step::Enter(Input::Activated),
        Phase::AwaitingReboot => Step::Enter(Input::ActivatedToBoot),
        Phase::Undoing | Phase::Undone | Phase::UndoFailed => undo(activation),
        Phase::Finished => {
            let (exit, detail) = (activation.exit.unwrap_or_default(), activation.detail.clone());
            Step::Enter(Input::Finished { exit, detail })
        }
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
    // Without an activator nothing enforces the deadline: that comes before everything else.
    if !observed.activator_alive {
        return Step::RestartActivator;
    }
    let given = observed.given.filter(|given| given.transaction == transaction.id);
    if given.is_some_and(|given| !matches!(given.verdict, GivenVerdict::Waiting { .. })) {
        return Step::Watch;
    }
    let Some(probed) = observed.probed else { return Step::Probe };
    // A unit that systemd keeps restarting may happen to run when it is looked at.
    let mut failed_after = probed.failed_after.clone();
    failed_after.extend(activation.failed.iter().filter(|unit| !probed.failed_after.contains(unit)).cloned());
    let verdict = match health::judge(&Evidence {
        new: transaction.output(),
        running: observed.running,
        checks: &probed.checks,
        failed_before: &transaction.failed_before,
        failed_after: &failed_after,
        // A rollback at the machine itself may be needed because the controller is away.
        controller_reached: observed.controller.reached_since_activation || transaction.is_rollback(),
    }) {
        Verdict::Confirm { degraded } => GivenVerdict::Confirm { degraded },
        Verdict::Undo { reason, detail } => GivenVerdict::Undo { reason, detail },
        Verdict::Wait { missing } => GivenVerdict::Waiting { missing },
    };
    if given.is_some_and(|given| given.verdict == verdict) { Step::Watch } else { Step::Give(verdict) }
}

fn awaiting_reboot(
    observed: &Observed<'_>,
    journal: &Journal,
    transaction: &Transaction,
    activation: Option<&Activation>,
    newer: bool,
) -> Step {
    let Some(activation) = activation else { return watch(observed) };
    match activation.phase {
        Phase::Activated | Phase::Confirmed => Step::Enter(Input::Rebooted),
        Phase::Undoing | Phase::Undone | Phase::UndoFailed => undo(activation),
        Phase::AwaitingReboot if activation.boot != observed.boot => watch(observed),
        Phase::AwaitingReboot if newer => {
            let undo_given = observed.given.is_some_and(|given| {
                given.transaction == activation.transaction
                    && matches!(given.verdict, GivenVerdict::Undo { .. })
            });
            if undo_given {
                return watch(observed);
            }
            let detail = "a newer generation or a new epoch took its place before the reboot".to_owned();
            Step::Give(GivenVerdict::Undo { reason: Reason::Interrupted, detail })
        }
        Phase::AwaitingReboot => reboot(observed, journal, &awaited(transaction)),
        Phase::Recorded
        | Phase::ProfileSet
        | Phase::Activating
        | Phase::Finished
        | Phase::Untouched
        | Phase::Unknown => watch(observed),
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
