//! Plans, their rollouts, and what is recorded of machines in them.

use std::collections::BTreeMap;

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::Signature;
use muster_protocol::operator::BrakeView;
use muster_protocol::plan;
use sqlx::PgConnection;

use super::columns::{
    json, machine, plain, public_key, query, query_as, query_scalar, sha256, some_generation, unsigned,
};
use super::connection::{Postgres, Transaction};
use super::locks::{self, Lock};
use crate::core::rollouts::facts::{Facts, Observed, Recorded, Seen, Void};
use crate::core::rollouts::{Asked, Failed, Known, NewRollout, NewTurn, Said, StoredRollout, Verdict};
use crate::store::error::StoreError;
use crate::threads;

#[derive(sqlx::FromRow)]
struct RolloutRow {
    plan: Vec<u8>,
    name: String,
    budget: i64,
    made_at: i64,
    made_by: Vec<u8>,
    asked: Option<String>,
    decided: Option<String>,
    open: i64,
}

impl RolloutRow {
    fn stored(self) -> Result<StoredRollout, StoreError> {
        let damaged = || StoreError::Damaged("a rollout");
        let asked = self.asked.map(|text| serde_json::from_str(&text)).transpose();
        Ok(StoredRollout {
            plan: sha256(&self.plan)?,
            name: self.name.parse().map_err(|_| damaged())?,
            budget: u32::try_from(self.budget).map_err(|_| damaged())?,
            at: self.made_at,
            by: public_key(&self.made_by)?,
            asked: asked.map_err(|_| damaged())?,
            verdict: self.decided.and_then(|text| serde_json::from_str(&text).ok()),
            open: self.open != 0,
        })
    }
}

macro_rules! select {
    ($tail:literal) => {
        concat!("SELECT plan, name, budget, made_at, made_by, asked, decided, open FROM rollouts ", $tail)
    };
}

/// A statement of SQL that keeps a signature. The plan may have been removed meanwhile.
macro_rules! upsert {
    ($column:literal) => {
        concat!(
            "INSERT INTO rollout_members (plan, machine, ",
            $column,
            ") SELECT hash, $2, $3 FROM plans WHERE hash = $1 ",
            "ON CONFLICT (plan, machine) DO UPDATE SET ",
            $column,
            " = excluded.",
            $column
        )
    };
}
#[derive(sqlx::FromRow)]
struct SeenRow {
    name: String,
    revoked_at: Option<i64>,
    seen_at: Option<i64>,
    observed: Option<String>,
    outcome: Option<String>,
    published: Option<i64>,
    rollout: Option<String>,
    named: bool,
}

impl SeenRow {
    fn seen(self) -> Result<(MachineName, Seen), StoreError> {
        let seen = Seen {
            revoked: self.revoked_at.is_some(),
            seen_at: self.seen_at,
            observed: self.observed.and_then(|text| Observed::read(&plain(text))),
            outcome: self.outcome.and_then(|text| serde_json::from_str(&text).ok()),
            published: some_generation(self.published),
            turn: self.rollout.and_then(|text| serde_json::from_str(&text).ok()),
            named: self.named,
        };
        Ok((machine(&self.name)?, seen))
    }
}

#[derive(sqlx::FromRow)]
struct MemberRow {
    machine: String,
    confirmed: Option<Vec<u8>>,
    soaked: Option<Vec<u8>>,
    withdrawn: Option<Vec<u8>>,
    failed: Option<String>,
    forgiven: i64,
    void: i64,
}

impl MemberRow {
    fn recorded(self) -> Result<(MachineName, Recorded), StoreError> {
        let recorded = Recorded {
            confirmed: signature(self.confirmed)?,
            soaked: signature(self.soaked)?,
            withdrawn: signature(self.withdrawn)?,
            failed: self.failed.and_then(|text| serde_json::from_value(text.into()).ok()),
            forgiven: self.forgiven != 0,
            void: Void::of_number(self.void),
        };
        Ok((machine(&self.machine)?, recorded))
    }
}

