use std::collections::BTreeMap;

use super::*;
use crate::ids::Generation;
use crate::keys::SecretKey;
use crate::target::Target;
use crate::tuf::client::Scope;
use crate::tuf::client::{Stored, Update};
use crate::tuf::repository::{
    RootSpec, check_publication, draft_generation, draft_root, root_names, sign_root, sign_timestamp,
};

const NOW: i64 = 1_800_000_000;
const DAY: i64 = 86_400;

/// Two root holders and three operators; two of each must sign.
struct Fleet {
    roots: [SecretKey; 2],
    operators: [SecretKey; 3],
    online: SecretKey,
    root_bytes: Vec<u8>,
    root: Root,
}

fn spec(version: u64, roots: &[&SecretKey], operators: &[&SecretKey], online: &SecretKey) -> RootSpec {
    let public = |keys: &[&SecretKey]| keys.iter().map(|key| key.public()).collect::<Vec<_>>();
    RootSpec {
        version,
        epoch: Default::default(),
        expires: NOW + 365 * DAY,
        root: (public(roots), 2),
        operators: (public(operators), 2),
        online: vec![online.public()],
    }
}

impl Fleet {
    fn new() -> Self {
        let key = || SecretKey::generate().unwrap();
        let (roots, operators, online) = ([key(), key()], [key(), key(), key()], key());
        let all: Vec<&SecretKey> = operators.iter().collect();
        let root_bytes =
            sign_root(&spec(1, &[&roots[0], &roots[1]], &all, &online), &[&roots[0], &roots[1]]).unwrap();
        let root = Root::parse_self_signed(&root_bytes).unwrap();
        Self { roots, operators, online, root_bytes, root }
    }
    fn id(&self) -> Sha256 {
        Sha256::of(&self.root_bytes)
    }
    fn draft(&self, what: Drafted) -> Draft {
        let made_by = self.operators[0].public();
        Draft { fleet: self.id(), made_at: NOW * 1000, made_by, ends: NOW + DRAFT_SECONDS, what }
    }
    fn generations(&self, machines: &[&str]) -> Draft {
        let generations = machines.iter().map(|machine| DraftedGeneration {
            machine: machine.parse().unwrap(),
            class: Class::Nixos,
            publication: draft_generation(&target(machine), NOW + 90 * DAY).unwrap(),
        });
        self.draft(Drafted::Generations { generations: generations.collect() })
    }
    fn check(&self, draft: &Draft) -> Result<Checked, DraftError> {
        draft.check(&self.id(), &self.root, NOW)
    }
}

fn target(machine: &str) -> Target {
    serde_json::from_value(serde_json::json!({
        "machine": machine, "class": "nixos", "generation": 1, "system": "x86_64-linux",
        "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
        "output": "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system",
    }))
    .unwrap()
}

fn publication(draft: &Draft, index: usize) -> &Publication {
    match &draft.what {
        Drafted::Generations { generations } => &generations[index].publication,
        Drafted::Root { .. } => panic!("a root"),
    }
}

#[test]
fn a_generation_counts_once_two_operators_have_signed_its_draft_and_the_machine_takes_it() {
    let fleet = Fleet::new();
    let name = "cinnabar".parse().unwrap();
    let empty = fleet.generations(&["cinnabar", "realgar"]);
    let Ok(Checked::Generations(checked)) = fleet.check(&empty) else { panic!("a sound draft is refused") };
    assert_eq!(checked[0].target, target("cinnabar"));
    assert_eq!(empty.progress(&fleet.root).unwrap(), Progress { signed: vec![], missing: 2 });
    let one = empty.sign(&fleet.operators[0]).unwrap();
    assert_eq!(one.progress(&fleet.root).unwrap().missing, 1);
    assert!(check_publication(&fleet.root, &name, Class::Nixos, publication(&one, 0), NOW).is_err());

    // Signed separately, and merged in either order.
    let other = empty.sign(&fleet.operators[2]).unwrap();
    for both in [one.merge(&other, &fleet.root).unwrap(), other.merge(&one, &fleet.root).unwrap()] {
        assert_eq!(both.id().unwrap(), empty.id().unwrap());
        assert!(both.progress(&fleet.root).unwrap().is_complete());
        for index in 0..2 {
            let machine = ["cinnabar", "realgar"][index].parse().unwrap();
            check_publication(&fleet.root, &machine, Class::Nixos, publication(&both, index), NOW).unwrap();
        }
        let files = publication(&both, 0);
        let timestamp =
            sign_timestamp(&name, files.snapshot.as_bytes(), 1, NOW + DAY, &fleet.online).unwrap();
        let scope = Scope { machine: name.clone(), class: Class::Nixos, lowest: Generation::FIRST };
        let stored = Stored { root: fleet.root_bytes.clone(), ..Stored::default() };
        let mut update = Update::start(&stored, Some(scope), NOW).unwrap();
        while let Some(fetch) = update.next() {
            let bytes = match fetch.file.as_str() {
                "timestamp.json" => Some(timestamp.as_slice()),
                "1.snapshot.json" => Some(files.snapshot.as_bytes()),
                "1.targets.json" => Some(files.targets.as_bytes()),
                _ => None,
            };
            update.feed(bytes).unwrap();
        }
        assert_eq!(update.targets_version(), Some(1));
    }
}

