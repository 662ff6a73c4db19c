//! Publishing a generation: checked as the machine will check it, then stored with its timestamp.

use axum::Json;
use axum::extract::State;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MachineView, Publication};

use super::view::{known, view};
use crate::core::publication::NewGeneration;
use crate::core::publication::batch::BatchRefusal;
use crate::core::rows::Timestamp;
use crate::http::auth::operator::Signed;
use crate::http::body::Document;
use crate::http::problem::Refused;
use crate::http::request_peer::regardless;
use crate::http::rollouts::{named, plans_of};
use crate::http::state::Shared;
use crate::wakers::Fresh;

impl Document for Publication {
    const WHAT: &'static str = "a signed generation";
}

pub async fn publish(
    State(app): State<Shared>,
    signed: Signed<Publication, MachineName>,
) -> Result<Json<MachineView>, Refused> {
    regardless(async move {
        let (signed, publication) = signed.split();
        let name = &signed.on;
        let machine = known(&app, name).await?;
        let (root, now) = (app.services.roots.current(), app.services.now_s());
        let plans = plans_of(&app, named(&publication.target).into_iter().collect()).await?;
        let new = NewGeneration::check((root.newest(), &plans), &machine, &publication, now)?;
        let signer = app.services.signer()?;
        // Since then an operator may have been removed, by another controller perhaps.
        app.services.roots.refresh().await?;
        if app.services.roots.current().newest().version() != root.newest().version() {
            return Err(BatchRefusal::NewRoot.into());
        }
        let sign = |last, snapshot: &[u8]| signer.timestamp(name, snapshot, last, now);
        let published = app.services.store.publish(&new, &signed.audit_context(), sign).await?;
        if let Some(Timestamp { bytes: timestamp, .. }) = published {
            let (generation, operator) = (publication.generation, signed.by.short());
            tracing::info!(machine = %name, %generation, operator, "published");
            let root = root.newest().version();
            app.services.wakers.wake_with(name, || Fresh { root, publication, timestamp });
        }
        view(&app, name).await
    })
    .await
}
