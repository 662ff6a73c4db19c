//! A machine in a folder: created, given its first system, turned on and off.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::StorePath;
use muster_protocol::machine::{Class, System};

use crate::programs;
use crate::root::{MARK, Root};
use crate::stand_in::init::PID;
use crate::stand_in::processes;
use crate::stand_in::wire::{Request, ask};

/// The names of `muster-machine` in a machine's `bin`.
pub const ROLES: [&str; 6] = ["init", "own-session", "in-machine", "launchctl", "systemctl", "systemd-run"];
/// The agent's job on a Mac, and its unit on NixOS.
pub const AGENT_LABEL: &str = "org.muster.agent";
/// nix-darwin's own job at boot.
pub const BOOT_JOB: &str = "/Library/LaunchDaemons/org.nixos.activate-system.plist";
pub const AGENT_UNIT: &str = "muster-agent.service";
/// How long a machine may take to start or stop.
const POWER: Duration = Duration::from_secs(60);

/// How to make a machine.
#[derive(Debug, Clone)]
pub struct Plan {
    pub class: Class,
    pub system: System,
    /// The program to run as the agent.
    pub agent: PathBuf,
    /// Whether it has a Nix store of its own; otherwise it uses the host's.
    pub own_store: bool,
    /// The wait of the agent's long poll, in seconds.
    pub poll_seconds: u64,
    /// `RUST_LOG` of the agent.
    pub log: String,
}

impl Plan {
    pub fn new(class: Class, system: System, agent: PathBuf) -> Self {
        Self {
            class,
            system,
            agent,
            own_store: programs::can_sandbox(),
            poll_seconds: 20,
            log: "info".into(),
        }
    }
}

/// A machine in its folder.
#[derive(Debug, Clone)]
pub struct Machine {
    pub root: Root,
}

impl Machine {
    /// Creates the folder, which must be empty or not exist yet.
    pub fn make(folder: &Path, plan: &Plan) -> Result<Self> {
        fs::create_dir_all(folder)?;
        ensure!(fs::read_dir(folder)?.next().is_none(), "{} is not empty", folder.display());
        fs::write(folder.join(MARK), "A machine in a folder, for Muster's demo and tests.\n")?;
        let root = Root::open(folder)?;
        let common = [
            "/bin",
            "/boot",
            "/etc/muster",
            "/nix/store",
            "/nix/var/nix/gcroots",
            "/nix/var/nix/profiles",
            "/root",
            "/run",
            "/tmp",
            "/var/db",
            "/var/lib",
            "/var/log/journal",
        ];
        let own: &[&str] = match plan.class {
            Class::Darwin => &["/Library/LaunchDaemons", "/Library/LaunchAgents"],
            Class::Nixos => &["/etc/systemd/system"],
        };
        for path in common.iter().chain(own) {
            fs::create_dir_all(root.at(path))?;
        }
        install_stand_ins(&root)?;
        let machine = Self { root };
        machine.write_configuration(plan)?;
        machine.write_agent_job(plan)?;
        Ok(machine)
    }

    pub fn open(folder: &Path) -> Result<Self> {
        Ok(Self { root: Root::open(folder)? })
    }

    pub fn class(&self) -> Class {
        if self.root.at("/Library/LaunchDaemons").is_dir() { Class::Darwin } else { Class::Nixos }
    }

    /// The agent's configuration file.
    pub fn configuration(&self) -> PathBuf {
        self.root.at("/etc/muster/agent.toml")
    }

    /// The plist or unit of the agent.
    pub fn agent_job(&self) -> PathBuf {
        match self.class() {
            Class::Darwin => self.root.at(format!("/Library/LaunchDaemons/{AGENT_LABEL}.plist")),
            Class::Nixos => self.root.at("/etc/systemd/system").join(AGENT_UNIT),
        }
    }

    pub fn agent_log(&self) -> PathBuf {
        match self.class() {
            Class::Darwin => self.root.at("/var/log/muster-agent.log"),
            Class::Nixos => self.root.at(format!("/var/log/journal/{AGENT_UNIT}.log")),
        }
    }

