//! Brings the machine to what was verified: asks the plan what is next, does it, and looks again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, StorePath, to_hex};
use muster_protocol::random::{self, RandomError};
use muster_protocol::report::{EventKind, Step as Ended};
use muster_protocol::target::Target;

use super::ledger::{LedgerError, Seen};
use super::{Shared, number, roots};
use crate::activator;
use crate::client::Client;
use crate::core::backoff::{Backoff, look};
use crate::core::plan::{self, Observed, Probed, Step};
use crate::core::records::{
    Activation, ActivationPhase, Confirmation, GivenVerdict, Old, Quarantined, Transaction,
};
use crate::core::state::{Input, State};
use crate::journal::JournalError;
use crate::nix::{Nix, NixError};
use crate::platform::{Platform, PlatformError, Preflight};
use crate::probes;

/// The longest pause between two looks at the activator's record, while there is an activator.
const LONGEST_LOOK: Duration = Duration::from_millis(200);
/// How long an activator that was started may take until it holds its lock.
const START_LIMIT: Duration = Duration::from_secs(5);
/// How often a person's work is looked for without being told that it is done.
const HUMAN_INTERVAL: Duration = Duration::from_secs(3600);
/// How often a step before the activation is tried while the controller answers. An absent controller and a full disk
/// are waited out.
const TRIES: u32 = 8;

