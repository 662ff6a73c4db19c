//! Uploads to the cache by operators.
//!
//! A client that may not write, or writes too much, is refused before the body is read: `nix copy` sends
//! `Expect: 100-continue`.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::ProblemCode;
use muster_protocol::ids::{Sha256, nix_base32};
use muster_protocol::narinfo::{MAX_NARINFO_BYTES, NarFile, Narinfo};
use sha2::Digest as _;

use super::name::narinfo_name;
use crate::http::auth::bearer::Uploader;
use crate::http::body::{Incoming, small_body};
use crate::http::payer::Payer;
use crate::http::problem::{Refused, refuse};
use crate::http::request_peer::away;
use crate::http::state::{App, Shared};

pub(super) fn unfit(message: impl Into<String>) -> Refused {
    refuse(StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed, message)
}

/// Streams into a temporary file and hashes on the way; the file gets its name once its contents match that
/// name.
pub async fn nar(
    State(app): State<Shared>,
    Path(file): Path<String>,
    _: Uploader,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refused> {
    let nar = NarFile::parse(&file).ok_or_else(|| {
        unfit(format!(
            "'{file}' is not the name of an archive: it must be HASH.nar with the ending of its compression"
        ))
    })?;
    app.services.store.spare_upload(&[nar.key()], app.services.now()).await?;
    let mut incoming =
        Incoming::new(&headers, body, app.services.limits.nar_bytes, app.services.limits.idle())?;
    let mut upload = app.services.blobs.upload(&nar.key());
    let mut hasher = sha2::Sha256::new();
    let receive = async {
        while let Some(piece) = incoming.next().await? {
            hasher.update(&piece);
            upload.add(&piece).await?;
        }
        Ok::<_, Refused>(())
    };
    let received = away(receive).await;
    let found = nix_base32(&Sha256::from_bytes(hasher.finalize().into()));
    let received = received.and_then(|()| match found == nar.hash() {
        true => Ok(()),
        false => Err(unfit(format!(
            "the archive's SHA-256 is {found}, and its name says {}: it was damaged on the way, upload it \
                again",
            nar.hash()
        ))),
    });
    // Storing waits for the disk but holds nothing that others need: `nix copy` sends many files at once.
    if let Err(refused) = received {
        away(upload.abandon()).await;
        return Err(refused);
    }
    away(upload.finish()).await?;
    Ok(StatusCode::CREATED)
}

pub async fn narinfo(
    State(app): State<Shared>,
    Path(file): Path<String>,
    Uploader(operator): Uploader,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refused> {
    let name =
        narinfo_name(&file).map_err(|_| unfit(format!("'{file}' is not a name that the cache accepts")))?;
    let bytes =
        small_body(&app, &headers, body, MAX_NARINFO_BYTES, Payer::Operator(*operator.as_bytes())).await?;
    let info = Narinfo::parse(&bytes).map_err(|error| unfit(format!("{file} is not a narinfo: {error}")))?;
    if name.strip_suffix(".narinfo") != Some(info.path.hash_part()) {
        return Err(unfit(format!("{file} describes another path, {}", info.path)));
    }
    let names = [name.clone(), info.file.key()];
    app.services.store.spare_upload(&names, app.services.now()).await?;
    require_nar(&app, &info).await?;
    require_same(&app, &name, &info).await?;
    away(app.services.blobs.write(&name, bytes)).await?;
    Ok(StatusCode::CREATED)
}

/// The archive must already be stored as described, so that every narinfo can be fulfilled.
async fn require_nar(app: &App, info: &Narinfo) -> Result<(), Refused> {
    let key = info.file.key();
    match app.services.blobs.size(&key).await? {
        Some(size) if size == info.file_size => Ok(()),
        Some(size) => Err(unfit(format!(
            "{key} has {size} bytes, but the narinfo of {} says {}: copy the path again",
            info.path, info.file_size
        ))),
        None => Err(unfit(format!("{key} is not in the cache: upload it before its narinfo"))),
    }
}

/// What is stored under this name already must have the same contents.
pub(super) async fn require_same(app: &App, name: &str, info: &Narinfo) -> Result<(), Refused> {
    if held(app, name).await?.is_some_and(|held| !held.same_content(info)) {
        let message = format!("{} is stored with other contents, and store paths never change", info.path);
        return Err(refuse(StatusCode::CONFLICT, ProblemCode::Conflict, message));
    }
    Ok(())
}

/// What is stored under this name. A file that does not parse as a narinfo may be replaced.
async fn held(app: &App, name: &str) -> Result<Option<Narinfo>, Refused> {
    let Some(found) = app.services.blobs.read(name).await? else { return Ok(None) };
    let bytes = axum::body::to_bytes(Body::from_stream(found.stream), MAX_NARINFO_BYTES).await;
    Ok(bytes.ok().and_then(|bytes| Narinfo::parse(&bytes).ok()))
}
