//! Refreshes the trusted metadata: drives the verifying core over stored files and the controller.
//!
//! Nothing is stored before it is verified, and nothing is used before it is stored. A refusal leaves the
//! machine on the generation that it holds.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use muster_protocol::api;
use muster_protocol::checkin::{Files, Holds};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, System};
use muster_protocol::plan::{MAX_PLAN_BYTES, Place, Plan, PlanError};
use muster_protocol::report::Attack;
use muster_protocol::target::{MAX_TARGET_BYTES, Target};
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::client::{Fetch, Scope, Stored, Update};
use muster_protocol::tuf::metadata::{Listed, Role, Root};

use crate::client::{Client, ClientError};
use crate::config::Config;
use crate::durable;
use crate::identity::Identity;

/// The folder of the metadata in the state folder.
pub const FOLDER: &str = "tuf";
pub const ROOT: &str = "root.json";
/// The target, unless it has a place in a rollout.
const PLAIN: &str = "generation.json";
/// A target that has. An agent that knows of no gates, and takes over in a rollback, does not find it.
const GATED: &str = "gated.json";
/// The plan that the gated target names.
const PLAN: &str = "plan.json";
/// Stored files were verified when they were written; a longer one was not written by the agent.
const MAX_STORED_BYTES: u64 = 5 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the controller's answer was refused: {0}")]
    Refused(#[from] TufError),
    #[error("the plan of its rollout was refused: {0}")]
    Plan(#[from] PlanError),
    #[error("the controller does not have the plan of its rollout")]
    NoPlan,
    #[error("{} cannot be read: {source}; {}", path.display(), crate::durable::read_remedy(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be written: {source}; {}", path.display(), crate::durable::remedy(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("the pinned root {} is missing or damaged ({detail}): enrol this machine again with a new token \
        and --replace", path.display())]
    NoRoot { path: PathBuf, detail: String },
}

impl TrustError {
    /// Whether the plan that was refused is the one that operators signed: no other one comes in its place.
    pub fn is_final(&self) -> bool {
        use PlanError as E;
        matches!(self, Self::Plan(error) if !matches!(error, E::OtherPlan { .. } | E::TooLarge(_)))
    }

    /// What the refused answer would have been, had it been believed.
    pub fn attack(&self) -> Option<Attack> {
        match self {
            Self::Client(ClientError::TooLarge { .. }) => Some(Attack::EndlessData),
            Self::Refused(error) => error.attack(),
            Self::Plan(PlanError::TooLarge(_)) => Some(Attack::EndlessData),
            Self::Plan(
                PlanError::OtherPlan { .. } | PlanError::Foreign(_) | PlanError::NotItsPlace { .. },
            ) => Some(Attack::MixAndMatch),
            Self::Plan(_) => Some(Attack::Malformed),
            Self::NoPlan | Self::Client(_) | Self::Read { .. } | Self::Write { .. } | Self::NoRoot { .. } => {
                None
            }
        }
    }
}

/// What came with a poll's reply, for a machine that trusted this version of the root then.
#[derive(Debug, Clone)]
pub struct Sent {
    pub files: Files,
    pub root: u64,
}

impl Sent {
    /// What the controller would answer to a request for this file of the repository: its bytes, or that
    /// there is none. `None` if only the controller knows.
    fn answer(&self, file: &str) -> Option<Option<&[u8]>> {
        let Files { root, roots, timestamp, snapshot, targets, .. } = &self.files;
        let (version, kind) = match file.split_once('.') {
            Some((number, kind)) => (number.parse::<u64>().ok(), kind),
            None => (None, file),
        };
        match (version, kind) {
            (Some(version), "root.json") if version > *root => Some(None),
            (Some(version), "root.json") => {
                let place = usize::try_from(version.checked_sub(self.root)?.checked_sub(1)?).ok()?;
                roots.get(place).map(|root| Some(root.as_bytes()))
            }
            (None, _) if file == "timestamp.json" => Some(Some(timestamp.as_bytes())),
            (Some(_), "snapshot.json") => Some(Some(snapshot.as_bytes())),
            (Some(_), "targets.json") => Some(Some(targets.as_bytes())),
            _ => None,
        }
    }
}

/// Where a refresh gets its files: from what was sent along, and otherwise from the controller.
struct Source<'a> {
    client: &'a Client,
    sent: Option<&'a Sent>,
}

