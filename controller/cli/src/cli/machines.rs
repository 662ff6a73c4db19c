//! `muster machines`: who belongs to the fleet.

mod accept;
mod ask;
mod in_flake;
mod kind;
mod remove;
mod witnesses;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use base64::Engine as _;
use clap::{Args, Subcommand};
use muster_protocol::api::{OPERATOR_MACHINES, operator_machine};
use muster_protocol::clock::Clock as _;
use muster_protocol::enrol::{Secret, Token, pinned};
use muster_protocol::ids::{MachineName, Sha256, Tag};
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::{AddMachine, MachineView};
use muster_protocol::terminal;

use self::kind::Written;
use super::api::Api;
use super::ask::agreed;
use super::config::Config;
use super::{roots, seen, status, table, tls};
use crate::flake::options::Options;

#[derive(Debug, Subcommand)]
pub enum Machines {
    /// Add a machine and print the one-time token that enrols it
    Add(Add),
    /// List the machines that the controller knows, or with --flake those that a flake describes
    List {
        /// List what this flake describes [default without REF: the current folder]; asks no controller
        #[arg(long, value_name = "REF", num_args = 0..=1, default_missing_value = ".")]
        flake: Option<String>,
        /// Evaluate no machine for its system where the inventory does not say it
        #[arg(long, requires = "flake")]
        without_systems: bool,
        #[command(flatten)]
        options: Options,
        /// Those that were removed or revoked, too
        #[arg(long, conflicts_with = "flake")]
        all: bool,
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Show all that is known of one machine
    Show {
        machine: MachineName,
        #[arg(long)]
        json: bool,
    },
    /// Register a machine's own key, and encrypt to it the secrets that it should read
    Accept(accept::Accept),
    /// End a machine's access at once; what it runs stays as it is
    Revoke { machine: MachineName },
    /// Ask a machine for a new key, by a signed request; it makes one at its next contact, and the old one ends
    RotateKey { machine: MachineName },
    /// Have a machine try its latest generation again though it failed, by a signed request
    Retry { machine: MachineName },
    /// End a clone alarm, once you know what it was
    Acknowledge { machine: MachineName },
    /// Revoke a machine, take its secrets away, and say which of them want new values
    Remove(remove::Remove),
}

#[derive(Debug, Args)]
pub struct Add {
    machine: MachineName,
    /// nixos or darwin [default: as the flake says]
    #[arg(long)]
    class: Option<Class>,
    /// The Nix system that it builds, aarch64-darwin for example [default: as the flake says, else x86_64-linux or
    /// aarch64-darwin, by class]
    #[arg(long)]
    system: Option<System>,
    /// The flake that knows its class and system [default where neither is written: flake in muster.toml, or the current
    /// folder]
    #[arg(long, value_name = "REF")]
    flake: Option<String>,
    #[command(flatten)]
    options: Options,
    /// A tag, to update it as @TAG; may be repeated
    #[arg(long = "tag", value_name = "TAG")]
    tags: Vec<Tag>,
    /// How long the token is good, in hours
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u32).range(1..=8760))]
    hours: u32,
    /// The machine is enrolled already and its key shall end when the new token is used
    #[arg(long)]
    replace: bool,
    /// Do not ask before a machine gets another class
    #[arg(long, short)]
    yes: bool,
}

