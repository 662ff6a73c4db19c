//! Roots whose holders and operators have security keys.

use muster_protocol::ids::Sha256;
use muster_protocol::keys::{KeyError, Kind, PublicKey, SecretKey, Signature, Touch};
use muster_protocol::report::Attack;
use muster_protocol::tuf::metadata::{Role, Root};
use muster_protocol::tuf::repository::{
    RootSpec, Signer, add_signature, draft_root, key_id, merge_signatures, sign_generation, sign_root,
    signed_by,
};
use serde_json::{Value, json};

use crate::fleet::*;

/// A security key whose private key is known.
struct Security(SecretKey, u8);

impl Security {
    fn new() -> Self {
        Self(key(), 1)
    }
}

impl Signer for Security {
    fn public(&self) -> PublicKey {
        PublicKey::of(Kind::Security, self.0.public().as_bytes()).unwrap()
    }
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError> {
        let (application, message) = (Sha256::of(b"ssh:"), Sha256::of(message));
        let stated = [&application.as_bytes()[..], &[self.1, 0, 0, 0, 9], message.as_bytes()].concat();
        let touch = Touch { flags: self.1, counter: 9 };
        Ok(Signature::of_security_key(*self.0.sign_raw(&stated).as_bytes(), touch))
    }
}

/// A fleet whose root names these operators, and a machine of it.
fn machine(fleet: &Fleet, operators: Vec<PublicKey>, threshold: u32) -> Machine {
    let spec = RootSpec { operators: (operators, threshold), ..fleet.spec() };
    let mut machine = Machine::enrolled(fleet, "cinnabar");
    machine.stored.root = sign_root(&spec, &signers(&fleet.root)).unwrap();
    machine
}

/// What the controller serves of a generation that these signed.
fn served(fleet: &Fleet, by: &[&dyn Signer]) -> Served {
    let mut served = Served::generation(fleet, "cinnabar", 1);
    let publication = sign_generation(&target("cinnabar", 1), NOW + 90 * DAY, by).unwrap();
    served.put("1.targets.json", publication.targets.as_bytes());
    served.put("1.snapshot.json", publication.snapshot.as_bytes());
    served.stamp(fleet, "cinnabar", 1, 1001);
    served
}

#[test]
fn a_generation_that_security_keys_signed_is_taken() {
    let (fleet, [alice, bob]) = (Fleet::new(), [(); 2].map(|()| Security::new()));
    let mut alone = machine(&fleet, vec![alice.public()], 1);
    alone.refresh(&served(&fleet, &[&alice])).unwrap();
    let mixed = vec![fleet.operators[0].public(), bob.public()];
    machine(&fleet, mixed.clone(), 2).refresh(&served(&fleet, &[&fleet.operators[0], &bob])).unwrap();
    machine(&fleet, mixed, 2).refuses(&served(&fleet, &[&bob]), Attack::ForgedSignature);
}

#[test]
fn a_root_that_security_keys_hold_leads_to_the_next_one() {
    let (fleet, [alice, bob, carol]) = (Fleet::new(), [(); 3].map(|()| Security::new()));
    let spec = |version, keys: &[&Security], threshold| RootSpec {
        version,
        root: (keys.iter().map(|key| key.public()).collect(), threshold),
        ..fleet.spec()
    };
    let first = sign_root(&spec(1, &[&alice, &bob, &carol], 2), &[&alice, &carol]).unwrap();
    let first = Root::parse_self_signed(&first).unwrap();
    assert_eq!(first.keys_of(Role::Root).len(), 3);
    let second = sign_root(&spec(2, &[&alice, &bob], 2), &[&alice, &bob]).unwrap();
    first.successor(&second).unwrap();
    let text = draft_root(&spec(2, &[&bob], 1), &Default::default()).unwrap();
    let lone = add_signature(&text, &bob).unwrap();
    assert!(first.successor(lone.as_bytes()).is_err(), "one of two of the root before");
}

#[test]
fn an_untouched_security_key_signs_nothing() {
    let (fleet, mut alice) = (Fleet::new(), Security::new());
    let mut machine = machine(&fleet, vec![alice.public()], 1);
    alice.1 = 4;
    let (why, _) = machine.refuses(&served(&fleet, &[&alice]), Attack::ForgedSignature);
    assert!(why.ends_with("has too few valid signatures: 0 of 1"), "{why}");
}

#[test]
fn a_security_keys_private_key_does_not_sign_as_a_plain_one() {
    let (fleet, alice) = (Fleet::new(), Security::new());
    let mut machine = machine(&fleet, vec![alice.public()], 1);
    let mut served = served(&fleet, &[&alice.0]);
    machine.refuses(&served, Attack::ForgedSignature);
    // Under the ID of the security key.
    for file in ["1.snapshot.json", "1.targets.json"] {
        let mut document: Value = serde_json::from_slice(&served.files[file]).unwrap();
        document["signatures"][0]["keyid"] = key_id(&alice.public()).into();
        served.put(file, document.to_string().as_bytes());
    }
    served.stamp(&fleet, "cinnabar", 1, 1002);
    machine.refuses(&served, Attack::ForgedSignature);
}

