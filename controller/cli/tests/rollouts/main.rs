//! Rollouts at the command line: what is asked of the controller, what is shown before signing, and whose
//! keys count.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod renewed;
mod second;
mod skipped;
mod undone;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::response::Response;
use muster_protocol::enrol::Secret;
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{PublicKey, SecretKey};
use serde_json::{Value, json};

#[derive(Default)]
struct Controller {
    answers: BTreeMap<String, Value>,
    files: BTreeMap<String, String>,
    /// What it answers once something was posted there.
    then: BTreeMap<String, Value>,
    /// Path and body of each `POST`.
    asked: Vec<(String, Value)>,
}

type Shared = Arc<Mutex<Controller>>;

async fn answer(State(controller): State<Shared>, request: Request) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let mut controller = controller.lock().unwrap();
    if method == "POST" {
        controller.asked.push((path.clone(), serde_json::from_slice(&body).unwrap_or(Value::Null)));
        if let Some(then) = controller.then.remove(&path) {
            controller.answers.insert(path.clone(), then);
        }
    }
    if let Some(file) = controller.files.get(&path) {
        return Response::new(Body::from(file.clone()));
    }
    // Its cache takes whatever is pushed.
    if path.starts_with("/cache/") && method == "PUT" {
        return Response::new(Body::empty());
    }
    let found = controller.answers.get(&path).cloned();
    let status = if found.is_some() { 200 } else { 404 };
    let body = found.unwrap_or(json!({ "code": "not-found", "message": "nothing" }));
    Response::builder().status(status).body(Body::from(body.to_string())).unwrap()
}

struct Bed {
    folder: tempfile::TempDir,
    controller: Shared,
    fleet: Sha256,
    key: PublicKey,
}

impl Bed {
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let controller = Shared::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(answer).with_state(Arc::clone(&controller));
        tokio::spawn(async move { axum::serve(listener, router).await });
        let placeholder = SecretKey::generate().unwrap().public();
        let mut bed = Self { folder, controller, fleet: Sha256::of(b""), key: placeholder };
        let made = bed.muster(&["init", "--dir", "fleet", "--url", &url, "--plain-keys"]);
        assert!(made.status.success(), "{made:?}");
        bed.fleet = Sha256::of(&std::fs::read(bed.at("fleet/root.json")).unwrap());
        bed.key = out(&bed.muster(&["keys", "public"])).trim().parse().unwrap();
        let fleet = json!({ "fleet": bed.fleet, "root_version": 1, "root": bed.fleet, "version": "0.2.0" });
        bed.says("/v1/fleet", fleet);
        bed
    }

    fn at(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join(path)
    }

    fn says(&self, path: &str, value: Value) {
        self.controller.lock().unwrap().answers.insert(path.to_owned(), value);
    }

    /// A file that is served as it is.
    fn file(&self, path: &str, text: String) {
        self.controller.lock().unwrap().files.insert(path.to_owned(), text);
    }

    /// What was asked since the last time, without what only reads.
    fn asked(&self) -> Vec<(String, Value)> {
        let mut all = std::mem::take(&mut self.controller.lock().unwrap().asked);
        all.retain(|(path, _)| !path.ends_with("/session"));
        all
    }

    fn muster(&self, arguments: &[&str]) -> Output {
        let folder: &Path = self.folder.path();
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster"));
        command.arg("--config").arg(folder.join("fleet/muster.toml")).args(arguments).current_dir(folder);
        command.env("HOME", folder).env_remove("XDG_CONFIG_HOME").stdin(Stdio::null());
        command.env(
            "NIX_CONFIG",
            "experimental-features = nix-command flakes\nsubstituters =\nbuild-users-group =",
        );
        command.env("NIX_REMOTE", format!("local?root={}", folder.join("store").display()));
        command.output().unwrap()
    }

    fn machine(&self, name: &str, more: &Value) -> Value {
        let mut machine = json!({
            "machine": name, "class": "nixos", "system": "x86_64-linux", "tags": [],
            "standing": "enrolled", "condition": "up-to-date", "clone_alarm": false,
            "holds": { "root": 1, "timestamp": 1, "snapshot": 1, "targets": 0 },
            "understands": ["rollouts"],
        });
        machine.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        machine
    }

    /// A machine that this operator invited, with the proof of its key.
    fn proved(&self, name: &str) -> Value {
        let witness = Secret::generate().unwrap().witness();
        std::fs::create_dir_all(self.at("fleet/witnesses")).unwrap();
        std::fs::write(self.at("fleet/witnesses").join(name), &*witness.to_text()).unwrap();
        let key = SecretKey::generate().unwrap().public();
        let claim = witness.claim(&self.fleet, &name.parse().unwrap(), key);
        self.machine(name, &json!({ "key": key, "signing": claim }))
    }
}