    fn write_configuration(&self, plan: &Plan) -> Result<()> {
        let folder = self.root.folder().to_str().context("the machine's folder is no UTF-8")?;
        ensure!(!folder.contains(['"', '\\', '\n', '\'']), "{folder} has characters that cannot be quoted");
        let mut settings = format!("extra-platforms = {}\n", plan.system);
        let mut store = String::new();
        if plan.own_store {
            let shell = programs::static_shell().context(
                "a machine with a store of its own needs a static busybox for its builds: install \
                 busybox-static, or set MUSTER_BUSYBOX",
            )?;
            settings.push_str(&format!(
                "sandbox-paths = /bin/sh={}\nsandbox-fallback = false\n",
                shell.display()
            ));
            store = format!("store = \"local?root={folder}\"\n");
        } else {
            settings.push_str("sandbox = false\n");
        }
        let text = format!(
            "# Written by muster-machine.\nstate_dir = \"{folder}/var/lib/muster\"\npoll_seconds = {poll}\n\n\
             [stand_in]\nroot = \"{folder}\"\n{store}path = \"{folder}/bin\"\nsystem = \"{system}\"\n\
             nix_config = \"\"\"\n{config}\"\"\"\n",
            poll = plan.poll_seconds,
            system = plan.system,
            config = programs::nix_config(&settings),
        );
        Ok(fs::write(self.configuration(), text)?)
    }

    /// The agent's job, with the properties that packages give it and short pauses.
    fn write_agent_job(&self, plan: &Plan) -> Result<()> {
        let agent = plan.agent.display();
        let config = self.configuration();
        let config = config.display();
        let home = self.root.at("/root");
        let home = home.display();
        let log = &plan.log;
        let text = match plan.class {
            Class::Nixos => format!(
                "[Unit]\nDescription=Muster's agent\n\n[Service]\nExecStart={agent} --config {config} run\n\
                 Environment=HOME={home} XDG_CACHE_HOME={home}/.cache RUST_LOG={log} RUST_BACKTRACE=1\n\
                 Restart=always\nRestartSec=200ms\nTimeoutStopSec=5\n\
                 X-RestartIfChanged=false\nX-StopIfChanged=false\n\n\
                 [Install]\nWantedBy=multi-user.target\n"
            ),
            Class::Darwin => format!(
                r#"<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
	<key>Label</key>
	<string>{AGENT_LABEL}</string>
	<key>ProgramArguments</key>
	<array>
		<string>{agent}</string>
		<string>--config</string>
		<string>{config}</string>
		<string>run</string>
	</array>
	<key>EnvironmentVariables</key>
	<dict>
		<key>HOME</key>
		<string>{home}</string>
		<key>XDG_CACHE_HOME</key>
		<string>{home}/.cache</string>
		<key>RUST_LOG</key>
		<string>{log}</string>
		<key>RUST_BACKTRACE</key>
		<string>1</string>
	</dict>
	<key>RunAtLoad</key>
	<true/>
	<key>KeepAlive</key>
	<true/>
	<key>ThrottleInterval</key>
	<integer>1</integer>
	<key>ExitTimeOut</key>
	<integer>5</integer>
	<key>AbandonProcessGroup</key>
	<true/>
	<key>StandardOutPath</key>
	<string>/var/log/muster-agent.log</string>
	<key>StandardErrorPath</key>
	<string>/var/log/muster-agent.log</string>
</dict>
</plist>
"#
            ),
        };
        fs::write(self.agent_job(), text)?;
        fs::set_permissions(self.agent_job(), fs::Permissions::from_mode(0o644))?;
        Ok(())
    }

