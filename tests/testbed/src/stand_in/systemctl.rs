//! `systemctl`, for the services in the machine's `/etc/systemd/system` and the transient ones.
//!
//! Verbs: start, stop, restart, try-restart, is-active, is-failed, reset-failed, list-units, show, status,
//! daemon-reload. The only target is multi-user.target, and every wanted unit belongs to it. A test can list
//! other units in `/run/stand-in-failed` (one name per line) that have failed and would fail again.

use anyhow::Result;

use super::job::{Job, Manager, State, Status};
use super::units;
use super::wire::{Refusal, Request, ask, find};
use crate::root::Root;

/// Units that a test wants to be failed.
pub const FAILED: &str = "/run/stand-in-failed";
/// `systemctl(1)`: program is not running; no such unit.
const NOT_RUNNING: u8 = 3;
const NO_UNIT: u8 = 5;

pub fn run(root: &Root, arguments: &[String]) -> Result<u8> {
    let (options, words): (Vec<&str>, Vec<&str>) =
        arguments.iter().map(String::as_str).partition(|word| word.starts_with('-'));
    let Some((verb, names)) = words.split_first() else { return list(root, &options) };
    let names: Vec<String> = names.iter().map(|name| full(name)).collect();
    let worst = |work: &dyn Fn(&str) -> Result<u8>| {
        names.iter().try_fold(0, |worst, name| Ok(work(name)?.max(worst)))
    };
    match *verb {
        "daemon-reload" => Ok(0),
        "list-units" => list(root, &options),
        "start" => worst(&|name| start(root, name, false)),
        "restart" => worst(&|name| start(root, name, true)),
        "try-restart" => worst(&|name| match find(root, name)? {
            Some(status) if status.state == State::Running => start(root, name, true),
            _ => Ok(0),
        }),
        "stop" => worst(&|name| {
            // Unloaded, so that the next start rereads the unit file.
            let _ = ask(root, &Request::Unload(name.to_owned()))?;
            Ok(0)
        }),
        "reset-failed" => {
            if names.is_empty() {
                for status in ask(root, &Request::List)?.unwrap_or_default() {
                    let _ = ask(root, &Request::Reset(status.job.name))?;
                }
                return Ok(0);
            }
            let _ = std::fs::remove_file(root.at(FAILED));
            worst(&|name| {
                let _ = ask(root, &Request::Reset(name.to_owned()))?;
                Ok(0)
            })
        }
        "is-active" | "is-failed" => {
            let quiet = options.iter().any(|option| matches!(*option, "-q" | "--quiet"));
            let wanted = if *verb == "is-active" { "active" } else { "failed" };
            let mut any = false;
            for name in &names {
                let state = active(find(root, name)?.as_ref());
                any |= state == wanted || (wanted == "active" && state == "activating");
                if !quiet {
                    println!("{state}");
                }
            }
            Ok(if any { 0 } else { NOT_RUNNING })
        }
        "show" | "status" => {
            for (number, name) in names.iter().filter(|name| !name.contains('*')).enumerate() {
                let status = find(root, name)?;
                if number > 0 {
                    println!();
                }
                println!("Id={name}");
                let known = status.is_some() || root.at("/etc/systemd/system").join(name).exists();
                println!("LoadState={}", if known { "loaded" } else { "not-found" });
                println!("ActiveState={}", active(status.as_ref()));
                println!("MainPID={}", status.as_ref().and_then(|status| status.pid).unwrap_or(0));
                println!(
                    "ExecMainStatus={}",
                    status.as_ref().and_then(|status| status.last_exit).unwrap_or(0)
                );
                println!("NRestarts={}", status.map_or(0, |status| status.runs.saturating_sub(1)));
            }
            Ok(0)
        }
        other => {
            eprintln!("Unknown command verb '{other}' (this stand-in knows few).");
            Ok(1)
        }
    }
}

/// A name without a suffix is that of a service.
pub fn full(name: &str) -> String {
    if name.contains('.') { name.to_owned() } else { format!("{name}.service") }
}

fn active(status: Option<&Status>) -> &'static str {
    match status.map(|status| (status.state, status.job.restart, status.runs)) {
        Some((State::Running, _, _)) => "active",
        Some((State::Failed, _, _)) => "failed",
        Some((State::Waiting, super::job::Restart::Always | super::job::Restart::OnFailure, 1..)) => {
            "activating"
        }
        // It is still starting.
        Some((State::Waiting, _, 0)) if status.is_some_and(|status| status.job.start) => "activating",
        Some((State::Waiting, _, _)) | None => "inactive",
    }
}