fn out(output: &Output) -> String {
    String::from_utf8([output.stdout.clone(), output.stderr.clone()].concat()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn holding_a_rollout_is_one_request_and_ending_it_asks() {
    let bed = Bed::new().await;
    let plan = "ab".repeat(32);
    let path = format!("/v1/operator/rollouts/{plan}");
    let view = |state: &str| {
        json!({
            "plan": plan, "name": "weekly", "at": 1, "by": bed.key, "state": state, "why": "it waits",
            "budget": 0, "failures": 0, "waves": [],
            "members": [{ "machine": "tin", "wave": 0, "state": "waiting", "why": "for lead", "said": null }],
        })
    };
    let brake = json!({ "at": 1, "by": bed.key, "why": "a storm" });
    let was = |state: &str| {
        bed.says("/v1/operator/rollouts", json!([view(state)]));
        bed.says(&path, view(state));
        bed.says("/v1/operator/brake", Value::Null);
    };
    let asks = |wish: &str, forgive: bool, why: Option<&str>| {
        [(path.clone(), json!({ "wish": wish, "forgive": forgive, "why": why }))]
    };
    for (arguments, before, after, asked) in [
        (
            &["rollout", "pause", "weekly", "-m", "lunch"][..],
            "running",
            "paused",
            asks("pause", false, Some("lunch")),
        ),
        (&["rollout", "resume", "abababab"], "paused", "running", asks("run", false, None)),
        (&["rollout", "retry", "weekly"], "halted", "running", asks("run", true, None)),
        (&["rollout", "stop", "weekly", "--yes"], "running", "stopped", asks("stop", false, None)),
    ] {
        was(before);
        bed.controller.lock().unwrap().then.insert(path.clone(), view(after));
        let output = bed.muster(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", out(&output));
        let told = format!("weekly (abababababab) is {after}: it waits");
        assert!(out(&output).contains(&told), "{told}: {}", out(&output));
        assert_eq!(bed.asked(), asked, "{arguments:?}");
    }
    // What changes nothing is no success; under the brake nobody sees it yet.
    for (verb, state) in [("pause", "paused"), ("resume", "running"), ("resume", "halted")] {
        was(state);
        let output = bed.muster(&["rollout", verb, "weekly"]);
        assert!(!output.status.success(), "{verb}");
        assert!(out(&output).contains("Nothing has changed by that"), "{verb}: {}", out(&output));
    }
    for (verb, then) in [("pause", "it stays paused"), ("resume", "it goes on")] {
        was("paused");
        bed.says("/v1/operator/brake", brake.clone());
        let output = bed.muster(&["rollout", verb, "weekly"]);
        let told = format!("Once the brake is off, {then}");
        assert!(output.status.success() && out(&output).contains(&told), "{}", out(&output));
    }
    bed.asked();
    for (state, hint) in [("running", "rollout show abababababab"), ("paused", "rollout resume abababababab")]
    {
        was(state);
        let output = bed.muster(&["rollout", "retry", "weekly"]);
        assert!(!output.status.success() && out(&output).contains(hint), "{}", out(&output));
        assert!(out(&output).contains("no machine of weekly has failed"), "{}", out(&output));
    }
    assert_eq!(bed.asked(), []);

    was("running");
    for (arguments, on, then) in [(&["brake"][..], true, brake), (&["brake", "--off"], false, Value::Null)] {
        let path = "/v1/operator/brake".to_owned();
        bed.controller.lock().unwrap().then.insert(path.clone(), then);
        let output = bed.muster(arguments);
        assert!(output.status.success(), "{}", out(&output));
        assert_eq!(bed.asked(), [(path, json!({ "on": on, "why": null }))]);
        // Once more it is so already, and nothing is sent.
        let output = bed.muster(arguments);
        assert!(!output.status.success() && out(&output).contains("already"), "{}", out(&output));
        assert_eq!(on, out(&output).contains("a storm. `muster brake --off` releases it"));
        assert_eq!(bed.asked(), []);
    }
    assert!(out(&bed.muster(&["brake", "--show"])).contains("The brake is off"));

    let refused = bed.muster(&["rollout", "stop", "weekly"]);
    assert!(
        !refused.status.success() && out(&refused).contains("nobody is here to answer"),
        "{}",
        out(&refused)
    );
    let unknown = bed.muster(&["rollout", "pause", "nightly"]);
    assert!(out(&unknown).contains("there is no open rollout 'nightly'; there is weekly (abababababab)"));
    assert_eq!(bed.asked(), [], "nothing was changed");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_machines_prove_is_kept_in_the_repository_and_an_old_proof_counts_for_nothing() {
    let bed = Bed::new().await;
    std::fs::create_dir(bed.at("repository")).unwrap();
    std::fs::write(bed.at("repository/flake.nix"), "{ outputs = _: { }; }").unwrap();
    let (first, tin) = (bed.proved("tin"), "/v1/operator/machines/tin");
    let stranger = SecretKey::generate().unwrap().public();
    let lead = bed.machine("lead", &json!({ "key": stranger }));
    bed.says("/v1/operator/machines", json!([first, lead]));
    let prove = ["machines", "prove", "--flake", "./repository"];
    let said = out(&bed.muster(&prove));
    assert!(said.contains("proved by the machine") && said.contains("another operator invited it"), "{said}");
    let file = || std::fs::read_to_string(bed.at("repository/machine-keys.toml")).unwrap();
    let key = first["key"].as_str().unwrap();
    assert!(file().contains(key) && !file().contains(&stranger.hex()), "{}", file());
    assert!(out(&bed.muster(&prove)).contains("has it already"));

    // Another operator has no witness, and reads the file.
    let witness = bed.at("fleet/witnesses/tin");
    let kept = std::fs::read(&witness).unwrap();
    std::fs::remove_file(&witness).unwrap();
    assert!(out(&bed.muster(&prove)).contains("kept"));
    std::fs::write(&witness, kept).unwrap();

    // The machine has another key now; a controller that shows the first one again is not believed.
    let second = bed.proved("tin");
    bed.says("/v1/operator/machines", json!([second]));
    assert!(out(&bed.muster(&prove)).contains("proved by the machine"));
    bed.says("/v1/operator/machines", json!([first]));
    assert!(out(&bed.muster(&prove)).contains("a key that it had before"));

    // A person compares: only the key that the controller names, too.
    bed.says("/v1/operator/machines/lead", lead);
    let trust = |key: &str| {
        out(&bed.muster(&["machines", "trust-key", "lead", key, "--yes", "--flake", "./repository"]))
    };
    assert!(trust(key).contains("the controller says that lead signs with"), "{tin}");
    assert!(trust(&stranger.hex()).contains("commit it"));
    assert!(file().contains(&stranger.hex()));
}

const FLAKE: &str = r#"{
  outputs = { self }: let
    system = name: {
      config.system.build.toplevel = derivation {
        inherit name;
        system = "x86_64-linux";
        builder = "/bin/sh";
      };
    };
  in {
    nixosConfigurations = { tin = system "tin"; lead = system "lead"; zinc = system "zinc"; };
    muster.rollouts.weekly = {
      waves = [ { name = "canaries"; machines = [ "tin" ]; soak = "2h"; } ];
      after.zinc = [ "tin" ];
    };
    muster.rollouts.wrong.waves = [ { name = "canaries"; soak = 2; } ];
  };
}"#;

#[tokio::test(flavor = "multi_thread")]
async fn an_update_shows_its_waves_before_it_signs() {
    let bed = Bed::new().await;
    std::fs::create_dir(bed.at("repository")).unwrap();
    std::fs::write(bed.at("repository/flake.nix"), FLAKE).unwrap();
    let machines =
        |lead: Value| json!([bed.proved("tin"), bed.machine("lead", &lead), bed.machine("zinc", &json!({}))]);
    bed.says("/v1/operator/machines", machines(json!({})));
    let dry = |more: &[&str]| {
        let output = bed.muster(&[&["update", "--flake", "./repository", "--dry-run"], more].concat());
        (output.status.success(), out(&output))
    };

    let (done, said) = dry(&["--rollout", "weekly"]);
    assert!(done, "{said}");
    for words in [
        "Rollout weekly: 3 machines in 2 waves",
        "1. canaries, 1 machine: tin",
        "1 of 1 must have run it well for 2h",
        "2. rest, 2 machines: ",
        "waits for canaries; ",
        "zinc switches after tin",
        "halts when 1 machine failed",
        "2 machines that no wave takes are in a last wave 'rest'",
        "this was a dry run",
    ] {
        assert!(said.contains(words), "{words}\n{said}");
    }
    let (done, said) = dry(&[]);
    assert!(done && said.contains("every machine switches as soon as it can"), "{said}");
    assert!(said.contains("weekly") && said.contains("--rollout NAME"), "{said}");

    // muster.toml may name one, and --at-once does without.
    let toml = std::fs::read_to_string(bed.at("fleet/muster.toml")).unwrap();
    std::fs::write(bed.at("fleet/muster.toml"), format!("rollout = \"weekly\"\n{toml}")).unwrap();
    assert!(dry(&[]).1.contains("Rollout weekly"));
    let (done, said) = dry(&["--at-once"]);
    assert!(done && !said.contains("rollout") && !said.contains("Rollout"), "{said}");

    std::fs::write(
        bed.at("other.toml"),
        "[[waves]]\nname = 'half'\npercent = 50\nmachines = ['tin', 'lead']\n",
    )
    .unwrap();
    let (done, said) = dry(&["--rollout-file", "other.toml"]);
    assert!(done || said.contains("can vouch"), "{said}");

    let (done, said) = dry(&["--rollout", "wrong"]);
    assert!(!done && said.contains("muster.rollouts.wrong.waves.canaries.soak: write a time"), "{said}");
    let (done, said) = dry(&["--rollout", "nightly"]);
    assert!(!done && said.contains("has no rollout nightly; it has weekly, wrong"), "{said}");

    // An agent that knows nothing of gates is refused by name, before anything is signed.
    bed.says("/v1/operator/machines", machines(json!({ "understands": [] })));
    let (done, said) = dry(&["--rollout", "weekly"]);
    assert!(!done && said.contains("know of no rollouts: lead"), "{said}");
    // Without a proved key nobody's word counts.
    std::fs::remove_dir_all(bed.at("fleet/witnesses")).unwrap();
    bed.says(
        "/v1/operator/machines",
        json!([bed.machine("tin", &json!({ "key": bed.key })), bed.machine("lead", &json!({}))]),
    );
    let (done, said) = dry(&["--rollout", "weekly", "tin", "lead"]);
    assert!(!done && said.contains("no machine of wave 'canaries' can vouch for it: tin: "), "{said}");
    assert!(said.contains("muster machines prove"), "{said}");
    assert_eq!(bed.asked(), [], "nothing was sent");
}
