//! Several operators: drafts, signatures, thresholds, and what is signed again.

use std::fs;
use std::path::PathBuf;
use std::process::Output;

use muster_protocol::audit::{Entry, origin, verify};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::draft::DraftView;
use muster_protocol::ids::Sha256;
use muster_protocol::operator::Condition;
use muster_testbed::fleet::{Fleet, both, said};
use muster_testbed::printed;

use crate::common::assert_runs_published;

/// Another operator, with their own folder and key beside the fleet's.
pub struct Operator {
    pub config: PathBuf,
    pub public: String,
}

impl Operator {
    /// Makes the key, and a copy of what every operator may have.
    pub fn new(fleet: &Fleet, name: &str) -> Self {
        let folder = fleet.folder().join(name);
        fs::create_dir_all(folder.join("keys")).unwrap();
        let key = folder.join("keys/operator.pem");
        let public = fleet.must(&["keys", "generate", key.to_str().unwrap(), "--plain"]).unwrap();
        for file in ["muster.toml", "root.json"] {
            fs::copy(fleet.config_folder().join(file), folder.join(file)).unwrap();
        }
        Self { config: folder.join("muster.toml"), public: public.trim().to_owned() }
    }

    pub fn run(&self, fleet: &Fleet, arguments: &[&str]) -> Output {
        fleet.run(&[&["--config", self.config.to_str().unwrap()], arguments].concat()).unwrap()
    }
    #[track_caller]
    pub fn must(&self, fleet: &Fleet, arguments: &[&str]) -> String {
        let output = self.run(fleet, arguments);
        assert!(output.status.success(), "muster {}: {}", arguments.join(" "), said(&output));
        String::from_utf8(output.stdout).unwrap()
    }
    #[track_caller]
    pub fn refused(&self, fleet: &Fleet, arguments: &[&str], words: &[&str]) {
        refused(&self.run(fleet, arguments), words);
    }
}

#[track_caller]
pub fn refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it was accepted: {}", said(output));
    for word in words {
        assert!(text.contains(word), "'{word}' is missing in: {text}");
    }
}

pub fn flake(fleet: &Fleet) -> String {
    format!("path:{}", fleet.fixture.flake().display())
}

fn drafts(fleet: &Fleet) -> Vec<DraftView> {
    printed::read(&fleet.must(&["drafts", "list", "--json"]).unwrap()).unwrap()
}

fn published(fleet: &Fleet, name: &str) -> Option<u64> {
    fleet.view(name).unwrap().published.map(|published| published.target.generation.get())
}

/// The log, verified from its start.
pub fn log(fleet: &Fleet) -> Vec<Entry> {
    let entries: Vec<Entry> =
        printed::read(&fleet.must(&["audit", "--json", "--limit", "100000"]).unwrap()).unwrap();
    let first = fs::read(fleet.controller_folder().join("root/1.root.json")).unwrap();
    verify(origin(&Sha256::of(&first)), &entries).unwrap();
    entries
}

