//! macOS: launchd and nix-darwin's `activate`.

mod boot;
mod etc;
mod jobs;
mod logs;
mod messages;
mod power;
mod session;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::target::Action;
use serde::Serialize;

use super::boot_id;
use super::layout::Layout;
use super::programs::{PlatformError, ask, finish, run};
use super::system::{Awake, Platform, Preflight};
use crate::core::activate::{Outcome, Way};
use crate::durable;
use crate::process::{self, Finished};

const ACTIVATOR_LABEL: &str = "org.muster.activator";
const AGENT_LABEL: &str = "org.muster.agent";
/// nix-darwin removes only what it made itself, so this one survives every activation.
pub const ACTIVATOR_PLIST: &str = "/Library/LaunchDaemons/org.muster.activator.plist";
const MAX_PLIST_BYTES: u64 = 64 * 1024;
const AGENT_PLIST: &str = "/Library/LaunchDaemons/org.muster.agent.plist";
/// How often to ask launchd to load the agent, and the pause between two tries.
const LOAD_TRIES: u32 = 10;
const LOAD_PAUSE: Duration = Duration::from_millis(500);
/// The time limit of a system's own checks.
const CHECK_LIMIT: Duration = Duration::from_secs(300);
/// What newer closures write into an `activate-user` that must not be run any more.
const DEPRECATED: &str = "# nix-darwin: deprecated";
/// A script with this word stops after its checks when asked to; an older one would really activate.
const CHECK_VARIABLE: &str = "checkActivation";

pub struct Darwin {
    layout: Layout,
    activator: Vec<String>,
}

/// A one-shot launchd job.
#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct Job<'a> {
    label: &'a str,
    program_arguments: &'a [String],
    environment_variables: BTreeMap<&'a str, String>,
    run_at_load: bool,
    /// A job that was killed, or that could not write, is restarted; one that finished is not.
    keep_alive: KeepAlive,
    /// Without it, unloading the job would kill the activation's children.
    abandon_process_group: bool,
    standard_out_path: String,
    standard_error_path: String,
}

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct KeepAlive {
    successful_exit: bool,
}

impl Darwin {
    /// `activator` is the program to start, with its arguments.
    pub fn new(layout: Layout, activator: Vec<String>) -> Self {
        Self { layout, activator }
    }

    /// A Mac has no /proc.
    fn boot_session(&self) -> Result<String, PlatformError> {
        ask(&self.layout, "sysctl", &["-n", "kern.bootsessionuuid"]).map(|text| text.trim().to_owned())
    }

    /// The activator's plist.
    fn activator_job(&self) -> Result<Vec<u8>, PlatformError> {
        let log = self.layout.state("activator.log").to_string_lossy().into_owned();
        let path = self.layout.search_path().to_string_lossy().into_owned();
        let job = Job {
            label: ACTIVATOR_LABEL,
            program_arguments: &self.activator,
            environment_variables: BTreeMap::from([("PATH", path)]),
            run_at_load: true,
            keep_alive: KeepAlive { successful_exit: false },
            abandon_process_group: true,
            standard_out_path: log.clone(),
            standard_error_path: log,
        };
        let mut xml = Vec::new();
        plist::to_writer_xml(&mut xml, &job).map_err(|error| PlatformError::Other(error.to_string()))?;
        Ok(xml)
    }

    /// The program that needs macOS permissions.
    fn program(&self) -> &str {
        self.activator.first().map_or("muster-agent", String::as_str)
    }

    /// Newer scripts begin with `env -i`; older ones need these three.
    fn as_root(&self, system: &StorePath) -> Command {
        let mut command = Command::new(self.script(system));
        command.env_clear().env("HOME", "/var/root").env("USER", "root");
        command.env("PATH", self.layout.search_path()).current_dir("/");
        command
    }

    /// The script of closures before 25.05 that must run as the primary user, if this is one.
    fn user_script(&self, system: &StorePath) -> Option<PathBuf> {
        let script = self.layout.physical(system).join("activate-user");
        let text = std::fs::read_to_string(&script).ok()?;
        (!text.lines().any(|line| line.trim() == DEPRECATED)).then_some(script)
    }

