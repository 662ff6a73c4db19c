//! What operators ask of machines, signed by them: kept until the machine says that it followed it, or until its end.

use muster_protocol::checkin::CheckIn;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::MachineName;
use muster_protocol::request::{Asked, MAX_REQUESTS, MachineRequest, SignedRequest};

use super::audit::{Act, log};
use super::{Cursor, Deed, Store, StoreError, Tx, changed};

/// Why a request is not handed on.
#[derive(Debug, thiserror::Error)]
pub enum AskRefusal {
    #[error("there is no machine {0} that is enrolled: `muster machines list` shows them")]
    NotEnrolled(MachineName),
    #[error("{0} has another key by now than the request is bound to: repeat it")]
    OtherKey(MachineName),
    #[error("{MAX_REQUESTS} requests wait for {0} already: see that it is online, or wait until they end")]
    TooMany(MachineName),
    #[error(transparent)]
    Store(#[from] StoreError),
}
impl From<sqlx::Error> for AskRefusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

impl Store {
    /// Keeps a request whose signature is good; the machine's next check-in is told.
    pub async fn ask(
        &self,
        signed: &SignedRequest,
        request: &MachineRequest,
        deed: &Deed<'_>,
    ) -> Result<Cursor, AskRefusal> {
        let name = &request.machine;
        let mut tx = self.sql.begin().await?;
        let key: Option<Vec<u8>> = sqlx::query_scalar(
            "SELECT key FROM machines WHERE name = $1 AND key IS NOT NULL AND revoked_at IS NULL",
        )
        .bind(name.as_str())
        .fetch_optional(&mut *tx)
        .await?;
        let key = key.ok_or_else(|| AskRefusal::NotEnrolled(name.clone()))?;
        sqlx::query("DELETE FROM requests WHERE machine = $1 AND ends <= $2")
            .bind(name.as_str())
            .bind(deed.at.div_euclid(1000))
            .execute(&mut *tx)
            .await?;
        if let Asked::RotateKey { key: bound } = &request.asked {
            if bound.as_bytes().as_slice() != key {
                return Err(AskRefusal::OtherKey(name.clone()));
            }
            sqlx::query(
                "UPDATE machines SET key_rotation_asked_at = coalesce(key_rotation_asked_at, $2) WHERE name = $1",
            )
            .bind(name.as_str())
            .bind(deed.at)
            .execute(&mut *tx)
            .await?;
        }
        let waiting: i64 =
            sqlx::query_scalar("SELECT count(*) FROM requests WHERE machine = $1 AND id <> $2")
                .bind(name.as_str())
                .bind(signed.id().as_bytes().as_slice())
                .fetch_one(&mut *tx)
                .await?;
        if usize::try_from(waiting).unwrap_or(MAX_REQUESTS) >= MAX_REQUESTS {
            return Err(AskRefusal::TooMany(name.clone()));
        }
        let document = serde_json::to_string(signed).map_err(|_| StoreError::Damaged("a request"))?;
        let stored = sqlx::query(
            "INSERT INTO requests (machine, id, asks, document, ends) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (machine, id) DO NOTHING",
        )
        .bind(name.as_str())
        .bind(signed.id().as_bytes().as_slice())
        .bind(request.asked.as_str())
        .bind(document)
        .bind(request.ends)
        .execute(&mut *tx)
        .await?;
        if stored.rows_affected() == 0 {
            // The same one again: it is kept and logged already.
            let cursor = changed(&mut tx, name).await?;
            tx.commit().await?;
            return Ok(cursor);
        }
        let (action, detail) = match &request.asked {
            Asked::Retry { derivation, .. } => ("retry-asked", derivation.name().to_owned()),
            Asked::RotateKey { key } => {
                ("key-rotation-asked", format!("in the place of key {}", key.short()))
            }
            Asked::Unknown => ("request-kept", "of a later version".to_owned()),
        };
        log(&mut tx, Act::of(deed, action, &detail).on(name)).await?;
        let cursor = changed(&mut tx, name).await?;
        tx.commit().await?;
        Ok(cursor)
    }
}

/// What a check-in's reply hands on. What the machine says that it followed is kept no longer.
pub(super) async fn hand_on(
    tx: &mut Tx,
    checkin: &CheckIn,
    now: UnixMillis,
) -> Result<Vec<SignedRequest>, StoreError> {
    let name = checkin.machine.as_str();
    for id in &checkin.followed {
        sqlx::query("DELETE FROM requests WHERE machine = $1 AND id = $2")
            .bind(name)
            .bind(id.as_bytes().as_slice())
            .execute(&mut **tx)
            .await?;
    }
    // What has ended is news to nobody: left here it would call the machine in again and again.
    sqlx::query("DELETE FROM requests WHERE machine = $1 AND ends <= $2")
        .bind(name)
        .bind(now.div_euclid(1000))
        .execute(&mut **tx)
        .await?;
    let rows: Vec<(String, bool)> =
        sqlx::query_as("SELECT document, handed_on FROM requests WHERE machine = $1 ORDER BY ends LIMIT $2")
            .bind(name)
            .bind(i64::try_from(MAX_REQUESTS).unwrap_or(i64::MAX))
            .fetch_all(&mut **tx)
            .await?;
    if rows.iter().any(|(_, handed_on)| !handed_on) {
        sqlx::query("UPDATE requests SET handed_on = TRUE WHERE machine = $1")
            .bind(name)
            .execute(&mut **tx)
            .await?;
    }
    Ok(rows.iter().filter_map(|(document, _)| serde_json::from_str(document).ok()).collect())
}

/// A request for another key is void once the key has changed.
pub(super) async fn rotated(tx: &mut Tx, name: &str) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM requests WHERE machine = $1 AND asks = 'rotate-key'")
        .bind(name)
        .execute(&mut **tx)
        .await
        .map(drop)
}
