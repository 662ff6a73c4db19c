//! Decides about rollouts again when something happens to them, and rings the machines whose leave changes.
//!
//! What decides is `deciding`; the store keeps two controllers from deciding about rollouts at the same time.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::Signature;
use muster_protocol::plan::Said;

use super::deciding::{self, Asking, Next, Of};
use super::held::Held;
use crate::core::condition::silence_ms;
use crate::core::rollouts::RolloutRefusal;
use crate::services::Services;
use crate::store::{Failed, Stirred, StoreError};
use crate::threads;

/// How often one looks for what is due, and for what other controllers have written.
const TICK: Duration = Duration::from_secs(2);
/// The least time between two rounds.
const APART: Duration = Duration::from_secs(1);
/// How long a rollout some of whose machines are away is left alone: one that is back says so to nobody.
const AWAY_MS: UnixMillis = 30_000;

/// Decides about a rollout now, after an operator asked something of it if anybody did, and rings who has to
/// hear of it.
pub async fn decide(
    services: &Services,
    plan: &Sha256,
    asking: Option<Asking<'_>>,
) -> Result<Next, Failed<RolloutRefusal>> {
    let held = services.plans.get(&services.store, plan).await?;
    let held = held.ok_or(Failed::Refused(RolloutRefusal::Unknown(*plan)))?;
    services.roots.refresh().await?;
    let is_signed = |machine: &MachineName, said: Said, signature: &Signature| {
        services.plans.is_signed((*plan, &held.plan), machine, said, signature)
    };
    let of = of(services, *plan, &held, &is_signed);
    let decision = |facts: Option<&_>| threads::on(usize::MAX, || deciding::decide(&of, facts, asking));
    let next = services.store.decide_rollout((*plan, &held.plan), decision).await?;
    next.rings.iter().for_each(|machine| services.wakers.wake(machine));
    Ok(next)
}

fn of<'a>(
    services: &Services,
    hash: Sha256,
    held: &'a Held,
    is_signed: &'a (dyn Fn(&MachineName, Said, &Signature) -> bool + Sync),
) -> Of<'a> {
    Of {
        hash,
        plan: &held.plan,
        epoch: services.roots.current().newest().epoch(),
        away_ms: silence_ms(services.limits.poll_seconds),
        now: services.now(),
        is_signed,
    }
}

/// Decides about every rollout that is under way: the brake was pulled, or let go.
pub async fn decide_all(services: &Services) -> Result<(), Failed<RolloutRefusal>> {
    let mut done = Ok(());
    for plan in services.store.open_rollouts().await? {
        match decide(services, &plan, None).await {
            // Nothing is decided about it, whatever holds.
            Ok(_) | Err(Failed::Refused(_)) => {}
            // The others are held back all the same.
            Err(error) => done = Err(error),
        }
    }
    done
}

/// When each rollout is due, whatever happens.
#[derive(Debug, Default)]
struct Due(HashMap<Sha256, Option<UnixMillis>>);

impl Due {
    /// Those of the open rollouts that are decided now. Others may have written to a shared database, so
    /// there each is looked at; and so is each that was never decided here.
    fn now(&mut self, open: &[Sha256], stirred: Stirred, shared: bool, now: UnixMillis) -> BTreeSet<Sha256> {
        self.0.retain(|plan, _| open.contains(plan));
        let is_due = |plan: &&Sha256| match self.0.get(plan) {
            None => true,
            Some(due) => stirred.all || shared || due.is_some_and(|at| at <= now),
        };
        let due: BTreeSet<Sha256> = open.iter().filter(is_due).copied().collect();
        due.into_iter().chain(stirred.plans).collect()
    }

    fn decided(&mut self, plan: Sha256, next: &Next, now: UnixMillis) {
        let away = next.view.waves.iter().any(|wave| wave.away > 0).then(|| now.saturating_add(AWAY_MS));
        self.0.insert(plan, next.look_again.into_iter().chain(away).min());
    }
}

/// Decides whenever something happens, for as long as the server lives.
pub async fn run(services: Arc<Services>) {
    let (mut due, mut complaint) = (Due::default(), String::new());
    loop {
        tokio::select! {
            () = services.store.rollout_news() => {}
            () = tokio::time::sleep(TICK) => {}
        }
        match round(&services, &mut due).await {
            Ok(()) => complaint.clear(),
            Err(error) => {
                // Once, however often it is tried.
                let text = error.to_string();
                if text != complaint {
                    tracing::warn!("rollouts stand still: {text}");
                    complaint = text;
                }
            }
        }
        tokio::time::sleep(APART).await;
    }
}

async fn round(services: &Services, due: &mut Due) -> Result<(), StoreError> {
    let open = services.store.open_rollouts().await?;
    let stirred = services.store.stirred();
    let mut done = Ok(());
    for plan in due.now(&open, stirred, services.roots.shared(), services.now()) {
        match decide(services, &plan, None).await {
            Ok(next) => due.decided(plan, &next, services.now()),
            // It was removed, cannot be read, or a machine named one that never was.
            Err(Failed::Refused(_)) => {}
            // One that cannot be decided holds up no other.
            Err(Failed::Store(error)) => done = Err(error),
        }
    }
    done
}
