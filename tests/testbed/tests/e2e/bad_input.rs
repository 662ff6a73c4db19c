//! Bad input gets one clear sentence that says what to do, a non-zero exit code, and leaves nothing
//! half-written.

use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Output;

use muster_protocol::enrol::{Secret, Token};
use muster_protocol::operator::{AddMachine, Condition, Standing};
use muster_server::core::audit::AuditContext;
use muster_testbed::caller::{Caller, key_in};
use muster_testbed::fleet::{Fleet, Wishes, both, said};
use muster_testbed::thief::Thief;

use crate::common::{reported, with_store};

/// Refused in a few lines, with all of these words, and without a program's internals.
#[track_caller]
fn assert_refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it was accepted: {}", said(output));
    assert!(output.status.code().is_some_and(|code| code != 101), "it panicked: {text}");
    for word in words {
        assert!(text.contains(word), "'{word}' is missing in: {text}");
    }
    let lines = text.trim().lines().count();
    assert!((1..=12).contains(&lines), "{lines} lines are not one clear sentence: {text}");
    for insides in ["panicked", "RUST_BACKTRACE", "Os {", "Error(", "reqwest::"] {
        assert!(!text.contains(insides), "it shows its insides ({insides}): {text}");
    }
}

/// The machine has no identity, whole or in part.
#[track_caller]
fn assert_not_enrolled(fleet: &Fleet, name: &str) {
    let state = fleet.machine(name).root.at("/var/lib/muster");
    assert!(!state.join("enrolment.json").exists(), "{name} is enrolled");
    assert_ne!(fleet.view(name).unwrap().standing, Standing::Enrolled);
}

#[test]
fn wrong_changed_used_and_foreign_tokens_are_refused_and_the_right_one_still_works() {
    let mut fleet = Fleet::prepare(&both(), &Wishes::default()).unwrap();
    let (right, other) = (fleet.invite("cinnabar").unwrap(), fleet.invite("stibnite").unwrap());
    let enrol = |token: &str| fleet.enrol("cinnabar", token).unwrap();

    // Every user of the machine can read the arguments of its programs.
    let shown = fleet.agent("cinnabar", &["enrol", &right]).unwrap();
    assert_refused(&shown, &["command line", "enrol -", "muster machines add"]);
    assert_refused(&enrol("swordfish"), &["token"]);
    assert_refused(&enrol(&right[..right.len() - 9]), &["token"]);
    assert_not_enrolled(&fleet, "cinnabar");
    // Another machine's token: the class differs.
    assert_refused(&enrol(&other), &["darwin"]);
    assert_not_enrolled(&fleet, "cinnabar");
    // Another machine's token with its name changed: the code does not match.
    let mut forged = Token::decode(&right).unwrap();
    forged.secret = Secret::generate().unwrap();
    assert_refused(&enrol(&forged.encode().unwrap()), &["token"]);
    let mut forged = Token::decode(&other).unwrap();
    forged.machine = "cinnabar".parse().unwrap();
    forged.class = muster_protocol::machine::Class::Nixos;
    assert_refused(&enrol(&forged.encode().unwrap()), &["token"]);
    // A root that is not the fleet's: no trust on first use.
    let mut forged = Token::decode(&right).unwrap();
    forged.root = muster_protocol::ids::Sha256::of(b"another");
    assert_refused(&enrol(&forged.encode().unwrap()), &["token"]);
    assert_not_enrolled(&fleet, "cinnabar");

    let enrolled = enrol(&right);
    assert!(enrolled.status.success(), "{}", said(&enrolled));
    std::fs::remove_dir_all(fleet.machine("cinnabar").root.at("/var/lib/muster")).unwrap();
    assert_refused(&fleet.enrol("cinnabar", &right).unwrap(), &["used"]);

    fleet.invite_and_enrol("stibnite").unwrap();
    assert_refused(&fleet.enrol("stibnite", &other).unwrap(), &["already enrolled", "--replace"]);
}

