//! Bearers and the nonces of operators' requests.

use muster_protocol::checkin::BEARER_SECONDS;
use muster_protocol::ids::{MachineName, Sha256, to_hex};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::SESSION_SECONDS;
use muster_protocol::random;

use super::audit::{Act, log};
use super::{Deed, Store, StoreError, Tx, public_key, signed};

/// How many bearers a machine may hold; those of its oldest check-ins end first.
const MOST_BEARERS: i64 = 16;

/// Whose bearer it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    Machine(MachineName),
    Operator(PublicKey),
}

impl Store {
    /// A bearer for an operator's `nix copy`.
    pub async fn open_session(&self, deed: &Deed<'_>, now_s: i64) -> Result<String, StoreError> {
        let bearer = to_hex(&random::bytes::<32>()?);
        let mut tx = self.sql.begin().await?;
        sqlx::query("INSERT INTO bearers (hash, operator, expires) VALUES ($1, $2, $3)")
            .bind(hash(&bearer).as_bytes().as_slice())
            .bind(deed.operator.as_bytes().as_slice())
            .bind(now_s.saturating_add(signed(SESSION_SECONDS)))
            .execute(&mut *tx)
            .await?;
        log(&mut tx, Act::of(deed, "session-opened", "")).await?;
        tx.commit().await?;
        Ok(bearer)
    }

    /// Who holds this bearer, if it is good now.
    pub async fn holder(&self, bearer: &str, now_s: i64) -> Result<Option<Holder>, StoreError> {
        let row: Option<(Option<String>, Option<Vec<u8>>)> =
            sqlx::query_as("SELECT machine, operator FROM bearers WHERE hash = $1 AND expires > $2")
                .bind(hash(bearer).as_bytes().as_slice())
                .bind(now_s)
                .fetch_optional(self.sql.read())
                .await?;
        match row {
            Some((Some(machine), _)) => {
                let machine = machine.parse().map_err(|_| StoreError::Damaged("a machine's name"))?;
                Ok(Some(Holder::Machine(machine)))
            }
            Some((None, Some(key))) => Ok(Some(Holder::Operator(public_key(&key)?))),
            _ => Ok(None),
        }
    }

    /// Remembers a nonce; false if it was seen before.
    pub async fn use_nonce(
        &self,
        key: &PublicKey,
        nonce: &[u8; 16],
        expires: i64,
    ) -> Result<bool, StoreError> {
        let mut tx = self.sql.begin().await?;
        let done = sqlx::query(
            "INSERT INTO nonces (key, nonce, expires) VALUES ($1, $2, $3) ON CONFLICT (key, nonce) DO NOTHING",
        )
        .bind(key.as_bytes().as_slice())
        .bind(nonce.as_slice())
        .bind(expires)
        .execute(&mut *tx)
        .await?;
        tx.commit().await?;
        Ok(done.rows_affected() == 1)
    }
}

/// Gives a machine the bearer of its check-in with this number, in that check-in's transaction.
pub(super) async fn grant(
    tx: &mut Tx,
    checkin: (&MachineName, u64),
    bearer: &str,
    now_s: i64,
) -> Result<(), StoreError> {
    let (machine, seq) = checkin;
    // By number, not by time: many check-ins may fall in one second, and a clock may be set back.
    sqlx::query(
        "DELETE FROM bearers WHERE machine = $1 AND (expires <= $2 OR hash NOT IN
             (SELECT hash FROM bearers WHERE machine = $1 ORDER BY seq DESC LIMIT $3))",
    )
    .bind(machine.as_str())
    .bind(now_s)
    .bind(MOST_BEARERS - 1)
    .execute(&mut **tx)
    .await?;
    sqlx::query("INSERT INTO bearers (hash, machine, seq, expires) VALUES ($1, $2, $3, $4)")
        .bind(hash(bearer).as_bytes().as_slice())
        .bind(machine.as_str())
        .bind(signed(seq))
        .bind(now_s.saturating_add(signed(BEARER_SECONDS)))
        .execute(&mut **tx)
        .await?;
    Ok(())
}

/// Bearers are 32 random bytes, so a plain hash hides them.
fn hash(bearer: &str) -> Sha256 {
    Sha256::of(bearer.as_bytes())
}
