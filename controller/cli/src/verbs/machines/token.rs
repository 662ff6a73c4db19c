//! Making one-time tokens, and the requests that announce them to the controller.

use std::collections::BTreeSet;
use std::path::PathBuf;

use anyhow::Result;
use base64::Engine as _;
use clap::Args;
use muster_protocol::api::{ProblemCode, operator_machine};
use muster_protocol::clock::Clock as _;
use muster_protocol::enrol::{Secret, Token, pinned};
use muster_protocol::ids::{Generation, MachineName, Sha256, Tag};
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::{AddMachine, MachineView};

use crate::api::client::Api;
use crate::api::tls;
use crate::config::Config;
use crate::release::drafts;
use crate::trust::roots::{self, Trusted};

/// Where the tokens of --from-flake go.
#[derive(Debug, Clone, Args)]
#[group(id = "tokens_go_to", multiple = false)]
pub struct Destination {
    /// With --from-flake: write each token to FOLDER/MACHINE.token, readable by you alone
    #[arg(long, value_name = "FOLDER", requires = "from_flake")]
    pub tokens: Option<PathBuf>,
    /// With --from-flake: print a line of JSON for each machine, with its token
    #[arg(long, requires = "from_flake")]
    pub json: bool,
}

/// What all tokens of one command have in common.
pub struct Making<'a> {
    config: &'a Config,
    pub trusted: Trusted,
    tls_ca: Option<String>,
    expires: i64,
}

/// What a machine is to be.
pub struct Kind {
    pub class: Class,
    pub system: System,
    pub tags: BTreeSet<Tag>,
}

/// A token, and what the controller is told of it.
pub struct Made {
    pub request: AddMachine,
    pub token: Token,
}

impl<'a> Making<'a> {
    pub async fn prepare(config: &'a Config, api: &Api, hours: u32) -> Result<Self> {
        let trusted = roots::follow(api, config).await?;
        trusted.require_operator(&api.public()?)?;
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
        let expires = api.clock.unix_seconds() + i64::from(hours) * 3600;
        Ok(Self { config, trusted, tls_ca, expires })
    }

    /// A token for a machine that has no key yet.
    pub fn one(&self, machine: MachineName, kind: Kind, lowest_generation: Generation) -> Result<Made> {
        let secret = Secret::generate()?;
        let request = AddMachine {
            machine: machine.clone(),
            class: kind.class,
            system: kind.system,
            tags: kind.tags,
            token: secret.token_id(),
            check_key: secret.check_key(),
            expires: self.expires,
            replace: false,
        };
        let token = Token {
            url: self.config.file.url.clone(),
            machine,
            class: kind.class,
            fleet: self.config.file.fleet,
            root: Sha256::of(&self.trusted.bytes),
            root_version: self.trusted.root.version(),
            lowest_generation,
            expires: self.expires,
            secret,
            tls_ca: self.tls_ca.clone(),
        };
        Ok(Made { request, token })
    }
}

/// What the controller knows of a machine; `None` if nothing.
pub async fn known(api: &Api, machine: &MachineName) -> Result<Option<MachineView>> {
    match api.get(&operator_machine(machine)).await {
        Ok(view) => Ok(Some(view)),
        Err(error) if drafts::is(&error, &[ProblemCode::UnknownMachine]) => Ok(None),
        Err(error) => Err(error),
    }
}
