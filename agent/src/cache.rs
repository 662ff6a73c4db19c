//! The controller's cache as Nix on this machine sees it: a small server on loopback, for one run of Nix,
//! that passes on only what was checked.
//!
//! Nix trusts a narinfo's `URL`, whatever it names, and runs as root. So it never contacts the controller: it
//! asks this server, where every description is read, checked and rewritten, and an archive is exactly as
//! long as its description says.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{AUTHORIZATION, CONTENT_LENGTH, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use muster_protocol::api;
use muster_protocol::ids::{Sha256, to_hex};
use muster_protocol::narinfo::{MAX_NARINFO_BYTES, NarFile, Narinfo, is_base32};
use muster_protocol::random;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;

use crate::client::{Client, ClientError};

/// How long the controller may be silent within an archive.
const STALL: Duration = Duration::from_secs(60);
/// How long a connected program may take to send its request.
const HEAD_WAIT: Duration = Duration::from_secs(30);
/// Connections at once; Nix opens 25.
const CONNECTIONS: usize = 256;
/// The most paths of one closure; a large system has some ten thousand.
const MAX_PATHS: usize = 200_000;

/// What a run of Nix may take from the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takes {
    /// Only paths that are named by their content.
    Derivations,
    /// Outputs too, under signatures that Nix checks.
    Outputs,
}

/// Why the cache withheld something from Nix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Trouble {
    /// What arrived is not what it claims to be.
    Altered(String),
    /// The controller denies this machine access.
    Refused(String),
    /// The controller or the network failed.
    Away(String),
}

/// Serves until it is dropped.
pub struct Cache {
    url: String,
    netrc: Option<PathBuf>,
    shared: Arc<Shared>,
    accepting: AbortHandle,
}

struct Shared {
    client: Client,
    takes: Takes,
    /// The first part of every path: a secret from everyone who cannot read Nix's environment.
    name: String,
    /// The password required where the address is public.
    password: Option<String>,
    described: Mutex<HashMap<NarFile, u64>>,
    trouble: Mutex<Option<Trouble>>,
}

type Body = UnsyncBoxBody<Bytes, io::Error>;

impl Cache {
    /// A cache whose address goes to Nix as an argument, which every user of the machine can read: `netrc`
    /// will hold the password for it.
    pub async fn with_password(client: &Client, takes: Takes, netrc: &Path) -> io::Result<Self> {
        let password = secret()?;
        let header = format!("Basic {}", STANDARD.encode(format!("muster:{password}")));
        let mut cache = Self::open(client, takes, Some(header)).await?;
        write_privately(netrc, &format!("machine 127.0.0.1 login muster password {password}\n"))?;
        cache.netrc = Some(netrc.to_owned());
        Ok(cache)
    }

    /// A cache whose address itself is the secret.
    pub async fn by_secret_address(client: &Client, takes: Takes) -> io::Result<Self> {
        Self::open(client, takes, None).await
    }

    async fn open(client: &Client, takes: Takes, password: Option<String>) -> io::Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let name = secret()?;
        // New for each run, so that Nix remembers nothing about it.
        let url = format!("http://{}/{name}", listener.local_addr()?);
        let shared = Arc::new(Shared {
            client: client.clone(),
            takes,
            name,
            password,
            described: Mutex::default(),
            trouble: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone())).abort_handle();
        Ok(Self { url, netrc: None, shared, accepting })
    }

    pub fn url(&self) -> &str {
        &self.url
    }

    /// What was withheld from Nix, if anything.
    pub fn trouble(&self) -> Option<Trouble> {
        lock(&self.shared.trouble).clone()
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.accepting.abort();
        if let Some(netrc) = &self.netrc {
            let _ = std::fs::remove_file(netrc);
        }
    }
}

fn secret() -> io::Result<String> {
    Ok(to_hex(&random::bytes::<16>().map_err(io::Error::other)?))
}

/// Valid for one run of Nix, so it need not survive a power cut.
fn write_privately(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(text.as_bytes())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Its connections end with it.
async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = tokio::task::JoinSet::new();
    let free = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(permit) = free.clone().acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = shared.clone();
                connections.spawn(async move {
                    serve(stream, shared).await;
                    drop(permit);
                });
            }
            // For example, too many files are open.
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

