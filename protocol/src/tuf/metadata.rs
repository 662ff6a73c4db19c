//! The four kinds of metadata, checked for form when they are parsed (TUF 4).

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde_json::Value;
use sha2::Digest as _;

use super::delegation::Delegation;
use super::keyring::{Authority, KeyRing, RawKey, RawRole};
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
        match self {
            Self::Root => "root",
            Self::Timestamp => "timestamp",
            Self::Snapshot => "snapshot",
            Self::Targets => "targets",
        }
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
pub(super) struct Envelope {
    pub(super) signed: Value,
    pub(super) message: Vec<u8>,
    pub(super) signatures: BTreeMap<String, String>,
}

impl Envelope {
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Self, TufError> {
        #[derive(Deserialize)]
        struct Raw {
            signed: Value,
            signatures: Vec<RawSignature>,
        }
        #[derive(Deserialize)]
        struct RawSignature {
            keyid: String,
            sig: String,
        }
        let raw: Raw = serde_json::from_slice(bytes).map_err(|why| TufError::malformed(what, why))?;
        if raw.signatures.len() > MAX_SIGNATURES {
            return Err(TufError::malformed(
                what,
                format!("it carries more than {MAX_SIGNATURES} signatures"),
            ));
        }
        let mut signatures = BTreeMap::new();
        for signature in raw.signatures {
            // 4.2: a key id stands at most once.
            if signatures.insert(signature.keyid, signature.sig).is_some() {
                return Err(TufError::malformed(what, "two signatures go by the same key id"));
            }
        }
        let message = canonical::encode(&raw.signed).map_err(|why| TufError::malformed(what, why))?;
        Ok(Self { signed: raw.signed, message, signatures })
    }
}

/// What every role says.
#[derive(Debug, Clone)]
pub(super) struct Header {
    pub(super) version: u64,
    pub(super) expires: jiff::Timestamp,
    pub(super) machine: Option<String>,
}

impl Header {
    fn parse(what: &str, role: Role, signed: &Value) -> Result<Self, TufError> {
        #[derive(Deserialize)]
        struct Raw {
            _type: String,
            spec_version: String,
            version: u64,
            expires: jiff::Timestamp,
            #[serde(rename = "x-muster-machine")]
            machine: Option<String>,
        }
        let raw: Raw = Raw::deserialize(signed).map_err(|why| TufError::malformed(what, why))?;
        if raw._type != role.as_str() {
            return Err(TufError::malformed(what, format!("it says that it is '{}'", raw._type)));
        }
        // 4.3: another major version may mean other things by the same words.
        if raw.spec_version.split('.').next() != Some("1") {
            let why = format!("it follows version '{}' of the specification; this is 1.0", raw.spec_version);
            return Err(TufError::malformed(what, why));
        }
        if raw.version == 0 {
            return Err(TufError::malformed(what, "versions begin at 1"));
        }
        Ok(Self { version: raw.version, expires: raw.expires, machine: raw.machine })
    }
    /// What metadata says of itself, whoever wrote it.
    pub(super) fn unverified(role: Role, bytes: &[u8]) -> Result<Self, TufError> {
        Self::parse(role.file(), role, &Envelope::parse(role.file(), bytes)?.signed)
    }
    /// A machine's metadata says whose it is.
    pub(super) fn require_machine(&self, what: &str, machine: &MachineName) -> Result<(), TufError> {
        if self.machine.as_deref() == Some(machine.as_str()) {
            return Ok(());
        }
        let (what, wanted, found) = (what.to_owned(), machine.clone(), self.machine.clone());
        Err(TufError::ForeignMachine { what, wanted, found })
    }
    /// Refuses what has expired at the time of the refresh: a frozen repository (5.3.10, 5.4.4, 5.5.6, 5.6.5).
    pub(super) fn require_fresh(&self, what: &str, now: i64) -> Result<(), TufError> {
        if self.expires.as_second() > now {
            Ok(())
        } else {
            Err(TufError::Expired { what: what.to_owned(), expires: self.expires })
        }
    }
}

/// Metadata of a role below root, behind its header.
pub(super) trait Body: Sized {
    const ROLE: Role;
    fn parse(what: &str, header: Header, signed: &Value) -> Result<Self, TufError>;
    fn header(&self) -> &Header;
}

/// Reads metadata that a threshold of `authority` signed; nothing of it is looked at before that is sure.
pub(super) fn open<B: Body>(what: &str, authority: &Authority, bytes: &[u8]) -> Result<B, TufError> {
    let envelope = Envelope::parse(what, bytes)?;
    authority.verify(what, &envelope)?;
    let header = Header::parse(what, B::ROLE, &envelope.signed)?;
    B::parse(what, header, &envelope.signed)
}

/// The fleet's anchor: which keys hold which role.
#[derive(Clone)]
pub struct Root {
    header: Header,
    /// In the order of [`Role::ALL`].
    roles: [Authority; 4],
    pub(super) consistent_snapshot: bool,
}

