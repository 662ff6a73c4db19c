//! Brings the machine to the verified target: asks the plan what is next, does it, and looks again.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, StorePath, to_hex};
use muster_protocol::policy::{Policy, Window};
use muster_protocol::random::{self, RandomError};
use muster_protocol::report::{EventKind, UpdateStep as Ended};
use muster_protocol::target::Target;
use tracing::Instrument as _;

use super::chance::number;
use super::ledger::{LedgerError, Moment};
use super::shared::Shared;
use crate::activator;
use crate::client::Client;
use crate::core::backoff::{Backoff, look};
use crate::core::plan::{self, Observed, Probed, Step};
use crate::core::policy::{Circumstances, Deferral, Hold, Rules};
use crate::core::records::{Old, Quarantined, Transaction};
use crate::core::rollout::{self, Turn};
use crate::core::state::{Input, State};
use crate::journal::{FileId, Files, JournalError};
use crate::nix::{NixError, Store};
use crate::platform::{Platform, PlatformError};
use crate::supervisor;

/// The longest pause between two looks at the activator's record, while an activator is alive.
const LONGEST_LOOK: Duration = Duration::from_millis(200);
/// How long an activator may take from its start until it holds its lock.
const START_LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, thiserror::Error)]
pub(super) enum WorkError {
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
    #[error("the garbage collector's roots cannot be written: {source}; {}", crate::durable::remedy(source))]
    Roots { source: std::io::Error },
    #[error("a thread crashed; this is a bug in muster-agent, please report it")]
    Thread,
}

pub(super) struct Work<'a> {
    pub shared: &'a Shared,
    pub client: &'a Client,
    pub nix: &'a dyn Store,
    pub backoff: Backoff,
    pub not_before: Option<Duration>,
    pub probed: Option<Probed>,
    /// When an activator was last started, in awake time.
    pub started: Option<Duration>,
    /// When this process opened the transaction, and when its checks began, in awake time.
    pub began: Option<Duration>,
    pub probing: Option<Duration>,
    /// Since when the activator's record is being watched, in awake time.
    pub watched: Option<Duration>,
    /// Somebody at the machine asked for another try, which is still pending.
    pub asked: bool,
    /// What was observed for the next step.
    pub circumstances: Option<Circumstances>,
    pub blockers: Option<Vec<String>>,
    /// The running specialisation, when that was last checked.
    pub specialisation: Option<String>,
    /// When the service manager was last asked for failed units, in awake time.
    pub units_seen: Option<Duration>,
    /// What a person was asked for, reported once.
    pub asked_for: BTreeSet<String>,
    /// The units that had failed when the new system was checked, and when that was, in awake time.
    pub failed_before: Option<(Vec<String>, Duration)>,
}

/// How often the platform does its housekeeping.
const TEND_INTERVAL: Duration = Duration::from_secs(1800);

pub async fn run(shared: &Shared, client: &Client, nix: &dyn Store) {
    let mut work = Work {
        shared,
        client,
        nix,
        backoff: Backoff::default(),
        not_before: None,
        probed: None,
        started: None,
        began: None,
        probing: None,
        watched: None,
        asked: false,
        circumstances: None,
        blockers: None,
        specialisation: shared.platform.layout().specialisation(),
        units_seen: None,
        asked_for: BTreeSet::new(),
        failed_before: None,
    };
    // What the boot is still doing would be mistaken for what the machine runs.
    let waited = work.ask(|platform| {
        platform.wait_for_boot();
        Ok(())
    });
    if let Err(error) = waited.await {
        tracing::warn!("{error}");
    }
    // Before anything newer is begun, which would hide it.
    if let Err(error) = work.fell_back().await {
        tracing::warn!("whether the last boot fell back cannot be found out: {error}");
    }
    let mut tended: Option<Duration> = None;
    loop {
        let now = shared.clock.awake();
        if tended.is_none_or(|at| now.saturating_sub(at) >= TEND_INTERVAL) {
            tended = Some(now);
            let tend = work.ask(|platform| {
                platform.tend();
                Ok(())
            });
            if let Err(error) = tend.await {
                tracing::warn!("{error}");
            }
        }
        let span = shared.span();
        if let Err(error) = work.turn().instrument(span.clone()).await {
            let wait = work.backoff.failed(number(), None);
            span.in_scope(|| tracing::warn!(wait_ms = wait.as_millis(), "{error}"));
            work.not_before = Some(shared.clock.awake() + wait);
            shared.set_problem(Some(error.to_string()));
            // A step that the plan does not hold back must not spin either.
            work.wait(Some(wait)).await;
        }
    }
}

