//! The controller's cache as Nix on the operator's computer sees it: a small server on loopback, for one run
//! of Nix.
//!
//! Nix trusts a description's `URL`, follows redirects, and unpacks whatever it gets. So it never talks to
//! the controller directly: this server reads, checks and rewrites every description, unpacks archives within
//! the size described, and limits answers in size and time. The operator's bearer stays here, too.

mod answers;
mod archive;
mod state;

use std::io::{self, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::TryStreamExt as _;
use muster_protocol::ids::{Sha256, to_hex};
use muster_protocol::narinfo::{MAX_NARINFO_BYTES, NarFile, Narinfo, is_base32};
use muster_protocol::random;
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

pub use self::answers::Trouble;
use self::answers::{Stop, altered, away, slow};
pub(super) use self::answers::{bounded, good, sent};
use self::state::{Archive, PIECE, Shared, lock};
pub use self::state::{Cache, Way};

/// How long the controller may take to begin an answer, to send a description, and to send each [`PIECE`] of
/// an archive.
const WAIT: Duration = Duration::from_secs(60);
/// How many times that long an upload may stall: the controller writes large archives to disk at their end.
const UPLOAD_WAITS: u32 = 5;

/// Serves until it is dropped.
pub struct Gate {
    url: String,
    netrc: tempfile::NamedTempFile,
    shared: Arc<Shared>,
    serving: AbortHandle,
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
    /// The netrc file with its password.
    pub fn netrc(&self) -> String {
        self.netrc.path().to_string_lossy().into_owned()
    }
    /// What was withheld from Nix, if anything.
    pub fn trouble(&self) -> Option<Trouble> {
        lock(&self.shared.trouble).clone()
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    if !shared.knows(request.headers()) {
        let ask = [(header::WWW_AUTHENTICATE, HeaderValue::from_static("Basic realm=\"muster\""))];
        return (StatusCode::UNAUTHORIZED, ask).into_response();
    }
    match shared.answered(request).await {
        Ok(response) => response,
        // For Nix, 404 is final; it retries anything else.
        Err(Stop::Nothing) => StatusCode::NOT_FOUND.into_response(),
        Err(Stop::Status(status, message)) => (status, message).into_response(),
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
            // As `muster update` uploads it.
            "zstd" => true,
            _ => return Err(refused("its archive is packed in a way that operators never use")),
        };
        match info.ca {
            Some(_) => {}
            // Always content-addressed.
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

    /// Serves only archives that a checked description named, unpacked and at the described length. A broken
    /// copy is replaced by another copy of the same content, if there is one.
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

    /// A small file, whole.
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

#[cfg(test)]
mod tests;