impl Root {
    /// Reads a root that a threshold of its own root keys signed.
    pub fn parse_self_signed(bytes: &[u8]) -> Result<Self, TufError> {
        let what = Role::Root.file();
        let envelope = Envelope::parse(what, bytes)?;
        let root = Self::parse(what, &envelope)?;
        root.authority(Role::Root).verify(what, &envelope)?;
        Ok(root)
    }

    /// Reads the next root: signed by a threshold of this one's keys and of its own (5.3.4), and one version on (5.3.5).
    pub fn successor(&self, bytes: &[u8]) -> Result<Self, TufError> {
        let what = Role::Root.file();
        let envelope = Envelope::parse(what, bytes)?;
        self.authority(Role::Root).verify(what, &envelope)?;
        let next = Self::parse(what, &envelope)?;
        next.authority(Role::Root).verify(what, &envelope)?;
        if next.version() <= self.version() {
            return Err(TufError::Rollback {
                what: what.into(),
                found: next.version(),
                held: self.version(),
            });
        }
        if Some(next.version()) != self.version().checked_add(1) {
            let why = format!("it is version {} and follows {}", next.version(), self.version());
            return Err(TufError::NotThePinned { what: what.into(), why });
        }
        Ok(next)
    }

    fn parse(what: &str, envelope: &Envelope) -> Result<Self, TufError> {
        #[derive(Deserialize)]
        struct Raw {
            keys: BTreeMap<String, RawKey>,
            roles: BTreeMap<String, RawRole>,
            #[serde(default)]
            consistent_snapshot: bool,
        }
        let header = Header::parse(what, Role::Root, &envelope.signed)?;
        let raw = Raw::deserialize(&envelope.signed).map_err(|why| TufError::malformed(what, why))?;
        let ring = KeyRing::parse(what, &raw.keys)?;
        let authority = |role: Role| match raw.roles.get(role.as_str()) {
            Some(holders) => ring.authority(what, holders),
            None => Err(TufError::malformed(what, format!("it gives nobody the role {role}"))),
        };
        let [root, timestamp, snapshot, targets] = Role::ALL.map(authority);
        let roles = [root?, timestamp?, snapshot?, targets?];
        Ok(Self { header, roles, consistent_snapshot: raw.consistent_snapshot })
    }

    pub fn version(&self) -> u64 {
        self.header.version
    }
    /// Unix seconds.
    pub fn expires(&self) -> i64 {
        self.header.expires.as_second()
    }
    pub fn threshold(&self, role: Role) -> u32 {
        self.authority(role).threshold
    }
    pub fn keys_of(&self, role: Role) -> Vec<PublicKey> {
        self.authority(role).ed25519_keys()
    }
    pub(super) fn header(&self) -> &Header {
        &self.header
    }
    pub(super) fn authority(&self, role: Role) -> &Authority {
        &self.roles[role as usize]
    }
    /// The name under which a version of `file` is served (6.2).
    pub(super) fn versioned(&self, version: u64, file: &str) -> String {
        if self.consistent_snapshot { format!("{version}.{file}") } else { file.to_owned() }
    }
}

/// Hashes of a file. At least one is known here, or there is none at all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hashes {
    pub sha256: Option<Sha256>,
    pub sha512: Option<[u8; 64]>,
}

impl Hashes {
    fn parse(what: &str, raw: &BTreeMap<String, String>) -> Result<Self, TufError> {
        let bad = || TufError::malformed(what, "it lists a hash that is none");
        let sha256 = raw.get("sha256").map(|text| from_hex(text).ok_or_else(bad)).transpose()?;
        let sha512 = raw.get("sha512").map(|text| from_hex(text).ok_or_else(bad)).transpose()?;
        if sha256.is_none() && sha512.is_none() {
            return Err(TufError::malformed(what, "it lists no hash of a kind known here"));
        }
        Ok(Self { sha256: sha256.map(Sha256::from_bytes), sha512 })
    }
    fn fit(&self, bytes: &[u8]) -> bool {
        self.sha256.is_none_or(|hash| hash == Sha256::of(bytes))
            && self.sha512.is_none_or(|hash| hash[..] == sha2::Sha512::digest(bytes)[..])
    }
}

/// What signed metadata says of another metadata file (4.4).
#[derive(Debug, Clone)]
pub(super) struct Pin {
    pub(super) version: u64,
    pub(super) length: Option<u64>,
    hashes: Hashes,
}

#[derive(Deserialize)]
struct RawPin {
    version: u64,
    length: Option<u64>,
    hashes: Option<BTreeMap<String, String>>,
}