#[test]
fn two_operators_sign_what_one_drafted_and_only_then_the_machines_take_it() {
    let fleet = Fleet::start(&both()).unwrap();
    let bob = Operator::new(&fleet, "bob");
    bob.refused(&fleet, &["status"], &["is not an operator key in the current root"]);
    let said = fleet
        .must(&["keys", "add", "operator", &bob.public, "--name", "bob", "--threshold", "2", "--yes"])
        .unwrap();
    assert!(said.contains("+ operator bob") && said.contains("2 of 2 must sign"), "{said}");
    let listed = fleet.must(&["keys", "list"]).unwrap();
    assert!(
        listed.contains("2 of 2") && listed.contains("bob") && listed.contains("Root 2 is good"),
        "{listed}"
    );

    // One signature makes a draft, and nothing for a machine.
    fleet.fixture.say("greeting", "one").unwrap();
    let drafted = fleet.update(&[]).unwrap();
    let id = drafts(&fleet)[0].id.short();
    assert!(drafted.contains(&format!("muster sign {id}")), "{drafted}");
    assert_eq!(published(&fleet, "cinnabar"), None);

    // The other operator sees what it would deploy, and does not sign what their flake does not say.
    let shown = bob.must(&fleet, &["drafts", "show", &id]);
    let output = fleet.fixture.output("nixosConfigurations.cinnabar.config.system.build.toplevel").unwrap();
    for words in [
        "cinnabar (nixos",
        "generation 1",
        "derivation",
        output.as_str(),
        "its first generation",
        "deadline",
        "check",
        "signature ends",
        "signed by",
        "1 signature more wanted",
    ] {
        assert!(shown.contains(words), "'{words}' is missing in: {shown}");
    }
    refused(&bob.run(&fleet, &["sign", &id]), &["nobody is here to answer"]);
    fleet.fixture.say("greeting", "another").unwrap();
    bob.refused(&fleet, &["sign", &id, "--yes", "--flake", &flake(&fleet)], &["is not what", "derivation"]);
    fleet.fixture.say("greeting", "one").unwrap();
    // Bob's own signature counts once.
    let again = fleet.must(&["sign", &id, "--yes"]).unwrap();
    assert!(again.contains("You have signed"), "{again}");
    assert_eq!(published(&fleet, "cinnabar"), None);
    let signed = bob.must(&fleet, &["sign", &id, "--yes", "--flake", &flake(&fleet)]);
    assert!(signed.contains("The draft is what") && signed.contains("published generation 1"), "{signed}");
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
        assert_runs_published(&fleet, name);
        assert_eq!(fleet.machine(name).greeting().unwrap(), "one");
    }
    assert!(drafts(&fleet).is_empty());

    // By mail, signed without a prompt: only the file travels.
    fleet.fixture.say("greeting", "two").unwrap();
    let file = fleet.folder().join("draft.json");
    let file = file.to_str().unwrap();
    let flake = flake(&fleet);
    fleet.must(&["update", "--yes", "--flake", &flake, "--draft-file", file, "cinnabar"]).unwrap();
    let text = fs::read_to_string(file).unwrap();
    let secret = fs::read_to_string(fleet.config_folder().join("keys/operator.pem")).unwrap();
    assert!(!text.contains(secret.lines().nth(1).unwrap()));
    bob.must(&fleet, &["sign", file, "--offline", "--yes"]);
    assert_eq!(published(&fleet, "cinnabar"), Some(1));
    fleet.must(&["drafts", "publish", file]).unwrap();
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    assert_eq!(fleet.machine("cinnabar").greeting().unwrap(), "two");
    // Publishing it again does not create a second one; and the publisher has seen what enough operators have
    // signed.
    let seen = bob.config.with_file_name("generations-seen.json");
    fs::remove_file(&seen).unwrap();
    bob.must(&fleet, &["drafts", "publish", file]);
    assert_eq!(published(&fleet, "cinnabar"), Some(2));
    let seen: serde_json::Value = serde_json::from_str(&fs::read_to_string(&seen).unwrap()).unwrap();
    assert_eq!(seen["machines"]["cinnabar"], 2);

    // Everyone refuses a draft that was altered on its way.
    fleet.fixture.say("greeting", "three").unwrap();
    fleet.must(&["update", "--yes", "--flake", &flake, "--draft-file", file, "cinnabar"]).unwrap();
    let evil = fs::read_to_string(file).unwrap().replacen(
        r#"\"deadline_seconds\":60"#,
        r#"\"deadline_seconds\":61"#,
        1,
    );
    fs::write(file, evil).unwrap();
    bob.refused(&fleet, &["sign", file, "--yes"], &["is not sound", "do not sign"]);
    let id = drafts(&fleet)[0].id.short();
    bob.must(&fleet, &["drafts", "drop", &id]);
    assert!(drafts(&fleet).is_empty());

    let log = log(&fleet);
    let done = |action: &str| log.iter().filter(|entry| entry.action == action).count();
    assert_eq!((done("root-published"), done("draft-made"), done("draft-signed")), (1, 3, 1), "{log:#?}");
    assert_eq!((done("generation-published"), done("draft-dropped"), done("enrolled")), (3, 3, 2));
    let by_bob = log.iter().find(|entry| entry.action == "draft-signed").unwrap();
    assert_eq!(by_bob.by.unwrap().hex(), bob.public);
    let shown = fleet.must(&["audit", "--limit", "4"]).unwrap();
    assert!(shown.contains("bob (") && shown.contains("each fits the one before it"), "{shown}");
}

