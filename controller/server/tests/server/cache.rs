//! The binary cache: what it accepts, what it refuses, and that real Nix can use it.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::path::Path;
use std::process::{Command, Output};

use crate::stores::each;
use crate::support::{Answer, Fleet, LIMIT, until};
use base64::Engine as _;
use muster_protocol::api::{CACHE_MISSING, CACHE_PATHS, ProblemCode};
use muster_protocol::cache::{AskedFor, MAX_ASKED_FOR, Missing, UploadedPath, Uploads, UploadsTaken};
use muster_protocol::ids::{Sha256, StorePath, nix_base32};
use muster_protocol::machine::Class;
use reqwest::{Method, StatusCode};

const HASH: &str = "0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl";

fn nar_name(bytes: &[u8]) -> String {
    format!("{}.nar.zst", nix_base32(&Sha256::of(bytes)))
}
fn narinfo(nar: &[u8], nar_hash: &[u8]) -> String {
    let hash = nix_base32(&Sha256::of(nar));
    format!(
        "StorePath: /nix/store/{HASH}-hello.drv\nURL: nar/{}\nCompression: zstd\nFileHash: sha256:{hash}\n\
         FileSize: {}\nNarHash: sha256:{}\nNarSize: 120\nReferences: \nCA: text:sha256:{hash}\n",
        nar_name(nar),
        nar.len(),
        nix_base32(&Sha256::of(nar_hash))
    )
}
/// Every file of the cache, including temporary ones.
fn files(fleet: &Fleet) -> Vec<String> {
    let list = |folder: &Path| -> Vec<String> {
        let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap());
        let files = entries.filter(|entry| entry.file_type().unwrap().is_file());
        files.map(|entry| entry.file_name().into_string().unwrap()).collect()
    };
    let blobs = fleet.dir.path().join("data/blobs");
    [list(&blobs), list(&blobs.join("nar"))].concat()
}
async fn put(fleet: &Fleet, bearer: &str, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    Answer::of(fleet.http.put(fleet.url(path)).bearer_auth(bearer).body(body)).await
}

#[tokio::test]
async fn an_upload_appears_whole_and_is_read_by_machines_and_operators() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let (operator, reader) = (fleet.session().await, machine.bearer(&fleet).await);
    let nar = vec![7; 3 * 1024 * 1024 + 5];
    let (nar_path, info_path) = (format!("/cache/nar/{}", nar_name(&nar)), format!("/cache/{HASH}.narinfo"));
    fleet.get(&info_path, &reader).await.refused(404, ProblemCode::NotFound);
    // Uploading again succeeds too.
    for _ in 0..2 {
        assert_eq!(put(&fleet, &operator, &nar_path, nar.clone()).await.status, StatusCode::CREATED);
        assert_eq!(put(&fleet, &operator, &info_path, narinfo(&nar, b"x")).await.status, StatusCode::CREATED);
    }
    for bearer in [&operator, &reader] {
        let response = fleet.http.get(fleet.url(&nar_path)).bearer_auth(bearer).send().await.unwrap();
        assert_eq!(response.content_length(), Some(nar.len() as u64));
        assert!(response.bytes().await.unwrap() == nar);
        assert_eq!(fleet.get(&info_path, bearer).await.text, narinfo(&nar, b"x"));
        let head = Answer::of(fleet.http.head(fleet.url(&nar_path)).basic_auth("any", Some(bearer))).await;
        assert_eq!(head.headers["content-length"], nar.len().to_string());
    }
    let info = fleet.get("/cache/nix-cache-info", &reader).await.text;
    assert_eq!(info, "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n");
    assert_eq!(files(&fleet).len(), 2);
}

