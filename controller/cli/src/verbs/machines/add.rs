//! `muster machines add`: the one-time token that enrols a machine.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use base64::Engine as _;
use clap::Args;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::clock::Clock as _;
use muster_protocol::enrol::{Secret, Token, pinned};
use muster_protocol::ids::{MachineName, Sha256, Tag};
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::{AddMachine, MachineView};

use super::kind::{self, Written};
use crate::api::client::Api;
use crate::api::tls;
use crate::config::Config;
use crate::flake::options::Options;
use crate::fleet::witnesses;
use crate::release::highest;
use crate::terminal::ask::confirm;
use crate::terminal::table;
use crate::trust::roots;

#[derive(Debug, Args)]
pub struct Add {
    machine: MachineName,
    /// nixos or darwin [default: as the flake says]
    #[arg(long)]
    class: Option<Class>,
    /// The Nix system that it builds, aarch64-darwin for example [default: as the flake says, else
    /// x86_64-linux or aarch64-darwin, by class]
    #[arg(long)]
    system: Option<System>,
    /// The flake that knows its class and system [default where neither is written: flake in muster.toml, or
    /// the current folder]
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
    /// The machine is already enrolled; its key is revoked when the new token is used
    #[arg(long)]
    replace: bool,
    /// Do not ask before a machine gets another class
    #[arg(long, short)]
    yes: bool,
}

impl Add {
    pub async fn run(self, config: &Config, api: &Api) -> Result<()> {
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
            if !confirm(&question, self.yes)? {
                return Err(anyhow!("nothing was changed"));
            }
        }
        let lowest = highest::lowest(config, api, &trusted, known.as_ref()).await?;
        let tls_ca = match &config.file.tls_ca {
            None => None,
            Some(path) => {
                let der = tls::certificate_der(&std::fs::read(config.path(path))?)?;
                let whole = base64::engine::general_purpose::STANDARD.encode(&der);
                // An authority that the controller does not send has to be in the token.
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
        // Before anybody can use the token: otherwise its machine's key could not be verified without
        // trusting the controller.
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

    /// The tags that were given; a replaced machine keeps its tags if none were.
    fn tags_beside(&self, known: Option<&MachineView>) -> BTreeSet<Tag> {
        match known {
            Some(known) if self.replace && self.tags.is_empty() => known.tags.clone(),
            _ => self.tags.iter().cloned().collect(),
        }
    }
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
            "machine": "tin", "class": "nixos", "system": "x86_64-linux", "tags": ["desk"],
            "standing": "enrolled", "condition": "up-to-date", "clone_alarm": false,
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
