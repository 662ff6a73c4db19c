//! The target that a threshold of today's operators signed for a machine, from the published files
//! themselves. What the controller says of it is not believed: it is about to be signed again.

use anyhow::{Context as _, Result, anyhow};
use futures_util::{StreamExt as _, TryStreamExt as _};
use muster_protocol::api::{OPERATOR_SESSION, gated_path, target_path, tuf_path};
use muster_protocol::ids::Sha256;
use muster_protocol::operator::{MachineView, Publication, Session};
use muster_protocol::target::{MAX_TARGET_BYTES, Target};
use muster_protocol::tuf::repository::check_publication;
use serde_json::Value;

use super::unread;
use crate::api::client::Api;
use crate::terminal::error::WithHint as _;
use crate::trust::roots::Trusted;

const MAX_METADATA_BYTES: usize = 128 * 1024;
/// How many machines' files are fetched at once.
const AT_ONCE: usize = 8;

/// The published target of each machine, in their order; an error if one cannot be verified.
pub async fn targets(api: &Api, trusted: &Trusted, views: &[&MachineView]) -> Result<Vec<Target>> {
    if views.is_empty() {
        return Ok(Vec::new());
    }
    let session: Session = api.post(OPERATOR_SESSION, &()).await?;
    let views: Vec<MachineView> = views.iter().copied().cloned().collect();
    let each = futures_util::stream::iter(views).map(|view| {
        let bearer = session.bearer.as_str();
        async move { target(api, trusted, &view, bearer).await }
    });
    each.buffered(AT_ONCE).try_collect().await
}

async fn target(api: &Api, trusted: &Trusted, view: &MachineView, bearer: &str) -> Result<Target> {
    let machine = &view.machine;
    let published = view.published.as_ref();
    let said = &published.ok_or_else(|| anyhow!("nothing was published for {machine} yet"))?.target;
    let (generation, tuf) = (said.generation, tuf_path(machine));
    let number = generation.get();
    let get = |path: String, most: usize| async move {
        let bytes = api.file(&path, most, Some(bearer)).await?;
        let bytes = bytes.ok_or_else(|| anyhow!("the controller has no {path}"))?;
        String::from_utf8(bytes).with_context(|| format!("{path} is no text"))
    };
    let targets = get(format!("{tuf}/{number}.targets.json"), MAX_METADATA_BYTES).await?;
    let snapshot = get(format!("{tuf}/{number}.snapshot.json"), MAX_METADATA_BYTES).await?;
    let name = said.listed_as();
    let hash = listed(&targets, &name)
        .ok_or_else(|| anyhow!("generation {generation} of {machine} does not list {name}"))?;
    let path = match said.rollout {
        Some(_) => gated_path(machine, &hash),
        None => target_path(machine, &hash),
    };
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
