//! Derivations on their way to the controller's cache without Nix, which asks for each path of a closure and
//! sends two files for each that is missing: here one request asks, and one sends thousands.
//!
//! Whatever is not plain (a store elsewhere, a controller of version 0.1, any refusal) is left to `nix copy`,
//! whose words then say what is wrong.

use std::collections::BTreeSet;
use std::time::Duration;

use async_compression::tokio::bufread::ZstdEncoder;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::FutureExt as _;
use muster_protocol::api::{CACHE, CACHE_MISSING, CACHE_PATHS};
use muster_protocol::cache::{
    AskedFor, MAX_ASKED_FOR, MAX_ASKED_FOR_BYTES, MAX_UPLOADS, MAX_UPLOADS_BYTES, Missing, UploadedPath,
    Uploads, UploadsTaken,
};
use muster_protocol::ids::{Sha256, StorePath, nix_base32};
use muster_protocol::narinfo::{NarFile, Narinfo};
use muster_server::threads;
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::AsyncReadExt as _;

use super::derivations::Derivations;
use super::gate::{Cache, bounded, good, sent};

/// How long the controller may take for one request.
const WAIT: Duration = Duration::from_secs(120);
/// Room in a request for what is around a path's texts.
const FRAME_BYTES: usize = 64;

/// Uploads what the cache lacks of these derivations and those that they are built from. Answers with the
/// sources that it lacks, too, which Nix is to copy; `None` if Nix is to copy all.
pub async fn upload(
    derivations: &[StorePath],
    files: &mut Derivations,
    cache: &Cache,
) -> Option<Vec<StorePath>> {
    let all: Vec<StorePath> = files.everything(derivations)?.into_iter().collect();
    let mut missing = BTreeSet::new();
    for paths in all.chunks(MAX_ASKED_FOR) {
        let asked = AskedFor { paths: paths.to_vec() };
        let reply: Missing = post(cache, CACHE_MISSING, &asked, MAX_ASKED_FOR_BYTES).await?;
        missing.extend(reply.paths);
    }
    // Nothing but what was asked for.
    let missing: Vec<StorePath> = all.into_iter().filter(|path| missing.contains(path)).collect();
    let (derivations, sources): (Vec<_>, Vec<_>) = missing.into_iter().partition(StorePath::is_derivation);
    for some in derivations.chunks(MAX_UPLOADS) {
        let packed = threads::on(usize::MAX, || threads::for_all(some, |path| packed(files, path)));
        for paths in in_requests(packed.into_iter().collect::<Option<_>>()?)? {
            let wanted = paths.len();
            let taken: UploadsTaken = post(cache, CACHE_PATHS, &Uploads { paths }, 1024).await?;
            (taken.stored == wanted).then_some(())?;
        }
    }
    Some(sources)
}

async fn post<T: DeserializeOwned>(
    cache: &Cache,
    path: &str,
    document: &impl Serialize,
    most: usize,
) -> Option<T> {
    let file = path.strip_prefix(CACHE)?.trim_start_matches('/');
    let asked = cache.ask(Method::POST, file).ok()?.json(document);
    let mut answer = good(sent(asked, WAIT).await.ok()?, WAIT).await.ok()?;
    let bytes = tokio::time::timeout(WAIT, bounded(&mut answer, most)).await.ok()?.ok()??;
    serde_json::from_slice(&bytes).ok()
}

/// A derivation as the cache has it, and as Nix would describe it.
fn packed(files: &Derivations, path: &StorePath) -> Option<UploadedPath> {
    let (derivation, text) = files.read(path)?;
    let base = |path: &String| path.strip_prefix("/nix/store/").map(str::to_owned);
    let references = derivation.references.iter().map(base).collect::<Option<Vec<_>>>()?.join(" ");
    let archive = archive_of(&text);
    let mut packed = Vec::new();
    // It never waits: what it reads is in memory.
    ZstdEncoder::new(&archive[..]).read_to_end(&mut packed).now_or_never()?.ok()?;
    let file = NarFile::parse(&format!("{}.nar.zst", nix_base32(&Sha256::of(&packed))))?;
    let info = Narinfo {
        path: path.clone(),
        file,
        compression: "zstd",
        file_size: packed.len() as u64,
        nar_hash: format!("sha256:{}", nix_base32(&Sha256::of(&archive))),
        nar_size: archive.len() as u64,
        references,
        deriver: None,
        signatures: Vec::new(),
        ca: Some(format!("text:sha256:{}", nix_base32(&Sha256::of(text.as_bytes())))),
    };
    Some(UploadedPath { narinfo: info.text(), archive: STANDARD.encode(&packed) })
}

