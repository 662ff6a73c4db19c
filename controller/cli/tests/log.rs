//! The audit log before operators with memories, with files, and with machines as witnesses: a controller
//! that shows two histories is found out, and one that was cut goes on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use muster_protocol::api;
use muster_protocol::audit::{Checkpoint, Entry, ShownLog};
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::enrol::{EnrolRequest, Enrolling, Token};
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::{Context, SecretKey};
use muster_server::core::audit::AuditContext;
use muster_server::store::Store;
use serde_json::{Value, json};

/// A fleet, and several operators' computers.
struct Fleet {
    folder: tempfile::TempDir,
    address: String,
    server: Option<Child>,
    http: reqwest::Client,
}

impl Fleet {
    fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
        let (http, place) =
            (reqwest::Client::builder().no_proxy().build().unwrap(), folder.path().join("alice"));
        let url = format!("http://{address}");
        let fleet = Self { folder, address, server: None, http };
        let mut made =
            fleet.command(&["init", "--plain-keys", "--url", &url, "--dir", place.to_str().unwrap()]);
        assert!(made.output().unwrap().status.success());
        for other in ["bob", "carol"] {
            fs::create_dir_all(fleet.at(other).join("keys")).unwrap();
            for file in ["muster.toml", "root.json", "keys/operator.pem"] {
                fs::copy(place.join(file), fleet.at(other).join(file)).unwrap();
            }
        }
        fleet
    }

    fn at(&self, place: &str) -> PathBuf {
        self.folder.path().join(place)
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.env("HOME", self.folder.path()).env_remove("XDG_CONFIG_HOME").stdin(Stdio::null());
        command.current_dir(self.folder.path()).args(arguments);
        command
    }

    fn controller(&self) -> PathBuf {
        self.at("alice/controller")
    }

    fn fleet_id(&self) -> Sha256 {
        Sha256::of(&fs::read(self.at("alice/root.json")).unwrap())
    }

    fn start(&mut self) {
        let config = self.controller().join("controller.toml");
        let mut serve = self.command(&["serve", "--config"]);
        let server = serve.arg(config).stderr(Stdio::null()).spawn().unwrap();
        self.server = Some(server);
        for _ in 0..600 {
            if TcpStream::connect(&self.address).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        panic!("the controller does not answer");
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            server.kill().unwrap();
            server.wait().unwrap();
        }
    }

    /// Starts with the database of `folder`, and puts the one that was used away as `away`.
    fn change_databases(&mut self, away: &str, folder: &str) {
        self.stop();
        fs::rename(self.controller().join("data"), self.at(away)).unwrap();
        fs::rename(self.at(folder), self.controller().join("data")).unwrap();
        self.start();
    }

    fn run(&self, operator: &str, arguments: &[&str]) -> Output {
        let config = self.at(operator).join("muster.toml");
        self.command(&["--config", config.to_str().unwrap()]).args(arguments).output().unwrap()
    }

    #[track_caller]
    fn must(&self, operator: &str, arguments: &[&str]) -> String {
        let output = self.run(operator, arguments);
        assert!(output.status.success(), "{operator}: muster {}: {output:?}", arguments.join(" "));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Its exit code, and all that it said.
    fn said(&self, operator: &str, arguments: &[&str]) -> (i32, String) {
        let output = self.run(operator, arguments);
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    }

    async fn enrolled(&self, name: &str) -> Machine {
        let add = ["machines", "add", name, "--class", "nixos", "--system", "x86_64-linux"];
        let printed = self.must("alice", &add);
        let token: Token = printed.split_whitespace().find_map(|word| Token::decode(word).ok()).unwrap();
        let key = SecretKey::generate().unwrap();
        let system = "x86_64-linux".parse().unwrap();
        let enrolling = Enrolling { system, age: "age1example".into(), agent: "0.1.0".into() };
        let request = EnrolRequest::make(&token, &key, enrolling);
        let url = format!("http://{}{}", self.address, api::ENROL);
        let answer = self.http.post(url).body(serde_json::to_vec(&request).unwrap()).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        Machine { name: token.machine, key, fleet: self.fleet_id(), seq: 0, shown: Vec::new() }
    }

    async fn check_in(&self, machine: &mut Machine) {
        machine.seq += 1;
        let body = serde_json::to_vec(&machine.says()).unwrap();
        let signature = machine.key.sign(Context::CheckIn, &body).hex();
        let url = format!("http://{}{}", self.address, api::CHECKIN);
        let request = self.http.post(url).header(api::MACHINE_SIGNATURE, signature).body(body);
        let answer = request.send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}");
        let reply: CheckInReply = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
        machine.shown.extend(reply.log.filter(|shown| !machine.shown.contains(shown)));
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Machine {
    name: MachineName,
    key: SecretKey,
    fleet: Sha256,
    seq: u64,
    shown: Vec<Checkpoint>,
}

impl Machine {
    fn says(&self) -> CheckIn {
        let sign = || ShownLog::sign(&self.key, &self.fleet, &self.name, self.shown.clone(), 5);
        let shown: Option<ShownLog> = (!self.shown.is_empty()).then(sign);
        serde_json::from_value(json!({
            "audience": self.fleet, "machine": self.name, "class": "nixos", "system": "x86_64-linux",
            "boot_id": "b", "seq": self.seq, "clock": 5, "agent": "0.1.0", "phase": "idle", "shown": shown,
        }))
        .unwrap()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), &to).unwrap()),
        }
    }
}

