//! The client workflow of TUF 5.3 to 5.6, without I/O; the time is passed in.
//!
//! The caller fetches what [`Update::next`] names, passes it to [`Update::feed`], and makes what that
//! returns durable before going on. With a [`Scope`], nothing of another machine is ever returned, not even
//! a timestamp.

#[cfg(feature = "delegations")]
mod find;

use super::metadata::{Body, Listed, Pin, Role, Root, Signed, Snapshot, Targets, Timestamp};
pub use super::scope::Scope;
#[cfg(feature = "delegations")]
use super::search::{Found, Visit};
pub use super::stored::Stored;
use super::{Result, TufError, require_near, require_no_lower};
use crate::api;
use crate::checkin::Holds;
use crate::ids::{Generation, MachineName};

/// How many new roots one refresh follows (5.3.3); the next refresh continues from there.
pub const MAX_ROOTS: u32 = 256;
const MAX_ROOT_BYTES: u64 = 512 * 1024;
const MAX_TIMESTAMP_BYTES: u64 = 16 * 1024;
const MAX_SNAPSHOT_BYTES: u64 = 2 * 1024 * 1024;
const MAX_TARGETS_BYTES: u64 = 5 * 1024 * 1024;
/// The limit for every file of a machine's own repository, whose snapshot and targets list one file each.
const MAX_SCOPED_BYTES: u64 = 128 * 1024;

/// A file to fetch. Read at most `max_bytes` and one more: that one reveals endless data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fetch {
    /// Its name in the repository, a single path segment. With delegated roles it must be percent-encoded.
    pub file: String,
    /// The most bytes it may have.
    pub max_bytes: u64,
}

/// Verified metadata, to be made durable under this name before going on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Save {
    /// The name without a version.
    pub file: &'static str,
    /// The bytes as they were received.
    pub bytes: Vec<u8>,
}

pub(super) enum Stage {
    Root,
    Timestamp,
    Snapshot(Pin),
    Targets(Pin),
    #[cfg(feature = "delegations")]
    Delegated(Box<Visit>),
    Done,
    /// Something was refused: nothing more is requested, and nothing returned.
    Refused,
}

/// One refresh, from the stored metadata to the current.
pub struct Update {
    pub(super) now: i64,
    scope: Option<Scope>,
    stored: Stored,
    pub(super) stage: Stage,
    root: Root,
    new_roots: u32,
    timestamp: Option<Signed<Timestamp>>,
    pub(super) snapshot: Option<Signed<Snapshot>>,
    pub(super) targets: Option<Signed<Targets>>,
    #[cfg(feature = "delegations")]
    pub(super) found: Found,
}

impl Update {
    /// Starts from the stored metadata at a fixed time, in Unix seconds (5.1, 5.2). Fails if the stored
    /// root is not valid; other stored files that are not count as missing.
    pub fn start(stored: &Stored, scope: Option<Scope>, now_unix_s: i64) -> Result<Self> {
        let mut update = Self {
            now: now_unix_s,
            scope,
            stored: stored.clone(),
            stage: Stage::Root,
            root: Root::parse_self_signed(&stored.root)?,
            new_roots: 0,
            timestamp: None,
            snapshot: None,
            targets: None,
            #[cfg(feature = "delegations")]
            found: Found::default(),
        };
        update.load();
        Ok(update)
    }

