//! The signing side: roots, a machine's generations and timestamps, and what the server checks before it
//! stores one.
//!
//! What needs several signatures is drafted unsigned, and each signer adds one ([`add_signature`]).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::keyring::Key;
use super::metadata::{Body, EPOCH_FIELD, MACHINE_FIELD, Role, Root, Signed, Snapshot, Targets};
use super::scope::Scope;
use super::{TufError, canonical, require_epoch, require_near, require_pinned};
use crate::ids::{Epoch, Generation, MAX_NUMBER, MachineName, Sha256};
pub use crate::keys::Signer;
use crate::keys::{PublicKey, written};
use crate::machine::Class;
use crate::operator::Publication;
use crate::target::Target;

/// The version of the specification that metadata states.
const SPEC_VERSION: &str = "1.0.33";
/// The signed field of a root that names its keys, for people only: `{KEY: NAME}`, the key in hexadecimal.
const NAMES_FIELD: &str = "x-muster-names";

/// Which keys hold which role.
#[derive(Debug, Clone)]
pub struct RootSpec {
    /// One above the current root's version; 1 for a new fleet.
    pub version: u64,
    /// The epoch of everything that is signed under it.
    pub epoch: Epoch,
    /// When it expires, in Unix seconds.
    pub expires: i64,
    /// Keys and threshold of the root itself.
    pub root: (Vec<PublicKey>, u32),
    /// Keys and threshold of targets and snapshot.
    pub operators: (Vec<PublicKey>, u32),
    /// The controller's keys, each of which may sign timestamps.
    pub online: Vec<PublicKey>,
}

/// Makes and signs a root. It must be signed by a threshold of its own root keys; the next version also by
/// a threshold of the keys before it, which [`Root::successor`] checks.
pub fn sign_root(spec: &RootSpec, signers: &[&dyn Signer]) -> Result<Vec<u8>, TufError> {
    let draft = Document::parse(&draft_root(spec, &BTreeMap::new())?)?;
    let bytes = draft.signed_by_all(signers)?.into_bytes();
    // A root that no client would read is not returned.
    Root::parse_self_signed(&bytes)?;
    Ok(bytes)
}

/// Makes a root that nobody has signed yet. `names` are for people, by key in hexadecimal.
pub fn draft_root(spec: &RootSpec, names: &BTreeMap<String, String>) -> Result<String, TufError> {
    if spec.online.iter().any(PublicKey::is_security_key) {
        return Err(TufError::RootSpec(
            "the controller's key is a plain one: nobody is there to touch another",
        ));
    }
    let mut keys = BTreeMap::new();
    let mut role = |holders: &[PublicKey], threshold: u32| {
        let ids: BTreeMap<String, PublicKey> = holders.iter().map(|key| (key_id(key), *key)).collect();
        let signers: BTreeSet<&[u8; 32]> = holders.iter().map(PublicKey::as_bytes).collect();
        if signers.len() < ids.len() {
            return Err(TufError::RootSpec("a key is listed both as a plain one and as a security key's"));
        }
        if threshold == 0 || signers.len() < threshold as usize {
            return Err(TufError::RootSpec("a role needs a threshold of 1 or more, and as many keys"));
        }
        keys.extend(ids.iter().map(|(id, key)| (id.clone(), written(key))));
        Ok(json!({ "keyids": ids.into_keys().collect::<Vec<_>>(), "threshold": threshold }))
    };
    let roles = json!({
        "root": role(&spec.root.0, spec.root.1)?,
        "targets": role(&spec.operators.0, spec.operators.1)?,
        "snapshot": role(&spec.operators.0, spec.operators.1)?,
        "timestamp": role(&spec.online, 1)?,
    });
    let mut signed = header(Role::Root, spec.version, spec.epoch, spec.expires)?;
    signed.insert("consistent_snapshot".into(), true.into());
    signed.insert("keys".into(), keys.into_iter().collect());
    signed.insert("roles".into(), roles);
    if !names.is_empty() {
        signed.insert(NAMES_FIELD.into(), json!(names));
    }
    let text = Document::unsigned(signed).text();
    Root::draft(text.as_bytes())?;
    Ok(text)
}

/// The names that a root gives its keys, by key in hexadecimal. They are signed with it, and only for
/// people.
pub fn root_names(root: &[u8]) -> BTreeMap<String, String> {
    let root: Value = serde_json::from_slice(root).unwrap_or_default();
    BTreeMap::deserialize(&root["signed"][NAMES_FIELD]).unwrap_or_default()
}

