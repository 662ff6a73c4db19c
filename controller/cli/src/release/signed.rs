//! The target that a threshold of today's operators signed for a machine, from the published files
//! themselves. What the controller says of it is not believed: it is about to be signed again.

use anyhow::{Context as _, Result, anyhow};
use futures_util::StreamExt as _;
use muster_protocol::api::{OPERATOR_SESSION, gated_name, gated_path, target_name, target_path, tuf_path};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::operator::{MachineView, Publication, Session};
use muster_protocol::target::{MAX_TARGET_BYTES, Target};
use muster_protocol::tuf::repository::check_publication;
use serde_json::Value;

use super::highest::{HighestSigned, Seen};
use super::unread;
use crate::api::client::Api;
use crate::terminal::error::WithHint as _;
use crate::trust::roots::Trusted;

const MAX_METADATA_BYTES: usize = 128 * 1024;
/// How many machines' files are fetched at once.
const AT_ONCE: usize = 8;

/// The published target of each machine, in their order; an error if one cannot be verified.
pub async fn targets(
    api: &Api,
    trusted: &Trusted,
    highest: &mut HighestSigned,
    views: &[&MachineView],
) -> Result<Vec<Target>> {
    each(api, trusted, highest, views).await?.into_iter().collect()
}

/// The same, with an error for each machine where it cannot be verified. What is verified is remembered.
pub async fn each(
    api: &Api,
    trusted: &Trusted,
    highest: &mut HighestSigned,
    views: &[&MachineView],
) -> Result<Vec<Result<Target>>> {
    if views.is_empty() {
        return Ok(Vec::new());
    }
    let session: Session = api.post(OPERATOR_SESSION, &()).await?;
    let views: Vec<(MachineView, Option<Seen>)> =
        views.iter().map(|view| ((*view).clone(), highest.published(&view.machine))).collect();
    let each = futures_util::stream::iter(views).map(|(view, seen)| {
        let bearer = session.bearer.as_str();
        async move { target(api, trusted, (&view, seen), bearer).await }
    });
    let found: Vec<Result<Target>> = each.buffered(AT_ONCE).collect().await;
    let verified = found.iter().flatten().map(|target| (target.machine.clone(), Seen::of(target)));
    highest.keep_published(verified);
    Ok(found)
}

/// Refuses a genuine one that is not the newest: others were seen published after it. Pure.
pub fn require_newest(machine: &MachineName, shown: Generation, seen: Option<Seen>) -> Result<()> {
    match seen.filter(|seen| seen.generation > shown) {
        None => Ok(()),
        Some(Seen { generation, .. }) => Err(anyhow!(
            "the controller shows generation {shown} of {machine} as its newest, and generation {generation} \
             was seen published"
        ))
        .hint(format!(
            "it was restored from a backup, or somebody else holds it: publish from the flake, with `muster \
             update {machine}`"
        )),
    }
}

async fn target(
    api: &Api,
    trusted: &Trusted,
    (view, seen): (&MachineView, Option<Seen>),
    bearer: &str,
) -> Result<Target> {
    let machine = &view.machine;
    let published = view.published.as_ref();
    let said = &published.ok_or_else(|| anyhow!("nothing was published for {machine} yet"))?.target;
    let (generation, tuf) = (said.generation, tuf_path(machine));
    require_newest(machine, generation, seen)?;
    let number = generation.get();
    let get = |path: String, most: usize| async move {
        let bytes = api.file(&path, most, Some(bearer)).await?;
        let bytes = bytes.ok_or_else(|| anyhow!("the controller has no {path}"))?;
        String::from_utf8(bytes).with_context(|| format!("{path} is no text"))
    };
    let targets = get(format!("{tuf}/{number}.targets.json"), MAX_METADATA_BYTES).await?;
    let snapshot = get(format!("{tuf}/{number}.snapshot.json"), MAX_METADATA_BYTES).await?;
    // Whether it has a place is what the metadata says: who shows it may have left that out.
    let gated = listed(&targets, &gated_name(machine)).map(|hash| gated_path(machine, &hash));
    let path = gated
        .or_else(|| listed(&targets, &target_name(machine)).map(|hash| target_path(machine, &hash)))
        .ok_or_else(|| anyhow!("generation {generation} of {machine} lists no target"))?;
    let target = get(path, usize::try_from(MAX_TARGET_BYTES).unwrap_or(usize::MAX)).await?;
    unread::require_target(machine, &target)?;
    let publication = Publication { generation, targets, snapshot, target };
    // It may have expired: it gets a new end, and nothing but its signatures and its content counts.
    let always = 0;
    let checked = check_publication(&trusted.root, machine, view.class, &publication, always)
        .with_context(|| format!("what is published for {machine} was not signed by today's operators"))
        .hint(format!("publish it from the flake: `muster update {machine}`"))?;
    Ok(checked.target)
}

/// The hash under which the metadata lists a target. Not verified here.
fn listed(targets: &str, name: &str) -> Option<Sha256> {
    let targets: Value = serde_json::from_str(targets).ok()?;
    targets["signed"]["targets"][name]["hashes"]["sha256"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_genuine_generation_that_is_not_the_newest_is_refused() {
        let of = |number| Generation::new(number).unwrap();
        let machine: MachineName = "tin".parse().unwrap();
        let seen = |number| Some(Seen { generation: of(number), is_gated: false });
        assert!(require_newest(&machine, of(3), None).is_ok());
        assert!(
            require_newest(&machine, of(3), seen(3)).is_ok()
                && require_newest(&machine, of(4), seen(3)).is_ok()
        );
        let refused = require_newest(&machine, of(3), seen(5)).unwrap_err();
        let refused = format!("{refused:#}");
        assert!(refused.contains("shows generation 3 of tin as its newest, and generation 5"), "{refused}");
    }
}
