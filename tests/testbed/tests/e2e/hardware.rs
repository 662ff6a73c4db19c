//! Operators' and root holders' keys in security keys: OpenSSH's own ssh-keygen and ssh-agent, with an
//! authenticator in software in place of one on USB.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use muster_testbed::caller::key_in;
use muster_testbed::fleet::{Fleet, both, said};

use crate::keys::SshAgent;
use crate::operators::{flake, refused};

/// What makes the keys, and the agent that holds them.
struct Authenticator {
    library: PathBuf,
    /// Where it counts its signatures.
    memory: PathBuf,
    agent: SshAgent,
}

impl Authenticator {
    fn start(folder: &Path) -> Self {
        let (library, memory) = (folder.join("authenticator.so"), folder.join("memory"));
        fs::create_dir_all(&memory).unwrap();
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("authenticator/authenticator.c");
        let made = Command::new("cc")
            .args(["-shared", "-fPIC", "-o"])
            .args([&library, &source])
            .arg("-lcrypto")
            .output()
            .expect("this test needs a C compiler: apt-get install gcc libssl-dev");
        assert!(made.status.success(), "{}: apt-get install libssl-dev", said(&made));
        let allowed = fs::canonicalize(&library).unwrap().display().to_string();
        let environment = [("MUSTER_TEST_AUTHENTICATOR", memory.as_path())];
        let agent = SshAgent::start_with(&folder.join("agent"), &["-P", &allowed], &environment);
        Self { library: allowed.into(), memory, agent }
    }

    /// Makes a key and adds it to the agent; returns its public file.
    fn add(&self, name: &str, options: &[&str]) -> PathBuf {
        let file = self.memory.join(name);
        let mut make = Command::new("ssh-keygen");
        make.args(["-q", "-t", "ed25519-sk", "-N", "", "-C", name, "-w"]).arg(&self.library);
        must(make.args(options).arg("-f").arg(&file));
        let mut add = Command::new("ssh-add");
        must(add.arg("-S").arg(&self.library).arg(&file).env("SSH_AUTH_SOCK", self.agent.socket()));
        file.with_extension("pub")
    }

    fn signatures(&self) -> u32 {
        let counter = fs::read_to_string(self.memory.join("counter")).unwrap_or_default();
        counter.trim().parse().unwrap_or_default()
    }
}

fn must(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{}", said(&output));
}