#[test]
fn one_operator_alone_never_reaches_the_threshold() {
    let fleet = Fleet::new();
    let draft = fleet.generations(&["cinnabar"]);
    let mut again = draft.clone();
    for _ in 0..3 {
        again = again.sign(&fleet.operators[1]).unwrap();
    }
    let progress = again.progress(&fleet.root).unwrap();
    assert_eq!(progress, Progress { signed: vec![fleet.operators[1].public()], missing: 1 });
    assert!(!progress.is_complete());
    let strangers = again.sign(&SecretKey::generate().unwrap()).unwrap().sign(&fleet.online).unwrap();
    assert_eq!(strangers.progress(&fleet.root).unwrap().missing, 1);
    // Strangers' signatures are dropped.
    let merged = draft.merge(&strangers, &fleet.root).unwrap();
    let text = serde_json::to_string(&merged).unwrap();
    assert_eq!(text.matches("\\\"sig\\\"").count(), 2, "one signature on each of the two documents");
}

#[test]
fn a_changed_draft_loses_its_signatures_and_gets_another_id() {
    let fleet = Fleet::new();
    let signed = fleet.generations(&["cinnabar"]).sign(&fleet.operators[0]).unwrap();
    let changed = |from: &str, to: &str| {
        let mut changed = signed.clone();
        let Drafted::Generations { generations } = &mut changed.what else { panic!() };
        let publication = &mut generations[0].publication;
        for text in [&mut publication.targets, &mut publication.snapshot, &mut publication.target] {
            *text = text.replace(from, to);
        }
        changed
    };
    // A target that is not the one in the metadata is refused as such.
    let other = changed("1c0bm0n2", "2c0bm0n2");
    assert!(matches!(fleet.check(&other), Err(DraftError::Generation { .. })));
    assert_ne!(other.id().unwrap(), signed.id().unwrap());
    assert!(signed.merge(&other, &fleet.root).is_err());
    // A later expiry invalidates the signature.
    let later = changed("2027-04-15", "2028-04-15");
    assert!(later != signed && later.progress(&fleet.root).unwrap().signed.is_empty());
    assert!(signed.merge(&later, &fleet.root).is_err());
}

#[test]
fn a_draft_is_of_one_fleet_and_names_each_machine_once() {
    let fleet = Fleet::new();
    let draft = fleet.generations(&["cinnabar"]);
    assert!(matches!(
        draft.check(&Sha256::of(b"another"), &fleet.root, NOW),
        Err(DraftError::OtherFleet { .. })
    ));
    assert!(matches!(fleet.check(&fleet.generations(&[])), Err(DraftError::Count(0))));
    // The most allowed are examined, and belong to another machine; one more is too many.
    let Drafted::Generations { generations } = &draft.what else { panic!() };
    let many = |count: usize| {
        let named =
            |n| DraftedGeneration { machine: format!("m{n}").parse().unwrap(), ..generations[0].clone() };
        fleet.draft(Drafted::Generations { generations: (0..count).map(named).collect() })
    };
    assert!(matches!(fleet.check(&many(10_000)), Err(DraftError::Generation { .. })));
    assert!(matches!(fleet.check(&many(10_001)), Err(DraftError::Count(10_001))));
    let twice = fleet.generations(&["cinnabar", "cinnabar"]);
    assert!(matches!(fleet.check(&twice), Err(DraftError::Count(2))));
    assert!(matches!(
        draft.check(&fleet.id(), &fleet.root, NOW + 91 * DAY),
        Err(DraftError::Generation { source: TufError::Expired { .. }, .. })
    ));
}

