//! A thief of the controller's address: stands between machines and controller, and answers as it likes.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Result;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode};
use axum::response::{IntoResponse, Response};

/// A response on its way to the machine.
#[derive(Debug, Clone, Default)]
pub struct Answer {
    pub method: String,
    pub path: String,
    pub status: u16,
    pub body: Vec<u8>,
    /// The target of a redirect.
    pub location: Option<String>,
    /// `Retry-After`, in seconds.
    pub retry_after: Option<u64>,
}

/// A request as received from the machine.
#[derive(Debug, Clone)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: HeaderMap,
    pub body: Vec<u8>,
}

type Rule = Box<dyn FnMut(&mut Answer) + Send>;
type Catch = Box<dyn FnMut(&Asked) -> Option<Answer> + Send>;

/// Runs until dropped.
pub struct Thief {
    pub url: String,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    upstream: Mutex<String>,
    rule: Mutex<Option<Rule>>,
    catch: Mutex<Option<Catch>>,
    seen: Mutex<Vec<Answer>>,
    asked: Mutex<Vec<Asked>>,
    client: reqwest::Client,
}

/// The limits of one request and its response.
const PATIENCE: Duration = Duration::from_secs(120);
const MAX_BODY: usize = 64 * 1024 * 1024;

impl Thief {
    /// Listens on a port of its own and forwards everything to `upstream` (`http://ADDRESS`), once that is
    /// set.
    pub fn start() -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        // Another test of this process may already have installed it.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().timeout(PATIENCE).no_proxy().build()?;
        let shared = Arc::new(Shared {
            upstream: Mutex::default(),
            rule: Mutex::new(None),
            catch: Mutex::new(None),
            seen: Mutex::default(),
            asked: Mutex::default(),
            client,
        });
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0"))?;
        let url = format!("http://{}", listener.local_addr()?);
        let router = axum::Router::new().fallback(pass).with_state(Arc::clone(&shared));
        runtime.spawn(async move {
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { url, shared, _runtime: runtime })
    }

    pub fn passes_on_to(&self, upstream: &str) {
        *lock(&self.shared.upstream) = upstream.to_owned();
    }

    /// From now on every response passes through `rule`.
    pub fn bend(&self, rule: impl FnMut(&mut Answer) + Send + 'static) {
        *lock(&self.shared.rule) = Some(Box::new(rule));
    }

    /// From now on `catch` may answer requests before they reach the controller; the others are forwarded.
    pub fn intercept(&self, catch: impl FnMut(&Asked) -> Option<Answer> + Send + 'static) {
        *lock(&self.shared.catch) = Some(Box::new(catch));
    }

    /// Forwards everything honestly again.
    pub fn behave(&self) {
        *lock(&self.shared.rule) = None;
        *lock(&self.shared.catch) = None;
    }

    /// Every request so far, as received.
    pub fn asked(&self) -> Vec<Asked> {
        lock(&self.shared.asked).clone()
    }

    /// Everything that was forwarded honestly so far, with the machine's paths.
    pub fn seen(&self) -> Vec<Answer> {
        lock(&self.shared.seen).clone()
    }

    pub fn forget(&self) {
        lock(&self.shared.seen).clear();
        lock(&self.shared.asked).clear();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let Ok(body) = axum::body::to_bytes(body, MAX_BODY).await else {
        return StatusCode::PAYLOAD_TOO_LARGE.into_response();
    };
    let path = parts.uri.path_and_query().map_or("/".into(), ToString::to_string);
    let asked = Asked {
        method: parts.method.to_string(),
        path: path.clone(),
        headers: parts.headers.clone(),
        body: body.to_vec(),
    };
    let caught = lock(&shared.catch).as_mut().and_then(|catch| catch(&asked));
    lock(&shared.asked).push(asked);
    if let Some(answer) = caught {
        return respond(&HeaderMap::new(), answer);
    }
    match ask(&shared, &parts.method, &path, &parts.headers, body).await {
        Ok((headers, mut answer)) => {
            lock(&shared.seen).push(answer.clone());
            if let Some(rule) = lock(&shared.rule).as_mut() {
                rule(&mut answer);
            }
            respond(&headers, answer)
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

fn respond(headers: &HeaderMap, answer: Answer) -> Response {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut response = (status, answer.body).into_response();
    for name in ["content-type", "www-authenticate", "retry-after"] {
        if let Some(value) = headers.get(name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    if let Some(location) = answer.location.and_then(|location| location.parse().ok()) {
        response.headers_mut().insert("location", location);
    }
    if let Some(seconds) = answer.retry_after {
        response.headers_mut().insert("retry-after", seconds.into());
    }
    response
}

/// A poll's reply without the files that come along.
fn without_files(body: Vec<u8>) -> Vec<u8> {
    let Ok(serde_json::Value::Object(mut reply)) = serde_json::from_slice(&body) else { return body };
    match reply.remove("files") {
        Some(_) => serde_json::Value::Object(reply).to_string().into_bytes(),
        None => body,
    }
}

async fn ask(
    shared: &Shared,
    method: &Method,
    path: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> reqwest::Result<(HeaderMap, Answer)> {
    let upstream = lock(&shared.upstream).clone();
    let mut request = shared.client.request(method.clone(), format!("{upstream}{path}")).body(body);
    for (name, value) in headers {
        if !["host", "connection", "content-length", "transfer-encoding", "expect"].contains(&name.as_str()) {
            request = request.header(name, value);
        }
    }
    let response = request.send().await?;
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let mut body = response.bytes().await?.to_vec();
    if path.contains("/poll?") {
        // A thief's controller lets machines fetch each file, where rules can bend it.
        body = without_files(body);
    }
    let (method, path) = (method.to_string(), path.to_owned());
    Ok((headers, Answer { method, path, status, body, ..Answer::default() }))
}
