//! The steps around the switch: the activator is started and watched, the new system probed, the result taken
//! in.

use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::report::{EventKind, Reason};
use muster_protocol::target::Action;

use super::roots;
use super::shared::Shared;
use super::work::{Work, WorkError};
use crate::buildlog::BuildLog;
use crate::core::plan::{Probed, not_its_turn};
use crate::core::policy::Stage;
use crate::core::prune::doomed;
use crate::core::records::{Activation, ActivationPhase, GivenVerdict, Old, Settled, Transaction};
use crate::core::rollout::Followed;
use crate::core::state::{Input, State};
use crate::probes;

/// How long to wait for the controller's answer besides the checks.
const MOMENT: std::time::Duration = std::time::Duration::from_secs(1);
/// How old a list of failed units may be to count as what had failed before the switch.
const FRESH: std::time::Duration = std::time::Duration::from_secs(5);
/// The pause between two looks at whether the activator gave up while checks run.
const PATIENCE_LOOK: std::time::Duration = std::time::Duration::from_millis(200);

impl Work<'_> {
    /// OLD, and what had failed before, are durable before anything is changed.
    pub(super) async fn start_activator(&mut self) -> Result<(), WorkError> {
        let Some(new) = self.output() else { return Ok(()) };
        let failed_before = self.failed_before().await;
        let layout = self.shared.platform.layout();
        let old = Old { running: layout.running(), profile: layout.profile_target() };
        roots::hold(layout, &new, old.system()).map_err(|source| WorkError::Roots { source })?;
        // A machine's first system replaces none.
        let before = old.system().unwrap_or(&new).clone();
        let kept = layout.specialisations(&new);
        let event = EventKind::Activating { old: before, new };
        let has = |chosen: &String| kept.iter().any(|(name, _)| name == chosen);
        let lost = layout.specialisation().filter(|chosen| !has(chosen));
        let remark = lost.map(|name| {
            format!(
                "it ran the specialisation '{name}', which this generation does not have: its base runs now"
            )
        });
        // The machine was asked a few things meanwhile, and leave may be taken back at any time.
        if self.shared.is_held_back() {
            return Ok(());
        }
        let follows = self.shared.to_follow();
        self.advance(Input::Started, vec![event], |transaction| {
            transaction.follows = follows.map(Box::new);
            transaction.remark = remark.or(transaction.remark.take());
            transaction.old = Some(old);
            transaction.failed_before = failed_before;
        })?;
        self.shared.turns.use_leave(self.shared.clock.awake());
        self.restart_activator().await
    }

    /// As listed during the checks, if that was recent.
    async fn failed_before(&mut self) -> Vec<String> {
        let now = self.shared.clock.awake();
        if let Some((units, at)) = self.failed_before.take()
            && now.saturating_sub(at) < FRESH
        {
            return units;
        }
        self.ask(|platform| platform.failed_before()).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "cannot determine which units already fail");
            Vec::new()
        })
    }

    pub(super) async fn restart_activator(&mut self) -> Result<(), WorkError> {
        let generation = self.generation().unwrap_or(Generation::FIRST);
        self.shared.wakes.changed();
        self.ask(move |platform| platform.start_activator(generation)).await?;
        self.started = Some(self.shared.clock.awake());
        Ok(())
    }

    /// Takes over the content of the activator's record.
    pub(super) fn enter(&mut self, input: Input) -> Result<(), WorkError> {
        let record = self.shared.ledger.borrow().files.activation()?.whole();
        let activating =
            self.shared.ledger.borrow().transaction().is_some_and(|open| open.state == State::Activating);
        let mut events = match &record {
            Some(Activation { exit: Some(exit), ms, .. }) if activating => {
                vec![EventKind::Activated { exit: *exit, ms: *ms }]
            }
            _ => vec![],
        };
        if let Input::Untouched { deferral } = &input {
            tracing::info!("put off: {}", deferral.why);
            events.push(EventKind::Deferred { why: deferral.why.clone(), until: None });
            // The activator that gave up is gone, and the next one is a new one.
            self.started = None;
        }
        if matches!(input, Input::Activated | Input::Rebooted) {
            self.probed = None;
            self.shared.doing.probes_since(Some(self.shared.clock.awake()));
        }
        if let Some(record) = record.as_ref().filter(|_| activating) {
            self.note(record);
        }
        self.advance(input, events, |open| {
            if let Some(record) = record {
                open.took.activation_ms = record.exit.map(|_| record.ms).or(open.took.activation_ms);
                open.took.undo_ms = record.undo_ms.or(open.took.undo_ms);
            }
        })
    }

    /// The activation's output is appended to the build's.
    fn note(&self, record: &Activation) {
        let Some(generation) = self.generation().filter(|_| !record.detail.is_empty()) else { return };
        let mut log = BuildLog::new(&self.shared.config.state_dir, generation);
        record.detail.lines().for_each(|line| log.line(&format!("activation> {line}")));
    }

    /// Runs everything at once; stops if the activator gives up meanwhile.
    pub(super) async fn probe(&mut self) -> Result<(), WorkError> {
        let now = self.shared.clock.awake();
        if self.shared.doing.probing_since().is_none() {
            // This agent was started after the activation.
            self.shared.doing.probes_since(Some(now));
            self.shared.wakes.changed_now();
        }
        self.probing = Some(now);
        let checks = self.checks();
        let asked = async {
            tokio::join!(
                probes::run(&checks, &self.shared.platform),
                self.ask(|platform| platform.failed_units()),
                self.reached()
            )
        };
        let (checks, failed_after, ()) = tokio::select! {
            asked = asked => asked,
            result = self.no_longer_activated() => return result,
        };
        self.probed = Some(Probed { checks, failed_after: failed_after? });
        Ok(())
    }

    /// Briefly waits until the controller has answered the new system: a verdict that waits only for that is
    /// written only if the controller really is away.
    async fn reached(&self) {
        let wait = async {
            while !self.shared.controller().reached_since_activation {
                self.shared.wakes.work().await;
            }
        };
        let _ = tokio::time::timeout(MOMENT, wait).await;
    }

    async fn no_longer_activated(&self) -> Result<(), WorkError> {
        loop {
            tokio::time::sleep(PATIENCE_LOOK).await;
            let record = self.shared.ledger.borrow().files.activation()?.whole();
            if record.is_none_or(|record| record.phase != ActivationPhase::Activated) {
                return Ok(());
            }
        }
    }

    pub(super) fn give(&self, verdict: GivenVerdict) -> Result<(), WorkError> {
        tracing::info!(?verdict, "the verdict on the new system");
        Ok(self.shared.ledger.borrow_mut().give(verdict)?)
    }

    /// Takes in a finished transaction. Reporting and cleaning up afterwards may fail: the result stands.
    pub(super) async fn settle(&mut self) -> Result<(), WorkError> {
        let transaction = self.shared.ledger.borrow().transaction().cloned();
        let Some(transaction) = transaction else { return Ok(()) };
        let old = transaction.old.as_ref().and_then(Old::system).cloned();
        let confirmed = matches!(transaction.state, State::Confirmed { .. });
        let (rules, tried) = (self.rules(), transaction.old.is_some());
        if tried {
            let _ = self.hooks(rules.after, "after", false).await.map_err(|hook| self.hook_failed(hook));
        }
        let layout = self.shared.platform.layout();
        let rooted = match &transaction.state {
            // A restored system keeps its predecessor.
            State::Confirmed { .. } if transaction.enforcing => {
                roots::confirm(layout, transaction.output(), None)
            }
            State::Confirmed { .. } => roots::confirm(layout, transaction.output(), old.as_ref()),
            _ => Ok(()),
        };
        rooted.map_err(|source| WorkError::Roots { source })?;
        if let State::Confirmed { degraded } = &transaction.state {
            self.shared.doing.set_degraded(degraded.clone());
            self.units_seen = Some(self.shared.clock.awake());
        }
        let running = layout.running();
        let settled = Settled {
            running: running.as_ref(),
            boot: Some(&self.shared.boot),
            at: self.shared.clock.unix_ms(),
            console: self.shared.platform.console(),
        };
        let probe_ms = self.probing.map(|began| self.since(began));
        if matches!(transaction.state, State::RolledBack { reason: Reason::ControllerUnreachable, .. }) {
            // Its last answer is from before the outage: wait for a new one, which may bring a newer
            // generation.
            self.shared.heard.forget_answers();
        }
        self.shared.ledger.borrow_mut().settle(settled)?;
        self.shared.wakes.changed();
        self.shared.wakes.wake_soak();
        tracing::info!("generation {} is over: {}", transaction.generation(), transaction.state.name());
        self.summarise(&transaction, old.as_ref(), probe_ms).await;
        roots::release(layout).map_err(|source| WorkError::Roots { source })?;
        if let Some(keep) = rules.keep_generations.filter(|_| confirmed) {
            self.prune(keep, &transaction, old.as_ref());
        }
        (self.probed, self.started, self.began, self.probing) = (None, None, None, None);
        self.asked_for.clear();
        self.shared.doing.probes_since(None);
        Ok(())
    }

    fn hook_failed(&self, (hook, detail): (String, String)) {
        let event = EventKind::HookFailed { hook, detail };
        self.tell(event);
    }

    fn tell(&self, event: EventKind) {
        let (generation, now) = (self.generation(), self.shared.clock.unix_ms());
        if let Err(error) = self.shared.ledger.borrow_mut().tell(generation, event, now) {
            tracing::warn!(%error, "an event cannot be reported");
        }
    }

    /// The total duration, and what changed. OLD and NEW are still protected from the garbage collector.
    async fn summarise(&self, transaction: &Transaction, old: Option<&StorePath>, probe_ms: Option<u64>) {
        if transaction.is_rollback() {
            return;
        }
        let mut summary = transaction.took.clone();
        summary.probe_ms = probe_ms;
        if let Some(old) = old.filter(|old| *old != transaction.output()) {
            match self.nix.closure_change(old, transaction.output()).await {
                Ok(change) => summary.closure = Some(change),
                Err(error) => tracing::warn!("cannot determine what changed: {error}"),
            }
        }
        let (generation, now) = (transaction.generation(), self.shared.clock.unix_ms());
        let event = EventKind::Summary(Box::new(summary));
        if let Err(error) = self.shared.ledger.borrow_mut().tell(Some(generation), event, now) {
            tracing::warn!(%error, "the summary cannot be reported");
        }
    }

    /// Old generations go only now that the new one is confirmed; OLD stays whatever its number.
    fn prune(&self, keep: u32, transaction: &Transaction, old: Option<&StorePath>) {
        let running = self.shared.platform.layout().running();
        let previous = self.shared.ledger.borrow().journal().previous.clone();
        let spared = [Some(transaction.output()), old, running.as_ref(), previous.as_ref()];
        let spared: Vec<&StorePath> = spared.into_iter().flatten().collect();
        let doomed = doomed(&self.nix.profile_generations(), keep, &spared);
        if doomed.is_empty() {
            return;
        }
        tracing::info!(?doomed, "removing old generations of the system profile");
        if let Err(error) = self.nix.forget_generations(&doomed) {
            tracing::warn!("{error}");
        }
    }
}

impl Shared {
    /// Whether the open transaction's target may no longer be switched to, after all.
    fn is_held_back(&self) -> bool {
        let ledger = self.ledger.borrow();
        let turn = self.turn(&ledger);
        ledger.transaction().is_some_and(|open| not_its_turn(open, Stage::Switch, turn.as_ref()).is_some())
    }

    /// What the machine will have to say in its rollout. A trial says nothing.
    fn to_follow(&self) -> Option<Followed> {
        let ledger = self.ledger.borrow();
        let open = ledger.transaction()?;
        let target = open.target().filter(|_| !open.enforcing)?;
        let plan = self.turns.plan(&target.rollout?.plan)?;
        let counts = matches!(open.action(), Action::Switch | Action::Boot);
        Followed::of(&plan, &self.identity.machine, target).filter(|_| counts)
    }
}