impl Machines {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        match self {
            Self::Accept(accept) => accept.run(config).await,
            Self::Remove(remove) => remove.run(config).await,
            other => other.ask(config).await.map(|()| ExitCode::SUCCESS),
        }
    }

    async fn ask(self, config: Option<PathBuf>) -> Result<()> {
        if let Self::List { flake: Some(reference), without_systems, options, json, .. } = &self {
            return in_flake::list(reference, options, !without_systems, *json).await;
        }
        let config = Config::load(config)?;
        let api = match &self {
            Self::List { .. } | Self::Show { .. } => Api::to_read(&config)?,
            _ => Api::open(&config)?,
        };
        match self {
            // These change files, and are run above.
            Self::Accept(_) | Self::Remove(_) => Ok(()),
            Self::Add(add) => add.run(&config, &api).await,
            Self::List { json, all, .. } => list(&api, json, all).await,
            Self::Show { machine, json } => {
                let view: MachineView = api.get(&operator_machine(&machine)).await?;
                if json { print_json(&view) } else { show(&view, api.clock.unix_ms()) }
            }
            Self::RotateKey { machine } => {
                ask::rotate_key(&config, &api, &machine).await?;
                say!(
                    "{machine} is asked for a new key. `muster machines show {machine}` tells when it has one."
                );
                Ok(())
            }
            Self::Retry { machine } => {
                let generation = ask::retry(&config, &api, &machine).await?;
                say!(
                    "{machine} is asked to try generation {generation} again. `muster machines show {machine}` tells what becomes of it."
                );
                Ok(())
            }
            Self::Acknowledge { machine } => {
                let path = format!("{}/acknowledge", operator_machine(&machine));
                let _: MachineView = api.post(&path, &()).await?;
                say!("The clone alarm of {machine} is ended. It comes back if the copy does.");
                Ok(())
            }
            Self::Revoke { machine } => {
                let path = format!("{}/revoke", operator_machine(&machine));
                let _: MachineView = api.post(&path, &()).await?;
                say!("{machine} is revoked: the controller no longer answers it. Its system stays as it is.");
                Ok(())
            }
        }
    }
}

impl Add {
    async fn run(self, config: &Config, api: &Api) -> Result<()> {
        let written = Written { class: self.class, system: self.system.clone() };
        let usual = config.file.flake.clone().unwrap_or_else(|| ".".to_owned());
        let (class, system) =
            kind::find(&self.machine, &written, self.flake.as_deref(), &usual, &self.options).await?;
        let trusted = roots::follow(api, config).await?;
        trusted.require_operator(&api.public()?)?;
        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        let known = machines.into_iter().find(|view| view.machine == self.machine);
        if let Some(old) = known.as_ref().filter(|old| old.class != class) {
            let question = format!("{} is a {} machine: make it a {class} one?", self.machine, old.class);
            if !agreed(&question, self.yes)? {
                return Err(anyhow!("nothing was changed"));
            }
        }
        let lowest = seen::lowest(config, api, &trusted, known.as_ref()).await?;
        let tls_ca = match &config.file.tls_ca {
            None => None,
            Some(path) => {
                let der = tls::certificate_der(&std::fs::read(config.path(path))?)?;
                let whole = base64::engine::general_purpose::STANDARD.encode(&der);
                // One that a controller does not send has to travel in the token.
                let sent = tls::sends(api.url(), &der).await;
                Some(if sent { pinned(&Sha256::of(&der)) } else { whole })
            }
        };
        let expires = api.clock.unix_seconds() + i64::from(self.hours) * 3600;
        let secret = Secret::generate()?;
        let request = AddMachine {
            machine: self.machine.clone(),
            class,
            system,
            tags: self.tags_beside(known.as_ref()),
            token: secret.token_id(),
            check_key: secret.check_key(),
            expires,
            replace: self.replace,
        };
        let token = Token {
            url: config.file.url.clone(),
            machine: self.machine,
            class,
            fleet: config.file.fleet,
            root: Sha256::of(&trusted.bytes),
            root_version: trusted.root.version(),
            lowest_generation: lowest,
            expires,
            secret,
            tls_ca,
        };
        let _: MachineView = api.post(OPERATOR_MACHINES, &request).await?;
        // Before anybody can use the token: without this its machine's key could not be told from the controller's word.
        witnesses::keep(config, &token.machine, &token.secret.witness())?;
        tell!(
            "{} may enrol within {} with this token, once. On the machine, as root, paste it into:  \
             muster-agent enrol -",
            token.machine,
            table::span(i64::from(self.hours) * 3600)
        );
        say!("{}", token.encode()?);
        Ok(())
    }

