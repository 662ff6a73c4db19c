//! Several operators, where their keys live, and the way back when a key or the root is lost.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use muster_protocol::audit::{Entry, origin, verify};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::draft::DraftView;
use muster_protocol::ids::Sha256;
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::{Condition, MachineView};
use muster_protocol::report::Attack;
use muster_protocol::tuf::repository::{RootSpec, sign_root};
use muster_testbed::caller::key_in;
use muster_testbed::fleet::{Fleet, both, said};

use crate::common::assert_runs_published;

/// Another operator, with a folder and a key of his own beside the fleet's.
struct Operator {
    config: PathBuf,
    public: String,
}

impl Operator {
    /// Makes the key, and a copy of what every operator may have.
    fn new(fleet: &Fleet, name: &str) -> Self {
        let folder = fleet.folder().join(name);
        fs::create_dir_all(folder.join("keys")).unwrap();
        let key = folder.join("keys/operator.pem");
        let public = fleet.must(&["keys", "generate", key.to_str().unwrap(), "--plain"]).unwrap();
        for file in ["muster.toml", "root.json"] {
            fs::copy(fleet.config_folder().join(file), folder.join(file)).unwrap();
        }
        Self { config: folder.join("muster.toml"), public: public.trim().to_owned() }
    }

    fn run(&self, fleet: &Fleet, arguments: &[&str]) -> Output {
        fleet.run(&[&["--config", self.config.to_str().unwrap()], arguments].concat()).unwrap()
    }
    #[track_caller]
    fn must(&self, fleet: &Fleet, arguments: &[&str]) -> String {
        let output = self.run(fleet, arguments);
        assert!(output.status.success(), "muster {}: {}", arguments.join(" "), said(&output));
        String::from_utf8(output.stdout).unwrap()
    }
    #[track_caller]
    fn refused(&self, fleet: &Fleet, arguments: &[&str], words: &[&str]) {
        refused(&self.run(fleet, arguments), words);
    }
}

#[track_caller]
fn refused(output: &Output, words: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "it was accepted: {}", said(output));
    for word in words {
        assert!(text.contains(word), "'{word}' is missing in: {text}");
    }
}

fn flake(fleet: &Fleet) -> String {
    format!("path:{}", fleet.fixture.flake().display())
}

fn drafts(fleet: &Fleet) -> Vec<DraftView> {
    serde_json::from_str(&fleet.must(&["drafts", "list", "--json"]).unwrap()).unwrap()
}

fn published(fleet: &Fleet, name: &str) -> Option<u64> {
    fleet.view(name).unwrap().published.map(|published| published.target.generation.get())
}

/// The log, checked from its beginning on.
fn log(fleet: &Fleet) -> Vec<Entry> {
    let entries: Vec<Entry> =
        serde_json::from_str(&fleet.must(&["audit", "--json", "--limit", "100000"]).unwrap()).unwrap();
    let first = fs::read(fleet.controller_folder().join("root/1.root.json")).unwrap();
    verify(origin(&Sha256::of(&first)), &entries).unwrap();
    entries
}

