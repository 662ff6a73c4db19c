//! Signing what was planned: published at once where one signature is enough, else drafted for the others.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::api::{OPERATOR_DRAFTS, operator_machine};
use muster_protocol::clock::Clock as _;
use muster_protocol::draft::{DRAFT_SECONDS, Draft, DraftView, Drafted, DraftedGeneration, MAX_GENERATIONS};
use muster_protocol::machine::can_take;
use muster_protocol::operator::MachineView;
use muster_protocol::tuf::repository::{draft_generation, sign_generation};

use super::Planned;
use crate::cli::api::Api;
use crate::cli::config::Config;
use crate::cli::error::WithHint as _;
use crate::cli::roots::Trusted;
use crate::cli::{ask, drafts};

const DAY: i64 = 86_400;

/// What became of it.
pub enum Signed {
    Published,
    Drafted,
}

pub async fn sign(
    config: &Config,
    api: &Api,
    trusted: &Trusted,
    planned: &[&Planned],
    draft_file: Option<&Path>,
) -> Result<Signed> {
    for Planned { target, system, .. } in planned {
        // I6 once more, between the target as it is signed and the machine: what was planned is what was checked.
        can_take((target.class, system), target.class, &target.system)?;
    }
    let expires = api.clock.unix_seconds() + i64::from(config.file.signature_days) * DAY;
    match trusted.operators().1 {
        1 => publish(api, planned, expires).await.map(|()| Signed::Published),
        _ => draft(config, api, planned, expires, draft_file).await.map(|()| Signed::Drafted),
    }
}

/// Signs and publishes one machine after the other; each is whole by itself.
async fn publish(api: &Api, planned: &[&Planned], expires: i64) -> Result<()> {
    for (done, Planned { target, .. }) in planned.iter().enumerate() {
        let publication = sign_generation(target, expires, &[api.key()?.as_ref()])?;
        let path = format!("{}/generations", operator_machine(&target.machine));
        let published: Result<MachineView> = api.post(&path, &publication).await;
        published.with_context(|| {
            format!(
                "generation {} for {} was not published ({done} of {} were, before it)",
                target.generation,
                target.machine,
                planned.len()
            )
        })?;
        say!("signed and published generation {} for {}", target.generation, target.machine);
    }
    Ok(())
}

async fn draft(
    config: &Config,
    api: &Api,
    planned: &[&Planned],
    expires: i64,
    file: Option<&Path>,
) -> Result<()> {
    if planned.len() > MAX_GENERATIONS {
        return Err(anyhow!("{} generations are more than one draft holds", planned.len()))
            .hint(format!("name fewer machines: {MAX_GENERATIONS} at most"));
    }
    let generations = planned.iter().map(|Planned { target, .. }| {
        Ok(DraftedGeneration {
            machine: target.machine.clone(),
            class: target.class,
            publication: draft_generation(target, expires)?,
        })
    });
    let draft = Draft {
        fleet: config.file.fleet,
        made_at: api.clock.unix_ms(),
        made_by: api.public()?,
        ends: api.clock.unix_seconds() + DRAFT_SECONDS,
        what: Drafted::Generations { generations: generations.collect::<Result<_>>()? },
    };
    let draft = draft.sign(api.key()?.as_ref())?;
    if let Some(file) = file {
        drafts::write(&draft, file)?;
        say!("The draft is in {}, too; it holds nothing secret.", file.display());
    }
    let view: DraftView = api.post(OPERATOR_DRAFTS, &draft).await.context("the draft was not kept")?;
    say!(
        "Draft {} waits for {} more: another operator runs `muster sign {0}`.",
        view.id.short(),
        ask::count(view.missing, "signature")
    );
    Ok(())
}
