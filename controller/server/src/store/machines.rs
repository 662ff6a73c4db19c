//! The machines as the operators see them: adding, revoking, reading.

use std::collections::BTreeSet;

use muster_protocol::checkin::CheckIn;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Tag};
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::{Class, System};
use muster_protocol::operator::{AddMachine, AttackView, Published, Standing};
use muster_protocol::report::{Attack, EventKind};
use muster_protocol::target::Target;
use serde::{Deserialize, Serialize};

use super::audit::{Act, log};
use super::{Cursor, Deed, Store, StoreError, changed, public_key, signed};

/// Everything that is known of one machine.
#[derive(Debug, Clone)]
pub struct Machine {
    pub name: MachineName,
    pub class: Class,
    pub system: System,
    pub tags: BTreeSet<Tag>,
    pub key: Option<PublicKey>,
    pub age: Option<String>,
    pub agent: Option<String>,
    pub enrolled_at: Option<UnixMillis>,
    pub revoked_at: Option<UnixMillis>,
    pub seen_at: Option<UnixMillis>,
    pub clock_skew_ms: Option<i64>,
    pub clone_alarm_at: Option<UnixMillis>,
    pub key_rotated_at: Option<UnixMillis>,
    pub key_rotation_asked_at: Option<UnixMillis>,
    /// Its last check-in.
    pub observed: Option<CheckIn>,
    /// How the last generation that it told of ended.
    pub outcome: Option<Outcome>,
    pub published: Option<Published>,
    /// The newest attack that it told of and that has not ended.
    pub attack: Option<AttackView>,
}

impl Machine {
    pub fn standing(&self) -> Standing {
        match (self.revoked_at, self.key) {
            (Some(_), _) => Standing::Revoked,
            (None, Some(_)) => Standing::Enrolled,
            (None, None) => Standing::Invited,
        }
    }
}

/// The last event that decided on a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outcome {
    pub generation: Generation,
    #[serde(flatten)]
    pub kind: EventKind,
}

/// Why an operator's wish about a machine cannot be met.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(
        "there is no machine {0}: `muster machines list --all` shows who is known, `muster machines add {0}` adds it"
    )]
    Unknown(MachineName),
    #[error("{0} is enrolled already: repeat with --replace if its key shall end when the new token is used")]
    Enrolled(MachineName),
    #[error("this token was made before: make a new one")]
    TokenTaken,
    #[error("there is no clone alarm for {0}: `muster machines show {0}` tells how it stands")]
    NoAlarm(MachineName),
    #[error(transparent)]
    Store(#[from] StoreError),
}
impl From<sqlx::Error> for Refusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    name: String,
    class: String,
    system: String,
    tags: String,
    key: Option<Vec<u8>>,
    age: Option<String>,
    agent: Option<String>,
    enrolled_at: Option<i64>,
    revoked_at: Option<i64>,
    seen_at: Option<i64>,
    clock_skew_ms: Option<i64>,
    clone_alarm_at: Option<i64>,
    key_rotated_at: Option<i64>,
    key_rotation_asked_at: Option<i64>,
    observed: Option<String>,
    outcome: Option<String>,
    target: Option<Vec<u8>>,
    expires: Option<i64>,
    published_at: Option<i64>,
    published_by: Option<Vec<u8>>,
    signers: Option<String>,
    attack: Option<String>,
    attack_detail: Option<String>,
    attack_generation: Option<i64>,
    attack_at: Option<i64>,
    attack_received_at: Option<i64>,
}

impl Row {
    fn machine(self) -> Result<Machine, StoreError> {
        let damaged = || StoreError::Damaged("a machine");
        let attack = self.attack()?;
        let published = match (self.target, self.expires, self.published_at, self.published_by) {
            (Some(target), Some(expires), Some(at), Some(by)) => {
                // One that earlier versions took and this one does not read (a number above the cap) is as good as none: its
                // machine still has to be listed, to be brought into a new epoch.
                published(&target, expires, at, &by, self.signers.as_deref().unwrap_or_default()).ok()
            }
            _ => None,
        };
        // What a machine once said may be of another version; then it is unknown, and unknown is not healthy.
        let told = |text: Option<String>| text.and_then(|text| serde_json::from_str(&text).ok());
        Ok(Machine {
            name: self.name.parse().map_err(|_| damaged())?,
            class: self.class.parse().map_err(|_| damaged())?,
            system: self.system.parse().map_err(|_| damaged())?,
            tags: serde_json::from_str(&self.tags).map_err(|_| damaged())?,
            key: self.key.as_deref().map(public_key).transpose()?,
            age: self.age,
            agent: self.agent,
            enrolled_at: self.enrolled_at,
            revoked_at: self.revoked_at,
            seen_at: self.seen_at,
            clock_skew_ms: self.clock_skew_ms,
            clone_alarm_at: self.clone_alarm_at,
            key_rotated_at: self.key_rotated_at,
            key_rotation_asked_at: self.key_rotation_asked_at,
            attack,
            observed: told(self.observed),
            outcome: self.outcome.and_then(|text| serde_json::from_str(&text).ok()),
            published,
        })
    }

