//! The four kinds of metadata, checked for form when parsed (TUF 4).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU64;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::Digest as _;

#[cfg(feature = "delegations")]
use super::delegation::Delegations;
use super::envelope::Envelope;
use super::keyring::{Authority, Holders, Keys, verify};
pub use super::role::Role;
use super::{Result, TufError, canonical, require_epoch, require_form, require_pinned};
use crate::ids::{Epoch, MachineName, Sha256, Sha512};

/// The signed field that names the machine the metadata is for.
pub const MACHINE_FIELD: &str = "x-muster-machine";
/// The signed field that names the epoch; absent in the first one.
pub const EPOCH_FIELD: &str = "x-muster-epoch";
/// What one role says.
pub(super) trait Body: DeserializeOwned {
    const ROLE: Role;
    fn check(&self, _: &str) -> Result<()> {
        Ok(())
    }
}

impl Envelope {
    /// Its content, whoever signed it.
    fn read<B: Body>(&self, what: &str) -> Result<Signed<B>> {
        let says = |field: &str| self.signed[field].as_str().unwrap_or_default();
        let (kind, version) = (says("_type"), says("spec_version"));
        require_form(what, kind == B::ROLE.as_str(), format_args!("it says that it is '{kind}'"))?;
        // 4.3: under another major version the same words may mean other things.
        let why = format_args!("it follows version '{version}' of the specification; this is 1.0");
        require_form(what, version.split('.').next() == Some("1"), why)?;
        let read = Signed::<B>::deserialize(&self.signed).map_err(|why| TufError::malformed(what, why))?;
        read.body.check(what)?;
        Ok(read)
    }
}

/// Metadata of one role: the fields common to all roles, and its own.
#[derive(Clone, Deserialize)]
pub(super) struct Signed<B> {
    version: NonZeroU64,
    pub(super) expires: jiff::Timestamp,
    #[serde(rename = "x-muster-machine")]
    machine: Option<String>,
    #[serde(rename = "x-muster-epoch", default)]
    pub(super) epoch: Epoch,
    #[serde(flatten)]
    pub(super) body: B,
}

impl<B: Body> Signed<B> {
    /// Reads metadata signed by a threshold of these holders; nothing in it is used before that is certain.
    pub(super) fn open(what: &str, authority: Authority<'_>, bytes: &[u8]) -> Result<Self> {
        Self::open_by(what, authority, bytes).map(|(signed, _)| signed)
    }
    /// The same, with the bytes of the keys that signed it.
    pub(super) fn open_by(
        what: &str,
        authority: Authority<'_>,
        bytes: &[u8],
    ) -> Result<(Self, BTreeSet<Vec<u8>>)> {
        let envelope = Envelope::parse(what, bytes)?;
        let signers = verify(authority, what, &envelope)?;
        Ok((envelope.read(what)?, signers))
    }
    /// Reads metadata that was verified before, or that somebody else will verify.
    pub(super) fn unverified(bytes: &[u8]) -> Result<Self> {
        Envelope::parse(B::ROLE.file(), bytes)?.read(B::ROLE.file())
    }
    pub(super) fn version(&self) -> u64 {
        self.version.get()
    }
    /// Requires that a machine's metadata names this machine.
    pub(super) fn require_machine(&self, machine: &MachineName) -> Result<()> {
        let (what, wanted, found) = (B::ROLE.file().into(), machine.clone(), self.machine.clone());
        let own = found.as_deref() == Some(machine.as_str());
        if own { Ok(()) } else { Err(TufError::ForeignMachine { what, wanted, found }) }
    }
    /// Refuses what has expired at the time of the refresh: a frozen repository (5.3.10, 5.4.4, 5.5.6,
    /// 5.6.5).
    pub(super) fn require_fresh(&self, what: &str, now: i64) -> Result<()> {
        let (what, expires) = (what.to_owned(), self.expires);
        if expires.as_second() > now { Ok(()) } else { Err(TufError::Expired { what, expires }) }
    }
}

/// The fleet's anchor: which keys hold which role (TUF 4.3).
#[derive(Clone)]
pub struct Root(pub(super) Signed<RootBody>);

#[derive(Clone, Deserialize)]
pub(super) struct RootBody {
    keys: Keys,
    roles: Roles,
    /// Whether file names carry versions and hashes (6.2).
    #[serde(default)]
    pub(super) consistent_snapshot: bool,
}

#[derive(Clone, Deserialize)]
struct Roles {
    root: Holders,
    timestamp: Holders,
    snapshot: Holders,
    targets: Holders,
}

impl Body for RootBody {
    const ROLE: Role = Role::Root;
}

impl Root {
    /// Reads a root signed by a threshold of its own root keys.
    pub fn parse_self_signed(bytes: &[u8]) -> Result<Self> {
        let what = Role::Root.file();
        let envelope = Envelope::parse(what, bytes)?;
        let root = Self(envelope.read(what)?);
        verify(root.authority(Role::Root), what, &envelope)?;
        Ok(root)
    }

    /// Reads the next root: signed by a threshold of this one's keys and of its own (5.3.4), and one
    /// version on (5.3.5).
    pub fn successor(&self, bytes: &[u8]) -> Result<Self> {
        let what = Role::Root.file();
        verify(self.authority(Role::Root), what, &Envelope::parse(what, bytes)?)?;
        let next = Self::parse_self_signed(bytes)?;
        let (held, found) = (self.version(), next.version());
        if found <= held {
            return Err(TufError::Rollback { what: what.to_owned(), found, held });
        }
        require_pinned(what, found - held == 1, format!("it is version {found} and follows {held}"))?;
        self.require_epoch_of(&next)?;
        Ok(next)
    }

