//! The four kinds of metadata, checked for form when they are parsed (TUF 4).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::num::NonZeroU64;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::Digest as _;

use super::delegation::Delegations;
use super::keyring::{Authority, Key, RawRole};
use super::{TufError, canonical};
use crate::ids::{MachineName, Sha256, from_hex};
use crate::keys::PublicKey;

/// The signed field that names the machine that metadata is for.
pub const MACHINE_FIELD: &str = "x-muster-machine";
/// The most signatures that one document may carry.
const MAX_SIGNATURES: usize = 256;

/// The top-level roles.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Root,
    Timestamp,
    Snapshot,
    Targets,
}

impl Role {
    pub const ALL: [Self; 4] = [Self::Root, Self::Timestamp, Self::Snapshot, Self::Targets];

    pub fn as_str(self) -> &'static str {
        self.file().trim_end_matches(".json")
    }
    /// The file's name without a version, as it is stored and as the metadata speaks of it.
    pub fn file(self) -> &'static str {
        match self {
            Self::Root => "root.json",
            Self::Timestamp => "timestamp.json",
            Self::Snapshot => "snapshot.json",
            Self::Targets => "targets.json",
        }
    }
}
impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A document as it was received: what is signed, the bytes that the signatures are over, and who claims to have signed.
#[derive(Deserialize)]
pub(super) struct Envelope {
    signed: Value,
    pub(super) signatures: Vec<Claim>,
    #[serde(skip)]
    pub(super) message: Vec<u8>,
}

/// Somebody's word that this key signed.
#[derive(Deserialize)]
pub(super) struct Claim {
    pub(super) keyid: String,
    pub(super) sig: String,
}

impl Envelope {
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Self, TufError> {
        let mut envelope: Self =
            serde_json::from_slice(bytes).map_err(|why| TufError::malformed(what, why))?;
        if envelope.signatures.len() > MAX_SIGNATURES {
            return Err(TufError::malformed(
                what,
                format!("it carries more than {MAX_SIGNATURES} signatures"),
            ));
        }
        // 4.2: a key id stands at most once.
        let ids: BTreeSet<_> = envelope.signatures.iter().map(|claim| &claim.keyid).collect();
        if ids.len() < envelope.signatures.len() {
            return Err(TufError::malformed(what, "two signatures go by the same key id"));
        }
        envelope.message =
            canonical::encode(&envelope.signed).map_err(|why| TufError::malformed(what, why))?;
        Ok(envelope)
    }

    /// What it says, whoever signed it.
    fn read<B: Body>(&self, what: &str) -> Result<Signed<B>, TufError> {
        let header = Header::deserialize(&self.signed).map_err(|why| TufError::malformed(what, why))?;
        if header.kind != B::ROLE.as_str() {
            return Err(TufError::malformed(what, format!("it says that it is '{}'", header.kind)));
        }
        // 4.3: another major version may mean other things by the same words.
        if header.spec_version.split('.').next() != Some("1") {
            let why =
                format!("it follows version '{}' of the specification; this is 1.0", header.spec_version);
            return Err(TufError::malformed(what, why));
        }
        let body = B::deserialize(&self.signed).map_err(|why| TufError::malformed(what, why))?;
        Ok(Signed { header, body })
    }
}

/// What every role says.
#[derive(Clone, Deserialize)]
pub(super) struct Header {
    #[serde(rename = "_type")]
    kind: String,
    spec_version: String,
    pub(super) version: NonZeroU64,
    pub(super) expires: jiff::Timestamp,
    #[serde(rename = "x-muster-machine")]
    pub(super) machine: Option<String>,
}

/// What one role says.
pub(super) trait Body: DeserializeOwned {
    const ROLE: Role;
}

/// Metadata of one role.
#[derive(Clone)]
pub(super) struct Signed<B> {
    pub(super) header: Header,
    pub(super) body: B,
}

