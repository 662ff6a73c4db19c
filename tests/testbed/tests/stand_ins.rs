//! The example systems on the stand-ins, without Muster: they must behave like the real ones before anything
//! that runs on them proves anything.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use muster_testbed::fixture::{Fixture, Listed, attribute};
use muster_testbed::machine::{AGENT_LABEL, AGENT_UNIT, Machine, Plan, finish};
use muster_testbed::programs;

/// A machine with its first system, whose agent is a script that sleeps, and its flake.
struct Bench {
    machine: Machine,
    listed: Listed,
    fixture: Fixture,
    _folder: tempfile::TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.machine.stop(true);
    }
}

impl Bench {
    fn new(class: Class) -> Self {
        let folder = tempfile::Builder::new().prefix("muster-stand-ins.").tempdir().unwrap();
        let system = match class {
            Class::Nixos => programs::host_system().replace("darwin", "linux"),
            Class::Darwin => "aarch64-darwin".to_owned(),
        };
        let place = folder.path().join("machine");
        let mut listed = Listed::new("tester", &system).unwrap();
        let plan = Plan::new(class, listed.system.clone(), sleeper(folder.path()));
        if !plan.own_store {
            fs::create_dir_all(&place).unwrap();
            listed.root = Some(fs::canonicalize(&place).unwrap());
        }
        let fixture = Fixture::make(&folder.path().join("flake"), std::slice::from_ref(&listed)).unwrap();
        let machine = Machine::make(&place, &plan).unwrap();
        machine.install(&fixture.factory("tester").unwrap(), &fixture.store()).unwrap();
        machine.start().unwrap();
        let bench = Self { machine, listed, fixture, _folder: folder };
        bench.await_boot(class);
        bench
    }

    /// A Mac's boot sets up /etc in a job of its own, which may still be running when the machine is up.
    fn await_boot(&self, class: Class) {
        if class == Class::Darwin {
            eventually("the end of the boot's own job", || {
                let printed = self.tool("launchctl", &["print", "system/org.nixos.activate-system"]);
                let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
                printed.contains("state = not running") && !printed.contains("never exited")
            });
        }
    }

    /// Builds the current state of the flake, on the machine.
    fn build(&self) -> StorePath {
        let derivation = self.fixture.derivation(&attribute(&self.listed)).unwrap();
        let own = self.machine.store_folder() != Path::new("/nix/store");
        let sandbox = match programs::static_shell() {
            Some(shell) if own => format!("sandbox-paths = /bin/sh={}", shell.display()),
            _ => "sandbox = false".into(),
        };
        let config = format!("{sandbox}\nextra-platforms = {}\n", self.listed.system);
        let nix = |program: &str| {
            let mut command = self.fixture.nix(program);
            command.env("NIX_CONFIG", programs::nix_config(&config)).env_remove("NIX_REMOTE");
            if own {
                command.env("NIX_REMOTE", format!("local?root={}", self.machine.root.folder().display()));
            }
            command
        };
        finish(
            nix("nix")
                .args(["copy", "--derivation", "--no-check-sigs", "--from"])
                .args([&self.fixture.store(), derivation.as_str()]),
        )
        .unwrap();
        let built = finish(nix("nix-store").args(["--realise", derivation.as_str()])).unwrap();
        built.trim().parse().unwrap()
    }

    fn command(&self, system: &StorePath, script: &str) -> Command {
        let mut command = Command::new(self.machine.physical(system).join(script));
        command.env("PATH", format!("{}:/usr/bin:/bin", self.machine.root.at("/bin").display()));
        command
    }

    fn switch(&self, system: &StorePath, action: &str) -> Output {
        self.command(system, "bin/switch-to-configuration").arg(action).output().unwrap()
    }

    /// As darwin-rebuild does it: the profile first.
    fn activate(&self, system: &StorePath) -> Output {
        self.set_profile(system);
        self.command(system, "activate").output().unwrap()
    }

    fn set_profile(&self, system: &StorePath) {
        let profile = self.machine.root.at("/nix/var/nix/profiles/system");
        fs::remove_file(&profile).unwrap();
        std::os::unix::fs::symlink(system.as_str(), profile).unwrap();
    }

    fn tool(&self, name: &str, arguments: &[&str]) -> Output {
        Command::new(self.machine.root.at("/bin").join(name)).args(arguments).output().unwrap()
    }

