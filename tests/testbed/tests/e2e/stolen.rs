//! A thief who has the controller's folder, its online key and the network can withhold updates, and nothing
//! else (I1, I8).
//!
//! What it may substitute for single files is tried in the suite of attacks, by name.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::{Sha256, StorePath};
use muster_protocol::operator::Condition;
use muster_protocol::report::{Attack, EventKind};
use muster_testbed::fleet::{Fleet, both};
use muster_testbed::stolen::copy;
use muster_testbed::thief::{Answer, Thief};

use crate::common::{assert_agrees_with_itself, assert_runs_published, reported, sql};

/// The library's fixture, with the helpers of these tests.
struct Stolen(muster_testbed::stolen::Stolen);

impl std::ops::Deref for Stolen {
    type Target = muster_testbed::stolen::Stolen;

    fn deref(&self) -> &Self::Target {
        &self.0
    }
}

impl Stolen {
    fn new() -> Self {
        Self(muster_testbed::stolen::Stolen::new().unwrap())
    }

    #[track_caller]
    fn untouched(&self, what: &str, before: Option<&StorePath>) {
        assert_eq!(self.fleet.machine("cinnabar").running().as_ref(), before, "{what}: it switched");
        assert_agrees_with_itself(&self.fleet, "cinnabar");
        assert_eq!(self.fleet.agent_pids("cinnabar").len(), 1, "{what}: the agent is gone");
    }

    #[track_caller]
    fn recovers(&self) {
        let _ = self.fleet.agent("cinnabar", &["check-now"]).unwrap();
        self.fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
        assert_runs_published(&self.fleet, "cinnabar");
        assert_eq!(self.fleet.machine("cinnabar").greeting().unwrap(), "two");
    }
}

#[test]
fn no_flipped_byte_in_any_file_of_trust_is_believed() {
    const PLACES: usize = 8;
    let stolen = Stolen::new();
    let fleet = &stolen.fleet;
    let before = fleet.machine("cinnabar").running();
    let mut published = false;
    for file in ["/timestamp.json", ".snapshot.json", ".targets.json", ".generation.json"] {
        for place in 0..PLACES {
            let flipped = Arc::new(Mutex::new(0));
            let count = Arc::clone(&flipped);
            stolen.thief.bend(move |answer| {
                let of_trust = answer.path.contains("/machines/cinnabar/tuf/") && answer.status == 200;
                if of_trust && answer.path.ends_with(file) {
                    let at = answer.body.len() * place / PLACES;
                    answer.body[at] ^= 1;
                    *count.lock().unwrap() += 1;
                }
            });
            if !published {
                fleet.fixture.say("greeting", "two").unwrap();
                fleet.update(&["cinnabar"]).unwrap();
                published = true;
            }
            // Once it asks a second time, it has decided about the first.
            fleet
                .until("cinnabar", "a second request for the altered file", |_| {
                    let _ = fleet.agent("cinnabar", &["check-now"]);
                    *flipped.lock().unwrap() >= 2
                })
                .unwrap();
            stolen.untouched(&format!("byte {place}/{PLACES} of {file}"), before.as_ref());
        }
        let refused = fleet.wait("cinnabar", file, |view| view.refused.is_some()).unwrap().refused;
        assert!(
            matches!(refused, Some(Attack::ForgedSignature | Attack::Malformed | Attack::MixAndMatch)),
            "{file}: it was taken for {refused:?}"
        );
    }
    stolen.thief.behave();
    stolen.recovers();
}

