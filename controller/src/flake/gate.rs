//! The controller's cache as Nix on the operator's computer sees it: a small server on loopback, for one run of Nix.
//!
//! Nix believes a description's `URL`, whatever it names, follows redirections, and unpacks whatever comes. So it never
//! speaks to the controller: it asks here, where every description is read, checked and written anew, archives are unpacked
//! within the size that was described, and answers are bounded. The operator's bearer stays here, too.

use std::collections::{HashMap, HashSet};
use std::io::{self, Write as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_compression::tokio::bufread::ZstdDecoder;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use muster_protocol::api;
use muster_protocol::ids::{Sha256, to_hex};
use muster_protocol::narinfo::{MAX_NARINFO_BYTES, NarFile, Narinfo, is_base32};
use muster_protocol::random;
use reqwest::Url;
use tokio::io::{AsyncRead, AsyncReadExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;
use tokio_util::io::StreamReader;

/// How long the controller may send nothing.
const STALL: Duration = Duration::from_secs(60);
/// The most paths of one closure of a derivation, and the most bytes that they have together, unpacked.
const MAX_PATHS: usize = 200_000;
const MAX_BYTES: u64 = 16 * 1024 * 1024 * 1024;
/// How much of a refusal is handed on.
const MAX_REFUSAL: usize = api::MAX_MESSAGE_BYTES;
const PIECE: usize = 64 * 1024;

/// The controller's cache, and the right to it.
#[derive(Clone)]
pub struct Cache {
    http: reqwest::Client,
    url: Url,
    bearer: String,
}

impl Cache {
    /// `http` follows no redirection.
    pub fn new(http: reqwest::Client, url: Url, bearer: String) -> Self {
        Self { http, url, bearer }
    }

    fn ask(&self, method: Method, file: &str) -> Result<reqwest::RequestBuilder, Stop> {
        let url = self.url.join(&format!("{}/{file}", api::CACHE)).map_err(|_| Stop::Nothing)?;
        Ok(self.http.request(method, url).bearer_auth(&self.bearer))
    }
}

/// What Nix is let do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Take what is named by its content.
    Fetch,
    /// Ask what is there, and bring the rest.
    Push,
}

/// Serves until it is dropped.
pub struct Gate {
    url: String,
    netrc: tempfile::NamedTempFile,
    shared: Arc<Shared>,
    serving: AbortHandle,
}

struct Shared {
    cache: Cache,
    way: Way,
    /// What Nix says, and other users of this computer cannot: they see its arguments, and not the file with this.
    password: Sha256,
    described: Mutex<Described>,
    trouble: Mutex<Option<String>>,
}

#[derive(Default)]
struct Described {
    archives: HashMap<NarFile, Archive>,
    paths: HashSet<String>,
    bytes: u64,
}

/// An archive as the controller has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Archive {
    file: NarFile,
    file_size: u64,
    packed: bool,
    size: u64,
}

/// Why Nix gets nothing.
enum Stop {
    Nothing,
    Status(StatusCode, Bytes),
    /// What came is not what it says it is.
    Altered(String),
    Away(String),
}

impl Gate {
    pub async fn open(cache: &Cache, way: Way) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let url = format!("http://{}", listener.local_addr()?);
        let password = to_hex(&random::bytes::<16>().map_err(io::Error::other)?);
        let mut netrc = tempfile::NamedTempFile::new()?;
        writeln!(netrc, "machine 127.0.0.1 login muster password {password}")?;
        netrc.flush()?;
        let said = format!("Basic {}", STANDARD.encode(format!("muster:{password}")));
        let shared = Arc::new(Shared {
            cache: cache.clone(),
            way,
            password: Sha256::of(said.as_bytes()),
            described: Mutex::default(),
            trouble: Mutex::default(),
        });
        let router = axum::Router::new().fallback(answer).with_state(Arc::clone(&shared));
        let serving = tokio::spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, netrc, shared, serving: serving.abort_handle() })
    }

    pub fn url(&self) -> &str {
        &self.url
    }
    /// Where the password for it is, in the form of netrc.
    pub fn netrc(&self) -> String {
        self.netrc.path().to_string_lossy().into_owned()
    }
    /// What was kept from Nix, if anything was.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.shared.trouble).clone()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    if !shared.knows(request.headers()) {
        let ask = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"muster\""))];
        return (StatusCode::UNAUTHORIZED, ask).into_response();
    }
    match shared.answered(request).await {
        Ok(response) => response,
        // Nix takes 404 for the end of the matter, and tries anything else again.
        Err(Stop::Nothing) => StatusCode::NOT_FOUND.into_response(),
        Err(Stop::Status(status, words)) => (status, words).into_response(),
        Err(Stop::Altered(why)) => {
            shared.note(why);
            StatusCode::NOT_FOUND.into_response()
        }
        Err(Stop::Away(why)) => (StatusCode::BAD_GATEWAY, why).into_response(),
    }
}

