//! Plans and rollouts. Who decides about a rollout is told of its machines in the transaction that writes.

use std::collections::BTreeMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::operator::{BrakeView, SetBrake};
use muster_protocol::plan::Plan;

use super::stir::Stirred;
use super::{Failed, Store, StoreError};
use crate::core::audit::AuditContext;
use crate::core::change::Decided;
use crate::core::rollouts::facts::{Facts, Recorded};
use crate::core::rollouts::{self, RolloutRefusal, StoredRollout};

/// How many rollouts are listed.
const LISTED: u32 = 200;

impl Store {
    /// Stores a plan; one that is there already is left alone.
    pub async fn store_plan(
        &self,
        (hash, plan, document): (Sha256, &Plan, &[u8]),
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<RolloutRefusal>> {
        let decided = self.consider(
            |mut transaction| async move {
                let known = transaction.known_plan(&hash).await?;
                Ok((transaction, known))
            },
            |known| rollouts::plan(known, (hash, plan, document), context),
        );
        decided.await.map(drop)
    }

    /// Decides about a rollout, on a read-only view first: mostly there is nothing to write.
    pub async fn decide_rollout<A>(
        &self,
        (hash, plan): (Sha256, &Plan),
        decision: impl Fn(Option<&Facts>) -> Result<Decided<A>, RolloutRefusal>,
    ) -> Result<A, Failed<RolloutRefusal>> {
        let machines: Vec<&MachineName> = plan.waves.iter().flat_map(|wave| &wave.members).collect();
        let machines = &machines;
        let decided = self.consider(
            |mut transaction| async move {
                let facts = transaction.rollout(&hash, machines).await?;
                Ok((transaction, facts))
            },
            |facts| decision(facts.as_ref()),
        );
        Ok(decided.await?.answer)
    }

    /// Pulls the brake or lets it go; returns who has pulled it.
    pub async fn set_brake(
        &self,
        asked: &SetBrake,
        context: &AuditContext<'_>,
    ) -> Result<Option<BrakeView>, StoreError> {
        let decided = self.decide(
            |mut transaction| async move {
                let held = transaction.braked().await?;
                Ok((transaction, held))
            },
            |held| Ok::<_, std::convert::Infallible>(rollouts::brake(held.as_ref(), asked, context)),
        );
        decided.await.map(|committed| committed.answer).map_err(Failed::into_store)
    }

    /// The bytes of a plan.
    pub async fn plan(&self, plan: &Sha256) -> Result<Option<Vec<u8>>, StoreError> {
        self.database.plan(plan).await
    }
    /// The newest rollouts.
    pub async fn rollouts(&self) -> Result<Vec<StoredRollout>, StoreError> {
        self.database.rollouts(LISTED).await
    }
    /// The plans of rollouts that are under way.
    pub async fn open_rollouts(&self) -> Result<Vec<Sha256>, StoreError> {
        self.database.open_rollouts().await
    }
    /// Who has pulled the brake.
    pub async fn brake(&self) -> Result<Option<BrakeView>, StoreError> {
        self.database.brake().await
    }
    /// What is recorded of these machines in a rollout.
    pub async fn recorded(
        &self,
        plan: &Sha256,
        machines: &[&MachineName],
    ) -> Result<BTreeMap<MachineName, Recorded>, StoreError> {
        self.database.recorded(plan, machines).await
    }

    /// Removes plans that were sent before this and that no generation names.
    pub async fn forget_plans(&self, before: UnixMillis) -> Result<(), StoreError> {
        self.repeat(|| crate::core::retention::forget_plans(before)).await
    }

    /// Rollouts that something has happened to since the last call.
    pub fn stirred(&self) -> Stirred {
        self.stir.take()
    }
    /// Completes once something has happened to a rollout.
    pub async fn rollout_news(&self) {
        self.stir.news().await;
    }
}
