//! What Nix reads from the cache: `nix-cache-info`, narinfos and archives.

use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::response::{IntoResponse, Response};
use muster_protocol::api::ProblemCode;
use muster_protocol::narinfo::NarFile;

use super::name::{narinfo_name, not_cached};
use super::range::{Wanted, wanted};
use crate::http::auth::bearer::CacheReader;
use crate::http::problem::{Refused, refuse};
use crate::http::state::{App, Shared};
use crate::store::blobs::Reading;

/// `nix-cache-info`, which Nix requests before anything else.
pub async fn info(_: CacheReader) -> Result<Response, Refused> {
    let text = "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n";
    Ok(([(header::CONTENT_TYPE, "text/x-nix-cache-info")], text).into_response())
}

pub async fn narinfo(
    State(app): State<Shared>,
    Path(file): Path<String>,
    reader: CacheReader,
) -> Result<Response, Refused> {
    let name = narinfo_name(&file)?;
    require_lasting(&app, reader, &name).await?;
    let found = app.services.blobs.read(&name).await?;
    found.map(|found| sent(found, "text/x-nix-narinfo")).ok_or_else(|| not_cached(&file))
}

/// An archive, or the range of it that was requested: an archive never changes.
pub async fn nar(
    State(app): State<Shared>,
    Path(file): Path<String>,
    reader: CacheReader,
    method: Method,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let key = NarFile::parse(&file).ok_or_else(|| not_cached(&file))?.key();
    require_lasting(&app, reader, &key).await?;
    let blobs = &app.services.blobs;
    let range = headers.get(header::RANGE).filter(|_| method == Method::GET);
    // A client that only asks whether there is one, or wants its end, needs no more than the size.
    if method == Method::HEAD || range.is_some() {
        let size = blobs.size(&key).await?.ok_or_else(|| not_cached(&file))?;
        match wanted(range, size) {
            _ if method == Method::HEAD => {
                let stream = Box::pin(futures_util::stream::empty());
                return Ok(sent(Reading { size, range: 0..size, stream }, ARCHIVE));
            }
            Wanted::All => {}
            Wanted::Part(range) => {
                let found = blobs.read_range(&key, range).await?;
                return found.map(|found| sent(found, ARCHIVE)).ok_or_else(|| not_cached(&file));
            }
            Wanted::Nothing => {
                let message = format!("{file} has {size} bytes, and the requested range begins behind them");
                return Err(refuse(StatusCode::RANGE_NOT_SATISFIABLE, ProblemCode::Malformed, message));
            }
        }
    }
    let found = blobs.read(&key).await?;
    found.map(|found| sent(found, ARCHIVE)).ok_or_else(|| not_cached(&file))
}

/// An operator who is told that a file is there does not upload it, and publishes what needs it: so a
/// condemned one is not there for them. A machine may still be fetching it.
async fn require_lasting(app: &App, reader: CacheReader, name: &str) -> Result<(), Refused> {
    match reader == CacheReader::Operator && app.services.store.is_condemned(name).await? {
        true => Err(not_cached(name)),
        false => Ok(()),
    }
}

const ARCHIVE: &str = "application/x-nix-nar";

fn sent(found: Reading, kind: &'static str) -> Response {
    let (first, end) = (found.range.start, found.range.end);
    let headers =
        [(header::CONTENT_TYPE, kind.to_owned()), (header::CONTENT_LENGTH, (end - first).to_string())];
    let mut response = (headers, Body::from_stream(found.stream)).into_response();
    if kind == ARCHIVE {
        response.headers_mut().insert(header::ACCEPT_RANGES, header::HeaderValue::from_static("bytes"));
    }
    if (first, end) != (0, found.size) {
        *response.status_mut() = StatusCode::PARTIAL_CONTENT;
        let range = format!("bytes {first}-{}/{}", end.saturating_sub(1), found.size);
        if let Ok(range) = range.try_into() {
            response.headers_mut().insert(header::CONTENT_RANGE, range);
        }
    }
    response
}
