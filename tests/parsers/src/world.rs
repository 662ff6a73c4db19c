//! A fleet with fixed keys and times, so that an input means the same in every run.

use std::sync::LazyLock;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::{KeyError, Kind, PublicKey, SecretKey, Signature, Touch};
use muster_protocol::machine::Class;
use muster_protocol::operator::Publication;
use muster_protocol::policy::Policy;
use muster_protocol::target::{Action, Target};
use muster_protocol::tuf::canonical;
use muster_protocol::tuf::client::{Scope, Stored};
use muster_protocol::tuf::repository::{
    RootSpec, Signer, key_id, sign_generation, sign_root, sign_timestamp,
};
use serde_json::{Value, json};

/// The time of every run, in Unix seconds.
pub const NOW: i64 = 1_800_000_000;
pub const DAY: i64 = 86_400;
pub const OWN: &str = "cinnabar";
pub const FOREIGN: &str = "realgar";

/// The holders of keys, for [`key`]: two of each kind, then a stranger and the machine.
pub const ROOT: u8 = 0;
pub const OPERATOR: u8 = 2;
pub const ONLINE: u8 = 4;
pub const STRANGER: u8 = 6;
pub const MACHINE: u8 = 7;

/// Made once, so that an input only costs what the parsers cost.
static KEYS: LazyLock<[SecretKey; 8]> =
    LazyLock::new(|| std::array::from_fn(|holder| make_key(holder as u8)));
static FIRST_ROOT: LazyLock<Vec<u8>> =
    LazyLock::new(|| sign_root(&root_spec(), &[&key(ROOT)]).expect("a root"));

pub fn key(holder: u8) -> SecretKey {
    KEYS[usize::from(holder)].clone()
}

/// A private key that is no secret: PKCS#8 around a seed that repeats one byte.
fn make_key(holder: u8) -> SecretKey {
    let mut der = b"\x30\x2e\x02\x01\x00\x30\x05\x06\x03\x2b\x65\x70\x04\x22\x04\x20".to_vec();
    der.extend([holder + 1; 32]);
    let pem = format!("-----BEGIN PRIVATE KEY-----\n{}\n-----END PRIVATE KEY-----\n", STANDARD.encode(der));
    SecretKey::from_pem(&pem).expect("a seed in PKCS#8")
}

/// The same key in a security key, which states a touch and always the same counter.
pub struct Security(pub u8);

impl Signer for Security {
    fn public(&self) -> PublicKey {
        PublicKey::of(Kind::Security, key(self.0).public().as_bytes()).expect("a point")
    }
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError> {
        let [application, message] = [b"ssh:".as_slice(), message].map(Sha256::of);
        let stated = [&application.as_bytes()[..], &[1, 0, 0, 0, 9], message.as_bytes()].concat();
        let touch = Touch { flags: 1, counter: 9 };
        Ok(Signature::of_security_key(*key(self.0).sign_raw(&stated).as_bytes(), touch))
    }
}

/// The keys whose bits are set in `mask`.
pub fn chosen(mask: u8) -> Vec<SecretKey> {
    (0..8).filter(|bit| mask & (1 << bit) != 0).map(key).collect()
}

pub fn signers(keys: &[SecretKey]) -> Vec<&dyn Signer> {
    keys.iter().map(|key| key as &dyn Signer).collect()
}

pub fn root_spec() -> RootSpec {
    RootSpec {
        version: 1,
        epoch: Default::default(),
        expires: NOW + 365 * DAY,
        root: (vec![key(ROOT).public()], 1),
        operators: (vec![key(OPERATOR).public()], 1),
        online: vec![key(ONLINE).public()],
    }
}

pub fn root() -> Vec<u8> {
    FIRST_ROOT.clone()
}

pub fn name(text: &str) -> MachineName {
    text.parse().expect("a machine's name")
}

pub fn target(machine: &str, generation: u64) -> Target {
    Target {
        rollout: None,
        machine: name(machine),
        class: Class::Nixos,
        generation: Generation::new(generation).expect("a generation"),
        system: "x86_64-linux".parse().expect("a system"),
        derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().expect("a path"),
        output: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().expect("a path"),
        action: Action::Switch,
        deadline_seconds: 300,
        checks: vec![],
        trusted_nix_keys: vec![],
        policy: Policy::default(),
        requires: vec![],
        message: None,
        evaluation: Default::default(),
    }
}

pub fn publication(machine: &str, generation: u64, operators: &[SecretKey]) -> Publication {
    sign_generation(&target(machine, generation), NOW + 90 * DAY, &signers(operators)).expect("a generation")
}

pub fn timestamp(machine: &str, snapshot: &[u8], version: u64, online: &SecretKey) -> Option<Vec<u8>> {
    sign_timestamp(&name(machine), snapshot, version, NOW + DAY, online).ok()
}

/// The rules of the machine under test.
pub fn scope() -> Scope {
    Scope { machine: name(OWN), class: Class::Nixos, lowest: Generation::FIRST }
}

/// The disk of a newly enrolled machine.
pub fn enrolled() -> Stored {
    Stored { root: root(), ..Stored::default() }
}

/// A document with signatures by these keys; without any if it has no canonical form.
pub fn sealed(signed: &Value, keys: &[SecretKey]) -> Vec<u8> {
    let claims = canonical::encode(signed).map_or_else(
        |_| vec![],
        |message| {
            let signature = |key: &SecretKey| key.sign_raw(&message).hex();
            let claim = |key: &SecretKey| json!({ "keyid": key_id(&key.public()), "sig": signature(key) });
            keys.iter().map(claim).collect()
        },
    );
    json!({ "signatures": claims, "signed": signed }).to_string().into_bytes()
}
