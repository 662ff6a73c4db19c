//! What the cache's files may be stored in: a folder, `s3s-fs` in this process, and any S3 store that the
//! environment names (`tests/blobs` starts garage for it). A proxy in front of a store fails as it is told.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;

pub const ID: &str = "muster-test-id";
pub const SECRET: &str = "muster-test-secret";
/// `ENDPOINT BUCKET REGION ID SECRET`, separated by spaces.
const OUTSIDE: &str = "MUSTER_TEST_S3";

/// A store, and the lines of `controller.toml` that name it.
pub struct Store {
    pub name: &'static str,
    pub config: String,
    pub proxy: Option<Proxy>,
    dir: tempfile::TempDir,
    serving: Option<JoinHandle<()>>,
}

impl Drop for Store {
    fn drop(&mut self) {
        if let Some(serving) = &self.serving {
            serving.abort();
        }
    }
}

/// One of each kind that there is here.
pub async fn each() -> Vec<Store> {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("cache");
    let config = format!("blobs = \"{}\"\n", folder.display());
    let mut stores = vec![Store { name: "folder", config, proxy: None, dir, serving: None }, s3().await];
    stores.extend(outside().await);
    stores
}

/// The S3 stores.
pub async fn buckets() -> Vec<Store> {
    let mut stores = vec![s3().await];
    stores.extend(outside().await);
    stores
}

/// `s3s-fs`, with a bucket `cache`.
pub async fn s3() -> Store {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("store/cache")).unwrap();
    let store = s3s_fs::FileSystem::new(dir.path().join("store")).unwrap();
    let mut builder = s3s::service::S3ServiceBuilder::new(store);
    builder.set_auth(s3s::auth::SimpleAuth::from_single(ID, SECRET));
    let service = builder.build();
    let answer = move |request: axum::extract::Request| {
        let service = service.clone();
        async move {
            let response = tower::ServiceExt::oneshot(service, request).await.unwrap();
            response.map(axum::body::Body::new)
        }
    };
    serve("s3s-fs", axum::Router::new().fallback(answer), dir).await
}

/// A store in which no bucket exists; `s3s-fs` makes some of them by itself.
pub async fn without_buckets() -> Store {
    let answer = || async {
        let text = "<Error><Code>NoSuchBucket</Code><Message>There is none.</Message></Error>";
        (axum::http::StatusCode::NOT_FOUND, text)
    };
    serve("empty", axum::Router::new().fallback(answer), tempfile::tempdir().unwrap()).await
}

async fn serve(name: &'static str, router: axum::Router, dir: tempfile::TempDir) -> Store {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let proxy = Proxy::start(address).await;
    let config = config(dir.path(), proxy.address, "cache/some/prefix", "us-east-1", ID, SECRET, "");
    Store { name, config, proxy: Some(proxy), dir, serving: Some(serving) }
}

async fn outside() -> Option<Store> {
    let named = std::env::var(OUTSIDE).ok()?;
    let [endpoint, bucket, region, id, secret] = named.split(' ').collect::<Vec<_>>()[..] else {
        panic!("{OUTSIDE} must be ENDPOINT BUCKET REGION ID SECRET")
    };
    let dir = tempfile::tempdir().unwrap();
    let address = endpoint.strip_prefix("http://").unwrap().parse().unwrap();
    let proxy = Proxy::start(address).await;
    // Each test has a place of its own in the bucket.
    let place = dir.path().file_name().unwrap().to_str().unwrap().replace('.', "");
    let config = config(dir.path(), proxy.address, &format!("{bucket}/{place}"), region, id, secret, "");
    // One that waits for its disk takes longer.
    let config = config.replace("timeout_seconds = 1", "timeout_seconds = 5");
    Some(Store { name: "outside", config, proxy: Some(proxy), dir, serving: None })
}