    fn healthy(&self) -> bool {
        let check = self.tool("in-machine", &["/run/current-system/sw/bin/greeter-health"]);
        check.status.success()
    }

    fn agent_pid(&self) -> Option<i32> {
        let (tool, arguments, key) = match self.machine.class() {
            Class::Nixos => ("systemctl", vec!["show", AGENT_UNIT], "MainPID="),
            Class::Darwin => ("launchctl", vec!["print", "system/org.muster.agent"], "pid = "),
        };
        let text = String::from_utf8(self.tool(tool, &arguments).stdout).unwrap();
        let pid = text.lines().find_map(|line| line.trim().strip_prefix(key)?.parse().ok());
        pid.filter(|pid| *pid != 0)
    }
}

/// Written by a child, for the reason given at `script` in agent/src/platform.rs (ETXTBSY).
fn sleeper(folder: &Path) -> PathBuf {
    let file = folder.join("agent");
    let write = "printf '#!/bin/sh\\nwhile :; do sleep 1000; done\\n' > \"$0\" && chmod 755 \"$0\"";
    assert!(Command::new("/bin/sh").arg("-c").arg(write).arg(&file).status().unwrap().success());
    file
}

#[track_caller]
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let clock = SystemClock::new();
    while !condition() {
        assert!(clock.awake() < Duration::from_secs(20), "{what} did not come about");
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn all(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

fn said(output: &Output) -> String {
    format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr))
}

#[test]
fn a_nixos_switch_changes_boot_loader_system_and_units() {
    let bench = Bench::new(Class::Nixos);
    eventually("the first system's service", || bench.healthy());
    let agent = bench.agent_pid();
    assert!(agent.is_some());

    bench.fixture.say("greeting", "it's the second").unwrap();
    let second = bench.build();
    let dry = bench.switch(&second, "dry-activate");
    assert!(dry.status.success(), "{}", said(&dry));
    assert!(said(&dry).contains("would start the following units: greeter.service"));
    assert_ne!(bench.machine.running().unwrap(), second);

    let switch = bench.switch(&second, "switch");
    assert!(switch.status.success(), "{}", said(&switch));
    assert_eq!(bench.machine.running().unwrap(), second);
    assert_eq!(bench.machine.greeting().unwrap(), "it's the second");
    let entry = fs::read_to_string(bench.machine.root.at("/boot/entry")).unwrap();
    assert_eq!(entry, format!("default {second}\n"));
    eventually("the second system's service", || bench.healthy());
    assert_eq!(bench.agent_pid(), agent, "a switch leaves the agent alone");
}

#[test]
fn a_nixos_switch_tells_its_failures_apart_by_exit_code() {
    let bench = Bench::new(Class::Nixos);
    let factory = bench.machine.running().unwrap();
    for (step, exit, flips) in
        [("pre-switch-check", 1, false), ("bootloader", 1, false), ("units", 4, true), ("activate", 2, true)]
    {
        bench.fixture.say("fail-at", step).unwrap();
        let system = bench.build();
        let before = bench.machine.running();
        let switch = bench.switch(&system, "switch");
        assert_eq!(switch.status.code(), Some(exit), "{step}: {}", said(&switch));
        assert_eq!(bench.machine.running() == Some(system), flips, "{step}");
        assert!(flips || bench.machine.running() == before);
    }
    let lock = fs::File::options()
        .create(true)
        .append(true)
        .open(bench.machine.root.at("/run/nixos/switch-to-configuration.lock"))
        .unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    for action in ["switch", "check", "dry-activate"] {
        let locked = bench.switch(&factory, action);
        assert_eq!(locked.status.code(), Some(11), "{action}");
        assert!(said(&locked).contains("Could not acquire lock"));
    }
    // Closing is not enough: a child of another test has the file open until it executes its program.
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::Unlock).unwrap();
    let undone = bench.switch(&factory, "switch");
    assert!(undone.status.success(), "{}", said(&undone));
    assert_eq!(bench.machine.running().unwrap(), factory);

    bench.fixture.unsay("fail-at").unwrap();
    bench.fixture.say("init", "systemd 3").unwrap();
    assert_eq!(bench.switch(&bench.build(), "switch").status.code(), Some(100));
    assert_eq!(bench.machine.running().unwrap(), factory);
}