impl Shared {
    /// Compared by hashes, so that the time it takes says nothing.
    fn knows(&self, headers: &HeaderMap) -> bool {
        headers.get(header::AUTHORIZATION).is_some_and(|said| Sha256::of(said.as_bytes()) == self.password)
    }

    /// The first one is the cause.
    fn note(&self, why: String) {
        lock(&self.trouble).get_or_insert(why);
    }

    /// Nix may ask once more, and gets nothing of it then.
    fn breaks_off(&self, archive: &Archive, why: &str) -> io::Error {
        self.note(format!("the archive {} {why}", archive.file.key()));
        lock(&self.described).archives.retain(|_, known| known != archive);
        io::ErrorKind::InvalidData.into()
    }

    async fn answered(self: &Arc<Self>, request: Request) -> Result<Response, Stop> {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let file = path.trim_start_matches('/');
        if file == "nix-cache-info" && method == Method::GET {
            return Ok("StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n".into_response());
        }
        let hash = file.strip_suffix(".narinfo").filter(|hash| is_base32(hash, 32));
        let nar = file.strip_prefix("nar/").and_then(NarFile::parse);
        if hash.is_none() && nar.is_none() {
            return Err(Stop::Nothing);
        }
        match (self.way, method.as_str(), hash, nar) {
            (Way::Fetch, "GET" | "HEAD", Some(hash), _) => Ok(self.narinfo(hash).await?.into_response()),
            (Way::Fetch, "GET" | "HEAD", _, Some(nar)) => self.nar(&nar, method == Method::HEAD).await,
            (Way::Push, "GET", Some(hash), _) => {
                let info = read_narinfo(hash, &self.small(file, MAX_NARINFO_BYTES).await?)?;
                Ok(info.text().into_response())
            }
            (Way::Push, "HEAD", ..) => {
                let asked = self.cache.ask(Method::HEAD, file)?;
                Ok(good(sent(asked).await?).await?.status().into_response())
            }
            (Way::Push, "PUT", ..) => self.put(file, request).await,
            _ => Ok(StatusCode::METHOD_NOT_ALLOWED.into_response()),
        }
    }

    async fn narinfo(&self, hash: &str) -> Result<String, Stop> {
        let bytes = self.small(&format!("{hash}.narinfo"), MAX_NARINFO_BYTES).await?;
        let info = read_narinfo(hash, &bytes)?;
        let refused =
            |why: &str| Stop::Altered(format!("the description of {} is refused: {why}", info.path));
        let packed = match info.compression {
            "none" => false,
            // As `muster update` brings it.
            "zstd" => true,
            _ => return Err(refused("its archive is packed in a way that operators never use")),
        };
        if info.ca.is_none() {
            return Err(refused("it does not say by which content the path is named"));
        }
        let content = info.nar_hash.strip_prefix("sha256:").unwrap_or_default();
        let file = NarFile::parse(&format!("{content}.nar")).ok_or_else(|| refused("it has no hash"))?;
        let size = info.nar_size;
        let archive = Archive { file: info.file.clone(), file_size: info.file_size, packed, size };
        let mut described = lock(&self.described);
        // Nix may ask for one twice; two paths may have one content.
        let known = described.archives.get(&file).map(|known| *known == archive);
        match known {
            Some(true) => {}
            Some(false) => return Err(refused("another description speaks otherwise of its archive")),
            None => described.bytes = described.bytes.saturating_add(size),
        }
        described.paths.insert(hash.to_owned());
        if described.paths.len() > MAX_PATHS || described.bytes > MAX_BYTES {
            return Err(refused("more belongs together than any system has"));
        }
        described.archives.insert(file.clone(), archive);
        drop(described);
        Ok(Narinfo { file, compression: "none", file_size: size, ..info }.text())
    }

    /// Only what a checked description named is asked for; it comes unpacked, and as long as it said.
    async fn nar(self: &Arc<Self>, nar: &NarFile, head: bool) -> Result<Response, Stop> {
        let archive = lock(&self.described).archives.get(nar).cloned().ok_or(Stop::Nothing)?;
        let length = [(header::CONTENT_LENGTH, archive.size)];
        if head {
            return Ok((length, Body::empty()).into_response());
        }
        let answer = good(sent(self.cache.ask(Method::GET, &archive.file.key())?).await?).await?;
        if answer.content_length().is_some_and(|length| length != archive.file_size) {
            let key = archive.file.key();
            return Err(Stop::Altered(format!("the archive {key} has another length than was described")));
        }
        let pieces = Box::pin(answer.bytes_stream().map(|piece| piece.map_err(io::Error::other)));
        let packed = BufReader::new(StreamReader::new(pieces).take(archive.file_size));
        let unpacked: Box<dyn AsyncRead + Send + Unpin> = match archive.packed {
            true => {
                let mut decoder = ZstdDecoder::new(packed);
                decoder.multiple_members(true);
                Box::new(decoder)
            }
            false => Box::new(packed),
        };
        Ok((length, Body::from_stream(exactly(Arc::clone(self), unpacked, archive))).into_response())
    }