    fn attack(&self) -> Result<Option<AttackView>, StoreError> {
        let (Some(kind), Some(at), Some(received_at)) =
            (&self.attack, self.attack_at, self.attack_received_at)
        else {
            return Ok(None);
        };
        Ok(Some(AttackView {
            attack: serde_json::from_value(kind.as_str().into()).unwrap_or(Attack::Unknown),
            detail: self.attack_detail.clone().unwrap_or_default(),
            // A machine's word: a number that no generation has is none.
            generation: self.attack_generation.and_then(|number| super::generation(number).ok()),
            at,
            received_at,
            ended_at: None,
        }))
    }
}

pub(super) fn published(
    target: &[u8],
    expires: i64,
    at: UnixMillis,
    by: &[u8],
    signers: &str,
) -> Result<Published, StoreError> {
    let target: Target = serde_json::from_slice(target).map_err(|_| StoreError::Damaged("a target"))?;
    let signers = serde_json::from_str(signers).unwrap_or_default();
    Ok(Published { target, at, by: public_key(by)?, expires, signers })
}

macro_rules! select {
    ($tail:literal) => {
        concat!(
            "SELECT m.name, m.class, m.system, m.tags, m.key, m.age, m.agent, m.enrolled_at, m.revoked_at,
                    m.seen_at, m.clock_skew_ms, m.clone_alarm_at, m.key_rotated_at, m.key_rotation_asked_at,
                    m.observed, m.outcome,
                    g.target, g.expires, g.published_at, g.published_by, g.signers,
                    a.attack, a.detail AS attack_detail, a.generation AS attack_generation, a.at AS attack_at,
                    a.received_at AS attack_received_at
             FROM machines m
             LEFT JOIN generations g ON g.machine = m.name AND g.generation = m.published
             LEFT JOIN attacks a ON a.id =
                 (SELECT max(id) FROM attacks o WHERE o.machine = m.name AND o.ended_at IS NULL) ",
            $tail
        )
    };
}

impl Store {
    pub async fn machine(&self, name: &MachineName) -> Result<Option<Machine>, StoreError> {
        let row: Option<Row> = sqlx::query_as(select!("WHERE m.name = $1"))
            .bind(name.as_str())
            .fetch_optional(self.sql.read())
            .await?;
        row.map(Row::machine).transpose()
    }

    /// All of them, by name.
    pub async fn machines(&self) -> Result<Vec<Machine>, StoreError> {
        let rows: Vec<Row> = sqlx::query_as(select!("ORDER BY m.name")).fetch_all(self.sql.read()).await?;
        rows.into_iter().map(Row::machine).collect()
    }

    /// A new machine, or a new token for one; an earlier token that nobody used ends.
    pub async fn add_machine(&self, new: &AddMachine, deed: &Deed<'_>) -> Result<Cursor, Refusal> {
        let name = new.machine.as_str();
        let mut tx = self.sql.begin().await?;
        let taken: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM tokens WHERE id = $1)")
            .bind(new.token.as_bytes().as_slice())
            .fetch_one(&mut *tx)
            .await?;
        if taken {
            return Err(Refusal::TokenTaken);
        }
        let known: Option<(Option<Vec<u8>>, Option<i64>)> =
            sqlx::query_as("SELECT key, revoked_at FROM machines WHERE name = $1")
                .bind(name)
                .fetch_optional(&mut *tx)
                .await?;
        let tags = serde_json::to_string(&new.tags).map_err(|_| StoreError::Damaged("tags"))?;
        match known {
            Some((Some(_), None)) if !new.replace => return Err(Refusal::Enrolled(new.machine.clone())),
            // The old machine stays what it is until the token is used.
            Some((Some(_), None)) => {
                sqlx::query("UPDATE machines SET tags = $2 WHERE name = $1")
                    .bind(name)
                    .bind(&tags)
                    .execute(&mut *tx)
                    .await?;
            }
            Some(_) => {
                sqlx::query(
                    "UPDATE machines SET class = $2, system = $3, tags = $4, key = NULL, revoked_at = NULL
                     WHERE name = $1",
                )
                .bind(name)
                .bind(new.class.as_str())
                .bind(new.system.as_str())
                .bind(&tags)
                .execute(&mut *tx)
                .await?;
            }
            None => {
                sqlx::query(
                    "INSERT INTO machines (name, class, system, tags, added_at) VALUES ($1, $2, $3, $4, $5)",
                )
                .bind(name)
                .bind(new.class.as_str())
                .bind(new.system.as_str())
                .bind(&tags)
                .bind(deed.at)
                .execute(&mut *tx)
                .await?;
            }
        }
        sqlx::query("DELETE FROM tokens WHERE machine = $1 AND used_at IS NULL")
            .bind(name)
            .execute(&mut *tx)
            .await?;
        sqlx::query(
            "INSERT INTO tokens (id, machine, class, check_key, expires, made_at)
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(new.token.as_bytes().as_slice())
        .bind(name)
        .bind(new.class.as_str())
        .bind(new.check_key.as_bytes().as_slice())
        .bind(new.expires)
        .bind(deed.at)
        .execute(&mut *tx)
        .await?;
        let detail = if new.replace { "a token that replaces it" } else { "a token" };
        log(&mut tx, Act::of(deed, "machine-added", detail).on(&new.machine)).await?;
        let cursor = changed(&mut tx, &new.machine).await?;
        tx.commit().await?;
        Ok(cursor)
    }

