//! Publishing the generations of many machines in one request: all of them, or none.
//!
//! What takes long is done before the transaction: signatures are checked and timestamps signed on every
//! processor. The transaction decides anew, and uses a timestamp only if its number is still the next one.

use std::collections::HashMap;

use axum::Json;
use axum::extract::State;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{
    MAX_PUBLICATIONS_BYTES, MachinePublication, Publications, PublicationsTaken,
};
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::metadata::Root;

use crate::core::publication::batch::{BatchRefusal, require_batch};
use crate::core::publication::{NewGeneration, Plans, PublishRefusal, Stored};
use crate::core::rows::Timestamp;
use crate::http::auth::operator::Signed;
use crate::http::body::Document;
use crate::http::problem::Refused;
use crate::http::request_peer::regardless;
use crate::http::rollouts::{named, plans_of};
use crate::http::state::Shared;
use crate::signer::OnlineSigner;
use crate::threads;
use crate::wakers::Fresh;

impl Document for Publications {
    const WHAT: &'static str = "a list of signed generations";
    const LIMIT: usize = MAX_PUBLICATIONS_BYTES;
}

pub async fn publish_all(
    State(app): State<Shared>,
    signed: Signed<Publications>,
) -> Result<Json<PublicationsTaken>, Refused> {
    regardless(published(app, signed)).await
}

async fn published(app: Shared, signed: Signed<Publications>) -> Result<Json<PublicationsTaken>, Refused> {
    let (services, (signed, Publications { generations })) = (&app.services, signed.split());
    require_batch(&generations)?;
    let (chain, now, signer) = (services.roots.current(), services.now_s(), services.signer()?);
    let offered: Vec<_> = generations.iter().map(|one| (&one.machine, one.publication.generation)).collect();
    let stored = services.store.publishing_all(&offered).await?;
    let targets = generations.iter().map(|one| one.publication.target.as_str());
    let plans = plans_of(&app, threads::on(usize::MAX, || targets.filter_map(named).collect())).await?;
    let checked = threads::on(usize::MAX, || {
        threads::for_all(&generations, |one| {
            check(one, (chain.newest(), &plans), stored.get(&one.machine), &signer, now)
        })
    });
    let (mut new, mut timestamps, mut refused) = (Vec::new(), HashMap::new(), Vec::new());
    for (one, checked) in generations.iter().zip(checked) {
        match checked {
            Ok((generation, early)) => {
                new.push(generation);
                timestamps.extend(early.map(|early| (&one.machine, early)));
            }
            Err(refusal) => refused.push((one.machine.clone(), refusal)),
        }
    }
    if !refused.is_empty() {
        return Err(BatchRefusal::Refused { all: generations.len(), refused }.into());
    }
    // Checking takes long enough for an operator to be removed meanwhile, by another controller perhaps.
    services.roots.refresh().await?;
    if services.roots.current().newest().version() != chain.newest().version() {
        return Err(BatchRefusal::NewRoot.into());
    }
    let sign = |machine: &MachineName, last, snapshot: &[u8]| match timestamps.get(machine) {
        Some(early) if early.last == last => Ok(early.timestamp.clone()),
        _ => signer.timestamp(machine, snapshot, last, now),
    };
    let published = services.store.publish_all(&new, &signed.audit_context(), sign).await?;
    let taken =
        PublicationsTaken { published: published.len(), unchanged: generations.len() - published.len() };
    if !published.is_empty() {
        tracing::info!(generations = taken.published, operator = signed.by.short(), "published");
        let root = chain.newest().version();
        let mut timestamps: HashMap<usize, Timestamp> = published.into_iter().collect();
        for (place, MachinePublication { machine, publication }) in generations.into_iter().enumerate() {
            if let Some(Timestamp { bytes: timestamp, .. }) = timestamps.remove(&place) {
                services.wakers.wake_with(&machine, || Fresh { root, publication, timestamp });
            }
        }
    }
    Ok(Json(taken))
}

/// A timestamp that is right if this version is still the last one.
struct Early {
    last: u64,
    timestamp: Timestamp,
}

type Checked<'a> = Result<(NewGeneration<'a>, Option<Early>), PublishRefusal>;

fn check<'a>(
    MachinePublication { machine, publication }: &'a MachinePublication,
    of: (&Root, &Plans),
    stored: Option<&'a Stored>,
    signer: &OnlineSigner,
    now: i64,
) -> Checked<'a> {
    let new = NewGeneration::check_stored(of, machine, stored, publication, now)?;
    let fresh = stored.filter(|stored| stored.published != Some(publication.generation));
    let early = fresh.map(|stored| -> Result<Early, TufError> {
        let last = stored.timestamp_version;
        let timestamp = signer.timestamp(machine, publication.snapshot.as_bytes(), last, now)?;
        Ok(Early { last, timestamp })
    });
    Ok((new, early.transpose()?))
}
