//! The cache over every kind of store: what holds of a folder holds of a bucket, and a bucket that fails is
//! told and ends nothing.

use std::io::Write as _;
use std::net::{Shutdown, TcpStream};

use muster_protocol::api::{FLEET, ProblemCode};
use muster_protocol::ids::{Sha256, nix_base32};
use reqwest::StatusCode;

use crate::stores::{Mode, SECRET, buckets, each, s3, without_buckets};
use crate::support::{Answer, Fleet, until};

const HASH: &str = "0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl";
/// More than two parts of an upload.
const LARGE: usize = 12 * 1024 * 1024 + 7;

fn nar_path(bytes: &[u8]) -> String {
    format!("/cache/nar/{}.nar.zst", nix_base32(&Sha256::of(bytes)))
}
fn narinfo(nar: &[u8]) -> String {
    let hash = nix_base32(&Sha256::of(nar));
    format!(
        "StorePath: /nix/store/{HASH}-hello.drv\nURL: nar/{hash}.nar.zst\nCompression: zstd\n\
         FileHash: sha256:{hash}\nFileSize: {}\nNarHash: sha256:{hash}\nNarSize: 120\nReferences: \n",
        nar.len()
    )
}
fn content(seed: u8) -> Vec<u8> {
    (0..LARGE).map(|at| (at % 251) as u8 ^ seed).collect()
}
async fn put(fleet: &Fleet, bearer: &str, path: &str, body: impl Into<reqwest::Body>) -> Answer {
    Answer::of(fleet.http.put(fleet.url(path)).bearer_auth(bearer).body(body)).await
}
async fn get(fleet: &Fleet, bearer: &str, path: &str, range: &str) -> (StatusCode, String, Vec<u8>) {
    let mut request = fleet.http.get(fleet.url(path)).bearer_auth(bearer);
    if !range.is_empty() {
        request = request.header("range", range);
    }
    let response = request.send().await.unwrap();
    let part = response.headers().get("content-range").map_or("", |range| range.to_str().unwrap()).to_owned();
    (response.status(), part, response.bytes().await.unwrap().to_vec())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_uploaded_is_read_whole_and_in_ranges_wherever_it_is_stored() {
    for store in each().await {
        let fleet = Fleet::start_with(&store.config).await;
        let operator = fleet.session().await;
        let (large, info) = (content(1), format!("/cache/{HASH}.narinfo"));
        let path = nar_path(&large);
        put(&fleet, &operator, &info, narinfo(&large)).await.refused(422, ProblemCode::Malformed);
        fleet.get(&path, &operator).await.refused(404, ProblemCode::NotFound);
        for _ in 0..2 {
            for (path, body) in [(&path, large.clone()), (&info, narinfo(&large).into_bytes())] {
                let answer = put(&fleet, &operator, path, body).await;
                assert_eq!(answer.status, StatusCode::CREATED, "{}: {}", store.name, answer.text);
            }
        }
        put(&fleet, &operator, &nar_path(b"tiny"), "tiny").await;
        assert!(get(&fleet, &operator, &path, "").await == (StatusCode::OK, String::new(), large.clone()));
        assert_eq!(get(&fleet, &operator, &nar_path(b"tiny"), "").await.2, b"tiny");
        assert_eq!(get(&fleet, &operator, &info, "").await.2, narinfo(&large).into_bytes());
        let head = Answer::of(fleet.http.head(fleet.url(&path)).bearer_auth(&operator)).await;
        assert_eq!(head.headers["content-length"], LARGE.to_string());
        assert_eq!(head.headers["accept-ranges"], "bytes");
        for (range, from, to) in
            [("bytes=5-9", 5, 10), ("bytes=6000000-", 6_000_000, LARGE), ("bytes=-4", LARGE - 4, LARGE)]
        {
            let (status, part, bytes) = get(&fleet, &operator, &path, range).await;
            assert_eq!((status, bytes.len()), (StatusCode::PARTIAL_CONTENT, to - from), "{}", store.name);
            assert_eq!(part, format!("bytes {from}-{}/{LARGE}", to - 1));
            assert!(bytes == large[from..to]);
        }
        let (status, ..) = get(&fleet, &operator, &path, &format!("bytes={LARGE}-")).await;
        assert_eq!(status, StatusCode::RANGE_NOT_SATISFIABLE);
        let message =
            put(&fleet, &operator, &nar_path(b"x"), large.clone()).await.refused(422, ProblemCode::Malformed);
        assert!(message.contains("upload it again"), "{message}");
        if let Some(mut files) = store.files() {
            files.sort();
            assert_eq!(files.len(), 3, "{}: {files:?}", store.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upload_that_is_cut_in_the_middle_leaves_nothing_in_any_store() {
    for store in each().await {
        let fleet = Fleet::start_with(&store.config).await;
        let operator = fleet.session().await;
        let (large, path) = (content(2), nar_path(&content(2)));
        let mut stream = TcpStream::connect(fleet.address()).unwrap();
        let head = format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {operator}\r\n\
             Content-Length: {}\r\n\r\n",
            large.len()
        );
        stream.write_all(head.as_bytes()).unwrap();
        stream.write_all(&large[..11_000_000]).unwrap();
        match &store.proxy {
            Some(proxy) => until("two parts are stored", || proxy.sent() > 10_000_000).await,
            None => until("the upload has begun", || store.files().unwrap().len() == 1).await,
        }
        fleet.get(&path, &operator).await.refused(404, ProblemCode::NotFound);
        stream.shutdown(Shutdown::Both).unwrap();
        drop(stream);
        until("nothing is left", || store.files().is_none_or(|files| files.is_empty())).await;
        assert_eq!(put(&fleet, &operator, &path, large).await.status, StatusCode::CREATED, "{}", store.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn two_controllers_that_write_the_same_path_at_once_both_succeed() {
    for store in each().await {
        let (one, other) = (Fleet::start_with(&store.config).await, Fleet::start_with(&store.config).await);
        let (first, second) = (one.session().await, other.session().await);
        let (large, info) = (content(3), format!("/cache/{HASH}.narinfo"));
        let path = nar_path(&large);
        for (path, body) in [(&path, large.clone()), (&info, narinfo(&large).into_bytes())] {
            let (a, b) =
                tokio::join!(put(&one, &first, path, body.clone()), put(&other, &second, path, body.clone()));
            assert_eq!((a.status, b.status), (StatusCode::CREATED, StatusCode::CREATED), "{}", store.name);
        }
        assert!(get(&one, &second, &path, "").await.0 == StatusCode::UNAUTHORIZED);
        for (fleet, bearer) in [(&one, &first), (&other, &second)] {
            assert!(get(fleet, bearer, &path, "").await.2 == large);
        }
        if let Some(files) = store.files() {
            assert_eq!(files.len(), 2, "{}: {files:?}", store.name);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_away_fails_or_is_silent_is_told_and_the_rest_goes_on() {
    for store in buckets().await {
        let fleet = Fleet::start_with(&store.config).await;
        let operator = fleet.session().await;
        let (large, small) = (content(4), nar_path(b"small"));
        assert_eq!(put(&fleet, &operator, &small, "small").await.status, StatusCode::CREATED);
        for mode in [Mode::Dead, Mode::Failing, Mode::Silent] {
            store.proxy().turn(mode);
            let message = fleet.get(&small, &operator).await.refused(503, ProblemCode::Busy);
            assert!(message.contains("object store does not answer"), "{mode:?}: {message}");
            for (path, body) in [(nar_path(b"other"), b"other".to_vec()), (nar_path(&large), large.clone())] {
                put(&fleet, &operator, &path, body).await.refused(503, ProblemCode::Busy);
            }
            assert_eq!(fleet.get(FLEET, "").await.status, StatusCode::OK);
        }
        store.proxy().turn(Mode::Through);
        assert_eq!(get(&fleet, &operator, &small, "").await.2, b"small");
        fleet.get(&nar_path(&large), &operator).await.refused(404, ProblemCode::NotFound);

        // The store ends in the middle of an upload, and of a download.
        let begun = store.proxy().sent();
        let path = nar_path(&large);
        let upload = put(&fleet, &operator, &path, large.clone());
        let cut = async {
            until("the store has some of it", || store.proxy().sent() - begun > 3_000_000).await;
            store.proxy().turn(Mode::Dead);
        };
        tokio::join!(upload, cut).0.refused(503, ProblemCode::Busy);
        store.proxy().turn(Mode::Through);
        let again = put(&fleet, &operator, &path, large.clone()).await;
        assert_eq!(again.status, StatusCode::CREATED, "{}: {}", store.name, again.text);
        let request = fleet.http.get(fleet.url(&path)).bearer_auth(&operator);
        let mut response = request.send().await.unwrap();
        assert!(response.chunk().await.unwrap().is_some());
        store.proxy().turn(Mode::Dead);
        let mut rest = 0;
        let ended = loop {
            match response.chunk().await {
                Ok(Some(bytes)) => rest += bytes.len(),
                Ok(None) => break true,
                Err(_) => break false,
            }
        };
        // What was on its way already may have been all of it.
        assert!(!ended || rest > LARGE / 2, "{}: a short answer looked whole", store.name);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_starts_without_its_store_and_says_what_is_wrong_with_it() {
    let (store, empty) = (s3().await, without_buckets().await);
    for (config, want) in [
        (store.config_of("cache", "another-secret"), "does not accept its credentials"),
        (empty.config_of("elsewhere", SECRET), "has no bucket elsewhere"),
    ] {
        let fleet = Fleet::start_with(&config).await;
        let operator = fleet.session().await;
        for (path, body) in [(nar_path(b"small"), b"small".to_vec()), (nar_path(&content(5)), content(5))] {
            let message = put(&fleet, &operator, &path, body).await.refused(503, ProblemCode::Busy);
            assert!(message.contains(want), "{message}");
        }
        let message = fleet.get(&nar_path(b"small"), &operator).await.refused(503, ProblemCode::Busy);
        assert!(message.contains(want) && !message.contains(SECRET), "{message}");
    }
    store.proxy().turn(Mode::Dead);
    // Its file has the right secret again.
    let fleet = Fleet::start_with(&store.config_of("cache", SECRET)).await;
    let operator = fleet.session().await;
    fleet.get(&nar_path(b"small"), &operator).await.refused(503, ProblemCode::Busy);
    store.proxy().turn(Mode::Through);
    fleet.get(&nar_path(b"small"), &operator).await.refused(404, ProblemCode::NotFound);
}
