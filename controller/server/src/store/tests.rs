use std::collections::BTreeSet;
use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};

use bytes::Bytes;
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::session::ExchangeKey;

use super::facts::Fact;
use super::*;
use crate::core::change::{Enrolled, Invited};
use crate::core::checkin::CheckInRefusal;
use crate::core::checkin::tests::plain;
use crate::core::roots;
use crate::core::seals::{SealKey, Seals};

async fn store(folder: &Path) -> Store {
    Store::open(folder, &Sha256::of(b"fleet")).await.unwrap()
}

/// Decides that root 3 is in force, in a database where this many transactions conflict with others.
async fn decided(store: &Store, undone: u32) -> (Result<(), StoreError>, u32) {
    let tries = AtomicU32::new(0);
    let done = store.decide(
        |transaction| {
            let before = tries.fetch_add(1, Ordering::Relaxed);
            async move { if before < undone { Err(StoreError::Conflict) } else { Ok((transaction, before)) } }
        },
        |_| Ok::<_, Infallible>(roots::in_force(0, 3, None, 1)),
    );
    let done = done.await.map(drop).map_err(Failed::into_store);
    (done, tries.load(Ordering::Relaxed))
}

#[tokio::test]
async fn a_decision_whose_transaction_was_undone_is_made_again_and_written_once() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let (done, tries) = decided(&store, 2).await;
    assert!(done.is_ok(), "{done:?}");
    assert_eq!((tries, store.logged_root().await.unwrap()), (3, 3));
    assert_eq!(store.audit(0, 10).await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_decision_is_not_made_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let (done, tries) = decided(&store, u32::MAX).await;
    assert!(matches!(done, Err(StoreError::Conflict)), "{done:?}");
    assert_eq!((tries, store.logged_root().await.unwrap()), (TRIES, 0));
}

const NOW: UnixMillis = 1_800_000_000_000;

async fn write(store: &Store, changes: &[Change]) {
    let decided =
        store.decide(nothing, |()| Ok::<_, Infallible>(Decided { changes: changes.to_vec(), answer: () }));
    decided.await.map_err(Failed::into_store).unwrap();
}

/// A machine that is enrolled with this key.
async fn enrolled(store: &Store, key: PublicKey) -> MachineName {
    let (machine, class): (MachineName, _) = ("tin".parse().unwrap(), Class::Nixos);
    let system: muster_protocol::machine::System = "x86_64-linux".parse().unwrap();
    let invited = Invited { machine: machine.clone(), class, system: system.clone(), tags: BTreeSet::new() };
    let (age, agent) = ("age1x".into(), "0.1.0".into());
    let enrolled = Enrolled { machine: machine.clone(), class, system, key, age, agent, at: NOW };
    let added = Change::MachineAdded { machine: invited, at: NOW };
    write(store, &[added, Change::Enrolled(Box::new(enrolled))]).await;
    machine
}

fn arrived(machine: &MachineName, key: PublicKey, seq: u64) -> Arrived {
    let checkin = Box::new(plain(machine.clone(), seq, NOW));
    let body = Bytes::from(serde_json::to_vec(&checkin).unwrap());
    let seals = Seals::new(SealKey::new(1, [1; 32]), vec![], ExchangeKey::from_bytes([5; 32]));
    let (body_sha256, seals) = (Sha256::of(&body), Arc::new(seals));
    Arrived {
        checkin,
        body,
        body_sha256,
        key,
        signature: None,
        now: NOW,
        poll_seconds: 55,
        log: None,
        vouches: false,
        seals,
    }
}