#[test]
fn two_operators_sign_what_one_drafted_and_only_then_the_machines_take_it() {
    let fleet = Fleet::start(&both()).unwrap();
    let bob = Operator::new(&fleet, "bob");
    bob.refused(&fleet, &["status"], &["is no operator's in the current root"]);
    let said = fleet
        .must(&["keys", "add", "operator", &bob.public, "--name", "bob", "--threshold", "2", "--yes"])
        .unwrap();
    assert!(said.contains("+ operator bob") && said.contains("2 of 2 must sign"), "{said}");
    let listed = fleet.must(&["keys", "list"]).unwrap();
    assert!(
        listed.contains("2 of 2") && listed.contains("bob") && listed.contains("Root 2 is good"),
        "{listed}"
    );

    // One signature makes a draft, and nothing for a machine.
    fleet.fixture.say("greeting", "one").unwrap();
    let drafted = fleet.update(&[]).unwrap();
    let id = drafts(&fleet)[0].id.short();
    assert!(drafted.contains(&format!("muster sign {id}")), "{drafted}");
    assert_eq!(published(&fleet, "cinnabar"), None);

    // The other one sees what it would deploy; what his flake does not say he does not sign.
    let shown = bob.must(&fleet, &["drafts", "show", &id]);
    let output = fleet.fixture.output("nixosConfigurations.cinnabar.config.system.build.toplevel").unwrap();
    for words in [
        "cinnabar (nixos",
        "generation 1",
        "derivation",
        output.as_str(),
        "its first generation",
        "deadline",
        "check",
        "signature ends",
        "signed by",
        "1 signature more wanted",
    ] {
        assert!(shown.contains(words), "'{words}' is missing in: {shown}");
    }
    refused(&bob.run(&fleet, &["sign", &id]), &["nobody is here to answer"]);
    fleet.fixture.say("greeting", "another").unwrap();
    bob.refused(&fleet, &["sign", &id, "--yes", "--flake", &flake(&fleet)], &["is not what", "derivation"]);
    fleet.fixture.say("greeting", "one").unwrap();
    // His own signature counts once.
    let again = fleet.must(&["sign", &id, "--yes"]).unwrap();
    assert!(again.contains("You have signed"), "{again}");
    assert_eq!(published(&fleet, "cinnabar"), None);
    let signed = bob.must(&fleet, &["sign", &id, "--yes", "--flake", &flake(&fleet)]);
    assert!(signed.contains("The draft is what") && signed.contains("published generation 1"), "{signed}");
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
        assert_runs_published(&fleet, name);
        assert_eq!(fleet.machine(name).greeting().unwrap(), "one");
    }
    assert!(drafts(&fleet).is_empty());

    // By mail, signed where nobody is asked anything: the file is all that travels.
    fleet.fixture.say("greeting", "two").unwrap();
    let file = fleet.folder().join("draft.json");
    let file = file.to_str().unwrap();
    let flake = flake(&fleet);
    fleet.must(&["update", "--yes", "--flake", &flake, "--draft-file", file, "cinnabar"]).unwrap();
    let text = fs::read_to_string(file).unwrap();
    let secret = fs::read_to_string(fleet.config_folder().join("keys/operator.pem")).unwrap();
    assert!(!text.contains(secret.lines().nth(1).unwrap()));
    bob.must(&fleet, &["sign", file, "--offline", "--yes"]);
    assert_eq!(published(&fleet, "cinnabar"), Some(1));
    fleet.must(&["drafts", "publish", file]).unwrap();
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    assert_eq!(fleet.machine("cinnabar").greeting().unwrap(), "two");
    // Published again it is no second one.
    bob.must(&fleet, &["drafts", "publish", file]);
    assert_eq!(published(&fleet, "cinnabar"), Some(2));

    // A draft that somebody bent on its way is refused by whoever looks at it.
    fleet.fixture.say("greeting", "three").unwrap();
    fleet.must(&["update", "--yes", "--flake", &flake, "--draft-file", file, "cinnabar"]).unwrap();
    let evil = fs::read_to_string(file).unwrap().replacen(
        r#"\"deadline_seconds\":60"#,
        r#"\"deadline_seconds\":61"#,
        1,
    );
    fs::write(file, evil).unwrap();
    bob.refused(&fleet, &["sign", file, "--yes"], &["is not sound", "do not sign"]);
    let id = drafts(&fleet)[0].id.short();
    bob.must(&fleet, &["drafts", "drop", &id]);
    assert!(drafts(&fleet).is_empty());

    let log = log(&fleet);
    let done = |action: &str| log.iter().filter(|entry| entry.action == action).count();
    assert_eq!((done("root-published"), done("draft-made"), done("draft-signed")), (1, 3, 1), "{log:#?}");
    assert_eq!((done("generation-published"), done("draft-dropped"), done("enrolled")), (3, 3, 2));
    let by_bob = log.iter().find(|entry| entry.action == "draft-signed").unwrap();
    assert_eq!(by_bob.by.unwrap().hex(), bob.public);
    let shown = fleet.must(&["audit", "--limit", "4"]).unwrap();
    assert!(shown.contains("bob (") && shown.contains("each fits the one before it"), "{shown}");
}