#[derive(Debug, thiserror::Error)]
enum WorkError {
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error(transparent)]
    Platform(#[from] PlatformError),
    #[error(transparent)]
    Nix(#[from] NixError),
    #[error(transparent)]
    Random(#[from] RandomError),
    #[error("the garbage collector's roots cannot be written: {0}; free some space")]
    Roots(std::io::Error),
    #[error("a thread broke off; this is a mistake in muster-agent, please report it")]
    Thread,
}

struct Work<'a> {
    shared: &'a Shared,
    client: &'a Client,
    nix: Nix,
    backoff: Backoff,
    not_before: Option<Duration>,
    probed: Option<Probed>,
    /// When an activator was started last, in time awake.
    started: Option<Duration>,
    /// When the transaction was opened by this process, in time awake.
    began: Option<Duration>,
    /// Since when the activator's record is looked at, in time awake.
    watched: Option<Duration>,
    /// What a person was asked for, told once.
    asked_for: BTreeSet<String>,
}

pub async fn run(shared: &Shared, client: &Client) {
    let mut work = Work {
        shared,
        client,
        nix: Nix::new(&shared.config, shared.platform.layout()),
        backoff: Backoff::default(),
        not_before: None,
        probed: None,
        started: None,
        began: None,
        watched: None,
        asked_for: BTreeSet::new(),
    };
    loop {
        if let Err(error) = work.turn().await {
            let wait = work.backoff.failed(number(), None);
            tracing::warn!(wait_ms = wait.as_millis(), "{error}");
            work.not_before = Some(shared.clock.awake() + wait);
            shared.set_problem(Some(error.to_string()));
            // A step that the plan does not hold back must not spin either.
            work.wait(Some(wait)).await;
        }
    }
}

impl Work<'_> {
    async fn turn(&mut self) -> Result<(), WorkError> {
        if self.shared.try_now.replace(false) {
            self.not_before = None;
        }
        let step = self.plan()?;
        if !matches!(step, Step::Idle | Step::Wait(_) | Step::Watch) {
            tracing::debug!(?step, "next");
        }
        match step {
            Step::Idle => {
                self.idle()?;
                self.wait(None).await;
                Ok(())
            }
            Step::Wait(until) => {
                let left = until.saturating_sub(self.shared.clock.awake());
                self.wait(Some(left)).await;
                Ok(())
            }
            Step::Watch => {
                let now = self.shared.clock.awake();
                let since = *self.watched.get_or_insert(now);
                self.wait(Some(look(now.saturating_sub(since), LONGEST_LOOK))).await;
                Ok(())
            }
            step => {
                self.not_before = None;
                self.watched = None;
                self.take(step).await?;
                self.backoff.succeeded();
                self.shared.set_problem(None);
                self.shared.changed();
                Ok(())
            }
        }
    }

    /// Until the contact or a person wakes the work, or the time is over.
    async fn wait(&self, limit: Option<Duration>) {
        let woken = self.shared.work.notified();
        match limit {
            Some(limit) => drop(tokio::time::timeout(limit, woken).await),
            None => woken.await,
        }
    }

    fn plan(&self) -> Result<Step, WorkError> {
        let shared = self.shared;
        let ledger = shared.ledger.borrow();
        let layout = shared.platform.layout();
        let (running, now) = (layout.running(), shared.clock.awake());
        let activation = ledger.files.activation()?.whole();
        let given = ledger.files.confirmation()?.whole();
        let starting = self.started.is_some_and(|at| now.saturating_sub(at) < START_LIMIT);
        let alive = activator::is_alive(&shared.config.state_dir);
        let wanted = shared.wanted.borrow();
        let observed = Observed {
            transaction: ledger.transaction(),
            activation: activation.as_ref(),
            activator_alive: alive || starting,
            given: given.as_ref(),
            running: running.as_ref(),
            boot: &shared.boot,
            probed: self.probed.as_ref(),
            controller: shared.controller(),
            rollback_asked: shared.rollback_asked.get(),
            not_before: self.not_before,
            now,
        };
        Ok(plan::next(&observed, ledger.journal(), wanted.as_ref()))
    }

    /// Looks whether somebody else changed the machine.
    fn idle(&self) -> Result<(), WorkError> {
        let running = self.shared.platform.layout().running();
        let now = self.shared.clock.unix_ms();
        if let Some(running) = running
            && self.shared.ledger.borrow_mut().drift(&running, now)?
        {
            tracing::warn!(%running, "somebody else changed the running system, or changed it back");
            self.shared.changed();
        }
        Ok(())
    }

    async fn take(&mut self, step: Step) -> Result<(), WorkError> {
        match step {
            Step::Idle | Step::Wait(_) | Step::Watch => Ok(()),
            Step::Begin => self.begin(),
            Step::Refuse(entry) => self.refuse(&entry),
            Step::BeginRollback(previous) => self.begin_rollback(previous),
            Step::Supersede => {
                tracing::info!("a newer generation takes the place of one that changed nothing yet");
                Ok(self.shared.ledger.borrow_mut().supersede()?)
            }
            Step::Fetch => self.fetch().await,
            Step::Build => self.build().await,
            Step::Preflight => self.preflight().await,
            Step::StartActivator => self.start_activator().await,
            Step::RestartActivator => self.restart_activator().await,
            Step::Enter(input) => self.enter(input),
            Step::Probe => self.probe().await,
            Step::Give(verdict) => self.give(verdict),
            Step::Settle => self.settle(),
        }
    }

    fn wanted(&self) -> Option<Target> {
        self.shared.wanted.borrow().clone()
    }

    fn begin(&mut self) -> Result<(), WorkError> {
        let Some(target) = self.wanted() else { return Ok(()) };
        let identity = &self.shared.identity;
        // The verifying core asks this too; whoever activates looks once more (I1, I6).
        let fits = target.require_for(&identity.machine, identity.class, &identity.system, target.generation);
        tracing::info!(generation = %target.generation, output = %target.output, "a new generation is verified");
        self.open(
            Transaction::signed(id()?, target, self.shared.clock.unix_ms()),
            vec![EventKind::Verified],
        )?;
        match fits {
            Ok(()) => Ok(()),
            Err(error) => self.fail(Ended::Verify, error.to_string(), true, vec![]),
        }
    }

    fn refuse(&mut self, entry: &Quarantined) -> Result<(), WorkError> {
        let Some(target) = self.wanted() else { return Ok(()) };
        let detail = format!(
            "its derivation failed as generation {} ({}) and is not tried again: change the system and publish that",
            entry.generation, entry.detail
        );
        self.open(Transaction::signed(id()?, target, self.shared.clock.unix_ms()), vec![])?;
        self.fail(Ended::Verify, detail, true, vec![])
    }

    fn begin_rollback(&mut self, previous: StorePath) -> Result<(), WorkError> {
        self.shared.rollback_asked.set(false);
        let known = self.shared.ledger.borrow().journal().confirmed.clone();
        let Some(known) = known else { return Ok(()) };
        let (class, now) = (self.shared.identity.class, self.shared.clock.unix_ms());
        tracing::info!(%previous, "going back, as somebody at this machine asked");
        self.open(Transaction::rollback(id()?, &known, previous, class, now), vec![])
    }

    fn open(&mut self, transaction: Transaction, events: Vec<EventKind>) -> Result<(), WorkError> {
        self.began = Some(self.shared.clock.awake());
        self.started = None;
        self.probed = None;
        self.shared.probing_since.set(None);
        self.shared.altered.set(None);
        let now = self.shared.clock.unix_ms();
        Ok(self.shared.ledger.borrow_mut().begin(transaction, events, now)?)
    }

    /// The target of the open transaction. A rollback has none, and no step that needs one.
    fn target(&self) -> Option<Target> {
        self.shared.ledger.borrow().transaction().and_then(Transaction::target).cloned()
    }

    async fn fetch(&mut self) -> Result<(), WorkError> {
        let Some(target) = self.target() else { return Ok(()) };
        let started = self.shared.clock.awake();
        let fetched = self.nix.fetch(&target.derivation, &self.client.cache()).await;
        self.finished(Ended::Fetch, fetched, |()| {
            (Input::Fetched, EventKind::Fetched { ms: self.since(started) })
        })
    }

    async fn build(&mut self) -> Result<(), WorkError> {
        let Some(target) = self.target() else { return Ok(()) };
        let started = self.shared.clock.awake();
        let link = roots::new_link(self.shared.platform.layout());
        let built = self.nix.realise(&target, &self.client.cache(), &link).await;
        let step = match &built {
            Err(NixError::WrongOutput { .. }) => Ended::Compare,
            _ => Ended::Build,
        };
        self.finished(step, built, |output| {
            (Input::Built, EventKind::Built { output, ms: self.since(started) })
        })
    }

    /// Goes on after a step of Nix, gives up, or tries it again later.
    fn finished<T>(
        &self,
        step: Ended,
        result: Result<T, NixError>,
        well: impl FnOnce(T) -> (Input, EventKind),
    ) -> Result<(), WorkError> {
        let error = match result {
            Ok(value) => {
                if self.shared.altered.replace(None).is_some() {
                    self.shared.changed();
                }
                let (input, event) = well(value);
                return self.advance(input, vec![event], |_| ());
            }
            Err(error) => error,
        };
        let attack = error.attack();
        // Told once, however often it is tried again.
        let new = attack.filter(|attack| self.shared.altered.replace(Some(*attack)) != Some(*attack));
        let events = new.map(|attack| EventKind::Refused { attack, detail: error.to_string() });
        let tried = self.backoff.failures() + 1 >= TRIES
            && self.shared.answers.get()
            && !matches!(error, NixError::NoSpace(_));
        if error.is_permanent() || tried {
            tracing::error!("{error}");
            return self.fail(step, error.detail(), error.is_permanent(), events.into_iter().collect());
        }
        if let Some(event) = events {
            let generation = self.target().map(|target| target.generation);
            self.shared.ledger.borrow_mut().tell(generation, event, self.shared.clock.unix_ms())?;
            self.shared.changed();
        }
        Err(error.into())
    }

    async fn preflight(&mut self) -> Result<(), WorkError> {
        let Some(new) = self.output() else { return Ok(()) };
        match self.ask(move |platform| platform.preflight(&new)).await? {
            Preflight::Passed => self.advance(Input::Passed, vec![], |_| ()),
            Preflight::Failed(detail) => self.fail(Ended::Preflight, detail, true, vec![]),
            Preflight::NeedsHuman(detail) => {
                let told = !self.asked_for.insert(detail.clone());
                let event = EventKind::NeedsHuman { detail: detail.clone() };
                tracing::warn!("a person is needed: {detail}");
                let events = if told { vec![] } else { vec![event] };
                self.advance(Input::Blocked { detail }, events, |_| ())?;
                self.not_before = Some(self.shared.clock.awake() + HUMAN_INTERVAL);
                Ok(())
            }
        }
    }

    fn output(&self) -> Option<StorePath> {
        self.shared.ledger.borrow().transaction().map(|open| open.output().clone())
    }

    /// OLD, and what had failed before, are durable before anything is changed.
    async fn start_activator(&mut self) -> Result<(), WorkError> {
        let Some(new) = self.output() else { return Ok(()) };
        let failed_before = match self.ask(|platform| platform.failed_units()).await {
            Ok(units) => units,
            Err(error) => {
                tracing::warn!(%error, "the units that fail already are not known");
                Vec::new()
            }
        };
        let layout = self.shared.platform.layout();
        let old = Old { running: layout.running(), profile: layout.profile_target() };
        roots::hold(layout, &new, old.system()).map_err(WorkError::Roots)?;
        // The first system of a machine replaces none.
        let before = old.system().unwrap_or(&new).clone();
        let event = EventKind::Activating { old: before, new };
        self.advance(Input::Started, vec![event], |transaction| {
            transaction.old = Some(old);
            transaction.failed_before = failed_before;
        })?;
        self.restart_activator().await
    }

    async fn restart_activator(&mut self) -> Result<(), WorkError> {
        let generation =
            self.shared.ledger.borrow().transaction().map_or(Generation::FIRST, Transaction::generation);
        self.shared.changed();
        self.ask(move |platform| platform.start_activator(generation)).await?;
        self.started = Some(self.shared.clock.awake());
        Ok(())
    }

    /// Takes over what the activator's record says.
    fn enter(&mut self, input: Input) -> Result<(), WorkError> {
        let record = self.shared.ledger.borrow().files.activation()?.whole();
        let activating =
            self.shared.ledger.borrow().transaction().is_some_and(|open| open.state == State::Activating);
        let events = match record {
            Some(Activation { exit: Some(exit), ms, .. }) if activating => {
                vec![EventKind::Activated { exit, ms }]
            }
            _ => vec![],
        };
        if matches!(input, Input::Activated | Input::Rebooted) {
            self.probed = None;
            self.shared.probing_since.set(Some(self.shared.clock.awake()));
        }
        self.advance(input, events, |_| ())
    }

    /// Asks everything at once; stops when the activator has lost its patience meanwhile.
    async fn probe(&mut self) -> Result<(), WorkError> {
        if self.shared.probing_since.get().is_none() {
            // This agent was started after the activation.
            self.shared.probing_since.set(Some(self.shared.clock.awake()));
            self.shared.changed();
        }
        let checks =
            self.shared.ledger.borrow().transaction().map(|open| open.checks().to_vec()).unwrap_or_default();
        let asked = async {
            tokio::join!(
                probes::run(&checks, &self.shared.platform),
                self.ask(|platform| platform.failed_units())
            )
        };
        let (checks, failed_after) = tokio::select! {
            asked = asked => asked,
            result = self.no_longer_activated() => return result,
        };
        self.probed = Some(Probed { checks, failed_after: failed_after? });
        Ok(())
    }

    async fn no_longer_activated(&self) -> Result<(), WorkError> {
        loop {
            tokio::time::sleep(LONGEST_LOOK).await;
            let record = self.shared.ledger.borrow().files.activation()?.whole();
            if record.is_none_or(|record| record.phase != ActivationPhase::Activated) {
                return Ok(());
            }
        }
    }

    fn give(&self, verdict: GivenVerdict) -> Result<(), WorkError> {
        tracing::info!(?verdict, "the verdict on the new system");
        let ledger = self.shared.ledger.borrow();
        let Some(transaction) = ledger.transaction().map(|open| open.id.clone()) else { return Ok(()) };
        Ok(ledger.files.write_confirmation(&Confirmation { transaction, verdict })?)
    }

    fn settle(&mut self) -> Result<(), WorkError> {
        let layout = self.shared.platform.layout();
        let transaction = self.shared.ledger.borrow().transaction().cloned();
        let Some(transaction) = transaction else { return Ok(()) };
        let rooted = match transaction.state {
            State::Confirmed { .. } => {
                let old = transaction.old.as_ref().and_then(Old::system);
                roots::confirm(layout, transaction.output(), old)
            }
            _ => roots::release(layout),
        };
        rooted.map_err(WorkError::Roots)?;
        let now = self.shared.clock.unix_ms();
        self.shared.ledger.borrow_mut().settle(layout.running().as_ref(), now)?;
        let (generation, state) = (transaction.generation(), transaction.state.name());
        tracing::info!(%generation, "the transaction is over: {state}");
        (self.probed, self.started, self.began) = (None, None, None);
        self.asked_for.clear();
        self.shared.probing_since.set(None);
        Ok(())
    }

    fn fail(
        &self,
        step: Ended,
        detail: String,
        quarantined: bool,
        events: Vec<EventKind>,
    ) -> Result<(), WorkError> {
        self.advance(Input::Failed { step, detail, quarantined }, events, |_| ())
    }

    fn advance(
        &self,
        input: Input,
        events: Vec<EventKind>,
        change: impl FnOnce(&mut Transaction),
    ) -> Result<(), WorkError> {
        let running = self.shared.platform.layout().running();
        let now = self.shared.clock.unix_ms();
        let mut ledger = self.shared.ledger.borrow_mut();
        // A restarted agent has only the wall clock to tell how long it took.
        let wall = ledger.transaction().map_or(0, |open| now.saturating_sub(open.began));
        let ms = self.began.map_or(u64::try_from(wall).unwrap_or(0), |began| self.since(began));
        ledger.advance(input, events, &Seen { running: running.as_ref(), now, ms }, change)?;
        if let Some(open) = ledger.transaction() {
            tracing::info!(generation = %open.generation(), "{}", open.state.name());
        }
        Ok(())
    }

    fn since(&self, started: Duration) -> u64 {
        let passed = self.shared.clock.awake().saturating_sub(started);
        u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }

    /// Asks the platform from a thread of its own: its answers take as long as systemd and launchd do.
    async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Platform) -> Result<T, PlatformError> + Send + 'static,
    ) -> Result<T, WorkError> {
        let platform = Arc::clone(&self.shared.platform);
        let answer = tokio::task::spawn_blocking(move || question(platform.as_ref())).await;
        Ok(answer.map_err(|_| WorkError::Thread)??)
    }
}

fn id() -> Result<String, RandomError> {
    Ok(to_hex(&random::bytes::<16>()?))
}
