//! Delegated roles. A machine's repository has none; a client without a scope follows them by these rules.

use std::collections::BTreeMap;

use muster_protocol::ids::Sha256;
use muster_protocol::keys::SecretKey;
use muster_protocol::report::Attack;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::client::Update;
use serde_json::{Value, json};

use crate::fleet::*;

const PATH: &str = "releases/x.zip";

/// A repository whose targets have these delegations, and these delegated roles with their signers.
struct Tree {
    fleet: Fleet,
    delegations: Value,
    roles: BTreeMap<String, (SecretKey, Value)>,
}

impl Tree {
    /// One role, `helper`, that lists `PATH`.
    fn one(rule: Value) -> Self {
        let helper = key();
        let delegations = delegating(&helper, "helper", rule);
        let mut tree = Self { fleet: Fleet::new(), delegations, roles: BTreeMap::new() };
        tree.role("helper", helper, json!({ PATH: tree.listed() }), json!(null));
        tree
    }
    fn listed(&self) -> Value {
        json!({ "length": 3, "hashes": { "sha256": Sha256::of(b"zip").hex() } })
    }
    fn role(&mut self, name: &str, key: SecretKey, targets: Value, delegations: Value) {
        let mut signed = json!({
            "_type": "targets", "spec_version": "1.0.0", "version": 1, "expires": "2030-01-01T00:00:00Z",
            "targets": targets,
        });
        if !delegations.is_null() {
            signed["delegations"] = delegations;
        }
        self.roles.insert(name.to_owned(), (key, signed));
    }
    fn serve(&self) -> Served {
        let mut served = Served::generation(&self.fleet, "any", 1);
        let operator = &self.fleet.operators[0];
        served
            .forge("1.targets.json", &[operator], |signed| signed["delegations"] = self.delegations.clone());
        served.forge("1.snapshot.json", &[operator], |signed| {
            signed["meta"]["targets.json"] = json!({ "version": 1 });
            for name in self.roles.keys() {
                signed["meta"][format!("{name}.json")] = json!({ "version": 1 });
            }
        });
        served.stamp(&self.fleet, "any", 1, 1001);
        for (name, (key, signed)) in &self.roles {
            let document = json!({ "signatures": [], "signed": signed }).to_string();
            served.put(&format!("1.{name}.json"), &resigned(document.as_bytes(), &[key], |_| ()));
        }
        served
    }
    fn search(&self, served: &Served, path: &str) -> (Machine, Result<Update, TufError>) {
        let mut machine = Machine::unscoped(&self.fleet);
        let result = machine.refresh(served).and_then(|mut update| {
            update.find(path)?;
            machine.follow(&mut update, served)?;
            Ok(update)
        });
        (machine, result)
    }
    fn finds(&self, path: &str) -> bool {
        self.search(&self.serve(), path).1.unwrap().listed(path).is_some()
    }
    fn refuses(&self, served: &Served) -> TufError {
        self.search(served, PATH).1.err().expect("the search was believed")
    }
}

#[test]
fn a_target_is_found_where_a_role_may_list_it() {
    let tree = Tree::one(json!({ "paths": ["other/*", "releases/*"] }));
    let (machine, update) = tree.search(&tree.serve(), PATH);
    let update = update.unwrap();
    assert_eq!(update.listed(PATH).unwrap().hashes.sha256, Some(Sha256::of(b"zip")));
    assert_eq!(machine.fetched.last().unwrap(), "1.helper.json");
    assert!(!tree.finds("releases/y.zip"));
}

#[test]
fn a_role_is_not_asked_for_paths_that_it_may_not_list() {
    let tree = Tree::one(json!({ "paths": ["other/*"] }));
    let (machine, update) = tree.search(&tree.serve(), PATH);
    assert!(update.unwrap().listed(PATH).is_none());
    assert_eq!(machine.fetched.last().unwrap(), "1.targets.json");
}