    /// Ends a machine's access: its key, its bearers, and any token that was made for it.
    pub async fn revoke(&self, name: &MachineName, deed: &Deed<'_>) -> Result<Cursor, Refusal> {
        let mut tx = self.sql.begin().await?;
        let done = sqlx::query("UPDATE machines SET revoked_at = coalesce(revoked_at, $2) WHERE name = $1")
            .bind(name.as_str())
            .bind(deed.at)
            .execute(&mut *tx)
            .await?;
        if done.rows_affected() == 0 {
            return Err(Refusal::Unknown(name.clone()));
        }
        for query in [
            "DELETE FROM bearers WHERE machine = $1",
            "DELETE FROM tokens WHERE machine = $1 AND used_at IS NULL",
        ] {
            sqlx::query(query).bind(name.as_str()).execute(&mut *tx).await?;
        }
        log(&mut tx, Act::of(deed, "machine-revoked", "").on(name)).await?;
        let cursor = changed(&mut tx, name).await?;
        tx.commit().await?;
        Ok(cursor)
    }

    /// Ends the clone alarm: an operator knows what it was.
    pub async fn acknowledge(&self, name: &MachineName, deed: &Deed<'_>) -> Result<Cursor, Refusal> {
        let mut tx = self.sql.begin().await?;
        let done = sqlx::query(
            "UPDATE machines SET clone_alarm_at = NULL WHERE name = $1 AND clone_alarm_at IS NOT NULL",
        )
        .bind(name.as_str())
        .execute(&mut *tx)
        .await?;
        if done.rows_affected() == 0 {
            let known: bool = sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM machines WHERE name = $1)")
                .bind(name.as_str())
                .fetch_one(&mut *tx)
                .await?;
            return Err(if known { Refusal::NoAlarm(name.clone()) } else { Refusal::Unknown(name.clone()) });
        }
        log(&mut tx, Act::of(deed, "clone-alarm-ended", "").on(name)).await?;
        let cursor = changed(&mut tx, name).await?;
        tx.commit().await?;
        Ok(cursor)
    }

    /// Notes that a machine is there, at most every half minute.
    pub async fn seen(&self, name: &MachineName, now: UnixMillis) -> Result<(), StoreError> {
        const APART_MS: i64 = 30_000;
        let stale: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM machines WHERE name = $1 AND coalesce(seen_at, 0) < $2)",
        )
        .bind(name.as_str())
        .bind(now.saturating_sub(APART_MS))
        .fetch_one(self.sql.read())
        .await?;
        if stale {
            let mut tx = self.sql.begin().await?;
            sqlx::query("UPDATE machines SET seen_at = $2 WHERE name = $1")
                .bind(name.as_str())
                .bind(now)
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
        }
        Ok(())
    }

    /// The latest published generation of a machine, and whether its next check-in is to be told something.
    pub async fn news(&self, name: &MachineName) -> Result<(Option<Generation>, bool), StoreError> {
        let row: Option<(Option<i64>, bool)> = sqlx::query_as(
            "SELECT published, EXISTS (SELECT 1 FROM requests WHERE machine = $1 AND handed_on = FALSE)
             FROM machines WHERE name = $1",
        )
        .bind(name.as_str())
        .fetch_optional(self.sql.read())
        .await?;
        let (number, check_in) = row.unwrap_or_default();
        Ok((number.and_then(|number| super::generation(number).ok()), check_in))
    }
}

impl Outcome {
    /// The outcome that an event tells, if it decides on a generation.
    pub(super) fn of(generation: Option<Generation>, kind: &EventKind) -> Option<Self> {
        let decides = matches!(
            kind,
            EventKind::Confirmed { .. }
                | EventKind::RolledBack { .. }
                | EventKind::Failed { .. }
                | EventKind::NeedsHuman { .. }
        );
        Some(Self { generation: generation.filter(|_| decides)?, kind: kind.clone() })
    }
}

/// Sequence numbers and counters beyond this are nobody's honest ones.
pub(super) fn in_range(number: u64) -> bool {
    signed(number) < i64::MAX
}
