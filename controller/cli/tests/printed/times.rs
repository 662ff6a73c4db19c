//! Every printed document gives its times as RFC 3339, and none as a number.

use std::collections::BTreeSet;

use serde_json::Value;

use super::*;

/// Every command with `--json` that reads, with the arguments that the stand-in's answers need.
const READING: [&[&str]; 14] = [
    &["status"],
    &["why", "tin"],
    &["machines", "list"],
    &["machines", "show", "tin"],
    &["history", "tin"],
    &["history", "tin", "--attacks"],
    &["audit"],
    &["audit", "checkpoint"],
    &["audit", "verify"],
    &["drafts", "list"],
    &["rollout", "list"],
    &["rollout", "show", "weekly"],
    &["keys", "list"],
    &["machines", "list", "--flake", "flake"],
];
/// These need sops and Nix, and are run by tests/secrets; they contain no times. A list of tokens is for
/// programs that enrol, a collection takes a controller's time: `protocol`'s list of times has their fields.
/// The help of `readmit` only names the option of another command. A simulated fleet has durations alone.
const ELSEWHERE: [&[&str]; 6] = [
    &["vars", "list"],
    &["vars", "check"],
    &["machines", "add"],
    &["machines", "readmit"],
    &["cache", "gc"],
    &["simulate"],
];

/// Large numbers that are not times.
fn bare(value: &Value, at: &str, found: &mut Vec<String>) {
    let is_time = |number: f64| (1e9..5e9).contains(&number) || (1e12..5e12).contains(&number);
    match value {
        Value::Number(number) if number.as_f64().is_some_and(is_time) => {
            found.push(format!("{at}: {number}"));
        }
        Value::Array(all) => all.iter().for_each(|one| bare(one, at, found)),
        Value::Object(all) => all.iter().for_each(|(name, one)| bare(one, &format!("{at}/{name}"), found)),
        _ => {}
    }
}

/// The numbers in the answers that are times, in a document of the same shape.
fn dated(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(dated),
        Value::Object(all) => {
            for (name, value) in all {
                match (name.as_str(), value.is_i64()) {
                    ("expires" | "ends", true) => *value = 1_795_861_875_i64.into(),
                    (name, true) if muster_protocol::moment::unit_of(name).is_some() => {
                        *value = 1_795_861_875_250_i64.into();
                    }
                    _ => dated(value),
                }
            }
        }
        _ => {}
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_number_in_a_printed_document_is_a_time() {
    let (folder, given, mut sound) = fleet().await;
    let mut machine = sound["/v1/operator/machines/tin"].clone();
    for (name, value) in [
        ("key_rotated_at", json!(1)),
        ("enrolled_at", json!(1)),
        ("last_seen", json!(1)),
        ("clock_skew_ms", json!(5)),
    ] {
        machine[name] = value;
    }
    machine["health"]["waits_until"] = json!(1);
    machine["health"]["paused_until"] = json!(1);
    machine["attack"]["ended_at"] = json!(1);
    let published = machine["published"].clone();
    let event = json!({ "seq": 1, "at": 1, "kind": "dropped", "events": 2, "since": 1, "until": 1 });
    sound
        .get_mut("/v1/operator/machines/tin/history")
        .unwrap()
        .as_array_mut()
        .unwrap()
        .push(json!({ "published": published, "events": [event] }));
    sound.insert("/v1/operator/machines/tin/attacks".into(), json!([machine["attack"]]));
    sound.insert("/v1/operator/machines".into(), json!([machine]));
    sound.insert("/v1/operator/machines/tin".into(), machine);
    sound.values_mut().for_each(dated);
    rechained(&mut sound);
    *given.lock().unwrap() = whole(&sound);
    std::fs::create_dir(folder.path().join("flake")).unwrap();

    for arguments in READING {
        let output = muster(folder.path(), &[arguments, &["--json"]].concat());
        if arguments.contains(&"--flake") {
            // Without Nix there is no flake to read; with it, this is not one.
            assert!(!output.status.success(), "{output:?}");
            continue;
        }
        assert!(output.status.success(), "{arguments:?}: {output:?}");
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        let mut found = Vec::new();
        bare(&told, "", &mut found);
        assert!(found.is_empty(), "{arguments:?}: {found:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        // What a machine waits for is told in sentences.
        let has_times = !matches!(arguments, ["keys" | "why", ..]);
        if let ["audit", _, ..] = arguments {
            // What these tell is of now.
            continue;
        }
        assert_eq!(text.contains("\"2026-11-28T10:31:15.250Z\""), has_times, "{arguments:?}: {text}");
        if text.contains("\"expires\"") || text.contains("\"ends\"") {
            assert!(text.contains("\"2026-11-28T10:31:15Z\""), "{arguments:?}: {text}");
        }
        // Text output has them as RFC 3339, too.
        let output = muster(folder.path(), arguments);
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(!text.contains(" UTC") && !text.contains("1795861875"), "{arguments:?}: {text}");
    }
}

/// The stand-in's log, chained as a controller would.
fn rechained(answers: &mut BTreeMap<String, Value>) {
    let fleet = answers["/v1/fleet"]["fleet"].as_str().unwrap().parse().unwrap();
    let entry = answers.get_mut("/v1/operator/audit").unwrap().pointer_mut("/entries/0").unwrap();
    let read: muster_protocol::audit::Entry = serde_json::from_value(entry.clone()).unwrap();
    let origin = muster_protocol::audit::origin(&fleet);
    entry["hash"] = json!(muster_protocol::audit::hash(&origin.hash, &read));
}

/// The commands that have `--json`, according to their own help.
fn with_json(folder: &Path, command: &[&str], found: &mut BTreeSet<Vec<String>>) {
    let help = muster(folder, &[command, &["--help"]].concat());
    let help = String::from_utf8(help.stdout).unwrap();
    if help.contains("--json") {
        found.insert(command.iter().map(|word| (*word).to_owned()).collect());
    }
    let Some((_, below)) = help.split_once("Commands:\n") else { return };
    let verbs = below.lines().take_while(|line| line.starts_with("  "));
    for verb in
        verbs.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|word| !word.is_empty()))
    {
        if verb != "help" {
            with_json(folder, &[command, &[verb]].concat(), found);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_command_that_prints_json_is_looked_at() {
    let (folder, _, _) = fleet().await;
    let mut found = BTreeSet::new();
    with_json(folder.path(), &[], &mut found);
    let looked_at = |command: &Vec<String>| {
        let words: Vec<&str> = command.iter().map(String::as_str).collect();
        READING.iter().chain(&ELSEWHERE).any(|known| known.starts_with(&words))
    };
    assert!(found.len() > 8, "{found:?}");
    assert!(found.iter().all(looked_at), "{found:?}");
}
