//! Whoever owns the controller's folder, its online key and the network between can withhold, and nothing else (I1, I8).

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::{Sha256, StorePath};
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::Condition;
use muster_protocol::report::{Attack, EventKind};
use muster_protocol::tuf::repository::sign_timestamp;
use muster_testbed::fleet::{Fleet, Wishes, both};
use muster_testbed::machine::finish;
use muster_testbed::thief::{Answer, Thief};

use crate::common::{assert_agrees_with_itself, assert_runs_published, sql};

/// A fleet whose every word goes through the thief; both machines run generation 1.
struct Stolen {
    fleet: Fleet,
    thief: Thief,
}

impl Stolen {
    fn new() -> Self {
        let thief = Thief::start().unwrap();
        let wishes = Wishes { url: Some(thief.url.clone()), ..Wishes::default() };
        let mut fleet = Fleet::prepare(&both(), &wishes).unwrap();
        thief.passes_on_to(&format!("http://{}", fleet.address));
        for (name, _) in both() {
            fleet.invite_and_enrol(name).unwrap();
            fleet.machine(name).start().unwrap();
        }
        fleet.fixture.say("greeting", "one").unwrap();
        fleet.update(&[]).unwrap();
        for (name, _) in both() {
            fleet.settled(name, 1, Condition::UpToDate).unwrap();
        }
        Self { fleet, thief }
    }

