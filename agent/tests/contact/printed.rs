//! What `muster-agent` prints, and what it reads at a terminal: a controller's text is displayed and never
//! interpreted, and a closed pipe or a full disk causes no panic.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use axum::http::StatusCode;
use axum::response::IntoResponse as _;
use muster_agent::buildlog::BuildLog;
use muster_agent::config::Config;
use muster_agent::enrol::enrol;
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::enrol::{Secret, Token};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::operator::FleetView;
use muster_protocol::shown::is_unseen;

use super::controller::{Controller, DAY, Fleet, NOW, problem};

const HOSTILE: &str = "x\u{1b}[2J\u{1b}]52;c;ZXZpbA==\u{7}\u{9b}1m\r\nok   enrolment   as \
    root\n\u{202e}\u{2066}\u{200b}\u{feff}\u{e0041}y";

struct Site {
    folder: tempfile::TempDir,
    controller: Controller,
    fleet: Fleet,
    token: Token,
}

impl Site {
    async fn new() -> Self {
        let (controller, fleet) = (Controller::start().await, Fleet::new());
        controller.put(&api::root_path(1), fleet.root.clone());
        let token = Token {
            url: controller.url.clone(),
            machine: fleet.machine.clone(),
            class: fleet.class,
            fleet: Sha256::of(&fleet.root),
            root: Sha256::of(&fleet.root),
            root_version: 1,
            lowest_generation: Generation::FIRST,
            expires: NOW + 100 * 365 * DAY,
            secret: Secret::generate().unwrap(),
            tls_ca: None,
        };
        controller.expect_enrolment(token.secret.check_key());
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().display();
        let settings = format!(
            "state_dir = '{root}/state'\n[stand_in]\nroot = '{root}'\npath = '{root}/programs'\nsystem = \
             'x86_64-linux'\n"
        );
        std::fs::write(folder.path().join("agent.toml"), settings).unwrap();
        Self { folder, controller, fleet, token }
    }

    fn config(&self) -> Config {
        Config::load(Some(&self.folder.path().join("agent.toml"))).unwrap()
    }

    async fn enrol(&self) {
        enrol(&self.config(), &self.token.encode().unwrap(), false, NOW * 1000).await.unwrap();
    }

    fn answer_fleet(&self, version: &str) {
        let view = FleetView {
            fleet: Sha256::of(&self.fleet.root),
            root_version: 1,
            root: Sha256::of(&self.fleet.root),
            version: version.to_owned(),
        };
        self.controller.put(api::FLEET, serde_json::to_vec(&view).unwrap());
    }
}

fn command(folder: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
    command.arg("--config").arg(folder.join("agent.toml")).args(arguments);
    command
}

/// Runs it beside the controller, which lives in this thread.
async fn run(mut command: Command, stdin: &str) -> Output {
    let stdin = stdin.to_owned();
    let ran = tokio::task::spawn_blocking(move || {
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(stdin.as_bytes()).unwrap();
        child.wait_with_output().unwrap()
    });
    ran.await.unwrap()
}

async fn agent(site: &Site, arguments: &[&str], stdin: &str) -> Output {
    let mut command = command(site.folder.path(), arguments);
    command.stdout(Stdio::piped());
    run(command, stdin).await
}

/// With another kind of standard output.
async fn agent_to(site: &Site, arguments: &[&str], stdout: impl Into<Stdio>) -> Output {
    let mut command = command(site.folder.path(), arguments);
    command.stdout(stdout);
    run(command, "").await
}

fn closed() -> std::io::PipeWriter {
    std::io::pipe().unwrap().1
}

fn assert_shown(output: &Output, what: &str) {
    for bytes in [&output.stdout, &output.stderr] {
        let text = String::from_utf8(bytes.clone()).unwrap();
        let obeyed = text.chars().find(|c| *c != '\n' && is_unseen(*c));
        assert_eq!(obeyed, None, "{what}: {text:?}");
        assert!(!text.lines().any(|line| line.starts_with("ok   enrolment   as root")), "{what}: {text}");
    }
    let all = [output.stdout.clone(), output.stderr.clone()].concat();
    assert!(String::from_utf8(all).unwrap().contains("\\u{1b}[2J"), "{what} does not show it: {output:?}");
}