#[test]
fn a_switch_lets_go_of_its_lock_though_its_services_live_on() {
    let bench = Bench::new(Class::Nixos);
    bench.fixture.say("greeting", "second").unwrap();
    let second = bench.build();
    assert!(bench.switch(&second, "switch").status.success());
    assert!(bench.switch(&second, "switch").status.success());
}

#[test]
fn a_mac_flips_its_current_system_last() {
    let bench = Bench::new(Class::Darwin);
    eventually("the first system's service", || bench.healthy());
    let factory = bench.machine.running().unwrap();
    bench.fixture.say("greeting", "second").unwrap();
    bench.fixture.say("fail-at", "homebrew").unwrap();
    bench.fixture.say("fail-exit", "7").unwrap();
    let failing = bench.build();
    let failed = bench.command(&failing, "activate").output().unwrap();
    assert_eq!(failed.status.code(), Some(7), "{}", said(&failed));
    // Judging by its output, the boot's job changed too: it was reloaded, and sets up /etc for the profile
    // that it finds when it runs.
    let words = all(&failed);
    let (etc, homebrew) = (words.find("setting up /etc"), words.find("homebrew"));
    assert!(etc.is_some() && homebrew.is_some() && etc < homebrew, "etc is done before homebrew: {words}");
    assert_eq!(bench.machine.running().unwrap(), factory, "and /run/current-system was not");
    // With the profile set, the boot's job, which changed too, has moved it halfway.
    let failed = bench.activate(&failing);
    assert_eq!(failed.status.code(), Some(7), "{}", said(&failed));
    bench.machine.stop(true).unwrap();
    bench.machine.start().unwrap();
    assert_eq!(bench.machine.running().unwrap(), failing, "and the next boot does so in any case");

    bench.fixture.unsay("fail-at").unwrap();
    let second = bench.build();
    let done = bench.activate(&second);
    assert!(done.status.success(), "{}", said(&done));
    assert_eq!(bench.machine.running().unwrap(), second);
    eventually("the second system's service", || bench.healthy());
}

#[test]
fn a_macs_activation_forgets_its_environment_before_the_first_line() {
    let bench = Bench::new(Class::Darwin);
    bench.fixture.say("greeting", "second").unwrap();
    let second = bench.build();
    // `darwin-rebuild check` really activates, for that reason.
    bench.set_profile(&second);
    let checked = bench.command(&second, "activate").env("checkActivation", "1").output().unwrap();
    assert!(checked.status.success(), "{}", said(&checked));
    assert_eq!(bench.machine.running().unwrap(), second);

    bench.fixture.say("greeting", "third").unwrap();
    let third = bench.build();
    let script = bench.machine.physical(&third).join("activate");
    let checked = Command::new("/bin/sh").arg(script).env("checkActivation", "1").output().unwrap();
    assert!(checked.status.success() && said(&checked).contains("ok"), "{}", said(&checked));
    assert_eq!(
        bench.machine.running().unwrap(),
        second,
        "the interpreter, run by hand, keeps the environment"
    );
}

#[test]
fn a_mac_refuses_foreign_files_in_etc() {
    let bench = Bench::new(Class::Darwin);
    let factory = bench.machine.running().unwrap();
    let file = bench.machine.root.at("/etc/minerals");
    fs::write(&file, "mine").unwrap();
    let refused = bench.activate(&bench.build());
    assert_eq!(refused.status.code(), Some(2));
    assert!(said(&refused).contains("/etc/minerals"));
    assert_eq!(bench.machine.running().unwrap(), factory);
    assert_eq!(fs::read_to_string(file).unwrap(), "mine");
}

#[test]
fn a_changed_agent_plist_really_reloads_the_agent() {
    let bench = Bench::new(Class::Darwin);
    let agent = bench.agent_pid().unwrap();
    let plist = fs::read_to_string(bench.machine.agent_job()).unwrap();
    bench.fixture.say("agent-job", plist.trim_end()).unwrap();
    assert!(bench.activate(&bench.build()).status.success());
    assert_eq!(bench.agent_pid(), Some(agent), "an unchanged plist reloads nothing");

    let changed =
        plist.replace("<key>RUST_LOG", "<key>CONFIG</key>\n\t\t<string>hash</string>\n\t\t<key>RUST_LOG");
    assert_ne!(plist, changed);
    bench.fixture.say("agent-job", changed.trim_end()).unwrap();
    let done = bench.activate(&bench.build());
    assert!(said(&done).contains(&format!("reloading service {AGENT_LABEL}")), "{}", said(&done));
    eventually("a new agent", || bench.agent_pid().is_some_and(|pid| pid != agent));

    bench.fixture.unsay("agent-job").unwrap();
    let done = bench.activate(&bench.build());
    assert!(said(&done).contains(&format!("removing service {AGENT_LABEL}")), "{}", said(&done));
    assert_eq!(bench.agent_pid(), None);
}

