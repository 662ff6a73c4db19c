use std::collections::BTreeMap;

use async_compression::tokio::write::ZstdEncoder;
use muster_protocol::ids::nix_base32;
use reqwest::Url;
use tokio::io::AsyncWriteExt as _;

use super::answers::MAX_REFUSAL;
use super::state::{Described, MAX_BYTES, MAX_TWINS};
use super::*;

const DRV: &str = "0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl";

#[derive(Default)]
struct Told {
    /// The answers, by path.
    files: BTreeMap<String, (u16, Vec<u8>)>,
    /// Paths answered one byte at a time, for ever.
    drips: Vec<String>,
    /// Paths where uploads stall.
    deaf: Vec<String>,
    asked: Vec<String>,
    brought: Vec<u8>,
}

/// A controller whose cache answers as told.
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
                let path = parts.uri.path().to_owned();
                if lock(&told).deaf.contains(&path) {
                    std::future::pending::<()>().await;
                }
                if lock(&told).drips.contains(&path) {
                    let drip = futures_util::stream::unfold((), |()| async {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                        Some((Ok::<_, io::Error>(Bytes::from_static(b"x")), ()))
                    });
                    return Body::from_stream(drip).into_response();
                }
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
        self.gate_waiting(way, WAIT).await
    }
    async fn gate_waiting(&self, way: Way, wait: Duration) -> Gate {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build();
        let cache = Cache::new(http.unwrap(), self.url.clone(), "secret".into());
        Gate::open_waiting(&cache, way, wait).await.unwrap()
    }
}

/// A request as Nix sends it.
async fn ask(gate: &Gate, method: &str, file: &str, body: &'static [u8]) -> (u16, Option<Vec<u8>>) {
    let netrc = std::fs::read_to_string(gate.netrc()).unwrap();
    let password = netrc.split_whitespace().last().unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let request = http.request(method.parse().unwrap(), format!("{}/{file}", gate.url())).body(body);
    // The connection may break before anything was sent.
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
        "StorePath: /nix/store/{DRV}-system.drv\nURL: nar/{file}.nar.zst\nCompression: zstd\nFileHash: \
         sha256:{file}\n\
         FileSize: {}\nNarHash: sha256:{nar_hash}\nNarSize: {nar_size}\nReferences: \nCA: \
         text:sha256:{nar_hash}\n",
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
        assert!(gate.trouble().unwrap().to_string().contains("is refused"), "{to}: {:?}", gate.trouble());
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
        let (status, body) = get(&gate, &key).await;
        assert!(status == 404 || body.is_none(), "{what}: it breaks off");
        let trouble = gate.trouble().unwrap().to_string();
        assert!(trouble.contains(&format!("{what} than was described")), "{trouble}");
        assert_eq!(get(&gate, &key).await.0, 404, "asked once more it ends");
    }
    // Neither valid zstd nor of the described length.
    let controller = Controller::start().await;
    let garbage = b"this is not packed";
    controller.put(&format!("{DRV}.narinfo"), 200, narinfo(garbage, &hash(b"x"), 1));
    controller.put(&format!("nar/{}.nar.zst", hash(garbage)), 200, garbage);
    let gate = controller.gate(Way::Fetch).await;
    get(&gate, &format!("{DRV}.narinfo")).await;
    assert_eq!(get(&gate, &format!("nar/{}.nar", hash(b"x"))).await.0, 404);
    assert!(gate.trouble().unwrap().to_string().contains("cannot be unpacked"));
    controller.put(&format!("nar/{}.nar.zst", hash(garbage)), 200, [&garbage[..], b"more"].concat());
    let gate = controller.gate(Way::Fetch).await;
    get(&gate, &format!("{DRV}.narinfo")).await;
    assert_eq!(get(&gate, &format!("nar/{}.nar", hash(b"x"))).await.0, 404);
    assert!(gate.trouble().unwrap().to_string().contains("another length"));
}