#[test]
fn a_lost_operator_key_is_replaced_by_the_root_holder_and_what_it_signed_is_signed_anew() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    let running = fleet.machine("cinnabar").running();
    let lost = fleet.config_folder().join("keys/operator.pem");
    let old = key_in(&lost).unwrap().public();
    fs::rename(&lost, fleet.folder().join("lost.pem")).unwrap();
    refused(&fleet.run(&["status"]).unwrap(), &["operator.pem"]);

    // As docs/operators.md says it.
    let new = fleet.must(&["keys", "generate", lost.to_str().unwrap(), "--plain"]).unwrap();
    let said = fleet.must(&["keys", "rotate", "operator", &old.short(), new.trim(), "--yes"]).unwrap();
    assert!(said.contains("muster update --refresh"), "{said}");
    let status = fleet.must(&["status"]).unwrap();
    assert!(status.contains("cinnabar"), "{status}");
    // The finder of the lost key is told that it is worth nothing.
    let finder = Operator::new(&fleet, "finder");
    fs::copy(fleet.folder().join("lost.pem"), finder.config.with_file_name("keys/operator.pem")).unwrap();
    finder.refused(&fleet, &["status"], &["is no operator's"]);

    let renewed = fleet.must(&["update", "--refresh", "--yes", "--flake", &flake(&fleet)]).unwrap();
    assert!(renewed.contains("signed anew: too few of today's operators"), "{renewed}");
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    assert_eq!(fleet.machine("cinnabar").running(), running, "nothing else changed");
    fleet.fixture.say("greeting", "new hands").unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 3, Condition::UpToDate).unwrap();
    assert_eq!(fleet.machine("cinnabar").greeting().unwrap(), "new hands");
    // Nothing was ever called an attack.
    assert!(fleet.must(&["history", "cinnabar", "--attacks"]).unwrap().contains("no attack"));
}

#[test]
fn a_lost_online_key_is_replaced_without_a_restart_and_without_an_alarm() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    let online = fleet.controller_folder().join("online.pem");
    let old = key_in(&online).unwrap().public();
    let new_file = fleet.folder().join("online-2.pem");
    let new = fleet.must(&["keys", "generate", new_file.to_str().unwrap(), "--plain"]).unwrap();
    fs::remove_file(&online).unwrap();
    let said = fleet.must(&["keys", "rotate", "online", &old.short(), new.trim(), "--yes"]).unwrap();
    assert!(said.contains("put the new one in the place of its online_key"), "{said}");
    // Until it is there the controller signs nothing, and machines wait.
    fleet.fixture.say("greeting", "fresh").unwrap();
    let early = fleet.run(&["update", "--yes", "--flake", &flake(&fleet)]);
    fs::rename(&new_file, &online).unwrap();
    let early = early.unwrap();
    assert!(
        !early.status.success() && String::from_utf8_lossy(&early.stderr).contains("online_key"),
        "{}",
        said_of(&early)
    );
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    assert!(fleet.must(&["history", "cinnabar", "--attacks"]).unwrap().contains("no attack"));
}

fn said_of(output: &Output) -> String {
    said(output)
}

#[test]
fn an_expired_root_stops_machines_where_they_are_and_a_renewed_one_sets_them_going() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    let before = fleet.machine("cinnabar").running();
    // Nobody can wait for a root to end: this one has ended already.
    let keys = fleet.config_folder();
    let (root, operator) =
        (key_in(&keys.join("keys/root.pem")).unwrap(), key_in(&keys.join("keys/operator.pem")).unwrap());
    let spec = RootSpec {
        version: 2,
        expires: SystemClock::new().unix_seconds() - 60,
        root: (vec![root.public()], 1),
        operators: (vec![operator.public()], 1),
        online: vec![key_in(&fleet.controller_folder().join("online.pem")).unwrap().public()],
    };
    fs::write(fleet.controller_folder().join("root/2.root.json"), sign_root(&spec, &[&root]).unwrap())
        .unwrap();
    fleet.fixture.say("greeting", "late").unwrap();
    fleet.update(&[]).unwrap();
    let view = fleet.wait("cinnabar", "a refusal", |view| view.attack.is_some()).unwrap();
    assert_eq!((view.attack.unwrap().attack, view.condition), (Attack::Freeze, Condition::UnderAttack));
    assert_eq!(fleet.machine("cinnabar").running(), before);
    let listed = fleet.must(&["keys", "list"]).unwrap();
    assert!(listed.contains("muster keys renew"), "{listed}");

    fleet.must(&["keys", "renew", "--yes"]).unwrap();
    let asked = fleet.agent("cinnabar", &["check-now"]).unwrap();
    assert!(asked.status.success());
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    assert_eq!(fleet.machine("cinnabar").greeting().unwrap(), "late");
    let told = fleet.must(&["history", "cinnabar", "--attacks"]).unwrap();
    assert!(told.contains("freeze") && !told.contains("goes on"), "{told}");
}