#[test]
fn a_root_wants_a_threshold_of_its_old_and_of_its_new_holders() {
    let fleet = Fleet::new();
    let newcomers = [SecretKey::generate().unwrap(), SecretKey::generate().unwrap()];
    let operators: Vec<&SecretKey> = fleet.operators.iter().collect();
    let names = BTreeMap::from([(newcomers[0].public().hex(), "alice".to_owned())]);
    let text =
        draft_root(&spec(2, &[&newcomers[0], &newcomers[1]], &operators, &fleet.online), &names).unwrap();
    assert_eq!(root_names(text.as_bytes())[&newcomers[0].public().hex()], "alice");
    let mut draft = fleet.draft(Drafted::Root { root: text });
    let mut missing = Vec::new();
    for signer in [&fleet.roots[0], &newcomers[0], &fleet.roots[1], &newcomers[1]] {
        missing.push(draft.progress(&fleet.root).unwrap().missing);
        let Drafted::Root { root } = &draft.what else { panic!() };
        assert!(fleet.root.successor(root.as_bytes()).is_err());
        draft = draft.sign(signer).unwrap();
    }
    assert_eq!(missing, [2, 2, 1, 1]);
    let progress = draft.progress(&fleet.root).unwrap();
    assert!(progress.is_complete());
    let signers = [&fleet.roots[0], &fleet.roots[1], &newcomers[0], &newcomers[1]].map(SecretKey::public);
    assert_eq!(progress.signed.len(), 4);
    assert!(signers.iter().all(|key| progress.signed.contains(key)));
    assert!(matches!(fleet.check(&draft), Ok(Checked::Root(root)) if root.version() == 2));
    let Drafted::Root { root } = &draft.what else { panic!() };
    let next = fleet.root.successor(root.as_bytes()).unwrap();
    // Once that root is in force, the same draft is one version behind.
    assert!(matches!(
        draft.check(&fleet.id(), &next, NOW),
        Err(DraftError::RootVersion { wanted: 3, found: 2 })
    ));
}

#[test]
fn root_holders_sign_apart_and_are_brought_together_each_counted_once() {
    let fleet = Fleet::new();
    let operators: Vec<&SecretKey> = fleet.operators.iter().collect();
    let [first, second] = &fleet.roots;
    let spec = spec(2, &[first, second], &operators, &fleet.online);
    let empty = fleet.draft(Drafted::Root { root: draft_root(&spec, &BTreeMap::new()).unwrap() });
    let (one, other) = (empty.sign(first).unwrap(), empty.sign(second).unwrap());
    // A holder of both the old root and the new one counts once.
    let expected = Progress { signed: vec![first.public()], missing: 1 };
    assert_eq!(one.progress(&fleet.root).unwrap(), expected);
    let stranger = other.sign(&SecretKey::generate().unwrap()).unwrap();
    for both in [one.merge(&stranger, &fleet.root).unwrap(), stranger.merge(&one, &fleet.root).unwrap()] {
        assert_eq!(both.id().unwrap(), empty.id().unwrap());
        let progress = both.progress(&fleet.root).unwrap();
        assert_eq!((progress.signed.len(), progress.missing), (2, 0));
        let Drafted::Root { root } = &both.what else { panic!() };
        assert_eq!(fleet.root.successor(root.as_bytes()).unwrap().version(), 2);
        assert_eq!(root.matches("\"sig\"").count(), 2, "the stranger's signature is dropped");
    }
    assert!(one.merge(&fleet.generations(&["cinnabar"]), &fleet.root).is_err());
}

#[test]
fn the_bounds_of_a_draft_are_what_the_papers_say() {
    assert_eq!(DRAFT_SECONDS, 1_209_600, "two weeks");
    assert_eq!(MAX_DRAFT_BYTES, 33_554_432, "32 MiB");
}

#[test]
fn a_recorded_draft_of_version_0_2_still_parses() {
    let text = r#"{"fleet":"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "made_at":1800000000000,
        "made_by":"d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a","ends":1801209600,
        "kind":"generations","generations":[{"machine":"cinnabar","class":"nixos","generation":1,
        "targets":"{}","snapshot":"{}","target":"{}","a field of the future":1}],"another":2}"#;
    let draft = Draft::parse(text.as_bytes()).unwrap();
    let Drafted::Generations { generations } = &draft.what else { panic!() };
    assert_eq!(generations[0].publication.generation, Generation::FIRST);
    assert!(Draft::parse(b"{}").is_err());
}
