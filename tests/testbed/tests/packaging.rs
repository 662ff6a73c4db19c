//! What people install: the modules evaluate, and the files for those without modules say the same.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;

use muster_testbed::machine::finish;
use muster_testbed::programs;
use serde_json::Value;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// `tests/packaging/modules.nix`, evaluated.
fn modules() -> Value {
    let folder = tempfile::tempdir().unwrap();
    let nix = programs::of_the_host("nix").expect("these tests need Nix");
    let mut command = Command::new(nix);
    command
        .args(["eval", "--json", "-f"])
        .arg(repository().join("tests/packaging/modules.nix"))
        .env("NIX_CONFIG", programs::nix_config(""))
        .env("NIX_REMOTE", format!("local?root={}", folder.path().display()))
        .env("HOME", folder.path());
    serde_json::from_str(&finish(&mut command).unwrap()).unwrap()
}

/// A unit file's settings, without comments; a key that is given twice is an error.
fn unit(name: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(repository().join("packaging/systemd").join(name)).unwrap();
    let mut settings = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()) {
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}"));
        assert!(settings.insert(key.to_owned(), value.to_owned()).is_none(), "{name}: {key} twice");
    }
    settings
}

/// As systemd writes a value of a module.
fn written(value: &Value) -> String {
    match value {
        Value::Bool(true) => "yes".into(),
        Value::Bool(false) => "no".into(),
        Value::Array(values) => values.iter().map(written).collect::<Vec<_>>().join(" "),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[track_caller]
fn assert_same_service(unit: &BTreeMap<String, String>, module: &Value) {
    for (key, value) in module["serviceConfig"].as_object().unwrap() {
        if key != "ExecStart" {
            assert_eq!(unit.get(key), Some(&written(value)), "{key}");
        }
    }
    for (key, value) in module["unitConfig"].as_object().unwrap() {
        if key != "ConditionPathExists" {
            assert_eq!(unit.get(key), Some(&written(value)), "{key}");
        }
    }
    assert_eq!(unit["WantedBy"], written(&module["wantedBy"]));
    assert_eq!(unit["After"], written(&module["after"]));
}

#[test]
fn the_agents_unit_survives_the_switch_that_changes_it_with_module_and_without() {
    let (agent, modules) = (unit("muster-agent.service"), modules());
    assert_same_service(&agent, &modules["agent"]);
    for (file, module) in [("X-RestartIfChanged", "restartIfChanged"), ("X-StopIfChanged", "stopIfChanged")] {
        assert_eq!(agent[file], "false");
        assert_eq!(modules["agent"][module], Value::Bool(false));
    }
    assert!(modules["agent"]["serviceConfig"]["ExecStart"].as_str().unwrap().ends_with(" run"));
}

#[test]
fn the_controllers_unit_is_the_modules() {
    let modules = modules();
    assert_same_service(&unit("muster-controller.service"), &modules["controller"]);
    assert_eq!(modules["firewall"], serde_json::json!([8443]));
}

#[test]
fn the_agents_plist_is_the_modules_and_has_what_launchd_needs() {
    let path = repository().join("packaging/launchd/org.muster.agent.plist");
    let file: Value = plist::from_file(&path).unwrap();
    let mut module = modules()["daemon"].clone();
    for (key, value) in file.as_object().unwrap() {
        if key != "ProgramArguments" {
            assert_eq!(module.get(key), Some(value), "{key}");
        }
    }
    assert_eq!(module.as_object().unwrap().len(), file.as_object().unwrap().len());
    for plist in [file, module.take()] {
        assert_eq!(plist["Label"], "org.muster.agent");
        assert_eq!(plist["KeepAlive"], true);
        assert_eq!(plist["AbandonProcessGroup"], true, "unloading the agent must not end its switch");
        let command = plist["ProgramArguments"][2].as_str().unwrap();
        assert!(command.starts_with("/bin/wait4path /nix/store; exec /nix/"), "{command}");
        assert!(command.ends_with(" run"), "{command}");
    }
    // The stand-in for launchd, which is stricter than the real one, loads it.
    let loaded = muster_testbed::stand_in::plists::read(&path).unwrap();
    assert!(loaded.job.start && !loaded.disabled);
}

#[test]
fn a_changed_setting_is_a_changed_service_on_both_classes() {
    let modules = modules();
    let config = modules["etc"]["muster/agent.toml"]["source"].as_str().unwrap();
    assert!(modules["agent"]["serviceConfig"]["ExecStart"].as_str().unwrap().contains(config));
    assert!(modules["daemon"]["ProgramArguments"][2].as_str().unwrap().contains(config));
    assert_eq!(modules["shares"], true, "both modules have the same options");
}