fn signature(column: Option<Vec<u8>>) -> Result<Option<Signature>, StoreError> {
    let read = |bytes: Vec<u8>| bytes.try_into().map(Signature::from_bytes);
    column.map(read).transpose().map_err(|_| StoreError::Damaged("a signature"))
}

fn names<'a>(machines: &[&'a MachineName]) -> Vec<&'a str> {
    machines.iter().map(|name| name.as_str()).collect()
}

fn read_brake(text: Option<String>) -> Result<Option<BrakeView>, StoreError> {
    let read = text.map(|text| serde_json::from_str(&text)).transpose();
    read.map_err(|_| StoreError::Damaged("the brake"))
}

impl Postgres {
    pub async fn plan(&self, plan: &Sha256) -> Result<Option<Vec<u8>>, StoreError> {
        let query = query_scalar("SELECT document FROM plans WHERE hash = $1");
        Ok(query.bind(plan.as_bytes().to_vec()).fetch_optional(self.view().await?.connection()).await?)
    }

    pub async fn rollouts(&self, limit: u32) -> Result<Vec<StoredRollout>, StoreError> {
        let rows: Vec<RolloutRow> = query_as(select!("ORDER BY made_at DESC, plan LIMIT $1"))
            .bind(i64::from(limit))
            .fetch_all(self.view().await?.connection())
            .await?;
        rows.into_iter().map(RolloutRow::stored).collect()
    }

    pub async fn open_rollouts(&self) -> Result<Vec<Sha256>, StoreError> {
        let open: Vec<Vec<u8>> = query_scalar("SELECT plan FROM rollouts WHERE open <> 0")
            .fetch_all(self.view().await?.connection())
            .await?;
        open.iter().map(|plan| sha256(plan)).collect()
    }

    pub async fn brake(&self) -> Result<Option<BrakeView>, StoreError> {
        let text: Option<Option<String>> =
            query_scalar("SELECT brake FROM fleet").fetch_optional(self.view().await?.connection()).await?;
        read_brake(text.flatten())
    }

    pub async fn recorded(
        &self,
        plan: &Sha256,
        machines: &[&MachineName],
    ) -> Result<BTreeMap<MachineName, Recorded>, StoreError> {
        let rows: Vec<MemberRow> = query_as(
            "SELECT machine, confirmed, soaked, withdrawn, failed, forgiven, void FROM rollout_members
             WHERE plan = $1 AND machine = ANY($2)",
        )
        .bind(plan.as_bytes().to_vec())
        .bind(names(machines))
        .fetch_all(self.view().await?.connection())
        .await?;
        rows.into_iter().map(MemberRow::recorded).collect()
    }
}

impl Transaction {
    /// Whoever decides about rollouts does so one after the other.
    async fn lock_rollouts(&mut self) -> Result<(), StoreError> {
        if self.writes { locks::take(self.connection(), Lock::Rollouts).await } else { Ok(()) }
    }

    pub async fn known_plan(&mut self, plan: &Sha256) -> Result<Known, StoreError> {
        self.lock_rollouts().await?;
        let stored = query_scalar("SELECT EXISTS (SELECT 1 FROM plans WHERE hash = $1)")
            .bind(plan.as_bytes().to_vec())
            .fetch_one(self.connection())
            .await?;
        let open: i64 = query_scalar("SELECT count(*) FROM rollouts WHERE open <> 0")
            .fetch_one(self.connection())
            .await?;
        Ok(Known { stored, open: unsigned(open) })
    }

    pub async fn braked(&mut self) -> Result<Option<BrakeView>, StoreError> {
        self.lock_rollouts().await?;
        let text: Option<Option<String>> =
            query_scalar("SELECT brake FROM fleet").fetch_optional(self.connection()).await?;
        read_brake(text.flatten())
    }

