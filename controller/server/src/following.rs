//! Other controllers on the same database: what they did wakes those who wait here. It is heard by
//! notifications where there is a connection for them, and asked for every second in any case.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::random;
use tokio::task::JoinHandle;

use crate::services::Services;
use crate::store::shared::Ear;
use crate::store::{Heard, StoreError};

/// How often the database is asked.
const LOOK: Duration = Duration::from_secs(1);
/// How long to wait before a lost connection is tried again, at first and at most.
const FIRST_PAUSE: Duration = Duration::from_millis(500);
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// The tasks that follow other controllers; none where there can be no others.
pub struct Following(Vec<JoinHandle<()>>);

impl Following {
    pub fn start(services: &Arc<Services>, ear: Option<Ear>) -> Self {
        if !services.roots.shared() {
            return Self(Vec::new());
        }
        let mut tasks = vec![tokio::spawn(ask(services.clone()))];
        if let Some(ear) = ear {
            tasks.push(tokio::spawn(listen(services.clone(), ear)));
        }
        Self(tasks)
    }

    pub fn stop(&self) {
        self.0.iter().for_each(JoinHandle::abort);
    }
}

/// Asks what has changed, and wakes the machines concerned: their poll looks whether it is for them.
async fn ask(services: Arc<Services>) {
    let mut known = None;
    let mut complaint = String::new();
    loop {
        tokio::time::sleep(LOOK).await;
        match look(&services, known).await {
            Ok(number) => (known, complaint) = (Some(number), String::new()),
            Err(error) => complain(&mut complaint, &error),
        }
    }
}

async fn look(services: &Services, known: Option<u64>) -> Result<u64, StoreError> {
    services.roots.refresh().await?;
    let Some(known) = known else {
        let number = services.store.newest_change().await?;
        // Until now nobody was asked.
        services.wakers.wake_all();
        return Ok(number);
    };
    let (machines, number) = services.store.changed_since(known).await?;
    machines.iter().for_each(|machine| services.wakers.wake(machine));
    services.notify.changed(machines);
    Ok(number)
}

async fn listen(services: Arc<Services>, ear: Ear) {
    let (mut pause, mut complaint) = (FIRST_PAUSE, String::new());
    loop {
        let mut hear = |heard| {
            pause = FIRST_PAUSE;
            match heard {
                Heard::Machines(machines) => {
                    machines.iter().for_each(|machine| services.wakers.wake(machine));
                }
                Heard::Everything => services.wakers.wake_all(),
            }
        };
        if let Err(error) = ear.listen(&mut hear).await {
            complain(&mut complaint, &error);
        }
        // Not all controllers at once.
        let spread = random::bytes::<1>().map_or(0, |[byte]| u32::from(byte));
        tokio::time::sleep(pause + pause * spread / 256).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

/// Once, however often it is tried.
fn complain(last: &mut String, error: &StoreError) {
    let text = error.to_string();
    if *last != text {
        tracing::warn!("other controllers cannot be heard: {text}");
        *last = text;
    }
}