impl Source<'_> {
    /// A file of the machine's repository, to be checked whoever it comes from.
    async fn file(&self, machine: &MachineName, fetch: &Fetch) -> Result<Option<Vec<u8>>, ClientError> {
        if let Some(answer) = self.sent.and_then(|sent| sent.answer(&fetch.file)) {
            return Ok(answer.map(<[u8]>::to_vec));
        }
        let path = format!("{}/{}", api::tuf_path(machine), fetch.file);
        self.client.get(&path, fetch.max_bytes).await
    }

    async fn target(&self, path: &str, max: u64) -> Result<Option<Vec<u8>>, ClientError> {
        match self.sent {
            Some(sent) => Ok(Some(sent.files.target.as_bytes().to_vec())),
            None => self.client.get(path, max).await,
        }
    }
}

/// The trusted metadata of this machine, and the target that it names.
pub struct Trust {
    folder: PathBuf,
    machine: MachineName,
    class: Class,
    system: System,
    lowest: Generation,
    fleet: Sha256,
    stored: Stored,
    /// The newest verified target, and the hash of its bytes.
    held: Option<(Target, Sha256)>,
    /// The checked plan that it names, if it names one and that is here.
    plan: Option<Arc<Plan>>,
    holds: Holds,
    /// When the signatures over the newest generation expire, in Unix seconds.
    expires: Option<(Generation, i64)>,
    /// Why the files that were sent along were refused.
    bent: Option<TufError>,
}

impl Trust {
    /// Reads what earlier refreshes stored.
    pub fn open(config: &Config, identity: &Identity) -> Result<Self, TrustError> {
        let folder = config.state(FOLDER);
        let read = |name: &str| read(&folder.join(name));
        let stored = Stored {
            root: read(ROOT)?.unwrap_or_default(),
            timestamp: read("timestamp.json")?,
            snapshot: read("snapshot.json")?,
            targets: read("targets.json")?,
        };
        let targets = [(true, read(GATED)?), (false, read(PLAIN)?)];
        let plan = read(PLAN)?;
        let mut trust = Self {
            machine: identity.machine.clone(),
            class: identity.class,
            system: identity.system.clone(),
            lowest: identity.lowest,
            fleet: identity.fleet,
            folder,
            stored,
            held: None,
            plan: None,
            holds: Holds::default(),
            expires: None,
            bent: None,
        };
        // Time does not matter here: expired metadata is still what is held.
        let update = trust.update(0)?;
        trust.note(&update);
        // A crash may have come between the root of a new epoch and the removal of the previous epoch.
        trust.leave_earlier_epochs();
        // A crash may have left both: the newer one counts.
        for (gated, bytes) in targets {
            let newest = trust.held.as_ref().map(|(target, _)| target.generation);
            let Some(read) = bytes.and_then(|bytes| trust.readable(&bytes, gated)) else { continue };
            if newest.is_none_or(|newest| read.0.generation > newest) {
                trust.held = Some(read);
            }
        }
        if let Some(bytes) = plan {
            trust.plan = trust.planned(&bytes).ok().map(Arc::new);
        }
        Ok(trust)
    }

    /// Fetches, verifies and stores what is new at `now` (Unix seconds). Returns the verified target, or
    /// `None` if nothing was published yet.
    pub async fn refresh(&mut self, client: &Client, now: i64) -> Result<Option<Target>, TrustError> {
        self.refresh_by(Source { client, sent: None }, now).await
    }

    /// The same with files that were sent along, which spare the requests for them. They are checked alike.
    /// If they are refused, everything is fetched; [`Trust::take_bent`] tells of the refusal.
    pub async fn refresh_from(
        &mut self,
        client: &Client,
        sent: Option<Sent>,
        now: i64,
    ) -> Result<Option<Target>, TrustError> {
        if let Some(sent) = &sent {
            match self.refresh_by(Source { client, sent: Some(sent) }, now).await {
                Err(TrustError::Refused(error)) => {
                    tracing::warn!("what was sent along with news is refused, and fetched instead: {error}");
                    self.bent = Some(error);
                }
                done => return done,
            }
        }
        self.refresh(client, now).await
    }

    /// Why the files that were sent along were refused, if they were; told once.
    pub fn take_bent(&mut self) -> Option<TufError> {
        self.bent.take()
    }

