//! A whole fleet for one test: flake, controller, machines in folders. All of it ends when the value is
//! dropped.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Generation;
use muster_protocol::operator::{Condition, HistoryEntry, MachineView};
use muster_protocol::report::EventKind;
use rustix::process::Signal;

use crate::fixture::{Fixture, Listed};
use crate::machine::{Machine, Plan};
use crate::printed;
use crate::programs;
use crate::stand_in::processes;

/// The longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(90);
const LOOK_AGAIN: Duration = Duration::from_millis(50);

pub struct Fleet {
    pub fixture: Fixture,
    pub machines: BTreeMap<String, Machine>,
    listed: Vec<Listed>,
    /// Where the controller listens.
    pub address: String,
    /// The address that machines and operators are given.
    pub url: String,
    server: Option<Child>,
    folder: tempfile::TempDir,
}

/// A test's deviations from the default.
#[derive(Debug, Clone, Default)]
pub struct Wishes {
    /// The URL that machines and operators are given, if it is not the controller's own.
    pub url: Option<String>,
    /// Empty machines, without even a first system.
    pub bare: bool,
}

/// `cinnabar` of class nixos and `stibnite` of class darwin.
pub fn both() -> Vec<(&'static str, String)> {
    vec![
        ("cinnabar", programs::host_system().replace("darwin", "linux")),
        ("stibnite", "aarch64-darwin".into()),
    ]
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Fleet {
    /// A controller, and machines that are on, enrolled, and without a generation.
    pub fn start(machines: &[(&str, String)]) -> Result<Self> {
        let mut fleet = Self::prepare(machines, &Wishes::default())?;
        for (name, _) in machines {
            fleet.invite_and_enrol(name)?;
            fleet.machine(name).start()?;
        }
        for (name, _) in machines {
            fleet.wait(name, "its first check-in", |view| view.last_seen.is_some())?;
        }
        Ok(fleet)
    }

    /// A controller, and machines that are off and not enrolled.
    pub fn prepare(machines: &[(&str, String)], wishes: &Wishes) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("muster-e2e.").tempdir()?;
        let place = fs::canonicalize(folder.path())?;
        let agent = programs::find("muster-agent")?;
        let mut listed = Vec::new();
        let mut plans = Vec::new();
        for (name, system) in machines {
            let mut machine = Listed::new(name, system)?;
            let plan = Plan {
                log: "info,muster_agent=debug".into(),
                ..Plan::new(machine.class(), machine.system.clone(), agent.clone())
            };
            machine.root = (!plan.own_store).then(|| place.join(name));
            listed.push(machine);
            plans.push(plan);
        }
        let fixture = Fixture::make(&place.join("operators"), &listed)?;
        let mut made = BTreeMap::new();
        for (machine, plan) in listed.iter().zip(&plans) {
            let built = Machine::make(&place.join(&machine.name), plan)?;
            if !wishes.bare {
                built.install(&fixture.factory(&machine.name)?, &fixture.store())?;
            }
            made.insert(machine.name.clone(), built);
        }
        let address = format!("127.0.0.1:{}", free_port()?);
        let url = wishes.url.clone().unwrap_or_else(|| format!("http://{address}"));
        let mut fleet = Self { fixture, machines: made, listed, address, url, server: None, folder };
        let (url, address) = (fleet.url.clone(), fleet.address.clone());
        let config = fleet.config_folder();
        let config = config.to_str().context("the folder is no UTF-8")?;
        fleet.must(&["init", "--dir", config, "--url", &url, "--listen", &address, "--plain-keys"])?;
        fleet.start_controller()?;
        Ok(fleet)
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// What `muster init` created.
    pub fn config_folder(&self) -> PathBuf {
        self.folder.path().join("fleet")
    }

    /// The controller's part of it.
    pub fn controller_folder(&self) -> PathBuf {
        self.config_folder().join("controller")
    }

    pub fn machine(&self, name: &str) -> &Machine {
        &self.machines[name]
    }

    /// Runs a command of the operator.
    pub fn muster(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(programs::find("muster")?);
        command
            .env("MUSTER_CONFIG", self.config_folder().join("muster.toml"))
            .envs(self.fixture.environment())
            .env("NO_COLOR", "1")
            .current_dir(self.fixture.flake())
            .args(arguments)
            .stdin(Stdio::null());
        Ok(command)
    }

    pub fn run(&self, arguments: &[&str]) -> Result<Output> {
        Ok(self.muster(arguments)?.output()?)
    }

    /// Runs a command that must succeed; returns its output.
    pub fn must(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        ensure!(output.status.success(), "muster {} failed: {}", arguments.join(" "), said(&output));
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Starts the controller and waits until it answers.
    pub fn start_controller(&mut self) -> Result<()> {
        ensure!(self.server.is_none(), "the controller runs already");
        let config = self.controller_folder().join("controller.toml");
        let log = fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.folder.path().join("controller.log"))?;
        let child = Command::new(programs::find("muster")?)
            .args(["serve", "--config"])
            .arg(config)
            .env("RUST_LOG", "info")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        self.server = Some(child);
        let clock = SystemClock::new();
        loop {
            if std::net::TcpStream::connect(&self.address).is_ok() {
                return Ok(());
            }
            if let Some(exit) = self.server.as_mut().map(Child::try_wait).transpose()?.flatten() {
                self.server = None;
                bail!("the controller ended ({exit}): {}", self.controller_log());
            }
            ensure!(clock.awake() < PATIENCE, "the controller does not answer: {}", self.controller_log());
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    pub fn stop_controller(&mut self) -> Result<()> {
        let Some(mut child) = self.server.take() else { return Ok(()) };
        processes::signal(i32::try_from(child.id())?, Signal::TERM);
        let clock = SystemClock::new();
        while child.try_wait()?.is_none() {
            if clock.awake() > Duration::from_secs(20) {
                child.kill()?;
                child.wait()?;
                bail!("the controller did not end when it was asked to");
            }
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }

    pub fn controller_is_running(&mut self) -> Result<bool> {
        Ok(self.server.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None))))
    }

    /// The ID of the controller's process.
    pub fn controller_pid(&self) -> Result<u32> {
        Ok(self.server.as_ref().context("the controller does not run")?.id())
    }

    pub fn controller_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("controller.log")).unwrap_or_default()
    }

    /// `muster machines add`: the token.
    pub fn invite(&self, name: &str) -> Result<String> {
        let machine = self.listed.iter().find(|machine| machine.name == name).context("no such machine")?;
        let (class, system) = (machine.class(), &machine.system);
        let token =
            self.must(&["machines", "add", name, "--class", class.as_str(), "--system", system.as_str()])?;
        let token = token.trim().to_owned();
        ensure!(!token.contains(char::is_whitespace), "machines add prints more than the token: {token}");
        Ok(token)
    }

    /// Runs a command of the machine's agent.
    pub fn agent(&self, name: &str, arguments: &[&str]) -> Result<Output> {
        let machine = self.machine(name);
        let mut command = Command::new(programs::find("muster-agent")?);
        command
            .arg("--config")
            .arg(machine.configuration())
            .args(arguments)
            .env("HOME", machine.root.at("/root"))
            .env("NO_COLOR", "1")
            .env_remove("RUST_LOG")
            .stdin(Stdio::null());
        Ok(command.output()?)
    }

    /// `muster-agent enrol -` with this token.
    pub fn enrol(&self, name: &str, token: &str) -> Result<Output> {
        let file = self.folder().join("token-to-enrol-with");
        fs::write(&file, token)?;
        let machine = self.machine(name);
        let mut command = Command::new(programs::find("muster-agent")?);
        command.arg("--config").arg(machine.configuration()).args(["enrol", "-"]);
        command.env("HOME", machine.root.at("/root")).env_remove("RUST_LOG").stdin(fs::File::open(&file)?);
        Ok(command.output()?)
    }

    pub fn invite_and_enrol(&mut self, name: &str) -> Result<()> {
        let token = self.invite(name)?;
        let enrolled = self.enrol(name, &token)?;
        ensure!(enrolled.status.success(), "{name} cannot enrol: {}", said(&enrolled));
        Ok(())
    }

    /// `muster update` of these machines, without following it.
    pub fn update(&self, machines: &[&str]) -> Result<String> {
        let flake = format!("path:{}", self.fixture.flake().display());
        self.must(&[&["update", "--yes", "--flake", &flake], machines].concat())
    }

    pub fn status(&self) -> Result<Vec<MachineView>> {
        printed::read(&self.must(&["status", "--all", "--json"])?)
    }

    pub fn view(&self, name: &str) -> Result<MachineView> {
        let machines = self.status()?;
        machines.into_iter().find(|view| view.machine.as_str() == name).context("status lacks the machine")
    }

    pub fn history(&self, name: &str) -> Result<Vec<HistoryEntry>> {
        printed::read(&self.must(&["history", name, "--json"])?)
    }

    /// Everything that the machine reported about a generation.
    pub fn events(&self, name: &str, generation: u64) -> Result<Vec<EventKind>> {
        let generation = Generation::new(generation)?;
        let history = self.history(name)?;
        let entry = history.into_iter().find(|entry| entry.published.target.generation == generation);
        Ok(entry.map(|entry| entry.events.into_iter().map(|event| event.kind).collect()).unwrap_or_default())
    }

    /// Waits until the controller's view of the machine is as wanted.
    pub fn wait(&self, name: &str, what: &str, wanted: impl Fn(&MachineView) -> bool) -> Result<MachineView> {
        let clock = SystemClock::new();
        loop {
            let view = self.view(name)?;
            if wanted(&view) {
                return Ok(view);
            }
            ensure!(
                clock.awake() < PATIENCE,
                "{name}: {what} did not come about; it is {}\n{}",
                serde_json::to_string_pretty(&view)?,
                self.logs(name)
            );
            std::thread::sleep(LOOK_AGAIN);
        }
    }

    /// Waits until the machine has settled on this generation, in this condition.
    pub fn settled(&self, name: &str, generation: u64, condition: Condition) -> Result<MachineView> {
        self.wait(name, &format!("{condition:?} at generation {generation}"), |view| {
            view.condition == condition
                && view.published.as_ref().is_some_and(|p| p.target.generation.get() == generation)
        })
    }

    /// Waits for something on the machine itself.
    pub fn until(&self, name: &str, what: &str, wanted: impl Fn(&Machine) -> bool) -> Result<()> {
        let clock = SystemClock::new();
        while !wanted(self.machine(name)) {
            ensure!(clock.awake() < PATIENCE, "{name}: {what} did not come about\n{}", self.logs(name));
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    /// The processes that run `muster-agent … run` on the machine.
    pub fn agent_pids(&self, name: &str) -> Vec<i32> {
        let config = self.machine(name).configuration().display().to_string();
        pids_with(self.machine(name), &[&config, "run"])
    }

    /// The processes of the machine with these words in their command lines.
    pub fn pids(&self, name: &str, words: &[&str]) -> Vec<i32> {
        pids_with(self.machine(name), words)
    }

    pub fn kill_agent(&self, name: &str) -> Result<()> {
        let pids = self.agent_pids(name);
        ensure!(!pids.is_empty(), "{name} runs no agent\n{}", self.logs(name));
        for pid in pids {
            processes::signal(pid, Signal::KILL);
        }
        Ok(())
    }

    /// The ends of the logs, for a failed test.
    pub fn logs(&self, name: &str) -> String {
        let tail = |text: String| {
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(60)..].join("\n")
        };
        let agent = fs::read_to_string(self.machine(name).agent_log()).unwrap_or_default();
        format!("--- agent of {name}\n{}\n--- controller\n{}", tail(agent), tail(self.controller_log()))
    }
}

/// The processes of a machine with these words in their command lines.
pub fn pids_with(machine: &Machine, words: &[&str]) -> Vec<i32> {
    let fits = |pid: &i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line: Vec<&[u8]> = line.split(|byte| *byte == 0).collect();
        words.iter().all(|word| line.contains(&word.as_bytes()))
    };
    processes::of_folder(machine.root.folder()).into_iter().filter(fits).collect()
}

/// A command's output, for an error message.
pub fn said(output: &Output) -> String {
    format!(
        "{}\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in self.machines.keys() {
                eprintln!("{}", self.logs(name));
            }
        }
        for machine in self.machines.values() {
            if let Err(error) = machine.stop(true) {
                eprintln!("{error:#}");
            }
        }
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}