#[tokio::test]
async fn endless_answers_and_redirections_end_at_the_gate() {
    let controller = Controller::start().await;
    controller.put(&format!("{DRV}.narinfo"), 200, vec![b' '; MAX_NARINFO_BYTES + 1]);
    for way in [Way::Fetch, Way::Push] {
        let gate = controller.gate(way).await;
        assert_eq!(get(&gate, &format!("{DRV}.narinfo")).await.0, 404);
        assert!(gate.trouble().unwrap().to_string().contains("more than"));
    }
    for status in [301, 302, 307, 308, 304] {
        controller.put(&format!("{DRV}.narinfo"), status, "");
        for (way, method) in
            [(Way::Fetch, "GET"), (Way::Push, "GET"), (Way::Push, "HEAD"), (Way::Push, "PUT")]
        {
            let gate = controller.gate(way).await;
            assert_eq!(ask(&gate, method, &format!("{DRV}.narinfo"), b"x").await.0, 404, "{status} {method}");
            assert!(gate.trouble().unwrap().to_string().contains("not as Muster does"));
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

/// The description of a source, as one packer made it.
fn source(hash_part: &str, packed: &[u8], nar: &[u8]) -> String {
    let path = format!("{DRV}-system.drv");
    narinfo(packed, &hash(nar), nar.len() as u64).replacen(&path, &format!("{hash_part}-source"), 1)
}

const SOURCES: [&str; 3] = [
    "1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl",
    "2c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl",
    "3c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl",
];

#[tokio::test]
async fn one_content_may_have_been_packed_by_several_hands_and_a_broken_one_spoils_no_other() {
    for nar in [b"a source".to_vec(), b"a larger source, ".repeat(20_000)] {
        let controller = Controller::start().await;
        let good = zstd(&nar).await;
        let other = [zstd(&nar[..3]).await, zstd(&nar[3..]).await].concat();
        // One is missing, one is not an archive, and one holds other content of the same length.
        let garbage = b"this is not packed".to_vec();
        let nothing = zstd(b"nothing").await;
        let swapped = zstd(&vec![b'x'; nar.len()]).await;
        let key = format!("nar/{}.nar", hash(&nar));
        for broken in [&other, &garbage, &nothing, &swapped] {
            // Where Nix gets the beginning before the end is known, it detects the difference itself.
            if nar.len() > PIECE && *broken == swapped {
                continue;
            }
            for (hash_part, packed) in SOURCES.into_iter().zip([broken, &good]) {
                controller.put(&format!("{hash_part}.narinfo"), 200, source(hash_part, packed, &nar));
                if *packed != nothing {
                    controller.put(&format!("nar/{}.nar.zst", hash(packed)), 200, packed.clone());
                }
            }
            let gate = controller.gate(Way::Fetch).await;
            for hash_part in &SOURCES[..2] {
                let (status, told) = get(&gate, &format!("{hash_part}.narinfo")).await;
                assert_eq!(status, 200, "{:?}", gate.trouble());
                assert!(String::from_utf8(told.unwrap()).unwrap().contains(&format!("URL: {key}\n")));
            }
            assert_eq!(get(&gate, &key).await, (200, Some(nar.clone())), "{:?}", gate.trouble());
        }
        // Different content is not a copy.
        let longer = source(SOURCES[2], &good, &nar);
        let longer =
            longer.replace(&format!("NarSize: {}", nar.len()), &format!("NarSize: {}", nar.len() + 1));
        controller.put(&format!("{}.narinfo", SOURCES[2]), 200, longer);
        let gate = controller.gate(Way::Fetch).await;
        assert_eq!(get(&gate, &format!("{}.narinfo", SOURCES[1])).await.0, 200);
        assert_eq!(get(&gate, &format!("{}.narinfo", SOURCES[2])).await.0, 404);
        assert!(gate.trouble().unwrap().to_string().contains("another size"));
        assert_eq!(get(&gate, &key).await, (200, Some(nar)));
    }
}

#[tokio::test]
async fn any_number_of_ways_to_pack_one_content_costs_a_few() {
    let mut described = Described::default();
    let file = NarFile::parse(&format!("{}.nar", hash(b"content"))).unwrap();
    for number in 0..100_u8 {
        let twin = NarFile::parse(&format!("{}.nar.zst", hash(&[number]))).unwrap();
        let archive = Archive { file: twin, file_size: 1, packed: true, size: MAX_BYTES };
        assert_eq!(described.add(&number.to_string(), &file, archive), Ok(()), "one content counts once");
    }
    assert_eq!(described.archives[&file].len(), MAX_TWINS);
}

#[tokio::test]
async fn a_path_that_no_content_names_is_told_without_blame_and_a_derivation_is_always_named_by_its_own() {
    let controller = Controller::start().await;
    let (nar, packed) = (b"an output", zstd(b"an output").await);
    let unnamed = source(SOURCES[0], &packed, nar).replacen("CA: ", "Other: ", 1);
    controller.put(&format!("{}.narinfo", SOURCES[0]), 200, unnamed);
    let gate = controller.gate(Way::Fetch).await;
    assert_eq!(get(&gate, &format!("{}.narinfo", SOURCES[0])).await.0, 404);
    let path = format!("/nix/store/{}-source", SOURCES[0]).parse().unwrap();
    assert_eq!(gate.trouble(), Some(Trouble::Unnamed(path)));
}

#[tokio::test]
async fn an_archive_that_wants_much_memory_is_not_unpacked() {
    use async_compression::Level;
    use async_compression::zstd::CParameter;
    let nar = vec![b'n'; 300_000];
    for (window, taken) in [(21, true), (23, true), (24, false), (27, false)] {
        let parameters = [CParameter::window_log(window)];
        let mut encoder = ZstdEncoder::with_quality_and_params(Vec::new(), Level::Precise(3), &parameters);
        for piece in nar.chunks(1000) {
            encoder.write_all(piece).await.unwrap();
        }
        encoder.shutdown().await.unwrap();
        let packed = encoder.into_inner();
        let controller = Controller::start().await;
        controller.put(&format!("{DRV}.narinfo"), 200, narinfo(&packed, &hash(&nar), nar.len() as u64));
        controller.put(&format!("nar/{}.nar.zst", hash(&packed)), 200, packed);
        let gate = controller.gate(Way::Fetch).await;
        assert_eq!(get(&gate, &format!("{DRV}.narinfo")).await.0, 200);
        let (status, body) = get(&gate, &format!("nar/{}.nar", hash(&nar))).await;
        let trouble = gate.trouble().map(|trouble| trouble.to_string()).unwrap_or_default();
        assert_eq!((status == 200, body == Some(nar.clone())), (taken, taken), "{window}: {trouble}");
        assert_eq!(trouble.contains("too much memory"), !taken, "{window}: {trouble}");
    }
}

#[tokio::test]
async fn a_controller_that_sends_a_byte_now_and_then_holds_nobody() {
    let controller = Controller::start().await;
    let slow = |gate: &Gate| matches!(gate.trouble(), Some(Trouble::Away(why)) if why.contains("slow"));
    let (size, wait) = (1_000_000, Duration::from_secs(1));
    let plain = NarFile::parse(&format!("{}.nar", hash(b"an archive"))).unwrap();
    lock(&controller.told).drips = vec![format!("/cache/{DRV}.narinfo"), format!("/cache/{}", plain.key())];
    let gate = controller.gate_waiting(Way::Fetch, wait).await;
    assert_eq!(get(&gate, &format!("{DRV}.narinfo")).await.0, 502);
    assert!(slow(&gate), "{:?}", gate.trouble());
    let gate = controller.gate_waiting(Way::Fetch, wait).await;
    let archive = Archive { file: plain.clone(), file_size: size, packed: false, size };
    lock(&gate.shared.described).add(DRV, &plain, archive).unwrap();
    assert_eq!(get(&gate, &plain.key()).await.0, 502);
    assert!(slow(&gate), "{:?}", gate.trouble());
    // Nor does an upload that stalls.
    let file = format!("nar/{}.nar.zst", hash(b"packed"));
    lock(&controller.told).deaf = vec![format!("/cache/{file}")];
    let gate = controller.gate_waiting(Way::Push, wait / 10).await;
    assert_eq!(ask(&gate, "PUT", &file, b"packed").await.0, 502);
    assert!(slow(&gate), "{:?}", gate.trouble());
}
