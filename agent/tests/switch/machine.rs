//! A machine in a folder.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use muster_agent::config::Config;
use muster_agent::core::records::{
    Activation, ActivationPhase, Confirmation, GivenVerdict, Old, Transaction,
};
use muster_agent::core::state::State;
use muster_agent::journal::Files;
use muster_agent::platform::Layout;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::machine::Class;
use muster_protocol::target::{Action, Target};

/// A Mac's derivations are built here too, by a Nix that is configured to be on one.
fn nix_config(system: &str) -> String {
    format!(
        "substituters =\nsandbox = false\nbuild-users-group =\nsystem = {system}\n\
         sandbox-paths = /bin/sh=/bin/busybox /bin/busybox=/bin/busybox\n"
    )
}
/// The longest that anything here may take.
const LIMIT: Duration = Duration::from_secs(60);

pub struct Machine {
    folder: tempfile::TempDir,
    pub class: Class,
    pub config: Config,
    pub layout: Layout,
    pub files: Files,
}

impl Drop for Machine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = std::fs::read_to_string(self.root().join("log")).unwrap_or_default();
            eprintln!("--- what the machine logged\n{log}");
        }
        // Whatever still runs from this folder is killed with it.
        for pid in self.processes() {
            end(pid);
        }
    }
}

impl Machine {
    pub fn new(class: Class) -> Self {
        Self::with(class, "")
    }

