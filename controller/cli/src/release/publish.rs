//! Publishing what was signed.

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::api::{OPERATOR_DRAFTS, ProblemCode, operator_machine};
use muster_protocol::draft::{Draft, Drafted};
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::operator::{MachineView, Publication};

use super::drafts::is;
use super::highest::HighestSigned;
use crate::api::client::{Api, Refused};
use crate::config::Config;
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::trust::change;
use crate::trust::roots::Trusted;

/// Publishes one machine's generation. Each stands alone: `done` of `all` were published before it.
pub async fn generation(
    api: &Api,
    machine: &MachineName,
    publication: &Publication,
    (done, all): (usize, usize),
) -> Result<()> {
    let path = format!("{}/generations", operator_machine(machine));
    let published: Result<MachineView> = api.post(&path, publication).await;
    published.map(drop).with_context(|| {
        let generation = publication.generation;
        format!("generation {generation} for {machine} was not published ({done} of {all} were, before it)")
    })
}

/// Publishes a draft with enough signatures, one generation after the other, and ends it.
pub async fn draft(api: &Api, config: &Config, trusted: &mut Trusted, draft: &Draft) -> Result<()> {
    let missing = draft.progress(&trusted.root)?.missing;
    if missing > 0 {
        return Err(anyhow!(
            "draft {} wants {} more",
            draft.id()?.short(),
            count(missing, "signature", "signatures")
        ))
        .hint(format!("another holder runs `muster sign {}`", draft.id()?.short()));
    }
    match &draft.what {
        Drafted::Root { root } => change::publish(api, config, trusted, root.clone()).await?,
        Drafted::Generations { generations } => {
            // Enough operators have signed these numbers, so they count as seen.
            HighestSigned::load(config)?
                .keep(generations.iter().map(|one| (one.machine.clone(), one.publication.generation)));
            for (done, one) in generations.iter().enumerate() {
                let (machine, generation) = (&one.machine, one.publication.generation);
                let published =
                    self::generation(api, machine, &one.publication, (done, generations.len())).await;
                let passed = published
                    .as_ref()
                    .is_err_and(|error| is(error, &[ProblemCode::Conflict, ProblemCode::Sequence]));
                let hint = match passed {
                    true => format!(
                        "see with `muster history {machine}` whether it was published already, and drop the \
                         draft then; if not, have a new one made with `muster update`"
                    ),
                    false => format!("repeat with `muster drafts publish {}`", draft.id()?.short()),
                };
                published.hint(hint)?;
                say!("published generation {generation} for {machine}");
            }
        }
    }
    let dropped: Result<Sha256> = api.post(&format!("{OPERATOR_DRAFTS}/{}/drop", draft.id()?), &()).await;
    match dropped {
        // It may never have been on the controller: a file is enough.
        Err(error)
            if error.downcast_ref::<Refused>().is_none_or(|refused| refused.status.as_u16() != 404) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}
