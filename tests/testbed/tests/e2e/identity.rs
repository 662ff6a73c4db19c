//! A machine's key, its counted check-ins and its bearers, across killed agents and lost responses.

use std::sync::{Arc, Mutex};

use muster_protocol::api;
use muster_protocol::checkin::CheckIn;
use muster_protocol::keys::{PublicKey, SecretKey};
use muster_protocol::operator::{Condition, MachineView};
use muster_testbed::fleet::{Fleet, both, said};
use muster_testbed::stolen::{Stolen, VICTIM, copy};
use muster_testbed::thief::Answer;

use crate::common::{assert_runs_published, with_store};
use crate::operators::log;

/// Kills a machine's agent, and waits until its service manager has started another one.
fn restart(stolen: &Stolen, name: &str) {
    let fleet = &stolen.fleet;
    let before = fleet.agent_pids(name);
    fleet.kill_agent(name).unwrap();
    fleet
        .until(name, "another agent", |_| {
            let now = fleet.agent_pids(name);
            !now.is_empty() && now != before
        })
        .unwrap();
}

/// The number of a check-in, the number then on the disk, and the body.
type Sent = (u64, u64, Vec<u8>);

#[test]
fn a_check_ins_number_is_on_the_disk_before_it_is_sent_and_never_used_for_another() {
    let stolen = Stolen::new().unwrap();
    let file = stolen.state(VICTIM).join("checkin-seq");
    let sent: Arc<Mutex<Vec<Sent>>> = Arc::default();
    let noted = Arc::clone(&sent);
    stolen.thief.intercept(move |asked| {
        let check_in: CheckIn = (asked.path == api::CHECKIN)
            .then_some(())
            .and_then(|()| serde_json::from_slice(&asked.body).ok())
            .filter(|check_in: &CheckIn| check_in.machine.as_str() == VICTIM)?;
        let stored = std::fs::read_to_string(&file).unwrap_or_default().trim().parse().unwrap_or(0);
        noted.lock().unwrap().push((check_in.seq, stored, asked.body.clone()));
        None
    });
    // Every second response is lost: the machine cannot know whether the controller received the check-in.
    let mut count = 0;
    stolen.thief.bend(move |answer| {
        count += usize::from(answer.path == api::CHECKIN);
        if answer.path == api::CHECKIN && count % 2 == 1 {
            (answer.status, answer.body) = (502, Vec::new());
        }
    });
    for round in 1..=4 {
        let before = sent.lock().unwrap().len();
        stolen
            .fleet
            .until(VICTIM, "two more check-ins", |_| {
                let _ = stolen.fleet.agent(VICTIM, &["check-now"]);
                sent.lock().unwrap().len() >= before + 2
            })
            .unwrap();
        if round % 2 == 0 {
            restart(&stolen, VICTIM);
        }
    }
    let sent = sent.lock().unwrap().clone();
    for (seq, stored, _) in &sent {
        assert!(stored >= seq, "{seq} was sent while the disk had {stored}");
    }
    // An unanswered check-in is sent again byte for byte, also by the next process; then the next number is
    // used.
    let goes_on = |pair: &[Sent]| match pair[0].0 == pair[1].0 {
        true => pair[0].2 == pair[1].2,
        false => pair[0].0 < pair[1].0,
    };
    assert!(sent.windows(2).all(goes_on), "{sent:?}");
    assert!(sent.windows(2).any(|pair| pair[0].0 == pair[1].0), "an answer was lost, and nothing said again");
    stolen.thief.behave();
    let last = stolen.fleet.view(VICTIM).unwrap().last_seen;
    stolen.ask(VICTIM).unwrap();
    let view = stolen.fleet.wait(VICTIM, "an answered check-in", |view| view.last_seen > last).unwrap();
    assert!(!view.clone_alarm && view.attack.is_none(), "{view:?}");
}