impl<B: Body> Signed<B> {
    /// Reads metadata that a threshold of `authority` signed; nothing of it is looked at before that is sure.
    pub(super) fn open(what: &str, authority: &Authority, bytes: &[u8]) -> Result<Self, TufError> {
        let envelope = Envelope::parse(what, bytes)?;
        authority.verify(what, &envelope)?;
        envelope.read(what)
    }
    /// Reads metadata that was verified before, or that somebody else will verify.
    pub(super) fn unverified(bytes: &[u8]) -> Result<Self, TufError> {
        Envelope::parse(B::ROLE.file(), bytes)?.read(B::ROLE.file())
    }
    pub(super) fn version(&self) -> u64 {
        self.header.version.get()
    }
    /// A machine's metadata says whose it is.
    pub(super) fn require_machine(&self, machine: &MachineName) -> Result<(), TufError> {
        if self.header.machine.as_deref() == Some(machine.as_str()) {
            return Ok(());
        }
        let (what, wanted, found) = (B::ROLE.file().into(), machine.clone(), self.header.machine.clone());
        Err(TufError::ForeignMachine { what, wanted, found })
    }
    /// Refuses what has expired at the time of the refresh: a frozen repository (5.3.10, 5.4.4, 5.5.6, 5.6.5).
    pub(super) fn require_fresh(&self, what: &str, now: i64) -> Result<(), TufError> {
        if self.header.expires.as_second() > now {
            return Ok(());
        }
        Err(TufError::Expired { what: what.to_owned(), expires: self.header.expires })
    }
}

/// The fleet's anchor: which keys hold which role.
#[derive(Clone)]
pub struct Root(Signed<Holders>);

#[derive(Clone, Deserialize)]
#[serde(try_from = "RawHolders")]
struct Holders {
    /// In the order of [`Role::ALL`].
    roles: [Authority; 4],
    consistent_snapshot: bool,
}

#[derive(Deserialize)]
struct RawHolders {
    keys: BTreeMap<String, Key>,
    roles: RawRoles,
    #[serde(default)]
    consistent_snapshot: bool,
}

#[derive(Deserialize)]
struct RawRoles {
    root: RawRole,
    timestamp: RawRole,
    snapshot: RawRole,
    targets: RawRole,
}

impl Body for Holders {
    const ROLE: Role = Role::Root;
}

impl TryFrom<RawHolders> for Holders {
    type Error = String;
    fn try_from(raw: RawHolders) -> Result<Self, String> {
        let RawRoles { root, timestamp, snapshot, targets } = raw.roles;
        let [root, timestamp, snapshot, targets] =
            [root, timestamp, snapshot, targets].map(|role| Authority::new(&raw.keys, role));
        let roles = [root?, timestamp?, snapshot?, targets?];
        Ok(Self { roles, consistent_snapshot: raw.consistent_snapshot })
    }
}

impl Root {
    /// Reads a root that a threshold of its own root keys signed.
    pub fn parse_self_signed(bytes: &[u8]) -> Result<Self, TufError> {
        let what = Role::Root.file();
        let envelope = Envelope::parse(what, bytes)?;
        let root = Self(envelope.read(what)?);
        root.authority(Role::Root).verify(what, &envelope)?;
        Ok(root)
    }

    /// Reads a root that is still being signed; nothing may be believed by it.
    pub fn draft(bytes: &[u8]) -> Result<Self, TufError> {
        Signed::unverified(bytes).map(Self)
    }

    /// Reads the next root: signed by a threshold of this one's keys and of its own (5.3.4), and one version on (5.3.5).
    pub fn successor(&self, bytes: &[u8]) -> Result<Self, TufError> {
        let what = Role::Root.file();
        self.authority(Role::Root).verify(what, &Envelope::parse(what, bytes)?)?;
        let next = Self::parse_self_signed(bytes)?;
        if next.version() <= self.version() {
            return Err(TufError::Rollback {
                what: what.into(),
                found: next.version(),
                held: self.version(),
            });
        }
        if next.version() - self.version() > 1 {
            let why = format!("it is version {} and follows {}", next.version(), self.version());
            return Err(TufError::NotThePinned { what: what.into(), why });
        }
        Ok(next)
    }

