//! The folders that an earlier version's controller and operator left: today's programs go on with them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
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

/// The recorded fleet, served by today's program.
struct Fleet {
    folder: tempfile::TempDir,
    server: Child,
    address: String,
}

impl Fleet {
    fn start() -> Self {
        Self::start_with(|_| {})
    }

    fn start_with(change: impl FnOnce(&mut Command)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        copy(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/0.1.0"), folder.path());
        let place = folder.path();
        fs::create_dir(place.join("controller/data")).unwrap();
        fs::rename(place.join("controller/muster.db"), place.join("controller/data/muster.db")).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        for (file, field, value) in [
            ("controller/controller.toml", "listen", address.clone()),
            ("operator/muster.toml", "url", format!("http://{address}")),
        ] {
            let mut settings: toml::Table = fs::read_to_string(place.join(file)).unwrap().parse().unwrap();
            settings.insert(field.to_owned(), value.into());
            fs::write(place.join(file), settings.to_string()).unwrap();
        }
        let mut serve = Self::command(place, &["serve", "--config"]);
        serve.arg(place.join("controller/controller.toml")).stderr(Stdio::null());
        change(&mut serve);
        let server = serve.spawn().unwrap();
        let fleet = Self { folder, server, address };
        for _ in 0..600 {
            if TcpStream::connect(&fleet.address).is_ok() {
                return fleet;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the controller does not answer at {}", fleet.address);
    }

    fn command(place: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.env("HOME", place).env_remove("XDG_CONFIG_HOME").env("NO_COLOR", "1").stdin(Stdio::null());
        command.args(arguments);
        command
    }

    fn muster(&self, arguments: &[&str]) -> String {
        let place = self.folder.path();
        let config = place.join("operator/muster.toml");
        let output =
            Self::command(place, &["--config", config.to_str().unwrap()]).args(arguments).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "muster {}: {said}", arguments.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, arguments: &[&str]) -> Vec<Value> {
        serde_json::from_str(&self.muster(&[arguments, &["--json"]].concat())).unwrap()
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        let _ = self.server.kill();
        let _ = self.server.wait();
    }
}

#[test]
fn todays_programs_go_on_with_the_folders_of_version_0_1_0() {
    let fleet = Fleet::start();
    let machines = fleet.json(&["machines", "list", "--all"]);
    let names: Vec<_> = machines.iter().map(|view| view["machine"].as_str().unwrap()).collect();
    assert_eq!(names, ["cinnabar", "invited", "spare", "stibnite"]);
    let standings: Vec<_> = machines.iter().map(|view| view["standing"].as_str().unwrap()).collect();
    assert_eq!(standings, ["enrolled", "invited", "invited", "enrolled"]);
    for machine in ["cinnabar", "stibnite"] {
        let history = fleet.json(&["history", machine]);
        assert_eq!(history.len(), 3, "{machine}");
        assert!(history.iter().all(|entry| !entry["events"].as_array().unwrap().is_empty()), "{history:?}");
    }
    let drafts = fleet.muster(&["drafts", "list"]);
    assert!(drafts.contains("cinnabar") && drafts.contains("1 signature"), "{drafts}");
    // The chain of entries holds, up to the one of the second root.
    let audit = fleet.muster(&["audit"]);
    assert!(audit.contains("root-published") || audit.contains("root published"), "{audit}");
    let keys = fleet.muster(&["keys", "list"]);
    assert!(keys.contains("2 of 2"), "{keys}");
    // And it is changed as any other.
    fleet.muster(&["machines", "revoke", "stibnite"]);
    let view = fleet.json(&["machines", "list", "--all"]).pop().unwrap();
    assert_eq!(view["standing"], "revoked");
}

#[test]
fn each_line_of_a_log_in_json_is_an_object_and_what_is_said_of_a_request_has_its_id() {
    let mut fleet = Fleet::start_with(|serve| {
        serve.env("MUSTER_LOG_FORMAT", "json").env("MUSTER_LOG", "debug").stderr(Stdio::piped());
    });
    // It is refused, so there are two lines about it.
    let mut stream = TcpStream::connect(&fleet.address).unwrap();
    stream
        .write_all(
            b"GET /v1/checkin HTTP/1.1\r\nhost: x\r\nx-request-id: by-hand\r\nconnection: close\r\n\r\n",
        )
        .unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 405") && answer.contains("x-request-id: by-hand"), "{answer}");
    let log = fleet.server.stderr.take().unwrap();
    drop(fleet);
    let lines: Vec<Value> = BufReader::new(log)
        .lines()
        .map(|line| serde_json::from_str(&line.unwrap()).expect("each line is JSON"))
        .collect();
    let of_it: Vec<_> =
        lines.iter().filter(|line| line["span"]["id"] == "by-hand" || line["id"] == "by-hand").collect();
    assert!(of_it.iter().any(|line| line["status"] == 405 && line["span"]["id"] == "by-hand"), "{lines:?}");
    assert!(of_it.iter().any(|line| line["path"] == "/v1/checkin" && line["id"] == "by-hand"), "{lines:?}");
}
