//! The signing side: roots, a machine's generations, and timestamps; and what the server asks before it stores one.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::keyring::Key;
use super::metadata::{MACHINE_FIELD, Role, Root, Signed, Snapshot, Targets};
use super::scope::Scope;
use super::{TufError, canonical};
use crate::api;
use crate::ids::{Generation, MachineName, Sha256};
use crate::keys::{KeyError, PublicKey, SecretKey, Signature};
use crate::machine::Class;
use crate::operator::Publication;
use crate::target::Target;

/// The version of the specification that is written into metadata.
const SPEC_VERSION: &str = "1.0.33";

/// Whoever can sign: a key in memory, or an agent that holds one.
pub trait Signer {
    fn public(&self) -> PublicKey;
    /// Signs exactly these bytes.
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError>;
}

impl Signer for SecretKey {
    fn public(&self) -> PublicKey {
        self.public()
    }
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError> {
        Ok(self.sign_raw(message))
    }
}

/// Which keys hold which role.
#[derive(Debug, Clone)]
pub struct RootSpec {
    pub version: u64,
    /// Unix seconds.
    pub expires: i64,
    /// Keys and threshold of the root itself.
    pub root: (Vec<PublicKey>, u32),
    /// Keys and threshold of targets and snapshot.
    pub operators: (Vec<PublicKey>, u32),
    /// The controller's keys, each of which may sign timestamps.
    pub online: Vec<PublicKey>,
}

/// Makes and signs a root. It must be signed by a threshold of its own root keys; the next version also by a threshold
/// of the keys before it, which [`Root::successor`] checks.
pub fn sign_root(spec: &RootSpec, signers: &[&dyn Signer]) -> Result<Vec<u8>, TufError> {
    let mut keys = BTreeMap::new();
    let mut role = |holders: &[PublicKey], threshold: u32| {
        let ids: BTreeMap<String, PublicKey> = holders.iter().map(|key| (key_id(key), *key)).collect();
        if threshold == 0 || ids.len() < threshold as usize {
            return Err(TufError::RootSpec("a role needs a threshold of 1 or more, and as many keys"));
        }
        keys.extend(ids.iter().map(|(id, key)| (id.clone(), key_json(key))));
        Ok(json!({ "keyids": ids.into_keys().collect::<Vec<_>>(), "threshold": threshold }))
    };
    let roles = json!({
        "root": role(&spec.root.0, spec.root.1)?,
        "targets": role(&spec.operators.0, spec.operators.1)?,
        "snapshot": role(&spec.operators.0, spec.operators.1)?,
        "timestamp": role(&spec.online, 1)?,
    });
    let mut signed = header(Role::Root, spec.version, spec.expires, None)?;
    signed.insert("consistent_snapshot".into(), true.into());
    signed.insert("keys".into(), keys.into_iter().collect());
    signed.insert("roles".into(), roles);
    let bytes = seal(signed, signers)?.into_bytes();
    // What no client would read is not given out.
    Root::parse_self_signed(&bytes)?;
    Ok(bytes)
}

/// Makes and signs a generation: the target, and the targets and snapshot metadata that list it.
pub fn sign_generation(
    target: &Target,
    expires: i64,
    signers: &[&dyn Signer],
) -> Result<Publication, TufError> {
    target.check()?;
    let (machine, generation) = (&target.machine, target.generation);
    let text = serde_json::to_string(target).map_err(|why| TufError::malformed("the target", why))?;
    let mut targets = header(Role::Targets, generation.get(), expires, Some(machine))?;
    targets.insert(
        "targets".into(),
        json!({ api::target_name(machine): {
            "length": text.len(),
            "hashes": { "sha256": Sha256::of(text.as_bytes()).hex() },
            "custom": { "machine": machine, "class": target.class, "generation": generation },
        } }),
    );
    let targets = seal(targets, signers)?;
    let mut snapshot = header(Role::Snapshot, generation.get(), expires, Some(machine))?;
    snapshot.insert("meta".into(), pin(Role::Targets, generation.get(), targets.as_bytes()));
    let snapshot = seal(snapshot, signers)?;
    Ok(Publication { generation, targets, snapshot, target: text })
}

/// Makes and signs a timestamp for these bytes of `N.snapshot.json`.
pub fn sign_timestamp(
    machine: &MachineName,
    snapshot: &[u8],
    version: u64,
    expires: i64,
    signer: &dyn Signer,
) -> Result<Vec<u8>, TufError> {
    let pinned = Signed::<Snapshot>::unverified(snapshot)?;
    pinned.require_machine(machine)?;
    let mut timestamp = header(Role::Timestamp, version, expires, Some(machine))?;
    timestamp.insert("meta".into(), pin(Role::Snapshot, pinned.version(), snapshot));
    Ok(seal(timestamp, &[signer])?.into_bytes())
}

