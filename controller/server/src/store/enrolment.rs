//! Enrolment: a token becomes a machine's key, once.

use muster_protocol::clock::UnixMillis;
use muster_protocol::enrol::{EnrolError, EnrolRequest};
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::Class;

use super::audit::{Act, log};
use super::{Cursor, Store, StoreError, attacks, changed, sha256};

/// Why a machine cannot enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolRefusal {
    #[error(
        "this controller does not know the token: it is another fleet's, or a newer one took its place; make one with `muster machines add`"
    )]
    TokenUnknown,
    #[error("the token was used already: make another with `muster machines add {0} --replace`")]
    TokenUsed(MachineName),
    #[error("the token has expired: make another with `muster machines add {0}`")]
    TokenExpired(MachineName),
    #[error(transparent)]
    BadCode(EnrolError),
    #[error("the token is for machine {token}, not for {asked}: copy the token that was made for {asked}")]
    OtherMachine { token: MachineName, asked: MachineName },
    #[error(
        "the token is for a machine of class {token}, and {machine} says that it is {asked}: make a token with `muster machines add {machine} --class {asked}`"
    )]
    WrongClass { machine: MachineName, token: Class, asked: Class },
    #[error(
        "another machine is enrolled with this key: remove the agent's state from the copy and enrol it with a token of its own"
    )]
    KeyTaken,
    #[error("machine {0} was revoked: make a new token with `muster machines add {0}`")]
    Revoked(MachineName),
    #[error(transparent)]
    Store(#[from] StoreError),
}
impl From<sqlx::Error> for EnrolRefusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

#[derive(sqlx::FromRow)]
struct Token {
    machine: String,
    class: String,
    check_key: Vec<u8>,
    expires: i64,
    used_at: Option<i64>,
    used_by: Option<Vec<u8>>,
}

impl Store {
    /// Gives the machine its new key and ends the token, both or neither.
    pub async fn enrol(&self, request: &EnrolRequest, now: UnixMillis) -> Result<Cursor, EnrolRefusal> {
        let token: Option<Token> = sqlx::query_as(
            "SELECT machine, class, check_key, expires, used_at, used_by FROM tokens WHERE id = $1",
        )
        .bind(request.token.as_bytes().as_slice())
        .fetch_optional(self.sql.read())
        .await?;
        let token = token.ok_or(EnrolRefusal::TokenUnknown)?;
        request.verify(&sha256(&token.check_key)?).map_err(EnrolRefusal::BadCode)?;
        let machine: MachineName =
            token.machine.parse().map_err(|_| StoreError::Damaged("a machine's name"))?;
        let class: Class = token.class.parse().map_err(|_| StoreError::Damaged("a class"))?;
        if machine != request.machine {
            return Err(EnrolRefusal::OtherMachine { token: machine, asked: request.machine.clone() });
        }
        let asked = if class == request.class { request.system.class() } else { request.class };
        if class != asked {
            return Err(EnrolRefusal::WrongClass { machine, token: class, asked });
        }
        if token.used_at.is_some() {
            return self.enrolled_before(request, token.used_by.as_deref()).await;
        }
        if token.expires.saturating_mul(1000) <= now {
            return Err(EnrolRefusal::TokenExpired(machine));
        }
        self.use_token(request, now).await
    }

    /// A machine whose answer was lost asks again with the same key, and is told the same.
    async fn enrolled_before(
        &self,
        request: &EnrolRequest,
        used_by: Option<&[u8]>,
    ) -> Result<Cursor, EnrolRefusal> {
        let used = || EnrolRefusal::TokenUsed(request.machine.clone());
        if used_by != Some(request.key.as_bytes().as_slice()) {
            return Err(used());
        }
        let (key, revoked): (Option<Vec<u8>>, Option<i64>) =
            sqlx::query_as("SELECT key, revoked_at FROM machines WHERE name = $1")
                .bind(request.machine.as_str())
                .fetch_one(self.sql.read())
                .await?;
        if key.as_deref() != used_by {
            return Err(used());
        }
        if revoked.is_some() {
            return Err(EnrolRefusal::Revoked(request.machine.clone()));
        }
        Ok(self.cursor().await?)
    }

