//! Sample values for the tests of the decisions.

use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::keys::{PublicKey, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::{Publication, Published};
use muster_protocol::target::Target;
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root};

use super::audit::AuditContext;
use super::rows::Machine;

pub const NOW_S: i64 = 1_800_000_000;
pub const NOW: i64 = NOW_S * 1000;
pub const YEAR: i64 = 365 * 86_400;

pub fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

/// The keys of a fleet, and its first root.
pub struct Fleet {
    pub root_key: SecretKey,
    pub operator: SecretKey,
    pub online: SecretKey,
    pub root: Root,
}

impl Fleet {
    pub fn new() -> Self {
        let (root_key, operator, online) = (key(), key(), key());
        let bytes = signed_root(1, &root_key, &[operator.public()], &online.public());
        Self { root_key, operator, online, root: Root::parse_self_signed(&bytes).unwrap() }
    }

    /// The root of this version, with these operators and this online key.
    pub fn root(&self, version: u64, operators: &[PublicKey], online: &PublicKey) -> Vec<u8> {
        signed_root(version, &self.root_key, operators, online)
    }

    pub fn publication(&self, number: u64) -> Publication {
        sign_generation(&target(number), NOW_S + YEAR, &[&self.operator]).unwrap()
    }
}

fn signed_root(version: u64, root_key: &SecretKey, operators: &[PublicKey], online: &PublicKey) -> Vec<u8> {
    let spec = RootSpec {
        version,
        epoch: Default::default(),
        expires: NOW_S + YEAR,
        root: (vec![root_key.public()], 1),
        operators: (operators.to_vec(), 1),
        online: vec![*online],
    };
    sign_root(&spec, &[root_key]).unwrap()
}

pub fn context(by: &PublicKey) -> AuditContext<'_> {
    AuditContext { operator: by, at: NOW }
}

pub fn name() -> MachineName {
    "cinnabar".parse().unwrap()
}

pub fn generation(number: u64) -> Generation {
    Generation::new(number).unwrap()
}

pub fn target(number: u64) -> Target {
    let path = |digit: char| format!("/nix/store/{}-system", String::from(digit).repeat(32));
    serde_json::from_value(serde_json::json!({
        "machine": name(), "class": "nixos", "generation": number, "system": "x86_64-linux",
        "derivation": format!("{}.drv", path('9')), "output": path('2'),
    }))
    .unwrap()
}

/// An enrolled machine that has never checked in, with this published.
pub fn machine(published: Option<u64>) -> Machine {
    let by = key().public();
    let published = published.map(|number| Published {
        target: target(number),
        at: NOW,
        by,
        expires: i64::MAX,
        signers: vec![],
    });
    Machine {
        name: name(),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        tags: Default::default(),
        has_key: true,
        key: Some(by),
        age: None,
        agent: None,
        enrolled_at: Some(NOW),
        revoked_at: None,
        seen_at: None,
        clock_skew_ms: None,
        clone_alarm_at: None,
        key_rotated_at: None,
        key_rotation_asked_at: None,
        attack: None,
        observed: None,
        outcome: None,
        published,
        generations_forgotten: 0,
        turn: None,
    }
}
