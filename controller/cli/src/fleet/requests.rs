//! Requests to one machine: signed here, and checked by the machine itself.

use anyhow::{Result, anyhow};
use muster_protocol::api::operator_machine;
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::operator::MachineView;
use muster_protocol::request::{Asked, MachineRequest};

use crate::api::client::Api;
use crate::config::Config;
use crate::terminal::error::WithHint as _;
use crate::trust::{roots, understands};

/// How long a request stays valid for a machine that is away, in seconds.
const GOOD_FOR: i64 = 7 * 86_400;

/// Requests a new key in place of the machine's current one.
pub async fn rotate_key(config: &Config, api: &Api, machine: &MachineName) -> Result<()> {
    let view: MachineView = api.get(&operator_machine(machine)).await?;
    let key = view
        .key
        .ok_or_else(|| anyhow!("{machine} is not enrolled, and has no key"))
        .hint("`muster machines list` shows which are")?;
    send(config, api, &view, Asked::RotateKey { key }).await
}

/// Requests another try of the latest generation; returns its number.
pub async fn retry(config: &Config, api: &Api, machine: &MachineName) -> Result<Generation> {
    let view: MachineView = api.get(&operator_machine(machine)).await?;
    let target = view
        .published
        .as_ref()
        .map(|published| published.target.clone())
        .ok_or_else(|| anyhow!("nothing was published for {machine} yet"))
        .hint(format!("sign a generation with `muster update {machine}`"))?;
    let generation = target.generation;
    let asked = Asked::Retry { derivation: target.derivation, generation: Some(generation) };
    send(config, api, &view, asked).await?;
    Ok(generation)
}

async fn send(config: &Config, api: &Api, view: &MachineView, asked: Asked) -> Result<()> {
    let machine = &view.machine;
    // An agent that does not know the kind could not read the reply that carries the request.
    understands::require_signer(&api.public()?, "this request", [view])?;
    roots::follow(api, config).await?.require_operator(&api.public()?)?;
    let now = api.clock.unix_seconds();
    let request = MachineRequest::new(config.file.fleet, machine.clone(), asked, now, GOOD_FOR)?;
    let path = format!("{}/requests", operator_machine(machine));
    let _: MachineView = api.post(&path, &request.sign(api.key()?.as_ref())?).await?;
    Ok(())
}