    /// A machine whose own file also contains this.
    pub fn with(class: Class, settings: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        let source = root.join("agent.toml");
        let system = match class {
            Class::Nixos => "x86_64-linux",
            Class::Darwin => "aarch64-darwin",
        };
        let text = format!(
            "state_dir = '{0}/state'\n{2}\n[stand_in]\nroot = '{0}'\nstore = 'local?root={0}'\n\
             path = '{0}/programs'\nsystem = '{system}'\nnix_config = '''\n{1}'''\n",
            root.display(),
            nix_config(system),
            settings.replace("ROOT", &root.display().to_string()),
        );
        std::fs::write(&source, text).unwrap();
        for name in ["state", "programs", "run", "Library/LaunchDaemons"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::write(root.join("proc-boot-id"), "boot-1").unwrap();
        let config = Config::load(Some(&source)).unwrap();
        let layout = Layout::new(&config, class);
        let files = Files::new(&config.state_dir);
        let machine = Self { class, config, layout, files, folder };
        machine.stand_ins();
        machine
    }

    pub fn root(&self) -> &Path {
        self.folder.path()
    }

    /// systemd-run and launchctl start their program in a session of its own, as the real ones do.
    fn stand_ins(&self) {
        let root = self.root().display();
        let program = |name: &str, text: String| self.script(&self.root().join("programs").join(name), &text);
        let detach = format!("setsid \"$@\" </dev/null >>{root}/log 2>&1 &");
        program(
            "systemd-run",
            format!("echo started >> {root}/starts\nwhile [ \"$1\" != -- ]; do shift; done\nshift\n{detach}"),
        );
        program(
            "systemctl",
            format!(
                "case $1 in list-units) cat {root}/failed-units 2>/dev/null; true;; \
                 reboot) echo reboot >> {root}/reboots;; *) true;; esac"
            ),
        );
        program("loginctl", format!("test $1 != list-sessions || cat {root}/sessions 2>/dev/null; true"));
        program("systemd-inhibit", format!("cat {root}/inhibitors 2>/dev/null; true"));
        program("caffeinate", format!("echo \"$@\" >> {root}/awake; exec sleep 1000"));
        program(
            "launchctl",
            format!(
                "case $1 in\nbootout) exit 3;;\nbootstrap)\n  echo started >> {root}/starts\n  \
                 set -- $(sed -n \
                 '/<key>ProgramArguments/,/<\\/array>/s/.*<string>\\(.*\\)<\\/string>.*/\\1/p' \"$3\")\n  \
                 {detach}\n  ;;\nesac"
            ),
        );
    }

    /// Written by a child: a file that is open for writing here may be inherited by another test's program,
    /// and cannot be run until that one closes it (ETXTBSY, execve(2)).
    fn script(&self, path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let status = Command::new("/bin/sh").arg("-c").arg(write).arg(path).arg(text).status();
        assert!(status.unwrap().success());
    }

    /// What every NixOS system here checks first, with $A the action and $S the system.
    pub fn checks(&self, text: &str) {
        std::fs::write(self.root().join("check"), text).unwrap();
    }

    /// A system in this machine's store. `body` runs in its activation, with $R the machine's root and $A the
    /// action.
    pub fn system(&self, name: &str, body: &str) -> StorePath {
        let build = self.root().join("build").join(name);
        self.activation_script(&build, body);
        let added = self.nix("nix-store", &["--add", build.to_str().unwrap()]);
        added.parse().unwrap()
    }

    pub fn activation_script(&self, folder: &Path, body: &str) {
        let link = "ln -sfn \"$S\" \"$R/run/current-system.new\"; mv -T \"$R/run/current-system.new\" \
            \"$R/run/current-system\"";
        let begin = "R=${0%%/nix/store/*}; S=${0#$R}";
        match self.class {
            // The link comes before the units.
            Class::Nixos => self.script(
                &folder.join("bin/switch-to-configuration"),
                &format!(
                    "{begin}; S=${{S%/bin/*}}; A=$1\n\
                     [ \"$NIXOS_NO_CHECK\" = 1 ] || [ ! -e $R/check ] || . $R/check\n\
                     [ $A = check ] && exit 0\necho \"$A $S\" >> $R/runs\n\
                     case $A in switch|test) {link};; esac\n{body}"
                ),
            ),
            // The link comes last, under set -e.
            Class::Darwin => self.script(
                &folder.join("activate"),
                &format!(
                    "set -e\n{begin}; S=${{S%/activate}}; A=switch\n[ \"$checkActivation\" = 1 ] && exit 0\n\
                     echo \"$A $S\" >> $R/runs\n{body}\n{link}"
                ),
            ),
        }
    }

    /// Runs a Nix program on this machine's store.
    pub fn nix(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = Command::new(program);
        command.args(arguments).env("NIX_REMOTE", format!("local?root={}", self.root().display()));
        let nix_config = &self.config.stand_in.as_ref().unwrap().nix_config;
        command.env("NIX_CONFIG", nix_config).env("HOME", self.root());
        let output = command.output().expect("these tests need Nix: apt-get install nix-bin busybox-static");
        assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// A stand-in for sops in this machine's store; returns its store path.
    pub fn decrypts_with(&self, build: &Path, text: &str) -> String {
        self.script(build, text);
        self.nix("nix-store", &["--add", build.to_str().unwrap()])
    }

    /// A Mac's programs for disks in memory; unused on Linux.
    pub fn ram_disks(&self) {
        for (name, says) in [("hdiutil", "echo /dev/disk9"), ("newfs_hfs", "true"), ("mount", "true")] {
            self.script(&self.root().join("programs").join(name), says);
        }
    }

    /// Removes a file from a system, as a failed garbage collection would.
    pub fn forget(&self, system: &StorePath, file: &str) {
        let path = self.layout.physical(system).join(file);
        for folder in path.ancestors().skip(1).take(3) {
            std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
        }
        std::fs::remove_file(&path).unwrap();
        std::fs::create_dir(&path).unwrap();
    }

    /// What an enrolment leaves.
    pub fn enrolled(&self) {
        let state = &self.config.state_dir;
        let _ = std::fs::remove_file(state.join("age.txt"));
        muster_agent::identity::Keys::load_or_make(state).unwrap();
        let enrolment = muster_agent::identity::Enrolment {
            version: 1,
            machine: "m".parse().unwrap(),
            class: self.class,
            system: self.config.stand_in.as_ref().unwrap().system.clone(),
            fleet: muster_protocol::ids::Sha256::of(b"fleet"),
            url: "http://127.0.0.1:1".into(),
            lowest_generation: Generation::FIRST,
            tls_ca: None,
            enrolled_at: 1,
        };
        muster_agent::identity::Identity::save(state, &enrolment).unwrap();
    }

    /// Brings the machine to `system`, like a manual installation.
    pub fn install(&self, system: &StorePath) {
        std::fs::create_dir_all(self.layout.profile().parent().unwrap()).unwrap();
        let profile = self.layout.profile();
        self.nix("nix-env", &["-p", profile.to_str().unwrap(), "--set", system.as_str()]);
        let _ = std::fs::remove_file(self.layout.current_system());
        std::os::unix::fs::symlink(system.as_str(), self.layout.current_system()).unwrap();
    }

    /// The transaction that the agent would have written, just before it starts the activator.
    pub fn transaction(&self, new: &StorePath, action: Action, deadline_seconds: u32) -> Transaction {
        let target = Target {
            rollout: None,
            machine: "m".parse().unwrap(),
            class: self.class,
            generation: Generation::new(2).unwrap(),
            system: self.config.stand_in.as_ref().unwrap().system.clone(),
            derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().unwrap(),
            output: new.clone(),
            action,
            deadline_seconds,
            checks: vec![],
            trusted_nix_keys: vec![],
            policy: muster_protocol::policy::Policy::default(),
            requires: vec![],
            message: None,
            evaluation: Default::default(),
        };
        let mut transaction = Transaction::signed("t".into(), target, 1);
        transaction.state = State::Activating;
        transaction.old = Some(Old { running: self.layout.running(), profile: self.layout.profile_target() });
        self.files.write_transaction(&transaction).unwrap();
        transaction
    }

    /// Starts the activator as its supervisor would.
    pub fn activate(&self) -> Child {
        self.spawn(&["activate"])
    }

    pub fn spawn(&self, arguments: &[&str]) -> Child {
        self.spawn_with(arguments, &[])
    }

    /// The same, with a supervisor's variables.
    pub fn spawn_with(&self, arguments: &[&str], variables: &[(&str, &Path)]) -> Child {
        let log = std::fs::File::options().create(true).append(true).open(self.root().join("log")).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
        command.arg("--config").arg(&self.config.source).args(arguments);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        command.env("MUSTER_LOG", "debug").env_remove("JOURNAL_STREAM").env("TZ", "UTC");
        command.envs(variables.iter().copied());
        command.spawn().unwrap()
    }

    /// Runs a verb of the agent, and returns its exit code and output.
    pub fn ask(&self, arguments: &[&str]) -> (i32, String) {
        let mut command = Command::new(env!("CARGO_BIN_EXE_muster-agent"));
        command.arg("--config").arg(&self.config.source).args(arguments).env("TZ", "UTC");
        let output = command.stdin(Stdio::null()).output().unwrap();
        let words =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code().unwrap_or(-1), words)
    }

    /// More lines for the Nix configuration of the next agent.
    pub fn add_to_nix_config(&self, lines: &str) {
        let file = &self.config.source;
        let text = std::fs::read_to_string(file).unwrap();
        let (before, behind) = text.rsplit_once("'''").unwrap();
        std::fs::write(file, format!("{before}{lines}'''{behind}")).unwrap();
    }

    pub fn verdict(&self, verdict: GivenVerdict) {
        self.files.write_confirmation(&Confirmation { transaction: "t".into(), verdict }).unwrap();
    }

    pub fn record(&self) -> Option<Activation> {
        self.files.activation().unwrap().whole()
    }

    pub fn phase(&self) -> Option<ActivationPhase> {
        self.record().map(|record| record.phase)
    }

    pub fn until_phase(&self, phase: ActivationPhase) -> Activation {
        self.until(&format!("{phase:?}"), || self.record().filter(|record| record.phase == phase))
    }

    /// Waits for a condition.
    pub fn until<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let clock = SystemClock::new();
        loop {
            if let Some(found) = condition() {
                return found;
            }
            assert!(clock.awake() < LIMIT, "it never came to: {what}; it is {:?}", self.phase());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// I3: the profile and what runs agree.
    pub fn assert_on(&self, system: &StorePath) {
        assert_eq!(self.layout.running().as_ref(), Some(system), "what runs");
        assert_eq!(self.layout.profile_target().as_ref(), Some(system), "the profile");
    }

    /// `ACTION PATH` of each activation that started.
    pub fn runs(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.root().join("runs")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.root().join(name)
    }

    /// A file whose removal an activation's body waits for: `while test -e $R/hold; do sleep 0.01; done`.
    pub fn hold(&self) {
        std::fs::write(self.file("hold"), "").unwrap();
    }
    pub fn let_go(&self) {
        let _ = std::fs::remove_file(self.file("hold"));
    }

    pub fn reboot(&self) {
        std::fs::write(self.file("proc-boot-id"), "boot-2").unwrap();
    }

    /// Logs this user in at the Mac's screen, or nobody.
    pub fn log_in(&self, user: Option<u32>) {
        let console = self.file("dev/console");
        std::fs::create_dir_all(console.parent().unwrap()).unwrap();
        std::fs::write(&console, "").unwrap();
        std::os::unix::fs::chown(&console, Some(user.unwrap_or(0)), None).unwrap();
    }

    /// Every process with this machine's folder in its arguments.
    pub fn processes(&self) -> Vec<u32> {
        let root = self.root().to_string_lossy().into_owned();
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
            let words = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            if pid != std::process::id() && String::from_utf8_lossy(&words).contains(&root) {
                found.push(pid);
            }
        }
        found
    }
}

/// Blocks an activation until the test releases it.
pub const HOLD: &str = "while test -e $R/hold; do sleep 0.01; done";

/// Kills a process, if it still exists.
pub fn end(pid: u32) {
    let mut kill = Command::new("kill");
    let _ = kill.args(["-9", &pid.to_string()]).stderr(Stdio::null()).status();
}