#[test]
fn launchd_ends_a_jobs_process_group_and_not_what_has_its_own() {
    let bench = Bench::new(Class::Darwin);
    let file = bench.machine.root.at("/tmp/job.plist");
    let marks = bench.machine.root.at("/tmp");
    let script = format!(
        "sleep 1000 & echo $! > {0}/child; {1}/bin/own-session sh -c 'echo $$ > {0}/grandchild; \
         exec sleep 1000' & wait",
        marks.display(),
        bench.machine.root.folder().display()
    );
    let mut job = plist::Dictionary::new();
    job.insert("Label".into(), "org.example.job".into());
    job.insert(
        "ProgramArguments".into(),
        plist::Value::Array(vec!["/bin/sh".into(), "-c".into(), script.into()]),
    );
    job.insert("RunAtLoad".into(), true.into());
    job.insert("ExitTimeOut".into(), 2.into());
    plist::Value::Dictionary(job).to_file_xml(&file).unwrap();
    let path = file.to_str().unwrap();
    assert!(bench.tool("launchctl", &["bootstrap", "system", path]).status.success());
    assert_eq!(bench.tool("launchctl", &["bootstrap", "system", path]).status.code(), Some(5));
    let pid = |name: &str| {
        fs::read_to_string(marks.join(name)).ok().and_then(|text| text.trim().parse::<i32>().ok())
    };
    eventually("both children", || pid("child").is_some() && pid("grandchild").is_some());
    assert!(bench.tool("launchctl", &["bootout", "system/org.example.job"]).status.success());
    let alive = |name: &str| muster_testbed::stand_in::processes::is_alive(pid(name).unwrap());
    eventually("the end of the child", || !alive("child"));
    assert!(alive("grandchild"), "a session of its own survives");
    assert_eq!(bench.tool("launchctl", &["bootout", "system/org.example.job"]).status.code(), Some(3));
    assert_eq!(bench.tool("launchctl", &["print", "system/org.example.job"]).status.code(), Some(113));
}

#[test]
fn a_transient_unit_outlives_who_asked_and_its_name_is_taken_meanwhile() {
    let bench = Bench::new(Class::Nixos);
    let run = |arguments: &[&str]| bench.tool("systemd-run", arguments);
    let options = ["--unit=once", "--collect", "--no-ask-password", "--service-type=exec", "-E", "WORD=x"];
    let place = bench.machine.root.at("/tmp/word");
    let script = format!("echo \"$WORD $HOME $INVOCATION_ID\" > {}; exec sleep 1000", place.display());
    let command = ["/bin/sh", "-c", &script];
    let first = run(&[&options[..], &command[..]].concat());
    assert!(first.status.success(), "{}", said(&first));
    eventually("the unit's word", || fs::read_to_string(&place).is_ok_and(|text| text.ends_with('\n')));
    let word = fs::read_to_string(&place).unwrap();
    let (start, invocation) = word.trim().rsplit_once(' ').unwrap();
    assert_eq!((start, invocation.len()), ("x ", 32), "it has the variables it was given and no others");
    let second = run(&[&options[..], &command[..]].concat());
    assert_eq!(second.status.code(), Some(1));
    assert!(said(&second).contains("already loaded"));
    assert!(bench.tool("systemctl", &["stop", "once"]).status.success());
    assert!(run(&[&options[..], &["/bin/true"]].concat()).status.success());
    eventually("the unit is collected", || {
        !bench.tool("systemctl", &["is-active", "--quiet", "once"]).status.success()
    });
}