    /// Runs it as the logged-in user; `None` if nobody is logged in.
    fn activate_user(&self, script: PathBuf, limit: Duration) -> Result<Option<Finished>, PlatformError> {
        let Some(owner) = session::console(&self.layout) else { return Ok(None) };
        let owner = owner.to_string();
        let name = ask(&self.layout, "id", &["-un", &owner])?;
        let mut command = self.layout.command("launchctl");
        command.args(["asuser", &owner, "sudo", "--user", name.trim(), "--set-home", "--"]).arg(script);
        finish(&self.layout, command, limit).map(Some)
    }
}

impl Platform for Darwin {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn boot_id(&self) -> Result<String, PlatformError> {
        if let Some(id) = boot_id::of_stand_in(&self.layout) {
            return Ok(id);
        }
        self.boot_session()
    }

    /// launchd does not distinguish a failed job from one that ended: the health checks say what must run.
    fn failed_units(&self) -> Result<Vec<String>, PlatformError> {
        Ok(Vec::new())
    }

    fn preflight(&self, new: &StorePath, _action: Action) -> Result<Preflight, PlatformError> {
        let script = self.script(new);
        let Ok(text) = std::fs::read_to_string(&script) else {
            return Ok(Preflight::Failed(format!("{new} is not a nix-darwin system: it has no activate")));
        };
        if !text.contains(CHECK_VARIABLE) {
            return Ok(Preflight::Passed);
        }
        // Newer scripts begin with `env -i`, which would remove the variable and really activate: run the
        // interpreter of the script's first line directly.
        let Some(interpreter) = interpreter(&text) else { return Ok(Preflight::Passed) };
        let mut command = Command::new(interpreter);
        command.arg(&script).env_clear().env("HOME", "/var/root").env("USER", "root");
        command.env("PATH", self.layout.search_path()).env(CHECK_VARIABLE, "1").current_dir("/");
        let finished = finish(&self.layout, command, CHECK_LIMIT)?;
        if finished.exit == 0 {
            // A script that was asked only to check ends before the check of /etc.
            let foreign = etc::foreign(&self.layout, new, &text);
            return Ok(match foreign.is_empty() {
                true => Preflight::Passed,
                false => Preflight::NeedsHuman(messages::foreign_files(&foreign)),
            });
        }
        let output = finished.output.trim().to_owned();
        Ok(match self.needs_human(finished.exit, &output) {
            Some(words) => Preflight::NeedsHuman(words),
            None => Preflight::Failed(format!("{new} refused in its checks ({}): {output}", finished.exit)),
        })
    }

    /// A job of its own, from a plist that nix-darwin does not manage: unloading the agent's does not affect
    /// it.
    fn start_activator(&self, _generation: Generation) -> Result<(), PlatformError> {
        let xml = self.activator_job()?;
        let file = self.layout.state("activator.plist");
        durable::write(&file, &xml, 0o644)
            .map_err(|source| PlatformError::Write { path: file.clone(), source })?;
        // Left by an earlier activation; usually there is none.
        let _ = run(&self.layout, "launchctl", &["bootout", &format!("system/{ACTIVATOR_LABEL}")]);
        ask(&self.layout, "launchctl", &["bootstrap", "system", &file.to_string_lossy()]).map(drop)
    }

    /// It stays: macOS notifies the user of each new one, and without a switch under way it exits at once.
    fn activator_begins(&self) {
        let file = self.layout.system(ACTIVATOR_PLIST);
        let written = self.activator_job().and_then(|xml| {
            if durable::read(&file, MAX_PLIST_BYTES).ok().flatten().as_ref() == Some(&xml) {
                return Ok(());
            }
            durable::write(&file, &xml, 0o644)
                .map_err(|source| PlatformError::Write { path: file.clone(), source })
        });
        if let Err(error) = written {
            tracing::warn!(%error, "after a reboot in mid-switch only the agent could undo this one");
        }
    }

    fn activator_ends(&self) {}

    fn activate(
        &self,
        system: &StorePath,
        action: Action,
        _way: Way,
        limit: Duration,
    ) -> Result<Finished, PlatformError> {
        if action != Action::Switch {
            let words = format!("a Mac only supports the action switch, not {}", action.as_str());
            return Err(PlatformError::Other(words));
        }
        if let Some(script) = self.user_script(system) {
            match self.activate_user(script, limit)? {
                Some(finished) if finished.exit != 0 || finished.timed_out => return Ok(finished),
                Some(_) => {}
                None => tracing::warn!("nobody is logged in: {system} is activated without its user's part"),
            }
        }
        finish(&self.layout, self.as_root(system), limit)
    }