    /// What to fetch now, the same until it is fed; `None` at the end.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Option<Fetch> {
        let (file, pin, limit) = match &self.stage {
            Stage::Root => {
                (format!("{}.root.json", self.root.version().saturating_add(1)), None, MAX_ROOT_BYTES)
            }
            Stage::Timestamp => (Role::Timestamp.file().into(), None, MAX_TIMESTAMP_BYTES),
            Stage::Snapshot(pin) => (Role::Snapshot.file().into(), Some(pin), MAX_SNAPSHOT_BYTES),
            Stage::Targets(pin) => (Role::Targets.file().into(), Some(pin), MAX_TARGETS_BYTES),
            #[cfg(feature = "delegations")]
            Stage::Delegated(visit) => (visit.file(), Some(visit.pin()), MAX_TARGETS_BYTES),
            Stage::Done | Stage::Refused => return None,
        };
        let limit = if self.scope.is_some() { limit.min(MAX_SCOPED_BYTES) } else { limit };
        let max_bytes = pin.and_then(|pin| pin.length).map_or(limit, |length| length.min(limit));
        // 6.2
        let versioned = pin.filter(|_| self.root.0.body.consistent_snapshot);
        let file = versioned.map_or(file.clone(), |pin| format!("{}.{file}", pin.version));
        Some(Fetch { file, max_bytes })
    }

    /// Takes the answer to [`Update::next`]: the file's bytes, or `None` where there is no such file. After
    /// an error this refresh is over; what was saved before stays valid.
    pub fn feed(&mut self, answer: Option<&[u8]>) -> Result<Option<Save>> {
        let Some(Fetch { file, max_bytes }) = self.next() else { return Err(TufError::NotAsked) };
        let stage = std::mem::replace(&mut self.stage, Stage::Refused);
        let nothing_held =
            matches!(self.stored, Stored { timestamp: None, snapshot: None, targets: None, .. });
        let bytes = match (answer, &stage) {
            (Some(bytes), _) if bytes.len() as u64 > max_bytes => {
                return Err(TufError::TooLong { what: file, max: max_bytes });
            }
            (Some(bytes), _) => bytes,
            // 5.3.3: usually there is no newer root.
            (None, Stage::Root) => return self.finish_roots().map(|()| None),
            // A machine for which nothing has been published holds nothing, and gets nothing.
            (None, Stage::Timestamp) if self.scope.is_some() && nothing_held => {
                self.stage = Stage::Done;
                return Ok(None);
            }
            (None, _) => return Err(TufError::Missing { what: file }),
        };
        let saved = match stage {
            Stage::Root => self.take_root(bytes).map(|()| Some(Role::Root))?,
            Stage::Timestamp => self.take_timestamp(bytes)?.then_some(Role::Timestamp),
            Stage::Snapshot(pin) => self.take_snapshot(&pin, bytes).map(|()| Some(Role::Snapshot))?,
            Stage::Targets(pin) => self.take_targets(&pin, bytes).map(|()| Some(Role::Targets))?,
            #[cfg(feature = "delegations")]
            Stage::Delegated(visit) => self.take_delegated(*visit, bytes).map(|()| None)?,
            Stage::Done | Stage::Refused => None,
        };
        Ok(saved.map(|role| Save { file: role.file(), bytes: bytes.to_vec() }))
    }

    /// 5.3.3 to 5.3.9. An expired root is followed too: the next one may be fresh.
    fn take_root(&mut self, bytes: &[u8]) -> Result<()> {
        if self.new_roots == MAX_ROOTS {
            return Err(TufError::TooManyRoots(MAX_ROOTS));
        }
        self.root = self.root.successor(bytes)?;
        self.new_roots += 1;
        self.stage = Stage::Root;
        Ok(())
    }

    /// 5.3.10 and 5.3.11.
    fn finish_roots(&mut self) -> Result<()> {
        self.root.0.require_fresh(Role::Root.file(), self.now)?;
        self.load();
        self.stage = Stage::Timestamp;
        Ok(())
    }

    /// Reads the stored metadata as floors against rollback, even where it has expired.
    ///
    /// 5.3.11: where the stored timestamp or snapshot no longer has the signatures that the root requires,
    /// keys were rotated and both are dropped, so that a thief's high version numbers do not block
    /// recovery.
    ///
    /// Metadata of an earlier epoch is no floor: the root holders disowned it.
    fn load(&mut self) {
        if self.scope.is_some() {
            self.stored.leave_epochs_before(self.root.epoch());
        }
        let timestamp = self.stored.timestamp.as_deref().map(|bytes| self.open(bytes));
        let snapshot = self.stored.snapshot.as_deref().map(|bytes| self.open(bytes));
        let targets = self.stored.targets.as_deref().map(|bytes| self.open(bytes));
        let rotated = matches!(timestamp, Some(Err(TufError::Signatures { .. })))
            || matches!(snapshot, Some(Err(TufError::Signatures { .. })));
        self.timestamp = timestamp.and_then(Result::ok).filter(|_| !rotated);
        self.snapshot = snapshot.and_then(Result::ok).filter(|_| !rotated);
        self.targets = targets.and_then(Result::ok);
    }

    /// Reads metadata of a top-level role, signed as the root requires and for this machine.
    fn open<B: Body>(&self, bytes: &[u8]) -> Result<Signed<B>> {
        self.mine(Signed::open(B::ROLE.file(), self.root.authority(B::ROLE), bytes)?)
    }

    fn open_pinned<B: Body>(&self, pin: &Pin, bytes: &[u8]) -> Result<Signed<B>> {
        self.mine(pin.open(B::ROLE.file(), self.root.authority(B::ROLE), bytes, self.now)?)
    }

    fn mine<B: Body>(&self, signed: Signed<B>) -> Result<Signed<B>> {
        self.scope.as_ref().map_or(Ok(()), |scope| scope.require_own(&signed, self.root.epoch()))?;
        Ok(signed)
    }

    /// 5.4. Returns whether it is new.
    fn take_timestamp(&mut self, bytes: &[u8]) -> Result<bool> {
        let what = Role::Timestamp.file();
        let mut new: Signed<Timestamp> = self.open(bytes)?;
        let mut is_new = true;
        if let Some(held) = &self.timestamp {
            require_no_lower(what, new.version(), held.version())?;
            if new.version() == held.version() {
                // 5.4.3.1: nothing new. The held one stays in use, whatever else the other one says.
                (new, is_new) = (held.clone(), false);
            }
        }
        // 5.4.3.2, and the same against the snapshot itself.
        let pinned = self.timestamp.as_ref().map_or(0, |held| held.body.meta.snapshot.version.get());
        let held = self.snapshot.as_ref().map_or(0, Signed::version).max(pinned);
        let pin = new.body.meta.snapshot.clone();
        require_no_lower("the pinned snapshot", pin.version.get(), held)?;
        if let Some(scope) = &self.scope {
            let floor = scope.floor(&self.stored, self.root.epoch())?;
            require_near("the pinned snapshot", pin.version.get(), held.max(floor))?;
        }
        new.require_fresh(what, self.now)?;
        self.timestamp = Some(new);
        // The stored snapshot saves a fetch if it matches the pin.
        let stored = self.stored.snapshot.clone();
        if stored.is_none_or(|bytes| self.take_snapshot(&pin, &bytes).is_err()) {
            self.stage = Stage::Snapshot(pin);
        }
        Ok(is_new)
    }

    /// 5.5.
    fn take_snapshot(&mut self, pin: &Pin, bytes: &[u8]) -> Result<()> {
        let new: Signed<Snapshot> = self.open_pinned(pin, bytes)?;
        let targets = new.body.meta.targets.clone();
        // 5.5.5: no role goes back to an older version, and none disappears.
        if let Some(held) = self.snapshot.as_ref().map(|held| &held.body.meta) {
            require_no_lower(Role::Targets.file(), targets.version.get(), held.targets.version.get())?;
            for (file, held) in &held.delegated {
                let found = new.body.meta.delegated.get(file).map_or(0, |pin| pin.version.get());
                require_no_lower(file, found, held.version.get())?;
            }
        }
        if let Some(scope) = &self.scope {
            let floor = scope.floor(&self.stored, self.root.epoch())?;
            require_no_lower("the generation", targets.version.get(), floor)?;
            require_near("the generation", targets.version.get(), floor)?;
        }
        self.snapshot = Some(new);
        let stored = self.stored.targets.clone();
        if stored.is_none_or(|bytes| self.take_targets(&targets, &bytes).is_err()) {
            self.stage = Stage::Targets(targets);
        }
        Ok(())
    }

    /// 5.6.
    fn take_targets(&mut self, pin: &Pin, bytes: &[u8]) -> Result<()> {
        let new: Signed<Targets> = self.open_pinned(pin, bytes)?;
        self.scope.as_ref().map_or(Ok(()), |scope| scope.require_target(&new).map(|_| ()))?;
        self.targets = Some(new);
        self.stage = Stage::Done;
        Ok(())
    }

    /// What the verified metadata lists for this target, once the refresh is done.
    pub fn listed(&self, path: &str) -> Option<&Listed> {
        let Stage::Done = self.stage else { return None };
        #[cfg(feature = "delegations")]
        if let Some(found) = self.found.get(path) {
            return Some(found);
        }
        self.targets.as_ref()?.body.targets.get(path)
    }

    /// The one target of this machine, once the refresh is done, and whether it has a place in a rollout.
    pub fn listed_of(&self, machine: &MachineName) -> Option<(bool, &Listed)> {
        let gated = self.listed(&api::gated_name(machine)).map(|listed| (true, listed));
        gated.or_else(|| self.listed(&api::target_name(machine)).map(|listed| (false, listed)))
    }

    /// The version of the verified targets, once the refresh is done: the generation's number. `None`:
    /// nothing has been published.
    pub fn targets_version(&self) -> Option<u64> {
        let Stage::Done = self.stage else { return None };
        self.targets.as_ref().map(Signed::version)
    }

    /// The generation of the verified targets, once the refresh of a machine's repository is done.
    pub fn generation(&self) -> Option<Generation> {
        Generation::of(self.root.epoch(), self.targets_version()?).ok()
    }

    /// When the first of the verified targets and snapshot expires, in Unix seconds, whether or not that is
    /// over; `None` where one of them is not held.
    pub fn expires(&self) -> Option<i64> {
        let (targets, snapshot) = (self.targets.as_ref()?, self.snapshot.as_ref()?);
        Some(targets.expires.min(snapshot.expires).as_second())
    }

    /// The name under which a target is served (6.2).
    pub fn target_name(&self, path: &str, hash: &str) -> String {
        match path.rsplit_once('/') {
            _ if !self.root.0.body.consistent_snapshot => path.to_owned(),
            Some((folder, file)) => format!("{folder}/{hash}.{file}"),
            None => format!("{hash}.{path}"),
        }
    }

    /// The versions held now.
    pub fn holds(&self) -> Holds {
        Holds {
            root: self.root.version(),
            timestamp: self.timestamp.as_ref().map_or(0, Signed::version),
            snapshot: self.snapshot.as_ref().map_or(0, Signed::version),
            targets: self.targets.as_ref().map_or(0, Signed::version),
            epoch: self.root.epoch(),
        }
    }
}
