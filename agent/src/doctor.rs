//! `muster-agent doctor`: checks everything that may keep the agent from its work, and says what to do.

mod finding;
mod machine;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::ExitCode;

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::{moment, shown};
use serde::Deserialize;

use self::finding::{FREE_SPACE, bad, doubtful, good};
pub use self::finding::{Finding, Health};
use crate::client::{Client, ClientError};
use crate::config::Config;
use crate::durable;
use crate::identity::{Identity, IdentityError};
use crate::local::{self, LocalError, Status};
use crate::nix::{Nix, RESERVE_BYTES};
use crate::outbox::{self, Outbox};
use crate::platform::Layout;
use crate::process::free_bytes;
use crate::status::{place, profile};
use crate::trust;

/// A larger clock error makes metadata look expired, or not yet valid to TLS.
const MAX_SKEW_SECONDS: i64 = 120;
/// Below this a build is likely to fill the disk.
const COMFORT_BYTES: u64 = 8 * RESERVE_BYTES;
const MAX_METADATA_BYTES: u64 = 64 * 1024;
const AS_ROOT: &str = "run this as root: sudo muster-agent doctor";

/// Prints every finding. The exit code is a failure if one is bad.
pub async fn run(config: &Config) -> ExitCode {
    let findings = examine(config).await;
    for finding in &findings {
        let mark = match finding.health {
            Health::Good => "ok  ",
            Health::Doubtful => "warn",
            Health::Bad => "BAD ",
        };
        let mut lines = shown::lines(&finding.detail);
        say!("{mark} {:<11} {}", finding.about, lines.next().unwrap_or_default());
        for line in lines {
            say!("                 {line}");
        }
        if let Some(remedy) = &finding.remedy {
            say!("                 -> {remedy}");
        }
    }
    let worst = findings.iter().any(|finding| finding.health == Health::Bad);
    if worst { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Checks everything; changes nothing.
pub async fn examine(config: &Config) -> Vec<Finding> {
    let now = SystemClock::new().unix_seconds();
    let mut findings = vec![state_folder(&config.state_dir)];
    // Being unreadable for other users is not a fault.
    if findings.iter().any(|finding| finding.remedy.as_deref() == Some(AS_ROOT)) {
        return findings;
    }
    let identity = match Identity::load(config) {
        Ok(Some(identity)) => {
            let words = format!("as {} ({}, {})", identity.machine, identity.class, identity.system);
            findings.push(good("enrolment", words));
            identity
        }
        Ok(None) => {
            let remedy = "run 'muster-agent enrol -' with a token from 'muster machines add'";
            findings.push(bad("enrolment", "this machine is not enrolled", remedy));
            return findings;
        }
        Err(error) => {
            // A file that cannot be read is not lost: enrolling again would destroy what may be in order.
            let remedy = match &error {
                IdentityError::Read { source, .. } => durable::read_remedy(source),
                IdentityError::Write { source, .. } => durable::remedy(source),
                _ => "enrol again with a new token and --replace",
            };
            findings.push(bad("enrolment", error.to_string(), remedy));
            return findings;
        }
    };
    let status = local::status(config).await;
    findings.push(agent(&status));
    findings.extend(status.as_ref().ok().and_then(turn));
    findings.extend(membership(status.ok()));
    findings.extend(controller(&identity, config, now).await);
    findings.push(metadata(config, now));
    let layout = Layout::new(config, identity.class);
    findings.push(nix(config, &layout));
    findings.push(disk("state disk", &config.state_dir));
    findings.push(builds(config));
    findings.push(disk("store disk", &layout.system("/nix")));
    findings.push(leftovers(config));
    findings.push(systems(&layout));
    findings.push(reports(config));
    findings.extend(machine::examine(config, identity.class, now.saturating_mul(1000)));
    findings
}

fn state_folder(folder: &Path) -> Finding {
    let about = "state";
    match fs::metadata(folder) {
        Err(error) => {
            let remedy = match error.kind() {
                ErrorKind::NotFound => "'muster-agent enrol -' makes the folder",
                _ if !rustix::process::geteuid().is_root() => AS_ROOT,
                _ => "check this disk, and the folders above",
            };
            bad(about, format!("{} cannot be inspected: {error}", folder.display()), remedy)
        }
        Ok(data) if data.uid() != rustix::process::geteuid().as_raw() => {
            if !rustix::process::geteuid().is_root() {
                let words = format!("only root may look into {}", folder.display());
                return bad(about, words, AS_ROOT);
            }
            let words = format!("{} belongs to user {}", folder.display(), data.uid());
            bad(about, words, format!("chown root {}", folder.display()))
        }
        Ok(data) if data.mode() & 0o077 != 0 => {
            let words = format!("{} is open to others (mode {:o})", folder.display(), data.mode() & 0o777);
            bad(about, words, format!("chmod 700 {}", folder.display()))
        }
        Ok(_) => match crate::surroundings::obstacle(folder, false) {
            Some(obstacle) => bad(about, obstacle.problem, obstacle.remedy),
            None => good(about, format!("{} is accessible only to root", folder.display())),
        },
    }
}

fn agent(status: &Result<Status, LocalError>) -> Finding {
    let about = "agent";
    match status {
        Ok(status) if status.agent == env!("CARGO_PKG_VERSION") => good(about, "running"),
        Ok(status) => {
            let words = format!("version {} runs, this is {}", status.agent, env!("CARGO_PKG_VERSION"));
            doubtful(about, words, "restart it when no switch is under way")
        }
        Err(error @ LocalError::NotRunning) => {
            let remedy = match std::env::consts::OS {
                "macos" => {
                    "'sudo launchctl bootstrap system /Library/LaunchDaemons/org.muster.agent.plist', then \
                     look at its log"
                }
                _ => "'systemctl start muster-agent', then 'journalctl -u muster-agent'",
            };
            bad(about, error.to_string(), remedy)
        }
        Err(error) => doubtful(about, error.to_string(), "look at the agent's log"),
    }
}

/// What the machine waits for in a rollout.
fn turn(status: &Status) -> Option<Finding> {
    let rollout = status.rollout.as_ref()?;
    let about = "rollout";
    let Some(why) = &rollout.waits else { return Some(good(about, place(rollout))) };
    let words = format!("{}: {why}", place(rollout));
    let waits_for_others = rollout.since.is_some();
    Some(if waits_for_others {
        good(about, words)
    } else {
        doubtful(about, words, "an operator finds out with 'muster rollout list'")
    })
}

/// Whether the controller still accepts this machine, as far as the running agent knows.
fn membership(status: Option<Status>) -> Option<Finding> {
    let status = status?;
    let words = status.shut_out?;
    let remedy = format!(
        "have an operator run 'muster machines add {} --replace', then run 'muster-agent enrol --replace' \
         with that token",
        status.machine
    );
    Some(bad("membership", words, remedy))
}

async fn controller(identity: &Identity, config: &Config, now: i64) -> Vec<Finding> {
    let about = "controller";
    let client = match Client::of(config, identity) {
        Ok(client) => client,
        Err(error) => {
            let remedy = match error {
                // Not the enrolment: the proxy in agent.toml, or this machine's certificates.
                ClientError::Setup(_) => "fix what the message names, for example in agent.toml",
                _ => "enrol again with a new token and --replace",
            };
            return vec![bad(about, error.to_string(), remedy)];
        }
    };
    let (fleet, clock) = match client.probe().await {
        Ok(answer) => answer,
        Err(error) => {
            // Without its authority curl would blame a good certificate.
            let ca = identity.ca_file.as_ref().map(|file| format!("--cacert {} ", file.display()));
            let remedy = format!(
                "check this machine's network, and that the controller runs: curl {}{}/v1/fleet",
                ca.unwrap_or_default(),
                client.url()
            );
            return vec![bad(about, error.to_string(), remedy)];
        }
    };
    if fleet.fleet != identity.fleet {
        let words = format!("{} serves another fleet ({})", client.url(), fleet.fleet.short());
        return vec![bad(about, words, "check the address; enrol again if the fleet was recreated")];
    }
    let mut findings = vec![good(about, format!("{} answers (version {})", client.url(), fleet.version))];
    let skew = clock.map_or(0, |clock| now - clock);
    findings.push(if skew.abs() > MAX_SKEW_SECONDS {
        let words = format!(
            "this machine's clock is {} {} the controller's",
            moment::span(skew.abs()),
            if skew > 0 { "ahead of" } else { "behind" }
        );
        doubtful("clock", words, "set the clock (timedatectl, or System Settings on a Mac)")
    } else {
        good("clock", format!("within {MAX_SKEW_SECONDS} s of the controller's"))
    });
    findings
}

/// The part of metadata that says how long it is valid.
#[derive(Deserialize)]
struct Dated {
    signed: Expires,
}
#[derive(Deserialize)]
struct Expires {
    expires: jiff::Timestamp,
}

fn metadata(config: &Config, now: i64) -> Finding {
    let about = "metadata";
    let mut earliest: Option<(&str, jiff::Timestamp)> = None;
    for name in ["root.json", "timestamp.json", "snapshot.json", "targets.json"] {
        let bytes = durable::read(&config.state(trust::FOLDER).join(name), MAX_METADATA_BYTES);
        if let Err(error) = &bytes {
            return bad(about, format!("{name} cannot be read: {error}"), durable::read_remedy(error));
        }
        let dated = bytes.ok().flatten().and_then(|bytes| serde_json::from_slice::<Dated>(&bytes).ok());
        match dated {
            Some(dated) if earliest.is_none_or(|(_, at)| dated.signed.expires < at) => {
                earliest = Some((name, dated.signed.expires));
            }
            Some(_) => {}
            None if name == "root.json" => {
                return bad(
                    about,
                    "the pinned root is missing",
                    "enrol again with a new token and --replace",
                );
            }
            None => {}
        }
    }
    match earliest {
        Some((name, at)) if at.as_second() <= now => {
            let remedy = match name {
                "timestamp.json" => {
                    "the agent fetches a new one at its next check; see whether it reaches the controller"
                }
                "root.json" => "an operator must sign a new root and give it to the controller",
                _ => "an operator must publish again: muster update",
            };
            doubtful(about, format!("{name} expired {at}: nothing new is accepted"), remedy)
        }
        Some((name, at)) => good(about, format!("fresh; {name} is the first to expire, {at}")),
        None => bad(about, "there is no metadata", "enrol again with a new token and --replace"),
    }
}

fn nix(config: &Config, layout: &Layout) -> Finding {
    let nix = Nix::new(config, layout);
    match nix.find("nix").and_then(|path| Ok((path, nix.version()?))) {
        Ok((path, version)) => good("nix", format!("{version} at {}", path.display())),
        Err(error) => {
            bad("nix", error.to_string(), "install Nix, or put it at /nix/var/nix/profiles/default/bin")
        }
    }
}

/// Whether Nix can build where it does.
fn builds(config: &Config) -> Finding {
    let folder = config.build_folder();
    match crate::surroundings::obstacle(&folder, true) {
        Some(obstacle) => bad("builds", obstacle.problem, obstacle.remedy),
        None => good("builds", format!("Nix builds in {}", folder.display())),
    }
}

fn disk(about: &'static str, folder: &Path) -> Finding {
    let there = folder.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"));
    match free_bytes(there) {
        Ok(free) if free < RESERVE_BYTES => {
            let words = format!("{} MiB free at {}", free >> 20, there.display());
            bad(about, words, FREE_SPACE)
        }
        Ok(free) if free < COMFORT_BYTES => {
            let words = format!("only {} MiB free at {}", free >> 20, there.display());
            doubtful(about, words, FREE_SPACE)
        }
        Ok(free) => good(about, format!("{} MiB free at {}", free >> 20, there.display())),
        Err(error) => doubtful(about, format!("{}: {error}", there.display()), "look at this disk"),
    }
}

fn leftovers(config: &Config) -> Finding {
    let about = "switch";
    let open = config.state("transaction.json").exists();
    let socket = config.state(local::SOCKET).exists();
    match (open, socket) {
        (false, _) => good(about, "no switch is under way"),
        (true, true) => good(about, "a switch is under way"),
        (true, false) => bad(
            about,
            "a switch has begun but the agent is not running",
            "start the agent: it finishes or undoes it",
        ),
    }
}

fn systems(layout: &Layout) -> Finding {
    let about = "system";
    let running = fs::read_link(layout.current_system()).ok().and_then(|text| layout.logical(&text));
    match (running, profile(layout)) {
        (Some(running), Some(profile)) if running == profile => good(about, format!("{running} runs")),
        (Some(running), Some(profile)) => {
            let words = format!("{running} runs, but the profile is {profile}");
            doubtful(about, words, "reboot, or publish again: the profile is what runs after a reboot")
        }
        (None, _) => {
            bad(about, "/run/current-system does not point to a system", "activate the system by hand once")
        }
        (_, None) => bad(about, "there is no system profile", "publish a generation with the action switch"),
    }
}

fn reports(config: &Config) -> Finding {
    match Outbox::count(&config.state(outbox::FOLDER)) {
        0 => good("reports", "the controller has them all"),
        few @ 1..=100 => good("reports", format!("{few} wait for the controller")),
        many => {
            doubtful("reports", format!("{many} wait"), "see the controller's log for why it rejects them")
        }
    }
}