fn entries(printed: &str) -> Vec<Value> {
    serde_json::from_str(printed).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_histories_are_found_out_by_a_kept_checkpoint_by_two_operators_and_by_machines() {
    let mut fleet = Fleet::new();
    fleet.start();
    let (mut tin, mut lead) = (fleet.enrolled("tin").await, fleet.enrolled("lead").await);
    for operator in ["alice", "bob"] {
        fleet.must(operator, &["audit"]);
    }
    fs::write(fleet.at("common.txt"), fleet.must("alice", &["audit", "checkpoint"])).unwrap();
    fleet.stop();
    copy(&fleet.controller().join("data"), &fleet.at("second"));

    // One history for alice and tin.
    fleet.start();
    fleet.must("alice", &["machines", "add", "zinc", "--class", "nixos", "--system", "x86_64-linux"]);
    fs::write(fleet.at("alice.txt"), fleet.must("alice", &["audit", "checkpoint", "--sign"])).unwrap();
    fleet.check_in(&mut tin).await;
    fleet.check_in(&mut tin).await;
    let sound = ["audit", "verify", "common.txt", "alice.txt"];
    let (code, text) = fleet.said("alice", &sound);
    assert!(code == 0 && text.contains("1 machine was shown this history"), "{code} {text}");

    // Another one for bob and lead, as long and with a chain that is whole.
    fleet.change_databases("first", "second");
    fleet.must("bob", &["machines", "add", "gold", "--class", "nixos", "--system", "x86_64-linux"]);
    fleet.must("bob", &["audit"]);
    fs::write(fleet.at("bob.txt"), fleet.must("bob", &["audit", "checkpoint"])).unwrap();
    fleet.check_in(&mut lead).await;
    fleet.check_in(&mut lead).await;
    assert_eq!(fleet.said("bob", &["audit", "verify", "common.txt", "bob.txt"]).0, 0);

    // One operator who remembers, two who compare, and a machine that was shown the other one.
    let (code, text) = fleet.said("alice", &["audit"]);
    assert!(code == 1 && text.contains("the log was rewritten"), "{code} {text}");
    let (code, text) = fleet.said("bob", &["audit", "verify", "alice.txt"]);
    assert!(code == 4 && text.contains("alice.txt: the log has another entry"), "{code} {text}");
    assert!(text.contains("signed by"), "{text}");
    let (code, text) = fleet.said("carol", &["audit", "verify", "alice.txt", "bob.txt"]);
    assert!(code == 4 && text.contains("it contradicts alice.txt"), "{code} {text}");
    assert!(text.contains("had seen no log of this fleet, and does not remember this one"), "{text}");
    fleet.check_in(&mut tin).await;
    let (code, text) = fleet.said("bob", &["audit", "verify"]);
    assert!(code == 4 && text.contains("machine tin: it was shown another history"), "{code} {text}");
    assert!(!text.contains("machine lead"), "{text}");
    // What a machine says cannot be altered on the way.
    let bent = tin.shown.clone();
    tin.shown = lead.shown.clone();
    let (mut statement, good) = (tin.says(), bent.clone());
    statement.shown.as_mut().unwrap().log = good;
    let shown = statement.shown.unwrap();
    assert!(shown.verify(&tin.fleet, &tin.name, &tin.key.public()).is_err());
    tin.shown = bent;

    // Back to the first: now lead is the witness, and what alice saw is extended.
    fleet.change_databases("second", "first");
    fleet.must("alice", &["audit"]);
    fleet.check_in(&mut lead).await;
    let (code, text) = fleet.said("alice", &["audit", "verify", "alice.txt", "-"]);
    assert!(code == 4 && text.contains("machine lead: it was shown another history"), "{code} {text}");
    assert!(text.contains("standard input: not a checkpoint"), "{text}");
    assert!(text.contains("its first line is empty"), "{text}");

    // Each other outcome has its own code.
    fs::write(fleet.at("junk.txt"), "hello\n").unwrap();
    let altered = fs::read_to_string(fleet.at("alice.txt")).unwrap().replace("\ntime 1", "\ntime 2");
    fs::write(fleet.at("altered.txt"), altered).unwrap();
    let foreign = fs::read_to_string(fleet.at("common.txt")).unwrap();
    let foreign = foreign.replace(&fleet.fleet_id().to_string(), &Sha256::of(b"other").to_string());
    fs::write(fleet.at("foreign.txt"), foreign).unwrap();
    fleet.must("alice", &["machines", "revoke", "zinc"]);
    fs::write(fleet.at("later.txt"), fleet.must("alice", &["audit", "checkpoint"])).unwrap();
    fleet.must("alice", &["machines", "revoke", "lead"]);
    for (file, verdict) in [
        ("later.txt", "extends"),
        ("junk.txt", "not-a-checkpoint"),
        ("altered.txt", "wrong-signature"),
        ("foreign.txt", "another-fleet"),
    ] {
        let output = fleet.run("alice", &["audit", "verify", "--json", file]);
        let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(printed["checkpoints"][1]["verdict"], verdict, "{printed}");
        assert_eq!(printed["checkpoints"][0]["verdict"], "extends", "{printed}");
    }
    fleet.change_databases("first", "second");
    let output = fleet.run("carol", &["audit", "verify", "--json", "later.txt"]);
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(printed["checkpoints"][0]["verdict"], "older", "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_is_exported_cut_and_goes_on_and_who_saw_less_wants_the_export() {
    let mut fleet = Fleet::new();
    // Old entries, as a controller of long ago wrote them.
    let store = Store::open(&fleet.controller().join("data"), &fleet.fleet_id()).await;
    let store = match store {
        Ok(store) => store,
        Err(_) => {
            fs::create_dir_all(fleet.controller().join("data")).unwrap();
            Store::open(&fleet.controller().join("data"), &fleet.fleet_id()).await.unwrap()
        }
    };
    let operator = SecretKey::generate().unwrap().public();
    for day in 0..3 {
        let context = AuditContext { operator: &operator, at: 1_600_000_000_000 + day * 86_400_000 };
        store.open_session(&context).await.unwrap();
    }
    store.close().await;
    fleet.start();
    let whole = entries(&fleet.must("alice", &["audit", "--json"]));
    assert_eq!(whole.len(), 4);
    let seen = json!({ "id": 2, "hash": whole[1]["hash"] });
    fs::write(fleet.at("carol/audit-seen.json"), seen.to_string()).unwrap();

    let told = fleet.must("alice", &["audit", "export", "log.ndjson"]);
    assert!(told.contains("4 entries up to number 4"), "{told}");
    let file = fs::read_to_string(fleet.at("log.ndjson")).unwrap();
    assert_eq!(file.lines().count(), 6);
    let second: Entry = serde_json::from_str(file.lines().nth(2).unwrap()).unwrap();
    assert_eq!(second.id, 2);
    fs::write(fleet.at("bent.ndjson"), file.replace("session-opened", "session-closed")).unwrap();
    let (code, text) = fleet.said("alice", &["audit", "verify", "--export", "bent.ndjson"]);
    assert!(code == 1 && text.contains("does not match the one before it"), "{code} {text}");

    let cut =
        |at: &str, file: &str| fleet.said("alice", &["audit", "cut", "--yes", "--at", at, "--export", file]);
    let (code, text) = cut("4", "log.ndjson");
    assert!(code == 1 && text.contains("not 30 days old yet"), "{code} {text}");
    assert_eq!(cut("3", "bent.ndjson").0, 1);
    assert_eq!(cut("9", "log.ndjson").0, 1);
    let (code, text) = cut("3", "log.ndjson");
    assert!(code == 0 && text.contains("begins after entry 3"), "{code} {text}");

    let after = fleet.must("alice", &["audit", "--whole"]);
    assert!(after.contains("2 entries after entry 3, where the log was cut"), "{after}");
    let after = entries(&fleet.must("bob", &["audit", "--json"]));
    assert_eq!((after.len(), &after[1]["action"]), (2, &json!("log-cut")));
    // Carol saw less than what is left.
    let (code, text) = fleet.said("carol", &["audit"]);
    assert!(code == 1 && text.contains("--export FILE"), "{code} {text}");
    let (code, text) = fleet.said("carol", &["audit", "verify"]);
    assert!(code == 8 && text.contains("was exported and forgotten"), "{code} {text}");
    // The export needs no controller, and leads from what she saw to what she sees.
    fleet.stop();
    let (code, text) = fleet.said("carol", &["audit", "verify", "--export", "log.ndjson"]);
    assert!(code == 0 && text.contains("extends entry 2 by 2 entries"), "{code} {text}");
    fleet.start();
    fleet.must("carol", &["audit"]);
    fleet.must("alice", &["audit", "export", "rest.ndjson"]);
    assert_eq!(fs::read_to_string(fleet.at("rest.ndjson")).unwrap().lines().count(), 4);
}
