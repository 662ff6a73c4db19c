//! The controller's cache as Nix on the operator's computer sees it: a small server on loopback, for one run of Nix.
//!
//! Nix believes a description's `URL`, whatever it names, follows redirections, and unpacks whatever comes. So it never
//! speaks to the controller: it asks here, where every description is read, checked and written anew, archives are unpacked
//! within the size that was described, and answers are bounded in size and in time. The operator's bearer stays here, too.

mod archive;

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_protocol::api;
use muster_protocol::ids::{Sha256, StorePath, to_hex};
use muster_protocol::narinfo::{MAX_NARINFO_BYTES, NarFile, Narinfo, is_base32};
use muster_protocol::random;
use reqwest::Url;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use self::archive::Archive;

/// How long the controller may take for an answer's beginning, for a whole description, and for each [`PIECE`] of an archive.
const WAIT: Duration = Duration::from_secs(60);
/// How many times as long it may take nothing of what is brought: it writes large archives to its disk at their end.
const UPLOAD_WAITS: u32 = 5;
/// The most paths of one closure of a derivation, and the most bytes that they have together, unpacked.
const MAX_PATHS: usize = 200_000;
const MAX_BYTES: u64 = 16 * 1024 * 1024 * 1024;
/// How many ways of packing one content are known at once; each operator's zstd may have its own.
const MAX_TWINS: usize = 8;
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
    wait: Duration,
    described: Mutex<Described>,
    trouble: Mutex<Option<Trouble>>,
}

#[derive(Default)]
struct Described {
    /// By the file that Nix asks for: each holds the same, packed by another hand.
    archives: HashMap<NarFile, Vec<Archive>>,
    paths: HashSet<String>,
    bytes: u64,
}

impl Described {
    /// Nix may ask for one twice, two paths may have one content, and that may have been packed twice.
    fn add(&mut self, hash: &str, file: &NarFile, archive: Archive) -> Result<(), &'static str> {
        let known = self.archives.get(file);
        if known.is_some_and(|twins| twins.iter().any(|twin| twin.size != archive.size)) {
            return Err("another description gives its content another size");
        }
        if known.is_none() {
            self.bytes = self.bytes.saturating_add(archive.size);
        }
        self.paths.insert(hash.to_owned());
        if self.paths.len() > MAX_PATHS || self.bytes > MAX_BYTES {
            return Err("more belongs together than any system has");
        }
        let twins = self.archives.entry(file.clone()).or_default();
        if twins.len() < MAX_TWINS && !twins.contains(&archive) {
            twins.push(archive);
        }
        Ok(())
    }
}

/// Why something was kept from Nix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// What came is not what it says it is.
    Altered(String),
    /// It is sound for all that is known, and somebody would have to be believed for it.
    Unnamed(StorePath),
    /// The controller, or the way to it.
    Away(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Altered(why) | Self::Away(why) => f.write_str(why),
            Self::Unnamed(path) => write!(f, "{path} is not named by its content"),
        }
    }
}

/// Why Nix gets nothing.
enum Stop {
    Nothing,
    Status(StatusCode, Bytes),
    For(Trouble),
}

fn altered(why: String) -> Stop {
    Stop::For(Trouble::Altered(why))
}
fn slow(what: impl fmt::Display, wait: Duration) -> Stop {
    Stop::For(Trouble::Away(format!("the controller is too slow: {what} within {} s", wait.as_secs())))
}

impl Gate {
    pub async fn open(cache: &Cache, way: Way) -> io::Result<Self> {
        Self::open_waiting(cache, way, WAIT).await
    }

    async fn open_waiting(cache: &Cache, way: Way, wait: Duration) -> io::Result<Self> {
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
            wait,
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
    pub fn trouble(&self) -> Option<Trouble> {
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
        Err(Stop::For(trouble)) => {
            shared.note(trouble.clone());
            match trouble {
                Trouble::Away(why) => (StatusCode::BAD_GATEWAY, why).into_response(),
                Trouble::Altered(_) | Trouble::Unnamed(_) => StatusCode::NOT_FOUND.into_response(),
            }
        }
    }
}

impl Shared {
    /// Compared by hashes, so that the time it takes says nothing.
    fn knows(&self, headers: &HeaderMap) -> bool {
        headers.get(header::AUTHORIZATION).is_some_and(|said| Sha256::of(said.as_bytes()) == self.password)
    }