impl Pin {
    fn parse(what: &str, raw: &RawPin) -> Result<Self, TufError> {
        if raw.version == 0 {
            return Err(TufError::malformed(what, "versions begin at 1"));
        }
        let hashes = raw.hashes.as_ref().map(|hashes| Hashes::parse(what, hashes)).transpose()?;
        Ok(Self { version: raw.version, length: raw.length, hashes: hashes.unwrap_or_default() })
    }
    /// Whether these are the pinned bytes, before anything in them is believed (5.5.2, 5.6.2).
    pub(super) fn require_bytes(&self, what: &str, bytes: &[u8]) -> Result<(), TufError> {
        let why = match self.length {
            Some(length) if length != bytes.len() as u64 => "its length differs",
            _ if !self.hashes.fit(bytes) => "its hash differs",
            _ => return Ok(()),
        };
        Err(TufError::NotThePinned { what: what.to_owned(), why: why.into() })
    }
    /// 5.5.4, 5.6.4.
    pub(super) fn require_version(&self, what: &str, version: u64) -> Result<(), TufError> {
        if version == self.version {
            return Ok(());
        }
        let why = format!("version {} is pinned, and it is version {version}", self.version);
        Err(TufError::NotThePinned { what: what.to_owned(), why })
    }
}

/// That a snapshot is current.
#[derive(Clone)]
pub(super) struct Timestamp {
    header: Header,
    pub(super) snapshot: Pin,
}

impl Body for Timestamp {
    const ROLE: Role = Role::Timestamp;
    fn parse(what: &str, header: Header, signed: &Value) -> Result<Self, TufError> {
        let snapshot = pins(what, signed)?.remove(Role::Snapshot.file());
        let snapshot = snapshot.ok_or_else(|| TufError::malformed(what, "it names no snapshot"))?;
        Ok(Self { header, snapshot })
    }
    fn header(&self) -> &Header {
        &self.header
    }
}

/// Which versions of targets metadata belong together.
pub(super) struct Snapshot {
    header: Header,
    pub(super) targets: Pin,
    pub(super) meta: BTreeMap<String, Pin>,
}

impl Body for Snapshot {
    const ROLE: Role = Role::Snapshot;
    fn parse(what: &str, header: Header, signed: &Value) -> Result<Self, TufError> {
        let meta = pins(what, signed)?;
        let targets = meta.get(Role::Targets.file()).cloned();
        let targets = targets.ok_or_else(|| TufError::malformed(what, "it names no targets"))?;
        Ok(Self { header, targets, meta })
    }
    fn header(&self) -> &Header {
        &self.header
    }
}

fn pins(what: &str, signed: &Value) -> Result<BTreeMap<String, Pin>, TufError> {
    #[derive(Deserialize)]
    struct Raw {
        meta: BTreeMap<String, RawPin>,
    }
    let raw = Raw::deserialize(signed).map_err(|why| TufError::malformed(what, why))?;
    raw.meta.into_iter().map(|(name, pin)| Ok((name, Pin::parse(what, &pin)?))).collect()
}

/// What signed metadata says of one target file (4.5).
#[derive(Debug, Clone)]
pub struct Listed {
    pub length: u64,
    pub hashes: Hashes,
    pub(super) custom: Option<Value>,
}

impl Listed {
    /// Whether these are the signed bytes (5.7.2).
    pub fn require_bytes(&self, what: &str, bytes: &[u8]) -> Result<(), TufError> {
        if bytes.len() as u64 > self.length {
            return Err(TufError::TooLong { what: what.to_owned(), max: self.length });
        }
        let why = match () {
            () if bytes.len() as u64 != self.length => "its length differs",
            () if !self.hashes.fit(bytes) => "its hash differs",
            () => return Ok(()),
        };
        Err(TufError::NotThePinned { what: what.to_owned(), why: why.into() })
    }
}

/// Target files, and who else may list some.
pub(super) struct Targets {
    header: Header,
    pub(super) targets: BTreeMap<String, Listed>,
    pub(super) delegations: Vec<Delegation>,
}

impl Body for Targets {
    const ROLE: Role = Role::Targets;
    fn parse(what: &str, header: Header, signed: &Value) -> Result<Self, TufError> {
        #[derive(Deserialize)]
        struct Raw {
            targets: BTreeMap<String, RawListed>,
            delegations: Option<Value>,
        }
        #[derive(Deserialize)]
        struct RawListed {
            length: u64,
            hashes: BTreeMap<String, String>,
            custom: Option<Value>,
        }
        let raw = Raw::deserialize(signed).map_err(|why| TufError::malformed(what, why))?;
        let mut targets = BTreeMap::new();
        for (path, listed) in raw.targets {
            let hashes = Hashes::parse(what, &listed.hashes)?;
            targets.insert(path, Listed { length: listed.length, hashes, custom: listed.custom });
        }
        let delegations = raw.delegations.as_ref().map(|value| Delegation::parse_all(what, value));
        Ok(Self { header, targets, delegations: delegations.transpose()?.unwrap_or_default() })
    }
    fn header(&self) -> &Header {
        &self.header
    }
}
