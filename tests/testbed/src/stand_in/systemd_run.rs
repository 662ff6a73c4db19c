//! `systemd-run`, for transient services that outlive their caller.
//!
//! `--property` is read for `KillMode`, `TimeoutStopSec` and `Restart` and otherwise ignored; scopes, timers,
//! `--pipe`, `--pty` and `--wait` are refused, since what they would run here would not be what they run.

use std::collections::BTreeMap;

use anyhow::Result;

use super::job::{Job, Manager, Restart, Together};
use super::systemctl::full;
use super::wire::{Refusal, Request, ask};
use crate::root::Root;

pub fn run(root: &Root, arguments: &[String]) -> Result<u8> {
    let job = match parse(arguments) {
        Ok(job) => job,
        Err(error) => {
            eprintln!("{error}");
            return Ok(1);
        }
    };
    let name = job.name.clone();
    match ask(root, &Request::Load(Box::new(job)))? {
        Ok(_) => {
            eprintln!("Running as unit: {name}");
            Ok(0)
        }
        Err(Refusal::AlreadyLoaded) => {
            eprintln!(
                "Failed to start transient service unit: Unit {name} was already loaded or has a \
                 fragment file."
            );
            Ok(1)
        }
        Err(refusal) => {
            eprintln!("Failed to start transient service unit: {refusal:?}");
            Ok(1)
        }
    }
}

fn parse(arguments: &[String]) -> Result<Job, String> {
    let mut words = arguments.iter().map(String::as_str).peekable();
    let (mut unit, mut environment, mut collect) = (None, BTreeMap::new(), false);
    let (mut folder, mut together, mut restart) = (None, Together::Everything, Restart::Never);
    let mut runtime_directory = None;
    while let Some(word) = words.next_if(|word| word.starts_with('-')) {
        if word == "--" {
            break;
        }
        let (option, mut value) = match word.split_once('=') {
            Some((option, value)) if option.starts_with("--") => (option, Some(value.to_owned())),
            _ => (word, None),
        };
        let takes_value = matches!(
            option,
            "-u" | "--unit"
                | "-E"
                | "--setenv"
                | "-p"
                | "--property"
                | "--service-type"
                | "--description"
                | "--slice"
                | "--working-directory"
                | "--nice"
        );
        if takes_value && value.is_none() {
            value = words.next().map(str::to_owned);
        }
        let value = value.unwrap_or_default();
        match option {
            "-u" | "--unit" => unit = Some(full(&value)),
            "-E" | "--setenv" => match value.split_once('=') {
                Some((name, value)) => {
                    environment.insert(name.to_owned(), value.to_owned());
                }
                None => {
                    let inherited = std::env::var(&value).unwrap_or_default();
                    environment.insert(value, inherited);
                }
            },
            "-p" | "--property" => match value.split_once('=') {
                Some(("KillMode", "process" | "none")) => together = Together::Nothing,
                Some(("Restart", "always")) => restart = Restart::Always,
                Some(("Restart", "on-failure")) => restart = Restart::OnFailure,
                Some(("RuntimeDirectory", name)) => runtime_directory = Some(name.to_owned()),
                Some(("WorkingDirectory", path)) => folder = Some(path.into()),
                Some(("Environment", variable)) => {
                    if let Some((name, value)) = variable.split_once('=') {
                        environment.insert(name.to_owned(), value.to_owned());
                    }
                }
                _ => {}
            },
            "--working-directory" => folder = Some(value.into()),
            "-G" | "--collect" => collect = true,
            "--service-type" if matches!(value.as_str(), "exec" | "simple") => {}
            "--no-ask-password"
            | "--no-block"
            | "-q"
            | "--quiet"
            | "--system"
            | "-r"
            | "--remain-after-exit"
            | "--description"
            | "--slice"
            | "--nice" => {}
            other => {
                return Err(format!("systemd-run: '{word}' ({other}) is nothing that this stand-in can do"));
            }
        }
    }
    let command: Vec<String> = words.map(str::to_owned).collect();
    if command.is_empty() {
        return Err("Command line to execute required.".into());
    }
    let name = match unit {
        Some(unit) => unit,
        None => {
            let random = muster_protocol::random::bytes::<8>().map_err(|error| error.to_string())?;
            format!("run-r{}.service", muster_protocol::ids::to_hex(&random))
        }
    };
    let log = format!("/var/log/journal/{name}.log");
    Ok(Job {
        name,
        manager: Manager::Systemd,
        source: None,
        arguments: command,
        environment,
        folder,
        stdout: Some(log.clone().into()),
        stderr: Some(log.into()),
        start: true,
        restart,
        pause_ms: 100,
        patience_ms: 90_000,
        together,
        collect,
        conditions: Vec::new(),
        runtime_directory,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(line: &str) -> Result<Job, String> {
        parse(&super::super::units::words(line))
    }

    #[test]
    fn a_transient_unit_is_read_from_the_command_line() {
        let job = job(
            "--unit=muster-activate --collect --no-ask-password --service-type=exec -E A=b --setenv=C=d \
             --property=TimeoutStopSec=5 -p KillMode=process -- /bin/true --unit x",
        )
        .unwrap();
        assert_eq!(job.name, "muster-activate.service");
        assert_eq!(job.arguments, ["/bin/true", "--unit", "x"]);
        assert_eq!(job.environment.len(), 2);
        assert_eq!(job.together, Together::Nothing);
        assert!(job.collect);
    }

    #[test]
    fn a_scope_is_refused() {
        assert!(job("--scope /bin/true").is_err());
        assert!(job("--unit=x").is_err());
    }
}
