//! Many paths of the cache in one request: which are missing, and small ones to store. An operator's Nix
//! asks for each path of a closure and sends two files for each that is missing, one request each; a fleet's
//! update has thousands of them.

use axum::Json;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request, State};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use muster_protocol::cache::{AskedFor, MAX_ASKED_FOR_BYTES, MAX_UPLOADS_BYTES};
use muster_protocol::cache::{Missing, UploadedPath, Uploads, UploadsTaken};
use muster_protocol::ids::{Sha256, StorePath, nix_base32};
use muster_protocol::narinfo::{MAX_NARINFO_BYTES, Narinfo};

use super::upload::{require_same, unfit};
use crate::http::auth::bearer::Uploader;
use crate::http::body::{Document, small_body};
use crate::http::heavy;
use crate::http::payer::Payer;
use crate::http::problem::Refused;
use crate::http::request_peer::away;
use crate::http::state::{App, Shared};
use crate::threads;

/// How many files are looked for or written at once: a disk makes several durable together, and a bucket
/// answers several at a time.
const AT_ONCE: usize = 16;

impl Document for AskedFor {
    const WHAT: &'static str = "a list of store paths";
    const LIMIT: usize = MAX_ASKED_FOR_BYTES;
}

impl Document for Uploads {
    const WHAT: &'static str = "a list of store paths with their archives";
    const LIMIT: usize = MAX_UPLOADS_BYTES;
}

/// A document from an operator with a bearer.
pub struct Uploaded<T>(T);

impl<T: Document> FromRequest<Shared> for Uploaded<T> {
    type Rejection = Refused;

    async fn from_request(request: Request<Body>, app: &Shared) -> Result<Self, Refused> {
        use axum::extract::FromRequestParts as _;
        let (mut parts, body) = request.into_parts();
        let Uploader(operator) = Uploader::from_request_parts(&mut parts, app).await?;
        let payer = Payer::Operator(*operator.as_bytes());
        let bytes = small_body(app, &parts.headers, body, T::LIMIT, payer).await?;
        Ok(Self(T::read(&bytes)?))
    }
}

fn name_of(path: &StorePath) -> String {
    format!("{}.narinfo", path.hash_part())
}

/// Which of these paths the cache does not have, or will not have for long.
pub async fn missing(
    State(app): State<Shared>,
    Uploaded(AskedFor { paths }): Uploaded<AskedFor>,
) -> Result<heavy::Long<Missing>, Refused> {
    let names: Vec<String> = paths.iter().map(name_of).collect();
    let condemned = app.services.store.condemned(&names).await?;
    let looks = stream::iter(paths.into_iter().zip(names)).map(|(path, name)| {
        let gone = condemned.contains(&name);
        let app = &app;
        async move {
            let is_there = !gone && app.services.blobs.size(&name).await?.is_some();
            Ok::<_, Refused>((!is_there).then_some(path))
        }
    });
    let found: Vec<Option<StorePath>> = away(looks.buffered(AT_ONCE).try_collect()).await?;
    Ok(heavy::Long(Missing { paths: found.into_iter().flatten().collect() }))
}

/// A path that is what it says.
struct Sound {
    info: Narinfo,
    narinfo: Bytes,
    archive: Bytes,
}

/// Checks each as it would be checked alone, then stores archives before what describes them.
pub async fn paths(
    State(app): State<Shared>,
    Uploaded(Uploads { paths }): Uploaded<Uploads>,
) -> Result<Json<UploadsTaken>, Refused> {
    let sound = threads::on(usize::MAX, || threads::for_all(&paths, check));
    let sound: Vec<Sound> = sound.into_iter().collect::<Result<_, _>>()?;
    drop(paths);
    let limit = app.services.limits.nar_bytes;
    if sound.iter().any(|one| one.info.file_size > limit) {
        return Err(Refused::too_large(limit));
    }
    let names: Vec<String> =
        sound.iter().flat_map(|one| [name_of(&one.info.path), one.info.file.key()]).collect();
    app.services.store.spare_upload(&names, app.services.now()).await?;
    let stored = sound.len();
    let each = stream::iter(sound).map(|one| store(&app, one));
    // Nobody who hangs up leaves a description without its archive: each is written after the other.
    away(each.buffer_unordered(AT_ONCE).try_collect::<()>()).await?;
    Ok(Json(UploadsTaken { stored }))
}

fn check(UploadedPath { narinfo, archive }: &UploadedPath) -> Result<Sound, Refused> {
    if narinfo.len() > MAX_NARINFO_BYTES {
        return Err(unfit(format!("a narinfo has more than {MAX_NARINFO_BYTES} bytes")));
    }
    let info = Narinfo::parse(narinfo.as_bytes())
        .map_err(|error| unfit(format!("one of these is not a narinfo: {error}")))?;
    let archive = STANDARD
        .decode(archive)
        .map_err(|error| unfit(format!("the archive of {} is not base 64: {error}", info.path)))?;
    let found = nix_base32(&Sha256::of(&archive));
    if found != info.file.hash() {
        return Err(unfit(format!(
            "the SHA-256 of the archive of {} is {found}, and its narinfo says {}: upload it again",
            info.path,
            info.file.hash()
        )));
    }
    if archive.len() as u64 != info.file_size {
        return Err(unfit(format!(
            "the archive of {} has {} bytes, and its narinfo says {}: upload it again",
            info.path,
            archive.len(),
            info.file_size
        )));
    }
    Ok(Sound { info, narinfo: Bytes::from(narinfo.clone()), archive: archive.into() })
}

async fn store(app: &App, Sound { info, narinfo, archive }: Sound) -> Result<(), Refused> {
    let name = name_of(&info.path);
    require_same(app, &name, &info).await?;
    let blobs = &app.services.blobs;
    blobs.write(&info.file.key(), archive).await?;
    blobs.write(&name, narinfo).await?;
    Ok(())
}
