//! A machine in a folder that lives in a test's virtual time: its platform, its Nix, its activator.

use std::fs::File;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use muster_protocol::api;
use muster_protocol::clock::{Clock, UnixMillis};
use muster_protocol::ids::{Generation, MachineName, Sha256, StorePath};
use muster_protocol::machine::Class;
use muster_protocol::report::ClosureChange;
use muster_protocol::target::{Action, Target};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::honest::BEGAN;
use super::weak::Weak;
use crate::client::Client;
use crate::config::Config;
use crate::core::activate::{Act, Ailing, Course, Done, Outcome, Ran, Sight, Way};
use crate::core::prune::ProfileGeneration;
use crate::core::records::Activation;
use crate::core::records::tests::path;
use crate::identity::{Enrolment, Identity, Keys};
use crate::journal::Files;
use crate::nix::{BuildLimits, NixError, Store};
use crate::platform::{Layout, Platform, PlatformError, Preflight};
use crate::process::{Finished, Listener};

/// The virtual clock: it stands still while anything is running, and jumps to the next timer.
pub struct Virtual {
    start: Instant,
}

impl Virtual {
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for Virtual {
    fn unix_ms(&self) -> UnixMillis {
        BEGAN * 1000 + i64::try_from(self.awake().as_millis()).unwrap()
    }
    fn awake(&self) -> Duration {
        self.start.elapsed()
    }
}

pub struct Machine {
    pub config: Config,
    pub layout: Layout,
    pub platform: Arc<Quiet>,
    pub clock: Arc<Virtual>,
    pub name: MachineName,
    _folder: tempfile::TempDir,
}

impl Machine {
    /// Enrolled by `root` later; it runs a manually installed system.
    pub fn new() -> (Self, mpsc::UnboundedReceiver<()>) {
        // In memory if possible: thousands of small files are written.
        let memory = PathBuf::from("/dev/shm");
        let within = if memory.is_dir() { memory } else { std::env::temp_dir() };
        let folder = tempfile::Builder::new().prefix("muster-hour.").tempdir_in(within).unwrap();
        let config = crate::platform::testing::stand_in(folder.path(), "");
        let layout = Layout::new(&config, Class::Nixos);
        let (starts, started) = mpsc::unbounded_channel();
        let platform = Arc::new(Quiet { layout: layout.clone(), starts });
        let clock = Arc::new(Virtual::new());
        let machine = Self { config, layout, platform, clock, name: "m".parse().unwrap(), _folder: folder };
        for link in [machine.layout.current_system(), machine.layout.profile()] {
            point(&link, &path("by-hand"));
        }
        (machine, started)
    }

    pub fn enrol(&self, root: &[u8]) {
        let state = &self.config.state_dir;
        std::fs::create_dir_all(state.join("tuf")).unwrap();
        std::fs::write(state.join("tuf/root.json"), root).unwrap();
        let enrolment = Enrolment {
            version: 1,
            machine: self.name.clone(),
            class: Class::Nixos,
            system: "x86_64-linux".parse().unwrap(),
            fleet: Sha256::of(root),
            url: "http://127.0.0.1:1".into(),
            lowest_generation: Generation::FIRST,
            tls_ca: None,
            enrolled_at: 1,
        };
        Identity::save(state, &enrolment).unwrap();
    }

    pub fn keys(&self) -> Keys {
        Keys::load_or_make(&self.config.state_dir).unwrap()
    }

    pub fn identity(&self) -> Identity {
        Identity::load(&self.config).unwrap().unwrap()
    }

    /// Waits until the agent starts another activator, which then runs to its end. No crash of the agent
    /// affects it.
    pub async fn activators(&self, mut starts: mpsc::UnboundedReceiver<()>) {
        while starts.recv().await.is_some() {
            self.activate().await;
        }
    }

