//! Attacks that machines refused, as they told of them.

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::operator::AttackView;
use muster_protocol::report::{Attack, Event, MAX_LOG_TAIL};

use super::audit::{Act, log};
use super::{Store, StoreError, Tx, generation};

/// How many attacks of one machine are kept: the newest.
const KEPT: i64 = 500;
/// An attack that goes on is told in the audit log at most this often, in milliseconds, however often a machine tells it.
const LOGGED_APART_MS: i64 = 3_600_000;

const ATTACK_REFUSED: &str = "attack-refused";

#[derive(sqlx::FromRow)]
struct Row {
    attack: String,
    detail: String,
    generation: Option<i64>,
    at: i64,
    received_at: i64,
    ended_at: Option<i64>,
}

impl Row {
    fn view(self) -> Result<AttackView, StoreError> {
        Ok(AttackView {
            attack: serde_json::from_value(self.attack.into()).unwrap_or(Attack::Unknown),
            detail: self.detail,
            // A machine's word: a number that no generation has is none.
            generation: self.generation.and_then(|number| generation(number).ok()),
            at: self.at,
            received_at: self.received_at,
            ended_at: self.ended_at,
        })
    }
}

/// Keeps what a machine told of an attack. One that its last check-in no longer speaks of has ended already.
pub(super) async fn keep(
    tx: &mut Tx,
    machine: &MachineName,
    (attack, detail): (Attack, &str),
    event: &Event,
    goes_on: bool,
    now: UnixMillis,
) -> Result<(), StoreError> {
    let kind = serde_json::to_value(attack).map_err(|_| StoreError::Damaged("an attack"))?;
    let kind = kind.as_str().unwrap_or("unknown");
    let logged: bool = sqlx::query_scalar(
        // In the log itself: of the attacks only the newest are kept.
        "SELECT EXISTS (SELECT 1 FROM audit WHERE machine = $1 AND action = $2 AND detail = $3 AND at > $4)",
    )
    .bind(machine.as_str())
    .bind(ATTACK_REFUSED)
    .bind(attack.as_str())
    .bind(now.saturating_sub(LOGGED_APART_MS))
    .fetch_one(&mut **tx)
    .await?;
    sqlx::query(
        "INSERT INTO attacks (machine, attack, detail, generation, at, received_at, ended_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(machine.as_str())
    .bind(kind)
    .bind(&detail[..detail.floor_char_boundary(MAX_LOG_TAIL)])
    .bind(event.generation.map(|generation| generation.packed()))
    .bind(event.at)
    .bind(now)
    .bind((!goes_on).then_some(now))
    .execute(&mut **tx)
    .await?;
    sqlx::query(
        "DELETE FROM attacks WHERE machine = $1 AND id NOT IN
             (SELECT id FROM attacks WHERE machine = $1 ORDER BY id DESC LIMIT $2)",
    )
    .bind(machine.as_str())
    .bind(KEPT)
    .execute(&mut **tx)
    .await?;
    if logged {
        return Ok(());
    }
    log(tx, Act::by_itself(now, ATTACK_REFUSED, attack.as_str()).on(machine)).await
}

/// The machine accepted something again.
pub(super) async fn end(tx: &mut Tx, machine: &MachineName, now: UnixMillis) -> Result<(), StoreError> {
    sqlx::query("UPDATE attacks SET ended_at = $2 WHERE machine = $1 AND ended_at IS NULL")
        .bind(machine.as_str())
        .bind(now)
        .execute(&mut **tx)
        .await?;
    Ok(())
}

impl Store {
    /// The attacks that a machine told of, the newest first.
    pub async fn attacks(&self, machine: &MachineName, limit: u32) -> Result<Vec<AttackView>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT attack, detail, generation, at, received_at, ended_at FROM attacks WHERE machine = $1
             ORDER BY id DESC LIMIT $2",
        )
        .bind(machine.as_str())
        .bind(i64::from(limit))
        .fetch_all(self.sql.read())
        .await?;
        rows.into_iter().map(Row::view).collect()
    }
}