    async fn refresh_by(&mut self, source: Source<'_>, now: i64) -> Result<Option<Target>, TrustError> {
        self.remove_left();
        let mut update = self.update(now)?;
        while let Some(fetch) = update.next() {
            let answer = source.file(&self.machine, &fetch).await?;
            if let Some(save) = update.feed(answer.as_deref())? {
                if save.file == "targets.json" {
                    self.require_same(&update)?;
                }
                self.write(save.file, &save.bytes)?;
                match save.file {
                    "timestamp.json" => self.stored.timestamp = Some(save.bytes),
                    "snapshot.json" => self.stored.snapshot = Some(save.bytes),
                    "targets.json" => self.stored.targets = Some(save.bytes),
                    _ => self.stored.root = save.bytes,
                }
                self.note(&update);
                if save.file == ROOT {
                    // What the new epoch ends is dropped once the root is durable.
                    self.leave_earlier_epochs();
                    self.remove_left();
                }
            }
        }
        self.note(&update);
        let Some(generation) = update.generation() else { return Ok(None) };
        let missing = || TufError::Missing { what: api::target_name(&self.machine) };
        let (gated, listed) = update.listed_of(&self.machine).ok_or_else(missing)?;
        let hash = listed.hashes.sha256.ok_or_else(missing)?;
        let fits = |(target, held): &(Target, Sha256)| *held == hash && target.generation == generation;
        if !self.held.as_ref().is_some_and(fits) {
            self.take_target(&source, (gated, listed), hash, generation).await?;
        }
        Ok(self.held())
    }

    /// What is held now, and until when its signatures are valid.
    fn note(&mut self, update: &Update) {
        self.holds = update.holds();
        let generation = Generation::of(self.holds.epoch, self.holds.targets).ok();
        self.expires = generation.zip(update.expires());
    }

    /// One number is one target (I2): operators to whom a generation was hidden may sign another one under
    /// its number, and a machine that accepted both could be sent back and forth between them.
    fn require_same(&self, update: &Update) -> Result<(), TufError> {
        let listed = update.listed_of(&self.machine).and_then(|(_, listed)| listed.hashes.sha256);
        let other = |(target, hash): &&(Target, Sha256)| {
            update.generation() == Some(target.generation) && listed != Some(*hash)
        };
        let Some((target, _)) = self.held.as_ref().filter(other) else { return Ok(()) };
        let why = format!("another target was seen as generation {}: sign the next one", target.generation);
        Err(TufError::NotThePinned { what: "targets.json".into(), why })
    }

    async fn take_target(
        &mut self,
        source: &Source<'_>,
        (gated, listed): (bool, &Listed),
        hash: Sha256,
        generation: Generation,
    ) -> Result<(), TrustError> {
        let path = if gated { api::gated_path } else { api::target_path };
        let path = path(&self.machine, &hash);
        let max = listed.length.min(MAX_TARGET_BYTES);
        let bytes =
            source.target(&path, max).await?.ok_or_else(|| TufError::Missing { what: path.clone() })?;
        listed.require_bytes("the target", &bytes)?;
        let target = self.usable(&bytes, gated, Some(generation))?;
        self.write(if gated { GATED } else { PLAIN }, &bytes)?;
        if target.rollout.map(|place| place.plan) != self.place().map(|place| place.plan) {
            self.plan = None;
        }
        self.held = Some((target, hash));
        // A plan may be good for one generation and not for the next.
        if let Some(plan) = self.plan.take() {
            self.plan = self.require_place(&plan).is_ok().then_some(plan);
        }
        self.remove_left();
        Ok(())
    }

    /// The target in these bytes, if it is for this machine and this generation (I1, I6), and listed as what
    /// it is: gated or not.
    fn usable(&self, bytes: &[u8], gated: bool, generation: Option<Generation>) -> Result<Target, TufError> {
        let target = Target::parse(bytes)?;
        let generation = generation.unwrap_or(target.generation);
        target.require_for(&self.machine, self.class, &self.system, generation)?;
        if target.rollout.is_some() == gated {
            return Ok(target);
        }
        let why = if gated { "it has no place in a rollout" } else { "it has a place in a rollout" };
        let what = if gated { api::gated_name(&self.machine) } else { api::target_name(&self.machine) };
        Err(TufError::NotThePinned { what, why: format!("{why}: sign the next generation") })
    }

    /// A stored target, if it can still be used.
    fn readable(&self, bytes: &[u8], gated: bool) -> Option<(Target, Sha256)> {
        match self.usable(bytes, gated, None) {
            Ok(target) if target.generation.epoch() < self.holds.epoch => None,
            Ok(target) => Some((target, Sha256::of(bytes))),
            Err(error) => {
                tracing::warn!(%error, "the stored target is not usable; it is fetched again");
                None
            }
        }
    }

    fn place(&self) -> Option<Place> {
        self.held.as_ref().and_then(|(target, _)| target.rollout)
    }

