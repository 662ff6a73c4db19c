//! The cells of one row under one fault: both machines of a fleet go through the same update at the same
//! time.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use rustix::process::Signal;

use super::check::{LOOK_AGAIN, check, comes_again, document, has_no_pending_reports, is_over};
use super::steps::{DurableStep, Fault, Way};
use crate::fleet::{Fleet, Wishes, both};
use crate::machine::finish;
use crate::stand_in::processes;

/// The longest wait; with deadlines of ten seconds, an update of three tries takes a minute.
const LIMIT: Duration = Duration::from_secs(180);
/// The size of a state folder that can be filled.
const STATE_SIZE: &str = "size=4m,mode=0700";

/// A fleet of two whose state folders are small disks of their own.
pub struct Bench {
    pub fleet: Fleet,
    round: u32,
    /// Why no disk can be filled here.
    pub no_disks: Option<String>,
    mounted: Vec<PathBuf>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        for machine in self.fleet.machines.values() {
            let _ = machine.stop(true);
        }
        for folder in &self.mounted {
            let _ = Command::new("umount").arg(folder).status();
        }
    }
}

/// A machine in one round.
struct Patient {
    name: &'static str,
    old: StorePath,
    generation: u64,
    /// How many lines the agent's log had before the fault.
    lines: usize,
}

impl Bench {
    pub fn new() -> Result<Self> {
        let machines = both();
        let fleet = Fleet::prepare(&machines, &Wishes::default())?;
        let mut bench = Self { fleet, round: 0, no_disks: None, mounted: Vec::new() };
        for (name, _) in &machines {
            let folder = bench.fleet.machine(name).root.at("/var/lib/muster");
            fs::create_dir_all(&folder)?;
            let mount =
                finish(Command::new("mount").args(["-t", "tmpfs", "-o", STATE_SIZE, "tmpfs"]).arg(&folder));
            match mount {
                Ok(_) => bench.mounted.push(folder),
                Err(error) => bench.no_disks = Some(format!("no small disk can be mounted: {error:#}")),
            }
            bench.fleet.invite_and_enrol(name)?;
            bench.fleet.machine(name).start()?;
        }
        for (name, _) in &machines {
            bench.fleet.wait(name, "its first check-in", |view| view.last_seen.is_some())?;
        }
        bench.settle_well()?;
        Ok(bench)
    }

    /// A healthy generation, so that every round starts alike.
    fn settle_well(&mut self) -> Result<()> {
        self.speak(Way::Good)?;
        self.fleet.update(&[])?;
        for (name, _) in both() {
            let generation = self.generation(name)?;
            self.until(name, "a good generation", || {
                is_over(&self.fleet, name, generation) && has_no_pending_reports(&self.fleet, name)
            })?;
        }
        Ok(())
    }

    fn generation(&self, name: &str) -> Result<u64> {
        let view = self.fleet.view(name)?;
        Ok(view.published.context("nothing is published")?.target.generation.get())
    }

    /// Describes the next generation.
    fn speak(&mut self, way: Way) -> Result<()> {
        self.round += 1;
        let fixture = &self.fleet.fixture;
        for word in ["health", "build-exit", "action.cinnabar"] {
            let _ = fixture.unsay(word);
        }
        fixture.say("greeting", &format!("round {}", self.round))?;
        // Another user and another launchd job each time: leftovers of another generation show.
        fixture.say("users", if self.round.is_multiple_of(2) { "alice carol" } else { "bob carol" })?;
        fixture.say("job", &format!("round-{}", self.round))?;
        fixture.say("deadline-seconds", "10")?;
        match way {
            Way::Ill | Way::OldFails => fixture.say("health", "ill"),
            Way::BuildFails => fixture.say("build-exit", "3"),
            Way::Boot => fixture.say("action.cinnabar", "boot"),
            Way::Dry => fixture.say("action.cinnabar", "dry-activate"),
            Way::Good | Way::Foreign | Way::Paused => Ok(()),
        }
    }

    /// The cells of a step under a fault: a result for each machine that reaches it.
    pub fn cells(&mut self, step: &DurableStep, fault: Fault) -> Result<Vec<(Class, Result<&'static str>)>> {
        let names: Vec<&'static str> = both()
            .iter()
            .map(|(name, _)| *name)
            .filter(|name| step.never.is_none_or(|(class, _)| class != self.fleet.machine(name).class()))
            .collect();
        let result = self.run_round(step, fault, &names);
        let outcome = match result {
            Ok(results) => names
                .iter()
                .zip(results)
                .map(|(name, result)| (self.fleet.machine(name).class(), result))
                .collect(),
            Err(error) => {
                let words = format!("{error:#}");
                let class = |name: &&str| self.fleet.machine(name).class();
                names.iter().map(|name| (class(name), Err(anyhow::anyhow!("{words}")))).collect()
            }
        };
        self.recover(step.way)?;
        Ok(outcome)
    }

