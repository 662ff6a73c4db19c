//! `launchctl`, with the output and exit codes of macOS 13 as far as activation and the agent depend on them.
//!
//! Verbs: bootstrap, bootout, kickstart, print, load, unload, list, managername, asuser; the only domain is
//! `system`. Left out: users' domains and their sessions. `asuser` runs its command as the current user,
//! without another session; for a user who is not at the screen (who does not own `/dev/console`) it fails as
//! on a Mac.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::job::{Manager, State, Status, Together};
use super::plists;
use super::wire::{Refusal, Request, ask, find};
use crate::root::Root;

/// The labels disabled by `unload -w`.
const DISABLED: &str = "/var/db/stand-in-disabled";
/// The exit code of `launchctl print` for an unknown service.
const NO_SERVICE: u8 = 113;

pub fn run(root: &Root, arguments: &[String]) -> Result<u8> {
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["bootstrap", "system", files @ ..] if !files.is_empty() => {
            each(files, |file| bootstrap(root, Path::new(file)))
        }
        ["bootout", "system", files @ ..] if !files.is_empty() => each(files, |file| {
            let Ok(plist) = plists::read(Path::new(file)) else { return Ok(no_such_process()) };
            bootout(root, &plist.job.name)
        }),
        ["bootout", target] => match label(target) {
            Some(label) => bootout(root, label),
            None => Ok(usage()),
        },
        ["kickstart", options @ .., target] => match label(target) {
            Some(label) => kickstart(root, label, options),
            None => Ok(usage()),
        },
        ["print", "system"] => {
            println!("system = {{\n\ttype = system\n\tservices = {{");
            for status in jobs(root)? {
                println!(
                    "\t\t{:>8} {:>6} \t{}",
                    status.pid.unwrap_or(0),
                    last_exit(&status),
                    status.job.name
                );
            }
            println!("\t}}\n}}");
            Ok(0)
        }
        ["print", target] => match label(target) {
            Some(label) => print(root, label),
            None => Ok(usage()),
        },
        ["load", options @ .., file] => load(root, Path::new(file), options.contains(&"-w")),
        ["unload", options @ .., file] => unload(root, Path::new(file), options.contains(&"-w")),
        ["list"] => {
            println!("PID\tStatus\tLabel");
            for status in jobs(root)? {
                let pid = status.pid.map_or("-".into(), |pid| pid.to_string());
                println!("{pid}\t{}\t{}", status.last_exit.unwrap_or(0), status.job.name);
            }
            Ok(0)
        }
        ["list", label] => match find(root, label)? {
            Some(status) => {
                println!(
                    "{{\n\t\"Label\" = \"{label}\";\n\t\"LastExitStatus\" = {};",
                    status.last_exit.unwrap_or(0)
                );
                if let Some(pid) = status.pid {
                    println!("\t\"PID\" = {pid};");
                }
                println!("}};");
                Ok(0)
            }
            None => {
                eprintln!("Could not find service \"{label}\" in domain for system");
                Ok(NO_SERVICE)
            }
        },
        ["managername"] => {
            println!("System");
            Ok(0)
        }
        ["asuser", user, command @ ..] if !command.is_empty() => as_user(root, user, command),
        _ => Ok(usage()),
    }
}

fn as_user(root: &Root, user: &str, command: &[&str]) -> Result<u8> {
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::process::CommandExt as _;
    let console = fs::metadata(root.at("/dev/console")).map(|console| console.uid().to_string());
    if console.as_deref().ok() != Some(user) {
        eprintln!("Could not find domain for user {user}");
        return Ok(125);
    }
    Err(std::process::Command::new(command[0]).args(&command[1..]).exec().into())
}

fn usage() -> u8 {
    eprintln!("Usage: launchctl <subcommand> ... (this stand-in knows the domain system alone)");
    64
}

fn label(target: &str) -> Option<&str> {
    target.strip_prefix("system/").filter(|label| !label.is_empty())
}

fn jobs(root: &Root) -> Result<Vec<Status>> {
    let all = ask(root, &Request::List)?.unwrap_or_default();
    Ok(all.into_iter().filter(|status| status.job.manager == Manager::Launchd).collect())
}

/// Runs it for each; the exit code is the last non-zero one.
fn each(files: &[&str], work: impl Fn(&str) -> Result<u8>) -> Result<u8> {
    files.iter().try_fold(0, |worst, file| {
        Ok(match work(file)? {
            0 => worst,
            bad => bad,
        })
    })
}

fn no_such_process() -> u8 {
    eprintln!("Boot-out failed: 3: No such process");
    3
}

fn bootstrap(root: &Root, file: &Path) -> Result<u8> {
    let refused = |why: &str| {
        eprintln!(
            "Bootstrap failed: 5: Input/output error\nTry re-running the command as root for richer errors."
        );
        eprintln!("({why})");
        Ok(5)
    };
    let plist = match plists::read(file) {
        Ok(plist) => plist,
        Err(error) => return refused(&format!("{error:#}")),
    };
    if is_disabled(root, &plist.job.name) || plist.disabled {
        return refused("service is disabled");
    }
    match ask(root, &Request::Load(Box::new(plist.job)))? {
        Ok(_) => Ok(0),
        Err(Refusal::AlreadyLoaded) => refused("service already bootstrapped"),
        Err(Refusal::CannotRun(why)) => refused(&why),
        Err(Refusal::NotLoaded) => refused("not loaded"),
    }
}

