//! The steps before the switch: fetching, building, and the conditions before anything is changed.

use std::time::Duration;

use muster_protocol::ids::Generation;
use muster_protocol::policy::{Hook, InhibitedPolicy};
use muster_protocol::report::{EventKind, UpdateStep as Ended};
use muster_protocol::target::HealthCheck;

use super::roots;
use super::shared::Shared;
use super::work::{Work, WorkError};
use crate::buildlog::BuildLog;
use crate::core::blame::{self, Caches};
use crate::core::policy::{Circumstances, Deferral, Hold, Stage, inhibited};
use crate::core::progress::{Pace, Tracker, describe};
use crate::core::records::Transaction;
use crate::core::state::Input;
use crate::core::window;
use crate::nix::{BuildLimits, NixError};
use crate::platform::{Platform, PlatformError, Preflight};
use crate::probes;
use crate::process::{Listener, ProcessError, free_bytes};
use crate::secrets;

/// How often to check whether a person's work is done without being told.
const HUMAN_INTERVAL: Duration = Duration::from_secs(3600);
/// The pause after a hook put a switch off.
const HOOK_PAUSE: Duration = Duration::from_secs(300);
/// How often a step before the activation is tried while the controller answers. An absent controller and a
/// full disk do not count as tries.
const TRIES: u32 = 8;
/// The same for a build that was started: each try may take long.
const BUILD_TRIES: u32 = 4;

/// Reported when a build stops waiting for the machine's caches.
const DOUBTED: &str = "building failed repeatedly, possibly because of a cache: what this machine's caches \
    do not deliver is built here now";

/// Follows a Nix process: keeps its output, and reports its progress now and then.
struct Follow<'a> {
    shared: &'a Shared,
    generation: Generation,
    tracker: Tracker,
    pace: Pace,
    log: BuildLog,
}

impl<'a> Follow<'a> {
    fn new(shared: &'a Shared, generation: Generation, step: Ended) -> Self {
        let pace = Pace::new(shared.clock.awake());
        let log = BuildLog::new(&shared.config.state_dir, generation);
        Self { shared, generation, tracker: Tracker::new(step), pace, log }
    }
}

impl Listener for Follow<'_> {
    fn line(&mut self, line: &str) -> Option<String> {
        let text = self.tracker.line(line);
        if let Some(text) = &text {
            self.log.line(text);
        }
        if self.pace.take(self.shared.clock.awake()) {
            self.shared.progress(self.generation, self.tracker.progress().clone());
        }
        text
    }
}

impl Drop for Follow<'_> {
    fn drop(&mut self) {
        self.shared.doing.set_progress(None);
    }
}

