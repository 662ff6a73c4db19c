//! Signs what was planned: published at once if one signature is enough, otherwise drafted for the other
//! operators.

use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::api::OPERATOR_DRAFTS;
use muster_protocol::clock::Clock as _;
use muster_protocol::draft::{DRAFT_SECONDS, Draft, DraftView, Drafted, DraftedGeneration, MAX_GENERATIONS};
use muster_protocol::machine::can_take;
use muster_protocol::operator::{MachinePublication, PUBLISHED_TOGETHER};
use muster_protocol::tuf::repository::{draft_generation, sign_generation};
use muster_server::threads;

use super::drafts;
use super::highest::{HighestSigned, Seen};
use super::plan::Planned;
use super::publish;
use crate::api::client::Api;
use crate::config::Config;
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::trust::roots::Trusted;

const DAY: i64 = 86_400;

/// How signing ended.
pub enum Outcome {
    Published,
    Drafted,
}

pub async fn sign(
    config: &Config,
    api: &Api,
    trusted: &Trusted,
    planned: &[&Planned],
    draft_file: Option<&Path>,
) -> Result<Outcome> {
    for Planned { target, system, .. } in planned {
        // Checks I6 again, between the target as signed and the machine.
        can_take((target.class, system), target.class, &target.system)?;
    }
    let expires = api.clock.unix_seconds() + i64::from(config.file.signature_days) * DAY;
    match trusted.operators().1 {
        1 => {
            publish(api, planned, expires).await?;
            let seen = planned.iter().map(|one| (one.target.machine.clone(), Seen::of(&one.target)));
            HighestSigned::load(config)?.keep_published(seen);
            Ok(Outcome::Published)
        }
        _ => draft(config, api, planned, expires, draft_file).await.map(|()| Outcome::Drafted),
    }
}

/// Signs all generations, then publishes them.
async fn publish(api: &Api, planned: &[&Planned], expires: i64) -> Result<()> {
    let key = api.key()?;
    let sign = |Planned { target, .. }: &&Planned| -> Result<MachinePublication> {
        let publication = sign_generation(target, expires, &[key.as_ref()])?;
        Ok(MachinePublication { machine: target.machine.clone(), publication })
    };
    // An agent is asked for one signature after the other: it may ask its user for each.
    let signed = match key.is_in_memory() {
        true => threads::on(usize::MAX, || threads::for_all(planned, sign)),
        false => planned.iter().map(sign).collect(),
    };
    let signed = signed.into_iter().collect::<Result<Vec<_>>>()?;
    let published = publish::generations(api, &signed).await;
    match signed.len() > PUBLISHED_TOGETHER {
        true => published.hint("repeat the command: it goes on with what is not published yet")?,
        false => published?,
    }
    for Planned { target, .. } in planned {
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
        count(view.missing, "signature", "signatures")
    );
    Ok(())
}
