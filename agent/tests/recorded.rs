//! State left by agents of earlier versions: the current one reads it and says the same about it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use muster_protocol::keys::SecretKey;
use serde_json::Value;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    fs::set_permissions(to, fs::Permissions::from_mode(0o700)).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            fs::copy(entry.path(), &to).unwrap();
            fs::set_permissions(&to, fs::Permissions::from_mode(0o600)).unwrap();
        }
    }
}

/// What the agent says about a copy of the state; the copy must be unchanged afterwards.
fn status(machine: &str) -> Value {
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/0.1.0").join(machine);
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    copy(&fixture.join("state"), &state);
    let config = folder.path().join("agent.toml");
    fs::write(&config, format!("state_dir = '{}'\n", state.display())).unwrap();
    let mut agent = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
    let output = agent.arg("--config").arg(&config).args(["status", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for file in ["journal.json", "enrolment.json", "tuf/targets.json", "outbox/24.done"] {
        assert_eq!(
            fs::read(state.join(file)).unwrap(),
            fs::read(fixture.join("state").join(file)).unwrap(),
            "{file}"
        );
    }
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn the_state_of_version_0_1_0_says_what_it_said_then() {
    for machine in ["cinnabar", "stibnite"] {
        let file = format!("../tests/fixtures/0.1.0/{machine}/status.json");
        let then = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(file)).unwrap();
        let (then, now) = (serde_json::from_str::<Value>(&then).unwrap(), status(machine));
        for (field, value) in then.as_object().unwrap() {
            // The program's own version has changed since.
            assert!(
                field == "agent" || now[field] == *value,
                "{machine}: {field}: {value} then, {} now",
                now[field]
            );
        }
        // What somebody reads there, to give it to `muster machines trust-key`.
        let pem = format!("../tests/fixtures/0.1.0/{machine}/state/machine.pem");
        let pem = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(pem)).unwrap();
        assert_eq!(now["key"], SecretKey::from_pem(&pem).unwrap().public().hex());
    }
}