    pub async fn rollout(
        &mut self,
        plan: &Sha256,
        machines: &[&MachineName],
    ) -> Result<Option<Facts>, StoreError> {
        self.lock_rollouts().await?;
        let hash = plan.as_bytes().to_vec();
        let row: Option<RolloutRow> =
            query_as(select!("WHERE plan = $1")).bind(hash.clone()).fetch_optional(self.connection()).await?;
        let Some(row) = row else { return Ok(None) };
        let brake = self.braked().await?;
        let seen: Vec<SeenRow> = query_as(
            "SELECT m.name, m.revoked_at, m.seen_at, m.observed, m.outcome, m.published, m.rollout,
                    EXISTS (SELECT 1 FROM generations g WHERE g.plan = $2 AND g.machine = m.name) AS named
             FROM machines m WHERE m.name = ANY($1)",
        )
        .bind(names(machines))
        .bind(hash.clone())
        .fetch_all(self.connection())
        .await?;
        let members: Vec<MemberRow> = query_as(
            "SELECT machine, confirmed, soaked, withdrawn, failed, forgiven, void FROM rollout_members
             WHERE plan = $1",
        )
        .bind(hash.clone())
        .fetch_all(self.connection())
        .await?;
        let rollout = row.stored()?;
        threads::on(usize::MAX, || {
            Ok(Some(Facts {
                rollout,
                brake,
                machines: seen.into_iter().map(SeenRow::seen).collect::<Result<_, _>>()?,
                members: members.into_iter().map(MemberRow::recorded).collect::<Result<_, _>>()?,
            }))
        })
    }
}