#[tokio::test]
async fn nobody_reads_or_writes_without_standing() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let reader = machine.bearer(&fleet).await;
    let nar_path = format!("/cache/nar/{}", nar_name(b"nar"));
    for path in ["/cache/nix-cache-info", "/cache/x.narinfo", &nar_path] {
        for method in [Method::GET, Method::HEAD] {
            let answer = Answer::of(fleet.http.request(method, fleet.url(path))).await;
            assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{path}");
            assert_eq!(answer.headers["www-authenticate"], "Basic realm=\"muster\"");
        }
    }
    let wrong = base64::engine::general_purpose::STANDARD.encode("no colon");
    let request = fleet.http.get(fleet.url(&nar_path)).header("authorization", format!("Basic {wrong}"));
    Answer::of(request).await.refused(401, ProblemCode::Unauthorised);
    for path in [nar_path.clone(), format!("/cache/{HASH}.narinfo")] {
        put(&fleet, &reader, &path, "nar").await.refused(403, ProblemCode::Unauthorised);
        put(&fleet, "nonsense", &path, "nar").await.refused(401, ProblemCode::Unauthorised);
    }
    assert!(files(&fleet).is_empty());
    let operator = fleet.session().await;
    assert_eq!(put(&fleet, &operator, &nar_path, "nar").await.status, StatusCode::CREATED);
    fleet.clock.forward(3600);
    fleet.get(&nar_path, &operator).await.refused(401, ProblemCode::Unauthorised);
}

#[tokio::test]
async fn what_is_not_what_its_name_says_leaves_nothing() {
    let fleet = Fleet::start_with("[limits]\nnar_bytes = 2000000\n").await;
    let operator = fleet.session().await;
    let nar_path = format!("/cache/nar/{}", nar_name(b"nar"));
    let message =
        put(&fleet, &operator, &nar_path, vec![1; 1_500_000]).await.refused(422, ProblemCode::Malformed);
    assert!(message.contains("upload it again"), "{message}");
    put(&fleet, &operator, &nar_path, "").await.refused(422, ProblemCode::Malformed);
    for name in
        ["/cache/nar/x.nar", "/cache/nar/..%2f..%2fmuster.db", "/cache/x.ls", "/cache/nix-cache-info.narinfo"]
    {
        put(&fleet, &operator, name, "x").await.refused(422, ProblemCode::Malformed);
    }
    // Too large without an announced length: it ends when the limit is reached.
    let endless = futures_util::stream::iter((0..5).map(|_| Ok::<_, std::io::Error>(vec![0_u8; 500_000])));
    let request = fleet.http.put(fleet.url(&nar_path)).bearer_auth(&operator);
    let request = request.body(reqwest::Body::wrap_stream(endless));
    Answer::of(request).await.refused(413, ProblemCode::TooLarge);
    until("nothing is left", || files(&fleet).is_empty()).await;
}

#[tokio::test]
async fn a_narinfo_must_be_true_of_the_cache() {
    let fleet = Fleet::start().await;
    let operator = fleet.session().await;
    let (nar, path) = (b"a nar", format!("/cache/{HASH}.narinfo"));
    let good = narinfo(nar, b"x");
    let message = put(&fleet, &operator, &path, good.clone()).await.refused(422, ProblemCode::Malformed);
    assert!(message.contains("upload it before"), "{message}");
    let nar_path = format!("/cache/nar/{}", nar_name(nar));
    assert_eq!(put(&fleet, &operator, &nar_path, nar.to_vec()).await.status, StatusCode::CREATED);
    for (from, to) in [
        ("FileSize: 5", "FileSize: 6"),
        (HASH, "1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl"),
        ("URL: nar/", "URL: https://elsewhere.example/nar/"),
        ("References: ", "References: ../../etc/passwd"),
        ("NarSize: 120", "NarSize: lots"),
    ] {
        put(&fleet, &operator, &path, good.replacen(from, to, 1)).await.refused(422, ProblemCode::Malformed);
    }
    let long = format!("{good}Sig: {}\n", "x".repeat(300_000));
    put(&fleet, &operator, &path, long).await.refused(413, ProblemCode::TooLarge);
    assert_eq!(files(&fleet), [nar_name(nar)]);

    assert_eq!(put(&fleet, &operator, &path, good.clone()).await.status, StatusCode::CREATED);
    let signed = format!("{good}Sig: cache-1:AAAA\n");
    assert_eq!(put(&fleet, &operator, &path, signed.clone()).await.status, StatusCode::CREATED);
    put(&fleet, &operator, &path, narinfo(nar, b"another content")).await.refused(409, ProblemCode::Conflict);
    assert_eq!(fleet.get(&path, &operator).await.text, signed);
}

