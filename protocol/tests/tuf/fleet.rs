//! A fleet with its keys, what a controller serves for one machine, and the machine with its disk.

use std::collections::BTreeMap;

use muster_protocol::ids::{Epoch, Generation, MachineName};
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::operator::Publication;
use muster_protocol::report::Attack;
use muster_protocol::target::{Action, Target};
use muster_protocol::tuf::client::{Save, Scope, Stored, Update};
use muster_protocol::tuf::repository::{
    RootSpec, Signer, key_id, sign_generation, sign_root, sign_timestamp,
};
use muster_protocol::tuf::{TufError, canonical};
use serde_json::{Value, json};

/// The default time of the tests, in Unix seconds.
pub const NOW: i64 = 1_800_000_000;
pub const DAY: i64 = 86_400;

pub fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

pub fn signers(keys: &[SecretKey]) -> Vec<&dyn Signer> {
    keys.iter().map(|key| key as &dyn Signer).collect()
}

/// The keys that the people of a fleet hold.
#[derive(Clone)]
pub struct Fleet {
    pub root: Vec<SecretKey>,
    pub operators: Vec<SecretKey>,
    pub threshold: u32,
    pub online: SecretKey,
    pub version: u64,
    pub epoch: Epoch,
    pub expires: i64,
}

impl Fleet {
    pub fn new() -> Self {
        Self {
            root: vec![key()],
            operators: vec![key()],
            threshold: 1,
            online: key(),
            version: 1,
            epoch: Epoch::default(),
            expires: NOW + 365 * DAY,
        }
    }
    pub fn spec(&self) -> RootSpec {
        let public = |keys: &[SecretKey]| keys.iter().map(SecretKey::public).collect::<Vec<_>>();
        RootSpec {
            version: self.version,
            epoch: self.epoch,
            expires: self.expires,
            root: (public(&self.root), self.root.len() as u32),
            operators: (public(&self.operators), self.threshold),
            online: vec![self.online.public()],
        }
    }
    pub fn root_json(&self) -> Vec<u8> {
        sign_root(&self.spec(), &signers(&self.root)).unwrap()
    }
    /// The root after `self`, signed by both roots' keys.
    pub fn next_root(&self, next: &Self) -> Vec<u8> {
        let both: Vec<_> = self.root.iter().chain(&next.root).cloned().collect();
        sign_root(&next.spec(), &signers(&both)).unwrap()
    }
    pub fn publication(&self, target: &Target) -> Publication {
        sign_generation(target, NOW + 90 * DAY, &signers(&self.operators)).unwrap()
    }
    pub fn timestamp(&self, machine: &str, snapshot: &[u8], version: u64) -> Vec<u8> {
        sign_timestamp(&name(machine), snapshot, version, NOW + DAY, &self.online).unwrap()
    }
}

pub fn name(text: &str) -> MachineName {
    text.parse().unwrap()
}

pub fn target(machine: &str, generation: u64) -> Target {
    Target {
        rollout: None,
        machine: name(machine),
        class: Class::Nixos,
        generation: Generation::new(generation).unwrap(),
        system: "x86_64-linux".parse().unwrap(),
        derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().unwrap(),
        output: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap(),
        action: Action::Switch,
        deadline_seconds: 300,
        checks: vec![],
        trusted_nix_keys: vec![],
        policy: muster_protocol::policy::Policy::default(),
        requires: vec![],
        message: Some(format!("generation {generation} of {machine}")),
        evaluation: Default::default(),
    }
}