    pub fn version(&self) -> u64 {
        self.0.version()
    }
    /// Unix seconds.
    pub fn expires(&self) -> i64 {
        self.0.header.expires.as_second()
    }
    pub fn threshold(&self, role: Role) -> u32 {
        self.authority(role).threshold.get()
    }
    pub fn keys_of(&self, role: Role) -> Vec<PublicKey> {
        self.authority(role).ed25519_keys()
    }
    pub(super) fn authority(&self, role: Role) -> &Authority {
        &self.0.body.roles[role as usize]
    }
    pub(super) fn require_fresh(&self, now: i64) -> Result<(), TufError> {
        self.0.require_fresh(Role::Root.file(), now)
    }
    /// Whether files carry versions and hashes in their names (6.2).
    pub(super) fn consistent_snapshot(&self) -> bool {
        self.0.body.consistent_snapshot
    }
}

/// Hashes of a file. Those of unknown kinds say nothing here.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Hashes {
    pub sha256: Option<Sha256>,
    pub sha512: Option<Sha512>,
}

/// A SHA-512 hash, written as 128 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Sha512(pub [u8; 64]);

impl TryFrom<String> for Sha512 {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        from_hex(&text).map(Self).ok_or("a SHA-512 hash has 128 lower-case hexadecimal digits")
    }
}

impl Hashes {
    /// Whether all known hashes are of these bytes, and there is one.
    fn fit(&self, bytes: &[u8]) -> bool {
        (self.sha256.is_some() || self.sha512.is_some())
            && self.sha256.is_none_or(|hash| hash == Sha256::of(bytes))
            && self.sha512.is_none_or(|hash| hash.0[..] == sha2::Sha512::digest(bytes)[..])
    }
}

/// What signed metadata says of another metadata file (4.4).
#[derive(Clone, Deserialize)]
pub(super) struct Pin {
    pub(super) version: NonZeroU64,
    pub(super) length: Option<u64>,
    hashes: Option<Hashes>,
}

impl Pin {
    /// Whether these are the pinned bytes, before anything in them is believed (5.5.2, 5.6.2).
    pub(super) fn require_bytes(&self, what: &str, bytes: &[u8]) -> Result<(), TufError> {
        if self.length.is_some_and(|length| length != bytes.len() as u64) {
            return Err(TufError::not_the_pinned(what, "its length differs"));
        }
        if self.hashes.as_ref().is_some_and(|hashes| !hashes.fit(bytes)) {
            return Err(TufError::not_the_pinned(what, "its hash differs"));
        }
        Ok(())
    }
    /// Whether this is the pinned version (5.5.4, 5.6.4).
    pub(super) fn require_version<B>(&self, what: &str, found: &Signed<B>) -> Result<(), TufError> {
        if found.header.version == self.version {
            return Ok(());
        }
        let why = format!("version {} is pinned, and it is version {}", self.version, found.header.version);
        Err(TufError::not_the_pinned(what, why))
    }
}

/// That a snapshot is current.
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

/// Which versions of targets metadata belong together.
#[derive(Deserialize)]
pub(super) struct Snapshot {
    pub(super) meta: SnapshotMeta,
}
#[derive(Deserialize)]
pub(super) struct SnapshotMeta {
    #[serde(rename = "targets.json")]
    pub(super) targets: Pin,
    /// Of delegated roles, by file.
    #[serde(flatten)]
    pub(super) delegated: BTreeMap<String, Pin>,
}
impl Body for Snapshot {
    const ROLE: Role = Role::Snapshot;
}

/// Target files, and who else may list some.
#[derive(Deserialize)]
pub(super) struct Targets {
    pub(super) targets: BTreeMap<String, Listed>,
    pub(super) delegations: Option<Delegations>,
}
impl Body for Targets {
    const ROLE: Role = Role::Targets;
}

/// What signed metadata says of one target file (4.5).
#[derive(Debug, Clone, Deserialize)]
pub struct Listed {
    pub length: u64,
    pub hashes: Hashes,
    pub(super) custom: Option<Value>,
}

impl Listed {
    /// Whether these are the signed bytes (5.7.2).
    pub fn require_bytes(&self, what: &str, bytes: &[u8]) -> Result<(), TufError> {
        let length = bytes.len() as u64;
        if length > self.length {
            return Err(TufError::TooLong { what: what.to_owned(), max: self.length });
        }
        if length < self.length || !self.hashes.fit(bytes) {
            return Err(TufError::not_the_pinned(what, "its length or hash differs"));
        }
        Ok(())
    }
}