#[test]
fn a_stopped_service_takes_everything_that_it_started_with_it() {
    let bench = Bench::new(Class::Nixos);
    let place = bench.machine.root.at("/tmp/far");
    let script = format!(
        "{}/bin/own-session sh -c 'echo $$ > {}; exec sleep 1000' & wait",
        bench.machine.root.folder().display(),
        place.display()
    );
    let unit = bench.tool("systemd-run", &["--unit=deep", "/bin/sh", "-c", &script]);
    assert!(unit.status.success());
    let far = || fs::read_to_string(&place).ok().and_then(|text| text.trim().parse::<i32>().ok());
    eventually("the far child", || far().is_some());
    assert!(bench.tool("systemctl", &["stop", "deep"]).status.success());
    assert!(!muster_testbed::stand_in::processes::is_alive(far().unwrap()));
}

#[test]
fn failed_units_are_listed_and_a_test_may_add_its_own() {
    let bench = Bench::new(Class::Nixos);
    assert!(bench.tool("systemd-run", &["--unit=bad", "/bin/false"]).status.success());
    let list = || {
        let output =
            bench.tool("systemctl", &["list-units", "--state=failed", "--plain", "--no-legend", "--full"]);
        String::from_utf8(output.stdout).unwrap()
    };
    eventually("the failed unit", || list().contains("bad.service loaded failed failed"));
    fs::write(bench.machine.root.at("/run/stand-in-failed"), "backup.service\n").unwrap();
    assert!(list().contains("backup.service loaded failed failed"));
    assert!(!list().contains("greeter"));
}

#[test]
fn a_service_that_waits_for_its_next_start_is_activating_and_runs_once_it_was_started() {
    let bench = Bench::new(Class::Nixos);
    let text = "[Service]\nExecStart=/bin/sleep 1000\nRestart=always\nRestartSec=1000\n";
    fs::write(bench.machine.root.at("/etc/systemd/system/steady.service"), text).unwrap();
    let said = |arguments: &[&str]| all(&bench.tool("systemctl", arguments));
    let pid = || {
        let shown = said(&["show", "steady"]);
        shown.lines().find_map(|line| line.strip_prefix("MainPID=")?.parse::<i32>().ok()).unwrap()
    };
    assert!(bench.tool("systemctl", &["start", "steady"]).status.success());
    muster_testbed::stand_in::processes::signal(pid(), rustix::process::Signal::KILL);
    let restarting = || said(&["list-units", "--state=auto-restart", "--plain", "--no-legend"]);
    eventually("the wait", || restarting().contains("steady.service loaded activating auto-restart"));
    assert!(!said(&["list-units", "--failed"]).contains("steady"), "it has not failed for good");
    assert_eq!(said(&["is-failed", "steady"]).trim(), "activating");
    assert!(bench.tool("systemctl", &["start", "steady"]).status.success());
    assert!(pid() != 0 && !restarting().contains("steady"), "it does not wait any longer");
}

#[test]
fn a_killed_agent_is_started_again_and_a_reboot_changes_the_boot_id() {
    for class in [Class::Nixos, Class::Darwin] {
        let bench = Bench::new(class);
        let boot_id = || fs::read_to_string(bench.machine.root.at("/proc-boot-id")).unwrap();
        let (first, agent) = (boot_id(), bench.agent_pid().unwrap());
        muster_testbed::stand_in::processes::signal(agent, rustix::process::Signal::KILL);
        eventually("a new agent", || bench.agent_pid().is_some_and(|pid| pid != agent));
        let running = bench.machine.running();
        bench.machine.stop(true).unwrap();
        assert!(!bench.machine.is_on());
        assert!(muster_testbed::stand_in::processes::of_folder(bench.machine.root.folder()).is_empty());
        bench.machine.start().unwrap();
        assert_ne!(boot_id(), first);
        assert_eq!(bench.machine.running(), running);
        eventually("the agent", || bench.agent_pid().is_some());
    }
}

#[test]
fn an_example_system_refuses_to_touch_a_real_machine() {
    let bench = Bench::new(Class::Nixos);
    let system = bench.machine.running().unwrap();
    fs::remove_file(bench.machine.root.at("/stand-in-machine")).unwrap();
    let switch = bench.switch(&system, "switch");
    assert_eq!(switch.status.code(), Some(1));
    assert!(said(&switch).contains("example system"), "{}", said(&switch));
    fs::write(bench.machine.root.at("/stand-in-machine"), "").unwrap();
}

