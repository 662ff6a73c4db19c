use std::convert::Infallible;
use std::sync::atomic::{AtomicU32, Ordering};

use super::*;
use crate::core::roots;

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