#[test]
fn check_ins_that_wait_take_bounded_room_and_those_that_hung_up_none() {
    let key = SecretKey::generate().unwrap().public();
    let (queue, mut hears) = (queue::Queue::default(), Vec::new());
    let mut push = |hangs_up: bool| {
        let mut arrived = Box::new(arrived(&"tin".parse().unwrap(), key, 1));
        arrived.body = Bytes::from(vec![b' '; 1024 * 1024]);
        let (answer, hear) = tokio::sync::oneshot::channel();
        hears.extend(Some(hear).filter(|_| !hangs_up));
        let _counted = crate::metrics::COUNTED.writer_queue.running();
        queue.with(|queue| queue.push(queue::Waits { arrived, answer, _counted }))
    };
    // Whoever sends and hangs up, again and again, takes no more than is there.
    assert!((0..1000).all(|_| push(true)));
    let fit = (0..1000).take_while(|_| push(false)).count();
    assert_eq!(fit, 31, "the rest are told to come later");
    let mut taken = 0;
    while let Some((together, alone)) = queue.next() {
        taken += together.len() + alone.len();
        assert!(together.into_iter().all(|one| one.answer.send(Err(StoreError::Busy)).is_ok()));
    }
    assert_eq!(taken, fit);
}

#[test]
fn what_a_group_meets_together_is_not_met_again_by_each() {
    for all in [StoreError::Full, StoreError::Busy, StoreError::Unavailable("it stops".into())] {
        assert!(all.for_all().is_some());
    }
    for one in [StoreError::Conflict, StoreError::Database("odd".into()), StoreError::Damaged("a key")] {
        assert!(one.for_all().is_none());
    }
}

#[tokio::test]
async fn what_is_kept_of_a_check_in_is_what_the_database_says() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let facts = store.facts.clone().unwrap();
    let key = SecretKey::generate().unwrap().public();
    let machine = enrolled(&store, key).await;
    // More than are remembered, and read from the database now and then.
    for seq in 1..=20 {
        store.check_in(Box::new(arrived(&machine, key, seq))).await.unwrap().unwrap();
        let next = [Asking { machine: &machine, key: &key, seq: seq + 1 }];
        let kept = facts.take(&next).pop().unwrap().unwrap();
        let mut transaction = store.database.begin().await.unwrap();
        let read = transaction.check_ins(&next).await.unwrap().pop().unwrap().unwrap();
        assert_eq!(Some(&kept), read.as_ref());
        if seq % 3 > 0 {
            let fact = Fact::of(&key, kept).unwrap();
            facts.keep(facts.before_commit(&[]), vec![(machine.clone(), fact)]);
        }
    }
}

#[tokio::test]
async fn what_changed_between_two_check_ins_counts_in_the_second() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(folder.path()).await;
    let (key, other) = (SecretKey::generate().unwrap().public(), SecretKey::generate().unwrap().public());
    let machine = enrolled(&store, key).await;
    let check_in = async |key, seq| store.check_in(Box::new(arrived(&machine, key, seq))).await.unwrap();
    let first = check_in(key, 1).await.unwrap();
    assert_eq!(check_in(key, 1).await.unwrap(), first, "the same again");
    assert!(!first.rotate_key);
    write(&store, &[Change::KeyRotationAsked { machine: machine.clone(), at: NOW }]).await;
    assert!(check_in(key, 2).await.unwrap().rotate_key);
    write(&store, &[Change::KeyReplaced { machine: machine.clone(), key: other, at: NOW }]).await;
    assert_eq!(check_in(key, 3).await, Err(CheckInRefusal::NotEnrolled(machine.clone())));
    let third = check_in(other, 3).await.unwrap();
    write(&store, &[Change::BearersEnded { machine: machine.clone() }]).await;
    assert_ne!(check_in(other, 4).await.unwrap().bearer, third.bearer);
    assert!(matches!(
        check_in(other, 2).await,
        Err(CheckInRefusal::Repeated { .. } | CheckInRefusal::Sequence { .. })
    ));
    write(&store, &[Change::MachineRevoked { machine: machine.clone(), at: NOW }]).await;
    assert_eq!(check_in(other, 5).await, Err(CheckInRefusal::NotEnrolled(machine.clone())));
}