    fn outcome(&self, finished: &Finished) -> Outcome {
        match finished.exit {
            0 => Outcome::Done,
            exit if messages::untouched(exit, &finished.said) => Outcome::Untouched,
            _ => Outcome::Failed,
        }
    }

    fn script(&self, system: &StorePath) -> PathBuf {
        self.layout.physical(system).join("activate")
    }

    fn needs_human(&self, exit: i32, output: &str) -> Option<String> {
        messages::needs_human(exit, output, self.program())
    }

    fn wait_for_boot(&self) {
        boot::wait(&self.layout);
    }

    fn tend(&self) {
        logs::trim(&self.layout);
    }

    fn tidy(&self, from: &StorePath, to: &StorePath) {
        jobs::tidy(&self.layout, from, to);
    }

    /// An agent that the activation unloaded is not always loaded again, and a loaded one does not always
    /// run.
    fn ensure_agent(&self, _from: Option<&StorePath>, _to: &StorePath) {
        let service = format!("system/{AGENT_LABEL}");
        for attempt in 1..=LOAD_TRIES {
            if run(&self.layout, "launchctl", &["print", &service]).is_ok_and(|printed| printed.exit == 0) {
                // Does nothing if it is already running.
                if let Err(error) = ask(&self.layout, "launchctl", &["kickstart", &service]) {
                    tracing::warn!(%error, "the agent's job cannot be started");
                }
                return;
            }
            let plist = self.layout.system(AGENT_PLIST);
            if !plist.is_file() {
                tracing::warn!("{} does not exist: not restarting the agent", plist.display());
                return;
            }
            let _ = run(&self.layout, "launchctl", &["enable", &service]);
            // While launchd is still stopping the old one it accepts no new one (error 37, or 5).
            if let Err(error) =
                ask(&self.layout, "launchctl", &["bootstrap", "system", &plist.to_string_lossy()])
            {
                tracing::warn!(%error, attempt, "the agent's job cannot be loaded yet");
                std::thread::sleep(LOAD_PAUSE);
            }
        }
    }

    /// darwin-rebuild leaves no lock, so look for its process, and for the script that it runs.
    fn busy(&self) -> Result<Option<String>, PlatformError> {
        let scripts = self.layout.store_prefix();
        let root = self.layout.system("/");
        let other = process::find(|word| {
            let path = std::path::Path::new(word);
            let is = |name: &str| path.file_name().is_some_and(|found| found == name);
            (is("activate") && path.starts_with(&scripts))
                || (is("darwin-rebuild") && path.starts_with(&root))
        })
        .map_err(|source| PlatformError::Run { program: "ps".to_owned(), source })?;
        Ok(other.and_then(|other| messages::busy(&other)))
    }

    fn keep_awake(&self) -> Option<Awake> {
        power::keep_awake(&self.layout)
    }

    fn on_battery(&self) -> Option<u8> {
        power::on_battery(&self.layout)
    }

    fn metered(&self) -> bool {
        power::metered(&self.layout)
    }

    fn free_memory(&self) -> Option<u64> {
        power::free_memory(&self.layout)
    }

    fn console(&self) -> Option<u32> {
        session::console(&self.layout)
    }

    fn absent(&self, new: &StorePath) -> Option<String> {
        session::absent(&self.layout, new)
    }

    fn reboot(&self) -> Result<(), PlatformError> {
        Err(PlatformError::Other("Muster does not reboot Macs".to_owned()))
    }

    /// A running job is healthy, and so is one that rests after a successful run.
    fn service(&self, name: &str) -> Result<(), String> {
        let target = if name.contains('/') { name.to_owned() } else { format!("system/{name}") };
        let asked = run(&self.layout, "launchctl", &["print", &target]).map_err(|error| error.to_string())?;
        if asked.exit != 0 {
            return Err(format!("launchd has no job {target}"));
        }
        messages::job(&asked.output).map_err(|why| format!("{target} {why}"))
    }
}

/// The interpreter of a script: the last word of `#!/usr/bin/env -i /nix/store/…/bash`, or of a plain
/// `#!/bin/sh`.
fn interpreter(text: &str) -> Option<&str> {
    text.lines().next()?.strip_prefix("#!")?.split_whitespace().last().filter(|word| word.starts_with('/'))
}

#[cfg(test)]
mod tests;
