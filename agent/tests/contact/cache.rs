//! The cache on loopback, queried as Nix does.

use axum::body::Body;
use axum::response::IntoResponse as _;
use muster_agent::cache::{Cache, Takes, Trouble};
use muster_agent::client::Client;

use super::controller::{BEARER, Controller};

const HASH: &str = "0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl";
const NAR: &str = "0mdqa9w1p6cmli6976v4wi0sw9r4p5prkj7lzfd1877wk11c9c73";

fn narinfo() -> String {
    format!(
        "StorePath: /nix/store/{HASH}-hello.drv\nURL: nar/{NAR}.nar.zst\nCompression: zstd\nFileHash: sha256:{NAR}\n\
         FileSize: 12\nNarHash: sha256:{NAR}\nNarSize: 120\nReferences: \nCA: text:sha256:{NAR}\n"
    )
}

async fn bed() -> (Controller, Client) {
    let controller = Controller::start().await;
    let client = Client::anonymous(&controller.url, None).unwrap();
    client.set_bearer(BEARER).unwrap();
    (controller, client)
}

async fn get(url: &str) -> (u16, Option<Vec<u8>>) {
    // Other tests of this process may have been first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = client.get(url).send().await.unwrap();
    (response.status().as_u16(), response.bytes().await.ok().map(|bytes| bytes.to_vec()))
}

#[tokio::test]
async fn what_was_checked_is_handed_on_and_an_archive_only_as_long_as_described() {
    let (controller, client) = bed().await;
    controller.put(&format!("/cache/{HASH}.narinfo"), format!("{}More: x\n", narinfo()));
    let cache = Cache::by_secret_address(&client, Takes::Derivations).await.unwrap();
    let (info, nar) =
        (format!("{}/{HASH}.narinfo", cache.url()), format!("{}/nar/{NAR}.nar.zst", cache.url()));
    assert_eq!(get(&nar).await.0, 404, "nothing described it yet");
    assert!(controller.seen().is_empty());
    assert_eq!(get(&info).await, (200, Some(narinfo().into_bytes())));
    controller.put(&format!("/cache/nar/{NAR}.nar.zst"), "twelve bytes");
    assert_eq!(get(&nar).await, (200, Some(b"twelve bytes".to_vec())));
    assert_eq!(cache.trouble(), None);

    // Longer than described, with and without saying so; shorter.
    controller.put(&format!("/cache/nar/{NAR}.nar.zst"), "thirteen bytes");
    assert_eq!(get(&nar).await.0, 404);
    assert!(matches!(cache.trouble(), Some(Trouble::Altered(_))));
    for piece in ["seven..", "four"] {
        controller.answer(&format!("/cache/nar/{NAR}.nar.zst"), move |_| {
            let pieces = [Ok::<_, std::io::Error>(piece), Ok(piece)];
            Body::from_stream(futures_util::stream::iter(pieces)).into_response()
        });
        assert_eq!(get(&nar).await, (200, None), "the answer breaks off");
    }
}

#[tokio::test]
async fn every_bent_description_is_refused_as_altered() {
    for (from, to) in [
        ("URL: nar/", "URL: file:///dev/zero#"),
        ("URL: nar/", "URL: https://elsewhere/nar/"),
        ("Compression: zstd", "Compression: rot13"),
        ("Compression: zstd", "Compression: xz"),
        ("FileSize: 12", "FileSize: 99999999999999999"),
        ("NarSize: 120", "NarSize: 99999999999999999"),
        ("StorePath: /nix/store/0", "StorePath: /nix/store/1"),
        ("CA: text:", "XA: text:"),
        ("StorePath", "<html>"),
    ] {
        let (controller, client) = bed().await;
        controller.put(&format!("/cache/{HASH}.narinfo"), narinfo().replacen(from, to, 1));
        let cache = Cache::by_secret_address(&client, Takes::Derivations).await.unwrap();
        assert_eq!(get(&format!("{}/{HASH}.narinfo", cache.url())).await.0, 404, "{to}");
        assert!(matches!(cache.trouble(), Some(Trouble::Altered(_))), "{to}");
    }
    // Without an end, and too long.
    let (controller, client) = bed().await;
    controller.put(&format!("/cache/{HASH}.narinfo"), "x".repeat(300 * 1024));
    let cache = Cache::by_secret_address(&client, Takes::Derivations).await.unwrap();
    assert_eq!(get(&format!("{}/{HASH}.narinfo", cache.url())).await.0, 404);
    assert!(matches!(cache.trouble(), Some(Trouble::Altered(_))));
}