#[test]
fn path_hash_prefixes_decide_by_the_paths_hash() {
    let hash = Sha256::of(PATH.as_bytes()).hex();
    for (prefixes, found) in [
        (json!([hash[..2]]), true),
        (json!(["zz", hash]), true),
        (json!([""]), true),
        (json!([hash[1..4]]), false),
        (json!([hash.to_uppercase()]), false),
        (json!([]), false),
    ] {
        let tree = Tree::one(json!({ "path_hash_prefixes": prefixes }));
        assert_eq!(tree.finds(PATH), found, "{prefixes}");
    }
}

#[test]
fn a_delegation_with_both_kinds_of_rule_or_none() {
    for rule in [json!({}), json!({ "paths": ["*"], "path_hash_prefixes": [""] })] {
        let tree = Tree::one(rule);
        assert_eq!(tree.refuses(&tree.serve()).attack(), Some(Attack::Malformed));
    }
}

#[test]
fn a_delegation_to_a_reserved_name() {
    for name in ["root", "timestamp", "snapshot", "targets", ""] {
        let mut tree = Tree::one(json!({ "paths": ["*/*"] }));
        tree.delegations["roles"][0]["name"] = name.into();
        let error = tree.refuses(&tree.serve());
        assert!(error.to_string().contains("a name that is reserved"), "{error}");
    }
}

#[test]
fn two_delegations_to_one_name() {
    let mut tree = Tree::one(json!({ "paths": ["*/*"] }));
    let twin = tree.delegations["roles"][0].clone();
    tree.delegations["roles"].as_array_mut().unwrap().push(twin);
    assert_eq!(tree.refuses(&tree.serve()).attack(), Some(Attack::Malformed));
}

#[test]
fn a_delegation_with_threshold_zero_or_a_weak_key() {
    let mut tree = Tree::one(json!({ "paths": ["*/*"] }));
    tree.delegations["roles"][0]["threshold"] = 0.into();
    assert_eq!(tree.refuses(&tree.serve()).attack(), Some(Attack::Malformed));

    let mut tree = Tree::one(json!({ "paths": ["*/*"] }));
    let id = tree.delegations["roles"][0]["keyids"][0].as_str().unwrap().to_owned();
    tree.delegations["keys"][id]["keyval"]["public"] = format!("01{}", "00".repeat(31)).into();
    assert_eq!(tree.refuses(&tree.serve()).attack(), Some(Attack::Malformed));
}

#[test]
fn succinct_roles_are_refused_rather_than_ignored() {
    let mut tree = Tree::one(json!({ "paths": ["*/*"] }));
    tree.delegations = json!({ "keys": {}, "succinct_roles": { "keyids": [], "threshold": 1 } });
    assert_eq!(tree.refuses(&tree.serve()).attack(), Some(Attack::Malformed));
}

#[test]
fn a_delegated_role_that_the_delegators_keys_did_not_sign() {
    let tree = Tree::one(json!({ "paths": ["*/*"] }));
    let mut served = tree.serve();
    served.forge("1.helper.json", &[&tree.fleet.operators[0]], |_| ());
    assert_eq!(tree.refuses(&served).attack(), Some(Attack::ForgedSignature));
}

#[test]
fn a_delegated_role_that_expired() {
    let tree = Tree::one(json!({ "paths": ["*/*"] }));
    let mut served = tree.serve();
    let helper = &tree.roles["helper"].0;
    served.forge("1.helper.json", &[helper], |signed| signed["expires"] = "2020-01-01T00:00:00Z".into());
    assert_eq!(tree.refuses(&served).attack(), Some(Attack::Freeze));
}

#[test]
fn a_delegated_role_of_another_version_than_the_pinned() {
    let tree = Tree::one(json!({ "paths": ["*/*"] }));
    let mut served = tree.serve();
    let helper = &tree.roles["helper"].0;
    served.forge("1.helper.json", &[helper], |signed| signed["version"] = 2.into());
    assert_eq!(tree.refuses(&served).attack(), Some(Attack::MixAndMatch));
}

