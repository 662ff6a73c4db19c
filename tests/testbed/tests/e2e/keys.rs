//! Where keys are kept: in OpenSSH's agent or in a file, and never with the server.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::Condition;
use muster_testbed::caller::key_in;
use muster_testbed::fleet::{Fleet, both, said};

use crate::operators::{flake, refused};

/// OpenSSH's own agent, killed when the test ends.
pub struct SshAgent {
    child: Child,
    folder: PathBuf,
}

impl SshAgent {
    pub fn start(folder: &Path) -> Self {
        Self::start_with(folder, &[], &[])
    }
    pub fn start_with(folder: &Path, options: &[&str], environment: &[(&str, &Path)]) -> Self {
        fs::create_dir_all(folder).unwrap();
        let child = Command::new("ssh-agent")
            .arg("-D")
            .args(options)
            .arg("-a")
            .arg(folder.join("socket"))
            .envs(environment.iter().copied())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("these tests need ssh-agent: apt-get install openssh-client");
        let agent = Self { child, folder: folder.to_path_buf() };
        let clock = SystemClock::new();
        while !agent.socket().exists() {
            assert!(clock.awake().as_secs() < 30, "ssh-agent did not come up");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        agent
    }
    pub fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }
    /// Makes a key and adds it to the agent; returns its public file. The private one is removed.
    fn add(&self, kind: &str, name: &str) -> PathBuf {
        let file = self.folder.join(name);
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", kind, "-N", "", "-C", name, "-f"])
            .arg(&file)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", said(&made));
        let added = Command::new("ssh-add")
            .arg(&file)
            .env("SSH_AUTH_SOCK", self.socket())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        assert!(added.status.success(), "{}", said(&added));
        fs::remove_file(&file).unwrap();
        file.with_extension("pub")
    }
}

impl Drop for SshAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn an_operators_key_in_ssh_agent_signs_generations_and_requests_and_other_kinds_are_refused() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    let agent = SshAgent::start(&fleet.folder().join("ssh"));
    let config = fleet.config_folder().join("muster.toml");
    let text = fs::read_to_string(&config).unwrap();
    let use_key = |key: &str| {
        fs::write(&config, text.replace("\"keys/operator.pem\"", &format!("\"{key}\""))).unwrap();
    };
    let run = |arguments: &[&str]| {
        fleet.muster(arguments).unwrap().env("SSH_AUTH_SOCK", agent.socket()).output().unwrap()
    };
    use_key("ssh-agent");
    refused(&run(&["status"]), &["holds none", "ssh-add"]);
    agent.add("ecdsa", "other");
    refused(&run(&["status"]), &["ecdsa-sha2-nistp256", "only ed25519 keys"]);
    let public = agent.add("ed25519", "alice");
    refused(&run(&["status"]), &["is not an operator key"]);

    fs::write(&config, &text).unwrap();
    fleet.must(&["keys", "add", "operator", public.to_str().unwrap(), "--name", "alice", "--yes"]).unwrap();
    fleet
        .must(&[
            "keys",
            "remove",
            "operator",
            &key_in(&fleet.config_folder().join("keys/operator.pem")).unwrap().public().short(),
            "--yes",
        ])
        .unwrap();
    fs::remove_file(fleet.config_folder().join("keys/operator.pem")).unwrap();
    let fingerprint = Command::new("ssh-keygen").arg("-lf").arg(&public).output().unwrap();
    let fingerprint = String::from_utf8(fingerprint.stdout).unwrap();
    let fingerprint = fingerprint.split_whitespace().nth(1).unwrap();
    for key in [
        "ssh-agent".to_owned(),
        "ssh-agent:alice".into(),
        format!("ssh-agent:{fingerprint}"),
        public.display().to_string(),
    ] {
        use_key(&key);
        let status = run(&["status"]);
        assert!(status.status.success(), "{key}: {}", said(&status));
    }
    fleet.fixture.say("greeting", "from the agent").unwrap();
    let updated = run(&["update", "--yes", "--flake", &flake(&fleet)]);
    assert!(updated.status.success(), "{}", said(&updated));
    let shown = run(&["machines", "list"]);
    assert!(shown.status.success());
    fleet
        .until("cinnabar", "the new system", |machine| {
            machine.greeting().as_deref() == Some("from the agent")
        })
        .unwrap();
    // Locked, it signs nothing, and the message says so.
    let second = agent.add("ed25519", "bob");
    use_key("ssh-agent");
    refused(&run(&["status"]), &["more than one", "alice", "bob"]);
    use_key(second.to_str().unwrap());
    refused(&run(&["status"]), &["is not an operator key"]);
    drop(agent);
    use_key("ssh-agent:alice");
    refused(
        &fleet.muster(&["status"]).unwrap().env("SSH_AUTH_SOCK", "/nowhere/agent").output().unwrap(),
        &["/nowhere/agent"],
    );
    refused(
        &fleet.muster(&["status"]).unwrap().env_remove("SSH_AUTH_SOCK").output().unwrap(),
        &["SSH_AUTH_SOCK"],
    );
}