    /// Gives the machine its first system, as an installer does: copied from the store `from`, and set as the
    /// profile.
    pub fn install(&self, derivation: &StorePath, from: &str) -> Result<StorePath> {
        let folder = self.root.folder().display();
        let config = fs::read_to_string(self.configuration())?;
        let own_store = config.contains("\nstore = ");
        let settings = if own_store {
            let shell = programs::static_shell().context("there is no static busybox")?;
            format!(
                "sandbox-paths = /bin/sh={}\n\
                 extra-platforms = aarch64-darwin x86_64-darwin x86_64-linux aarch64-linux\n",
                shell.display()
            )
        } else {
            "sandbox = false\nextra-platforms = aarch64-darwin x86_64-darwin x86_64-linux aarch64-linux\n"
                .into()
        };
        let nix = |program: &str, remote: Option<&str>| {
            let mut command = Command::new(programs::of_the_host(program).unwrap_or_else(|| program.into()));
            command
                .env("NIX_CONFIG", programs::nix_config(&settings))
                .env("HOME", self.root.at("/root"))
                .env("XDG_CACHE_HOME", self.root.at("/root/.cache"))
                .env_remove("NIX_REMOTE");
            if let Some(remote) = remote {
                command.env("NIX_REMOTE", remote);
            }
            command
        };
        let own = format!("local?root={folder}");
        let remote = own_store.then_some(own.as_str());
        if own_store {
            finish(nix("nix", None).args(["copy", "--derivation", "--no-check-sigs"]).args([
                "--from",
                from,
                "--to",
                &own,
                derivation.as_str(),
            ]))?;
        } else {
            let copy = ["copy", "--derivation", "--no-check-sigs", "--from", from];
            finish(nix("nix", None).args(copy).arg(derivation.as_str()))?;
        }
        let gcroot = self.root.at("/nix/var/nix/gcroots/factory");
        finish(nix("nix-store", remote).args(["--realise", derivation.as_str(), "--add-root"]).arg(gcroot))?;
        let output = finish(nix("nix-store", remote).args(["--query", "--outputs", derivation.as_str()]))?;
        let output: StorePath = output.trim().parse()?;
        let profile = self.root.at("/nix/var/nix/profiles/system");
        finish(nix("nix-env", remote).arg("-p").arg(profile).args(["--set", output.as_str()]))?;
        if self.class() == Class::Nixos {
            fs::write(self.root.at("/boot/entry"), format!("default {output}\n"))?;
        }
        // An installer leaves the files of the first system in place, so that activation finds nothing
        // foreign.
        let files = self.physical(&output);
        let greeting = files.join("etc/greeting");
        match self.class() {
            Class::Darwin => {
                symlink(files.join("etc"), self.root.at("/etc/static"))?;
                symlink(self.root.at("/etc/static/greeting"), self.root.at("/etc/greeting"))?;
            }
            Class::Nixos => {
                fs::copy(greeting, self.root.at("/etc/greeting"))?;
            }
        }
        let (from, to) = match self.class() {
            Class::Darwin => ("Library/LaunchDaemons", self.root.at("/Library/LaunchDaemons")),
            Class::Nixos => ("etc/systemd/system", self.root.at("/etc/systemd/system")),
        };
        for job in fs::read_dir(files.join(from))?.flatten() {
            let copy = to.join(job.file_name());
            fs::copy(job.path(), &copy)?;
            fs::set_permissions(copy, fs::Permissions::from_mode(0o644))?;
        }
        Ok(output)
    }

    /// The folder of its Nix store.
    pub fn store_folder(&self) -> PathBuf {
        let config = fs::read_to_string(self.configuration()).unwrap_or_default();
        if config.contains("\nstore = ") { self.root.at("/nix/store") } else { PathBuf::from("/nix/store") }
    }

    /// Where the files of a store path are.
    pub fn physical(&self, path: &StorePath) -> PathBuf {
        let inside = self.root.at(path.as_str());
        if inside.exists() { inside } else { PathBuf::from(path.as_str()) }
    }

    /// The system that the machine runs, as observed.
    pub fn running(&self) -> Option<StorePath> {
        fs::read_link(self.root.at("/run/current-system")).ok()?.to_str()?.parse().ok()
    }