#[test]
fn a_delegated_role_with_other_bytes_than_the_pinned() {
    let tree = Tree::one(json!({ "paths": ["*/*"] }));
    let mut served = tree.serve();
    served.forge("1.snapshot.json", &[&tree.fleet.operators[0]], |signed| {
        signed["meta"]["helper.json"]["hashes"]["sha256"] = "00".repeat(32).into();
    });
    served.stamp(&tree.fleet, "any", 1, 1001);
    assert_eq!(tree.refuses(&served).attack(), Some(Attack::MixAndMatch));
}

#[test]
fn endless_data_for_a_delegated_role() {
    let tree = Tree::one(json!({ "paths": ["*/*"] }));
    let mut served = tree.serve();
    let bytes = [served.files["1.helper.json"].clone(), vec![b' '; 6 << 20]].concat();
    served.put("1.helper.json", &bytes);
    assert_eq!(tree.refuses(&served).attack(), Some(Attack::EndlessData));
}

#[test]
fn a_delegated_role_that_the_snapshot_does_not_name() {
    let tree = Tree::one(json!({ "paths": ["*/*"] }));
    let mut served = tree.serve();
    served.forge("1.snapshot.json", &[&tree.fleet.operators[0]], |signed| {
        signed["meta"].as_object_mut().unwrap().remove("helper.json");
    });
    served.stamp(&tree.fleet, "any", 1, 1001);
    let (machine, result) = tree.search(&served, PATH);
    assert!(matches!(result, Err(TufError::Missing { .. })));
    assert_eq!(machine.fetched.last().unwrap(), "1.targets.json", "it is not even requested");
}

/// A chain of roles, each of which delegates to the next; the last lists `PATH`.
fn chain(length: usize) -> Tree {
    let keys: Vec<_> = (0..=length).map(|_| key()).collect();
    let everything = || json!({ "paths": ["*/*"] });
    let mut tree = Tree {
        fleet: Fleet::new(),
        delegations: delegating(&keys[1], "role-1", everything()),
        roles: BTreeMap::new(),
    };
    for n in 1..=length {
        let (targets, next) = match keys.get(n + 1) {
            Some(next) => (json!({}), delegating(next, &format!("role-{}", n + 1), everything())),
            None => (json!({ PATH: tree.listed() }), json!(null)),
        };
        tree.role(&format!("role-{n}"), keys[n].clone(), targets, next);
    }
    tree
}

#[test]
fn a_search_ends_after_thirty_two_roles() {
    assert!(chain(32).finds(PATH));
    let tree = chain(33);
    let error = tree.refuses(&tree.serve());
    assert!(matches!(error, TufError::TooManyDelegations { max: 32, .. }), "{error}");
    assert_eq!(error.attack(), Some(Attack::EndlessData));
}

#[test]
fn roles_that_delegate_in_a_circle_end_the_search() {
    let mut tree = chain(2);
    let first = tree.roles["role-1"].0.clone();
    let (second, _) = tree.roles["role-2"].clone();
    tree.role("role-2", second, json!({}), delegating(&first, "role-1", json!({ "paths": ["*/*"] })));
    assert!(!tree.finds(PATH));
}

#[test]
fn too_many_delegations_in_one_document() {
    let with = |count: usize| {
        let mut tree = Tree::one(json!({ "paths": ["none"] }));
        let one = tree.delegations["roles"][0].clone();
        let list = tree.delegations["roles"].as_array_mut().unwrap();
        for n in list.len()..count {
            let mut other = one.clone();
            other["name"] = format!("r{n}").into();
            list.push(other);
        }
        tree
    };
    assert!(!with(1024).finds(PATH));
    let tree = with(1025);
    assert!(tree.refuses(&tree.serve()).to_string().contains("more than 1024 roles"));
}

#[test]
fn what_the_top_level_lists_is_not_searched_for_below() {
    let tree = Tree::one(json!({ "paths": ["*", "*/*"] }));
    let served = tree.serve();
    let (machine, update) = tree.search(&served, "any/generation.json");
    let update = update.unwrap();
    let listed = update.listed("any/generation.json").unwrap();
    let publication = tree.fleet.publication(&target("any", 1));
    assert_eq!(listed.hashes.sha256, Some(Sha256::of(publication.target.as_bytes())));
    assert_eq!(machine.fetched.last().unwrap(), "1.targets.json");
}