/// A file that is not executable as Nix archives it (`archive.cc`): texts, each after its length and padded
/// to eight bytes.
fn archive_of(text: &str) -> Vec<u8> {
    let mut archive = Vec::with_capacity(text.len() + 128);
    for word in ["nix-archive-1", "(", "type", "regular", "contents", text, ")"] {
        archive.extend((word.len() as u64).to_le_bytes());
        archive.extend(word.as_bytes());
        archive.resize(archive.len().next_multiple_of(8), 0);
    }
    archive
}

/// In parts that fit in one request each; `None` if one is too large for any.
fn in_requests(packed: Vec<UploadedPath>) -> Option<Vec<Vec<UploadedPath>>> {
    let (mut requests, mut bytes): (Vec<Vec<UploadedPath>>, usize) = (Vec::new(), usize::MAX);
    for one in packed {
        // A narinfo's lines end with a character that JSON escapes.
        let more = one.narinfo.len() + one.narinfo.lines().count() + one.archive.len() + FRAME_BYTES;
        if more > MAX_UPLOADS_BYTES - FRAME_BYTES {
            return None;
        }
        if bytes.saturating_add(more) > MAX_UPLOADS_BYTES - FRAME_BYTES {
            requests.push(Vec::new());
            bytes = 0;
        }
        bytes += more;
        requests.last_mut()?.push(one);
    }
    Some(requests)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::{Arc, Mutex};

    use axum::response::{IntoResponse as _, Response};
    use reqwest::StatusCode;

    use super::*;

    /// Made by Nix 2.8.0; they use one another and a source.
    const TOP: &str = "mbsvbabnyvl1r10agmzkvjmdjmir6l45-x.drv";
    const TOP_TEXT: &str = r#"Derive([("out","/nix/store/47ggni907b05yfv762zamphhwg3r9xad-x","","")],[("/nix/store/6f39dwv7cggmflac4j1b0z6scbf4sccj-dep.drv",["out"])],["/nix/store/hnh4k9f7ql2wcpblcngqcir7j21i9vi4-y"],"s","/b",[],[("a","/nix/store/hnh4k9f7ql2wcpblcngqcir7j21i9vi4-y"),("builder","/b"),("d","/nix/store/nim4n26h61b7sgklsf4zp102q69n07dd-dep"),("name","x"),("out","/nix/store/47ggni907b05yfv762zamphhwg3r9xad-x"),("system","s")])"#;
    const DEP: &str = "6f39dwv7cggmflac4j1b0z6scbf4sccj-dep.drv";
    const DEP_TEXT: &str = r#"Derive([("out","/nix/store/nim4n26h61b7sgklsf4zp102q69n07dd-dep","","")],[],[],"s","/b",[],[("builder","/b"),("name","dep"),("out","/nix/store/nim4n26h61b7sgklsf4zp102q69n07dd-dep"),("system","s")])"#;
    const SOURCE: &str = "hnh4k9f7ql2wcpblcngqcir7j21i9vi4-y";

    fn path(base: &str) -> StorePath {
        format!("/nix/store/{base}").parse().unwrap()
    }

    fn store(root: &Path, files: &[(&str, &str)]) -> Derivations {
        let store = root.join("nix/store");
        std::fs::create_dir_all(&store).unwrap();
        for (base, text) in files {
            std::fs::write(store.join(base), text).unwrap();
        }
        Derivations::at(root.to_str())
    }

    /// A controller's cache, and what was sent to it.
    async fn controller(
        answer: impl Fn(&str) -> Response + Clone + Send + Sync + 'static,
    ) -> (Cache, Arc<Mutex<Vec<(String, serde_json::Value)>>>) {
        let asked: Arc<Mutex<Vec<(String, serde_json::Value)>>> = Arc::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        let kept = Arc::clone(&asked);
        let router = axum::Router::new().fallback(move |uri: axum::http::Uri, body: bytes::Bytes| {
            let (kept, answer) = (Arc::clone(&kept), answer.clone());
            async move {
                let body = serde_json::from_slice(&body).unwrap_or_default();
                kept.lock().unwrap().push((uri.path().to_owned(), body));
                answer(uri.path())
            }
        });
        tokio::spawn(async move { axum::serve(listener, router).await });
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        (Cache::new(http, url, "bearer".into()), asked)
    }

    fn says(paths: &[StorePath]) -> String {
        serde_json::to_string(&Missing { paths: paths.to_vec() }).unwrap()
    }

    #[tokio::test]
    async fn what_the_cache_lacks_is_sent_by_one_request_and_sources_are_left_to_nix() {
        let root = tempfile::tempdir().unwrap();
        let mut files = store(root.path(), &[(TOP, TOP_TEXT), (DEP, DEP_TEXT)]);
        // It names something, besides, that nobody asked about.
        let missing = says(&[path(TOP), path(SOURCE), path("0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-z.drv")]);
        let (cache, asked) = controller(move |path| match path {
            CACHE_MISSING => missing.clone().into_response(),
            _ => r#"{"stored":1}"#.into_response(),
        })
        .await;
        assert_eq!(upload(&[path(TOP)], &mut files, &cache).await, Some(vec![path(SOURCE)]));
        let asked = asked.lock().unwrap().clone();
        assert_eq!(asked[0].0, CACHE_MISSING);
        assert_eq!(asked[0].1["paths"].as_array().unwrap().len(), 3, "{asked:?}");
        assert_eq!((asked.len(), asked[1].0.as_str()), (2, CACHE_PATHS));
        let sent: Uploads = serde_json::from_value(asked[1].1.clone()).unwrap();
        let [one] = &sent.paths[..] else { panic!("{sent:?}") };
        let info = Narinfo::parse(one.narinfo.as_bytes()).unwrap();
        assert_eq!((info.path, info.references), (path(TOP), format!("{DEP} {SOURCE}")));
        let packed = STANDARD.decode(&one.archive).unwrap();
        assert_eq!(
            (info.file_size, info.file.hash()),
            (packed.len() as u64, &*nix_base32(&Sha256::of(&packed)))
        );
    }

    #[tokio::test]
    async fn what_is_not_plain_is_left_to_nix_as_a_whole() {
        let root = tempfile::tempdir().unwrap();
        let nothing_here = (StatusCode::NOT_FOUND, r#"{"code":"not-found","message":"nothing"}"#);
        let old = move |_: &str| nothing_here.into_response();
        let (cache, asked) = controller(old).await;
        let mut files = store(root.path(), &[(TOP, TOP_TEXT)]);
        assert_eq!(upload(&[path(TOP)], &mut files, &cache).await, None, "a derivation is not here");
        assert!(asked.lock().unwrap().is_empty());
        let mut files = store(root.path(), &[(DEP, DEP_TEXT)]);
        assert_eq!(upload(&[path(TOP)], &mut files, &cache).await, None, "a controller of version 0.1");
        assert_eq!(asked.lock().unwrap().len(), 1);
        let missing = says(&[path(DEP)]);
        let (cache, _) = controller(move |path| match path {
            CACHE_MISSING => missing.clone().into_response(),
            _ => (StatusCode::INSUFFICIENT_STORAGE, "{}").into_response(),
        })
        .await;
        assert_eq!(upload(&[path(TOP)], &mut files, &cache).await, None, "a full disk is told by Nix");
    }

    #[test]
    fn an_archive_is_the_one_that_nix_makes() {
        // `printf abc > x; nix-store --dump x | sha256sum`
        let hash = "11a71b4754d812f4aea2";
        assert_eq!(archive_of("abc").len(), 120);
        assert_eq!(&Sha256::of(&archive_of("abc")).hex()[..20], hash);
    }

    #[test]
    fn a_request_has_as_much_as_fits() {
        let of = |bytes: usize| UploadedPath { narinfo: "a\n".into(), archive: "x".repeat(bytes) };
        let sizes = |all: Vec<UploadedPath>| Some(in_requests(all)?.iter().map(Vec::len).collect::<Vec<_>>());
        assert_eq!(sizes(vec![]), Some(vec![]));
        assert_eq!(sizes(vec![of(9), of(9)]), Some(vec![2]));
        let third = MAX_UPLOADS_BYTES / 3;
        assert_eq!(sizes(vec![of(third), of(third), of(third)]), Some(vec![2, 1]));
        for paths in in_requests(vec![of(third); 3]).unwrap() {
            assert!(serde_json::to_vec(&Uploads { paths }).unwrap().len() <= MAX_UPLOADS_BYTES);
        }
        assert_eq!(sizes(vec![of(MAX_UPLOADS_BYTES)]), None);
    }
}