    /// The tags that were given; a machine that is replaced keeps those that it has where none were.
    fn tags_beside(&self, known: Option<&MachineView>) -> BTreeSet<Tag> {
        match known {
            Some(known) if self.replace && self.tags.is_empty() => known.tags.clone(),
            _ => self.tags.iter().cloned().collect(),
        }
    }
}

async fn list(api: &Api, json: bool, all: bool) -> Result<()> {
    let (machines, gone) = status::members(api.get(OPERATOR_MACHINES).await?, all);
    if json {
        return print_json(&machines);
    }
    if machines.is_empty() {
        say!("No machines yet. Add one with `muster machines add NAME --flake .`.");
        status::tell_of_gone(gone);
        return Ok(());
    }
    let mut rows = table::table(["MACHINE", "CLASS", "SYSTEM", "TAGS", "CONDITION"]);
    for view in &machines {
        rows.add_row([
            view.machine.as_str().into(),
            view.class.as_str().into(),
            view.system.as_str().into(),
            tags(view).into(),
            table::condition_cell(view.condition),
        ]);
    }
    rows.print();
    status::tell_of_gone(gone);
    Ok(())
}

fn tags(view: &MachineView) -> String {
    view.tags.iter().map(Tag::as_str).collect::<Vec<_>>().join(", ")
}

fn show(view: &MachineView, now: i64) -> Result<()> {
    let mut rows = table::table(["MACHINE", view.machine.as_str()]);
    let mut row = |name: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            rows.add_row([name.into(), table::long_cell(&value)]);
        }
    };
    row("condition", Some(view.condition.as_str().to_owned()));
    row("class", Some(view.class.to_string()));
    row("system", Some(view.system.to_string()));
    row("tags", Some(tags(view)));
    row("runs", view.runs.as_ref().map(|runs| runs.running.to_string()));
    row("generation", view.runs.as_ref().and_then(|runs| runs.generation).map(|n| n.to_string()));
    row(
        "published",
        view.published.as_ref().map(|published| {
            format!("generation {}, {}", published.target.generation, published.target.output)
        }),
    );
    row("signature ends", view.published.as_ref().map(|published| table::date(published.expires * 1000)));
    row("phase", view.phase.map(|phase| phase.as_str().to_owned()));
    row("note", view.note.clone());
    for (name, words) in status::dangers(view, now) {
        row(name, Some(words));
    }
    if view.key_rotation_asked {
        row("new key", Some("asked for, and not made yet".to_owned()));
    }
    row("key changed", view.key_rotated_at.map(table::date));
    row("last seen", view.last_seen.map(|then| table::ago(then, now)));
    row("enrolled", view.enrolled_at.map(table::date));
    row("clock", view.clock_skew_ms.map(|ms| format!("{:+.1} s", ms as f64 / 1000.0)));
    row("agent", view.agent.clone());
    row("key", view.key.map(|key| key.hex()));
    row("age", view.age.clone());
    rows.print();
    Ok(())
}

pub fn print_json(value: &impl serde::Serialize) -> Result<()> {
    Ok(terminal::json(value)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        add: Add,
    }

    #[test]
    fn a_machine_that_is_replaced_keeps_its_tags_unless_others_are_given() {
        let known: MachineView = serde_json::from_value(serde_json::json!({
            "machine": "tin", "class": "nixos", "system": "x86_64-linux", "tags": ["desk"], "standing": "enrolled",
            "condition": "up-to-date", "clone_alarm": false,
            "holds": {"root": 1, "timestamp": 1, "snapshot": 1, "targets": 1},
        }))
        .unwrap();
        let tags = |more: &[&str]| {
            let line = [&["add", "tin", "--class", "nixos"], more].concat();
            let add = <Line as clap::Parser>::parse_from(line).add;
            add.tags_beside(Some(&known)).iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(tags(&["--replace"]), ["desk"]);
        assert_eq!(tags(&["--replace", "--tag", "lab"]), ["lab"]);
        assert!(tags(&[]).is_empty());
    }
}