#[test]
fn root_holders_sign_one_after_the_other_and_a_single_one_changes_nothing() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    let second = fleet.folder().join("root-2.pem");
    let second = second.to_str().unwrap();
    let public = fleet.must(&["keys", "generate", second, "--plain"]).unwrap();
    let first = fleet.config_folder().join("keys/root.pem");
    let first = first.to_str().unwrap();
    // The new holder signs too, so that no lost key is ever named.
    fleet
        .must(&[
            "keys",
            "add",
            "root",
            public.trim(),
            "--threshold",
            "2",
            "--yes",
            "--root-key",
            first,
            "--root-key",
            second,
        ])
        .unwrap();
    let bob = Operator::new(&fleet, "bob");
    let said = fleet.must(&["keys", "add", "operator", &bob.public, "--name", "bob", "--yes"]).unwrap();
    assert!(said.contains("waits for 1 signature"), "{said}");
    bob.refused(&fleet, &["status"], &["is not an operator key"]);
    let id = drafts(&fleet)[0].id.short();
    // An operator is not a root holder.
    refused(&fleet.run(&["sign", &id, "--yes"]).unwrap(), &["is not a root key"]);
    let signed = fleet.must(&["sign", &id, "--yes", "--key", second]).unwrap();
    assert!(signed.contains("+ operator bob") && signed.contains("Root 3 is in force"), "{signed}");
    bob.must(&fleet, &["status"]);
    // By file too, with nothing but the trusted root at hand.
    let file = fleet.folder().join("root-draft.json");
    let file = file.to_str().unwrap();
    fleet.must(&["keys", "remove", "operator", "bob", "--yes", "--out", file]).unwrap();
    fleet.must(&["sign", file, "--offline", "--yes", "--key", second]).unwrap();
    bob.must(&fleet, &["status"]);
    fleet.must(&["keys", "publish", file]).unwrap();
    bob.refused(&fleet, &["status"], &["is not an operator key"]);
    assert_eq!(log(&fleet).iter().filter(|entry| entry.action == "root-published").count(), 3);
}

#[test]
fn a_generation_near_the_end_of_its_signature_is_renewed_and_changed_machines_are_left_alone() {
    let fleet = Fleet::start(&both()).unwrap();
    let config = fleet.config_folder().join("muster.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("signature_days = 90", "signature_days = 5")).unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
    }
    let status = fleet.must(&["status"]).unwrap();
    assert!(
        status.contains("the signature ends in") && status.contains("muster update --refresh"),
        "{status}"
    );
    // Five days, to the second, still count as five.
    let clock = SystemClock::new();
    let settled = clock.unix_seconds();
    fleet.until("cinnabar", "another second", |_| clock.unix_seconds() > settled).unwrap();
    let unchanged = fleet.update(&[]).unwrap();
    assert!(
        unchanged.contains("unchanged; its signature ends in 4 days: renew it with --refresh"),
        "{unchanged}"
    );
    assert_eq!(published(&fleet, "cinnabar"), Some(1));

    fs::write(&config, &text).unwrap();
    // One of the two changes: that is not a renewal.
    fleet.fixture.say("greeting.stibnite", "changed").unwrap();
    let renewed = fleet.must(&["update", "--refresh", "--yes", "--flake", &flake(&fleet)]).unwrap();
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    if renewed.contains("left alone") {
        assert_eq!(published(&fleet, "stibnite"), Some(1), "{renewed}");
    } else {
        panic!("{renewed}");
    }
    assert!(
        !fleet
            .must(&["status"])
            .unwrap()
            .lines()
            .any(|line| line.contains("cinnabar") && line.contains("ends in"))
    );
    let nothing =
        fleet.must(&["update", "--refresh", "--yes", "--flake", &flake(&fleet), "cinnabar"]).unwrap();
    assert!(nothing.contains("nothing to sign"), "{nothing}");
}