#[test]
fn a_nixos_switch_is_inhibited_by_what_both_systems_name_and_boot_and_an_undo_are_not() {
    let bench = Bench::new(Class::Nixos);
    let factory = bench.machine.running().unwrap();
    bench.fixture.say("dbus", "broker").unwrap();
    let broker = bench.build();
    for action in ["check", "switch", "test"] {
        let refused = bench.switch(&broker, action);
        assert_eq!(refused.status.code(), Some(1), "{action}");
        let words = all(&refused);
        for expected in [
            "Checking switch inhibitors...",
            "There are changes to critical components of the system:",
            "dbus-implementation : dbus -> broker",
            "Pre-switch check 'switchInhibitors' failed",
            "Pre-switch checks failed",
        ] {
            assert!(words.contains(expected), "{action}: {words}");
        }
    }
    assert_eq!(bench.machine.running().unwrap(), factory);
    assert!(bench.switch(&broker, "dry-activate").status.success());
    assert!(bench.switch(&broker, "boot").status.success());
    let mut unchecked = bench.command(&broker, "bin/switch-to-configuration");
    assert!(unchecked.arg("switch").env("NIXOS_NO_CHECK", "1").status().unwrap().success());
    assert_eq!(bench.machine.running().unwrap(), broker);
}

#[test]
fn a_nixos_switch_says_four_for_units_though_its_script_failed_and_ends_with_anything_behind_the_link() {
    let bench = Bench::new(Class::Nixos);
    bench.fixture.say("fail-at", "activate units").unwrap();
    let both = bench.build();
    let switch = bench.switch(&both, "switch");
    assert_eq!(switch.status.code(), Some(4));
    assert!(said(&switch).contains("Failed to run activate script"), "{}", said(&switch));
    assert!(all(&switch).lines().any(|line| line == "Checking switch inhibitors... done"));
    for exit in ["11", "1"] {
        bench.fixture.say("fail-at", "logind").unwrap();
        bench.fixture.say("fail-exit", exit).unwrap();
        let system = bench.build();
        let switch = bench.switch(&system, "switch");
        assert_eq!(switch.status.code(), exit.parse().ok(), "{}", said(&switch));
        assert_eq!(bench.machine.running().unwrap(), system, "it broke off behind the link");
    }
    bench.fixture.unsay("fail-at").unwrap();
    bench.fixture.say("loops", "yes").unwrap();
    let loops = bench.switch(&bench.build(), "switch");
    assert_eq!(loops.status.code(), Some(4));
    assert!(said(&loops).contains("warning: the following units failed: looper.service"), "{}", said(&loops));
}

#[test]
fn a_nixos_switch_starts_what_the_target_wants_where_its_conditions_hold_and_needs_a_running_system() {
    let bench = Bench::new(Class::Nixos);
    let control = bench.machine.root.at("/etc/systemd/system.control");
    fs::create_dir_all(&control).unwrap();
    for (name, condition) in [("wanted", "/etc"), ("unmet", "!/etc")] {
        let text = format!(
            "[Unit]\nConditionPathExists={condition}\n[Service]\nExecStart=/bin/sleep 1000\n\
             [Install]\nWantedBy=multi-user.target\n"
        );
        fs::write(control.join(format!("{name}.service")), text).unwrap();
    }
    let factory = bench.machine.running().unwrap();
    let switch = bench.switch(&factory, "switch");
    assert!(switch.status.success(), "{}", said(&switch));
    let state = |name: &str| all(&bench.tool("systemctl", &["is-active", name])).trim().to_owned();
    assert_eq!((state("wanted").as_str(), state("unmet").as_str()), ("active", "inactive"));
    fs::remove_file(bench.machine.root.at("/run/current-system")).unwrap();
    assert_eq!(bench.switch(&factory, "switch").status.code(), Some(100));
}

#[test]
fn a_transient_unit_has_its_runtime_directory_as_long_as_it_runs() {
    let bench = Bench::new(Class::Nixos);
    let folder = bench.machine.root.at("/run/started");
    let options = ["--unit=once", "--property=RuntimeDirectory=started", "/bin/sleep", "1000"];
    assert!(bench.tool("systemd-run", &options).status.success());
    eventually("its folder", || folder.exists());
    assert!(bench.tool("systemctl", &["stop", "once"]).status.success());
    assert!(!folder.exists());
}
