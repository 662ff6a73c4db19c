//! What must hold of metadata that the trust core returns to be saved, checked without the core's own code.

use muster_protocol::api::target_name;
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{PublicKey, Signature};
use muster_protocol::tuf::canonical;
use muster_protocol::tuf::client::{Save, Stored};
use serde_json::Value;

use crate::world::{OWN, name};

pub fn read(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("what is saved is JSON")
}

pub fn version(document: &Value) -> u64 {
    document["signed"]["version"].as_u64().expect("a version")
}

/// Whether a threshold of the keys that `root` lists for `role` signed the document.
pub fn is_signed(document: &Value, root: &Value, role: &str) -> bool {
    let root = &root["signed"];
    let holders = root["roles"][role]["keyids"].as_array().into_iter().flatten();
    let keys = holders.filter_map(|id| {
        let key = &root["keys"][id.as_str()?];
        let public = key["keyval"]["public"].as_str()?;
        match (key["keytype"].as_str()?, key["scheme"].as_str()?) {
            ("ed25519", "ed25519") => public.parse::<PublicKey>().ok(),
            ("sk-ssh-ed25519", "sk-ssh-ed25519") if key["keyval"]["application"] == "ssh:" => {
                format!("sk-ed25519:{public}").parse().ok()
            }
            _ => None,
        }
    });
    let message = canonical::encode(&document["signed"]).expect("what is saved has a canonical form");
    let mut good: Vec<PublicKey> = keys
        .filter(|key| {
            document["signatures"].as_array().into_iter().flatten().any(|claim| {
                let signature = claim["sig"].as_str().and_then(|text| text.parse::<Signature>().ok());
                signature.is_some_and(|signature| key.verify_raw(&message, &signature).is_ok())
            })
        })
        .collect();
    good.sort_by_key(|key| *key.as_bytes());
    // One point is one signer, whatever its kinds.
    good.dedup_by_key(|key| *key.as_bytes());
    good.len() as u64 >= root["roles"][role]["threshold"].as_u64().expect("a threshold").max(1)
}

/// What a machine holds, and what it must never fall below.
pub struct Keeper {
    pub stored: Stored,
    pub now: i64,
    /// Whether the machine's own rules hold too.
    pub scoped: bool,
    /// The highest generation ever stored.
    pub generation: u64,
    floors: Floors,
}

#[derive(Default)]
struct Floors {
    timestamp: u64,
    snapshot: u64,
    targets: u64,
}

impl Keeper {
    pub fn new(stored: Stored, now: i64, scoped: bool) -> Self {
        let mut keeper = Self { stored, now, scoped, generation: 0, floors: Floors::default() };
        keeper.begin();
        keeper
    }

    /// Sets the floors when a refresh begins or the root changes: the stored metadata, unless its keys were
    /// rotated (TUF 5.3.11).
    pub fn begin(&mut self) {
        let root = read(&self.stored.root);
        let sound = |bytes: &Option<Vec<u8>>, role| match bytes {
            Some(bytes) => {
                let document = read(bytes);
                is_signed(&document, &root, role).then_some(Some(document))
            }
            None => Some(None),
        };
        self.floors = Floors::default();
        let (timestamp, snapshot) =
            (sound(&self.stored.timestamp, "timestamp"), sound(&self.stored.snapshot, "snapshot"));
        if let (Some(timestamp), Some(snapshot)) = (timestamp, snapshot) {
            let pinned = timestamp.as_ref().map_or(0, |held| pin(held, "snapshot.json").0);
            self.floors.timestamp = timestamp.as_ref().map_or(0, version);
            self.floors.snapshot = snapshot.as_ref().map_or(0, version).max(pinned);
            self.floors.targets = snapshot.as_ref().map_or(0, |held| pin(held, "targets.json").0);
        }
    }

    /// Checks what the core wants saved, and saves it.
    pub fn save(&mut self, save: Save) {
        let document = read(&save.bytes);
        let role = save.file.strip_suffix(".json").expect("a role's file");
        assert_eq!(document["signed"]["_type"], role);
        if role == "root" {
            let held = read(&self.stored.root);
            assert_eq!(version(&document), version(&held) + 1, "a root skips a version");
            assert!(is_signed(&document, &held, "root"), "a root that the one before did not sign");
            assert!(is_signed(&document, &document, "root"), "a root that its own keys did not sign");
            self.stored.root = save.bytes;
            self.begin();
            return;
        }
        let root = read(&self.stored.root);
        assert!(is_signed(&document, &root, role), "{role} saved without its signatures");
        for fresh in [&document, &root] {
            let expires: jiff::Timestamp = fresh["signed"]["expires"].as_str().unwrap().parse().unwrap();
            assert!(expires.as_second() > self.now, "expired metadata was saved");
        }
        if self.scoped {
            assert_eq!(document["signed"]["x-muster-machine"], OWN, "foreign metadata was saved");
        }
        let found = version(&document);
        match role {
            "timestamp" => {
                assert!(found >= self.floors.timestamp, "the timestamp went back");
                assert!(
                    pin(&document, "snapshot.json").0 >= self.floors.snapshot,
                    "the pinned snapshot went back"
                );
                self.stored.timestamp = Some(save.bytes);
            }
            "snapshot" => {
                let timestamp = read(self.stored.timestamp.as_deref().expect("a timestamp comes first"));
                require_pinned(&timestamp, "snapshot.json", found, &save.bytes);
                assert!(found >= self.floors.snapshot, "the snapshot went back");
                let generation = pin(&document, "targets.json").0;
                assert!(generation >= self.floors.targets, "the pinned targets went back");
                assert!(!self.scoped || generation >= self.generation, "the generation went back");
                self.stored.snapshot = Some(save.bytes);
            }
            "targets" => {
                let snapshot = read(self.stored.snapshot.as_deref().expect("a snapshot comes first"));
                require_pinned(&snapshot, "targets.json", found, &save.bytes);
                if self.scoped {
                    assert!(found >= self.generation, "the generation went back");
                    self.generation = found;
                    let list = document["signed"]["targets"].as_object().expect("targets");
                    let custom = &list[&target_name(&name(OWN))]["custom"];
                    assert_eq!(list.len(), 1);
                    assert_eq!((&custom["machine"], &custom["class"]), (&OWN.into(), &"nixos".into()));
                    assert_eq!(custom["generation"], found);
                }
                self.stored.targets = Some(save.bytes);
            }
            other => panic!("'{other}' is not a top-level role"),
        }
    }
}

/// Version and SHA-256 that a document pins another one to.
fn pin<'a>(document: &'a Value, file: &str) -> (u64, Option<&'a str>) {
    let pin = &document["signed"]["meta"][file];
    (pin["version"].as_u64().expect("a pinned version"), pin["hashes"]["sha256"].as_str())
}

fn require_pinned(by: &Value, file: &str, version: u64, bytes: &[u8]) {
    let (pinned, hash) = pin(by, file);
    assert_eq!(pinned, version, "{file} is not the pinned one");
    assert!(hash.is_none_or(|hash| hash == Sha256::of(bytes).hex()), "{file} does not have the pinned hash");
}