    /// What the system profile points to.
    pub fn profile(&self) -> Option<StorePath> {
        let mut place = self.root.at("/nix/var/nix/profiles/system");
        loop {
            let link = fs::read_link(&place).ok()?;
            if let Some(path) = link.to_str().and_then(|text| text.parse().ok()) {
                return Some(path);
            }
            place = place.parent()?.join(link);
        }
    }

    pub fn greeting(&self) -> Option<String> {
        let file = self.root.resolve(Path::new("/etc/greeting")).ok()?;
        Some(fs::read_to_string(file).ok()?.trim().to_owned())
    }

    pub fn is_on(&self) -> bool {
        ask(&self.root, &Request::List).is_ok()
    }

    /// Turns the machine on and waits until it is up.
    pub fn start(&self) -> Result<()> {
        ensure!(!self.is_on(), "the machine in {} is on already", self.root.folder().display());
        let log = fs::OpenOptions::new().create(true).append(true).open(self.root.at("/var/log/init.log"))?;
        let mut init = Command::new(self.root.at("/bin/own-session"))
            .arg(self.root.at("/bin/init"))
            .env_clear()
            .env("HOME", self.root.at("/root"))
            .current_dir("/")
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let clock = SystemClock::new();
        while !self.is_on() {
            if let Some(exit) = init.try_wait()? {
                let log = fs::read_to_string(self.root.at("/var/log/init.log")).unwrap_or_default();
                bail!("the machine did not come up ({exit}): {}", log.trim());
            }
            ensure!(clock.awake() < POWER, "the machine did not come up");
            std::thread::sleep(Duration::from_millis(5));
        }
        // A Mac runs the system that its boot has linked.
        while self.root.at(BOOT_JOB).exists() && self.running().is_none() {
            ensure!(clock.awake() < POWER, "the machine's boot linked no system");
            std::thread::sleep(Duration::from_millis(5));
        }
        // Reaped in the background: the process that created the machine may outlive it.
        std::thread::spawn(move || init.wait());
        Ok(())
    }

    /// Turns the machine off, in order or like a power failure, and waits until none of its processes is
    /// left.
    pub fn stop(&self, power_failure: bool) -> Result<()> {
        let pid = fs::read_to_string(self.root.at(PID)).ok().and_then(|text| text.trim().parse::<i32>().ok());
        let asked = ask(&self.root, &Request::Off { power_failure });
        let clock = SystemClock::new();
        if let (Ok(_), Some(pid)) = (&asked, pid) {
            while processes::is_alive(pid) && clock.awake() < POWER {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.sweep();
        Ok(())
    }

    /// Kills the processes that still run from this folder, each by its ID. Only possible on Linux.
    pub fn sweep(&self) {
        for signal in [rustix::process::Signal::TERM, rustix::process::Signal::KILL] {
            let clock = SystemClock::new();
            let left = processes::of_folder(self.root.folder());
            for pid in &left {
                processes::signal(*pid, signal);
            }
            while left.iter().any(|pid| processes::is_alive(*pid)) && clock.awake() < Duration::from_secs(2) {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

fn install_stand_ins(root: &Root) -> Result<()> {
    let own = match std::env::current_exe() {
        Ok(own) if own.file_name().is_some_and(|name| name == "muster-machine") => own,
        _ => programs::find("muster-machine")?,
    };
    for role in ROLES {
        let place = root.at("/bin").join(role);
        if fs::hard_link(&own, &place).is_err() {
            fs::copy(&own, &place)?;
        }
    }
    // launchd's path does not include Nix, whose place differs between NixOS and Macs.
    for name in ["nix", "nix-store", "nix-env", "nix-build", "nix-instantiate", "nix-daemon"] {
        if let Some(file) = programs::of_the_host(name).filter(|file| !file.starts_with("/usr/bin")) {
            symlink(file, root.at("/bin").join(name))?;
        }
    }
    Ok(())
}

/// Runs a command to its end; returns its output, or an error with what it printed.
pub fn finish(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("{command:?} cannot be run"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
