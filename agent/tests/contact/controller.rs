//! A controller whose every answer is decided by the test.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use muster_agent::config::Config;
use muster_agent::identity::{Enrolment, Identity, Keys};
use muster_protocol::api::{self, Problem, ProblemCode};
use muster_protocol::enrol::{EnrolReply, EnrolRequest};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::{PublicKey, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::Publication;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root, sign_timestamp};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

/// The time at which everything here happens, in Unix seconds.
pub const NOW: i64 = 1_800_000_000;
pub const DAY: i64 = 86_400;
pub const BEARER: &str = "the-bearer";

/// A request as received.
#[derive(Debug, Clone)]
pub struct Received {
    pub path: String,
    pub headers: axum::http::HeaderMap,
    pub body: Bytes,
}

type Answer = Arc<dyn Fn(&Received) -> Response + Send + Sync>;

#[derive(Default)]
struct Inner {
    files: BTreeMap<String, Vec<u8>>,
    answers: BTreeMap<String, Answer>,
    seen: Vec<Received>,
    check_key: Option<Sha256>,
    enrolled: Option<PublicKey>,
    lose_replies: u32,
}

/// Connections over TLS.
struct Tls {
    listener: TcpListener,
    acceptor: TlsAcceptor,
}

impl axum::serve::Listener for Tls {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, SocketAddr) {
        loop {
            let Ok((stream, address)) = self.listener.accept().await else { continue };
            if let Ok(stream) = self.acceptor.accept(stream).await {
                return (stream, address);
            }
        }
    }
    fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }
}

#[derive(Clone)]
pub struct Controller {
    inner: Arc<Mutex<Inner>>,
    pub url: String,
}

impl Controller {
    pub async fn start() -> Self {
        let inner = Arc::new(Mutex::new(Inner::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(serve).with_state(Arc::clone(&inner));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { inner, url }
    }

    /// The same over TLS, with a certificate for 127.0.0.1 from an authority of its own. Returns the
    /// authority as in a token: DER in base64.
    pub async fn start_tls() -> (Self, String) {
        use rustls::pki_types::PrivateKeyDer;
        let inner = Arc::new(Mutex::new(Inner::default()));
        let (ca_key, server_key) = (rcgen::KeyPair::generate().unwrap(), rcgen::KeyPair::generate().unwrap());
        let mut ca = rcgen::CertificateParams::default();
        ca.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
        ca.distinguished_name.push(rcgen::DnType::CommonName, "a fleet's authority");
        let authority = ca.self_signed(&ca_key).unwrap();
        let server = rcgen::CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        let server = server.signed_by(&server_key, &rcgen::Issuer::new(ca, ca_key)).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![server.der().clone(), authority.der().clone()],
                PrivateKeyDer::try_from(server_key.serialize_der()).unwrap(),
            )
            .unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("https://{}", listener.local_addr().unwrap());
        let app = Router::new().fallback(serve).with_state(Arc::clone(&inner));
        let listener = Tls { listener, acceptor: Arc::new(config).into() };
        tokio::spawn(async move { axum::serve(listener, app).await });
        let base64 = authority.pem().lines().filter(|line| !line.starts_with('-')).collect();
        (Self { inner, url }, base64)
    }

    /// Serves these bytes at this path.
    pub fn put(&self, path: &str, bytes: impl Into<Vec<u8>>) {
        self.inner.lock().unwrap().files.insert(path.to_owned(), bytes.into());
    }
    pub fn take(&self, path: &str) -> Option<Vec<u8>> {
        self.inner.lock().unwrap().files.remove(path)
    }
    pub fn file(&self, path: &str) -> Vec<u8> {
        self.inner.lock().unwrap().files[path].clone()
    }
    /// Answers this path with `answer`.
    pub fn answer(&self, path: &str, answer: impl Fn(&Received) -> Response + Send + Sync + 'static) {
        self.inner.lock().unwrap().answers.insert(path.to_owned(), Arc::new(answer));
    }
    /// The requests, oldest first.
    pub fn seen(&self) -> Vec<Received> {
        self.inner.lock().unwrap().seen.clone()
    }
    pub fn expect_enrolment(&self, check_key: Sha256) {
        self.inner.lock().unwrap().check_key = Some(check_key);
    }
    pub fn enrolled(&self) -> Option<PublicKey> {
        self.inner.lock().unwrap().enrolled
    }
    /// A new token: machines enrolled with the last one do not count.
    pub fn forget_enrolment(&self) {
        self.inner.lock().unwrap().enrolled = None;
    }
    /// Grants the next enrolments, and answers with a broken connection.
    pub fn lose_replies(&self, count: u32) {
        self.inner.lock().unwrap().lose_replies = count;
    }

    /// Serves a generation as the controller of `fleet`.
    pub fn publish(&self, fleet: &Fleet, publication: &Publication) {
        let machine = &fleet.machine;
        let base = api::tuf_path(machine);
        let n = publication.generation.get();
        self.put(&format!("{base}/{n}.snapshot.json"), publication.snapshot.as_bytes());
        self.put(&format!("{base}/{n}.targets.json"), publication.targets.as_bytes());
        let hash = Sha256::of(publication.target.as_bytes());
        self.put(&api::target_path(machine, &hash), publication.target.as_bytes());
        self.put(&format!("{base}/timestamp.json"), fleet.timestamp(&publication.snapshot, NOW + DAY));
    }
}

async fn serve(State(inner): State<Arc<Mutex<Inner>>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let body = axum::body::to_bytes(body, 4 << 20).await.unwrap();
    let seen = Received { path, headers: parts.headers, body };
    let mut inner = inner.lock().unwrap();
    inner.seen.push(seen.clone());
    let plain = seen.path.split('?').next().unwrap();
    if let Some(answer) = inner.answers.get(plain).cloned() {
        drop(inner);
        return answer(&seen);
    }
    if plain == api::ENROL {
        return inner.enrol(&seen);
    }
    match inner.files.get(plain) {
        Some(bytes) => bytes.clone().into_response(),
        None => problem(StatusCode::NOT_FOUND, ProblemCode::NotFound, "there is no such file"),
    }
}

pub fn problem(status: StatusCode, code: ProblemCode, message: &str) -> Response {
    let problem = Problem { code, message: message.to_owned() };
    (status, [(header::CONTENT_TYPE, "application/json")], serde_json::to_vec(&problem).unwrap())
        .into_response()
}

impl Inner {
    fn enrol(&mut self, seen: &Received) -> Response {
        let request: EnrolRequest = serde_json::from_slice(&seen.body).unwrap();
        let Some(check_key) = self.check_key else {
            return problem(StatusCode::NOT_FOUND, ProblemCode::TokenUnknown, "this token is not known here");
        };
        if request.verify(&check_key).is_err() {
            return problem(StatusCode::FORBIDDEN, ProblemCode::BadSignature, "the code does not fit");
        }
        if self.enrolled.is_some_and(|key| key != request.key) {
            return problem(
                StatusCode::GONE,
                ProblemCode::TokenUsed,
                "the token was used already: make another",
            );
        }
        self.enrolled = Some(request.key);
        if self.lose_replies > 0 {
            self.lose_replies -= 1;
            let cut = futures_util::stream::iter([Err::<Bytes, _>(std::io::Error::other("cut"))]);
            return Body::from_stream(cut).into_response();
        }
        serde_json::to_vec(&EnrolReply { machine: request.machine }).unwrap().into_response()
    }
}

/// The keys of a fleet with one machine.
pub struct Fleet {
    pub machine: MachineName,
    pub class: Class,
    pub operator: SecretKey,
    pub online: SecretKey,
    pub root_key: SecretKey,
    pub root: Vec<u8>,
}

impl Fleet {
    pub fn new() -> Self {
        let [operator, online, root_key] = [(); 3].map(|()| SecretKey::generate().unwrap());
        let root = root_of(1, &root_key, &operator, &online, NOW + 365 * DAY);
        Self { machine: "cinnabar".parse().unwrap(), class: Class::Nixos, operator, online, root_key, root }
    }