    async fn use_token(&self, request: &EnrolRequest, now: UnixMillis) -> Result<Cursor, EnrolRefusal> {
        let (name, key) = (request.machine.as_str(), request.key.as_bytes().as_slice());
        let mut tx = self.sql.begin().await?;
        // Of many at once, exactly one finds the token unused.
        let used =
            sqlx::query("UPDATE tokens SET used_at = $2, used_by = $3 WHERE id = $1 AND used_at IS NULL")
                .bind(request.token.as_bytes().as_slice())
                .bind(now)
                .bind(key)
                .execute(&mut *tx)
                .await?;
        if used.rows_affected() == 0 {
            drop(tx);
            let used_by: Option<Option<Vec<u8>>> =
                sqlx::query_scalar("SELECT used_by FROM tokens WHERE id = $1")
                    .bind(request.token.as_bytes().as_slice())
                    .fetch_optional(self.sql.read())
                    .await?;
            let used_by = used_by.ok_or(EnrolRefusal::TokenUnknown)?;
            return self.enrolled_before(request, used_by.as_deref()).await;
        }
        let taken: bool =
            sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM machines WHERE key = $1 AND name <> $2)")
                .bind(key)
                .bind(name)
                .fetch_one(&mut *tx)
                .await?;
        if taken {
            return Err(EnrolRefusal::KeyTaken);
        }
        sqlx::query(
            "UPDATE machines SET class = $2, system = $3, key = $4, age = $5, agent = $6, enrolled_at = $7,
                 seen_at = $7, revoked_at = NULL, enrolment = enrolment + 1, seq = 0, body_sha256 = NULL,
                 bearer_salt = NULL, reply = NULL, observed = NULL, clock_skew_ms = NULL,
                 clone_alarm_at = NULL, reports_through = 0, report_stream = NULL, earlier = NULL,
                 outcome = NULL, key_rotated_at = NULL, key_rotation_asked_at = NULL
             WHERE name = $1",
        )
        .bind(name)
        .bind(request.class.as_str())
        .bind(request.system.as_str())
        .bind(key)
        .bind(&request.age)
        .bind(&request.agent)
        .bind(now)
        .execute(&mut *tx)
        .await?;
        sqlx::query("DELETE FROM bearers WHERE machine = $1").bind(name).execute(&mut *tx).await?;
        attacks::end(&mut tx, &request.machine, now).await?;
        let detail = format!("with key {}", request.key.short());
        log(&mut tx, Act::by_itself(now, "enrolled", &detail).on(&request.machine)).await?;
        let cursor = changed(&mut tx, &request.machine).await?;
        tx.commit().await?;
        Ok(cursor)
    }

    /// The key that a machine signs with, and what else its requests are checked against.
    pub async fn machine_key(&self, name: &MachineName) -> Result<Option<Known>, StoreError> {
        let row: Option<(Option<Vec<u8>>, Option<i64>, String)> =
            sqlx::query_as("SELECT key, revoked_at, class FROM machines WHERE name = $1")
                .bind(name.as_str())
                .fetch_optional(self.sql.read())
                .await?;
        let Some((Some(key), revoked_at, class)) = row else { return Ok(None) };
        let class = class.parse().map_err(|_| StoreError::Damaged("a class"))?;
        Ok(Some(Known { key: super::public_key(&key)?, class, revoked: revoked_at.is_some() }))
    }
}

/// An enrolled machine, as its requests are checked.
#[derive(Debug, Clone, Copy)]
pub struct Known {
    pub key: PublicKey,
    pub class: Class,
    pub revoked: bool,
}
