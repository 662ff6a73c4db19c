//! Drafts: kept, shown and dropped. A root holder who is no operator may see and sign drafts of roots.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use muster_protocol::api::ProblemCode;
use muster_protocol::draft::{
    Checked, DRAFT_SECONDS, Draft, DraftError, DraftKind, DraftView, Drafted, MAX_DRAFT_BYTES,
};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::can_take;
use muster_protocol::operator::Standing;

use super::view::known;
use crate::core::drafts::DraftRefusal;
use crate::core::rows::StoredDraft;
use crate::http::auth::operator::SignedByKeyholder;
use crate::http::body::Document;
use crate::http::problem::{Refused, refuse};
use crate::http::state::{App, Shared};
use crate::roots::Chain;

impl Document for Draft {
    const WHAT: &'static str = "a draft";
    const LIMIT: usize = MAX_DRAFT_BYTES;
}

/// Whether this key may have to do with this draft.
fn require_concerned(chain: &Chain, draft: &Draft, by: &PublicKey) -> Result<(), Refused> {
    if chain.is_operator(by) || matches!(draft.what, Drafted::Root { .. }) {
        return Ok(());
    }
    let message = "a root key signs roots alone: generations are the operators' to sign";
    Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message))
}

/// Keeps a draft that somebody signed, or adds the signatures of one that is kept already.
pub async fn keep(
    State(app): State<Shared>,
    SignedByKeyholder(signed): SignedByKeyholder<Draft>,
) -> Result<Json<DraftView>, Refused> {
    let (signed, mut draft) = signed.split();
    let chain = app.services.roots.current();
    require_concerned(&chain, &draft, &signed.by)?;
    // What is not signed is not the sender's to choose.
    let now = app.services.now_s();
    (draft.made_at, draft.made_by, draft.ends) =
        (app.services.now(), signed.by, now.saturating_add(DRAFT_SECONDS));
    // Thousands of signatures may want to be checked.
    let (draft, checked) = tokio::task::spawn_blocking(move || {
        let checked = draft.check(&chain.fleet(), chain.newest(), now)?;
        if draft.progress(chain.newest())?.signed.is_empty() {
            return Ok((draft, None));
        }
        Ok::<_, DraftError>((draft, Some(checked)))
    })
    .await
    .map_err(|_| {
        refuse(StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal, "the check broke off: repeat")
    })?
    .map_err(DraftRefusal::from)?;
    let Some(checked) = checked else {
        let message = "nobody of the current root has signed this draft: sign it with `muster sign`";
        return Err(refuse(StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::BadSignature, message));
    };
    if let Checked::Generations(targets) = &checked {
        for checked in targets {
            let target = &checked.target;
            require_next(&app, target).await?;
        }
    }
    let chain = app.services.roots.current();
    let kept = app.services.store.keep_draft(&draft, chain.newest(), &signed.audit_context()).await?;
    tracing::info!(draft = kept.id.short(), by = signed.by.short(), "a draft waits for signatures");
    Ok(Json(view(&app, &chain, &kept).await?))
}

/// Whether the machine would take this next.
async fn require_next(app: &App, target: &muster_protocol::target::Target) -> Result<(), Refused> {
    if let Some(why) = void(app, &target.machine, target.generation).await? {
        let message = format!("{why}: make the draft anew with `muster update`");
        return Err(refuse(StatusCode::CONFLICT, ProblemCode::Conflict, message));
    }
    let machine = known(app, &target.machine).await?;
    can_take((machine.class, &machine.system), target.class, &target.system).map_err(|error| {
        let message = format!("{} cannot take this generation: {error}", target.machine);
        refuse(StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::WrongClass, message)
    })
}

/// Why this generation can no longer be published, if so.
async fn void(app: &App, machine: &MachineName, generation: Generation) -> Result<Option<String>, Refused> {
    let Some(known) = app.services.store.machine(machine).await? else {
        return Ok(Some(format!("there is no machine {machine}")));
    };
    if known.standing() == Standing::Revoked {
        return Ok(Some(format!("{machine} is revoked")));
    }
    let holds = known.observed.as_ref().map(|told| told.holds).unwrap_or_default();
    let published = known.published.as_ref().map(|published| published.target.generation);
    let epoch = app.services.roots.current().newest().epoch();
    Ok(match muster_protocol::operator::next_generation(epoch, published, &holds) {
        Ok(next) if next == generation => None,
        Ok(next) => {
            Some(format!("the next generation of {machine} is {next}, and this is generation {generation}"))
        }
        Err(error) => Some(format!("{machine} has no next generation: {error}")),
    })
}

async fn view(app: &App, chain: &Chain, stored: &StoredDraft) -> Result<DraftView, Refused> {
    let draft = &stored.draft;
    let (kind, machines) = match &draft.what {
        Drafted::Root { .. } => (DraftKind::Root, Vec::new()),
        Drafted::Generations { generations } => {
            (DraftKind::Generations, generations.iter().map(|one| one.machine.clone()).collect())
        }
    };
    let mut gone = draft
        .check(&chain.fleet(), chain.newest(), app.services.now_s())
        .err()
        .map(|error| error.to_string());
    if let Drafted::Generations { generations } = &draft.what {
        for one in generations {
            if gone.is_none() {
                gone = void(app, &one.machine, one.publication.generation).await?;
            }
        }
    }
    let progress = draft.progress(chain.newest()).map_err(DraftRefusal::from)?;
    Ok(DraftView {
        id: stored.id,
        kind,
        made_at: draft.made_at,
        made_by: draft.made_by,
        ends: draft.ends,
        machines,
        signed: progress.signed,
        missing: progress.missing,
        void: gone,
    })
}

pub async fn list(
    State(app): State<Shared>,
    SignedByKeyholder(signed): SignedByKeyholder,
) -> Result<Json<Vec<DraftView>>, Refused> {
    let chain = app.services.roots.current();
    let mut views = Vec::new();
    for stored in app.services.store.drafts(app.services.now_s()).await? {
        if require_concerned(&chain, &stored.draft, &signed.by).is_ok() {
            views.push(view(&app, &chain, &stored).await?);
        }
    }
    Ok(Json(views))
}

pub async fn show(
    State(app): State<Shared>,
    Path(id): Path<String>,
    SignedByKeyholder(signed): SignedByKeyholder,
) -> Result<Json<Draft>, Refused> {
    let stored = app.services.store.draft(&id, app.services.now_s()).await?;
    require_concerned(&app.services.roots.current(), &stored.draft, &signed.by)?;
    Ok(Json(stored.draft))
}

pub async fn drop(
    State(app): State<Shared>,
    Path(id): Path<String>,
    SignedByKeyholder(signed): SignedByKeyholder,
) -> Result<Json<Sha256>, Refused> {
    let stored = app.services.store.draft(&id, app.services.now_s()).await?;
    require_concerned(&app.services.roots.current(), &stored.draft, &signed.by)?;
    app.services.store.drop_draft(&stored.id, &signed.audit_context()).await?;
    Ok(Json(stored.id))
}