    pub fn target(&self, generation: u64) -> Target {
        serde_json::from_value(serde_json::json!({
            "machine": self.machine, "class": self.class, "generation": generation, "system": "x86_64-linux",
            "derivation": format!("/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system-{generation}.drv"),
            "output": format!("/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system-{generation}"),
        }))
        .unwrap()
    }
    pub fn publication(&self, generation: u64) -> Publication {
        sign_generation(&self.target(generation), NOW + 30 * DAY, &[&self.operator]).unwrap()
    }
    pub fn timestamp(&self, snapshot: &str, expires: i64) -> Vec<u8> {
        static VERSION: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(10);
        let version = VERSION.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        // For whichever machine: the online key signs every snapshot.
        let parsed: serde_json::Value = serde_json::from_str(snapshot).unwrap();
        let machine = parsed["signed"]["x-muster-machine"].as_str().unwrap().parse().unwrap();
        sign_timestamp(&machine, snapshot.as_bytes(), version, expires, &self.online).unwrap()
    }
    /// An enrolled machine of this fleet.
    pub fn enrol(&self, state: &Path, url: &str) -> (Config, Identity) {
        self.enrol_pinned(state, url, None)
    }
    /// The same with a certificate authority from its token.
    pub fn enrol_pinned(&self, state: &Path, url: &str, tls_ca: Option<String>) -> (Config, Identity) {
        let mut config = Config::parse("", "/nowhere/agent.toml".into()).unwrap();
        config.state_dir = state.to_path_buf();
        std::fs::create_dir_all(state.join("tuf")).unwrap();
        std::fs::write(state.join("tuf/root.json"), &self.root).unwrap();
        Keys::load_or_make(state).unwrap();
        let enrolment = Enrolment {
            version: 1,
            machine: self.machine.clone(),
            class: self.class,
            system: "x86_64-linux".parse().unwrap(),
            fleet: Sha256::of(&self.root),
            url: url.to_owned(),
            lowest_generation: Generation::FIRST,
            tls_ca,
            enrolled_at: NOW * 1000,
        };
        Identity::save(state, &enrolment).unwrap();
        let identity = Identity::load(&config).unwrap().unwrap();
        (config, identity)
    }
}

pub fn root_of(
    version: u64,
    root: &SecretKey,
    operator: &SecretKey,
    online: &SecretKey,
    expires: i64,
) -> Vec<u8> {
    let spec = RootSpec {
        version,
        epoch: Default::default(),
        expires,
        root: (vec![root.public()], 1),
        operators: (vec![operator.public()], 1),
        online: vec![online.public()],
    };
    sign_root(&spec, &[root]).unwrap()
}