pub async fn store(sql: &mut PgConnection, new: &NewRollout) -> Result<(), StoreError> {
    query("INSERT INTO plans (hash, document) VALUES ($1, $2)")
        .bind(new.plan.as_bytes().to_vec())
        .bind(&new.document[..])
        .execute(&mut *sql)
        .await?;
    query("INSERT INTO rollouts (plan, name, budget, made_at, made_by) VALUES ($1, $2, $3, $4, $5)")
        .bind(new.plan.as_bytes().to_vec())
        .bind(new.name.as_str())
        .bind(i64::from(new.budget))
        .bind(new.at)
        .bind(new.by.to_bytes())
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn ask(sql: &mut PgConnection, plan: &Sha256, asked: &Asked) -> Result<(), StoreError> {
    query("UPDATE rollouts SET asked = $2 WHERE plan = $1")
        .bind(plan.as_bytes().to_vec())
        .bind(json(asked, "what was asked")?)
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn decided(sql: &mut PgConnection, plan: &Sha256, verdict: &Verdict) -> Result<(), StoreError> {
    query("UPDATE rollouts SET decided = $2, open = $3 WHERE plan = $1")
        .bind(plan.as_bytes().to_vec())
        .bind(json(verdict, "a verdict")?)
        .bind(i64::from(verdict.is_open()))
        .execute(sql)
        .await?;
    Ok(())
}

pub async fn failed(
    sql: &mut PgConnection,
    plan: &Sha256,
    Failed { machine, failure }: &Failed,
) -> Result<(), StoreError> {
    let failure = serde_json::to_value(failure).map_err(|_| StoreError::Damaged("a failure"))?;
    query(
        "INSERT INTO rollout_members (plan, machine, failed) VALUES ($1, $2, $3)
         ON CONFLICT (plan, machine) DO UPDATE SET failed = coalesce(rollout_members.failed, excluded.failed)",
    )
    .bind(plan.as_bytes().to_vec())
    .bind(machine.as_str())
    .bind(failure.as_str().unwrap_or_default())
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn forgive(
    sql: &mut PgConnection,
    plan: &Sha256,
    machines: &[MachineName],
) -> Result<(), StoreError> {
    let machines: Vec<&str> = machines.iter().map(|name| name.as_str()).collect();
    query(
        "INSERT INTO rollout_members (plan, machine, forgiven) SELECT $1, name, 1 FROM UNNEST($2::text[]) AS name
         ON CONFLICT (plan, machine) DO UPDATE SET forgiven = 1",
    )
    .bind(plan.as_bytes().to_vec())
    .bind(machines)
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn tries_again(
    sql: &mut PgConnection,
    plan: &Sha256,
    machine: &MachineName,
) -> Result<(), StoreError> {
    query("UPDATE rollout_members SET failed = NULL, forgiven = 0 WHERE plan = $1 AND machine = $2")
        .bind(plan.as_bytes().to_vec())
        .bind(machine.as_str())
        .execute(sql)
        .await?;
    Ok(())
}

/// What this machine said counts no longer, in any rollout; nor, where another one has its name, does what
/// is still said with its key in those that are open. That an operator forgave it something was about the
/// machine that it was.
pub async fn void(sql: &mut PgConnection, machine: &MachineName, why: Void) -> Result<(), StoreError> {
    query(
        "UPDATE rollout_members SET void = greatest(void, $2), forgiven = CASE WHEN $2 > 1 THEN 0 ELSE forgiven END
         WHERE machine = $1",
    )
    .bind(machine.as_str())
    .bind(why.number())
    .execute(&mut *sql)
    .await?;
    query(
        "INSERT INTO rollout_members (plan, machine, void) SELECT plan, $1, $2 FROM rollouts
         WHERE open <> 0 AND EXISTS (SELECT 1 FROM machines WHERE name = $1 AND enrolment > 1)
         ON CONFLICT (plan, machine) DO NOTHING",
    )
    .bind(machine.as_str())
    .bind(why.number())
    .execute(sql)
    .await?;
    Ok(())
}

pub async fn said(sql: &mut PgConnection, Said { machine, vouch }: &Said) -> Result<(), StoreError> {
    let statement = match vouch.said {
        plan::Said::Confirmed => upsert!("confirmed"),
        plan::Said::Soaked => upsert!("soaked"),
        plan::Said::Withdrawn => upsert!("withdrawn"),
    };
    query(statement)
        .bind(vouch.plan.as_bytes().to_vec())
        .bind(machine.as_str())
        .bind(vouch.signature.as_bytes().to_vec())
        .execute(sql)
        .await?;
    Ok(())
}

/// Before any of the locks that `apply` takes: rows of machines come first, by name.
pub async fn turn(tx: &mut Transaction, turns: &[&NewTurn]) -> Result<(), StoreError> {
    if turns.is_empty() {
        return Ok(());
    }
    let machines: Vec<&str> = turns.iter().map(|new| new.machine.as_str()).collect();
    tx.lock_machines(&machines).await?;
    let texts: Vec<String> = turns.iter().map(|new| json(&new.turn, "a turn")).collect::<Result<_, _>>()?;
    let generations: Vec<i64> = turns.iter().map(|new| new.generation.packed()).collect();
    let rings: Vec<i64> = turns.iter().map(|new| i64::from(new.rings)).collect();
    query(
        "UPDATE machines SET rollout = v.turn, turn_changed = greatest(turn_changed, v.rings)
         FROM UNNEST($1::text[], $2::bigint[], $3::text[], $4::bigint[]) AS v (name, generation, turn, rings)
         WHERE machines.name = v.name AND machines.published = v.generation",
    )
    .bind(machines)
    .bind(generations)
    .bind(texts)
    .bind(rings)
    .execute(tx.connection())
    .await?;
    Ok(())
}

pub async fn set_brake(sql: &mut PgConnection, brake: Option<&BrakeView>) -> Result<(), StoreError> {
    let text = brake.map(|brake| json(brake, "the brake")).transpose()?;
    query("UPDATE fleet SET brake = $1").bind(text).execute(sql).await?;
    Ok(())
}

/// How many were removed.
pub async fn forget(sql: &mut PgConnection, before: UnixMillis, most: u32) -> Result<u64, StoreError> {
    let old: Vec<Vec<u8>> = query_scalar(
        "SELECT plan FROM rollouts r WHERE made_at < $1
         AND NOT EXISTS (SELECT 1 FROM generations g WHERE g.plan = r.plan) ORDER BY made_at, plan LIMIT $2",
    )
    .bind(before)
    .bind(i64::from(most))
    .fetch_all(&mut *sql)
    .await?;
    for plan in &old {
        for remove in [
            "DELETE FROM rollout_members WHERE plan = $1",
            "DELETE FROM rollouts WHERE plan = $1",
            "DELETE FROM plans WHERE hash = $1",
        ] {
            query(remove).bind(&plan[..]).execute(&mut *sql).await?;
        }
    }
    Ok(old.len() as u64)
}