#[tokio::test]
async fn a_controllers_text_is_shown_and_not_obeyed() {
    let site = Site::new().await;
    let refuse =
        |_: &super::controller::Received| problem(StatusCode::FORBIDDEN, ProblemCode::BadSignature, HOSTILE);
    site.controller.answer(api::ENROL, refuse);
    let refused = agent(&site, &["enrol", "-"], &site.token.encode().unwrap()).await;
    assert!(!refused.status.success());
    assert_shown(&refused, "enrol");

    let grant = Site::new().await;
    grant.enrol().await;
    grant.answer_fleet(HOSTILE);
    assert_shown(&agent(&grant, &["doctor"], "").await, "doctor, its version");
    grant.controller.answer(api::FLEET, refuse);
    assert_shown(&agent(&grant, &["doctor"], "").await, "doctor, its refusal");
    grant.controller.answer(api::FLEET, |_| HOSTILE.into_response());
    let broken = agent(&grant, &["doctor"], "").await;
    let text = String::from_utf8(broken.stdout).unwrap();
    assert!(!text.contains(|c| c != '\n' && is_unseen(c)), "{text:?}");

    BuildLog::new(&grant.config().state_dir, Generation::FIRST).line(HOSTILE);
    assert_shown(&agent(&grant, &["logs"], "").await, "logs");
}

#[tokio::test]
async fn advice_does_not_end_an_enrolment_that_only_cannot_be_read() {
    let site = Site::new().await;
    let none = agent(&site, &["enrol", "-"], "\n").await;
    let said = String::from_utf8(none.stderr).unwrap();
    assert!(!none.status.success() && said.contains("no token was given"), "{said}");

    site.enrol().await;
    let file = site.config().state("enrolment.json");
    let kept = std::fs::read(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    std::fs::create_dir(&file).unwrap();
    let report = String::from_utf8(agent(&site, &["doctor"], "").await.stdout).unwrap();
    assert!(report.contains("BAD  enrolment") && report.contains("a folder is in its place"), "{report}");
    assert!(!report.contains("--replace"), "{report}");
    // A damaged one is lost.
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, &kept[..kept.len() / 2]).unwrap();
    let report = String::from_utf8(agent(&site, &["doctor"], "").await.stdout).unwrap();
    assert!(report.contains("BAD  enrolment") && report.contains("--replace"), "{report}");
}

#[tokio::test]
async fn a_closed_pipe_is_no_error_and_a_full_disk_is_one() {
    let site = Site::new().await;
    site.enrol().await;
    site.answer_fleet("0.1.0");
    BuildLog::new(&site.config().state_dir, Generation::FIRST).line("words");
    for arguments in [&["status"][..], &["status", "--json"], &["logs"]] {
        let output = agent_to(&site, arguments, closed()).await;
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}");
        if cfg!(target_os = "linux") {
            let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
            let output = agent_to(&site, arguments, full).await;
            let said = String::from_utf8(output.stderr).unwrap();
            assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
            assert!(said.contains("the output cannot be written"), "{arguments:?}: {said}");
        }
    }
    // The doctor's verdict does not depend on whether anybody reads it.
    let output = agent_to(&site, &["doctor"], closed()).await;
    assert_eq!(output.status.code(), agent(&site, &["doctor"], "").await.status.code(), "{output:?}");
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn a_token_pasted_at_a_terminal_is_not_shown_and_ends_with_enter_however_long_it_is() {
    use std::io::Read as _;

    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    let site = Site::new().await;
    // A token of 0.1 that contains a certificate does not fit into a terminal's line.
    let mut old = serde_json::to_value(&site.token).unwrap();
    old["url"] = format!("{}/{}", site.token.url, "x".repeat(6000)).into();
    let json = serde_json::to_vec(&old).unwrap();
    let long = format!(
        "muster1.{}",
        base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, json)
    );

    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&ours).unwrap();
    unlockpt(&ours).unwrap();
    let name = ptsname(&ours, Vec::new()).unwrap();
    let theirs = std::fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
    let again = theirs.try_clone().unwrap();
    let mut command = command(site.folder.path(), &["enrol", "-"]);
    command.stdin(theirs).stdout(Stdio::piped()).stderr(Stdio::piped());
    let typed = tokio::task::spawn_blocking(move || {
        let mut child = command.spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let mut asked = Vec::new();
        while !asked.ends_with(b"Enter: ") {
            let mut byte = [0];
            assert_ne!(stderr.read(&mut byte).unwrap(), 0, "{}", String::from_utf8_lossy(&asked));
            asked.push(byte[0]);
        }
        let mut ours = std::fs::File::from(ours);
        // A terminal's queue has 4,096 bytes: reading makes room.
        ours.write_all(long.as_bytes()).unwrap();
        ours.write_all(b"\r").unwrap();
        let mut said = String::new();
        stderr.read_to_string(&mut said).unwrap();
        let output = child.wait_with_output().unwrap();
        // A final byte of our own: anything echoed comes before it.
        (&again).write_all(b"#").unwrap();
        let mut echoed = [0; 64];
        let length = ours.read(&mut echoed).unwrap();
        (said, output, echoed[..length].to_vec())
    });
    let (said, output, echoed) = typed.await.unwrap();
    // It was read completely: its address, which names nothing, was queried.
    assert!(!output.status.success() && said.contains("does not know root 1"), "{said}");
    assert_eq!(echoed, b"#");
}