async fn serve(stream: TcpStream, shared: Arc<Shared>) {
    let answer = service_fn(move |request| {
        let shared = shared.clone();
        async move { Ok::<_, Infallible>(shared.answer(&request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEAD_WAIT);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), answer).await {
        tracing::debug!("a connection to the cache ended: {error}");
    }
}

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Response<Body> {
    let mut response = Response::new(Full::new(text.into()).map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn nothing() -> Response<Body> {
    plain(StatusCode::NOT_FOUND, "")
}

impl Shared {
    async fn answer(self: Arc<Self>, request: &Request<Incoming>) -> Response<Body> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return plain(StatusCode::METHOD_NOT_ALLOWED, "");
        }
        let path = request.uri().path();
        let Some((name, file)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
            return nothing();
        };
        if !same(name, &self.name) {
            return nothing();
        }
        if let Some(password) = &self.password {
            let said = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
            if !said.is_some_and(|said| same(said, password)) {
                let mut response = plain(StatusCode::UNAUTHORIZED, "");
                let ask = HeaderValue::from_static("Basic realm=\"muster\"");
                response.headers_mut().insert(WWW_AUTHENTICATE, ask);
                return response;
            }
        }
        if file == "nix-cache-info" {
            return plain(StatusCode::OK, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
        }
        if let Some(hash) = file.strip_suffix(".narinfo").filter(|hash| is_base32(hash, 32)) {
            return self.narinfo(hash).await;
        }
        match file.strip_prefix("nar/").and_then(NarFile::parse) {
            Some(nar) => self.nar(nar, request.method() == Method::HEAD).await,
            None => nothing(),
        }
    }

    async fn narinfo(&self, hash: &str) -> Response<Body> {
        let path = format!("{}/{hash}.narinfo", api::CACHE);
        let bytes = match self.client.get(&path, MAX_NARINFO_BYTES as u64).await {
            Ok(Some(bytes)) => bytes,
            Ok(None) => return nothing(),
            Err(error) => return self.failed(&error),
        };
        match self.checked(hash, &bytes) {
            Ok(text) => plain(StatusCode::OK, text),
            Err(detail) => self.altered(format!("the description of {hash} is refused: {detail}")),
        }
    }

    fn checked(&self, hash: &str, bytes: &[u8]) -> Result<String, String> {
        let info = Narinfo::parse(bytes).map_err(|error| error.to_string())?;
        if info.path.hash_part() != hash {
            return Err(format!("it describes {}", info.path));
        }
        if self.takes == Takes::Derivations && info.ca.is_none() {
            return Err("it does not say which content names the path".to_owned());
        }
        let mut described = lock(&self.described);
        if described.len() >= MAX_PATHS {
            return Err(format!("it has more than {MAX_PATHS} paths"));
        }
        // Two paths with the same content may share an archive, and it has one length: the first description
        // stays.
        if *described.entry(info.file.clone()).or_insert(info.file_size) != info.file_size {
            return Err("another description gives its archive another length".to_owned());
        }
        Ok(info.text())
    }

    /// Only what a checked description named is requested.
    async fn nar(self: Arc<Self>, nar: NarFile, head: bool) -> Response<Body> {
        let size = lock(&self.described).get(&nar).copied();
        let Some(size) = size else { return nothing() };
        let path = format!("{}/{}", api::CACHE, nar.key());
        let response = match self.client.open(&path).await {
            Ok(response) => response,
            Err(ClientError::Refused { status: 404, .. }) => return nothing(),
            Err(error) => return self.failed(&error),
        };
        if response.content_length().is_some_and(|length| length != size) {
            return self.altered(format!("the archive {} has another length than was described", nar.key()));
        }
        let body = if head {
            http_body_util::Empty::new().map_err(|never| match never {}).boxed_unsync()
        } else {
            self.exactly(response, nar, size)
        };
        let mut answer = Response::new(body);
        answer.headers_mut().insert(CONTENT_LENGTH, size.into());
        answer
    }

    /// An answer of exactly this many bytes; otherwise the connection breaks off.
    fn exactly(self: Arc<Self>, response: reqwest::Response, nar: NarFile, size: u64) -> Body {
        let from = (response, size, self, nar);
        let pieces = stream::try_unfold(from, |(mut response, left, shared, nar)| async move {
            let piece = tokio::time::timeout(STALL, response.chunk()).await;
            let piece =
                piece.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)?;
            let Some(piece) = piece else {
                return if left == 0 { Ok(None) } else { Err(io::ErrorKind::UnexpectedEof.into()) };
            };
            let Some(left) = left.checked_sub(piece.len() as u64) else {
                shared.altered(format!("the archive {} is longer than was described", nar.key()));
                return Err(io::ErrorKind::InvalidData.into());
            };
            Ok(Some((Frame::data(piece), (response, left, shared, nar))))
        });
        StreamBody::new(pieces).boxed_unsync()
    }

    /// Nix treats 404 as final, and retries anything else.
    fn altered(&self, detail: String) -> Response<Body> {
        self.note(Trouble::Altered(detail));
        nothing()
    }

    fn failed(&self, error: &ClientError) -> Response<Body> {
        let (status, trouble) = match error {
            ClientError::Refused { status: 401 | 403, .. } => {
                (StatusCode::FORBIDDEN, Trouble::Refused(error.to_string()))
            }
            ClientError::TooLarge { .. } => (StatusCode::NOT_FOUND, Trouble::Altered(error.to_string())),
            _ => (StatusCode::SERVICE_UNAVAILABLE, Trouble::Away(error.to_string())),
        };
        self.note(trouble);
        plain(status, "")
    }

    /// The first one is the cause, and altered content takes precedence over an unreachable controller.
    fn note(&self, trouble: Trouble) {
        let mut held = lock(&self.trouble);
        let outranks =
            matches!((&*held, &trouble), (Some(Trouble::Away(_)), Trouble::Altered(_) | Trouble::Refused(_)));
        if held.is_none() || outranks {
            tracing::debug!(?trouble, "the cache withholds something from Nix");
            *held = Some(trouble);
        }
    }
}

/// Compared by hash, so that the time it takes reveals nothing.
fn same(said: &str, wanted: &str) -> bool {
    Sha256::of(said.as_bytes()) == Sha256::of(wanted.as_bytes())
}
