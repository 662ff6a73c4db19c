//! `muster rollback`: an older generation again, signed as a new one.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::ids::Generation;
use muster_protocol::operator::MachineView;

use crate::config::Config;
use crate::flake::facts::Muster;
use crate::release::rollback::choice::Wanted;
use crate::release::rollback::performed::{Terms, perform};
use crate::release::select::{self, Selector};
use crate::trust::roots;

#[derive(Debug, Args)]
pub struct Rollback {
    /// Machines, or @TAG with a tag that the controller knows; @all, @nixos and @darwin exist by themselves
    #[arg(value_name = "MACHINE | @TAG", required = true)]
    machines: Vec<Selector>,
    /// The generation to go back to [default: of each machine the newest confirmed one with another system]
    #[arg(long, value_name = "GENERATION")]
    to: Option<Generation>,
    #[command(flatten)]
    terms: Terms,
}

impl Rollback {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let config = Config::load(config)?;
        let api = self.terms.signing.api(&config)?;
        let trusted = roots::follow(&api, &config).await?;
        trusted.require_operator(&api.public()?)?;
        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        let chosen = select::select(&self.machines, &machines, &Muster::default(), |_| false)
            .map_err(select::SelectError::with_hint)?;
        let wanted = self.to.map_or(Wanted::OtherSystem, Wanted::Generation);
        let performed = perform(&config, &api, &trusted, (&chosen, wanted), &self.terms).await?;
        Ok(performed.code)
    }
}