#[tokio::test]
async fn one_content_may_have_been_packed_by_several_hands_and_a_lie_about_one_spoils_no_other() {
    let (controller, client) = bed().await;
    let paths = ["0", "1", "2"].map(|first| format!("{first}{}", &HASH[1..]));
    let other = NAR.replacen("0mdqa", "1mdqa", 1);
    let archives = [NAR, &other, NAR];
    for (path, (archive, size)) in paths.iter().zip(archives.into_iter().zip([12, 13, 99])) {
        let altered = narinfo().replacen(HASH, path, 1);
        let altered = altered.replacen(&format!("nar/{NAR}"), &format!("nar/{archive}"), 1);
        let altered =
            altered.replacen(&format!("FileHash: sha256:{NAR}"), &format!("FileHash: sha256:{archive}"), 1);
        let altered = altered.replacen("FileSize: 12", &format!("FileSize: {size}"), 1);
        controller.put(&format!("/cache/{path}.narinfo"), altered);
    }
    controller.put(&format!("/cache/nar/{NAR}.nar.zst"), "twelve bytes");
    controller.put(&format!("/cache/nar/{other}.nar.zst"), "thirteen byte");
    let cache = Cache::by_secret_address(&client, Takes::Derivations).await.unwrap();
    for (path, status) in paths.iter().zip([200, 200, 404]) {
        assert_eq!(get(&format!("{}/{path}.narinfo", cache.url())).await.0, status, "{:?}", cache.trouble());
    }
    for (archive, bytes) in [(NAR, "twelve bytes"), (&other, "thirteen byte")] {
        let got = get(&format!("{}/nar/{archive}.nar.zst", cache.url())).await;
        assert_eq!(got, (200, Some(bytes.as_bytes().to_vec())), "{:?}", cache.trouble());
    }
}

#[tokio::test]
async fn nobody_else_on_the_machine_reads_the_cache() {
    let (controller, client) = bed().await;
    controller.put(&format!("/cache/{HASH}.narinfo"), narinfo());
    let folder = tempfile::tempdir().unwrap();
    let netrc = folder.path().join("netrc");
    std::fs::write(&netrc, "left over").unwrap();
    let cache = Cache::with_password(&client, Takes::Derivations, &netrc).await.unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(&netrc).unwrap());
    assert_eq!(mode & 0o777, 0o600);
    let path = format!("/{HASH}.narinfo");
    assert_eq!(get(&format!("{}{path}", cache.url())).await.0, 401);
    let wrong = cache.url().replace("http://", "http://muster:guess@");
    assert_eq!(get(&format!("{wrong}{path}")).await.0, 401);
    let origin = &cache.url()[..cache.url().rfind('/').unwrap()];
    assert_eq!(get(&format!("{origin}/{}{path}", "0".repeat(32))).await.0, 404);
    assert!(controller.seen().is_empty(), "who does not know the password makes the agent ask nothing");
    let text = std::fs::read_to_string(&netrc).unwrap();
    let password = text.split_whitespace().last().unwrap();
    let right = cache.url().replace("http://", &format!("http://muster:{password}@"));
    assert_eq!(get(&format!("{right}{path}")).await.0, 200);
    assert!(!text.contains(BEARER), "the bearer never leaves the agent");
    let url = cache.url().to_owned();
    drop(cache);
    assert!(!netrc.exists());
    let gone = async {
        while reqwest::Client::builder().no_proxy().build().unwrap().get(&url).send().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    gone.await;
}
