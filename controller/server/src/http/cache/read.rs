//! What Nix reads from the cache: `nix-cache-info`, narinfos and archives.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use muster_protocol::narinfo::NarFile;

use super::name::{narinfo_name, not_cached};
use crate::http::auth::bearer::CacheReader;
use crate::http::problem::Refused;
use crate::http::state::Shared;
use crate::store::blobs::Reading;

/// `nix-cache-info`, which Nix requests before anything else.
pub async fn info(_: CacheReader) -> Result<Response, Refused> {
    let text = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n";
    Ok(([(header::CONTENT_TYPE, "text/x-nix-cache-info")], text).into_response())
}

pub async fn narinfo(
    State(app): State<Shared>,
    Path(file): Path<String>,
    _: CacheReader,
) -> Result<Response, Refused> {
    let name = narinfo_name(&file)?;
    let found = app.services.blobs.read(&name).await?;
    found.map(|found| sent(found, "text/x-nix-narinfo")).ok_or_else(|| not_cached(&file))
}

pub async fn nar(
    State(app): State<Shared>,
    Path(file): Path<String>,
    _: CacheReader,
) -> Result<Response, Refused> {
    let file_of = NarFile::parse(&file).ok_or_else(|| not_cached(&file))?;
    let found = app.services.blobs.read(&file_of.key()).await?;
    found.map(|found| sent(found, "application/x-nix-nar")).ok_or_else(|| not_cached(&file))
}

fn sent(found: Reading, kind: &'static str) -> Response {
    let headers = [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_LENGTH, found.size.to_string())];
    (headers, Body::from_stream(found.stream)).into_response()
}