#[test]
fn a_token_is_refused_while_the_controller_is_down_and_works_when_it_is_back() {
    let mut fleet = Fleet::prepare(&both()[..1], &Wishes::default()).unwrap();
    let token = fleet.invite("cinnabar").unwrap();
    fleet.stop_controller().unwrap();
    let address = fleet.address.clone();
    assert_refused(&fleet.enrol("cinnabar", &token).unwrap(), &[&address]);
    fleet.start_controller().unwrap();
    assert_not_enrolled(&fleet, "cinnabar");
    assert!(fleet.enrol("cinnabar", &token).unwrap().status.success());
}

#[test]
fn an_operator_without_a_controller_is_told_where_it_was_looked_for() {
    let mut fleet = Fleet::prepare(&both()[..1], &Wishes::default()).unwrap();
    fleet.stop_controller().unwrap();
    let address = fleet.address.clone();
    let flake = format!("path:{}", fleet.fixture.flake().display());
    for command in [
        &["status"][..],
        &["machines", "list"],
        &["history", "cinnabar"],
        &["update", "--yes", "--flake", &flake],
        &["machines", "add", "new", "--class", "nixos"],
    ] {
        assert_refused(&fleet.run(command).unwrap(), &[&address]);
    }
}

#[test]
fn flakes_and_machines_that_are_not_there_are_named() {
    let fleet = Fleet::start(&both()).unwrap();
    let flake = format!("path:{}", fleet.fixture.flake().display());
    let update = |flake: &str, machine: &[&str]| {
        fleet.run(&[&["update", "--yes", "--flake", flake], machine].concat()).unwrap()
    };
    assert_refused(&update(&flake, &["orpiment"]), &["orpiment", "cinnabar", "stibnite"]);
    assert_refused(&update(&flake, &["@printers"]), &["printers"]);
    assert_refused(&update("path:/nowhere/at/all", &["cinnabar"]), &["/nowhere/at/all"]);

    let broken = fleet.fixture.flake().join("machines.nix");
    let good = std::fs::read_to_string(&broken).unwrap();
    std::fs::write(
        &broken,
        good.replace("system = \"aarch64-darwin\"", "system = throw \"no such silicon\""),
    )
    .unwrap();
    assert_refused(&update(&flake, &["stibnite"]), &["no such silicon"]);
    std::fs::write(&broken, "{ stibnite = ").unwrap();
    assert_refused(&update(&flake, &["stibnite"]), &["machines.nix"]);
    // The Mac is described as a NixOS host of another system.
    std::fs::write(&broken, good.replace("aarch64-darwin", "riscv64-linux")).unwrap();
    assert_refused(&update(&flake, &["stibnite"]), &["stibnite", "darwin"]);
    std::fs::write(&broken, good.replace("aarch64-darwin", "x86_64-darwin")).unwrap();
    assert_refused(&update(&flake, &["stibnite"]), &["stibnite", "x86_64-darwin"]);
    for (name, _) in both() {
        assert!(fleet.view(name).unwrap().published.is_none(), "nothing was signed for {name}");
    }
    std::fs::write(&broken, good).unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
    }
}

#[test]
fn a_build_that_fails_is_reported_with_its_own_words_and_changes_nothing() {
    let fleet = Fleet::start(&both()).unwrap();
    let before: Vec<_> = both().iter().map(|(name, _)| fleet.machine(name).running()).collect();
    fleet.fixture.say("build-exit", "3").unwrap();
    fleet.update(&[]).unwrap();
    for ((name, _), before) in both().iter().zip(&before) {
        fleet.settled(name, 1, Condition::Failed).unwrap();
        assert_eq!(&fleet.machine(name).running(), before);
        let words = format!("{:?}", reported(&fleet, name, 1));
        assert!(words.contains("Build") && words.contains("behaviour/build-exit"), "{words}");
    }
}

