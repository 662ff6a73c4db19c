//! What people install: the modules evaluate, and the files for systems without modules say the same.

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

/// A unit file's settings, without comments; a repeated key is an error, except for the one that is meant to
/// repeat.
fn unit(name: &str) -> BTreeMap<String, String> {
    let text = std::fs::read_to_string(repository().join("packaging/systemd").join(name)).unwrap();
    let mut settings = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with(['#', '[']) && !line.is_empty()) {
        let (key, value) = line.split_once('=').unwrap_or_else(|| panic!("{name}: {line}"));
        let before = settings.insert(key.to_owned(), value.to_owned());
        match before {
            Some(before) if key == "SystemCallFilter" => {
                settings.insert(key.to_owned(), format!("{before} {value}"));
            }
            before => assert!(before.is_none(), "{name}: {key} twice"),
        }
    }
    settings
}

/// A module's value, in systemd's notation.
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
    for (key, module) in [("WantedBy", &module["wantedBy"]), ("After", &module["after"])] {
        assert_eq!(unit[key], written(module), "{key}");
    }
    let program = |line: &str| line.split(' ').skip(1).collect::<Vec<_>>().join(" ");
    let wanted = module["serviceConfig"]["ExecStart"].as_str().unwrap();
    assert_eq!(program(&unit["ExecStart"]), program(wanted));
}

#[test]
fn the_agents_unit_is_the_modules_and_a_switch_leaves_it_alone() {
    let agent = &modules()["agent"];
    assert_same_service(&unit("muster-agent.service"), agent);
    assert_eq!(agent["restartIfChanged"], false);
    assert_eq!(agent["stopIfChanged"], false);
}

/// If /etc is not writable, the activator leaves a link in the state folder instead of a unit of its own.
#[test]
fn the_modules_activator_starts_only_at_a_boot_in_mid_switch_and_is_the_agent_that_began_it() {
    let activator = &modules()["activator"];
    let conditions = serde_json::json!(["/var/lib/muster/at-boot/activator", "!/run/muster-activator"]);
    assert_eq!(activator["unitConfig"]["ConditionPathExists"], conditions);
    assert_eq!(activator["wantedBy"], serde_json::json!(["multi-user.target"]));
    let command = "/var/lib/muster/at-boot/activator --config /etc/muster/agent.toml activate";
    assert_eq!(activator["serviceConfig"]["ExecStart"], command);
    assert_eq!(activator["restartIfChanged"], false);
    assert_eq!(activator["stopIfChanged"], false);
    // A rollback may lead to a system without this unit, and runs in it.
    assert_eq!(activator["unitConfig"]["X-StopOnRemoval"], false);
}

#[test]
fn the_agent_tells_systemd_that_it_is_ready_and_lives() {
    let unit = unit("muster-agent.service");
    assert_eq!((unit["Type"].as_str(), unit["WatchdogSec"].as_str()), ("notify", "300"));
}

/// The agent's own parser of agent.toml checks what the modules write.
#[test]
fn what_the_modules_write_is_a_configuration() {
    let modules = modules();
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("agent.toml");
    std::fs::write(&file, modules["settings"].as_str().unwrap()).unwrap();
    let agent = programs::find("muster-agent").unwrap();
    let asked = Command::new(&agent).arg("--config").arg(&file).arg("status").output().unwrap();
    let words = String::from_utf8_lossy(&asked.stderr).into_owned();
    assert!(words.contains("not enrolled"), "{words}");
    let wrong = modules["settings"].as_str().unwrap().replace("minimum_battery", "minimum_batery");
    std::fs::write(&file, wrong).unwrap();
    let asked = Command::new(agent).arg("--config").arg(&file).arg("status").output().unwrap();
    assert!(String::from_utf8_lossy(&asked.stderr).contains("minimum_batery"));
}

#[test]
fn the_controllers_unit_is_the_modules() {
    let modules = modules();
    assert_same_service(&unit("muster-controller.service"), &modules["controller"]);
    assert_eq!(modules["firewall"], serde_json::json!([8443]));
}