impl Work<'_> {
    async fn turn(&mut self) -> Result<(), WorkError> {
        if self.shared.asks.take_another_try() {
            (self.asked, self.not_before) = (true, None);
            (self.circumstances, self.blockers) = (None, None);
        }
        // Before the record is read: any later write changes it.
        let glance = self.glance();
        let step = self.plan()?;
        if !matches!(step, Step::Idle | Step::Wait(_) | Step::Watch) {
            tracing::debug!(?step, "next");
        }
        match step {
            Step::Idle => {
                self.asked = false;
                if !self.rest().await? {
                    self.wait(None).await;
                }
                (self.circumstances, self.blockers) = (None, None);
                Ok(())
            }
            Step::Wait(until) => {
                self.asked = false;
                let left = until.saturating_sub(self.shared.clock.awake());
                self.wait(Some(left)).await;
                (self.circumstances, self.blockers) = (None, None);
                Ok(())
            }
            Step::Watch => {
                self.watch(glance).await;
                Ok(())
            }
            Step::Look(stage) => {
                self.circumstances = Some(self.look(stage).await?);
                Ok(())
            }
            Step::LookForBlockers => {
                self.blockers = Some(self.ask(|platform| platform.blockers()).await?);
                Ok(())
            }
            step => {
                (self.not_before, self.watched, self.circumstances) = (None, None, None);
                self.take(step).await?;
                self.backoff.succeeded();
                self.shared.set_problem(None);
                self.tell_controller();
                Ok(())
            }
        }
    }

    /// A step was taken. Operators wait for its end, and a system being probed needs the controller's answer,
    /// once.
    fn tell_controller(&self) {
        let ledger = self.shared.ledger.borrow();
        let state = ledger.transaction().map(|open| &open.state);
        let reached = self.shared.controller().reached_since_activation;
        if state.is_some_and(|state| state.is_final() || (*state == State::Probing && !reached)) {
            self.shared.wakes.changed_now();
        } else {
            self.shared.wakes.changed();
        }
    }

    /// Waits until the activator's record changes, the activator is gone, or the work is woken. Each look
    /// costs two system calls: a complete plan would cost a hundred times as much.
    async fn watch(&mut self, seen: Glance) {
        loop {
            let now = self.shared.clock.awake();
            let since = *self.watched.get_or_insert(now);
            let pause = look(now.saturating_sub(since), LONGEST_LOOK);
            let woken = tokio::time::timeout(pause, self.shared.wakes.work()).await.is_ok();
            let starting = self.started.is_some_and(|at| now.saturating_sub(at) < START_LIMIT);
            let now = self.glance();
            if woken || now != seen || !(now.alive || starting) {
                return;
            }
        }
    }

    fn glance(&self) -> Glance {
        Glance::at(&self.shared.ledger.borrow().files, &self.shared.config.state_dir)
    }

    /// Waits until the contact or a person wakes the work, or the time is over.
    async fn wait(&self, limit: Option<Duration>) {
        let woken = self.shared.wakes.work();
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
        let wanted = shared.heard.wanted();
        let (rules, due) = (shared.rules(&ledger), shared.platform.due());
        let at = shared.clock.unix_ms();
        let turn = shared.turn(&ledger);
        let observed = Observed {
            transaction: ledger.transaction(),
            epoch: shared.heard.holds().epoch,
            activation: activation.as_ref(),
            activator_alive: alive || starting,
            given: given.as_ref(),
            running: running.as_ref(),
            boot: &shared.boot,
            probed: self.probed.as_ref(),
            controller: shared.controller(),
            rollback_asked: shared.asks.wants_rollback(),
            asked: self.asked,
            console: shared.platform.console(),
            rules: &rules,
            circumstances: self.circumstances.as_ref(),
            turn: turn.as_ref(),
            due: due.as_ref(),
            blockers: self.blockers.as_deref(),
            at,
            not_before: self.not_before,
            now,
        };
        shared.note_reboot(plan::reboot_note(&observed, ledger.journal()));
        let step = plan::next(&observed, ledger.journal(), wanted.as_ref());
        if let Some(awaits) = plan::awaits_turn(&step, ledger.transaction()) {
            let (plan, says) = turn.map(|turn| (turn.place.plan, turn.says)).unzip();
            if shared.turns.set_awaits(plan.filter(|_| awaits), &says.unwrap_or_default(), now) {
                shared.wakes.changed_now();
            }
        }
        Ok(step)
    }

    async fn take(&mut self, step: Step) -> Result<(), WorkError> {
        match step {
            Step::Idle | Step::Wait(_) | Step::Watch | Step::Look(_) | Step::LookForBlockers => Ok(()),
            Step::Begin => self.begin(),
            Step::Refuse(entry) => self.refuse(&entry),
            Step::BeginRollback(previous) => self.begin_rollback(previous),
            Step::Enforce(target) => self.enforce(*target),
            Step::Supersede => {
                tracing::info!("a transaction that changed nothing is superseded");
                Ok(self.shared.ledger.borrow_mut().supersede()?)
            }
            Step::Defer(deferral) => self.defer(deferral),
            Step::Fetch => self.fetch().await,
            Step::Build => self.build().await,
            Step::Preflight => self.preflight().await,
            Step::StartActivator => self.start_activator().await,
            Step::RestartActivator => self.restart_activator().await,
            Step::Enter(input) => self.enter(input),
            Step::Probe => self.probe().await,
            Step::Give(verdict) => self.give(verdict),
            Step::Settle => self.settle().await,
            Step::Reboot(due) => self.reboot(due).await,
        }
    }

    fn wanted(&self) -> Option<Target> {
        self.shared.heard.wanted().clone()
    }

    fn begin(&mut self) -> Result<(), WorkError> {
        let Some(target) = self.wanted() else { return Ok(()) };
        self.asked = false;
        let identity = &self.shared.identity;
        // The verifying core asks this too; the activating side checks once more (I1, I6).
        let fits = target.require_for(&identity.machine, identity.class, &identity.system, target.generation);
        tracing::info!(output = %target.output, "generation {} is verified", target.generation);
        let transaction = Transaction::signed(id()?, target, self.shared.clock.unix_ms());
        match fits {
            Ok(()) => self.open(transaction, vec![EventKind::Verified]),
            Err(error) => self.open_and_end(transaction, vec![EventKind::Verified], error.to_string()),
        }
    }

    fn refuse(&mut self, entry: &Quarantined) -> Result<(), WorkError> {
        let Some(target) = self.wanted() else { return Ok(()) };
        let detail = format!(
            "its derivation failed as generation {} ({}) and is not tried again: change the system and \
             publish that",
            entry.generation, entry.detail
        );
        let transaction = Transaction::signed(id()?, target, self.shared.clock.unix_ms());
        self.open_and_end(transaction, vec![], detail)
    }

    /// In one document: a crash must not find it open and continue it.
    fn open_and_end(
        &mut self,
        transaction: Transaction,
        events: Vec<EventKind>,
        detail: String,
    ) -> Result<(), WorkError> {
        self.forget_the_last();
        let running = self.shared.platform.layout().running();
        let failed = Input::Failed { step: Ended::Verify, detail, quarantined: true };
        let seen = Moment { running: running.as_ref(), now: self.shared.clock.unix_ms(), ms: 0 };
        Ok(self.shared.ledger.borrow_mut().begin_and_end(transaction, events, failed, &seen)?)
    }

    fn begin_rollback(&mut self, previous: StorePath) -> Result<(), WorkError> {
        self.shared.asks.rollback_begun();
        let known = self.shared.ledger.borrow().journal().confirmed.clone();
        let Some(known) = known else { return Ok(()) };
        let (class, now) = (self.shared.identity.class, self.shared.clock.unix_ms());
        tracing::info!(%previous, "going back, as requested at this machine");
        self.open(Transaction::rollback(id()?, &known, previous, class, now), vec![])
    }

    fn enforce(&mut self, target: Target) -> Result<(), WorkError> {
        tracing::warn!(
            "somebody else changed the system: generation {} is activated again",
            target.generation
        );
        self.open(Transaction::enforce(id()?, target, self.shared.clock.unix_ms()), vec![])
    }

    /// The confirmed generation did not boot: the activator makes `old`, which runs, the next boot's system
    /// again.
    pub(super) fn take_back(&mut self, target: Target, old: Old, why: String) -> Result<(), WorkError> {
        self.open(Transaction::fallen_back(id()?, target, old, why, self.shared.clock.unix_ms()), vec![])
    }

    fn open(&mut self, transaction: Transaction, events: Vec<EventKind>) -> Result<(), WorkError> {
        self.forget_the_last();
        let now = self.shared.clock.unix_ms();
        Ok(self.shared.ledger.borrow_mut().begin(transaction, events, now)?)
    }

    fn forget_the_last(&mut self) {
        self.began = Some(self.shared.clock.awake());
        (self.started, self.probed, self.probing) = (None, None, None);
        self.shared.doing.probes_since(None);
        self.shared.doing.set_altered(None);
    }

    pub(super) fn defer(&mut self, deferral: Deferral) -> Result<(), WorkError> {
        tracing::info!(until = deferral.until, "put off: {}", deferral.why);
        let event = EventKind::Deferred { why: deferral.why.clone(), until: deferral.until };
        // What waits for a person is checked again and again, and reported once.
        let about = self.generation().map(|generation| format!("{generation}: {}", deferral.why));
        let told_before =
            deferral.hold == Hold::Inhibited && !self.asked_for.insert(about.unwrap_or_default());
        let waits = rollout::is_turn(deferral.hold);
        // What is missing changes with each machine that soaks and each try: that it waits is told once.
        let still = (waits && self.awaits_since().is_some()) || self.waits_for_plan(&deferral);
        let events = if told_before || still { vec![] } else { vec![event] };
        let now = self.shared.clock.unix_ms();
        self.advance(Input::Deferred { deferral }, events, |open| {
            open.awaits_since = waits.then(|| open.awaits_since.unwrap_or(now));
        })
    }

    /// The target of the open transaction. A rollback has none, and no step that needs one.
    pub(super) fn target(&self) -> Option<Target> {
        self.shared.ledger.borrow().transaction().and_then(Transaction::target).cloned()
    }
    fn waits_for_plan(&self, deferral: &Deferral) -> bool {
        let ledger = self.shared.ledger.borrow();
        let state = ledger.transaction().map(|open| &open.state);
        let waits = matches!(state, Some(State::Deferred { deferral, .. }) if deferral.hold == Hold::Plan);
        waits && deferral.hold == Hold::Plan
    }
    fn awaits_since(&self) -> Option<UnixMillis> {
        self.shared.ledger.borrow().transaction().and_then(|open| open.awaits_since)
    }
    pub(super) fn output(&self) -> Option<StorePath> {
        self.shared.ledger.borrow().transaction().map(|open| open.output().clone())
    }
    pub(super) fn generation(&self) -> Option<Generation> {
        self.shared.ledger.borrow().transaction().map(Transaction::generation)
    }
    pub(super) fn rules(&self) -> Rules {
        self.shared.rules(&self.shared.ledger.borrow())
    }

    pub(super) fn fail(
        &self,
        step: Ended,
        detail: String,
        quarantined: bool,
        events: Vec<EventKind>,
    ) -> Result<(), WorkError> {
        self.advance(Input::Failed { step, detail, quarantined }, events, |_| ())
    }

    pub(super) fn advance(
        &self,
        input: Input,
        events: Vec<EventKind>,
        change: impl FnOnce(&mut Transaction),
    ) -> Result<(), WorkError> {
        let running = self.shared.platform.layout().running();
        let now = self.shared.clock.unix_ms();
        let mut ledger = self.shared.ledger.borrow_mut();
        // A restarted agent has only the wall clock to measure the duration.
        let wall = ledger.transaction().map_or(0, |open| now.saturating_sub(open.began));
        let ms = self.began.map_or(u64::try_from(wall).unwrap_or(0), |began| self.since(began));
        let timed = |open: &mut Transaction| {
            change(open);
            open.took.total_ms = Some(ms);
        };
        ledger.advance(input, events, &Moment { running: running.as_ref(), now, ms }, timed)?;
        if let Some(open) = ledger.transaction() {
            let words = format!("generation {} is {}", open.generation(), open.state.name());
            tracing::info!("{words}");
            supervisor::status(&words);
        }
        Ok(())
    }

    pub(super) fn since(&self, started: Duration) -> u64 {
        let passed = self.shared.clock.awake().saturating_sub(started);
        u64::try_from(passed.as_millis()).unwrap_or(u64::MAX)
    }

    /// Calls the platform on a separate thread: its answers take as long as systemd and launchd do.
    pub(super) async fn ask<T: Send + 'static>(
        &self,
        question: impl FnOnce(&dyn Platform) -> Result<T, PlatformError> + Send + 'static,
    ) -> Result<T, WorkError> {
        let platform = Arc::clone(&self.shared.platform);
        let answer = tokio::task::spawn_blocking(move || question(platform.as_ref())).await;
        Ok(answer.map_err(|_| WorkError::Thread)??)
    }
}