fn bootout(root: &Root, label: &str) -> Result<u8> {
    match ask(root, &Request::Unload(label.to_owned()))? {
        Ok(_) => Ok(0),
        Err(_) => Ok(no_such_process()),
    }
}

fn kickstart(root: &Root, label: &str, options: &[&str]) -> Result<u8> {
    let has = |wanted: char| options.iter().any(|option| option.starts_with('-') && option.contains(wanted));
    let request = Request::Start { name: label.to_owned(), kill: has('k') };
    match ask(root, &request)? {
        Ok(_) => {
            if has('p') {
                let pid = find(root, label)?.and_then(|status| status.pid).unwrap_or(0);
                println!("service spawned with pid: {pid}");
            }
            Ok(0)
        }
        Err(_) => {
            eprintln!("Could not find service \"{label}\" in domain for system");
            Ok(NO_SERVICE)
        }
    }
}

fn last_exit(status: &Status) -> String {
    status.last_exit.map_or("(never exited)".into(), |code| {
        if code < 0 { format!("(signal {})", -code) } else { code.to_string() }
    })
}

fn print(root: &Root, label: &str) -> Result<u8> {
    let Some(status) = find(root, label)?.filter(|status| status.job.manager == Manager::Launchd) else {
        eprintln!("Bad request.\nCould not find service \"{label}\" in domain for system");
        return Ok(NO_SERVICE);
    };
    let job = &status.job;
    println!("system/{label} = {{");
    println!("\tactive count = {}", u8::from(status.pid.is_some()));
    println!("\tpath = {}", job.source.as_ref().map_or_else(String::new, |path| path.display().to_string()));
    println!("\ttype = LaunchDaemon");
    let state = match status.state {
        State::Running => "running",
        State::Waiting if job.start && status.runs == 0 => "spawn scheduled",
        _ => "not running",
    };
    println!("\tstate = {state}\n");
    println!("\tprogram = {}", job.arguments.first().map_or("", String::as_str));
    println!("\targuments = {{");
    for argument in &job.arguments {
        println!("\t\t{argument}");
    }
    println!("\t}}\n");
    println!("\tenvironment = {{");
    for (name, value) in &job.environment {
        println!("\t\t{name} => {value}");
    }
    println!("\t}}\n");
    println!("\tdomain = system");
    println!("\tminimum runtime = {}", job.pause_ms / 1000);
    println!("\texit timeout = {}", job.patience_ms / 1000);
    println!("\truns = {}", status.runs);
    if let Some(pid) = status.pid {
        println!("\tpid = {pid}");
    }
    println!("\tlast exit code = {}", last_exit(&status));
    let keep = job.restart != super::job::Restart::Never;
    let abandon = job.together == Together::Nothing;
    println!(
        "\n\tproperties = {}{}",
        if keep { "keepalive " } else { "" },
        if abandon { "abandon-pg" } else { "" }
    );
    println!("}}");
    Ok(0)
}

fn load(root: &Root, file: &Path, enable: bool) -> Result<u8> {
    // `load` prints errors and succeeds; scripts that rely on its exit code do not notice on a Mac either.
    let failed = |why: &str| {
        eprintln!(
            "Load failed: 5: Input/output error\nTry running `launchctl bootstrap` as root for richer errors."
        );
        eprintln!("({why})");
        Ok(0)
    };
    let plist = match plists::read(file) {
        Ok(plist) => plist,
        Err(error) => return failed(&format!("{}: {error:#}", file.display())),
    };
    let label = plist.job.name.clone();
    if enable {
        set_disabled(root, &label, false)?;
    } else if plist.disabled || is_disabled(root, &label) {
        return Ok(0);
    }
    match ask(root, &Request::Load(Box::new(plist.job)))? {
        Ok(_) => Ok(0),
        Err(Refusal::CannotRun(why)) => failed(&why),
        Err(_) => failed("service already loaded"),
    }
}

fn unload(root: &Root, file: &Path, disable: bool) -> Result<u8> {
    // A plist that is missing or broken still names its job, by its file name.
    let label = plists::read(file).map(|plist| plist.job.name).unwrap_or_else(|_| {
        file.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    });
    if disable {
        set_disabled(root, &label, true)?;
    }
    if ask(root, &Request::Unload(label))?.is_err() {
        eprintln!(
            "Unload failed: 5: Input/output error\nTry running `launchctl bootout` as root for richer errors."
        );
    }
    Ok(0)
}

fn disabled_file(root: &Root, label: &str) -> PathBuf {
    root.at(DISABLED).join(label)
}

fn is_disabled(root: &Root, label: &str) -> bool {
    disabled_file(root, label).exists()
}

fn set_disabled(root: &Root, label: &str, disabled: bool) -> Result<()> {
    let file = disabled_file(root, label);
    if disabled {
        fs::create_dir_all(root.at(DISABLED))?;
        fs::write(file, "")?;
    } else if file.exists() {
        fs::remove_file(file)?;
    }
    Ok(())
}