    async fn put(&self, file: &str, request: Request) -> Result<Response, Stop> {
        let mut asked = self.cache.ask(Method::PUT, file)?;
        for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE] {
            if let Some(value) = request.headers().get(&name) {
                asked = asked.header(name, value);
            }
        }
        let body = reqwest::Body::wrap_stream(request.into_body().into_data_stream());
        // As long as it takes: `nix copy` as a whole has a limit.
        let answer = asked.body(body).send().await.map_err(away)?;
        Ok(good(answer).await?.status().into_response())
    }

    async fn small(&self, file: &str, max: usize) -> Result<Bytes, Stop> {
        let mut answer = good(sent(self.cache.ask(Method::GET, file)?).await?).await?;
        bounded(&mut answer, max)
            .await?
            .ok_or_else(|| Stop::Altered(format!("{file} has more than {max} bytes")))
    }
}

fn read_narinfo(hash: &str, bytes: &[u8]) -> Result<Narinfo, Stop> {
    let refused = |why: String| Stop::Altered(format!("the description of {hash} is refused: {why}"));
    let info = Narinfo::parse(bytes).map_err(|error| refused(error.to_string()))?;
    if info.path.hash_part() != hash {
        return Err(refused(format!("it speaks of {}", info.path)));
    }
    Ok(info)
}

/// So many bytes and then the end; the connection breaks off where it is not so.
fn exactly(
    shared: Arc<Shared>,
    reader: Box<dyn AsyncRead + Send + Unpin>,
    archive: Archive,
) -> impl stream::Stream<Item = io::Result<Bytes>> + Send {
    let from = (reader, archive.size, shared, archive);
    stream::try_unfold(from, |(mut reader, left, shared, archive)| async move {
        let mut piece = vec![0; PIECE];
        let read = tokio::time::timeout(STALL, reader.read(&mut piece)).await;
        let read = match read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))? {
            Ok(read) => read,
            // The way to the controller broke off.
            Err(error) if error.get_ref().is_some_and(|cause| cause.is::<reqwest::Error>()) => {
                return Err(error);
            }
            Err(error) => return Err(shared.breaks_off(&archive, &format!("cannot be unpacked: {error}"))),
        };
        match (read as u64, left) {
            (0, 0) => Ok(None),
            (0, _) => Err(shared.breaks_off(&archive, "is shorter than was described")),
            (read, left) if read > left => Err(shared.breaks_off(&archive, "is longer than was described")),
            (more, left) => {
                piece.truncate(read);
                Ok(Some((Bytes::from(piece), (reader, left - more, shared, archive))))
            }
        }
    })
}

async fn sent(request: reqwest::RequestBuilder) -> Result<reqwest::Response, Stop> {
    let sent = tokio::time::timeout(STALL, request.send()).await;
    sent.map_err(|_| Stop::Away("the controller does not answer".to_owned()))?.map_err(away)
}

fn away(error: reqwest::Error) -> Stop {
    let error = anyhow::Error::new(error.without_url());
    Stop::Away(format!("cannot reach the controller: {error:#}"))
}

/// A success; what else a controller says is handed on as its status and a few words, and leads nowhere.
async fn good(mut answer: reqwest::Response) -> Result<reqwest::Response, Stop> {
    match answer.status() {
        status if status.is_success() => Ok(answer),
        StatusCode::NOT_FOUND => Err(Stop::Nothing),
        status if status.is_client_error() || status.is_server_error() => {
            let words = bounded(&mut answer, MAX_REFUSAL).await?.unwrap_or_default();
            Err(Stop::Status(status, words))
        }
        status => Err(Stop::Altered(format!("the controller answers {status}, and not as Muster does"))),
    }
}

/// The whole answer; none where it has more.
async fn bounded(answer: &mut reqwest::Response, max: usize) -> Result<Option<Bytes>, Stop> {
    let mut bytes = Vec::new();
    loop {
        let piece = tokio::time::timeout(STALL, answer.chunk()).await;
        let piece =
            piece.map_err(|_| Stop::Away("the controller's answer broke off".to_owned()))?.map_err(away)?;
        let Some(piece) = piece else { return Ok(Some(bytes.into())) };
        if bytes.len() + piece.len() > max {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece);
    }
}

#[cfg(test)]
mod tests;