#[test]
fn a_machine_takes_a_new_key_whenever_its_agent_is_killed_meanwhile() {
    let stolen = Stolen::new().unwrap();
    let (fleet, thief, name) = (&stolen.fleet, &stolen.thief, "cinnabar");
    let key = || fleet.view(name).unwrap().key.unwrap();
    // What somebody at the machine reads, to compare it with what the controller says.
    let own = || {
        let said = |arguments: &[&str]| fleet.agent(name, arguments).unwrap().stdout;
        let status: serde_json::Value = serde_json::from_slice(&said(&["status", "--json"])).unwrap();
        let own: PublicKey = status["key"].as_str().unwrap().parse().unwrap();
        let text = String::from_utf8(said(&["status"])).unwrap();
        assert!(text.lines().any(|line| line == format!("key          {own}")), "{text}");
        own
    };
    let next = stolen.state(name).join("next-machine.pem");
    let restart = || restart(&stolen, name);
    let rotates = |asked: &serde_json::Value| asked.get("new_key").is_some();
    let brings = move |body: &[u8]| serde_json::from_slice(body).is_ok_and(|value| rotates(&value));
    let answered = |status| Some(Answer { status, ..Answer::default() });

    // Requested by the operator, without interference.
    let first = key();
    assert_eq!(own(), first);
    fleet.must(&["machines", "rotate-key", name]).unwrap();
    let view = fleet.wait(name, "a new key", |view| view.key != Some(first)).unwrap();
    assert!(!view.key_rotation_asked && view.key_rotated_at.is_some());
    fleet.until(name, "the new key in force", |_| !next.exists()).unwrap();

    // The new key is made and durable, but never reaches the controller. The agent is killed there.
    let second = key();
    assert!(second != first && own() == second);
    thief.intercept(move |asked| if brings(&asked.body) { answered(502) } else { None });
    let said_so = fleet.agent(name, &["rotate-key"]).unwrap();
    assert!(said_so.status.success(), "{}", said(&said_so));
    fleet
        .until(name, "a check-in with the new key", |_| thief.asked().iter().any(|asked| brings(&asked.body)))
        .unwrap();
    restart();
    assert!(next.exists());
    assert_eq!(key(), second);
    thief.behave();
    fleet.wait(name, "a new key", |view| view.key != Some(second)).unwrap();
    fleet.until(name, "the new key in force", |_| !next.exists()).unwrap();

    // The controller has the new key, but its response is lost. The agent is killed there.
    let third = key();
    // Its first check-in is not about the key: that one is answered before the thief drops responses.
    stolen.ask(name).unwrap();
    let unanswered = stolen.state(name).join("checkin.json");
    fleet.until(name, "an answer to all that it said", |_| !unanswered.exists()).unwrap();
    thief.forget();
    thief.bend(|answer| {
        if answer.path == muster_protocol::api::CHECKIN {
            (answer.status, answer.body) = (502, Vec::new());
        }
    });
    let said_so = fleet.agent(name, &["rotate-key"]).unwrap();
    assert!(said_so.status.success(), "{}", said(&said_so));
    fleet.wait(name, "the controller's new key", |view| view.key != Some(third)).unwrap();
    assert!(next.exists(), "the machine does not know yet");
    let fourth = key();
    restart();
    thief.behave();
    fleet.until(name, "the new key in force", |_| !next.exists()).unwrap();
    assert_eq!(key(), fourth);

    // The agent is off: the key is made now, and presented when the agent runs.
    fleet.machine(name).stop(false).unwrap();
    assert_eq!(own(), fourth, "its files say so, too");
    let said_so = fleet.agent(name, &["rotate-key"]).unwrap();
    assert!(String::from_utf8_lossy(&said_so.stdout).contains("is not running"), "{}", said(&said_so));
    assert_eq!(key(), fourth);
    fleet.machine(name).start().unwrap();
    fleet.wait(name, "a new key", |view| view.key != Some(fourth)).unwrap();

    // After all that it is a machine like any other: no alarm, and it gets updates.
    fleet.fixture.say("greeting", "still here").unwrap();
    fleet.update(&[name]).unwrap();
    let view: MachineView = fleet.settled(name, 2, Condition::UpToDate).unwrap();
    assert!(!view.clone_alarm && view.attack.is_none());
    let rotated = log(fleet).into_iter().filter(|entry| entry.action == "key-rotated").count();
    assert_eq!(rotated, 4);
}

#[test]
fn a_bearer_that_the_cache_knows_no_longer_is_replaced_before_the_next_try() {
    let fleet = Fleet::start(&both()[..1]).unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 1, Condition::UpToDate).unwrap();
    // Like a restored controller, which does not know the bearers it issued after its backup.
    with_store(&fleet, async |store| store.sweep(i64::MAX).await.unwrap());
    fleet.fixture.say("greeting", "two").unwrap();
    fleet.update(&[]).unwrap();
    fleet.settled("cinnabar", 2, Condition::UpToDate).unwrap();
    assert_runs_published(&fleet, "cinnabar");
}