    async fn activate(&self) {
        let files = Files::new(&self.config.state_dir);
        let lock = File::create(self.config.state("activator.lock")).unwrap();
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
        let transaction = files.transaction().unwrap().whole();
        let record = files.activation().unwrap().whole();
        let mut course = match (record, transaction) {
            (Some(record), _) if !record.phase.is_final() => {
                let (running, profile) = (self.layout.running(), self.layout.profile_target());
                let now = self.clock.awake();
                let sight =
                    Sight { running: running.as_ref(), profile: profile.as_ref(), verdict: None, now };
                Course::resume(record, "boot-1", &sight)
            }
            (record, Some(open)) if record.as_ref().is_none_or(|record| record.transaction != open.id) => {
                Course::begin(Activation::new(&open, "boot-1"), "boot-1", self.clock.awake())
            }
            _ => return,
        };
        loop {
            let (running, profile) = (self.layout.running(), self.layout.profile_target());
            let given = files.confirmation().unwrap().whole();
            let given = given.filter(|given| given.transaction == course.record.transaction);
            let verdict = given.map(|given| given.verdict);
            let now = self.clock.awake();
            let (running, profile) = (running.as_ref(), profile.as_ref());
            let sight = Sight { running, profile, verdict: verdict.as_ref(), now };
            let done = match course.next(&sight) {
                Act::End => return,
                Act::Write => {
                    files.write_activation(&course.record).unwrap();
                    Done::Well
                }
                Act::AskOthers => Done::Others(None),
                Act::SetProfile(system) => {
                    point(&self.layout.profile(), &system);
                    Done::Well
                }
                Act::RemoveProfile => {
                    std::fs::remove_file(self.layout.profile()).unwrap();
                    Done::Well
                }
                Act::Run { system, .. } => {
                    tokio::time::sleep(Duration::from_secs(2)).await;
                    point(&self.layout.current_system(), &system);
                    Done::Ran(Ran {
                        exit: 0,
                        output: String::new(),
                        timed_out: false,
                        outcome: Outcome::Done,
                        person: None,
                        ailing: Ailing::default(),
                    })
                }
                Act::Tidy { .. } | Act::EnsureAgent { .. } => Done::Well,
                Act::Pause(pause) => {
                    tokio::time::sleep(pause).await;
                    Done::Well
                }
            };
            let (running, profile) = (self.layout.running(), self.layout.profile_target());
            let (running, profile) = (running.as_ref(), profile.as_ref());
            let sight = Sight { running, profile, verdict: verdict.as_ref(), now: self.clock.awake() };
            course.done(done, &sight);
        }
    }
}

/// Puts a link in place.
fn point(link: &std::path::Path, system: &StorePath) {
    std::fs::create_dir_all(link.parent().unwrap()).unwrap();
    let _ = std::fs::remove_file(link);
    symlink(system.as_str(), link).unwrap();
}

/// A platform on which everything succeeds.
pub struct Quiet {
    layout: Layout,
    starts: mpsc::UnboundedSender<()>,
}

impl Platform for Quiet {
    fn layout(&self) -> &Layout {
        &self.layout
    }
    fn boot_id(&self) -> Result<String, PlatformError> {
        Ok("boot-1".into())
    }
    fn failed_units(&self) -> Result<Vec<String>, PlatformError> {
        Ok(Vec::new())
    }
    fn preflight(&self, _: &StorePath, _: Action) -> Result<Preflight, PlatformError> {
        Ok(Preflight::Passed)
    }
    fn start_activator(&self, _: Generation) -> Result<(), PlatformError> {
        self.starts.send(()).map_err(|_| PlatformError::Other("no activator".into()))
    }
    fn activator_begins(&self) {}
    fn activator_ends(&self) {}
    fn activate(&self, _: &StorePath, _: Action, _: Way, _: Duration) -> Result<Finished, PlatformError> {
        Err(PlatformError::Other("the activator is another process".into()))
    }
    fn outcome(&self, _: &Finished) -> Outcome {
        Outcome::Done
    }
    fn script(&self, system: &StorePath) -> PathBuf {
        self.layout.physical(system)
    }
    fn ensure_agent(&self, _: Option<&StorePath>, _: &StorePath) {}
    fn busy(&self) -> Result<Option<String>, PlatformError> {
        Ok(None)
    }
    fn on_battery(&self) -> Option<u8> {
        None
    }
    fn metered(&self) -> bool {
        false
    }
    fn free_memory(&self) -> Option<u64> {
        None
    }
    fn reboot(&self) -> Result<(), PlatformError> {
        Ok(())
    }
    fn service(&self, _: &str) -> Result<(), String> {
        Ok(())
    }
}

/// What Nix does, as far as a controller can influence it: what its cache delivers is checked, and everything
/// else succeeds.
pub struct Cache {
    pub weak: Option<Weak>,
}

impl Store for Cache {
    fn fetch<'a>(
        &'a self,
        derivation: &'a StorePath,
        client: &'a Client,
        _: &'a mut dyn Listener,
    ) -> LocalBoxFuture<'a, Result<(), NixError>> {
        async move {
            let failed = |message: String| NixError::Fetch { derivation: derivation.clone(), message };
            let path = format!("{}/{}", api::CACHE, derivation.name());
            let found = client.get(&path, 1 << 20).await.map_err(|error| failed(error.to_string()))?;
            let found = found.ok_or_else(|| failed("the cache does not have it".into()))?;
            if found == format!("the derivation of {derivation}").into_bytes() {
                return Ok(());
            }
            let detail = "hash mismatch".to_owned();
            if self.weak == Some(Weak::HoldsLiesAgainstDerivations) {
                return Err(NixError::Derivation { path: derivation.clone(), detail });
            }
            Err(NixError::Altered { derivation: derivation.clone(), detail })
        }
        .boxed_local()
    }

    fn realise<'a>(
        &'a self,
        target: &'a Target,
        _: &'a Client,
        _: &'a std::path::Path,
        _: BuildLimits,
        _: &'a mut dyn Listener,
    ) -> LocalBoxFuture<'a, Result<StorePath, NixError>> {
        async move {
            tokio::time::sleep(Duration::from_secs(20)).await;
            Ok(target.output.clone())
        }
        .boxed_local()
    }

    fn closure_change<'a>(
        &'a self,
        _: &'a StorePath,
        _: &'a StorePath,
    ) -> LocalBoxFuture<'a, Result<ClosureChange, NixError>> {
        async { Ok(ClosureChange::default()) }.boxed_local()
    }

    fn profile_generations(&self) -> Vec<ProfileGeneration> {
        Vec::new()
    }

    fn forget_generations(&self, _: &[u64]) -> Result<(), NixError> {
        Ok(())
    }
}