/// A publication that a machine would accept.
#[derive(Debug, Clone)]
pub struct CheckedPublication {
    pub target: Target,
    pub target_sha256: Sha256,
    /// Unix seconds; the earlier of targets and snapshot.
    pub targets_expires: i64,
}

/// Whether the machine will accept this publication, as far as one can tell without its floor.
pub fn check_publication(
    root: &Root,
    machine: &MachineName,
    class: Class,
    publication: &Publication,
    now: i64,
) -> Result<CheckedPublication, TufError> {
    let scope = Scope { machine: machine.clone(), class, lowest: Generation::FIRST };
    let generation = publication.generation;
    let (snapshot_file, targets_file) = (Role::Snapshot.file(), Role::Targets.file());

    let authority = root.authority(Role::Snapshot);
    let snapshot: Signed<Snapshot> = Signed::open(snapshot_file, authority, publication.snapshot.as_bytes())?;
    snapshot.require_machine(machine)?;
    snapshot.require_fresh(snapshot_file, now)?;
    if snapshot.version() != generation.get() || !snapshot.body.meta.delegated.is_empty() {
        return Err(TufError::malformed(snapshot_file, "it must pin targets.json alone, as this generation"));
    }

    let (authority, pin) = (root.authority(Role::Targets), &snapshot.body.meta.targets);
    pin.require_bytes(targets_file, publication.targets.as_bytes())?;
    let targets: Signed<Targets> = Signed::open(targets_file, authority, publication.targets.as_bytes())?;
    targets.require_machine(machine)?;
    targets.require_fresh(targets_file, now)?;
    pin.require_version(targets_file, &targets)?;
    if targets.version() != generation.get() {
        return Err(TufError::malformed(targets_file, "its version is not the generation's number"));
    }

    scope.require_target(&targets)?.require_bytes("the target", publication.target.as_bytes())?;
    let target = Target::parse(publication.target.as_bytes())?;
    target.require_for(machine, class, &target.system, generation)?;
    let expires = targets.expires.min(snapshot.expires).as_second();
    let target_sha256 = Sha256::of(publication.target.as_bytes());
    Ok(CheckedPublication { target, target_sha256, targets_expires: expires })
}

/// What the signing side and the server ask of a root; no machine does.
impl Root {
    pub fn threshold(&self, role: Role) -> u32 {
        self.authority(role).1.threshold.get()
    }
    /// Unix seconds.
    pub fn expires(&self) -> i64 {
        self.0.expires.as_second()
    }
    /// The distinct keys that hold a role.
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

/// The id of a key: the hash of its canonical JSON.
pub fn key_id(key: &PublicKey) -> String {
    // Three texts and no number: this has a canonical form.
    Sha256::of(&canonical::encode(&key_json(key)).unwrap_or_default()).hex()
}

fn key_json(key: &PublicKey) -> Value {
    json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": key.hex() } })
}

fn header(
    role: Role,
    version: u64,
    expires: i64,
    machine: Option<&MachineName>,
) -> Result<Map<String, Value>, TufError> {
    let expires =
        jiff::Timestamp::from_second(expires).map_err(|why| TufError::malformed(role.file(), why))?;
    let mut fields = Map::new();
    fields.insert("_type".into(), role.as_str().into());
    fields.insert("spec_version".into(), SPEC_VERSION.into());
    fields.insert("version".into(), version.into());
    fields.insert("expires".into(), expires.to_string().into());
    if let Some(machine) = machine {
        fields.insert(MACHINE_FIELD.into(), machine.as_str().into());
    }
    Ok(fields)
}

fn pin(role: Role, version: u64, bytes: &[u8]) -> Value {
    let hashes = json!({ "sha256": Sha256::of(bytes).hex() });
    json!({ role.file(): { "version": version, "length": bytes.len(), "hashes": hashes } })
}

fn seal(signed: Map<String, Value>, signers: &[&dyn Signer]) -> Result<String, TufError> {
    let signed = Value::Object(signed);
    let message = canonical::encode(&signed).map_err(|why| TufError::malformed("the metadata", why))?;
    let mut signatures = BTreeMap::new();
    for signer in signers {
        signatures.insert(key_id(&signer.public()), signer.sign_raw(&message)?.hex());
    }
    let signatures: Vec<_> =
        signatures.into_iter().map(|(keyid, sig)| json!({ "keyid": keyid, "sig": sig })).collect();
    Ok(json!({ "signatures": signatures, "signed": signed }).to_string())
}