    fn run_round(
        &mut self,
        step: &DurableStep,
        fault: Fault,
        names: &[&'static str],
    ) -> Result<Vec<Result<&'static str>>> {
        self.speak(step.way)?;
        let mut patients = Vec::new();
        for &name in names {
            self.before(name, step.way)?;
            let old = self.fleet.machine(name).running().context("it runs nothing")?;
            // OLD's script and NEW's are told apart by their systems.
            let at = match step.at.strip_prefix("during undo ") {
                Some(stage) => format!("during activate {stage} of {old}\n"),
                None => format!("{}\n", step.at),
            };
            self.beside(name, "stop-at", Some(&at))?;
            patients.push(Patient { name, old, generation: 0, lines: 0 });
        }
        self.fleet.update(names)?;
        for patient in &mut patients {
            patient.generation = self.generation(patient.name)?;
        }
        for patient in &mut patients {
            let stopped = self.place(patient.name, "stopped-at");
            self.until(patient.name, step.at, || stopped.exists())?;
            patient.lines = self.log_lines(patient.name);
        }
        self.strike(fault, &patients)?;
        for patient in &patients {
            self.beside(patient.name, "stop-at", None)?;
            self.beside(patient.name, "stopped-at", None)?;
        }
        self.repair(fault, step, &patients)?;
        for patient in &patients {
            self.help(patient, step.way)?;
        }
        Ok(patients.iter().map(|patient| self.end(patient, step.way)).collect())
    }

