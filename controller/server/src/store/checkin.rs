//! Check-ins: the sequence rule, what the machine said of itself, and its bearer, in one transaction.

use muster_protocol::checkin::{BEARER_SECONDS, CheckIn, CheckInReply};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256, to_hex};
use muster_protocol::keys::{PublicKey, Signature};
use muster_protocol::random;

use super::audit::{Act, log};
use super::machines::in_range;
use super::{
    Cursor, Store, StoreError, Tx, access, attacks, changed, generation, requests, sha256, signed, unsigned,
};

/// How many new keys a machine may bring within a day without being asked.
const KEYS_A_DAY: i64 = 8;
const DAY_MS: i64 = 86_400_000;
const KEY_ROTATED: &str = "key-rotated";

/// A check-in whose signature is good.
#[derive(Debug, Clone, Copy)]
pub struct Seen<'a> {
    pub checkin: &'a CheckIn,
    /// The bytes that were signed.
    pub body: &'a [u8],
    pub key: &'a PublicKey,
    /// That of the newest key: the one that the check-in brings, where it brings one.
    pub signature: &'a Signature,
    pub now: UnixMillis,
    pub poll_seconds: u64,
}

/// What the machine is told.
#[derive(Debug)]
pub struct Answer {
    pub reply: CheckInReply,
    /// Where the fleet's changes stand, unless this was a repetition.
    pub cursor: Option<Cursor>,
}

#[derive(Debug, thiserror::Error)]
pub enum CheckInRefusal {
    /// Its key was replaced or revoked while it asked.
    #[error("machine {0} is not enrolled with this key: enrol it with a token of `muster machines add {0}`")]
    NotEnrolled(MachineName),
    #[error(
        "check-in {seq} of {machine} is not newer than {last}: somebody else holds this machine's key, or its state was brought back from a backup; enrol it anew with a token of `muster machines add {machine} --replace`"
    )]
    Sequence { machine: MachineName, seq: u64, last: u64, cursor: Cursor },
    /// It was slow on its way: the machine has had its answer, and one to a later check-in.
    #[error("check-in {seq} of {machine} was answered before, and later ones too")]
    Repeated { machine: MachineName, seq: u64 },
    #[error("the sequence number {0} is out of range: enrol the machine anew")]
    OutOfRange(u64),
    #[error(
        "another machine has the key that {0} brings: remove next-machine.pem from its state and let it make another"
    )]
    KeyTaken(MachineName),
    #[error(
        "machine {machine} brought {KEYS_A_DAY} new keys within a day: it may bring another one in {}, or at once where an operator asks for it with `muster machines rotate-key {machine}`",
        muster_protocol::moment::span(i64::try_from(*wait_seconds).unwrap_or(i64::MAX))
    )]
    TooManyKeys { machine: MachineName, wait_seconds: u64 },
    #[error(transparent)]
    Store(#[from] StoreError),
}
impl From<sqlx::Error> for CheckInRefusal {
    fn from(error: sqlx::Error) -> Self {
        Self::Store(error.into())
    }
}

#[derive(sqlx::FromRow)]
struct Row {
    seq: i64,
    body_sha256: Option<Vec<u8>>,
    bearer_salt: Option<Vec<u8>>,
    reply: Option<String>,
    reports_through: i64,
    published: Option<i64>,
    key_rotation_asked_at: Option<i64>,
    earlier: Option<Vec<u8>>,
}