/// What one request uploads: each a name of a path, what its archive holds, and what its content hashes to.
fn uploads(paths: &[(&str, &[u8], &[u8])]) -> Uploads {
    let path = |&(hash, nar, content): &(&str, &[u8], &[u8])| UploadedPath {
        narinfo: narinfo(nar, content).replace(HASH, hash),
        archive: base64::engine::general_purpose::STANDARD.encode(nar),
    };
    Uploads { paths: paths.iter().map(path).collect() }
}
async fn post(fleet: &Fleet, bearer: &str, path: &str, body: &impl serde::Serialize) -> Answer {
    Answer::of(fleet.http.post(fleet.url(path)).bearer_auth(bearer).json(body)).await
}
const OTHER: &str = "1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl";

#[tokio::test]
async fn many_paths_are_asked_for_by_one_request_and_uploaded_by_another() {
    for store in each().await {
        let fleet = Fleet::start_with(&store.config).await;
        let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
        let (operator, reader) = (fleet.session().await, machine.bearer(&fleet).await);
        let path = |hash| format!("/nix/store/{hash}-hello.drv").parse::<StorePath>().unwrap();
        let asked = AskedFor { paths: vec![path(OTHER), path(HASH)] };
        let missing =
            async |fleet: &Fleet| post(fleet, &operator, CACHE_MISSING, &asked).await.good::<Missing>();
        assert_eq!(missing(&fleet).await.paths, asked.paths);
        // As often as it is sent: an operator who got no answer repeats it.
        for _ in 0..2 {
            let both = uploads(&[(HASH, b"one", b"x"), (OTHER, b"other", b"y")]);
            let taken = post(&fleet, &operator, CACHE_PATHS, &both).await.good::<UploadsTaken>();
            assert_eq!(taken.stored, 2);
        }
        assert_eq!(missing(&fleet).await.paths, []);
        let text = fleet.get(&format!("/cache/{HASH}.narinfo"), &reader).await.text;
        assert_eq!(text, narinfo(b"one", b"x"));
        assert_eq!(fleet.get(&format!("/cache/nar/{}", nar_name(b"other")), &reader).await.text, "other");
        // Machines read files alone.
        for (path, body) in [
            (CACHE_MISSING, serde_json::to_value(&asked).unwrap()),
            (CACHE_PATHS, serde_json::to_value(uploads(&[])).unwrap()),
        ] {
            post(&fleet, &reader, path, &body).await.refused(403, ProblemCode::Unauthorised);
            post(&fleet, "nobody", path, &body).await.refused(401, ProblemCode::Unauthorised);
            let wrong = serde_json::json!({ "paths": [7] });
            post(&fleet, &operator, path, &wrong).await.refused(400, ProblemCode::Malformed);
        }
        let many = serde_json::json!({ "paths": vec![path(HASH); MAX_ASKED_FOR + 1] });
        post(&fleet, &operator, CACHE_MISSING, &many).await.refused(400, ProblemCode::Malformed);
    }
}

#[tokio::test]
async fn one_path_that_is_not_what_it_says_leaves_nothing_of_its_request() {
    let fleet = Fleet::start_with("[limits]\nnar_bytes = 1000\n").await;
    let operator = fleet.session().await;
    let good = || uploads(&[(HASH, b"one", b"x"), (OTHER, b"other", b"y")]);
    let refused = async |change: &dyn Fn(&mut UploadedPath)| {
        let mut sent = good();
        change(&mut sent.paths[1]);
        post(&fleet, &operator, CACHE_PATHS, &sent).await.refused(422, ProblemCode::Malformed)
    };
    let message = refused(&|path| path.archive = "b3RoZXMK".into()).await;
    assert!(message.contains("upload it again") && message.contains(OTHER), "{message}");
    refused(&|path| path.archive = "???".into()).await;
    refused(&|path| path.narinfo = path.narinfo.replace("FileSize: 5", "FileSize: 6")).await;
    refused(&|path| path.narinfo = path.narinfo.replace("URL: nar/", "URL: ../nar/")).await;
    refused(&|path| path.narinfo = path.narinfo.replace("/nix/store/", "/etc/")).await;
    let large = vec![b'x'; 1001];
    let sent = uploads(&[(HASH, b"one", b"x"), (OTHER, &large, b"y")]);
    post(&fleet, &operator, CACHE_PATHS, &sent).await.refused(413, ProblemCode::TooLarge);
    assert!(files(&fleet).is_empty(), "{:?}", files(&fleet));

    post(&fleet, &operator, CACHE_PATHS, &good()).await.good::<UploadsTaken>();
    let other = uploads(&[(HASH, b"one more", b"another content")]);
    let message = post(&fleet, &operator, CACHE_PATHS, &other).await.refused(409, ProblemCode::Conflict);
    assert!(message.contains("store paths never change"), "{message}");
    assert_eq!(fleet.get(&format!("/cache/{HASH}.narinfo"), &operator).await.text, narinfo(b"one", b"x"));
}

