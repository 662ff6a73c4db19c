use std::collections::BTreeMap;

use async_compression::tokio::write::ZstdEncoder;
use muster_protocol::ids::nix_base32;
use tokio::io::AsyncWriteExt as _;

use super::*;

const DRV: &str = "0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl";

#[derive(Default)]
struct Told {
    /// What is answered, by path.
    files: BTreeMap<String, (u16, Vec<u8>)>,
    asked: Vec<String>,
    brought: Vec<u8>,
}

/// A controller whose cache answers what it is told to.
struct Controller {
    url: Url,
    told: Arc<Mutex<Told>>,
}

impl Controller {
    async fn start() -> Self {
        let told: Arc<Mutex<Told>> = Arc::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let shared = Arc::clone(&told);
        let router = axum::Router::new().fallback(move |request: Request| {
            let told = Arc::clone(&shared);
            async move {
                let (parts, body) = request.into_parts();
                let body = axum::body::to_bytes(body, usize::MAX).await.unwrap();
                let mut told = lock(&told);
                let bearer = parts.headers.get("authorization").and_then(|value| value.to_str().ok());
                told.asked.push(format!("{} {} {}", parts.method, parts.uri.path(), bearer.unwrap_or("-")));
                told.brought.extend_from_slice(&body);
                match told.files.get(parts.uri.path()) {
                    Some((status, bytes)) => {
                        let status = StatusCode::from_u16(*status).unwrap();
                        let location = [("location", "http://127.0.0.1:1/elsewhere")];
                        (status, location, bytes.clone()).into_response()
                    }
                    None => StatusCode::NOT_FOUND.into_response(),
                }
            }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, told }
    }
    fn put(&self, file: &str, status: u16, bytes: impl Into<Vec<u8>>) {
        lock(&self.told).files.insert(format!("/cache/{file}"), (status, bytes.into()));
    }
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut lock(&self.told).asked)
    }
    async fn gate(&self, way: Way) -> Gate {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
        Gate::open(&Cache::new(http.unwrap(), self.url.clone(), "secret".into()), way).await.unwrap()
    }
}

/// As Nix asks.
async fn ask(gate: &Gate, method: &str, file: &str, body: &'static [u8]) -> (u16, Option<Vec<u8>>) {
    let netrc = std::fs::read_to_string(gate.netrc()).unwrap();
    let password = netrc.split_whitespace().last().unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = http.request(method.parse().unwrap(), format!("{}/{file}", gate.url())).body(body);
    // It may break off before anything of it was sent.
    let Ok(answer) = request.basic_auth("muster", Some(password)).send().await else { return (0, None) };
    (answer.status().as_u16(), answer.bytes().await.ok().map(Vec::from))
}

async fn get(gate: &Gate, file: &str) -> (u16, Option<Vec<u8>>) {
    ask(gate, "GET", file, b"").await
}

async fn zstd(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = ZstdEncoder::new(Vec::new());
    encoder.write_all(bytes).await.unwrap();
    encoder.shutdown().await.unwrap();
    encoder.into_inner()
}

fn hash(bytes: &[u8]) -> String {
    nix_base32(&Sha256::of(bytes))
}

/// The description of an archive, packed with zstd.
fn narinfo(packed: &[u8], nar_hash: &str, nar_size: u64) -> String {
    let file = hash(packed);
    format!(
        "StorePath: /nix/store/{DRV}-system.drv\nURL: nar/{file}.nar.zst\nCompression: zstd\nFileHash: sha256:{file}\n\
         FileSize: {}\nNarHash: sha256:{nar_hash}\nNarSize: {nar_size}\nReferences: \nCA: text:sha256:{nar_hash}\n",
        packed.len()
    )
}

async fn holds(controller: &Controller, nar: &[u8], told: u64) -> String {
    let packed = zstd(nar).await;
    let key = format!("nar/{}.nar.zst", hash(&packed));
    let info = narinfo(&packed, &hash(nar), told);
    controller.put(&key, 200, packed);
    controller.put(&format!("{DRV}.narinfo"), 200, info);
    format!("nar/{}.nar", hash(nar))
}

#[tokio::test]
async fn what_is_sound_is_handed_on_unpacked() {
    let controller = Controller::start().await;
    let nar = b"an archive, ".repeat(20_000);
    let key = holds(&controller, &nar, nar.len() as u64).await;
    let gate = controller.gate(Way::Fetch).await;
    assert_eq!(get(&gate, &key).await.0, 404, "nothing described it yet");
    let (status, text) = get(&gate, &format!("{DRV}.narinfo")).await;
    let text = String::from_utf8(text.unwrap()).unwrap();
    assert_eq!(status, 200);
    assert!(text.contains(&format!("URL: {key}\nCompression: none\n")), "{text}");
    assert!(text.contains(&format!("FileSize: {}\n", nar.len())), "{text}");
    assert_eq!(get(&gate, &key).await, (200, Some(nar)));
    assert_eq!(gate.trouble(), None);
    assert!(controller.asked().iter().all(|asked| asked.ends_with("Bearer secret")));
}

#[tokio::test]
async fn a_description_that_leads_elsewhere_or_says_no_content_ends_at_the_gate() {
    let nar = b"an archive";
    let packed = zstd(nar).await;
    let good = narinfo(&packed, &hash(nar), nar.len() as u64);
    let url = format!("URL: nar/{}.nar.zst", hash(&packed));
    for (from, to) in [
        (url.as_str(), "URL: file:///dev/zero"),
        (&url, "URL: http://169.254.169.254/latest/meta-data"),
        (&url, "URL: http://127.0.0.1:1/nar"),
        (&url, "URL: ../nar"),
        (DRV, "1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl"),
        ("CA: ", "Other: "),
        ("zstd", "xz"),
        (".nar.zst\nCompression: zstd", ".nar.xz\nCompression: xz"),
        ("NarSize: 10", "NarSize: 99999999999"),
    ] {
        let controller = Controller::start().await;
        controller.put(&format!("{DRV}.narinfo"), 200, good.replacen(from, to, 1));
        let gate = controller.gate(Way::Fetch).await;
        assert_eq!(get(&gate, &format!("{DRV}.narinfo")).await.0, 404, "{to}");
        assert!(gate.trouble().unwrap().contains("is refused"), "{to}: {:?}", gate.trouble());
        assert_eq!(controller.asked(), [format!("GET /cache/{DRV}.narinfo Bearer secret")]);
    }
}