/// Short limits, so that a store that is away is noticed soon.
pub fn config(
    dir: &Path,
    at: SocketAddr,
    bucket: &str,
    region: &str,
    id: &str,
    secret: &str,
    more: &str,
) -> String {
    let file = dir.join("credentials.toml");
    std::fs::write(&file, format!("access_key_id = \"{id}\"\nsecret_access_key = \"{secret}\"\n")).unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    format!(
        "blobs = \"s3://{bucket}\"\n[s3]\nendpoint = \"http://{at}\"\nregion = \"{region}\"\n\
         credentials = \"{}\"\ntimeout_seconds = 1\nretries = 1\n{more}",
        file.display()
    )
}

impl Store {
    pub fn proxy(&self) -> &Proxy {
        self.proxy.as_ref().unwrap()
    }
    /// A bucket's configuration with another name or another secret.
    pub fn config_of(&self, bucket: &str, secret: &str) -> String {
        config(self.dir.path(), self.proxy().address, bucket, "us-east-1", ID, secret, "")
    }
    /// Every file and every part of an unfinished upload that lies in the store, where that can be seen from
    /// outside.
    pub fn files(&self) -> Option<Vec<String>> {
        let mut found = Vec::new();
        match self.name {
            "folder" => walk(&self.dir.path().join("cache"), &mut found),
            "s3s-fs" => {
                walk(&self.dir.path().join("store/cache"), &mut found);
                let beside = std::fs::read_dir(self.dir.path().join("store")).unwrap();
                let names = beside.map(|entry| entry.unwrap().file_name().into_string().unwrap());
                found.extend(names.filter(|name| name.starts_with(".upload")));
            }
            _ => return None,
        }
        Some(found)
    }
}

fn walk(folder: &Path, found: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let entry = entry.unwrap();
        match entry.file_type().unwrap().is_dir() {
            true => walk(&entry.path(), found),
            false => found.push(entry.file_name().into_string().unwrap()),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    Through,
    /// Every connection ends.
    Dead,
    /// Every request is answered with status 500.
    Failing,
    /// Nothing is answered.
    Silent,
}

/// Stands between a controller and its store.
pub struct Proxy {
    pub address: SocketAddr,
    mode: watch::Sender<Mode>,
    /// Bytes that went to the store.
    sent: Arc<AtomicU64>,
    accepting: JoinHandle<()>,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Proxy {
    async fn start(store: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (mode, modes) = watch::channel(Mode::Through);
        let sent = Arc::<AtomicU64>::default();
        let counter = sent.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (client, _) = listener.accept().await.unwrap();
                tokio::spawn(connection(client, store, modes.clone(), counter.clone()));
            }
        });
        Self { address, mode, sent, accepting }
    }
    /// Ends all connections, and treats later ones like this.
    pub fn turn(&self, mode: Mode) {
        self.mode.send_replace(mode);
    }
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

async fn connection(
    mut client: TcpStream,
    store: SocketAddr,
    mut modes: watch::Receiver<Mode>,
    sent: Arc<AtomicU64>,
) {
    let mode = *modes.borrow_and_update();
    let serve = async {
        match mode {
            Mode::Dead => {}
            Mode::Silent => std::future::pending().await,
            Mode::Failing => {
                let mut bytes = [0; 65536];
                while client.read(&mut bytes).await.is_ok_and(|read| read > 0) {
                    let answer = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n";
                    let _ = client.write_all(answer).await;
                }
            }
            Mode::Through => {
                let Ok(mut server) = TcpStream::connect(store).await else { return };
                let ((mut from, mut to), (mut back, mut there)) = (client.split(), server.split());
                let up = async {
                    let mut bytes = vec![0; 65536];
                    while let Ok(read @ 1..) = from.read(&mut bytes).await {
                        if there.write_all(&bytes[..read]).await.is_err() {
                            break;
                        }
                        sent.fetch_add(read as u64, Ordering::SeqCst);
                    }
                    let _ = there.shutdown().await;
                };
                tokio::join!(up, async {
                    let _ = tokio::io::copy(&mut back, &mut to).await;
                    let _ = to.shutdown().await;
                });
            }
        }
    };
    tokio::select! {
        () = serve => {}
        _ = modes.changed() => {}
    }
}
