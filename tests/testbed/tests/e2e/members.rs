//! Machines that are removed and come back: removed means removed, and once.

use std::fs;

use muster_protocol::machine::Class;
use muster_protocol::operator::Standing;
use muster_testbed::fleet::{Fleet, Wishes, both, said};

use crate::flakes::write_machines;
use crate::operators::{flake, log, refused};

fn revocations(fleet: &Fleet, name: &str) -> usize {
    log(fleet)
        .iter()
        .filter(|entry| {
            entry.action == "machine-revoked" && entry.machine.as_ref().is_some_and(|it| it.as_str() == name)
        })
        .count()
}

#[test]
fn a_machine_without_secrets_is_removed_once_and_no_other_has_to_evaluate() {
    let fleet = Fleet::prepare(&both(), &Wishes::default()).unwrap();
    for (name, _) in both() {
        fleet.invite(name).unwrap();
    }
    write_machines(&fleet, true);
    // Advice about git is given only with git.
    fs::create_dir(fleet.fixture.flake().join(".git")).unwrap();
    let flake = flake(&fleet);
    let remove = |name: &str| fleet.run(&["machines", "remove", name, "--yes", "--flake", &flake]).unwrap();

    let removed = remove("cinnabar");
    let printed = said(&removed);
    assert!(removed.status.success(), "{printed}");
    assert!(
        printed.contains("cinnabar is revoked") && printed.contains("The flake still describes cinnabar"),
        "{printed}"
    );
    assert!(!printed.contains("git"), "nothing changed that git knows of: {printed}");
    assert_eq!(revocations(&fleet, "cinnabar"), 1);

    let again = remove("cinnabar");
    let printed = said(&again);
    assert!(again.status.success() && printed.contains("cinnabar was removed already"), "{printed}");
    assert!(!printed.contains("git") && !printed.contains("is revoked"), "{printed}");
    assert_eq!(revocations(&fleet, "cinnabar"), 1, "a second deed in the log");

    for verb in [&["machines", "list"][..], &["status"]] {
        let shown = fleet.run(verb).unwrap();
        assert!(!String::from_utf8_lossy(&shown.stdout).contains("cinnabar"), "{}", said(&shown));
        assert!(said(&shown).contains("1 removed or revoked: --all shows them"), "{}", said(&shown));
        assert!(fleet.must(&[verb, &["--all"]].concat()).unwrap().contains("cinnabar"));
        assert!(!fleet.must(&[verb, &["--json"]].concat()).unwrap().contains("cinnabar"));
        assert!(fleet.must(&[verb, &["--json", "--all"]].concat()).unwrap().contains("cinnabar"));
    }
    assert_eq!(fleet.view("cinnabar").unwrap().standing, Standing::Revoked);

    // An unknown machine is a typo, and not a success.
    refused(
        &remove("cinabar"),
        &[
            "there is no machine cinabar in sops/machines",
            "the controller knows no such machine",
            "machines list",
        ],
    );
    // A missing flake does not revoke a machine halfway either.
    let nowhere =
        fleet.run(&["machines", "remove", "stibnite", "--yes", "--flake", "path:/nowhere"]).unwrap();
    refused(&nowhere, &["--flake", "muster machines revoke stibnite"]);
    assert_eq!(fleet.view("stibnite").unwrap().standing, Standing::Invited);

    // The flake itself is broken: what can be done is done, and the rest is reported.
    fs::create_dir(fleet.fixture.flake().join("sops")).unwrap();
    fs::write(fleet.fixture.flake().join("machines.nix"), "throw \"no machines\"\n").unwrap();
    let removed = remove("stibnite");
    let printed = said(&removed);
    assert!(removed.status.success() && printed.contains("stibnite is revoked"), "{printed}");
    assert!(printed.contains("Whether the flake still describes stibnite is not known"), "{printed}");
    assert!(printed.contains("no machines"), "the cause: {printed}");
}

#[test]
fn a_machine_that_is_replaced_keeps_its_tags_and_gets_no_other_class_unasked() {
    let fleet = Fleet::prepare(&both()[..1], &Wishes::default()).unwrap();
    let system = &both()[0].1;
    let add = |more: &[&str]| fleet.run(&[&["machines", "add", "cinnabar"], more].concat()).unwrap();
    let first = add(&["--class", "nixos", "--system", system, "--tag", "desk", "--tag", "lab"]);
    assert!(first.status.success(), "{}", said(&first));

    let other = ["--class", "darwin", "--system", "aarch64-darwin", "--replace"];
    refused(&add(&other), &["cinnabar is a nixos machine: make it a darwin one?", "--yes"]);
    let view = fleet.view("cinnabar").unwrap();
    assert_eq!((view.class, view.tags.len()), (Class::Nixos, 2));

    let agreed = add(&[&other[..], &["--yes"]].concat());
    assert!(agreed.status.success(), "{}", said(&agreed));
    let view = fleet.view("cinnabar").unwrap();
    assert_eq!((view.class, view.tags.len()), (Class::Darwin, 2), "the tags stay");
}