impl Store {
    pub async fn check_in(&self, seen: Seen<'_>) -> Result<Answer, CheckInRefusal> {
        let (checkin, now) = (seen.checkin, seen.now);
        if !in_range(checkin.seq) {
            return Err(CheckInRefusal::OutOfRange(checkin.seq));
        }
        let mut tx = self.sql.begin().await?;
        let row: Option<Row> = sqlx::query_as(
            "SELECT seq, body_sha256, bearer_salt, reply, reports_through, published, key_rotation_asked_at,
                    earlier
             FROM machines WHERE name = $1 AND key = $2 AND revoked_at IS NULL",
        )
        .bind(checkin.machine.as_str())
        .bind(seen.key.as_bytes().as_slice())
        .fetch_optional(&mut *tx)
        .await?;
        let row = row.ok_or_else(|| CheckInRefusal::NotEnrolled(checkin.machine.clone()))?;
        let last = unsigned(row.seq);
        if checkin.seq <= last {
            let body = Sha256::of(seen.body);
            if checkin.seq == last && row.body_sha256.as_deref() == Some(body.as_bytes().as_slice()) {
                return Ok(Answer { reply: repeated(&row, seen.signature)?, cursor: None });
            }
            if is_earlier(row.earlier.as_deref(), checkin.seq, &body) {
                return Err(CheckInRefusal::Repeated { machine: checkin.machine.clone(), seq: checkin.seq });
            }
            let cursor = alarm(&mut tx, checkin, now).await?;
            tx.commit().await?;
            let (machine, seq) = (checkin.machine.clone(), checkin.seq);
            return Err(CheckInRefusal::Sequence { machine, seq, last, cursor });
        }
        let salt = random::bytes::<32>().map_err(StoreError::from)?;
        let mut reply = CheckInReply {
            bearer: String::new(),
            bearer_expires_in: BEARER_SECONDS,
            generation: row.published.and_then(|number| generation(number).ok()),
            poll_seconds: seen.poll_seconds,
            reports_through: unsigned(row.reports_through),
            rotate_key: row.key_rotation_asked_at.is_some() && checkin.new_key.is_none(),
            requests: requests::hand_on(&mut tx, checkin, now).await?,
        };
        let earlier = with_earlier(&row);
        remember(&mut tx, seen, &salt, &reply, &earlier).await?;
        if let Some(new) = checkin.new_key.as_ref().filter(|new| *new != seen.key) {
            if row.key_rotation_asked_at.is_none() {
                may_rotate(&mut tx, &checkin.machine, now).await?;
            }
            rotate(&mut tx, checkin, new, now).await?;
        }
        if checkin.refused.is_none() {
            attacks::end(&mut tx, &checkin.machine, now).await?;
        }
        reply.bearer = bearer(&salt, seen.signature);
        access::grant(&mut tx, (&checkin.machine, checkin.seq), &reply.bearer, now.div_euclid(1000)).await?;
        let cursor = changed(&mut tx, &checkin.machine).await?;
        tx.commit().await?;
        Ok(Answer { reply, cursor: Some(cursor) })
    }
}

async fn remember(
    tx: &mut Tx,
    seen: Seen<'_>,
    salt: &[u8; 32],
    reply: &CheckInReply,
    earlier: &[u8],
) -> Result<(), StoreError> {
    let reply = serde_json::to_string(reply).map_err(|_| StoreError::Damaged("a reply"))?;
    sqlx::query(
        "UPDATE machines SET seq = $2, body_sha256 = $3, bearer_salt = $4, reply = $5, observed = $6,
             seen_at = $7, clock_skew_ms = $8, agent = $9, earlier = $10
         WHERE name = $1",
    )
    .bind(seen.checkin.machine.as_str())
    .bind(signed(seen.checkin.seq))
    .bind(Sha256::of(seen.body).as_bytes().as_slice())
    .bind(salt.as_slice())
    .bind(reply)
    .bind(String::from_utf8_lossy(seen.body))
    .bind(seen.now)
    .bind(seen.checkin.clock.saturating_sub(seen.now))
    .bind(&seen.checkin.agent)
    .bind(earlier)
    .execute(&mut **tx)
    .await?;
    Ok(())
}

/// Each new key is an entry of the audit log, which nobody can shorten: so a machine has few a day of its own accord.
async fn may_rotate(tx: &mut Tx, machine: &MachineName, now: UnixMillis) -> Result<(), CheckInRefusal> {
    let today: Vec<i64> = sqlx::query_scalar(
        "SELECT at FROM audit WHERE machine = $1 AND action = $2 AND at > $3 AND at <= $4
         ORDER BY id DESC LIMIT $5",
    )
    .bind(machine.as_str())
    .bind(KEY_ROTATED)
    .bind(now.saturating_sub(DAY_MS))
    .bind(now)
    .bind(KEYS_A_DAY)
    .fetch_all(&mut **tx)
    .await?;
    match today.last() {
        Some(oldest) if today.len() as i64 >= KEYS_A_DAY => {
            let wait = oldest.saturating_add(DAY_MS).saturating_sub(now).max(0);
            let wait_seconds = unsigned(wait).div_ceil(1000);
            Err(CheckInRefusal::TooManyKeys { machine: machine.clone(), wait_seconds })
        }
        _ => Ok(()),
    }
}