#[tokio::test]
async fn an_archive_is_as_long_as_was_described_or_breaks_off() {
    let bomb = vec![0; 300 * 1024 * 1024];
    for (what, nar, told) in
        [("longer", &b"0123456789"[..], 9), ("shorter", b"0123456789", 11), ("longer", &bomb, 1000)]
    {
        let controller = Controller::start().await;
        let key = holds(&controller, nar, told).await;
        let gate = controller.gate(Way::Fetch).await;
        assert_eq!(get(&gate, &format!("{DRV}.narinfo")).await.0, 200);
        let (_, body) = get(&gate, &key).await;
        assert_eq!(body, None, "{what}: it breaks off");
        let trouble = gate.trouble().unwrap();
        assert!(trouble.contains(&format!("{what} than was described")), "{trouble}");
        assert_eq!(get(&gate, &key).await.0, 404, "asked once more it ends");
    }
    // What is no zstd, and a file of another length than its description's.
    let controller = Controller::start().await;
    let garbage = b"this is not packed";
    controller.put(&format!("{DRV}.narinfo"), 200, narinfo(garbage, &hash(b"x"), 1));
    controller.put(&format!("nar/{}.nar.zst", hash(garbage)), 200, garbage);
    let gate = controller.gate(Way::Fetch).await;
    get(&gate, &format!("{DRV}.narinfo")).await;
    assert_eq!(get(&gate, &format!("nar/{}.nar", hash(b"x"))).await.1, None);
    assert!(gate.trouble().unwrap().contains("cannot be unpacked"));
    controller.put(&format!("nar/{}.nar.zst", hash(garbage)), 200, [&garbage[..], b"more"].concat());
    let gate = controller.gate(Way::Fetch).await;
    get(&gate, &format!("{DRV}.narinfo")).await;
    assert_eq!(get(&gate, &format!("nar/{}.nar", hash(b"x"))).await.0, 404);
    assert!(gate.trouble().unwrap().contains("another length"));
}

#[tokio::test]
async fn endless_answers_and_redirections_end_at_the_gate() {
    let controller = Controller::start().await;
    controller.put(&format!("{DRV}.narinfo"), 200, vec![b' '; MAX_NARINFO_BYTES + 1]);
    for way in [Way::Fetch, Way::Push] {
        let gate = controller.gate(way).await;
        assert_eq!(get(&gate, &format!("{DRV}.narinfo")).await.0, 404);
        assert!(gate.trouble().unwrap().contains("more than"));
    }
    for status in [301, 302, 307, 308, 304] {
        controller.put(&format!("{DRV}.narinfo"), status, "");
        for (way, method) in
            [(Way::Fetch, "GET"), (Way::Push, "GET"), (Way::Push, "HEAD"), (Way::Push, "PUT")]
        {
            let gate = controller.gate(way).await;
            assert_eq!(ask(&gate, method, &format!("{DRV}.narinfo"), b"x").await.0, 404, "{status} {method}");
            assert!(gate.trouble().unwrap().contains("not as Muster does"));
        }
    }
}

#[tokio::test]
async fn a_push_reaches_the_controller_and_its_refusals_reach_nix() {
    let controller = Controller::start().await;
    let gate = controller.gate(Way::Push).await;
    let file = format!("nar/{}.nar.zst", hash(b"packed"));
    assert_eq!(ask(&gate, "HEAD", &file, b"").await.0, 404);
    controller.put(&file, 201, "");
    assert_eq!(ask(&gate, "PUT", &file, b"packed").await.0, 201);
    assert_eq!(lock(&controller.told).brought, b"packed");
    for status in [413, 507, 403] {
        controller.put(&file, status, vec![b'w'; 100]);
        assert_eq!(ask(&gate, "PUT", &file, b"packed").await, (status, Some(vec![b'w'; 100])));
        controller.put(&file, status, vec![b'w'; 10 * MAX_REFUSAL]);
        assert_eq!(ask(&gate, "PUT", &file, b"packed").await, (status, Some(Vec::new())));
    }
    for (method, file) in [("PUT", "../x"), ("GET", "v1/fleet"), ("PUT", "nix-cache-info"), ("GET", "nar/x")]
    {
        assert_eq!(ask(&gate, method, file, b"").await.0, 404, "{method} {file}");
    }
    let gate = controller.gate(Way::Fetch).await;
    assert_eq!(ask(&gate, "PUT", &file, b"packed").await.0, 405);
}

#[tokio::test]
async fn nobody_else_on_this_computer_comes_through_the_gate() {
    let controller = Controller::start().await;
    let gate = controller.gate(Way::Push).await;
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = format!("{}/{DRV}.narinfo", gate.url());
    for request in
        [http.get(&url), http.get(&url).basic_auth("muster", Some("guess")), http.put(&url).body("x")]
    {
        assert_eq!(request.send().await.unwrap().status(), 401);
    }
    assert!(controller.asked().is_empty());
    use std::os::unix::fs::MetadataExt as _;
    assert_eq!(std::fs::metadata(gate.netrc()).unwrap().mode() & 0o777, 0o600);
}
