//! A machine's TUF repository, for that machine and for operators.

use axum::extract::{Path, State};
use axum::response::Response;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use serde::Deserialize;

use crate::http::auth::bearer::MachineReader;
use crate::http::problem::Refused;
use crate::http::public::{json_file, numbered, root_file};
use crate::http::state::Shared;
use crate::store::File;

#[derive(Deserialize)]
pub struct Metadata {
    file: String,
}

pub async fn metadata(
    State(app): State<Shared>,
    MachineReader(machine): MachineReader,
    Path(Metadata { file }): Path<Metadata>,
) -> Result<Response, Refused> {
    if file == "timestamp.json" {
        return timestamp(&app, &machine).await;
    }
    if numbered(&file, "root").is_some() {
        return root_file(&app, &file);
    }
    // Generations of an earlier epoch are only in the history.
    let epoch = app.services.roots.current().newest().epoch();
    let version = |role| numbered(&file, role).and_then(|number| Generation::of(epoch, number).ok());
    let which = match (version("targets"), version("snapshot")) {
        (Some(number), _) => File::Targets(number),
        (_, Some(number)) => File::Snapshot(number),
        _ => return Err(Refused::not_found(format!("a TUF repository has no file {file}"))),
    };
    stored(&app, &machine, which).await
}

/// A target's name starts with the machine's name (`NAME/generation.json`).
#[derive(Deserialize)]
pub struct Target {
    of: String,
    file: String,
}

pub async fn target(
    State(app): State<Shared>,
    MachineReader(machine): MachineReader,
    Path(Target { of, file }): Path<Target>,
) -> Result<Response, Refused> {
    let named = |suffix| file.strip_suffix(suffix).and_then(|hash| hash.parse::<Sha256>().ok());
    let which = named(".generation.json").map(File::Target).or_else(|| named(".gated.json").map(File::Gated));
    match which {
        Some(which) if of == machine.as_str() => stored(&app, &machine, which).await,
        _ => Err(Refused::not_found(format!(
            "targets are named targets/{machine}/HASH.generation.json, or HASH.gated.json \
             in a rollout"
        ))),
    }
}

async fn stored(app: &Shared, machine: &MachineName, which: File) -> Result<Response, Refused> {
    let bytes = app.services.store.file(machine, which).await?;
    bytes.map(json_file).ok_or_else(|| Refused::not_found(format!("{machine} has no such file")))
}

/// Signed again when less than half of its lifetime is left.
async fn timestamp(app: &Shared, machine: &MachineName) -> Result<Response, Refused> {
    let now = app.services.now_s();
    // Another controller may have published a root a moment ago.
    app.services.roots.refresh().await?;
    let (signer, chain) = (app.services.signer()?, app.services.roots.current());
    let timestamp = app
        .services
        .store
        .timestamp(
            machine,
            chain.newest().epoch(),
            |held| signer.is_good(held, |key| chain.may_sign_timestamps(key), now),
            |last, snapshot| signer.timestamp(machine, snapshot, last, now),
        )
        .await?;
    let timestamp = timestamp
        .ok_or_else(|| Refused::not_found(format!("nothing has been published for {machine} yet")))?;
    Ok(json_file(timestamp.bytes))
}