    fn end(&self, patient: &Patient, way: Way) -> Result<&'static str> {
        let (name, generation) = (patient.name, patient.generation);
        self.until(name, "an end and its last word", || {
            is_over(&self.fleet, name, generation)
                && has_no_pending_reports(&self.fleet, name)
                && !comes_again(&self.fleet, name, generation)
        })?;
        check(&self.fleet, name, way, &patient.old, generation).with_context(|| {
            let log = self.fleet.machine(name).root.at("/var/lib/muster/activator.log");
            let activator = fs::read_to_string(log).unwrap_or_default();
            format!("OLD is {}\n{}\n--- activator\n{activator}", patient.old, self.fleet.logs(name))
        })
    }

    /// Prepares what this kind of update needs before the generation arrives.
    fn before(&self, name: &str, way: Way) -> Result<()> {
        let root = &self.fleet.machine(name).root;
        match way {
            Way::OldFails => {
                let stage =
                    if self.fleet.machine(name).class() == Class::Darwin { "etc" } else { "bootloader" };
                let old = self.fleet.machine(name).running().context("it runs nothing")?;
                fs::write(root.at(format!("/tmp/fails-{stage}")), old.as_str())?;
            }
            Way::Foreign => {
                let file = root.at("/etc/minerals");
                let _ = fs::remove_file(&file);
                fs::write(file, "mine")?;
            }
            Way::Paused => {
                let paused = self.fleet.agent(name, &["pause", "--for", "1h"])?;
                ensure!(paused.status.success(), "{name} cannot be paused: {}", crate::fleet::said(&paused));
            }
            _ => {}
        }
        Ok(())
    }

    /// What a person does, or the reboot that the machine waits for.
    fn help(&self, patient: &Patient, way: Way) -> Result<()> {
        let name = patient.name;
        let state = |wanted: &str| {
            document(&self.fleet, name, "transaction.json")
                .is_some_and(|open| open["state"]["state"] == wanted)
        };
        let over = || is_over(&self.fleet, name, patient.generation);
        match way {
            Way::Foreign => {
                let _ = fs::remove_file(self.fleet.machine(name).root.at("/etc/minerals"));
                self.ask(name, &["check-now"])
            }
            Way::Paused => self.ask(name, &["resume"]),
            Way::Boot => {
                self.until(name, "the wait for a reboot", || state("awaiting-reboot") || over())?;
                if !over() {
                    let machine = self.fleet.machine(name);
                    machine.stop(false)?;
                    machine.start()?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Asks the agent until it answers: it may just have been killed.
    fn ask(&self, name: &str, words: &[&str]) -> Result<()> {
        self.until(name, words[0], || {
            self.fleet.agent(name, words).is_ok_and(|answer| answer.status.success())
        })
    }

    fn strike(&mut self, fault: Fault, patients: &[Patient]) -> Result<()> {
        let (agent, activator) = match fault {
            Fault::KillAgent => (true, false),
            Fault::KillActivator => (false, true),
            Fault::KillBoth => (true, true),
            Fault::ControllerGone => return self.fleet.stop_controller(),
            Fault::Reboot => {
                for patient in patients {
                    let machine = self.fleet.machine(patient.name);
                    machine.stop(true)?;
                    // The next boot must not meet anything of the test.
                    self.beside(patient.name, "stop-at", None)?;
                    machine.start()?;
                }
                return Ok(());
            }
            Fault::DiskFull => {
                for patient in patients {
                    self.beside(patient.name, "write-failed", None)?;
                    self.fill(patient.name)?;
                }
                return Ok(());
            }
        };
        for patient in patients {
            let mut pids = Vec::new();
            if activator {
                pids.extend(self.fleet.pids(patient.name, &["activate"]));
                ensure!(!pids.is_empty(), "{}: no activator is at work", patient.name);
            }
            if agent {
                pids.extend(self.fleet.agent_pids(patient.name));
            }
            for pid in pids {
                processes::signal(pid, Signal::KILL);
            }
        }
        Ok(())
    }

    fn fill(&self, name: &str) -> Result<()> {
        use std::io::Write as _;
        let mut filler = fs::File::create(self.fleet.machine(name).root.at("/var/lib/muster/filler"))?;
        let block = [0_u8; 4096];
        while filler.write_all(&block).is_ok() {}
        Ok(())
    }

    /// Removes the fault once it has had an effect, or once the machine has finished.
    fn repair(&mut self, fault: Fault, step: &DurableStep, patients: &[Patient]) -> Result<()> {
        let rests = |patient: &Patient| {
            let waits = match step.way {
                Way::Boot => Some("awaiting-reboot"),
                Way::Paused => Some("deferred"),
                Way::Foreign => Some("needs-human"),
                _ => None,
            };
            let state = document(&self.fleet, patient.name, "transaction.json")
                .and_then(|open| Some(open["state"]["state"].as_str()?.to_owned()));
            is_over(&self.fleet, patient.name, patient.generation)
                || (waits.is_some() && state.as_deref() == waits)
        };
        match fault {
            Fault::DiskFull => {
                for patient in patients {
                    let failed = self.place(patient.name, "write-failed");
                    let bitten =
                        || failed.exists() || self.log_says(patient, "No space left") || rests(patient);
                    self.until(patient.name, "a full disk", bitten)?;
                    fs::remove_file(self.fleet.machine(patient.name).root.at("/var/lib/muster/filler"))?;
                }
                Ok(())
            }
            Fault::ControllerGone => {
                for patient in patients {
                    let cannot = || self.log_says(patient, "WARN") && !self.is_activating(patient.name);
                    self.until(patient.name, "rest without a controller", || rests(patient) || cannot())?;
                }
                self.fleet.start_controller()
            }
            _ => Ok(()),
        }
    }

    fn is_activating(&self, name: &str) -> bool {
        let open = document(&self.fleet, name, "transaction.json");
        let state = open.and_then(|open| Some(open["state"]["state"].as_str()?.to_owned()));
        matches!(
            state.as_deref(),
            Some("checked" | "built" | "fetched" | "activating" | "probing" | "rolling-back")
        )
    }

    /// Restores both machines after each round.
    fn recover(&mut self, way: Way) -> Result<()> {
        if !self.fleet.controller_is_running()? {
            let _ = self.fleet.stop_controller();
            self.fleet.start_controller()?;
        }
        for (name, _) in both() {
            for file in ["stop-at", "stopped-at", "write-failed"] {
                self.beside(name, file, None)?;
            }
            let root = self.fleet.machine(name).root.clone();
            let _ = fs::remove_file(root.at("/var/lib/muster/filler"));
            for stage in ["etc", "bootloader"] {
                let _ = fs::remove_file(root.at(format!("/tmp/fails-{stage}")));
            }
            if !self.fleet.machine(name).is_on() {
                self.fleet.machine(name).start()?;
            }
        }
        if way == Way::OldFails { self.settle_well() } else { Ok(()) }
    }

    fn place(&self, name: &str, file: &str) -> PathBuf {
        self.fleet.machine(name).root.at("/var/lib").join(file)
    }

    fn beside(&self, name: &str, file: &str, text: Option<&str>) -> Result<()> {
        let place = self.place(name, file);
        match text {
            Some(text) => Ok(fs::write(place, text)?),
            None => match fs::remove_file(place) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
                _ => Ok(()),
            },
        }
    }

    fn log_lines(&self, name: &str) -> usize {
        fs::read_to_string(self.fleet.machine(name).agent_log()).map_or(0, |log| log.lines().count())
    }

    fn log_says(&self, patient: &Patient, words: &str) -> bool {
        let log = fs::read_to_string(self.fleet.machine(patient.name).agent_log()).unwrap_or_default();
        log.lines().skip(patient.lines).any(|line| line.contains(words))
    }

    fn until(&self, name: &str, what: &str, condition: impl Fn() -> bool) -> Result<()> {
        let clock = SystemClock::new();
        while !condition() {
            ensure!(
                clock.awake() < LIMIT,
                "{name}: {what} did not come about; transaction {}, activation {}\n{}",
                document(&self.fleet, name, "transaction.json").unwrap_or_default()["state"],
                document(&self.fleet, name, "activation.json").unwrap_or_default()["phase"],
                self.fleet.logs(name)
            );
            std::thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}