fn error_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn an_operators_security_key_signs_generations_requests_and_roots_and_each_signature_is_touched_for() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    let authenticator = Authenticator::start(&fleet.folder().join("usb"));
    let config = fleet.config_folder().join("muster.toml");
    let text = fs::read_to_string(&config).unwrap();
    let use_key = |key: &str| {
        fs::write(&config, text.replace("\"keys/operator.pem\"", &format!("\"{key}\""))).unwrap();
    };
    let run = |arguments: &[&str]| {
        let mut command = fleet.muster(arguments).unwrap();
        command.env("SSH_AUTH_SOCK", authenticator.agent.socket()).output().unwrap()
    };
    let good = |arguments: &[&str]| {
        let output = run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", said(&output));
        output
    };

    // A key of another application is not taken, neither from the agent nor from its file.
    use_key("ssh-agent");
    let work = authenticator.add("work", &["-O", "application=ssh:work"]);
    let words = ["application ssh:work", "only signatures for ssh: count"];
    refused(&run(&["status"]), &words);
    refused(&run(&["keys", "add", "operator", work.to_str().unwrap(), "--yes"]), &words);

    // The only key that can sign is alice's; hers becomes the only operator key.
    let alice = authenticator.add("alice", &[]);
    refused(&run(&["status"]), &["is not an operator key"]);
    fs::write(&config, &text).unwrap();
    let old = key_in(&fleet.config_folder().join("keys/operator.pem")).unwrap().public();
    fleet.must(&["keys", "add", "operator", alice.to_str().unwrap(), "--name", "alice", "--yes"]).unwrap();
    fleet.must(&["keys", "remove", "operator", &old.short(), "--yes"]).unwrap();
    fs::remove_file(fleet.config_folder().join("keys/operator.pem")).unwrap();
    use_key("ssh-agent:alice");
    let public = String::from_utf8(good(&["keys", "public"]).stdout).unwrap();
    assert!(public.starts_with("sk-ed25519:"), "{public}");
    for key in [format!("ssh-agent:{}", public.trim()), alice.display().to_string(), "ssh-agent".into()] {
        use_key(&key);
        good(&["status"]);
    }

    // Reading needs one touch and then none: what is signed in reads.
    let before = authenticator.signatures();
    good(&["machines", "list"]);
    assert_eq!(authenticator.signatures(), before);

    fleet.fixture.say("greeting", "from a security key").unwrap();
    let updated = good(&["update", "--yes", "--flake", &flake(&fleet)]);
    let said_before = String::from_utf8_lossy(&updated.stdout).into_owned();
    assert!(said_before.contains("waits for 2 touches"), "{said_before}");
    let touches = error_of(&updated).matches("touch the security key alice").count();
    assert_eq!(u32::try_from(touches).unwrap(), authenticator.signatures() - before);
    assert!((3..=5).contains(&touches), "two for the generation, the others for requests: {touches}");
    fleet
        .until("cinnabar", "the new system", |machine| {
            machine.greeting().as_deref() == Some("from a security key")
        })
        .unwrap();
    good(&["status"]);
    use_key("ssh-agent:alice");

    // A request to the machine itself.
    good(&["machines", "rotate-key", "cinnabar"]);
    let shown = |words: &str| {
        let shown = run(&["machines", "show", "cinnabar", "--json"]);
        String::from_utf8_lossy(&shown.stdout).contains(words)
    };
    fleet.until("cinnabar", "its new key", |_| shown("\"key_rotated_at\": \"")).unwrap();
    good(&["audit", "verify"]);

    // Nobody touches it: nothing is signed.
    fs::write(authenticator.memory.join("untouched"), "").unwrap();
    fleet.fixture.say("greeting", "from nobody").unwrap();
    refused(&run(&["update", "--yes", "--flake", &flake(&fleet)]), &["nobody touched"]);
    fs::remove_file(authenticator.memory.join("untouched")).unwrap();

    // Two of three hold the root, two of them with security keys.
    for name in ["bob", "carol"] {
        let file = authenticator.add(name, &[]);
        good(&["keys", "add", "root", file.to_str().unwrap(), "--name", name, "--yes"]);
    }
    let file = fleet.config_folder().join("keys/root.pem").display().to_string();
    let holders = ["--root-key", "ssh-agent:bob", "--root-key", &file, "--yes"];
    good(&[&["keys", "threshold", "root", "2"][..], &holders].concat());
    good(&["keys", "renew", "--root-key", "ssh-agent:bob", "--root-key", "ssh-agent:carol", "--yes"]);
    refused(&run(&["keys", "add", "online", work.to_str().unwrap(), "--yes"]), &words);
    let online = authenticator.add("online", &[]);
    let add = ["keys", "add", "online", online.to_str().unwrap(), "--root-key", "ssh-agent:bob", "--yes"];
    refused(&run(&add), &["the controller's key is a plain one"]);
    let updated = good(&["update", "--yes", "--flake", &flake(&fleet)]);
    assert!(error_of(&updated).contains("touch the security key alice"));
    fleet
        .until("cinnabar", "the last system", |machine| machine.greeting().as_deref() == Some("from nobody"))
        .unwrap();
}

#[test]
fn a_fleet_begins_with_security_keys_alone() {
    let folder = tempfile::tempdir().unwrap();
    let place = fs::canonicalize(folder.path()).unwrap();
    let authenticator = Authenticator::start(&place.join("usb"));
    for name in ["alice", "bob", "operator"] {
        authenticator.add(name, &[]);
    }
    let carol = "carol=5aeca48a8a308149d70690e96f41db908eedbdcb3b8732914a3e8c523c114f1f";
    let init = Command::new(muster_testbed::programs::find("muster").unwrap())
        .args(["init", "--dir"])
        .arg(place.join("fleet"))
        .args(["--url", "http://127.0.0.1:8443", "--operator-key", "ssh-agent:operator"])
        .args(["--root", "alice=ssh-agent:alice", "--root", "bob=ssh-agent:bob", "--root", carol])
        .env("SSH_AUTH_SOCK", authenticator.agent.socket())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    assert!(init.status.success(), "{}", said(&init));
    assert_eq!(error_of(&init).matches("touch the security key").count(), 2);
    let root = fs::read_to_string(place.join("fleet/root.json")).unwrap();
    assert_eq!(root.matches("\"sk-ssh-ed25519\"").count(), 6, "three keys, each with keytype and scheme");
    for name in ["alice", "bob", "carol"] {
        assert!(root.contains(&format!("\"{name}\"")), "{name}");
    }
    assert!(!place.join("fleet/keys/root.pem").exists() && !place.join("fleet/keys/operator.pem").exists());
}
