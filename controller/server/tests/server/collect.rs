//! Garbage collection in the cache: nothing that a kept generation needs is ever removed, and no answer that
//! a running `nix copy` got becomes untrue.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, UNIX_EPOCH};

use muster_protocol::api::{CACHE_MISSING, OPERATOR_AUDIT, OPERATOR_COLLECT, ProblemCode};
use muster_protocol::audit::Page;
use muster_protocol::cache::{AskedFor, Collect, Collection, Found, Missing};
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{MachineName, NIX_BASE32, Sha256, nix_base32};
use muster_protocol::machine::Class;
use muster_protocol::report::{Accepted, EventKind};
use reqwest::{Method, StatusCode};

use crate::stores::each;
use crate::support::{Answer, Fleet, event, target};

const DAY: i64 = 86_400;

/// A path of the cache, by its number.
fn hash(path: usize) -> String {
    let digits = (0..32).map(|at| NIX_BASE32[(path >> (at * 5).min(40)) & 31] as char);
    digits.collect()
}
fn base(path: usize) -> String {
    format!("{}-path-{path}.drv", hash(path))
}
fn archive(path: usize) -> Vec<u8> {
    format!("archive {path}").into_bytes()
}
fn nar_path(bytes: &[u8]) -> String {
    format!("/cache/nar/{}.nar.zst", nix_base32(&Sha256::of(bytes)))
}
fn info_path(path: usize) -> String {
    format!("/cache/{}.narinfo", hash(path))
}

async fn put(fleet: &Fleet, bearer: &str, path: &str, body: impl Into<reqwest::Body>) {
    let answer = Answer::of(fleet.http.put(fleet.url(path)).bearer_auth(bearer).body(body)).await;
    assert_eq!(answer.status, StatusCode::CREATED, "{path}: {}", answer.text);
}

/// Uploads one path as `nix copy` does: what the cache says it has is not sent.
async fn copy(fleet: &Fleet, bearer: &str, path: usize, references: &[usize]) {
    if fleet.get(&info_path(path), bearer).await.status == StatusCode::OK {
        return;
    }
    let bytes = archive(path);
    if fleet.get(&nar_path(&bytes), bearer).await.status != StatusCode::OK {
        put(fleet, bearer, &nar_path(&bytes), bytes.clone()).await;
    }
    let (hash, names) = (nix_base32(&Sha256::of(&bytes)), references.iter().map(|path| base(*path)));
    let text = format!(
        "StorePath: /nix/store/{}\nURL: nar/{hash}.nar.zst\nCompression: zstd\nFileHash: sha256:{hash}\n\
         FileSize: {}\nNarHash: sha256:{hash}\nNarSize: 120\nReferences: {}\n",
        base(path),
        bytes.len(),
        names.collect::<Vec<_>>().join(" ")
    );
    put(fleet, bearer, &info_path(path), text).await;
}

async fn publish(fleet: &Fleet, machine: &MachineName, number: u64, path: usize) {
    let mut target = target(machine.as_str(), Class::Nixos, number);
    target.derivation = format!("/nix/store/{}", base(path)).parse().unwrap();
    let answer = fleet.publish(machine, &fleet.generation_by(&fleet.operator, &target)).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
}

async fn collect(fleet: &Fleet, dry_run: bool, keep_days: u32) -> Found {
    let body = serde_json::to_vec(&Collect { dry_run, keep_days }).unwrap();
    let mut run: Collection = fleet.operate(Method::POST, OPERATOR_COLLECT, body).await.good();
    while !run.ended {
        run = fleet.operate(Method::GET, OPERATOR_COLLECT, vec![]).await.good();
    }
    assert_eq!(run.failed, None);
    run.found
}