/// What can be seen of the activator without reading anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Glance {
    record: Option<FileId>,
    alive: bool,
}

impl Glance {
    fn at(files: &Files, state_dir: &std::path::Path) -> Self {
        Self { record: files.activation_file(), alive: activator::is_alive(state_dir) }
    }
}

impl Shared {
    /// What is known about the turn of the open transaction's target.
    pub(super) fn turn(&self, ledger: &super::ledger::Ledger) -> Option<Turn> {
        let target = ledger.transaction().and_then(Transaction::target)?;
        self.turns.turn(target, self.clock.awake(), self.clock.unix_ms())
    }

    /// The windows of its wave, in which its target may be switched to besides those of its policy.
    fn wave_windows(&self, open: &Transaction) -> Option<Vec<Window>> {
        let place = open.target().filter(|_| !open.enforcing)?.rollout?;
        let plan = self.turns.plan(&place.plan)?;
        let wave = plan.waves.get(usize::try_from(place.wave).ok()?)?;
        Some(wave.windows.clone()).filter(|windows| !windows.is_empty())
    }

    /// The policies in force: of the open transaction, or else of the confirmed generation.
    pub(super) fn rules(&self, ledger: &super::ledger::Ledger) -> Rules {
        let none = Policy::default();
        let own = &self.config.policy;
        match ledger.transaction() {
            // A rollback at the machine itself waits for no window and runs no hook.
            Some(open) if open.is_rollback() => {
                Rules { urgent: true, before: Vec::new(), ..Rules::new(&none, own) }
            }
            Some(open) => {
                let mut rules = Rules::new(open.target().map_or(&none, |target| &target.policy), own);
                rules.windows.extend(self.wave_windows(open));
                rules
            }
            None => {
                let known = ledger.journal().confirmed.as_ref().and_then(|known| known.target.as_ref());
                Rules::new(known.map_or(&none, |target| &target.policy), own)
            }
        }
    }
}

fn id() -> Result<String, RandomError> {
    Ok(to_hex(&random::bytes::<16>()?))
}