#[test]
fn root_holders_sign_one_after_the_other_and_a_single_one_changes_nothing() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    let second = fleet.folder().join("root-2.pem");
    let second = second.to_str().unwrap();
    let public = fleet.must(&["keys", "generate", second, "--plain"]).unwrap();
    let first = fleet.config_folder().join("keys/root.pem");
    let first = first.to_str().unwrap();
    // The new holder signs, too: so nobody is named whose key is lost already.
    fleet
        .must(&[
            "keys",
            "add",
            "root",
            public.trim(),
            "--threshold",
            "2",
            "--yes",
            "--root-key",
            first,
            "--root-key",
            second,
        ])
        .unwrap();
    let bob = Operator::new(&fleet, "bob");
    let said = fleet.must(&["keys", "add", "operator", &bob.public, "--name", "bob", "--yes"]).unwrap();
    assert!(said.contains("waits for 1 signature"), "{said}");
    bob.refused(&fleet, &["status"], &["is no operator's"]);
    let id = drafts(&fleet)[0].id.short();
    // An operator is no root holder.
    refused(&fleet.run(&["sign", &id, "--yes"]).unwrap(), &["is no root key"]);
    let signed = fleet.must(&["sign", &id, "--yes", "--key", second]).unwrap();
    assert!(signed.contains("+ operator bob") && signed.contains("Root 3 is in force"), "{signed}");
    bob.must(&fleet, &["status"]);
    // And by file, with nothing but the trusted root at hand.
    let file = fleet.folder().join("root-draft.json");
    let file = file.to_str().unwrap();
    fleet.must(&["keys", "remove", "operator", "bob", "--yes", "--out", file]).unwrap();
    fleet.must(&["sign", file, "--offline", "--yes", "--key", second]).unwrap();
    bob.must(&fleet, &["status"]);
    fleet.must(&["keys", "publish", file]).unwrap();
    bob.refused(&fleet, &["status"], &["is no operator's"]);
    assert_eq!(log(&fleet).iter().filter(|entry| entry.action == "root-published").count(), 3);
}

/// OpenSSH's own agent, ended with the test.
struct SshAgent {
    child: Child,
    folder: PathBuf,
}

