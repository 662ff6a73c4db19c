use super::super::generators::tests::generators;
use super::super::recipients::tests::{key, members, secret};
use super::*;

const OWN: &str = "vars/per-machine/tin/own/key";
const SHARED: &str = "vars/shared/ca/key";
const KEPT: &str = "vars/shared/ca/kept";
const TOKEN: &str = "sops/secrets/token";

/// tin and lead share `ca`, tin has `own`; `kept` is deployed to nobody. joe reads all, tin has no key yet.
fn fleet() -> (Generators, Snapshot) {
    let ca = r#""ca":{"share":true,"files":{"key":{"secret":true,"deploy":true},"kept":{"secret":true,
        "deploy":false}}}"#;
    let own = r#""own":{"share":false,"files":{"key":{"secret":true,"deploy":true},"pub":{"secret":false,
        "deploy":true}}}"#;
    let text = format!(r#"{{"tin":{{"generators":{{{ca},{own}}}}},"lead":{{"generators":{{{ca}}}}}}}"#);
    let joe = [(Kind::User, "joe")];
    let snapshot = Snapshot {
        members: members(&[(Kind::User, "joe", "j"), (Kind::Machine, "lead", "p")]),
        secrets: BTreeMap::from([
            secret(OWN, &joe, &["j"]),
            secret(SHARED, &[(Kind::User, "joe"), (Kind::Machine, "lead")], &["j", "p"]),
            secret(KEPT, &joe, &["j"]),
            secret(TOKEN, &joe, &["j"]),
        ]),
        ..Snapshot::default()
    };
    (generators(&text).unwrap(), snapshot)
}
fn machine(name: &str) -> MachineName {
    name.parse().unwrap()
}
fn operator(name: &str) -> MemberName {
    name.parse().unwrap()
}

#[test]
fn an_accepted_machine_reads_what_the_flake_lets_it_and_no_more() {
    let (generators, snapshot) = fleet();
    let it = accept(&snapshot, &generators, &machine("tin"), &key("t"), false).unwrap();
    assert_eq!(
        it.draft.lines(),
        [
            "A sops/machines/tin/key.json",
            "L vars/per-machine/tin/own/key/machines/tin -> ../../../../../../sops/machines/tin",
            "R vars/per-machine/tin/own/key/secret  +tin",
            "L vars/shared/ca/key/machines/tin -> ../../../../../sops/machines/tin",
            "R vars/shared/ca/key/secret  +tin",
        ]
    );
    assert!(it.ended.is_empty() && it.known_to_the_old.is_empty());
    assert_eq!(it.draft.rekeys[1].recipients, Recipients::from([key("j"), key("p"), key("t")]));
}

#[test]
fn a_machines_new_key_takes_the_place_of_the_old_and_what_the_old_read_is_told() {
    let (generators, snapshot) = fleet();
    let it = accept(&snapshot, &generators, &machine("lead"), &key("q"), true).unwrap();
    assert_eq!(it.ended, Recipients::from([key("p")]));
    assert_eq!(it.known_to_the_old, [PathBuf::from(SHARED)]);
    assert_eq!(
        it.draft.lines(),
        [
            "A sops/machines/lead/key.json",
            "D sops/secrets/lead-age.key/",
            "R vars/shared/ca/key/secret  +lead  -lead",
        ]
    );
    let same = accept(&snapshot, &generators, &machine("lead"), &key("p"), false).unwrap();
    assert!(same.draft.is_empty(), "{:?}", same.draft);
}

#[test]
fn a_removed_machine_loses_its_access() {
    let (generators, snapshot) = fleet();
    let it = remove_machine(&snapshot, &generators, "lead", false).unwrap();
    assert_eq!(
        it.draft.lines(),
        ["D sops/machines/lead/", "D vars/shared/ca/key/machines/lead", "R vars/shared/ca/key/secret  -lead",]
    );
    assert_eq!(it.known_to_the_old, [PathBuf::from(SHARED)]);
    let unknown = remove_machine(&snapshot, &generators, "tin", false).unwrap_err().to_string();
    assert!(unknown.contains("no machine tin") && unknown.ends_with("there is lead"), "{unknown}");
}