/// Every unit that the target wants and that is not running.
fn start_wanted(root: &Root) -> Result<u8> {
    let mut worst = 0;
    for folder in ["/etc/systemd/system.control", "/etc/systemd/system"] {
        for file in std::fs::read_dir(root.at(folder)).into_iter().flatten().flatten() {
            let Ok(unit) = units::read(&file.path()) else { continue };
            let runs = find(root, &unit.job.name)?.is_some_and(|status| status.state == State::Running);
            if !unit.wanted || runs || !unit.job.is_wanted_now(root) {
                continue;
            }
            let name = unit.job.name.clone();
            let job = Job { start: true, ..unit.job };
            match ask(root, &Request::Load(Box::new(job)))? {
                Ok(_) => {}
                Err(Refusal::AlreadyLoaded) => worst = start(root, &name, false)?.max(worst),
                Err(refusal) => {
                    eprintln!("Job for {name} failed: {refusal:?}");
                    worst = 1;
                }
            }
        }
    }
    Ok(worst)
}

fn start(root: &Root, name: &str, again: bool) -> Result<u8> {
    if name == "multi-user.target" {
        return start_wanted(root);
    }
    let file = root.at("/etc/systemd/system").join(name);
    match find(root, name)? {
        Some(status) if again || status.state == State::Failed => {
            let _ = ask(root, &Request::Unload(status.job.name))?;
        }
        Some(status) if status.state == State::Running => return Ok(0),
        Some(_) => {
            let _ = ask(root, &Request::Start { name: name.to_owned(), kill: false })?;
            return Ok(0);
        }
        None => {}
    }
    let unit = match units::read(&file) {
        Ok(unit) => unit,
        Err(_) => {
            eprintln!("Failed to start {name}: Unit {name} not found.");
            return Ok(NO_UNIT);
        }
    };
    let job = Job { start: true, ..unit.job };
    match ask(root, &Request::Load(Box::new(job)))? {
        Ok(_) | Err(Refusal::AlreadyLoaded) => Ok(0),
        Err(refusal) => {
            eprintln!("Job for {name} failed: {refusal:?}");
            Ok(1)
        }
    }
}

/// `UNIT LOAD ACTIVE SUB DESCRIPTION`, or JSON of the same.
fn list(root: &Root, options: &[&str]) -> Result<u8> {
    let states: Vec<&str> = options
        .iter()
        .find_map(
            |option| if *option == "--failed" { Some("failed") } else { option.strip_prefix("--state=") },
        )
        .map(|states| states.split(',').filter(|state| !state.is_empty()).collect())
        .unwrap_or_default();
    let json = options.contains(&"--output=json");
    let mut rows: Vec<(String, &str, &str)> = ask(root, &Request::List)?
        .unwrap_or_default()
        .iter()
        .filter(|status| status.job.manager == Manager::Systemd)
        .map(|status| {
            let state = active(Some(status));
            (status.job.name.clone(), state, if state == "activating" { "auto-restart" } else { state })
        })
        .collect();
    let failed = std::fs::read_to_string(root.at(FAILED)).unwrap_or_default();
    rows.extend(
        failed
            .lines()
            .filter(|line| !line.trim().is_empty())
            .map(|line| (full(line.trim()), "failed", "failed")),
    );
    rows.sort();
    rows.retain(|(_, state, sub)| {
        if states.is_empty() { *state != "inactive" } else { states.contains(state) || states.contains(sub) }
    });
    if json {
        let rows: Vec<_> = rows
            .iter()
            .map(|(name, state, sub)| {
                serde_json::json!({
                    "unit": name, "load": "loaded", "active": state, "sub": sub, "description": name
                })
            })
            .collect();
        println!("{}", serde_json::to_string(&rows)?);
        return Ok(0);
    }
    let plain = options.contains(&"--plain");
    let legend = !options.iter().any(|option| matches!(*option, "--no-legend" | "--legend=false"));
    if legend {
        println!("  UNIT LOAD ACTIVE SUB DESCRIPTION");
    }
    for (name, state, sub) in &rows {
        let mark = match (plain, *state) {
            (true, _) => "",
            (false, "failed") => "● ",
            (false, _) => "  ",
        };
        println!("{mark}{name} loaded {state} {sub} {name}");
    }
    if legend {
        println!("\n{} loaded units listed.", rows.len());
    }
    Ok(0)
}
