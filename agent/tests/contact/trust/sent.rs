//! Files that came with a poll's reply: they spare requests, and are believed no more than fetched ones.

use muster_agent::trust::Sent;
use muster_protocol::checkin::Files;
use muster_protocol::operator::Publication;

use super::*;

/// What an honest controller sends along with this generation to a machine that trusts root 1.
fn sent(machine: &Machine, publication: &Publication) -> Sent {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let timestamp = text(machine.controller.file(&machine.path("timestamp.json")));
    let Publication { generation: _, targets, snapshot, target } = publication.clone();
    Sent { files: Files { root: 1, roots: vec![], timestamp, snapshot, targets, target }, root: 1 }
}

/// A machine that holds generation 5, and what is sent along with generation 6.
async fn with_news() -> (Machine, Trust, Sent) {
    let (machine, trust) = Machine::holding(5).await;
    let publication = machine.fleet.publication(6);
    machine.controller.publish(&machine.fleet, &publication);
    let sent = sent(&machine, &publication);
    (machine, trust, sent)
}

#[tokio::test]
async fn what_is_sent_along_is_taken_without_a_request() {
    let (machine, mut trust, sent) = with_news().await;
    let before = machine.controller.seen().len();
    let target = trust.refresh_from(&machine.client, Some(sent.clone()), NOW).await.unwrap();
    assert_eq!(target, Some(machine.fleet.target(6)));
    assert_eq!(machine.controller.seen().len(), before, "it asked");
    assert!(trust.take_bent().is_none());
    // It is kept as if it had been fetched.
    assert_eq!((machine.open().held(), machine.open().holds()), (target.clone(), trust.holds()));
    for (file, text) in [("timestamp", &sent.files.timestamp), ("targets", &sent.files.targets)] {
        let kept = std::fs::read(machine.state.path().join(format!("tuf/{file}.json"))).unwrap();
        assert_eq!(kept, text.as_bytes());
    }
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap(), target);
}

#[tokio::test]
async fn newer_roots_are_taken_too_and_what_was_left_out_is_fetched() {
    for left_out in [false, true] {
        let (machine, mut trust, mut sent) = with_news().await;
        let Fleet { root_key, operator, online, .. } = &machine.fleet;
        let roots = [2, 3].map(|version| root_of(version, root_key, operator, online, NOW + DAY));
        for (version, root) in [2, 3].into_iter().zip(&roots) {
            machine.controller.put(&machine.path(&format!("{version}.root.json")), root.clone());
        }
        let sent_roots = roots.into_iter().take(if left_out { 1 } else { 2 });
        sent.files.roots = sent_roots.map(|root| String::from_utf8(root).unwrap()).collect();
        sent.files.root = 3;
        let before = machine.controller.seen().len();
        let target = trust.refresh_from(&machine.client, Some(sent), NOW).await.unwrap();
        assert_eq!((target.unwrap().generation.get(), trust.holds().root), (6, 3));
        let asked: Vec<_> =
            machine.controller.seen().split_off(before).into_iter().map(|seen| seen.path).collect();
        let wanted = if left_out { vec![machine.path("3.root.json")] } else { vec![] };
        assert_eq!(asked, wanted);
    }
}

/// A way to bend what is sent along.
type Bend = fn(&Machine, &mut Sent);