    /// Whether the target that is held names a plan that is not here yet.
    pub fn lacks_plan(&self) -> bool {
        self.place().is_some() && self.plan.is_none()
    }

    /// The plan of the target that is held, and its hash.
    pub fn plan(&self) -> Option<(Sha256, Arc<Plan>)> {
        Some((self.place()?.plan, self.plan.clone()?))
    }

    /// When the signatures over the newest generation expire, in Unix seconds.
    pub fn expires(&self) -> Option<(Generation, i64)> {
        self.expires
    }

    /// Fetches the plan that the target names, if it is not here. Nothing of it is used before it is stored.
    pub async fn fetch_plan(&mut self, client: &Client) -> Result<(), TrustError> {
        let Some(place) = self.place().filter(|_| self.plan.is_none()) else { return Ok(()) };
        let bytes = client.get(&api::plan_path(&place.plan), MAX_PLAN_BYTES).await?;
        let bytes = bytes.ok_or(TrustError::NoPlan)?;
        let plan = self.planned(&bytes)?;
        self.write(PLAN, &bytes)?;
        self.plan = Some(Arc::new(plan));
        Ok(())
    }

    /// The plan in these bytes, if it is the one that the target names and has the machine where that says.
    fn planned(&self, bytes: &[u8]) -> Result<Plan, PlanError> {
        let wanted = self.place().map_or_else(|| Sha256::of(&[]), |place| place.plan);
        let plan = Plan::parse_named(bytes, wanted)?;
        self.require_place(&plan)?;
        Ok(plan)
    }

    fn require_place(&self, plan: &Plan) -> Result<(), PlanError> {
        let Some((target, place)) = self.held.as_ref().and_then(|(held, _)| Some((held, held.rollout?)))
        else {
            return Err(PlanError::Foreign("target"));
        };
        let root = (&self.fleet, target.generation.epoch());
        plan.require_place(root, &self.machine, &target.output, &place)
    }

    fn update(&self, now: i64) -> Result<Update, TrustError> {
        let (machine, class, lowest) = (self.machine.clone(), self.class, self.lowest);
        Update::start(&self.stored, Some(Scope { machine, class, lowest }), now)
            .map_err(|error| TrustError::NoRoot { path: self.folder.join(ROOT), detail: error.to_string() })
    }

    /// Drops what was signed in an epoch before that of the trusted root: it holds nothing up and is no
    /// longer accepted.
    fn leave_earlier_epochs(&mut self) {
        let epoch = self.holds.epoch;
        self.stored.leave_epochs_before(epoch);
        if self.held.take_if(|(target, _)| target.generation.epoch() < epoch).is_some() {
            self.plan = None;
        }
    }

    /// Removes what was dropped, and the target of the other kind. A failure is only logged: it is tried
    /// again at the next refresh, and what is left is not used.
    fn remove_left(&self) {
        let later = !self.holds.epoch.is_first();
        let gated = self.held.as_ref().map(|(target, _)| target.rollout.is_some());
        let files = [
            ("timestamp.json", later && self.stored.timestamp.is_none()),
            ("snapshot.json", later && self.stored.snapshot.is_none()),
            ("targets.json", later && self.stored.targets.is_none()),
            (PLAIN, gated.map_or(later, |gated| gated)),
            (GATED, gated.map_or(later, |gated| !gated)),
            (PLAN, gated.map_or(later, |gated| !gated)),
        ];
        for (name, _) in files.into_iter().filter(|(_, is_left)| *is_left) {
            let path = self.folder.join(name);
            if path.exists()
                && let Err(error) = durable::retire(&path)
            {
                tracing::warn!(%error, "{} is left over and cannot be removed", path.display());
            }
        }
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), TrustError> {
        let path = self.folder.join(name);
        durable::rewrite(&path, bytes, 0o600).map_err(|source| TrustError::Write { path, source })
    }

    /// The newest verified target.
    pub fn held(&self) -> Option<Target> {
        self.held.as_ref().map(|(target, _)| target.clone())
    }

    /// The keys that may sign requests to this machine: those of the operators' role in the trusted root.
    pub fn operators(&self) -> Vec<PublicKey> {
        Root::parse_self_signed(&self.stored.root).map(|root| root.keys_of(Role::Targets)).unwrap_or_default()
    }

    /// The versions of the metadata that is held.
    pub fn holds(&self) -> Holds {
        self.holds
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, TrustError> {
    durable::read(path, MAX_STORED_BYTES)
        .map_err(|source| TrustError::Read { path: path.to_path_buf(), source })
}
