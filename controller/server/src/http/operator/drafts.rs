//! Drafts: storing, listing and dropping them. A root holder who is not an operator may see and sign drafts
//! of roots.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use muster_protocol::api::ProblemCode;
use muster_protocol::draft::{Draft, DraftView, Drafted, MAX_DRAFT_BYTES};
use muster_protocol::ids::Sha256;

use crate::core::drafts::{self, require_concerned};
use crate::core::rows::StoredDraft;
use crate::http::auth::operator::SignedByKeyholder;
use crate::http::body::Document;
use crate::http::heavy::Long;
use crate::http::problem::{Refused, refuse};
use crate::http::rollouts::plans_of;
use crate::http::state::{App, Shared};
use crate::roots::Chain;
use crate::threads;

impl Document for Draft {
    const WHAT: &'static str = "a draft";
    const LIMIT: usize = MAX_DRAFT_BYTES;
}

/// Stores a signed draft, or adds its signatures to the stored one.
pub async fn keep(
    State(app): State<Shared>,
    SignedByKeyholder(signed): SignedByKeyholder<Draft>,
) -> Result<Json<DraftView>, Refused> {
    let (signed, draft) = signed.split();
    let (services, context) = (&app.services, signed.audit_context());
    let chain = services.roots.current();
    require_concerned(chain.newest(), &draft, &signed.by)?;
    let (draft, now) = (drafts::received(draft, &context), services.now_s());
    // There may be thousands of signatures to verify.
    let (draft, targets) = tokio::task::spawn_blocking(move || {
        let targets = drafts::check(&draft, &chain.fleet(), chain.newest(), now)?;
        Ok::<_, drafts::DraftRefusal>((draft, targets))
    })
    .await
    .map_err(|_| {
        refuse(StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal, "the check was interrupted: repeat")
    })??;
    let named = targets.iter().filter_map(|target| target.rollout.map(|place| place.plan));
    let plans = plans_of(&app, named.collect()).await?;
    for target in &targets {
        plans.place(target).map_err(|source| drafts::misplaced(target, source))?;
        let machine = services.store.machine(&target.machine).await?;
        drafts::require_next(target, machine.as_ref(), services.roots.current().newest().epoch())?;
    }
    let chain = services.roots.current();
    let kept = services.store.keep_draft(&draft, chain.newest(), &context).await?;
    tracing::info!(draft = kept.id.short(), by = signed.by.short(), "a draft waits for signatures");
    Ok(Json(view(&app, &chain, &kept).await?))
}

/// The draft, with the reason why it cannot be published, if there is one.
async fn view(app: &App, chain: &Chain, stored: &StoredDraft) -> Result<DraftView, Refused> {
    let (services, root) = (&app.services, chain.newest());
    let check = || stored.draft.check(&chain.fleet(), root, services.now_s());
    let unsound = threads::on(usize::MAX, check).err();
    let mut void = unsound.map(|error| error.to_string());
    if let Drafted::Generations { generations } = &stored.draft.what {
        for one in generations {
            if void.is_some() {
                break;
            }
            let machine = services.store.machine(&one.machine).await?;
            let (drafted, epoch) = (one.publication.generation, services.roots.current().newest().epoch());
            let current = drafts::require_current(&one.machine, drafted, machine.as_ref(), epoch);
            void = current.err().map(|why| why.to_string());
        }
    }
    Ok(threads::on(usize::MAX, || drafts::view(stored, root, void))?)
}

pub async fn list(
    State(app): State<Shared>,
    SignedByKeyholder(signed): SignedByKeyholder,
) -> Result<Long<Vec<DraftView>>, Refused> {
    let chain = app.services.roots.current();
    let mut views = Vec::new();
    for stored in app.services.store.drafts(app.services.now_s()).await? {
        if require_concerned(chain.newest(), &stored.draft, &signed.by).is_ok() {
            views.push(view(&app, &chain, &stored).await?);
        }
    }
    Ok(Long(views))
}

pub async fn show(
    State(app): State<Shared>,
    Path(id): Path<String>,
    SignedByKeyholder(signed): SignedByKeyholder,
) -> Result<Long<Draft>, Refused> {
    let stored = app.services.store.draft(&id, app.services.now_s()).await?;
    require_concerned(app.services.roots.current().newest(), &stored.draft, &signed.by)?;
    Ok(Long(stored.draft))
}

pub async fn drop(
    State(app): State<Shared>,
    Path(id): Path<String>,
    SignedByKeyholder(signed): SignedByKeyholder,
) -> Result<Json<Sha256>, Refused> {
    let stored = app.services.store.draft(&id, app.services.now_s()).await?;
    require_concerned(app.services.roots.current().newest(), &stored.draft, &signed.by)?;
    app.services.store.drop_draft(&stored.id, &signed.audit_context()).await?;
    Ok(Json(stored.id))
}