/// Puts the new key in the place of the old one; whoever got a bearer by the old one loses it.
async fn rotate(
    tx: &mut Tx,
    checkin: &CheckIn,
    new: &PublicKey,
    now: UnixMillis,
) -> Result<(), CheckInRefusal> {
    let name = checkin.machine.as_str();
    let taken: bool =
        sqlx::query_scalar("SELECT EXISTS (SELECT 1 FROM machines WHERE key = $1 AND name <> $2)")
            .bind(new.as_bytes().as_slice())
            .bind(name)
            .fetch_one(&mut **tx)
            .await?;
    if taken {
        return Err(CheckInRefusal::KeyTaken(checkin.machine.clone()));
    }
    sqlx::query(
        "UPDATE machines SET key = $2, key_rotated_at = $3, key_rotation_asked_at = NULL WHERE name = $1",
    )
    .bind(name)
    .bind(new.as_bytes().as_slice())
    .bind(now)
    .execute(&mut **tx)
    .await?;
    sqlx::query("DELETE FROM bearers WHERE machine = $1").bind(name).execute(&mut **tx).await?;
    requests::rotated(tx, name).await?;
    let detail = format!("to key {}", new.short());
    log(tx, Act::by_itself(now, KEY_ROTATED, &detail).on(&checkin.machine)).await?;
    Ok(())
}

async fn alarm(tx: &mut Tx, checkin: &CheckIn, now: UnixMillis) -> Result<Cursor, StoreError> {
    let raised =
        sqlx::query("UPDATE machines SET clone_alarm_at = $2 WHERE name = $1 AND clone_alarm_at IS NULL")
            .bind(checkin.machine.as_str())
            .bind(now)
            .execute(&mut **tx)
            .await?;
    if raised.rows_affected() > 0 {
        // Once for each alarm, however often the machine goes on.
        tracing::warn!(machine = %checkin.machine, seq = checkin.seq, "clone alarm: a check-in with a number that was used");
        let detail = format!("check-in {} came again, or too late", checkin.seq);
        log(tx, Act::by_itself(now, "clone-alarm", &detail).on(&checkin.machine)).await?;
    }
    changed(tx, &checkin.machine).await
}

/// How many check-ins before the last one are known again.
const EARLIER: usize = 16;
/// What is kept of each: its number, and the first bytes of its body's hash.
const EARLIER_BYTES: usize = 8 + 16;

fn earlier_entry(seq: u64, body: &[u8]) -> Vec<u8> {
    [&seq.to_be_bytes()[..], &body[..body.len().min(16)]].concat()
}

/// Those before this check-in, with the last one added.
fn with_earlier(row: &Row) -> Vec<u8> {
    let mut known = row.earlier.clone().unwrap_or_default();
    if let Some(body) = row.body_sha256.as_deref() {
        known.extend(earlier_entry(unsigned(row.seq), body));
    }
    known.split_off(known.len().saturating_sub(EARLIER * EARLIER_BYTES))
}

fn is_earlier(known: Option<&[u8]>, seq: u64, body: &Sha256) -> bool {
    let entry = earlier_entry(seq, body.as_bytes());
    known.unwrap_or_default().chunks_exact(EARLIER_BYTES).any(|known| known == entry)
}

/// The reply of the last check-in, as it was; its bearer comes from the salt and the signature again.
fn repeated(row: &Row, signature: &Signature) -> Result<CheckInReply, StoreError> {
    let damaged = || StoreError::Damaged("a cached reply");
    let salt = sha256(row.bearer_salt.as_deref().ok_or_else(damaged)?)?;
    let mut reply: CheckInReply =
        serde_json::from_str(row.reply.as_deref().ok_or_else(damaged)?).map_err(|_| damaged())?;
    reply.bearer = bearer(salt.as_bytes(), signature);
    Ok(reply)
}

/// A bearer that the store can give again to whoever repeats the request, and that nobody can read from the store:
/// it hangs on a random salt, kept here, and on the signature of the request, which is not.
fn bearer(salt: &[u8; 32], signature: &Signature) -> String {
    to_hex(Sha256::of(&[b"muster-bearer-v1\0".as_slice(), salt, signature.as_bytes()].concat()).as_bytes())
}
