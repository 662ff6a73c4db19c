//! What an update says about machines that it cannot update, and about the options it gave Nix.

use std::fs;

use muster_testbed::fleet::{Fleet, Wishes, both, said};

use crate::operators::{Operator, flake, refused};

/// Adds a machine that nobody has enrolled, and breaks the Mac's configuration or repairs it.
pub fn write_machines(fleet: &Fleet, broken: bool) {
    let folder = fleet.fixture.flake();
    let original = folder.join("original.nix");
    if !original.exists() {
        fs::copy(folder.join("machines.nix"), &original).unwrap();
    }
    let mac = if broken {
        "stibnite = original.stibnite // { root = throw \"the Mac is not finished\"; };"
    } else {
        ""
    };
    let text = format!(
        "let original = import ./original.nix; in original // {{ lead = original.cinnabar; {mac} }}\n"
    );
    fs::write(folder.join("machines.nix"), text).unwrap();
}

fn invited() -> Fleet {
    let fleet = Fleet::prepare(&both(), &Wishes::default()).unwrap();
    for (name, _) in both() {
        fleet.invite(name).unwrap();
    }
    fleet
}

fn published(fleet: &Fleet, name: &str) -> Option<u64> {
    fleet.view(name).unwrap().published.map(|published| published.target.generation.get())
}

#[test]
fn a_machine_that_cannot_be_made_is_named_and_keeps_the_others_back_only_if_nobody_says_otherwise() {
    let fleet = invited();
    write_machines(&fleet, true);
    let flake = flake(&fleet);
    let update =
        |more: &[&str]| fleet.run(&[&["update", "--yes", "--flake", &flake], more].concat()).unwrap();

    let none = update(&[]);
    refused(&none, &["the systems of 1 machine of 2", "stibnite", "the Mac is not finished", "--keep-going"]);
    refused(&none, &["the controller does not know them: lead (`muster machines add lead`)"]);
    assert_eq!((published(&fleet, "cinnabar"), published(&fleet, "stibnite")), (None, None));

    let others = update(&["--keep-going"]);
    refused(
        &others,
        &["left out, since their systems cannot be made:", "stibnite", "the Mac is not finished"],
    );
    assert_eq!(others.status.code(), Some(1), "{}", said(&others));
    assert_eq!((published(&fleet, "cinnabar"), published(&fleet, "stibnite")), (Some(1), None));

    write_machines(&fleet, false);
    let all = update(&[]);
    assert!(all.status.success(), "a machine that nobody enrolled is no failure: {}", said(&all));
    assert!(said(&all).contains("does not know them: lead"), "{}", said(&all));
    assert_eq!(published(&fleet, "stibnite"), Some(1));
}

#[test]
fn what_nix_was_told_is_signed_shown_and_wanted_of_the_next_signer() {
    let fleet = invited();
    let bob = Operator::new(&fleet, "bob");
    fleet
        .must(&["keys", "add", "operator", &bob.public, "--name", "bob", "--threshold", "2", "--yes"])
        .unwrap();
    let flake = flake(&fleet);
    let options = ["--impure", "--option", "eval-cache", "false"];
    fleet.must(&[&["update", "cinnabar", "--yes", "--flake", &flake], &options[..]].concat()).unwrap();
    let drafts = fleet.must(&["drafts", "list", "--json"]).unwrap();
    let drafts: serde_json::Value = serde_json::from_str(&drafts).unwrap();
    let id = drafts[0]["id"].as_str().unwrap().to_owned();

    let shown = bob.must(&fleet, &["drafts", "show", &id]);
    assert!(shown.contains("evaluated with") && shown.contains("--option eval-cache false"), "{shown}");
    bob.refused(
        &fleet,
        &["sign", &id, "--yes", "--flake", &flake],
        &["was evaluated with --impure --option eval-cache false, and you gave nothing beside the flake"],
    );
    bob.must(&fleet, &[&["sign", &id, "--yes", "--flake", &flake], &options[..]].concat());
    let target = fleet.view("cinnabar").unwrap().published.unwrap().target;
    assert_eq!(target.evaluation.describe(), ["--impure", "--option eval-cache false"]);
    let history = fleet.must(&["history", "cinnabar"]).unwrap();
    assert!(history.contains("(evaluated with --impure --option eval-cache false)"), "{history}");
}

#[test]
fn class_and_system_of_a_new_machine_are_known_from_the_flake() {
    let fleet = invited();
    write_machines(&fleet, false);
    let flake = flake(&fleet);
    fleet.must(&["machines", "add", "lead", "--flake", &flake]).unwrap();
    let (lead, cinnabar) = (fleet.view("lead").unwrap(), fleet.view("cinnabar").unwrap());
    assert_eq!((lead.class, lead.system), (cinnabar.class, cinnabar.system));

    let unknown = fleet.run(&["machines", "add", "tin", "--flake", &flake]).unwrap();
    refused(&unknown, &["has no machine tin", "cinnabar, lead, stibnite", "--class"]);
    let other =
        fleet.run(&["machines", "add", "lead", "--flake", &flake, "--class", "darwin", "--replace"]).unwrap();
    refused(&other, &["lead is a nixos machine in the flake, and you write darwin"]);
}