    /// The first one is the cause; but what was away may have come back since.
    fn note(&self, trouble: Trouble) {
        let mut held = lock(&self.trouble);
        if !matches!(&*held, Some(Trouble::Altered(_) | Trouble::Unnamed(_))) {
            *held = Some(trouble);
        }
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
                Ok(good(sent(asked, self.wait).await?, self.wait).await?.status().into_response())
            }
            (Way::Push, "PUT", ..) => self.put(file, request).await,
            _ => Ok(StatusCode::METHOD_NOT_ALLOWED.into_response()),
        }
    }

    async fn narinfo(&self, hash: &str) -> Result<String, Stop> {
        let bytes = self.small(&format!("{hash}.narinfo"), MAX_NARINFO_BYTES).await?;
        let info = read_narinfo(hash, &bytes)?;
        let refused = |why: &str| altered(format!("the description of {} is refused: {why}", info.path));
        let packed = match info.compression {
            "none" => false,
            // As `muster update` brings it.
            "zstd" => true,
            _ => return Err(refused("its archive is packed in a way that operators never use")),
        };
        match info.ca {
            Some(_) => {}
            // Always named by what it says.
            None if info.path.is_derivation() => {
                return Err(refused("it does not say by which content the path is named"));
            }
            None => return Err(Stop::For(Trouble::Unnamed(info.path))),
        }
        let content = info.nar_hash.strip_prefix("sha256:").unwrap_or_default();
        let file = NarFile::parse(&format!("{content}.nar")).ok_or_else(|| refused("it has no hash"))?;
        let size = info.nar_size;
        let archive = Archive { file: info.file.clone(), file_size: info.file_size, packed, size };
        lock(&self.described).add(hash, &file, archive).map_err(refused)?;
        Ok(Narinfo { file, compression: "none", file_size: size, ..info }.text())
    }

    /// Only what a checked description named is asked for; it comes unpacked, and as long as it said. One that is broken gives
    /// its place to the same content as another hand packed it.
    async fn nar(self: &Arc<Self>, nar: &NarFile, head: bool) -> Result<Response, Stop> {
        let twins = lock(&self.described).archives.get(nar).cloned().unwrap_or_default();
        let Some(size) = twins.first().map(|twin| twin.size) else { return Err(Stop::Nothing) };
        let length = [(header::CONTENT_LENGTH, size)];
        if head {
            return Ok((length, Body::empty()).into_response());
        }
        let mut stop = None;
        for twin in twins {
            match self.unpacked(nar, twin).await {
                Ok(body) => return Ok((length, body).into_response()),
                Err(why) => stop = stop.or(Some(why)),
            }
        }
        Err(stop.unwrap_or(Stop::Nothing))
    }

    async fn put(&self, file: &str, request: Request) -> Result<Response, Stop> {
        let mut asked = self.cache.ask(Method::PUT, file)?;
        for name in [header::CONTENT_LENGTH, header::CONTENT_TYPE] {
            if let Some(value) = request.headers().get(&name) {
                asked = asked.header(name, value);
            }
        }
        let taken = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&taken);
        let pieces = request.into_body().into_data_stream().inspect_ok(move |piece| {
            counter.fetch_add(piece.len() as u64, Ordering::Relaxed);
        });
        let sending = asked.body(reqwest::Body::wrap_stream(pieces)).send();
        tokio::pin!(sending);
        let (wait, mut before) = (self.wait * UPLOAD_WAITS, 0);
        loop {
            if let Ok(answer) = tokio::time::timeout(wait, &mut sending).await {
                return Ok(good(answer.map_err(away)?, self.wait).await?.status().into_response());
            }
            let now = taken.load(Ordering::Relaxed);
            if now - before < PIECE as u64 {
                return Err(slow(format!("it takes less than {PIECE} bytes of {file}"), wait));
            }
            before = now;
        }
    }

    /// The whole of a small file.
    async fn small(&self, file: &str, max: usize) -> Result<Bytes, Stop> {
        let asked = self.cache.ask(Method::GET, file)?;
        let whole = async {
            let mut answer = good(sent(asked, self.wait).await?, self.wait).await?;
            bounded(&mut answer, max)
                .await?
                .ok_or_else(|| altered(format!("{file} has more than {max} bytes")))
        };
        let whole = tokio::time::timeout(self.wait, whole).await;
        whole.map_err(|_| slow(format!("it does not send {file}"), self.wait))?
    }
}

fn read_narinfo(hash: &str, bytes: &[u8]) -> Result<Narinfo, Stop> {
    let refused = |why: String| altered(format!("the description of {hash} is refused: {why}"));
    let info = Narinfo::parse(bytes).map_err(|error| refused(error.to_string()))?;
    if info.path.hash_part() != hash {
        return Err(refused(format!("it speaks of {}", info.path)));
    }
    Ok(info)
}

async fn sent(request: reqwest::RequestBuilder, wait: Duration) -> Result<reqwest::Response, Stop> {
    let sent = tokio::time::timeout(wait, request.send()).await;
    sent.map_err(|_| slow("it does not answer", wait))?.map_err(away)
}

fn away(error: reqwest::Error) -> Stop {
    let error = anyhow::Error::new(error.without_url());
    Stop::For(Trouble::Away(format!("cannot reach the controller: {error:#}")))
}

/// A success; what else a controller says is handed on as its status and a few words, and leads nowhere.
async fn good(mut answer: reqwest::Response, wait: Duration) -> Result<reqwest::Response, Stop> {
    match answer.status() {
        status if status.is_success() => Ok(answer),
        StatusCode::NOT_FOUND => Err(Stop::Nothing),
        status if status.is_client_error() || status.is_server_error() => {
            let words = tokio::time::timeout(wait, bounded(&mut answer, MAX_REFUSAL)).await;
            let words = words.map_err(|_| slow("it does not say why it refuses", wait))??;
            Err(Stop::Status(status, words.unwrap_or_default()))
        }
        status => Err(altered(format!("the controller answers {status}, and not as Muster does"))),
    }
}

/// The whole answer; none where it has more.
async fn bounded(answer: &mut reqwest::Response, max: usize) -> Result<Option<Bytes>, Stop> {
    let mut bytes = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(away)? {
        if bytes.len() + piece.len() > max {
            return Ok(None);
        }
        bytes.extend_from_slice(&piece);
    }
    Ok(Some(bytes.into()))
}

#[cfg(test)]
mod tests;