/// The root of a fleet, with one operator under both kinds and a threshold of two.
fn twins(fleet: &Fleet, alice: &Security) -> Vec<u8> {
    let spec = RootSpec { operators: (vec![alice.public(), key().public()], 2), ..fleet.spec() };
    let root = sign_root(&spec, &signers(&fleet.root)).unwrap();
    resigned(&root, &[&fleet.root[0]], |signed| {
        let (plain, security) = (key_id(&alice.0.public()), key_id(&alice.public()));
        let public = alice.0.public().hex();
        signed["keys"][&plain] =
            json!({ "keytype": "ed25519", "scheme": "ed25519", "keyval": { "public": public } });
        let holders = json!({ "keyids": [plain, security], "threshold": 2 });
        signed["roles"]["targets"] = holders.clone();
        signed["roles"]["snapshot"] = holders;
    })
}

#[test]
fn one_point_under_two_kinds_counts_once() {
    let (fleet, alice) = (Fleet::new(), Security::new());
    let mut machine = Machine::enrolled(&fleet, "cinnabar");
    machine.stored.root = twins(&fleet, &alice);
    let (why, _) = machine.refuses(&served(&fleet, &[&alice, &alice.0]), Attack::ForgedSignature);
    assert_eq!(why, "snapshot.json has too few valid signatures: 1 of 2");

    let root = Root::draft(&machine.stored.root).unwrap();
    let both = root.keys_of(Role::Targets);
    assert_eq!(both.len(), 2, "either kind may sign requests");
    let signed = sign_generation(&target("cinnabar", 1), NOW + DAY, &[&alice, &alice.0]).unwrap();
    assert_eq!(signed_by(&signed.targets, &both).unwrap().len(), 1);
    let merged = merge_signatures(&signed.targets, &signed.targets, &both).unwrap();
    assert_eq!(signed_by(&merged, &both).unwrap().len(), 1);
}

#[test]
fn no_root_is_made_that_lists_a_key_twice_or_gives_the_controller_a_security_key() {
    let (fleet, alice) = (Fleet::new(), Security::new());
    let both = vec![alice.public(), alice.0.public()];
    for spec in [
        RootSpec { root: (both.clone(), 1), ..fleet.spec() },
        RootSpec { operators: (both, 2), ..fleet.spec() },
        RootSpec { online: vec![alice.public()], ..fleet.spec() },
    ] {
        let refused = draft_root(&spec, &Default::default()).unwrap_err().to_string();
        assert!(refused.contains("security key") || refused.contains("plain one"), "{refused}");
    }
}

#[test]
fn a_security_key_of_another_application_or_of_none_makes_no_root() {
    let (fleet, alice) = (Fleet::new(), Security::new());
    let spec = RootSpec { operators: (vec![alice.public()], 1), ..fleet.spec() };
    let root = sign_root(&spec, &signers(&fleet.root)).unwrap();
    let changed = |application: Value| {
        resigned(&root, &[&fleet.root[0]], |signed| {
            signed["keys"][key_id(&alice.public())]["keyval"]["application"] = application;
        })
    };
    assert!(Root::parse_self_signed(&changed("ssh:".into())).is_ok());
    for application in [json!("ssh:work"), json!("ssh"), json!(""), json!(null), json!(7)] {
        let refused = Root::parse_self_signed(&changed(application.clone()));
        assert!(refused.is_err(), "{application}");
    }
    let key = &serde_json::from_slice::<Value>(&root).unwrap()["signed"]["keys"][key_id(&alice.public())];
    assert_eq!(
        *key,
        json!({ "keytype": "sk-ssh-ed25519", "scheme": "sk-ssh-ed25519",
                "keyval": { "application": "ssh:", "public": alice.0.public().hex() } })
    );
    assert_ne!(key_id(&alice.public()), key_id(&alice.0.public()));
}

#[test]
fn a_key_of_a_mixed_scheme_signs_nothing_and_breaks_nothing() {
    let (fleet, alice) = (Fleet::new(), Security::new());
    let spec = RootSpec { operators: (vec![alice.public()], 1), ..fleet.spec() };
    let root = sign_root(&spec, &signers(&fleet.root)).unwrap();
    for (keytype, scheme) in [("sk-ssh-ed25519", "ed25519"), ("ed25519", "sk-ssh-ed25519")] {
        let mut machine = Machine::enrolled(&fleet, "cinnabar");
        machine.stored.root = resigned(&root, &[&fleet.root[0]], |signed| {
            let key = &mut signed["keys"][key_id(&alice.public())];
            (key["keytype"], key["scheme"]) = (keytype.into(), scheme.into());
        });
        machine.refuses(&served(&fleet, &[&alice, &alice.0]), Attack::ForgedSignature);
    }
}