#[test]
fn an_operator_joins_and_leaves() {
    let (generators, mut snapshot) = fleet();
    let eve = operator("eve");
    let joined = register(&snapshot, &eve, &Recipients::from([key("e")]), Joining::New, None).unwrap();
    assert_eq!(joined.lines(), ["A sops/users/eve/key.json"]);
    let mine = Recipients::from([key("j")]);
    let unknown = add_operator(&snapshot, &generators, &eve, &mine, |_| true).unwrap_err();
    assert_eq!(unknown.to_string(), "there is no operator eve in sops/users; there is joe");

    snapshot.members.keys.insert((Kind::User, "eve".into()), Ok(Recipients::from([key("e")])));
    let added =
        add_operator(&snapshot, &generators, &eve, &mine, |path| path.starts_with("vars/shared")).unwrap();
    assert_eq!(
        added.lines(),
        [
            "R vars/shared/ca/kept/secret  +eve",
            "L vars/shared/ca/kept/users/eve -> ../../../../../sops/users/eve",
            "R vars/shared/ca/key/secret  +eve",
            "L vars/shared/ca/key/users/eve -> ../../../../../sops/users/eve",
        ]
    );

    let (path, both) = secret(SHARED, &[(Kind::User, "joe"), (Kind::User, "eve")], &["e", "j"]);
    snapshot.secrets.insert(path.clone(), both);
    let left = remove_operator(&snapshot, &generators, &eve).unwrap();
    assert!(left.draft.lines().contains(&"D sops/users/eve/".to_owned()));
    assert_eq!(left.known_to_the_old, [path]);
    let last = remove_operator(&snapshot, &generators, &operator("joe")).unwrap_err().to_string();
    assert!(last.contains("joe is the only operator who reads"), "{last}");
}

#[test]
fn what_an_operator_does_not_read_is_left_to_another() {
    let (generators, mut snapshot) = fleet();
    let (path, theirs) = secret(SHARED, &[(Kind::User, "joe"), (Kind::Machine, "lead")], &["x"]);
    snapshot.secrets.insert(path.clone(), theirs);
    let (own, outdated) = secret(OWN, &[(Kind::User, "joe")], &["j", "x"]);
    snapshot.secrets.insert(own, outdated);
    let policy = Policy::new(&generators, &snapshot, &snapshot.members);
    let mut draft = policy.settle(|_, _, _| true).unwrap();
    assert_eq!(leave_to_others(&snapshot, &Recipients::from([key("j")]), &mut draft), [path]);
    assert_eq!(draft.lines(), [format!("R vars/per-machine/tin/own/key/secret  -{}", key("x"))]);
}

#[test]
fn a_group_carries_its_members() {
    let (generators, mut snapshot) = fleet();
    snapshot.members.keys.insert((Kind::User, "eve".into()), Ok(Recipients::from([key("e")])));
    snapshot
        .members
        .groups
        .insert("admins".into(), BTreeSet::from([(Kind::User, "eve".into()), (Kind::User, "joe".into())]));
    let (path, it) = secret(TOKEN, &[(Kind::Group, "admins")], &["e", "j"]);
    snapshot.secrets.insert(path, it);
    let left = remove_operator(&snapshot, &generators, &operator("eve")).unwrap();
    assert_eq!(
        left.draft.lines(),
        ["D sops/groups/admins/users/eve", "R sops/secrets/token/secret  -eve", "D sops/users/eve/"]
    );
    let (again, group) = (Joining::New, operator("admins"));
    let joined =
        register(&snapshot, &operator("bob"), &Recipients::from([key("b")]), again, Some(&group)).unwrap();
    assert_eq!(
        joined.lines(),
        ["L sops/groups/admins/users/bob -> ../../../users/bob", "A sops/users/bob/key.json"]
    );
}

#[test]
fn a_second_computer_of_an_operator_is_added_only_when_asked() {
    let (_, snapshot) = fleet();
    let (joe, keys) = (operator("joe"), Recipients::from([key("k")]));
    let refused = register(&snapshot, &joe, &keys, Joining::New, None).unwrap_err();
    assert!(refused.to_string().contains("--add"), "{refused}");
    let added = register(&snapshot, &joe, &keys, Joining::Add, None).unwrap();
    let Change::Write { contents, .. } = &added.changes[0] else { panic!() };
    let text = String::from_utf8_lossy(contents);
    assert!(text.contains(&key("j").key) && text.contains(&key("k").key), "{text}");
    let same = register(&snapshot, &joe, &Recipients::from([key("j")]), Joining::New, None).unwrap();
    assert!(same.is_empty());
}