/// The head of an upload, written by hand.
fn head(bearer: &str, path: &str, length: usize, more: &str) -> String {
    format!(
        "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {bearer}\r\nContent-Length: \
            {length}\r\n{more}\r\n"
    )
}
fn connect(fleet: &Fleet) -> TcpStream {
    let stream = TcpStream::connect(fleet.address()).unwrap();
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream
}
/// The status line of the next response.
fn status(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    while !bytes.ends_with(b"\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        bytes.extend(byte);
    }
    String::from_utf8(bytes).unwrap().trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn who_reads_nothing_until_all_is_written_hears_why_it_was_refused() {
    const LENGTH: usize = 24 * 1024 * 1024;
    let fleet = Fleet::start_with("[limits]\nnar_bytes = 1000000\n").await;
    let operator = fleet.session().await;
    let path = format!("/cache/nar/{}", nar_name(b"nar"));
    // Refused before its body is looked at, by its size, and (in parts of unknown length) in the middle.
    for (bearer, chunked, want) in
        [("nonsense", false, "401"), (operator.as_str(), false, "413"), (operator.as_str(), true, "413")]
    {
        let head = head(bearer, &path, LENGTH, "");
        let (head, piece) = match chunked {
            false => (head, vec![1; 0x10_0000]),
            true => (
                head.replace(&format!("Content-Length: {LENGTH}"), "Transfer-Encoding: chunked"),
                [b"100000\r\n".as_slice(), &[1; 0x10_0000], b"\r\n"].concat(),
            ),
        };
        let mut stream = connect(&fleet);
        stream.write_all(head.as_bytes()).unwrap();
        for _ in 0..24 {
            stream.write_all(&piece).unwrap();
        }
        if chunked {
            stream.write_all(b"0\r\n\r\n").unwrap();
        }
        let status = status(&mut stream);
        assert!(status.contains(want), "{status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_breaks_off_leaves_nothing() {
    let fleet = Fleet::start().await;
    let operator = fleet.session().await;
    let nar = vec![9; 4_000_000];
    let path = format!("/cache/nar/{}", nar_name(&nar));
    let mut stream = connect(&fleet);
    stream.write_all(head(&operator, &path, nar.len(), "").as_bytes()).unwrap();
    stream.write_all(&nar[..2_500_000]).unwrap();
    until("the upload has begun", || files(&fleet).len() == 1).await;
    assert_eq!(fleet.get(&path, &operator).await.status, StatusCode::NOT_FOUND);
    stream.shutdown(Shutdown::Both).unwrap();
    drop(stream);
    until("nothing is left", || files(&fleet).is_empty()).await;
    // It still works afterwards.
    assert_eq!(put(&fleet, &operator, &path, nar).await.status, StatusCode::CREATED);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_stands_still_is_ended() {
    let fleet = Fleet::start_with("[limits]\nidle_seconds = 1\n").await;
    let operator = fleet.session().await;
    let path = format!("/cache/nar/{}", nar_name(b"nar"));
    let mut stream = connect(&fleet);
    stream.write_all(head(&operator, &path, 4_000_000, "").as_bytes()).unwrap();
    stream.write_all(&[1; 10]).unwrap();
    assert_eq!(status(&mut stream), "HTTP/1.1 408 Request Timeout");
    until("nothing is left", || files(&fleet).is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_upload_is_told_before_the_body() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let (reader, operator) = (machine.bearer(&fleet).await, fleet.session().await);
    let path = format!("/cache/nar/{}", nar_name(b"nar"));
    let expect = "Expect: 100-continue\r\n";
    for (bearer, length, want) in [
        ("nonsense", 3, "HTTP/1.1 401 Unauthorized"),
        (reader.as_str(), 3, "HTTP/1.1 403 Forbidden"),
        (operator.as_str(), 5 * 1024 * 1024 * 1024, "HTTP/1.1 413 Payload Too Large"),
        (operator.as_str(), 3, "HTTP/1.1 100 Continue"),
    ] {
        let mut stream = connect(&fleet);
        stream.write_all(head(bearer, &path, length, expect).as_bytes()).unwrap();
        assert_eq!(status(&mut stream), want);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_sends_nothing_and_one_too_many_are_let_go() {
    let fleet = Fleet::start_with("[limits]\nidle_seconds = 1\nconnections = 2\n").await;
    let mut silent = connect(&fleet);
    silent.write_all(b"GET /v1/fl").unwrap();
    let mut second = connect(&fleet);
    second.write_all(b"GET /v1/fleet HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(status(&mut second), "HTTP/1.1 200 OK");
    let mut third = connect(&fleet);
    third.write_all(b"GET /v1/fleet HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    assert_eq!(status(&mut third), "HTTP/1.1 503 Service Unavailable");
    let mut rest = String::new();
    third.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("connection: close"), "{rest}");
    let mut rest = String::new();
    silent.read_to_string(&mut rest).unwrap();
    assert!(!rest.contains("200 OK"), "{rest}");
}

/// Nix with a store and settings of its own.
struct Nix {
    home: tempfile::TempDir,
}

impl Nix {
    fn new() -> Self {
        Self { home: tempfile::tempdir().unwrap() }
    }
    fn run(&self, args: &[&str]) -> Output {
        let home = self.home.path();
        Command::new(args[0])
            .args(&args[1..])
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", home)
            .env("NIX_CONF_DIR", home)
            .env("NIX_REMOTE", format!("local?root={}", home.join("store").display()))
            .env("NIX_CONFIG", "experimental-features = nix-command\nsubstituters =\nbuild-users-group =\n")
            .output()
            .expect("Nix is installed")
    }
    #[track_caller]
    fn good(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim().to_owned()
    }
    fn netrc(&self, bearer: &str) -> String {
        let path = self.home.path().join("netrc");
        std::fs::write(&path, format!("machine 127.0.0.1 login muster password {bearer}\n")).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn real_nix_copies_a_derivation_through_the_cache() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let (operator, home) = (Nix::new(), Nix::new());
    let source = operator.home.path().join("source");
    std::fs::write(&source, "a source file").unwrap();
    let expression = format!(
        "let dep = n: derivation {{ name = n; system = \"x86_64-linux\"; builder = \"/bin/sh\"; src = {}; \
            }}; in
         derivation {{ name = \"top\"; system = \"x86_64-linux\"; builder = \"/bin/sh\"; a = dep \"a\"; b = \
             dep \"b\"; }}",
        source.display()
    );
    let drv = operator.good(&["nix-instantiate", "-E", &expression]);
    let netrc = operator.netrc(&fleet.session().await);
    let to = fleet.url("/cache?compression=zstd");
    operator.good(&["nix", "copy", "--derivation", "--to", &to, "--option", "netrc-file", &netrc, &drv]);
    // Files that are already there are not sent again.
    operator.good(&["nix", "copy", "--derivation", "--to", &to, "--option", "netrc-file", &netrc, &drv]);
    assert_eq!(files(&fleet).len(), 8, "three derivations and a source, each with its narinfo");

    let from = fleet.url("/cache");
    let netrc = home.netrc(&machine.bearer(&fleet).await);
    home.good(&["nix", "copy", "--derivation", "--from", &from, "--option", "netrc-file", &netrc, &drv]);
    let there = home.good(&["nix-store", "--query", "--requisites", &drv]);
    assert_eq!(there, operator.good(&["nix-store", "--query", "--requisites", &drv]));
    assert_eq!(there.lines().count(), 4);

    // A machine cannot write, and nobody can read without a bearer.
    // Nix treats a cache that wants a password as no cache at all.
    let stranger = Nix::new();
    let denied = stranger.run(&["nix", "copy", "--derivation", "--from", &from, &drv]);
    let words = String::from_utf8_lossy(&denied.stderr);
    assert!(!denied.status.success() && words.contains("does not appear to be a binary cache"), "{words}");
    let other = home.good(&[
        "nix-instantiate",
        "-E",
        "derivation { name = \"mine\"; system = \"x\"; builder = \"x\"; }",
    ]);
    let denied =
        home.run(&["nix", "copy", "--derivation", "--to", &to, "--option", "netrc-file", &netrc, &other]);
    assert!(
        !denied.status.success() && String::from_utf8_lossy(&denied.stderr).contains("403"),
        "{denied:?}"
    );
    assert_eq!(files(&fleet).len(), 8);
}
