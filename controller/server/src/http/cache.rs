//! The binary cache, as Nix's HTTP binary cache store speaks it: machines and operators read, operators write.
//!
//! Who may not write, or writes too much, is told before the body is read: `nix copy` sends `Expect: 100-continue`.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::ProblemCode;
use muster_protocol::ids::{Sha256, nix_base32};
use muster_protocol::narinfo::{MAX_NARINFO_BYTES, NarFile, Narinfo, is_base32};
use sha2::Digest as _;

use super::asking::away;
use super::body::Incoming;
use super::memory::Payer;
use super::problem::{Refused, refuse};
use super::{App, Shared};
use crate::store::blobs::{BlobError, Reading};

impl From<BlobError> for Refused {
    fn from(error: BlobError) -> Self {
        let (status, code) = match error {
            BlobError::Full => (StatusCode::INSUFFICIENT_STORAGE, ProblemCode::StorageFull),
            _ => (StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal),
        };
        refuse(status, code, error.to_string())
    }
}

fn unfit(message: impl Into<String>) -> Refused {
    refuse(StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed, message)
}

/// What the cache is; Nix asks it before anything else.
pub async fn info(State(app): State<Shared>, headers: HeaderMap) -> Result<Response, Refused> {
    app.reads_cache(&headers).await?;
    let text = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n";
    Ok(([(header::CONTENT_TYPE, "text/x-nix-cache-info")], text).into_response())
}

pub async fn get_narinfo(
    State(app): State<Shared>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    app.reads_cache(&headers).await?;
    let name = narinfo_name(&file)?;
    let found = app.blobs.read(&name).await?;
    found.map(|found| sent(found, "text/x-nix-narinfo")).ok_or_else(|| not_cached(&file))
}

pub async fn get_nar(
    State(app): State<Shared>,
    Path(file): Path<String>,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    app.reads_cache(&headers).await?;
    let nar = NarFile::parse(&file).ok_or_else(|| not_cached(&file))?;
    let found = app.blobs.read(&nar.key()).await?;
    found.map(|found| sent(found, "application/x-nix-nar")).ok_or_else(|| not_cached(&file))
}

fn sent(found: Reading, kind: &'static str) -> Response {
    let headers = [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_LENGTH, found.size.to_string())];
    (headers, Body::from_stream(found.stream)).into_response()
}

fn not_cached(file: &str) -> Refused {
    Refused::not_found(format!("the cache has no {file}"))
}

fn narinfo_name(file: &str) -> Result<String, Refused> {
    match file.strip_suffix(".narinfo") {
        Some(hash) if is_base32(hash, 32) => Ok(file.to_owned()),
        _ => Err(not_cached(file)),
    }
}

/// Streams to a place beside, hashed on the way; it gets its name once it is known to be what the name says.
pub async fn put_nar(
    State(app): State<Shared>,
    Path(file): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refused> {
    app.is_operator(&headers).await?;
    let nar = NarFile::parse(&file).ok_or_else(|| {
        unfit(format!("'{file}' is no archive's name: it must be HASH.nar with its compression's ending"))
    })?;
    let mut incoming = Incoming::new(&headers, body, app.limits.nar_bytes, app.limits.idle())
        .map_err(|(refused, _)| refused)?;
    let mut upload = app.blobs.upload(&nar.key()).await?;
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
            "the archive's SHA-256 is {found}, and its name says {}: it was damaged on the way, upload it again",
            nar.hash()
        ))),
    });
    // Storing waits for the disk and holds nothing that others wait for: `nix copy` sends many at once.
    if let Err(refused) = received {
        away(upload.abandon()).await;
        return Err(refused);
    }
    away(upload.finish()).await?;
    Ok(StatusCode::CREATED)
}

pub async fn put_narinfo(
    State(app): State<Shared>,
    Path(file): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Result<StatusCode, Refused> {
    let operator = app.is_operator(&headers).await?;
    let name = narinfo_name(&file).map_err(|_| unfit(format!("'{file}' is no name that the cache takes")))?;
    let bytes =
        super::small_body(&app, &headers, body, MAX_NARINFO_BYTES, Payer::Operator(*operator.as_bytes()))
            .await?;
    let info = Narinfo::parse(&bytes).map_err(|error| unfit(format!("{file} is no narinfo: {error}")))?;
    if name.strip_suffix(".narinfo") != Some(info.path.hash_part()) {
        return Err(unfit(format!("{file} speaks of another path, {}", info.path)));
    }
    require_nar(&app, &info).await?;
    if held(&app, &name).await?.is_some_and(|held| !held.same_content(&info)) {
        let message = format!("{} is stored with another content, and store paths never change", info.path);
        return Err(refuse(StatusCode::CONFLICT, ProblemCode::Conflict, message));
    }
    away(app.blobs.write(&name, bytes)).await?;
    Ok(StatusCode::CREATED)
}

/// The archive must be there as described, so that what a narinfo promises can be fetched.
async fn require_nar(app: &App, info: &Narinfo) -> Result<(), Refused> {
    let key = info.file.key();
    match app.blobs.size(&key).await? {
        Some(size) if size == info.file_size => Ok(()),
        Some(size) => Err(unfit(format!(
            "{key} has {size} bytes, and the narinfo of {} says {}: copy the path again",
            info.path, info.file_size
        ))),
        None => Err(unfit(format!("{key} is not in the cache: upload it before its narinfo"))),
    }
}

/// What is stored under this name. A file that cannot be read as a narinfo may be replaced.
async fn held(app: &App, name: &str) -> Result<Option<Narinfo>, Refused> {
    let Some(found) = app.blobs.read(name).await? else { return Ok(None) };
    let bytes = axum::body::to_bytes(Body::from_stream(found.stream), MAX_NARINFO_BYTES).await;
    Ok(bytes.ok().and_then(|bytes| Narinfo::parse(&bytes).ok()))
}