    /// Requires that the next root stays in this epoch or begins the next one: a slip cannot use epochs up,
    /// and what was disowned stays disowned.
    pub fn require_epoch_of(&self, next: &Self) -> Result<()> {
        let begins = self.epoch().next().is_ok_and(|begun| begun == next.epoch());
        if begins { Ok(()) } else { require_epoch(Role::Root.file(), next.epoch(), self.epoch()) }
    }

    /// Counted from 1; `1.root.json` names the fleet.
    pub fn version(&self) -> u64 {
        self.0.version()
    }
    /// The epoch that everything must be signed in to count.
    pub fn epoch(&self) -> Epoch {
        self.0.epoch
    }
    /// Who may sign for a role.
    pub(super) fn authority(&self, role: Role) -> Authority<'_> {
        let RootBody { keys, roles: Roles { root, timestamp, snapshot, targets }, .. } = &self.0.body;
        (keys, [root, timestamp, snapshot, targets][role as usize])
    }
}

/// The hashes of a file. Unknown algorithms are ignored.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Hashes {
    /// SHA-256; Muster's own metadata always has it.
    pub sha256: Option<Sha256>,
    /// SHA-512.
    pub sha512: Option<Sha512>,
}

impl Hashes {
    /// Whether all known hashes match these bytes, and there is at least one.
    fn fit(&self, bytes: &[u8]) -> bool {
        (self.sha256.is_some() || self.sha512.is_some())
            && self.sha256.is_none_or(|hash| hash == Sha256::of(bytes))
            && self.sha512.is_none_or(|hash| hash.0[..] == sha2::Sha512::digest(bytes)[..])
    }
}

/// What signed metadata says about another metadata file (4.4).
#[derive(Clone, Deserialize)]
pub(super) struct Pin {
    pub(super) version: NonZeroU64,
    pub(super) length: Option<u64>,
    hashes: Option<Hashes>,
}

impl Pin {
    /// Reads the metadata that is pinned (5.5, 5.6).
    pub(super) fn open<B: Body>(
        &self,
        what: &str,
        authority: Authority<'_>,
        bytes: &[u8],
        now: i64,
    ) -> Result<Signed<B>> {
        self.require_bytes(what, bytes)?;
        let signed = Signed::open(what, authority, bytes)?;
        self.require_version(what, &signed)?;
        signed.require_fresh(what, now)?;
        Ok(signed)
    }
    /// Requires the pinned bytes, before anything in them is trusted (5.5.2, 5.6.2).
    pub(super) fn require_bytes(&self, what: &str, bytes: &[u8]) -> Result<()> {
        let long = self.length.is_none_or(|length| length == bytes.len() as u64);
        require_pinned(what, long, "its length differs")?;
        require_pinned(what, self.hashes.as_ref().is_none_or(|hashes| hashes.fit(bytes)), "its hash differs")
    }
    /// Requires the pinned version (5.5.4, 5.6.4).
    pub(super) fn require_version<B>(&self, what: &str, found: &Signed<B>) -> Result<()> {
        let (pinned, found) = (self.version, found.version);
        let why = format!("version {pinned} is pinned, and it is version {found}");
        require_pinned(what, found == pinned, why)
    }
}

/// States that a snapshot is current (4.6).
#[derive(Clone, Deserialize)]
pub(super) struct Timestamp {
    pub(super) meta: TimestampMeta,
}
#[derive(Clone, Deserialize)]
pub(super) struct TimestampMeta {
    #[serde(rename = "snapshot.json")]
    pub(super) snapshot: Pin,
}
impl Body for Timestamp {
    const ROLE: Role = Role::Timestamp;
}

/// States which versions of targets metadata belong together (4.4).
#[derive(Deserialize)]
pub(super) struct Snapshot {
    pub(super) meta: SnapshotMeta,
}
#[derive(Deserialize)]
pub(super) struct SnapshotMeta {
    #[serde(rename = "targets.json")]
    pub(super) targets: Pin,
    /// The pins of delegated roles, by file.
    #[serde(flatten)]
    pub(super) delegated: BTreeMap<String, Pin>,
}
impl Body for Snapshot {
    const ROLE: Role = Role::Snapshot;
}

/// A machine's repository must not delegate, so what is inside is not read.
#[cfg(not(feature = "delegations"))]
type Delegations = Value;

/// Target files, and who else may list some (4.5).
#[derive(Deserialize)]
pub(super) struct Targets {
    pub(super) targets: BTreeMap<String, Listed>,
    pub(super) delegations: Option<Delegations>,
}
impl Body for Targets {
    const ROLE: Role = Role::Targets;
    #[cfg(feature = "delegations")]
    fn check(&self, what: &str) -> Result<()> {
        self.delegations.as_ref().map_or(Ok(()), |delegations| delegations.check(what))
    }
}

/// What signed metadata says about one target file (4.5).
#[derive(Debug, Clone, Deserialize)]
pub struct Listed {
    /// Its length in bytes.
    pub length: u64,
    /// Its hashes.
    pub hashes: Hashes,
    #[serde(default, deserialize_with = "canonical::strict")]
    pub(super) custom: Value,
}

impl Listed {
    /// Requires the signed bytes (5.7.2).
    pub fn require_bytes(&self, what: &str, bytes: &[u8]) -> Result<()> {
        if bytes.len() as u64 > self.length {
            return Err(TufError::TooLong { what: what.to_owned(), max: self.length });
        }
        let signed = bytes.len() as u64 == self.length && self.hashes.fit(bytes);
        require_pinned(what, signed, "its length or hash differs")
    }
}