/// Makes and signs a generation: the target, and the targets and snapshot metadata that list it. `expires`
/// is in Unix seconds.
pub fn sign_generation(
    target: &Target,
    expires: i64,
    signers: &[&dyn Signer],
) -> Result<Publication, TufError> {
    let (text, targets) = unsigned_targets(target, expires)?;
    let targets = targets.signed_by_all(signers)?;
    let meta = pin(Role::Targets, target.generation.get(), targets.as_bytes());
    let snapshot = unsigned_snapshot(target, expires, meta)?.signed_by_all(signers)?;
    Ok(Publication { generation: target.generation, targets, snapshot, target: text })
}

/// Makes a generation that nobody has signed yet; `expires` is in Unix seconds. Its snapshot pins the
/// version of targets alone, since every added signature changes the bytes of targets; both need the same
/// operators' threshold.
pub fn draft_generation(target: &Target, expires: i64) -> Result<Publication, TufError> {
    let (text, targets) = unsigned_targets(target, expires)?;
    let meta = json!({ Role::Targets.file(): { "version": target.generation.get() } });
    let snapshot = unsigned_snapshot(target, expires, meta)?.text();
    let targets = targets.text();
    Ok(Publication { generation: target.generation, targets, snapshot, target: text })
}

/// The target's text, and the metadata that lists it.
fn unsigned_targets(target: &Target, expires: i64) -> Result<(String, Document), TufError> {
    target.check()?;
    let (machine, generation) = (&target.machine, target.generation);
    let text = serde_json::to_string(target).map_err(|why| TufError::malformed("the target", why))?;
    let mut targets = machine_header(Role::Targets, generation.get(), generation.epoch(), expires, machine)?;
    let name = target.listed_as();
    targets.insert(
        "targets".into(),
        json!({ name: {
            "length": text.len(),
            "hashes": { "sha256": Sha256::of(text.as_bytes()).hex() },
            "custom": { "machine": machine, "class": target.class, "generation": generation },
        } }),
    );
    Ok((text, Document::unsigned(targets)))
}

fn unsigned_snapshot(target: &Target, expires: i64, meta: Value) -> Result<Document, TufError> {
    let (version, epoch) = (target.generation.get(), target.generation.epoch());
    let mut snapshot = machine_header(Role::Snapshot, version, epoch, expires, &target.machine)?;
    snapshot.insert("meta".into(), meta);
    Ok(Document::unsigned(snapshot))
}

/// Makes and signs a timestamp for these bytes of `N.snapshot.json`, in its epoch; `expires` is in Unix
/// seconds.
pub fn sign_timestamp(
    machine: &MachineName,
    snapshot: &[u8],
    version: u64,
    expires: i64,
    signer: &dyn Signer,
) -> Result<Vec<u8>, TufError> {
    let pinned = Signed::<Snapshot>::unverified(snapshot)?;
    pinned.require_machine(machine)?;
    let mut timestamp = machine_header(Role::Timestamp, version, pinned.epoch, expires, machine)?;
    timestamp.insert("meta".into(), pin(Role::Snapshot, pinned.version(), snapshot));
    Ok(Document::unsigned(timestamp).signed_by_all(&[signer])?.into_bytes())
}

/// A publication that a machine would accept.
#[derive(Debug, Clone)]
pub struct CheckedPublication {
    /// What was signed.
    pub target: Target,
    /// SHA-256 of the target's bytes.
    pub target_sha256: Sha256,
    /// When the targets or the snapshot expires, whichever is earlier, in Unix seconds.
    pub targets_expires: i64,
    /// The operators who signed the targets; nobody where signatures were not checked.
    pub signers: Vec<PublicKey>,
}

/// The generation of these targets, if a threshold of this root's operators signed them for this machine.
/// They may have expired: a number that was signed is taken.
pub fn signed_generation(root: &Root, machine: &MachineName, targets: &[u8]) -> Result<Generation, TufError> {
    let what = Role::Targets.file();
    let targets: Signed<Targets> = Signed::open(what, root.authority(Role::Targets), targets)?;
    targets.require_machine(machine)?;
    require_epoch(what, targets.epoch, root.epoch())?;
    Generation::of(targets.epoch, targets.version()).map_err(|why| TufError::malformed(what, why))
}

/// Checks that the machine will accept this publication, as far as one can tell without its floor. `now` is
/// in Unix seconds.
pub fn check_publication(
    root: &Root,
    machine: &MachineName,
    class: Class,
    publication: &Publication,
    now: i64,
) -> Result<CheckedPublication, TufError> {
    check((root, true), machine, class, publication, now)
}

/// Like [`check_publication`], without the signatures: for a generation that too few have signed yet.
pub fn check_draft(
    root: &Root,
    machine: &MachineName,
    class: Class,
    publication: &Publication,
    now: i64,
) -> Result<CheckedPublication, TufError> {
    check((root, false), machine, class, publication, now)
}