impl SshAgent {
    fn start(folder: &Path) -> Self {
        fs::create_dir_all(folder).unwrap();
        let child = Command::new("ssh-agent")
            .args(["-D", "-a"])
            .arg(folder.join("socket"))
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
    fn socket(&self) -> PathBuf {
        self.folder.join("socket")
    }
    /// Makes a key and gives it to the agent; its public file. The private one is removed.
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
    refused(&run(&["status"]), &["ecdsa-sha2-nistp256", "only plain ed25519"]);
    let public = agent.add("ed25519", "alice");
    refused(&run(&["status"]), &["is no operator's"]);

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
    // Locked, it signs nothing, and the words say so.
    let second = agent.add("ed25519", "bob");
    use_key("ssh-agent");
    refused(&run(&["status"]), &["more than one", "alice", "bob"]);
    use_key(second.to_str().unwrap());
    refused(&run(&["status"]), &["is no operator's"]);
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

/// Every place where these bytes lie in a process's memory, as long as it can be read.
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
    // Nor does it have one of their files open, nor any file outside its own folder but what the system has.
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

#[test]
fn a_machine_takes_a_new_key_whenever_its_agent_is_killed_meanwhile() {
    use muster_testbed::stolen::Stolen;
    use muster_testbed::thief::Answer;

    let stolen = Stolen::new().unwrap();
    let (fleet, thief, name) = (&stolen.fleet, &stolen.thief, "cinnabar");
    let key = || fleet.view(name).unwrap().key.unwrap();
    let next = stolen.state(name).join("next-machine.pem");
    let restart = || {
        let before = fleet.agent_pids(name);
        fleet.kill_agent(name).unwrap();
        fleet
            .until(name, "another agent", |_| {
                let now = fleet.agent_pids(name);
                !now.is_empty() && now != before
            })
            .unwrap();
    };
    let rotates = |asked: &serde_json::Value| asked.get("new_key").is_some();
    let brings = move |body: &[u8]| serde_json::from_slice(body).is_ok_and(|value| rotates(&value));
    let answered = |status| Some(Answer { status, ..Answer::default() });

    // Asked by the operator, with nobody in the way.
    let first = key();
    fleet.must(&["machines", "rotate-key", name]).unwrap();
    let view = fleet.wait(name, "a new key", |view| view.key != Some(first)).unwrap();
    assert!(!view.key_rotation_asked && view.key_rotated_at.is_some());
    fleet.until(name, "the new key in force", |_| !next.exists()).unwrap();

    // The new key is made and durable; the controller never hears of it. Killed there.
    let second = key();
    thief.intercept(move |asked| if brings(&asked.body) { answered(502) } else { None });
    let said_so = fleet.agent(name, &["rotate-key"]).unwrap();
    assert!(said_so.status.success(), "{}", said(&said_so));
    fleet
        .until(name, "a check-in with the new key", |_| thief.asked().iter().any(|asked| brings(&asked.body)))
        .unwrap();
    restart();
    assert!(next.exists());
    assert_eq!(key(), second);
    thief.behave();
    fleet.wait(name, "a new key", |view| view.key != Some(second)).unwrap();
    fleet.until(name, "the new key in force", |_| !next.exists()).unwrap();

    // The controller has the new key; the machine never hears of that. Killed there.
    let third = key();
    thief.forget();
    thief.bend(|answer| {
        if answer.path == muster_protocol::api::CHECKIN {
            (answer.status, answer.body) = (502, Vec::new());
        }
    });
    let said_so = fleet.agent(name, &["rotate-key"]).unwrap();
    assert!(said_so.status.success(), "{}", said(&said_so));
    fleet.wait(name, "the controller's new key", |view| view.key != Some(third)).unwrap();
    assert!(next.exists(), "the machine does not know yet");
    let fourth = key();
    restart();
    thief.behave();
    fleet.until(name, "the new key in force", |_| !next.exists()).unwrap();
    assert_eq!(key(), fourth);

    // The agent is off: the key is made, and shown when it runs.
    fleet.machine(name).stop(false).unwrap();
    let said_so = fleet.agent(name, &["rotate-key"]).unwrap();
    assert!(String::from_utf8_lossy(&said_so.stdout).contains("does not run"), "{}", said(&said_so));
    assert_eq!(key(), fourth);
    fleet.machine(name).start().unwrap();
    fleet.wait(name, "a new key", |view| view.key != Some(fourth)).unwrap();

    // After all that it is a machine as any other: no alarm, and updates come through.
    fleet.fixture.say("greeting", "still here").unwrap();
    fleet.update(&[name]).unwrap();
    let view: MachineView = fleet.settled(name, 2, Condition::UpToDate).unwrap();
    assert!(!view.clone_alarm && view.attack.is_none());
    let rotated = log(fleet).into_iter().filter(|entry| entry.action == "key-rotated").count();
    assert_eq!(rotated, 4);
}

#[test]
fn a_generation_near_the_end_of_its_signature_is_renewed_and_changed_machines_are_left_alone() {
    let fleet = Fleet::start(&both()).unwrap();
    let config = fleet.config_folder().join("muster.toml");
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("signature_days = 90", "signature_days = 5")).unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        fleet.settled(name, 1, Condition::UpToDate).unwrap();
    }
    let status = fleet.must(&["status"]).unwrap();
    assert!(
        status.contains("the signature ends in") && status.contains("muster update --refresh"),
        "{status}"
    );
    let unchanged = fleet.update(&[]).unwrap();
    assert!(
        unchanged.contains("unchanged; its signature ends in 4 days: renew it with --refresh"),
        "{unchanged}"
    );
    assert_eq!(published(&fleet, "cinnabar"), Some(1));

    fs::write(&config, &text).unwrap();
    // One of the two says something new: that is no renewal.
    fleet.fixture.say("greeting.stibnite", "changed").unwrap();
    let renewed = fleet.must(&["update", "--refresh", "--yes", "--flake", &flake(&fleet)]).unwrap();
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    if renewed.contains("left alone") {
        assert_eq!(published(&fleet, "stibnite"), Some(1), "{renewed}");
    } else {
        panic!("{renewed}");
    }
    assert!(
        !fleet
            .must(&["status"])
            .unwrap()
            .lines()
            .any(|line| line.contains("cinnabar") && line.contains("ends in"))
    );
    let nothing =
        fleet.must(&["update", "--refresh", "--yes", "--flake", &flake(&fleet), "cinnabar"]).unwrap();
    assert!(nothing.contains("nothing to sign"), "{nothing}");
}