/// systemd's exposure level of a unit file: 0 for a service that can do nothing, 10 for one that can do
/// everything.
fn exposure(file: &Path) -> f64 {
    let program =
        programs::of_the_host("systemd-analyze").expect("this test needs systemd: apt-get install systemd");
    let said =
        Command::new(program).args(["security", "--offline=true", "--no-pager"]).arg(file).output().unwrap();
    let words = String::from_utf8_lossy(&said.stdout).into_owned();
    let line = words.lines().find(|line| line.contains("Overall exposure level"));
    let level = line.and_then(|line| line.split(": ").nth(1)?.split(' ').next()?.parse().ok());
    level.unwrap_or_else(|| panic!("{words}{}", String::from_utf8_lossy(&said.stderr)))
}

#[test]
fn the_controllers_unit_leaves_it_nothing_that_it_does_not_need() {
    let by_hand = repository().join("packaging/systemd/muster-controller.service");
    assert!(exposure(&by_hand) <= 1.5, "{}", exposure(&by_hand));
    // The module's unit, as NixOS writes it: a list becomes one line per item.
    let modules = modules();
    let service = modules["controller"]["serviceConfig"].as_object().unwrap();
    let mut text = "[Service]\n".to_owned();
    for (key, value) in service {
        let values = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
        let lines: Vec<String> = values.iter().map(|value| format!("{key}={}\n", written(value))).collect();
        text += &if lines.is_empty() { format!("{key}=\n") } else { lines.concat() };
    }
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("muster-controller.service");
    std::fs::write(&file, text).unwrap();
    assert!(exposure(&file) <= 1.5, "{}", exposure(&file));
}

#[test]
fn the_agents_plist_is_the_modules_and_has_what_launchd_needs() {
    let path = repository().join("packaging/launchd/org.muster.agent.plist");
    let file: Value = plist::from_file(&path).unwrap();
    let module = modules()["daemon"].clone();
    let keys = |plist: &Value| plist.as_object().unwrap().keys().cloned().collect::<Vec<_>>();
    assert_eq!(keys(&file), keys(&module));
    for key in keys(&file) {
        if !["ProgramArguments", "EnvironmentVariables"].contains(&key.as_str()) {
            assert_eq!(file[&key], module[&key], "{key}");
        }
    }
    for plist in [file, module] {
        assert_eq!(plist["Label"], "org.muster.agent");
        assert_eq!(plist["KeepAlive"], true);
        assert_eq!(plist["AbandonProcessGroup"], true, "unloading the agent must not end its switch");
        let words: Vec<&str> =
            plist["ProgramArguments"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert!(words[2].starts_with("/bin/wait4path /nix/store && exec "), "{words:?}");
        // The user's grant is for this path, whichever generation's agent it is.
        assert_eq!(words[words.len() - 2..], ["/Library/PrivilegedHelperTools/muster-agent", "run"]);
        assert!(
            plist["EnvironmentVariables"]["PATH"]
                .as_str()
                .unwrap()
                .contains("/nix/var/nix/profiles/default/bin")
        );
    }
    // The stand-in for launchd, which checks owner and mode like the real one, loads it from its installed
    // place.
    let installed = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(installed.path(), std::fs::read(&path).unwrap()).unwrap();
    let loaded = muster_testbed::stand_in::plists::read(installed.path()).unwrap();
    assert!(loaded.job.start && !loaded.disabled);
}

#[test]
fn failure_mode_16_the_agent_of_a_mac_waits_for_the_store_to_be_mounted() {
    let path = repository().join("packaging/launchd/org.muster.agent.plist");
    let file: Value = plist::from_file(&path).unwrap();
    for plist in [file, modules()["daemon"].clone()] {
        let command = plist["ProgramArguments"][2].as_str().unwrap();
        assert_eq!(command, "/bin/wait4path /nix/store && exec \"$@\"");
    }
}

#[test]
fn a_changed_setting_is_a_changed_service_on_both_classes() {
    let modules = modules();
    let settings = modules["settings"].as_str().unwrap();
    assert!(settings.contains("state_dir = \"/var/lib/muster\"") && settings.contains("poll_seconds = 55"));
    assert_eq!(modules["agent"]["restartTriggers"], serde_json::json!([settings]));
    let hash = muster_protocol::ids::Sha256::of(settings.as_bytes()).hex();
    assert_eq!(modules["daemon"]["EnvironmentVariables"]["MUSTER_SETTINGS"], hash);
    assert_eq!(modules["shares"], true, "both modules have the same options");
}
