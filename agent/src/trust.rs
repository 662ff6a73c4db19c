//! Refreshes the trusted metadata: drives the verifying core over stored files and the controller.
//!
//! Nothing is stored before it is verified, and nothing is used before it is stored. A refusal leaves the
//! machine on the generation that it holds.

use std::io;
use std::path::{Path, PathBuf};

use muster_protocol::api;
use muster_protocol::checkin::{Files, Holds};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, System};
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
const TARGET: &str = "generation.json";
/// Stored files were verified when they were written; a longer one was not written by the agent.
const MAX_STORED_BYTES: u64 = 5 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("the controller's answer was refused: {0}")]
    Refused(#[from] TufError),
    #[error("{} cannot be read: {source}; {}", path.display(), crate::durable::read_remedy(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be written: {source}; {}", path.display(), crate::durable::remedy(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("the pinned root {} is missing or damaged ({detail}): enrol this machine again with a new token \
        and --replace", path.display())]
    NoRoot { path: PathBuf, detail: String },
}

impl TrustError {
    /// What the refused answer would have been, had it been believed.
    pub fn attack(&self) -> Option<Attack> {
        match self {
            Self::Client(ClientError::TooLarge { .. }) => Some(Attack::EndlessData),
            Self::Refused(error) => error.attack(),
            Self::Client(_) | Self::Read { .. } | Self::Write { .. } | Self::NoRoot { .. } => None,
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
    stored: Stored,
    /// The newest verified target, and the hash of its bytes.
    held: Option<(Target, Sha256)>,
    holds: Holds,
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
        let target = read(TARGET)?;
        let mut trust = Self {
            machine: identity.machine.clone(),
            class: identity.class,
            system: identity.system.clone(),
            lowest: identity.lowest,
            folder,
            stored,
            held: None,
            holds: Holds::default(),
            bent: None,
        };
        // Time does not matter here: expired metadata is still what is held.
        trust.holds = trust.update(0)?.holds();
        // A crash may have come between the root of a new epoch and the removal of the previous epoch.
        trust.leave_earlier_epochs();
        let epoch = trust.holds.epoch;
        trust.held = target.and_then(|bytes| match trust.usable(&bytes, None) {
            Ok(target) if target.generation.epoch() < epoch => None,
            Ok(target) => Some((target, Sha256::of(&bytes))),
            Err(error) => {
                tracing::warn!(%error, "the stored target is not usable; it is fetched again");
                None
            }
        });
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
                self.holds = update.holds();
                if save.file == ROOT {
                    // What the new epoch ends is dropped once the root is durable.
                    self.leave_earlier_epochs();
                    self.remove_left();
                }
            }
        }
        self.holds = update.holds();
        let Some(generation) = update.generation() else { return Ok(None) };
        let name = api::target_name(&self.machine);
        let missing = || TufError::Missing { what: name.clone() };
        let listed = update.listed(&name).ok_or_else(missing)?;
        let hash = listed.hashes.sha256.ok_or_else(missing)?;
        let fits = |(target, held): &(Target, Sha256)| *held == hash && target.generation == generation;
        if !self.held.as_ref().is_some_and(fits) {
            self.take_target(&source, listed, hash, generation).await?;
        }
        Ok(self.held())
    }

    /// One number is one target (I2): operators to whom a generation was hidden may sign another one under
    /// its number, and a machine that accepted both could be sent back and forth between them.
    fn require_same(&self, update: &Update) -> Result<(), TufError> {
        let listed = update.listed(&api::target_name(&self.machine)).and_then(|listed| listed.hashes.sha256);
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
        listed: &Listed,
        hash: Sha256,
        generation: Generation,
    ) -> Result<(), TrustError> {
        let path = api::target_path(&self.machine, &hash);
        let max = listed.length.min(MAX_TARGET_BYTES);
        let bytes =
            source.target(&path, max).await?.ok_or_else(|| TufError::Missing { what: path.clone() })?;
        listed.require_bytes("the target", &bytes)?;
        let target = self.usable(&bytes, Some(generation))?;
        self.write(TARGET, &bytes)?;
        self.held = Some((target, hash));
        Ok(())
    }

    /// The target in these bytes, if it is for this machine and this generation (I1, I6).
    fn usable(&self, bytes: &[u8], generation: Option<Generation>) -> Result<Target, TufError> {
        let target = Target::parse(bytes)?;
        let generation = generation.unwrap_or(target.generation);
        target.require_for(&self.machine, self.class, &self.system, generation)?;
        Ok(target)
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
        self.held.take_if(|(target, _)| target.generation.epoch() < epoch);
    }

    /// Removes what was dropped. It is unused either way, so a failure is only logged.
    fn remove_left(&self) {
        if self.holds.epoch.is_first() {
            return;
        }
        let files = [
            ("timestamp.json", self.stored.timestamp.is_none()),
            ("snapshot.json", self.stored.snapshot.is_none()),
            ("targets.json", self.stored.targets.is_none()),
            (TARGET, self.held.is_none()),
        ];
        for (name, _) in files.into_iter().filter(|(_, is_left)| *is_left) {
            let path = self.folder.join(name);
            if let Err(error) = durable::retire(&path) {
                tracing::warn!(%error, "{} of an earlier epoch cannot be removed", path.display());
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
