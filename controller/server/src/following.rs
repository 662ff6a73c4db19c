//! Other controllers on the same database: what they did wakes those who wait here. It is heard by
//! notifications where there is a connection for them, and asked for every second in any case.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::operator::REQUEST_WINDOW_SECONDS;
use muster_protocol::random;
use tokio::task::JoinHandle;

use crate::services::Services;
use crate::store::shared::Ear;
use crate::store::{Heard, StoreError};

/// How often the database is asked.
const LOOK: Duration = Duration::from_secs(1);
/// After how many of those the settings of all are compared.
const COMPARE: u32 = 15;
/// By how many seconds the clocks of a controller and of its database may differ without a word.
const MOST_APART_S: i64 = 5;
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

/// What this controller should share with others on the same database, and how it is set up.
pub struct Setup {
    pub has_shared_keys: bool,
    pub has_bucket: bool,
}

/// Warns, before this controller is one of those at work, of what is wrong where several are.
pub async fn warn_of(setup: &Setup, services: &Services) -> Result<(), StoreError> {
    if !services.roots.shared() {
        return Ok(());
    }
    let others = services.store.at_work().await?;
    let ahead_ms = services.now().saturating_sub(services.store.clock(services.now()).await?);
    for complaint in complaints(setup, &others, ahead_ms) {
        tracing::warn!("{complaint}");
    }
    compare(services).await
}

/// Compares this controller's settings with what the others tell of theirs.
async fn compare(services: &Services) -> Result<(), StoreError> {
    let told = services.store.told().await?;
    services.settings.compare(&services.keyring, &told);
    Ok(())
}

fn complaints(setup: &Setup, others: &[String], ahead_ms: i64) -> Vec<String> {
    let mut found = Vec::new();
    let apart = ahead_ms.saturating_abs() / 1000;
    if apart > MOST_APART_S {
        let direction = if ahead_ms > 0 { "ahead of" } else { "behind" };
        found.push(format!(
            "the clock here is {apart} s {direction} PostgreSQL's: set both by NTP; signed requests are refused \
             where clocks are more than {REQUEST_WINDOW_SECONDS} s apart"
        ));
    }
    if others.is_empty() {
        return found;
    }
    let others = others.join(", ");
    if !setup.has_shared_keys {
        found.push(format!(
            "another controller works on this database (connected from {others}), and bearer_keys is not set: \
             a machine that moves between them has to check in anew each time; name one file as bearer_keys \
             in each controller.toml"
        ));
    }
    if !setup.has_bucket {
        found.push(format!(
            "another controller works on this database (connected from {others}), and the cache is in a folder \
             here, which the other does not have: name a bucket as blobs in each controller.toml"
        ));
    }
    found
}

/// Asks what has changed, and wakes the machines concerned: their poll looks whether it is for them.
async fn ask(services: Arc<Services>) {
    let mut known = None;
    let mut complaint = String::new();
    let mut since = 0;
    loop {
        tokio::time::sleep(LOOK).await;
        since += 1;
        let looked = match look(&services, known).await {
            Ok(number) if since >= COMPARE => {
                since = 0;
                compare(&services).await.map(|()| number)
            }
            looked => looked,
        };
        match looked {
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
        let prints = || services.settings.prints(&services.keyring);
        if let Err(error) = ear.listen(&mut hear, &prints).await {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn several_controllers_are_warned_of_clocks_keys_and_files_that_they_do_not_share() {
        let apart = Setup { has_shared_keys: false, has_bucket: false };
        let together = Setup { has_shared_keys: true, has_bucket: true };
        assert!(complaints(&apart, &[], 4_000).is_empty(), "it is alone");
        let others = ["10.0.0.7".to_owned()];
        assert!(complaints(&together, &others, -4_000).is_empty());
        let found = complaints(&apart, &others, -400_000);
        let words = ["400 s behind", "bearer_keys is not set", "name a bucket"];
        assert!(
            found.len() == 3 && found.iter().zip(words).all(|(one, word)| one.contains(word)),
            "{found:?}"
        );
        assert!(complaints(&together, &[], 6_000)[0].contains("6 s ahead of"));
    }
}