/// Each with the attack that it is, if believing it would have been one.
const BENDS: &[(&str, Bend, Option<Attack>)] = &[
    ("no timestamp", |_, sent| sent.files.timestamp.clear(), Some(Attack::Malformed)),
    ("no snapshot", |_, sent| sent.files.snapshot.clear(), Some(Attack::MixAndMatch)),
    ("no targets", |_, sent| sent.files.targets.clear(), Some(Attack::MixAndMatch)),
    ("no target", |_, sent| sent.files.target.clear(), Some(Attack::MixAndMatch)),
    ("a changed timestamp", |_, sent| changed(&mut sent.files.timestamp), Some(Attack::ForgedSignature)),
    ("a changed snapshot", |_, sent| changed(&mut sent.files.snapshot), Some(Attack::MixAndMatch)),
    ("changed targets", |_, sent| changed(&mut sent.files.targets), Some(Attack::MixAndMatch)),
    ("a longer target", |_, sent| sent.files.target.push(' '), Some(Attack::EndlessData)),
    (
        "an older timestamp",
        |machine, sent| {
            let older = sign_timestamp(
                &machine.fleet.machine,
                sent.files.snapshot.as_bytes(),
                1,
                NOW + DAY,
                &machine.fleet.online,
            );
            sent.files.timestamp = String::from_utf8(older.unwrap()).unwrap();
        },
        Some(Attack::Rollback),
    ),
    (
        "an expired timestamp",
        |machine, sent| {
            let expired = machine.fleet.timestamp(&sent.files.snapshot, NOW - 1);
            sent.files.timestamp = String::from_utf8(expired).unwrap();
        },
        Some(Attack::Freeze),
    ),
    (
        "another machine's",
        |machine, sent| {
            let mut target = machine.fleet.target(6);
            target.machine = "stibnite".parse().unwrap();
            let other = sign_generation(&target, NOW + DAY, &[&machine.fleet.operator]).unwrap();
            let timestamp = machine.fleet.timestamp(&other.snapshot, NOW + DAY);
            sent.files.timestamp = String::from_utf8(timestamp).unwrap();
            (sent.files.targets, sent.files.snapshot, sent.files.target) =
                (other.targets, other.snapshot, other.target);
        },
        Some(Attack::ForeignMachine),
    ),
    (
        "an older generation",
        |machine, sent| {
            let older = machine.fleet.publication(4);
            let timestamp = machine.fleet.timestamp(&older.snapshot, NOW + DAY);
            sent.files.timestamp = String::from_utf8(timestamp).unwrap();
            (sent.files.targets, sent.files.snapshot, sent.files.target) =
                (older.targets, older.snapshot, older.target);
        },
        Some(Attack::Rollback),
    ),
    (
        "a stranger's root",
        |machine, sent| {
            let [root, operator, online] = [(); 3].map(|()| SecretKey::generate().unwrap());
            let _ = machine;
            sent.files.roots =
                vec![String::from_utf8(root_of(2, &root, &operator, &online, NOW + DAY)).unwrap()];
            sent.files.root = 2;
        },
        Some(Attack::ForgedSignature),
    ),
];

fn changed(text: &mut String) {
    *text = text.replacen("1.0.33", "1.0.34", 1);
}

#[tokio::test]
async fn what_is_bent_is_told_as_the_attack_that_it_is_and_fetched_instead() {
    for (what, bend, attack) in BENDS {
        let (machine, mut trust, mut sent) = with_news().await;
        bend(&machine, &mut sent);
        // The honest controller has something newer than whatever was bent.
        machine.controller.publish(&machine.fleet, &machine.fleet.publication(6));
        let target = trust.refresh_from(&machine.client, Some(sent), NOW).await;
        let target = target.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(target, Some(machine.fleet.target(6)), "{what}");
        let bent = trust.take_bent().unwrap_or_else(|| panic!("{what}: nothing is told"));
        assert_eq!(bent.attack(), *attack, "{what}: {bent}");
        assert!(trust.take_bent().is_none(), "{what}");
        assert_eq!(machine.open().held(), target, "{what}");
    }
}

#[tokio::test]
async fn what_is_bent_in_both_ways_is_refused() {
    let (machine, mut trust, mut sent) = with_news().await;
    let (files, held) = (machine.files(), trust.held());
    changed(&mut sent.files.timestamp);
    machine.controller.put(&machine.path("timestamp.json"), sent.files.timestamp.clone());
    let error = trust.refresh_from(&machine.client, Some(sent), NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::ForgedSignature));
    assert_eq!((machine.files(), trust.held()), (files, held));
}