fn check(
    (root, is_signed): (&Root, bool),
    machine: &MachineName,
    class: Class,
    publication: &Publication,
    now: i64,
) -> Result<CheckedPublication, TufError> {
    type Opened<B> = (Signed<B>, BTreeSet<Vec<u8>>);
    fn open<B: Body>((root, is_signed): (&Root, bool), text: &str) -> Result<Opened<B>, TufError> {
        match is_signed {
            true => Signed::open_by(B::ROLE.file(), root.authority(B::ROLE), text.as_bytes()),
            false => Signed::unverified(text.as_bytes()).map(|signed| (signed, BTreeSet::new())),
        }
    }
    let generation = publication.generation;
    let (epoch, root) = (root.epoch(), (root, is_signed));
    require_epoch("the generation", generation.epoch(), epoch)?;
    let scope = Scope { machine: machine.clone(), class, lowest: Generation::first_of(epoch) };
    let (snapshot_file, targets_file) = (Role::Snapshot.file(), Role::Targets.file());

    let (snapshot, _) = open::<Snapshot>(root, &publication.snapshot)?;
    scope.require_own(&snapshot, epoch)?;
    snapshot.require_fresh(snapshot_file, now)?;
    if snapshot.version() != generation.get() || !snapshot.body.meta.delegated.is_empty() {
        return Err(TufError::malformed(snapshot_file, "it must pin targets.json alone, as this generation"));
    }

    let pin = &snapshot.body.meta.targets;
    pin.require_bytes(targets_file, publication.targets.as_bytes())?;
    let (targets, signed_by) = open::<Targets>(root, &publication.targets)?;
    scope.require_own(&targets, epoch)?;
    targets.require_fresh(targets_file, now)?;
    pin.require_version(targets_file, &targets)?;
    if targets.version() != generation.get() {
        return Err(TufError::malformed(targets_file, "its version is not the generation's number"));
    }

    scope.require_target(&targets)?.require_bytes("the target", publication.target.as_bytes())?;
    let target = Target::parse(publication.target.as_bytes())?;
    target.require_for(machine, class, &target.system, generation)?;
    let found = targets.body.targets.keys().next().map(String::as_str).unwrap_or_default();
    require_pinned(targets_file, found == target.listed_as(), "it lists the target under the other name")?;
    let expires = targets.expires.min(snapshot.expires).as_second();
    let target_sha256 = Sha256::of(publication.target.as_bytes());
    let mut signers = root.0.keys_of(Role::Targets);
    signers.retain(|key| signed_by.contains(&key.as_bytes()[..]));
    Ok(CheckedPublication { target, target_sha256, targets_expires: expires, signers })
}

/// What the signing side and the server need of a root; machines do not.
impl Root {
    /// How many of a role's keys must sign.
    pub fn threshold(&self, role: Role) -> u32 {
        self.authority(role).1.threshold.get()
    }
    /// When it expires, in Unix seconds.
    pub fn expires(&self) -> i64 {
        self.0.expires.as_second()
    }
    /// The distinct keys that hold a role. In a root that no `muster` makes, two of them may be one signer.
    pub fn keys_of(&self, role: Role) -> Vec<PublicKey> {
        let (keys, holders) = self.authority(role);
        let mut found = Vec::new();
        for id in &holders.keyids {
            match keys.0.get(id) {
                Some(Key::Ed25519(key)) if !found.contains(key) => found.push(*key),
                _ => {}
            }
        }
        found
    }
}

/// The key ID: the hash of the key's canonical JSON (4.2).
pub fn key_id(key: &PublicKey) -> String {
    // A few texts and no number, so it has a canonical form.
    Sha256::of(&canonical::encode(&written(key)).unwrap_or_default()).hex()
}

fn machine_header(
    role: Role,
    version: u64,
    epoch: Epoch,
    expires: i64,
    machine: &MachineName,
) -> Result<Map<String, Value>, TufError> {
    let mut fields = header(role, version, epoch, expires)?;
    fields.insert(MACHINE_FIELD.into(), machine.as_str().into());
    Ok(fields)
}

fn header(role: Role, version: u64, epoch: Epoch, expires: i64) -> Result<Map<String, Value>, TufError> {
    // What no machine would accept is not signed.
    require_near(role.file(), version, MAX_NUMBER)?;
    let expires =
        jiff::Timestamp::from_second(expires).map_err(|why| TufError::malformed(role.file(), why))?;
    let mut fields = Map::new();
    fields.insert("_type".into(), role.as_str().into());
    fields.insert("spec_version".into(), SPEC_VERSION.into());
    fields.insert("version".into(), version.into());
    fields.insert("expires".into(), expires.to_string().into());
    if !epoch.is_first() {
        fields.insert(EPOCH_FIELD.into(), epoch.get().into());
    }
    Ok(fields)
}