impl Work<'_> {
    /// The machine's circumstances, as far as this step and its policies need them.
    pub(super) async fn look(&self, stage: Stage) -> Result<Circumstances, WorkError> {
        let (rules, output) = (self.rules(), self.output());
        let asks_network = rules.metered != muster_protocol::policy::MeteredPolicy::Go;
        let zone = jiff::tz::TimeZone::system();
        let openness = window::openness(&rules.windows, self.shared.clock.unix_ms(), &zone);
        self.ask(move |platform| {
            let switches = stage == Stage::Switch;
            Ok(Circumstances {
                window: openness,
                on_battery: platform.on_battery(),
                metered: asks_network && !switches && platform.metered(),
                free_disk: free_bytes(&existing(&platform.layout().store_prefix())).ok(),
                free_memory: platform.free_memory(),
                busy: if switches { busy(platform) } else { None },
                absent: output.filter(|_| switches).and_then(|new| platform.absent(&new)),
            })
        })
        .await
    }

    pub(super) async fn fetch(&mut self) -> Result<(), WorkError> {
        let Some(target) = self.target() else { return Ok(()) };
        let started = self.shared.clock.awake();
        let mut follow = Follow::new(self.shared, target.generation, Ended::Fetch);
        let fetched = self.nix.fetch(&target.derivation, self.client, &mut follow).await;
        drop(follow);
        let ms = self.since(started);
        self.finished(Ended::Fetch, fetched, |()| {
            (Input::Fetched, EventKind::Fetched { ms }, Box::new(move |open| open.took.fetch_ms = Some(ms)))
        })
    }

    pub(super) async fn build(&mut self) -> Result<(), WorkError> {
        let Some(target) = self.target() else { return Ok(()) };
        let started = self.shared.clock.awake();
        let rules = self.rules();
        let last = self.shared.doing.problem();
        let caches = blame::caches(self.backoff.failures(), last.as_deref());
        let limits = BuildLimits { max_jobs: rules.max_jobs, cores: rules.cores, nice: rules.nice, caches };
        let link = roots::new_link(self.shared.platform.layout());
        let mut follow = Follow::new(self.shared, target.generation, Ended::Build);
        if caches != Caches::Trusted {
            tracing::warn!("{DOUBTED}");
            follow.log.line(DOUBTED);
            self.shared.set_problem(Some(DOUBTED.to_owned()));
        }
        let built = self.nix.realise(&target, self.client, &link, limits, &mut follow).await;
        drop(follow);
        let step = match &built {
            Err(NixError::WrongOutput { .. }) => Ended::Compare,
            _ => Ended::Build,
        };
        let ms = self.since(started);
        self.finished(step, built, |output| {
            let timed: Change = Box::new(move |open| {
                open.took.build_ms = Some(ms);
                open.remark = (caches != Caches::Trusted).then(|| DOUBTED.to_owned());
            });
            (Input::Built, EventKind::Built { output, ms }, timed)
        })
    }

    /// Continues after a step of Nix, gives up, or retries it later.
    fn finished<T>(
        &self,
        step: Ended,
        result: Result<T, NixError>,
        well: impl FnOnce(T) -> (Input, EventKind, Change),
    ) -> Result<(), WorkError> {
        let error = match result {
            Ok(value) => {
                if self.shared.doing.set_altered(None).is_some() {
                    self.shared.wakes.changed();
                }
                let (input, event, change) = well(value);
                return self.advance(input, vec![event], change);
            }
            Err(error) => error,
        };
        let attack = error.attack();
        // Reported once, however often it is tried again.
        let new = attack.filter(|attack| self.shared.doing.set_altered(Some(*attack)) != Some(*attack));
        let events = new.map(|attack| EventKind::Refused { attack, detail: error.to_string() });
        let tries = if error.broke_off_a_build() { BUILD_TRIES } else { TRIES };
        let tried = self.backoff.failures() + 1 >= tries
            && self.shared.heard.answers()
            && !matches!(error, NixError::Process(ProcessError::NoSpace(_)) | NixError::BuildFolder(_));
        if error.is_permanent() || tried {
            tracing::error!("{error}");
            return self.fail(step, error.detail(), error.is_permanent(), events.into_iter().collect());
        }
        if let Some(event) = events {
            let generation = self.target().map(|target| target.generation);
            self.shared.ledger.borrow_mut().tell(generation, event, self.shared.clock.unix_ms())?;
            self.shared.wakes.changed();
        }
        if matches!(error, NixError::Fetch { .. } | NixError::Build { .. }) {
            // A check-in brings a bearer before the next try.
            self.shared.wakes.changed_now();
        }
        Err(error.into())
    }

    pub(super) async fn preflight(&mut self) -> Result<(), WorkError> {
        let open =
            self.shared.ledger.borrow().transaction().map(|open| (open.output().clone(), open.action()));
        let Some((new, action)) = open else { return Ok(()) };
        let started = self.shared.clock.awake();
        let look = move |platform: &dyn Platform| match secrets::check(platform.layout(), &new) {
            Ok(()) => platform.preflight(&new, action),
            Err(error) if error.is_of_the_system() => Ok(Preflight::Failed(error.to_string())),
            Err(error) => Err(PlatformError::Other(error.to_string())),
        };
        // The service manager is asked at the same time: both take as long as a process does.
        let (preflight, failed) = tokio::join!(self.ask(look), self.ask(|platform| platform.failed_before()));
        self.failed_before = failed.ok().map(|failed| (failed, started));
        let mut at_boot = self.shared.is_asked_for_at_boot();
        match preflight? {
            Preflight::Passed => {}
            Preflight::Inhibited(what) => {
                at_boot |= self.rules().inhibited == InhibitedPolicy::Boot;
                if !at_boot {
                    self.not_before = Some(self.shared.clock.awake() + HUMAN_INTERVAL);
                    return self.defer(Deferral::new(Hold::Inhibited, inhibited(&what)));
                }
                tracing::info!(
                    "NixOS does not switch a running system to this one ({what}): the next boot brings it"
                );
            }
            Preflight::Failed(detail) => return self.fail(Ended::Preflight, detail, true, vec![]),
            Preflight::NeedsHuman(detail) => {
                let told_before = !self.asked_for.insert(detail.clone());
                let event = EventKind::NeedsHuman { detail: detail.clone() };
                tracing::warn!("a person is needed: {detail}");
                let events = if told_before { vec![] } else { vec![event] };
                self.advance(Input::Blocked { detail }, events, |_| ())?;
                self.not_before = Some(self.shared.clock.awake() + HUMAN_INTERVAL);
                return Ok(());
            }
        }
        if let Err((name, why)) = self.hooks(self.rules().before, "before", true).await {
            self.not_before = Some(self.shared.clock.awake() + HOOK_PAUSE);
            let why = format!("the hook '{name}' prevents it: {why}");
            return self.defer(Deferral::new(Hold::Hook, why));
        }
        let ms = self.since(started);
        self.advance(Input::Passed, vec![], |open| {
            open.took.preflight_ms = Some(ms);
            open.at_boot |= at_boot;
        })
    }

    /// Runs hooks one after the other; the first that fails, unless all are to run, ends this with its name
    /// and output.
    pub(super) async fn hooks(
        &self,
        hooks: Vec<Hook>,
        when: &'static str,
        stop: bool,
    ) -> Result<(), (String, String)> {
        let mut result = Ok(());
        for hook in hooks {
            let facts = self.facts(when);
            let layout = self.shared.platform.layout().clone();
            let limit = Duration::from_secs(hook.timeout_seconds.into());
            tracing::info!(hook = hook.name, "running a hook {when} the switch");
            let command = hook.command;
            let ran =
                tokio::task::spawn_blocking(move || probes::run_with(&command, &facts, limit, &layout)).await;
            if let Err(why) = ran.unwrap_or_else(|_| Err("its thread crashed".to_owned())) {
                tracing::warn!(hook = hook.name, "the hook failed: {why}");
                result = Err((hook.name, why));
                if stop {
                    break;
                }
            }
        }
        result
    }

    /// A hook's environment variables.
    fn facts(&self, when: &'static str) -> Vec<(&'static str, String)> {
        let ledger = self.shared.ledger.borrow();
        let Some(open) = ledger.transaction() else { return Vec::new() };
        let old = open.old.as_ref().and_then(|old| old.system()).map(ToString::to_string);
        let running = self.shared.platform.layout().running().map(|running| running.to_string());
        vec![
            ("MUSTER_WHEN", when.to_owned()),
            ("MUSTER_MACHINE", self.shared.identity.machine.to_string()),
            ("MUSTER_GENERATION", open.generation().to_string()),
            ("MUSTER_STATE", open.state.name().to_owned()),
            ("MUSTER_OLD", old.or(running).unwrap_or_default()),
            ("MUSTER_NEW", open.output().to_string()),
        ]
    }

    /// The signed checks, and those of the machine's own file.
    pub(super) fn checks(&self) -> Vec<HealthCheck> {
        let ledger = self.shared.ledger.borrow();
        let signed = ledger.transaction().map(|open| open.checks().to_vec()).unwrap_or_default();
        // A rollback is wanted as it is, whatever is unhealthy.
        let own = ledger.transaction().filter(|open| !open.is_rollback()).map(|_| &self.shared.config.checks);
        signed.into_iter().chain(own.into_iter().flatten().cloned()).collect()
    }
}

type Change = Box<dyn FnOnce(&mut Transaction)>;

fn busy(platform: &dyn Platform) -> Option<String> {
    platform.busy().unwrap_or_else(|error| {
        tracing::warn!(%error, "cannot find out whether somebody else is switching this machine");
        None
    })
}

/// The folder itself, or its first existing parent.
fn existing(folder: &std::path::Path) -> std::path::PathBuf {
    folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(std::path::Path::new("/")).to_path_buf()
}

impl Shared {
    /// Reports a step's progress: in an event, in the next check-in and to local requests.
    fn progress(&self, generation: Generation, progress: muster_protocol::report::Progress) {
        self.doing.set_progress(Some(describe(&progress)));
        let now = self.clock.unix_ms();
        let event = EventKind::Progress(progress);
        // A disk that refuses it has more serious problems; the step continues.
        if let Err(error) = self.ledger.borrow_mut().tell(Some(generation), event, now) {
            tracing::debug!(%error, "progress cannot be reported");
        }
        self.wakes.changed();
    }
}
