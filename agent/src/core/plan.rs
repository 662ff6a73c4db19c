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
        Some(transaction) => go_on(observed, transaction, wanted),
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

fn go_on(observed: &Observed<'_>, transaction: &Transaction, wanted: Option<&Target>) -> Step {
    let newer = wanted.is_some_and(|target| target.generation > transaction.generation());
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
mod tests {
    use muster_protocol::ids::Generation;
    use muster_protocol::machine::Class;

    use super::super::records::tests::{path, rolled_back, target, transaction};
    use super::super::records::{Known, Old, Unknown, Unreachable};
    use super::*;

    fn activation(number: u64, phase: Phase) -> Activation {
        Activation {
            version: 1,
            transaction: format!("t{number}"),
            class: Class::Nixos,
            action: muster_protocol::target::Action::Switch,
            new: path(&format!("system-{number}")),
            old: Old::default(),
            deadline_seconds: 60,
            boot: "boot".into(),
            phase,
            starts: 1,
            exit: Some(0),
            ms: 1,
            reason: Some(Reason::Deadline),
            detail: "late".into(),
            undo_exit: None,
            degraded: vec![],
            unknown: Unknown::new(),
        }
    }

    fn observed<'a>() -> Observed<'a> {
        Observed {
            transaction: None,
            activation: None,
            activator_alive: true,
            given: None,
            running: None,
            boot: "boot",
            probed: None,
            controller: Controller { answers: true, reached_since_activation: true },
            rollback_asked: false,
            not_before: None,
            now: Duration::from_secs(100),
        }
    }

    fn generation(number: u64) -> Generation {
        Generation::new(number).unwrap()
    }

    fn tried(number: u64) -> Journal {
        Journal { tried: Some(generation(number)), ..Journal::default() }
    }

    #[test]
    fn i2_i5_only_a_higher_generation_begins() {
        let fresh = Journal::default();
        assert_eq!(next(&observed(), &fresh, None), Step::Idle);
        assert_eq!(next(&observed(), &fresh, Some(&target(1, Class::Nixos))), Step::Begin);
        for wanted in 1..6u64 {
            let step = next(&observed(), &tried(3), Some(&target(wanted, Class::Nixos)));
            assert_eq!(step, if wanted > 3 { Step::Begin } else { Step::Idle }, "{wanted}");
        }
    }

    #[test]
    fn i5_a_quarantined_derivation_is_refused_under_every_number() {
        let mut journal = Journal::default();
        journal.settle(&transaction(2, rolled_back(Reason::HealthCheckFailed)), None, 1);
        let mut again = target(3, Class::Nixos);
        again.derivation = path("system-2.drv");
        assert!(matches!(next(&observed(), &journal, Some(&again)), Step::Refuse(entry)
            if entry.generation == generation(2)));
        assert_eq!(next(&observed(), &journal, Some(&target(3, Class::Nixos))), Step::Begin);
    }

    #[test]
    fn what_fell_to_an_absent_controller_is_tried_again_when_it_answers() {
        for (undone, answers, expected) in
            [(1, true, Step::Begin), (3, true, Step::Begin), (4, true, Step::Idle), (1, false, Step::Idle)]
        {
            let mut journal = tried(2);
            journal.unreachable = Some(Unreachable { generation: generation(2), undone });
            let mut observed = observed();
            observed.controller.answers = answers;
            assert_eq!(next(&observed, &journal, Some(&target(2, Class::Nixos))), expected, "{undone}");
        }
    }

    #[test]
    fn a_rollback_goes_to_what_ran_before_and_only_where_that_is_known() {
        let mut asked = observed();
        asked.rollback_asked = true;
        let mut journal = tried(2);
        assert_eq!(next(&asked, &journal, Some(&target(2, Class::Nixos))), Step::Idle);
        journal.previous = Some(path("old"));
        assert_eq!(next(&asked, &journal, None), Step::BeginRollback(path("old")));
    }

    #[test]
    fn a_newer_generation_takes_the_place_of_one_that_changed_nothing_yet() {
        let states = [
            (State::Verified, Step::Fetch),
            (State::Fetched, Step::Build),
            (State::Built, Step::Preflight),
            (State::Checked, Step::StartActivator),
            (State::NeedsHuman { detail: "x".into() }, Step::Enter(Input::Retried)),
            (State::Deferred { why: "x".into() }, Step::Enter(Input::Retried)),
        ];
        for (state, expected) in states {
            let transaction = transaction(2, state);
            let mut observed = observed();
            observed.transaction = Some(&transaction);
            assert_eq!(next(&observed, &tried(1), Some(&target(2, Class::Nixos))), expected);
            assert_eq!(next(&observed, &tried(1), Some(&target(3, Class::Nixos))), Step::Supersede);
            observed.not_before = Some(Duration::from_secs(101));
            let step = next(&observed, &tried(1), None);
            assert_eq!(step, Step::Wait(Duration::from_secs(101)), "{expected:?}");
            observed.not_before = Some(Duration::from_secs(100));
            assert_eq!(next(&observed, &tried(1), None), expected);
        }
    }

    /// Every state from the activation on × every phase of the activator × alive or dead: a step that moves on, and
    /// nothing is waited for that nobody does.
    #[test]
    fn i3_whatever_was_left_behind_there_is_a_step_that_leads_on() {
        let (reason, detail) = (Reason::Deadline, "late".to_owned());
        let states =
            [State::Activating, State::Probing, State::AwaitingReboot, State::RollingBack { reason, detail }];
        for state in states {
            let transaction = transaction(2, state.clone());
            for phase in Phase::ALL.into_iter().map(Some).chain([None]) {
                for alive in [true, false] {
                    let record = phase.map(|phase| activation(2, phase));
                    let mut observed = observed();
                    observed.transaction = Some(&transaction);
                    observed.activation = record.as_ref();
                    observed.activator_alive = alive;
                    let what = format!("{} {phase:?} alive: {alive}", state.name());
                    match next(&observed, &Journal::default(), None) {
                        Step::Enter(input) => {
                            assert!(state.clone().after(input).is_ok(), "{what}");
                        }
                        Step::Watch => assert!(alive, "{what}"),
                        Step::RestartActivator => assert!(!alive, "{what}"),
                        Step::Probe => assert!(alive && phase == Some(Phase::Activated), "{what}"),
                        Step::Idle => {
                            assert!(
                                state == State::AwaitingReboot && phase == Some(Phase::AwaitingReboot),
                                "{what}"
                            );
                        }
                        other => panic!("{what}: {other:?}"),
                    }
                }
            }
        }
    }

    #[test]
    fn the_record_of_another_transaction_says_nothing() {
        let transaction = transaction(2, State::Activating);
        let record = activation(1, Phase::Confirmed);
        let mut observed = observed();
        observed.transaction = Some(&transaction);
        observed.activation = Some(&record);
        assert_eq!(next(&observed, &Journal::default(), None), Step::Watch);
        observed.activator_alive = false;
        assert_eq!(next(&observed, &Journal::default(), None), Step::RestartActivator);
    }

    #[test]
    fn a_verdict_is_given_once_and_a_waiting_one_is_replaced() {
        let transaction = transaction(2, State::Probing);
        let record = activation(2, Phase::Activated);
        let new = path("system-2");
        let mut observed = observed();
        observed.transaction = Some(&transaction);
        observed.activation = Some(&record);
        observed.running = Some(&new);
        let step = |observed: &Observed<'_>| next(observed, &Journal::default(), None);
        assert_eq!(step(&observed), Step::Probe);
        let probed = Probed { checks: vec![], failed_after: vec![] };
        observed.probed = Some(&probed);
        observed.controller.reached_since_activation = false;
        let waiting = GivenVerdict::Waiting { missing: Reason::ControllerUnreachable };
        assert_eq!(step(&observed), Step::Give(waiting.clone()));
        let given = Confirmation { transaction: "t2".into(), verdict: waiting };
        observed.given = Some(&given);
        assert_eq!(step(&observed), Step::Watch);
        observed.controller.reached_since_activation = true;
        let confirm = GivenVerdict::Confirm { degraded: vec![] };
        assert_eq!(step(&observed), Step::Give(confirm.clone()));
        let given = Confirmation { transaction: "t2".into(), verdict: confirm.clone() };
        observed.given = Some(&given);
        assert_eq!(step(&observed), Step::Watch);
        let other = Confirmation { transaction: "t1".into(), verdict: confirm.clone() };
        observed.given = Some(&other);
        assert_eq!(step(&observed), Step::Give(confirm));
    }

    #[test]
    fn i4_without_an_activator_nothing_is_probed_before_there_is_one_again() {
        let transaction = transaction(2, State::Probing);
        let record = activation(2, Phase::Activated);
        let mut observed = observed();
        observed.transaction = Some(&transaction);
        observed.activation = Some(&record);
        observed.activator_alive = false;
        assert_eq!(next(&observed, &Journal::default(), None), Step::RestartActivator);
    }

    #[test]
    fn a_system_that_waits_for_a_reboot_is_taken_back_for_a_newer_one() {
        let transaction = transaction(2, State::AwaitingReboot);
        let record = activation(2, Phase::AwaitingReboot);
        let mut observed = observed();
        observed.activator_alive = false;
        observed.transaction = Some(&transaction);
        observed.activation = Some(&record);
        let newer = target(3, Class::Nixos);
        let Step::Give(verdict) = next(&observed, &Journal::default(), Some(&newer)) else {
            panic!("the activator is told to undo");
        };
        assert!(matches!(verdict, GivenVerdict::Undo { reason: Reason::Interrupted, .. }));
        let given = Confirmation { transaction: "t2".into(), verdict };
        observed.given = Some(&given);
        assert_eq!(next(&observed, &Journal::default(), Some(&newer)), Step::RestartActivator);
        // After the reboot the activator looks what came up.
        observed.boot = "another";
        assert_eq!(next(&observed, &Journal::default(), None), Step::RestartActivator);
    }

    #[test]
    fn an_activation_whose_transaction_was_lost_comes_to_its_end_before_another_begins() {
        for phase in Phase::ALL {
            let record = activation(1, phase);
            let mut observed = observed();
            observed.activation = Some(&record);
            let over = phase.is_final() || phase == Phase::AwaitingReboot;
            for (alive, waiting) in [(true, Step::Watch), (false, Step::RestartActivator)] {
                observed.activator_alive = alive;
                let step = next(&observed, &Journal::default(), Some(&target(2, Class::Nixos)));
                assert_eq!(step, if over { Step::Begin } else { waiting }, "{phase:?}");
            }
        }
    }

    #[test]
    fn a_confirmed_generation_is_not_begun_again() {
        let mut journal = Journal::default();
        journal.settle(&transaction(2, State::Confirmed { degraded: vec![] }), Some(&path("system-2")), 1);
        let known: Known = journal.confirmed.clone().unwrap();
        assert_eq!(known.generation, generation(2));
        assert_eq!(next(&observed(), &journal, Some(&target(2, Class::Nixos))), Step::Idle);
    }
}