/// The key that the machine signs with.
fn key_in_force(fleet: &Fleet, name: &str) -> PublicKey {
    let file = fleet.machine(name).root.at("/var/lib/muster/machine.pem");
    SecretKey::from_pem(&std::fs::read_to_string(file).unwrap()).unwrap().public()
}

/// The key that replaces this one after an operator has requested a new one, once both sides have it.
fn rotated(fleet: &Fleet, name: &str, before: PublicKey) -> PublicKey {
    let view = fleet.wait(name, "a new key", |view| view.key.is_some_and(|key| key != before)).unwrap();
    let key = view.key.unwrap();
    fleet.until(name, "the new key in force", |_| key_in_force(fleet, name) == key).unwrap();
    key
}

#[test]
fn a_controller_brought_back_from_before_a_machines_new_key_has_it_again_with_no_hand_on_the_machine() {
    let mut fleet = Fleet::start(&both()[..1]).unwrap();
    let name = "cinnabar";
    fleet.update(&[]).unwrap();
    fleet.settled(name, 1, Condition::UpToDate).unwrap();
    fleet.stop_controller().unwrap();
    let backup = fleet.folder().join("backup");
    copy(&fleet.controller_folder(), &backup).unwrap();
    fleet.start_controller().unwrap();

    let first = fleet.view(name).unwrap().key.unwrap();
    fleet.must(&["machines", "rotate-key", name]).unwrap();
    let second = rotated(&fleet, name, first);

    fleet.stop_controller().unwrap();
    std::fs::remove_dir_all(fleet.controller_folder()).unwrap();
    copy(&backup, &fleet.controller_folder()).unwrap();
    fleet.start_controller().unwrap();
    let view = fleet.wait(name, "its key, which the backup lacks", |view| view.key == Some(second)).unwrap();
    assert!(!view.clone_alarm && !view.key_rotation_asked, "{view:?}");
    assert_eq!(key_in_force(&fleet, name), second);

    // The next generation arrives, and so does the next key.
    fleet.fixture.say("greeting", "two").unwrap();
    fleet.update(&[]).unwrap();
    let view = fleet.settled(name, 2, Condition::UpToDate).unwrap();
    assert!(!view.clone_alarm && view.attack.is_none(), "{view:?}");
    assert_runs_published(&fleet, name);
    let asked = fleet.agent(name, &["rotate-key"]).unwrap();
    assert!(asked.status.success(), "{}", said(&asked));
    let third = rotated(&fleet, name, second);
    assert!(third != first);
}

#[test]
fn a_machine_that_is_told_that_nobody_knows_its_new_key_goes_on_with_it() {
    let stolen = Stolen::new().unwrap();
    let (fleet, thief) = (&stolen.fleet, &stolen.thief);
    let first = fleet.view(VICTIM).unwrap().key.unwrap();
    fleet.must(&["machines", "rotate-key", VICTIM]).unwrap();
    let second = rotated(fleet, VICTIM, first);

    // Nothing of the machine gets through, and every one of its keys is refused.
    thief.forget();
    thief.intercept(|asked| {
        let body = br#"{"code":"bad-signature","message":"not signed by its key"}"#.to_vec();
        asked.path.contains("/v1/").then(|| Answer { status: 401, body, ..Answer::default() })
    });
    let brought = || -> Vec<Option<PublicKey>> {
        let check_ins = thief.asked().into_iter().filter(|asked| asked.path == api::CHECKIN);
        check_ins
            .filter_map(|asked| Some(serde_json::from_slice::<CheckIn>(&asked.body).ok()?.new_key))
            .collect()
    };
    let went_round = || {
        let brought = brought();
        let older = brought.iter().position(|key| *key == Some(second));
        older.is_some_and(|at| brought[at..].contains(&None))
    };
    let _ = fleet.agent(VICTIM, &["check-now"]).unwrap();
    fleet
        .until(VICTIM, "a check-in by the key before, and one by the newest again", |_| went_round())
        .unwrap();
    restart(&stolen, VICTIM);
    assert_eq!(key_in_force(fleet, VICTIM), second);
    assert!(brought().iter().all(|key| key.is_none_or(|key| key == second)), "no other key is shown");

    thief.behave();
    fleet.fixture.say("greeting", "two").unwrap();
    fleet.update(&[VICTIM]).unwrap();
    let view = fleet.settled(VICTIM, 2, Condition::UpToDate).unwrap();
    assert!(view.key == Some(second) && !view.clone_alarm && view.attack.is_none(), "{view:?}");
    assert_eq!(key_in_force(fleet, VICTIM), second);
}