#[test]
fn an_upload_that_breaks_off_leaves_nothing() {
    let mut fleet = Fleet::prepare(&both()[..1], &Wishes::default()).unwrap();
    let bearer = operators_bearer(&fleet);
    let path = format!("/cache/nar/{}.nar.zst", "1".repeat(52));
    let mut stream = TcpStream::connect(&fleet.address).unwrap();
    write!(
        stream,
        "PUT {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {bearer}\r\n\
         content-length: 1000000\r\n\r\nhalf",
        fleet.address
    )
    .unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut answer = String::new();
    let _ = stream.read_to_string(&mut answer);
    assert!(!answer.starts_with("HTTP/1.1 2"), "{answer}");

    let mut stream = TcpStream::connect(&fleet.address).unwrap();
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {bearer}\r\nconnection: close\r\n\r\n",
        fleet.address
    )
    .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 404"), "{answer}");
    assert!(fleet.controller_is_running().unwrap());
}

fn operators_bearer(fleet: &Fleet) -> String {
    let caller = Caller::new(&fleet.address, &fleet.controller_folder().join("root/1.root.json")).unwrap();
    caller.session(&key_in(&fleet.config_folder().join("keys/operator.pem")).unwrap()).unwrap()
}

#[test]
fn metadata_that_is_no_json_is_refused_in_a_sentence_and_the_agent_goes_on() {
    let thief = Thief::start().unwrap();
    let wishes = Wishes { url: Some(thief.url.clone()), ..Wishes::default() };
    let mut fleet = Fleet::prepare(&both()[..1], &wishes).unwrap();
    thief.passes_on_to(&format!("http://{}", fleet.address));
    fleet.invite_and_enrol("cinnabar").unwrap();
    fleet.machine("cinnabar").start().unwrap();
    fleet.wait("cinnabar", "its first check-in", |view| view.last_seen.is_some()).unwrap();
    thief.bend(|answer| {
        if answer.path.ends_with("timestamp.json") {
            answer.status = 200;
            answer.body = b"<html>Please log in to the hotel's network</html>".to_vec();
        }
    });
    fleet.update(&[]).unwrap();
    let view = fleet.wait("cinnabar", "the refusal", |view| view.refused.is_some()).unwrap();
    assert_eq!(view.refused, Some(muster_protocol::report::Attack::Malformed));
    assert_eq!(fleet.machine("cinnabar").greeting().unwrap(), "fresh from the installer");
    assert_eq!(fleet.agent_pids("cinnabar").len(), 1);
    thief.behave();
    assert!(fleet.agent("cinnabar", &["check-now"]).unwrap().status.success());
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
}

#[test]
fn an_expired_token_is_refused_as_such() {
    let fleet = Fleet::prepare(&both()[..1], &Wishes::default()).unwrap();
    let token = expired_token(&fleet, &fleet.invite("cinnabar").unwrap());
    assert_refused(&fleet.enrol("cinnabar", &token).unwrap(), &["expired", "muster machines add"]);
    assert_not_enrolled(&fleet, "cinnabar");
}

/// A token in the place of `valid`, made by the store: the API refuses one that has already expired.
fn expired_token(fleet: &Fleet, valid: &str) -> String {
    let mut token = Token::decode(valid).unwrap();
    token.secret = Secret::generate().unwrap();
    let new = AddMachine {
        machine: token.machine.clone(),
        class: token.class,
        system: fleet.view(token.machine.as_str()).unwrap().system,
        tags: BTreeSet::new(),
        token: token.secret.token_id(),
        check_key: token.secret.check_key(),
        expires: 1,
        replace: false,
    };
    let operator = key_in(&fleet.config_folder().join("keys/operator.pem")).unwrap().public();
    let context = AuditContext { operator: &operator, at: 0 };
    with_store(fleet, async |store| {
        store.add_machine(&new, &context).await.unwrap();
    });
    token.encode().unwrap()
}