/// Every place in a process's memory with these bytes, as far as it can be read.
fn in_memory(pid: u32, wanted: &[u8]) -> usize {
    use std::os::unix::fs::FileExt as _;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.contains(" rw")) {
        let (from, to) = line.split_whitespace().next().unwrap().split_once('-').unwrap();
        let (from, to) = (u64::from_str_radix(from, 16).unwrap(), u64::from_str_radix(to, 16).unwrap());
        let mut bytes = vec![0; usize::try_from(to - from).unwrap()];
        if memory.read_exact_at(&mut bytes, from).is_ok() {
            found += bytes.windows(wanted.len()).filter(|window| *window == wanted).count();
        }
    }
    found
}

/// The 32 secret bytes of a key without a passphrase.
fn seed(file: &Path) -> Vec<u8> {
    use std::io::Write as _;
    let text = fs::read_to_string(file).unwrap();
    let base64: String = text.lines().filter(|line| !line.starts_with('-')).collect();
    let mut decode =
        Command::new("base64").arg("-d").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    decode.stdin.take().unwrap().write_all(base64.as_bytes()).unwrap();
    let der = decode.wait_with_output().unwrap().stdout;
    der[der.len() - 32..].to_vec()
}

#[test]
fn i8_the_server_never_has_an_operators_or_a_root_key_in_its_folder_its_files_or_its_memory() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    let keys = fleet.config_folder().join("keys");
    let strong = [seed(&keys.join("root.pem")), seed(&keys.join("operator.pem"))];
    let online = seed(&fleet.controller_folder().join("online.pem"));
    // Everything that an operator does with those keys while the server runs.
    let newcomer = SecretKey::generate().unwrap().public().hex();
    fleet.must(&["keys", "add", "operator", &newcomer, "--yes"]).unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    fleet.must(&["machines", "rotate-key", "cinnabar"]).unwrap();
    fleet.must(&["audit"]).unwrap();

    let pid = fleet.controller_pid().unwrap();
    assert!(in_memory(pid, &online) > 0, "the online key is found, so that the others would be");
    for seed in &strong {
        assert_eq!(in_memory(pid, seed), 0, "a strong key lies in the server's memory");
    }
    // Nor does it have any of their files open, nor any file outside its own folder except the system's.
    for fd in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
        let target = fs::read_link(fd.path()).unwrap_or_default();
        assert!(!target.starts_with(&keys), "it has {} open", target.display());
    }
    let mut files = 0;
    let mut look = vec![fleet.controller_folder()];
    while let Some(folder) = look.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.file_type().unwrap().is_dir() {
                look.push(entry.path());
                continue;
            }
            let Ok(bytes) = fs::read(entry.path()) else { continue };
            files += 1;
            for seed in &strong {
                let plain = bytes.windows(32).any(|window| window == seed);
                let hex = String::from_utf8_lossy(&bytes).contains(&muster_protocol::ids::to_hex(seed));
                assert!(!plain && !hex, "{} holds a strong key", entry.path().display());
            }
            let pem = String::from_utf8_lossy(&bytes).contains("PRIVATE KEY");
            assert!(!pem || entry.path().ends_with("online.pem"), "{}", entry.path().display());
        }
    }
    assert!(files >= 5, "{files} files were looked at");
}