/// What a controller serves for one machine. An attacker may put anything into `files`.
#[derive(Clone, Default)]
pub struct Served {
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Served {
    /// A repository with this one generation, whose timestamp has the same number.
    pub fn generation(fleet: &Fleet, machine: &str, generation: u64) -> Self {
        let mut served = Self::default();
        served.publish(fleet, machine, generation, 1000 + generation);
        served
    }
    pub fn publish(&mut self, fleet: &Fleet, machine: &str, generation: u64, timestamp: u64) {
        let number = Generation::of(fleet.epoch, generation).unwrap();
        let publication = fleet.publication(&Target { generation: number, ..target(machine, generation) });
        self.put(&format!("{generation}.targets.json"), publication.targets.as_bytes());
        self.put(&format!("{generation}.snapshot.json"), publication.snapshot.as_bytes());
        self.stamp(fleet, machine, generation, timestamp);
    }
    /// A new timestamp for a snapshot that is already served.
    pub fn stamp(&mut self, fleet: &Fleet, machine: &str, generation: u64, version: u64) {
        let timestamp =
            fleet.timestamp(machine, &self.files[&format!("{generation}.snapshot.json")], version);
        self.put("timestamp.json", &timestamp);
    }
    pub fn put(&mut self, file: &str, bytes: &[u8]) {
        self.files.insert(file.to_owned(), bytes.to_vec());
    }
    /// Changes what is signed in a file and signs it again with these keys.
    pub fn forge(&mut self, file: &str, keys: &[&SecretKey], change: impl FnOnce(&mut Value)) {
        let bytes = resigned(&self.files[file], keys, change);
        self.put(file, &bytes);
    }
    /// Makes snapshot and timestamp pin what is served now, for an attacker who holds the keys of both.
    pub fn pin_again(&mut self, fleet: &Fleet, machine: &str, generation: u64) {
        let targets = self.files[&format!("{generation}.targets.json")].clone();
        let operators: Vec<_> = fleet.operators.iter().collect();
        self.forge(&format!("{generation}.snapshot.json"), &operators, |signed| {
            let pin = &mut signed["meta"]["targets.json"];
            pin["length"] = targets.len().into();
            pin["hashes"]["sha256"] = muster_protocol::ids::Sha256::of(&targets).hex().into();
        });
        self.stamp(fleet, machine, generation, 1000 + generation);
    }
}

/// The signed part after a change, signed by these keys.
pub fn resigned(bytes: &[u8], keys: &[&SecretKey], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut document: Value = serde_json::from_slice(bytes).unwrap();
    change(&mut document["signed"]);
    let message =
        canonical::encode(&document["signed"]).unwrap_or_else(|_| document["signed"].to_string().into());
    let signatures: Vec<_> = keys
        .iter()
        .map(|key| json!({ "keyid": key_id(&key.public()), "sig": key.sign_raw(&message).hex() }))
        .collect();
    document["signatures"] = signatures.into();
    document.to_string().into_bytes()
}

/// `delegations` with one role for this key, whose `paths` or `path_hash_prefixes` come from `rule`.
pub fn delegating(key: &SecretKey, role: &str, rule: Value) -> Value {
    let id = key_id(&key.public());
    let mut delegation = json!({ "name": role, "keyids": [id], "threshold": 1, "terminating": false });
    delegation.as_object_mut().unwrap().extend(rule.as_object().unwrap().clone());
    json!({
        "keys": { id: {
            "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": key.public().hex() },
        } },
        "roles": [delegation],
    })
}

/// A machine and its disk.
#[derive(Clone)]
pub struct Machine {
    pub stored: Stored,
    pub scope: Option<Scope>,
    pub now: i64,
    /// What the last refresh fetched.
    pub fetched: Vec<String>,
}

impl Machine {
    pub fn enrolled(fleet: &Fleet, machine: &str) -> Self {
        let scope = Scope { machine: name(machine), class: Class::Nixos, lowest: Generation::FIRST };
        let stored = Stored { root: fleet.root_json(), ..Stored::default() };
        Self { stored, scope: Some(scope), now: NOW, fetched: vec![] }
    }
    /// The same client without a machine's rules, as the conformance suite drives it.
    pub fn unscoped(fleet: &Fleet) -> Self {
        Self { scope: None, ..Self::enrolled(fleet, "any") }
    }

    pub fn start(&self) -> Result<Update, TufError> {
        Update::start(&self.stored, self.scope.clone(), self.now)
    }

    /// One whole refresh; what it returns to be saved is saved at once.
    pub fn refresh(&mut self, served: &Served) -> Result<Update, TufError> {
        let mut update = self.start()?;
        self.fetched.clear();
        self.follow(&mut update, served)?;
        Ok(update)
    }

    pub fn follow(&mut self, update: &mut Update, served: &Served) -> Result<(), TufError> {
        while let Some(fetch) = update.next() {
            let answer = served.files.get(&fetch.file).map(|bytes| {
                let read = bytes.len().min(usize::try_from(fetch.max_bytes).unwrap() + 1);
                &bytes[..read]
            });
            self.fetched.push(fetch.file);
            if let Some(save) = update.feed(answer)? {
                self.save(save);
            }
        }
        Ok(())
    }

    pub fn save(&mut self, save: Save) {
        match save.file {
            "root.json" => self.stored.root = save.bytes,
            "timestamp.json" => self.stored.timestamp = Some(save.bytes),
            "snapshot.json" => self.stored.snapshot = Some(save.bytes),
            "targets.json" => self.stored.targets = Some(save.bytes),
            other => panic!("'{other}' is no file of the top-level roles"),
        }
    }

    /// The generation that a refresh ends on.
    pub fn generation(&mut self, served: &Served) -> u64 {
        self.refresh(served).unwrap().targets_version().unwrap()
    }

    /// A refresh that must be refused as this attack; returns the reason, and what was stored.
    pub fn refuses(&mut self, served: &Served, attack: Attack) -> (String, Vec<&'static str>) {
        let before = self.stored.clone();
        let Err(error) = self.refresh(served) else { panic!("the refresh was believed") };
        assert_eq!(error.attack(), Some(attack), "{error}");
        let mut changed = Vec::new();
        if before.root != self.stored.root {
            changed.push("root");
        }
        for (role, before, after) in [
            ("timestamp", &before.timestamp, &self.stored.timestamp),
            ("snapshot", &before.snapshot, &self.stored.snapshot),
            ("targets", &before.targets, &self.stored.targets),
        ] {
            if before != after {
                changed.push(role);
            }
        }
        (error.to_string(), changed)
    }
}