async fn status(fleet: &Fleet, bearer: &str, path: &str) -> u16 {
    fleet.get(path, bearer).await.status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nothing_needs_is_told_of_no_more_and_removed_a_day_later() {
    for store in each().await {
        // The clock is ahead of the store's: everything came long ago.
        let fleet = Fleet::start_with(&store.config).await;
        let operator = fleet.session().await;
        let (needed, below, unneeded, orphan) = (1, 2, 3, 4);
        copy(&fleet, &operator, below, &[]).await;
        copy(&fleet, &operator, needed, &[below, 99]).await;
        copy(&fleet, &operator, unneeded, &[below]).await;
        put(&fleet, &operator, &nar_path(&archive(orphan)), archive(orphan)).await;
        let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
        publish(&fleet, &machine.name, 1, needed).await;
        let reader = machine.bearer(&fleet).await;

        fleet.operate(Method::GET, OPERATOR_COLLECT, vec![]).await.refused(404, ProblemCode::NotFound);
        let dry = collect(&fleet, true, 30).await;
        // The output and path 99 are not in the cache, which says nothing of the rest.
        assert_eq!((dry.generations, dry.needed, dry.missing), (1, 4, 2), "{}", store.name);
        assert_eq!((dry.condemned, dry.condemned_bytes > 0, dry.removed), (3, true, 0));
        assert_eq!(status(&fleet, &operator, &info_path(unneeded)).await, 200);

        assert_eq!(collect(&fleet, false, 30).await, dry);
        for path in [info_path(unneeded), nar_path(&archive(unneeded)), nar_path(&archive(orphan))] {
            assert_eq!(
                (status(&fleet, &operator, &path).await, status(&fleet, &reader, &path).await),
                (404, 200)
            );
        }
        let again = collect(&fleet, false, 30).await;
        assert_eq!((again.condemned, again.waiting, again.removed), (0, 3, 0));
        let path = |path| format!("/nix/store/{}", base(path)).parse().unwrap();
        let asked = AskedFor { paths: vec![path(needed), path(unneeded)] };
        let missing = fleet.http.post(fleet.url(CACHE_MISSING)).bearer_auth(&operator).json(&asked);
        assert_eq!(Answer::of(missing).await.good::<Missing>().paths, asked.paths[1..]);
        // Whoever needs one of them uploads it again.
        copy(&fleet, &operator, unneeded, &[below]).await;
        assert_eq!(status(&fleet, &operator, &info_path(unneeded)).await, 200);

        fleet.clock.forward(DAY);
        let (operator, reader) = (fleet.session().await, machine.bearer(&fleet).await);
        let later = collect(&fleet, false, 30).await;
        assert_eq!((later.condemned, later.removed), (2, 1), "{}", store.name);
        assert_eq!(status(&fleet, &reader, &nar_path(&archive(orphan))).await, 404);
        // A new generation needs what was condemned: it stays, and is told of again.
        publish(&fleet, &machine.name, 2, unneeded).await;
        fleet.clock.forward(DAY);
        let (operator, reader, _) = (fleet.session().await, machine.bearer(&fleet).await, operator);
        assert_eq!(collect(&fleet, false, 30).await.removed, 0);
        for path in [needed, below, unneeded] {
            for name in [info_path(path), nar_path(&archive(path))] {
                assert_eq!(
                    (status(&fleet, &operator, &name).await, status(&fleet, &reader, &name).await),
                    (200, 200)
                );
            }
        }
        // The first generation is too old now: what only it needed goes.
        assert_eq!(collect(&fleet, false, 0).await.condemned, 2);
        fleet.clock.forward(DAY);
        let reader = machine.bearer(&fleet).await;
        assert_eq!(collect(&fleet, false, 0).await.removed, 2);
        assert_eq!(status(&fleet, &reader, &info_path(needed)).await, 404);
        assert_eq!(status(&fleet, &reader, &info_path(below)).await, 200);
        let log: Page = fleet.operate(Method::GET, OPERATOR_AUDIT, vec![]).await.good();
        assert_eq!(log.entries.iter().filter(|entry| entry.action == "cache-collected").count(), 6);
        assert!(log.entries.last().unwrap().detail.contains("keep 0 days: 0 condemned, 2 removed"));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_confirmed_last_can_be_built_again_however_old_it_is() {
    for store in each().await {
        let fleet = Fleet::start_with(&store.config).await;
        let operator = fleet.session().await;
        let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
        for number in 1..=5 {
            let path = usize::try_from(number).unwrap();
            copy(&fleet, &operator, path, &[path + 10]).await;
            copy(&fleet, &operator, path + 10, &[]).await;
            publish(&fleet, &machine.name, number, path).await;
        }
        let running: muster_protocol::ids::StorePath =
            "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap();
        let told = (1..=4).map(|number| {
            let kind = EventKind::Confirmed { running: running.clone(), ms: 1, degraded: vec![] };
            event(number, Some(number), kind)
        });
        machine.report(&fleet, 1, told.collect()).await.good::<Accepted>();
        fleet.clock.forward(100 * DAY);
        let found = collect(&fleet, false, 0).await;
        // The one that is offered, and 2, 3 and 4; what only the first needs goes.
        assert_eq!((found.generations, found.condemned), (4, 4), "{}", store.name);
        fleet.clock.forward(2 * DAY);
        assert_eq!(collect(&fleet, false, 0).await.removed, 4);
        let reader = machine.bearer(&fleet).await;
        for path in [2, 12, 3, 13, 4, 14, 5, 15] {
            assert_eq!(status(&fleet, &reader, &info_path(path)).await, 200, "{path}");
        }
        assert_eq!(status(&fleet, &reader, &info_path(1)).await, 404);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_came_in_the_last_day_stays_with_all_that_it_refers_to() {
    let fleet = Fleet::start().await;
    let now = std::fs::metadata(fleet.config_file()).unwrap().modified().unwrap();
    let now = now.duration_since(UNIX_EPOCH).unwrap();
    fleet.clock.set_unix_ms(now.as_millis().try_into().unwrap());
    let operator = fleet.session().await;
    for path in 1..=3 {
        copy(&fleet, &operator, path, &[path + 1]).await;
    }
    let found = collect(&fleet, false, 30).await;
    assert_eq!((found.condemned, found.needed), (0, 6));
    // Only the first is recent: the others are what it refers to.
    let blobs = fleet.dir.path().join("data/blobs");
    for entry in std::fs::read_dir(&blobs).unwrap().chain(std::fs::read_dir(blobs.join("nar")).unwrap()) {
        let path = entry.unwrap().path();
        if path.is_file() && !path.ends_with(format!("{}.narinfo", hash(1))) {
            let file = std::fs::File::options().write(true).open(path).unwrap();
            file.set_modified(UNIX_EPOCH + now - Duration::from_secs(40 * 86_400)).unwrap();
        }
    }
    std::fs::write(blobs.join("nar/half.nar#1"), "staged by a controller that was killed").unwrap();
    assert_eq!(collect(&fleet, false, 30).await.condemned, 0);
    assert!(blobs.join("nar/half.nar#1").exists());
    fleet.clock.forward(2 * DAY);
    let found = collect(&fleet, false, 30).await;
    assert_eq!((found.condemned, found.unfinished), (6, 1));
    assert!(!blobs.join("nar/half.nar#1").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_but_an_operator_collects_and_a_store_that_is_away_ends_a_run_without_harm() {
    let store = crate::stores::s3().await;
    let fleet = Fleet::start_with(&store.config).await;
    let operator = fleet.session().await;
    copy(&fleet, &operator, 1, &[]).await;
    let body = br#"{"dry_run": false, "keep_days": 1}"#.to_vec();
    let signature = fleet.signature(&fleet.online, &Method::POST, OPERATOR_COLLECT, &body);
    let answer = fleet.send_signed(Method::POST, OPERATOR_COLLECT, body.clone(), &signature).await;
    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{}", answer.text);
    let endless = br#"{"keep_days": 1000000}"#.to_vec();
    fleet.operate(Method::POST, OPERATOR_COLLECT, endless).await.refused(400, ProblemCode::Malformed);
    store.proxy().turn(crate::stores::Mode::Dead);
    let run: Collection = fleet.operate(Method::POST, OPERATOR_COLLECT, body).await.good();
    assert!(run.ended && run.failed.is_some_and(|why| why.contains("object store")));
    store.proxy().turn(crate::stores::Mode::Through);
    assert_eq!(collect(&fleet, false, 1).await.condemned, 2);
}

/// Small numbers, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % limit
    }
}

/// Uploads, publications, hours and collections in any order. An operator who asked what the cache has
/// publishes within a day of it, whatever is collected in between.
#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_collected_in_between_no_kept_generation_lacks_a_path() {
    const PATHS: usize = 24;
    for seed in 0..6 {
        let mut dice = Dice(seed);
        let fleet = Fleet::start().await;
        let machines: Vec<MachineName> = ["a", "b", "c"].iter().map(|name| name.parse().unwrap()).collect();
        for machine in &machines {
            fleet.invited(machine.as_str(), Class::Nixos).await;
        }
        // A path refers to some with higher numbers.
        let references: Vec<Vec<usize>> =
            (0..PATHS).map(|path| (path + 1..PATHS).filter(|_| dice.below(8) == 0).collect()).collect();
        let closure = |path: usize| {
            let (mut all, mut next) = (BTreeSet::from([path]), vec![path]);
            while let Some(path) = next.pop() {
                next.extend(references[path].iter().filter(|path| all.insert(**path)));
            }
            all
        };
        let mut published = BTreeMap::<MachineName, Vec<(i64, usize)>>::new();
        let mut pending: Option<(i64, MachineName, usize)> = None;
        for step in 0..40 {
            let now = fleet.clock.unix_seconds();
            match dice.below(4) {
                0 => {
                    let (machine, path) = (machines[dice.below(3)].clone(), dice.below(PATHS / 2));
                    let bearer = fleet.session().await;
                    for path in closure(path).into_iter().rev() {
                        copy(&fleet, &bearer, path, &references[path]).await;
                    }
                    pending = Some((now, machine, path));
                }
                1 => {
                    if let Some((asked, machine, path)) =
                        pending.take().filter(|(asked, ..)| now - asked < DAY)
                    {
                        let list = published.entry(machine.clone()).or_default();
                        publish(&fleet, &machine, list.len() as u64 + 1, path).await;
                        list.push((now, path));
                        assert!(now - asked < DAY);
                    }
                }
                2 => fleet.clock.forward(dice.below(30) as i64 * 3600),
                _ => {
                    let days = dice.below(4) as u32;
                    collect(&fleet, false, days).await;
                    let since = now - i64::from(days) * DAY;
                    for list in published.values_mut() {
                        let last = list.last().copied();
                        list.iter_mut().filter(|one| one.0 < since && Some(**one) != last).for_each(|one| {
                            // It may be gone by now, and stays a number.
                            one.1 = PATHS;
                        });
                    }
                }
            }
            let blobs = fleet.dir.path().join("data/blobs");
            for (_, path) in published.values().flatten().filter(|(_, path)| *path < PATHS) {
                for path in closure(*path) {
                    let (info, nar) = (format!("{}.narinfo", hash(path)), nar_path(&archive(path)));
                    let there = blobs.join(&info).exists() && blobs.join(&nar["/cache/".len()..]).exists();
                    assert!(there, "seed {seed}, step {step}: path {path} is gone");
                }
            }
        }
    }
}