fn pin(role: Role, version: u64, bytes: &[u8]) -> Value {
    let hashes = json!({ "sha256": Sha256::of(bytes).hex() });
    json!({ role.file(): { "version": version, "length": bytes.len(), "hashes": hashes } })
}

/// Metadata as a signer sees it: what is signed, and the signatures so far, by key ID.
struct Document {
    signed: Value,
    signatures: BTreeMap<String, String>,
}

impl Document {
    fn unsigned(signed: Map<String, Value>) -> Self {
        Self { signed: Value::Object(signed), signatures: BTreeMap::new() }
    }

    fn parse(text: &str) -> Result<Self, TufError> {
        #[derive(Deserialize)]
        struct Raw {
            signed: Value,
            signatures: Vec<Claim>,
        }
        #[derive(Deserialize)]
        struct Claim {
            keyid: String,
            sig: String,
        }
        let malformed = |why: &dyn std::fmt::Display| TufError::malformed("the metadata", why);
        let raw: Raw = serde_json::from_str(text).map_err(|why| malformed(&why))?;
        let count = raw.signatures.len();
        let signatures: BTreeMap<String, String> =
            raw.signatures.into_iter().map(|claim| (claim.keyid, claim.sig)).collect();
        if signatures.len() < count {
            return Err(malformed(&"two signatures have the same key ID"));
        }
        Ok(Self { signed: raw.signed, signatures })
    }

    /// The bytes that are signed.
    fn message(&self) -> Result<Vec<u8>, TufError> {
        canonical::encode(&self.signed).map_err(|why| TufError::malformed("the metadata", why))
    }

    /// Its text with these signers' signatures added or renewed.
    fn signed_by_all(mut self, signers: &[&dyn Signer]) -> Result<String, TufError> {
        let message = self.message()?;
        for signer in signers {
            let signature = signer.sign_raw(&message)?;
            self.signatures.insert(key_id(&signer.public()), signature.hex());
        }
        Ok(self.text())
    }

    fn text(self) -> String {
        let claims = self.signatures.into_iter().map(|(keyid, sig)| json!({ "keyid": keyid, "sig": sig }));
        let signatures = ("signatures".to_owned(), claims.collect());
        Value::Object([signatures, ("signed".to_owned(), self.signed)].into_iter().collect()).to_string()
    }

    fn is_signed_by(&self, message: &[u8], key: &PublicKey) -> bool {
        let signature = self.signatures.get(&key_id(key)).and_then(|sig| sig.parse().ok());
        signature.is_some_and(|signature| key.verify_raw(message, &signature).is_ok())
    }
}

/// The same document with this signer's signature added or renewed.
pub fn add_signature(document: &str, signer: &dyn Signer) -> Result<String, TufError> {
    Document::parse(document)?.signed_by_all(&[signer])
}

/// Which of these keys have signed a document, in their order; other signatures are ignored. One point under
/// two kinds counts once.
pub fn signed_by(document: &str, keys: &[PublicKey]) -> Result<Vec<PublicKey>, TufError> {
    let document = Document::parse(document)?;
    let message = document.message()?;
    let mut good: Vec<PublicKey> = Vec::new();
    for key in keys {
        if !good.iter().any(|found| found.is_same_signer(key)) && document.is_signed_by(&message, key) {
            good.push(*key);
        }
    }
    Ok(good)
}

/// A document with its own signatures and those of another copy, as far as they are valid and by these
/// keys.
pub fn merge_signatures(document: &str, copy: &str, keys: &[PublicKey]) -> Result<String, TufError> {
    let (mut document, copy) = (Document::parse(document)?, Document::parse(copy)?);
    let message = document.message()?;
    super::require_pinned("the metadata", message == copy.message()?, "it says something else")?;
    let mut signatures = BTreeMap::new();
    for key in keys {
        let source = [&document, &copy].into_iter().find(|source| source.is_signed_by(&message, key));
        if let Some(signature) = source.and_then(|source| source.signatures.get(&key_id(key))) {
            signatures.insert(key_id(key), signature.clone());
        }
    }
    document.signatures = signatures;
    Ok(document.text())
}

impl Root {
    /// Reads a root that is still being signed; nothing may be trusted because of it.
    pub fn draft(bytes: &[u8]) -> Result<Self, TufError> {
        Signed::unverified(bytes).map(Self)
    }
}

/// The bytes of a document that its signatures cover, whoever signed it.
pub fn signed_bytes(document: &str) -> Result<Vec<u8>, TufError> {
    Document::parse(document)?.message()
}