#[test]
fn a_stolen_folder_with_every_file_altered_makes_no_machine_run_anything() {
    let muster_testbed::stolen::Stolen { mut fleet, thief } = Stolen::new().0;
    fleet.stop_controller().unwrap();
    let good = fleet.folder().join("good");
    copy(&fleet.controller_folder(), &good).unwrap();
    let before: Vec<_> = both().iter().map(|(name, _)| fleet.machine(name).running()).collect();

    // The worst change to the stored data: each machine's newest generation becomes the other's. Only a thief
    // does this; neither the API nor the store creates this state.
    let database = fleet.controller_folder().join("data/muster.db");
    let changed = sql(
        &database,
        "INSERT INTO generations (machine, generation, targets, snapshot, target, target_sha256, expires, \
         published_at, published_by) SELECT m.other, 2, g.targets, g.snapshot, g.target, g.target_sha256, \
         g.expires, g.published_at, g.published_by FROM generations g JOIN (SELECT 'cinnabar' AS name, \
         'stibnite' AS other \
         UNION SELECT 'stibnite', 'cinnabar') m ON g.machine = m.name WHERE g.generation = 1",
    )
    .unwrap();
    assert_eq!(changed, 2);
    serve_and_look(&mut fleet, &thief, "foreign generations", &before);

    // Then one byte of every file in the folder is flipped, one file at a time, each time in a fresh copy.
    let files = files(&good);
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        restore(&fleet, &good);
        let inside = file.strip_prefix(&good).unwrap();
        let target = fleet.controller_folder().join(inside);
        let mut bytes = fs::read(&target).unwrap();
        if bytes.is_empty() || inside.ends_with("controller.toml") {
            continue;
        }
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        fs::write(&target, bytes).unwrap();
        serve_and_look(&mut fleet, &thief, &inside.display().to_string(), &before);
    }

    restore(&fleet, &good);
    fleet.start_controller().unwrap();
    fleet.fixture.say("greeting", "two").unwrap();
    fleet.update(&[]).unwrap();
    for (name, _) in both() {
        let _ = fleet.agent(name, &["check-now"]).unwrap();
        fleet.settled(name, 2, Condition::UpToDate).unwrap();
        assert_runs_published(&fleet, name);
    }
}

/// Serves the altered folder until both machines have requested their metadata or were turned away, and
/// checks them. A controller that refuses to start is fine.
#[track_caller]
fn serve_and_look(fleet: &mut Fleet, thief: &Thief, what: &str, before: &[Option<StorePath>]) {
    thief.forget();
    if fleet.start_controller().is_ok() {
        let clock = SystemClock::new();
        let asked = |name: &str| {
            let seen = thief.seen();
            let metadata = format!("/machines/{name}/tuf/timestamp.json");
            let turned_away = seen.iter().filter(|a| a.status >= 400 && a.status != 502).count();
            seen.iter().any(|answer| answer.path.contains(&metadata)) || turned_away >= 4
        };
        while !both().iter().all(|(name, _)| asked(name)) {
            for (name, _) in both() {
                let _ = fleet.agent(name, &["check-now"]).unwrap();
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
            assert!(clock.awake().as_secs() < 60, "{what}: nobody asked: {:#?}", thief.seen());
        }
        let _ = fleet.stop_controller();
    }
    for ((name, _), before) in both().iter().zip(before) {
        assert_eq!(&fleet.machine(name).running(), before, "{what}: {name} switched");
        assert_agrees_with_itself(fleet, name);
        assert_eq!(fleet.agent_pids(name).len(), 1, "{what}: {name} lost its agent");
    }
}

fn restore(fleet: &Fleet, good: &Path) {
    fs::remove_dir_all(fleet.controller_folder()).unwrap();
    copy(good, &fleet.controller_folder()).unwrap();
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap().flatten() {
        if entry.file_type().unwrap().is_dir() {
            found.extend(files(&entry.path()));
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    found
}

#[test]
fn a_withheld_update_is_all_that_a_thief_can_do_and_it_ends_with_the_theft() {
    let stolen = Stolen::new();
    let frozen: Vec<Answer> = stolen.thief.seen();
    let latest = |ending: &'static str| {
        frozen.iter().rev().find(|a| a.path.contains("cinnabar") && a.path.ends_with(ending)).cloned()
    };
    let timestamp = latest("timestamp.json").unwrap();
    let digest = Sha256::of(&timestamp.body);
    stolen.thief.bend(move |answer| {
        if answer.path.contains("/machines/cinnabar/tuf/timestamp.json") {
            (answer.status, answer.body) = (200, timestamp.body.clone());
        }
    });
    stolen.fleet.fixture.say("greeting", "two").unwrap();
    stolen.fleet.update(&["cinnabar"]).unwrap();
    let _ = stolen.fleet.agent("cinnabar", &["check-now"]).unwrap();
    let kept =
        fs::read(stolen.fleet.machine("cinnabar").root.at("/var/lib/muster/tuf/timestamp.json")).unwrap();
    assert_eq!(Sha256::of(&kept), digest);
    assert_eq!(stolen.fleet.machine("cinnabar").greeting().unwrap(), "one");
    assert_eq!(stolen.fleet.view("cinnabar").unwrap().condition, Condition::Updating);
    stolen.thief.behave();
    stolen.recovers();
    let events = reported(&stolen.fleet, "cinnabar", 2);
    assert!(events.iter().any(|kind| matches!(kind, EventKind::Confirmed { .. })), "{events:?}");
}