    /// Publishes generation 2 to cinnabar while the thief bends every answer, has the machine ask, and sees it refuse.
    #[track_caller]
    fn tries(&self, what: &str, attacks: &[Attack], rule: impl FnMut(&mut Answer) + Send + 'static) {
        let before = self.fleet.machine("cinnabar").running();
        self.thief.bend(rule);
        if self.fleet.view("cinnabar").unwrap().published.unwrap().target.generation.get() < 2 {
            self.fleet.fixture.say("greeting", "two").unwrap();
            self.fleet.update(&["cinnabar"]).unwrap();
        }
        let _ = self.fleet.agent("cinnabar", &["check-now"]).unwrap();
        let view = self.fleet.wait("cinnabar", what, |view| view.refused.is_some()).unwrap();
        assert!(attacks.contains(&view.refused.unwrap()), "{what}: it was taken for {:?}", view.refused);
        self.untouched(what, before.as_ref());
        self.thief.behave();
        let _ = self.fleet.agent("cinnabar", &["check-now"]).unwrap();
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

fn is_target(path: &str) -> bool {
    path.ends_with(".generation.json")
}

fn replace(body: &mut Vec<u8>, from: &str, to: &str) {
    let text = String::from_utf8_lossy(body).replace(from, to);
    *body = text.into_bytes();
}

#[test]
fn a_changed_derivation_is_refused() {
    let stolen = Stolen::new();
    let other = stolen.fleet.view("stibnite").unwrap().published.unwrap().target.derivation;
    stolen.tries(
        "a changed derivation",
        &[Attack::ForgedSignature, Attack::MixAndMatch, Attack::Malformed],
        {
            move |answer| {
                if is_target(&answer.path) {
                    let text = String::from_utf8_lossy(&answer.body).into_owned();
                    let start = text.find("/nix/store/").unwrap();
                    let end = start + text[start..].find(".drv").unwrap() + 4;
                    replace(&mut answer.body, &text[start..end], other.as_str());
                }
            }
        },
    );
    stolen.recovers();
}

#[test]
fn a_changed_output_path_is_refused() {
    let stolen = Stolen::new();
    let (wanted, other) = {
        let view = stolen.fleet.view("cinnabar").unwrap();
        (view.published.unwrap().target.output, stolen.fleet.machine("stibnite").running().unwrap())
    };
    let _ = wanted;
    stolen.tries("a changed output", &[Attack::ForgedSignature, Attack::MixAndMatch, Attack::Malformed], {
        move |answer| {
            if is_target(&answer.path) {
                let mut value: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
                value["output"] = other.as_str().into();
                answer.body = serde_json::to_vec(&value).unwrap();
            }
        }
    });
    stolen.recovers();
}

#[test]
fn another_machines_generation_is_refused_before_it_is_stored() {
    let stolen = Stolen::new();
    // Everything that stibnite was ever given, by the last part of its path.
    let others: Vec<Answer> = stolen
        .thief
        .seen()
        .into_iter()
        .filter(|answer| answer.status == 200 && answer.path.contains("/machines/stibnite/tuf/"))
        .collect();
    let floor = fs::read_dir(stolen.fleet.machine("cinnabar").root.at("/var/lib/muster/tuf"))
        .unwrap()
        .flatten()
        .map(|file| (file.path(), fs::read(file.path()).unwrap()))
        .collect::<Vec<_>>();
    stolen.tries("another machine's metadata", &[Attack::ForeignMachine], move |answer| {
        let Some((_, file)) = answer.path.split_once("/machines/cinnabar/tuf/") else { return };
        let file = file.trim_start_matches("targets/cinnabar/");
        let kind = file.trim_start_matches(|c: char| c.is_ascii_digit()).to_owned();
        if let Some(other) = others.iter().rev().find(|other| other.path.ends_with(&kind)) {
            (answer.status, answer.body) = (200, other.body.clone());
        }
    });
    // Nothing of it became this machine's floor.
    for (path, before) in floor {
        let now = fs::read(&path).unwrap();
        let text = String::from_utf8_lossy(&now).into_owned();
        assert!(now == before || !text.contains("stibnite"), "{} holds another's", path.display());
    }
    stolen.recovers();
}

#[test]
fn an_older_generation_is_refused_even_with_a_new_timestamp_of_the_stolen_online_key() {
    let stolen = Stolen::new();
    let first: Vec<Answer> = stolen
        .thief
        .seen()
        .into_iter()
        .filter(|answer| answer.status == 200 && answer.path.contains("/machines/cinnabar/tuf/"))
        .collect();
    stolen.fleet.fixture.say("greeting", "two").unwrap();
    stolen.fleet.update(&["cinnabar"]).unwrap();
    stolen.recovers();
    let second = stolen.fleet.machine("cinnabar").running();

    // As it was: an old timestamp and what belongs to it.
    let replayed = first.clone();
    stolen.tries("a replay of everything", &[Attack::Rollback], move |answer| {
        let old = replayed.iter().rev().find(|old| {
            let end = old.path.rsplit('/').next().unwrap_or_default();
            answer.path.ends_with("timestamp.json") && end == "timestamp.json"
        });
        if let Some(old) = old {
            (answer.status, answer.body) = (200, old.body.clone());
        }
    });

    // Signed anew with the stolen key, a second ahead of all others, over generation 1's snapshot.
    let snapshot = first.iter().find(|old| old.path.ends_with("1.snapshot.json")).unwrap().body.clone();
    let key = fs::read_to_string(stolen.fleet.controller_folder().join("online.pem")).unwrap();
    let key = SecretKey::from_pem(&key).unwrap();
    let now = SystemClock::new().unix_seconds();
    let version = u64::try_from(now).unwrap() + 3600;
    let machine = "cinnabar".parse().unwrap();
    let timestamp = sign_timestamp(&machine, &snapshot, version, now + 3600, &key).unwrap();
    stolen.tries("a new timestamp over an old snapshot", &[Attack::Rollback], move |answer| {
        if answer.path.ends_with("timestamp.json") {
            (answer.status, answer.body) = (200, timestamp.clone());
        }
    });
    assert_eq!(stolen.fleet.machine("cinnabar").running(), second);
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
            // The second time it asks, it has made up its mind about the first.
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
fn a_derivation_changed_in_the_cache_is_never_built() {
    let stolen = Stolen::new();
    let before = stolen.fleet.machine("cinnabar").running();
    stolen.thief.bend(|answer| {
        if answer.method == "GET" && answer.path.contains("/cache/nar/") && answer.status == 200 {
            let middle = answer.body.len() / 2;
            answer.body[middle] ^= 1;
        }
    });
    stolen.fleet.fixture.say("greeting", "two").unwrap();
    stolen.fleet.update(&["cinnabar"]).unwrap();
    stolen
        .fleet
        .wait("cinnabar", "a failed fetch", |view| {
            view.condition == Condition::Failed || view.note.as_ref().is_some_and(|note| !note.is_empty())
        })
        .unwrap();
    stolen.untouched("a changed archive", before.as_ref());
    stolen.thief.behave();
    // A later generation comes through, whatever became of the one that was tampered with.
    stolen.fleet.fixture.say("greeting", "three").unwrap();
    stolen.fleet.update(&["cinnabar"]).unwrap();
    let _ = stolen.fleet.agent("cinnabar", &["check-now"]).unwrap();
    stolen.fleet.settled("cinnabar", 3, Condition::UpToDate).unwrap();
    assert_eq!(stolen.fleet.machine("cinnabar").greeting().unwrap(), "three");
}

#[test]
fn a_ready_made_output_from_the_cache_is_not_taken_without_a_signature_that_was_named() {
    let stolen = Stolen::new();
    let fleet = &stolen.fleet;
    fleet.fixture.say("greeting", "two").unwrap();
    let output = fleet.fixture.output("nixosConfigurations.cinnabar.config.system.build.toplevel").unwrap();
    // A poisoned archive that says it is that output: some other store path's, under its name.
    let evil = fleet.folder().join("evil");
    let poison = fleet.folder().join("poison");
    fs::create_dir_all(poison.join("bin")).unwrap();
    fs::write(poison.join("bin/switch-to-configuration"), "#!/bin/sh\nexit 0\n").unwrap();
    let poison = poison.display().to_string();
    let added = finish(fleet.fixture.nix("nix-store").args(["--add", &poison])).unwrap();
    let added: StorePath = added.trim().parse().unwrap();
    let cache = format!("file://{}?compression=none", evil.display());
    finish(fleet.fixture.nix("nix").args(["copy", "--to", &cache, added.as_str()])).unwrap();
    let narinfo = fs::read_to_string(evil.join(format!("{}.narinfo", added.hash_part()))).unwrap();
    let narinfo: String = narinfo
        .lines()
        .filter(|line| {
            !line.starts_with("CA:") && !line.starts_with("References:") && !line.starts_with("Sig:")
        })
        .map(|line| match line.strip_prefix("StorePath: ") {
            Some(_) => format!("StorePath: {output}\n"),
            None => format!("{line}\n"),
        })
        .chain(["References: \n".to_owned()])
        .collect();
    let (wanted, offered) = (format!("/cache/{}.narinfo", output.hash_part()), Arc::new(Mutex::new(0)));
    let counted = Arc::clone(&offered);
    stolen.thief.bend(move |answer| {
        if answer.path.starts_with(&wanted) {
            (answer.status, answer.body) = (200, narinfo.clone().into_bytes());
            *counted.lock().unwrap() += 1;
        } else if let Some(nar) = answer.path.strip_prefix("/cache/nar/")
            && let Ok(bytes) = fs::read(evil.join("nar").join(nar))
        {
            (answer.status, answer.body) = (200, bytes);
        }
    });
    fleet.update(&["cinnabar"]).unwrap();
    fleet
        .wait("cinnabar", "an end", |view| {
            matches!(view.condition, Condition::UpToDate | Condition::Failed)
                && view.phase_generation.is_some_and(|generation| generation.get() == 2)
        })
        .unwrap();
    let script = fleet.machine("cinnabar").physical(&output).join("bin/switch-to-configuration");
    let text = fs::read_to_string(script).unwrap_or_default();
    assert!(text.is_empty() || text.contains("switch-to-configuration-ng"), "it took the poison: {text}");
}

#[test]
fn a_stolen_folder_with_every_file_altered_makes_no_machine_run_anything() {
    let Stolen { mut fleet, thief } = Stolen::new();
    fleet.stop_controller().unwrap();
    let good = fleet.folder().join("good");
    copy(&fleet.controller_folder(), &good);
    let before: Vec<_> = both().iter().map(|(name, _)| fleet.machine(name).running()).collect();

    // What is stored is changed where it hurts most: each machine's newest generation becomes the other's.
    let database = fleet.controller_folder().join("data/muster.db");
    let changed = sql(
        &database,
        "INSERT INTO generations SELECT m.other, 2, g.targets, g.snapshot, g.target, g.target_sha256, g.expires, \
         g.published_at, g.published_by FROM generations g JOIN (SELECT 'cinnabar' AS name, 'stibnite' AS other \
         UNION SELECT 'stibnite', 'cinnabar') m ON g.machine = m.name WHERE g.generation = 1",
    )
    .unwrap();
    assert_eq!(changed, 2);
    serve_and_look(&mut fleet, &thief, "foreign generations", &before);

    // Then every file of the folder gets a flipped byte, one file at a time, from a fresh copy each time.
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

/// Serves the altered folder until both machines have asked for their metadata or were turned away, and looks at them.
/// A controller that refuses to start is well.
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
    copy(good, &fleet.controller_folder());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().flatten() {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
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
    let told = stolen.fleet.events("cinnabar", 2).unwrap();
    assert!(told.iter().any(|kind| matches!(kind, EventKind::Confirmed { .. })), "{told:?}");
}
