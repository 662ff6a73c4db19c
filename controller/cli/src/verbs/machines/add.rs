//! `muster machines add`: the one-time token that enrols a machine.

use std::collections::BTreeSet;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::ids::{MachineName, Tag};
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::MachineView;

use super::add_many::AddMany;
use super::kind::{self, Written};
use super::token::{Destination, Kind, Made, Making, known};
use crate::api::client::Api;
use crate::config::Config;
use crate::flake::options::Options;
use crate::fleet::witnesses;
use crate::release::highest;
use crate::terminal::ask::confirm;
use crate::terminal::error::WithHint as _;
use crate::terminal::table;

#[derive(Debug, Args)]
pub struct Add {
    #[arg(required_unless_present = "from_flake", conflicts_with = "from_flake")]
    machine: Option<MachineName>,
    /// Add every machine of the flake that the controller does not know, in one request
    #[arg(long, conflicts_with_all = ["class", "system", "replace"], requires = "tokens_go_to")]
    from_flake: bool,
    #[command(flatten)]
    to: Destination,
    /// With --from-flake: make new tokens for machines that have not used theirs, too
    #[arg(long, requires = "from_flake")]
    invited: bool,
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
    /// A tag, to update it as @TAG; may be repeated [default: the tags it has]
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
        let usual = config.file.flake.clone().unwrap_or_else(|| ".".to_owned());
        match self.machine.clone() {
            Some(machine) => self.one(machine, &usual, config, api).await,
            None => {
                let many = AddMany {
                    reference: self.flake.unwrap_or(usual),
                    options: self.options,
                    tags: self.tags.into_iter().collect(),
                    hours: self.hours,
                    invited: self.invited,
                    to: self.to,
                };
                many.run(config, api).await
            }
        }
    }

    async fn one(self, machine: MachineName, usual: &str, config: &Config, api: &Api) -> Result<()> {
        let written = Written { class: self.class, system: self.system.clone() };
        let (class, system) =
            kind::find(&machine, &written, self.flake.as_deref(), usual, &self.options).await?;
        let making = Making::prepare(config, api, self.hours).await?;
        let known = known(api, &machine).await?;
        if self.replace && known.is_none() {
            return Err(anyhow!("the controller knows no machine {machine}: there is nothing to replace"))
                .hint("`muster machines list --all` shows those it knows; without --replace this adds a new one");
        }
        if let Some(old) = known.as_ref().filter(|old| old.class != class) {
            let question = format!("{machine} is a {} machine: make it a {class} one?", old.class);
            if !confirm(&question, self.yes)? {
                return Err(anyhow!("nothing was changed"));
            }
        }
        let lowest = highest::lowest(config, api, &making.trusted, known.as_ref()).await?;
        let tags = self.tags_beside(known.as_ref());
        if self.tags.is_empty() && !tags.is_empty() {
            let kept: Vec<&str> = tags.iter().map(Tag::as_str).collect();
            tell!("{machine} keeps its tags {}; --tag gives it others.", kept.join(", "));
        }
        let kind = Kind { class, system, tags };
        let Made { mut request, token } = making.one(machine, kind, lowest)?;
        request.replace = self.replace;
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

    /// The tags that were given; a machine that is known keeps its tags if none were.
    fn tags_beside(&self, known: Option<&MachineView>) -> BTreeSet<Tag> {
        match known {
            Some(known) if self.tags.is_empty() => known.tags.clone(),
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
    fn a_machine_that_is_known_keeps_its_tags_unless_others_are_given() {
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
        assert_eq!(tags(&[]), ["desk"], "its first token was lost, say");
        assert_eq!(tags(&["--tag", "lab"]), ["lab"]);
    }
}
