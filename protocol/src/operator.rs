//! The operators' API: how a request is signed, and what travels.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::checkin::{Health, Holds, MAX_BEARER_BYTES, Phase, Runs};
use crate::clock::UnixMillis;
use crate::ids::{Epoch, Generation, IdError, MachineName, Sha256, Tag};
use crate::keys::{Context, KeyError, PublicKey, SecretKey, Signature, Signer, sign_in};
use crate::machine::{Class, System};
use crate::report::{Attack, Event};
use crate::target::Target;

/// How far an operator's clock may be from the controller's, in seconds.
pub const REQUEST_WINDOW_SECONDS: i64 = 300;
/// The largest body of an operator's request, in bytes (the cache has its own limits).
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// How long an operator's bearer for the cache is good, in seconds.
pub const SESSION_SECONDS: u64 = 3600;

/// What an operator's key signs, one request at a time. Sent as the header `muster-operator`, in JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestSignature {
    pub key: PublicKey,
    /// Unix seconds of the operator's clock.
    pub at: i64,
    /// 16 random bytes in hexadecimal; never twice.
    pub nonce: String,
    pub signature: Signature,
    /// SHA-256 of the body. With it the signature is checked before the body is read, and only then may the body be a
    /// large one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Sha256>,
}

/// The request that is signed.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The fleet (SHA-256 of `1.root.json`).
    pub audience: &'a Sha256,
    pub method: &'a str,
    /// Path and query, as sent.
    pub path: &'a str,
    pub body: &'a [u8],
}

impl RequestSignature {
    /// Signs with a key in memory, and says nothing of the body before it is read.
    pub fn make(key: &SecretKey, request: Request<'_>, at: i64, nonce: [u8; 16]) -> Self {
        let nonce = crate::ids::to_hex(&nonce);
        let signature = key.sign(Context::OperatorRequest, &message(request, at, &nonce));
        Self { key: key.public(), at, nonce, signature, body: None }
    }
    /// Signs with whatever holds the key.
    pub fn make_with(
        signer: &dyn Signer,
        request: Request<'_>,
        at: i64,
        nonce: [u8; 16],
    ) -> Result<Self, KeyError> {
        Self::make_as(Context::OperatorRequest, signer, request, at, nonce)
    }
    /// Signs with a key that reads in an operator's place.
    pub fn make_reading(
        key: &SecretKey,
        request: Request<'_>,
        at: i64,
        nonce: [u8; 16],
    ) -> Result<Self, KeyError> {
        Self::make_as(Context::SessionRequest, key, request, at, nonce)
    }
    fn make_as(
        context: Context,
        signer: &dyn Signer,
        request: Request<'_>,
        at: i64,
        nonce: [u8; 16],
    ) -> Result<Self, KeyError> {
        let nonce = crate::ids::to_hex(&nonce);
        let signature = sign_in(signer, context, &message(request, at, &nonce))?;
        Ok(Self { key: signer.public(), at, nonce, signature, body: Some(Sha256::of(request.body)) })
    }
    /// Whether `key` signed exactly this request. Time, nonce and standing of the key are the caller's to check.
    pub fn verify(&self, request: Request<'_>) -> Result<(), KeyError> {
        self.verify_announced(request, &Sha256::of(request.body))
    }
    /// The same where the body was not read yet, and only its hash is announced; the body of `request` is not looked at.
    pub fn verify_announced(&self, request: Request<'_>, body: &Sha256) -> Result<(), KeyError> {
        self.verify_as(Context::OperatorRequest, request, body)
    }
    /// The same of a key that reads in an operator's place.
    pub fn verify_reading(&self, request: Request<'_>, body: &Sha256) -> Result<(), KeyError> {
        self.verify_as(Context::SessionRequest, request, body)
    }
    fn verify_as(&self, context: Context, request: Request<'_>, body: &Sha256) -> Result<(), KeyError> {
        let message = message_of(request, self.at, &self.nonce, body);
        self.key.verify(context, &message, &self.signature)
    }
}

fn message(request: Request<'_>, at: i64, nonce: &str) -> Vec<u8> {
    message_of(request, at, nonce, &Sha256::of(request.body))
}

fn message_of(request: Request<'_>, at: i64, nonce: &str, body: &Sha256) -> Vec<u8> {
    format!("{}\n{}\n{}\n{at}\n{nonce}\n{body}\n", request.audience, request.method, request.path)
        .into_bytes()
}

/// `POST /v1/operator/session`: a bearer for `nix copy`, which can only do HTTP Basic.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    #[serde(deserialize_with = "bounded::text::<_, MAX_BEARER_BYTES>")]
    pub bearer: String,
    #[serde(deserialize_with = "bounded::number::<_, 0, SESSION_SECONDS>")]
    pub expires_in: u64,
}

/// `POST /v1/operator/machines`: a new machine, or a new token for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddMachine {
    pub machine: MachineName,
    pub class: Class,
    pub system: System,
    #[serde(default)]
    pub tags: BTreeSet<Tag>,
    /// Public name of the token, and what to check an enrolment with; not its secret.
    pub token: Sha256,
    pub check_key: Sha256,
    /// Unix seconds.
    pub expires: i64,
    /// Whether a machine that is enrolled already may be replaced: its key ends when the token is used.
    #[serde(default)]
    pub replace: bool,
}

/// `POST /v1/operator/machines/NAME/generations`: one signed generation, as the bytes that were signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    pub generation: Generation,
    /// `N.targets.json`, `N.snapshot.json` and `generation.json`, each a text of JSON.
    pub targets: String,
    pub snapshot: String,
    pub target: String,
}

/// Where a machine is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// A token was made; nobody has used it.
    Invited,
    Enrolled,
    Revoked,
}

/// How a machine fares, decided once, by the controller, from what it was told and when.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Condition {
    Invited,
    Revoked,
    /// Enrolled, and nothing was ever published for it.
    NoGeneration,
    /// It runs and has confirmed the latest generation.
    UpToDate,
    /// As `UpToDate`, with units that failed.
    Degraded,
    /// A generation waits for it, or it works on one.
    Updating,
    /// It tried the latest generation and runs its old system.
    RolledBack,
    /// It could not even try the latest generation.
    Failed,
    NeedsHuman,
    /// It refused what it was given; see `refused`.
    UnderAttack,
    /// Somebody at it paused updates; a generation waits for it.
    Paused,
    /// Nothing was heard of it for some time. It joins when it is back.
    Offline,
    /// A condition of a later version.
    #[serde(other)]
    Unknown,
}

impl Condition {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Invited => "invited",
            Self::Revoked => "revoked",
            Self::NoGeneration => "no generation",
            Self::UpToDate => "up to date",
            Self::Degraded => "degraded",
            Self::Updating => "updating",
            Self::RolledBack => "rolled back",
            Self::Failed => "failed",
            Self::NeedsHuman => "needs human",
            Self::UnderAttack => "under attack",
            Self::Paused => "paused",
            Self::Offline => "offline",
            Self::Unknown => "a condition that this version does not know",
        }
    }
    /// Whether the machine will not move on by itself: `update --watch` ends with it.
    pub fn is_bad(self) -> bool {
        matches!(self, Self::RolledBack | Self::Failed | Self::NeedsHuman | Self::UnderAttack | Self::Revoked)
    }
}

/// `GET /v1/operator/machines` and `…/NAME`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineView {
    pub machine: MachineName,
    pub class: Class,
    pub system: System,
    pub tags: BTreeSet<Tag>,
    pub standing: Standing,
    pub condition: Condition,
    /// The latest published generation.
    pub published: Option<Published>,
    pub runs: Option<Runs>,
    pub phase: Option<Phase>,
    pub phase_generation: Option<Generation>,
    pub note: Option<String>,
    pub refused: Option<Attack>,
    /// The attack that the machine refused and that has not ended, as far as it told of it.
    #[serde(default)]
    pub attack: Option<AttackView>,
    /// More than one holder of this machine's key was seen.
    pub clone_alarm: bool,
    /// Since when.
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub clone_alarm_at: Option<UnixMillis>,
    pub holds: Holds,
    #[serde(default)]
    pub health: Health,
    pub agent: Option<String>,
    pub age: Option<String>,
    /// The machine's proof that `age` is its own; see [`crate::witness`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_proof: Option<Sha256>,
    pub key: Option<PublicKey>,
    /// When this key took the place of an older one of the same machine; none where it is the one that enrolled.
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub key_rotated_at: Option<UnixMillis>,
    /// An operator asked for a new key, and the machine has not made it yet.
    #[serde(default)]
    pub key_rotation_asked: bool,
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub enrolled_at: Option<UnixMillis>,
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub last_seen: Option<UnixMillis>,
    /// The machine's clock minus the controller's at the last check-in, in milliseconds.
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub clock_skew_ms: Option<i64>,
}

impl MachineView {
    pub fn next_generation(&self, epoch: Epoch) -> Result<Generation, IdError> {
        let published = self.published.as_ref().map(|published| published.target.generation);
        next_generation(epoch, published, &self.holds)
    }
}

/// The number of the next generation in the root's epoch: above what was published, and above what the machine says that
/// it holds. After a controller was restored from a backup the machine knows numbers that the controller does not, and
/// would refuse to go back. What is of another epoch holds nothing up.
pub fn next_generation(
    epoch: Epoch,
    published: Option<Generation>,
    holds: &Holds,
) -> Result<Generation, IdError> {
    let held = match holds.targets {
        0 => None,
        _ if holds.epoch != epoch => None,
        number => Some(Generation::of(epoch, number)?),
    };
    let published = published.filter(|published| published.epoch() == epoch);
    published.max(held).map_or(Ok(Generation::first_of(epoch)), Generation::next)
}

/// One published generation, for showing and comparing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Published {
    /// What was signed.
    pub target: Target,
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    /// The operator's key that sent it.
    pub by: PublicKey,
    /// When the operators' signature ends, in Unix seconds.
    #[serde(deserialize_with = "bounded::seconds")]
    pub expires: i64,
    /// The operators' keys that signed it; the controller's word.
    #[serde(default)]
    pub signers: Vec<PublicKey>,
}

impl Published {
    /// Whether its signatures still reach the threshold of these operators. If not, machines refuse it as forged until it
    /// is signed anew.
    pub fn is_signed_by(&self, operators: &[PublicKey], threshold: u32) -> bool {
        // Before there were thresholds whoever sent it had signed it.
        let by = std::slice::from_ref(&self.by);
        let signers = if self.signers.is_empty() { by } else { &self.signers };
        let good: BTreeSet<&[u8; 32]> =
            signers.iter().filter(|key| operators.contains(key)).map(PublicKey::as_bytes).collect();
        good.len() >= threshold as usize
    }
}

/// An attack that a machine refused: `GET /v1/operator/machines/NAME/attacks`, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttackView {
    pub attack: Attack,
    /// The machine's words.
    #[serde(default)]
    pub detail: String,
    /// The generation that the controller had spoken of.
    #[serde(default)]
    pub generation: Option<Generation>,
    /// By the machine's clock.
    #[serde(deserialize_with = "bounded::time")]
    pub at: UnixMillis,
    /// By the controller's clock, as the two below.
    #[serde(deserialize_with = "bounded::time")]
    pub received_at: UnixMillis,
    /// When the machine accepted something again.
    #[serde(default, deserialize_with = "bounded::some_time")]
    pub ended_at: Option<UnixMillis>,
}

/// `POST /v1/operator/root`: the next root, signed by a threshold of the keys before it and of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRoot {
    /// `N.root.json`, a text of JSON.
    pub root: String,
}

/// The answer to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootTaken {
    pub version: u64,
    /// Whether the controller holds a key that this root names for timestamps. Until it does machines take nothing new.
    pub online_key_named: bool,
}

/// `GET /v1/operator/machines/NAME/history`, the newest generation first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    pub published: Published,
    /// The newest that the machine told of it, the oldest of them first.
    pub events: Vec<Event>,
    /// How many events there are beside those.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The reply of `GET /v1/operator/changes`: the number of the newest change of the fleet. Another number, not only a
/// higher one, means that something changed: a restored database may stand behind what was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    pub cursor: u64,
}

/// `GET /v1/fleet`: what anybody may know, and a new CLI needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetView {
    pub fleet: Sha256,
    pub root_version: u64,
    pub root: Sha256,
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_published_generation_counts_while_a_threshold_of_todays_operators_has_signed_it() {
        let [alice, bob, carol] = [(); 3].map(|()| SecretKey::generate().unwrap().public());
        let target = r#"{"machine":"stibnite","class":"darwin","generation":1,"system":"aarch64-darwin",
            "derivation":"/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
            "output":"/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system"}"#;
        let target = Target::parse(target.as_bytes()).unwrap();
        let signed = |signers: &[PublicKey]| Published {
            target: target.clone(),
            at: 0,
            by: alice,
            expires: 0,
            signers: signers.to_vec(),
        };
        assert!(signed(&[alice, bob]).is_signed_by(&[alice, bob, carol], 2));
        assert!(!signed(&[alice, bob]).is_signed_by(&[alice, carol], 2), "bob left");
        assert!(!signed(&[alice, alice]).is_signed_by(&[alice, bob], 2), "one key counts once");
        assert!(signed(&[]).is_signed_by(&[alice], 1), "published by version 0.1");
        assert!(!signed(&[]).is_signed_by(&[bob], 1));
    }

    #[test]
    fn a_signed_request_cannot_be_bent() {
        let key = SecretKey::generate().unwrap();
        let (fleet, other) = (Sha256::of(b"one"), Sha256::of(b"two"));
        let request = Request { audience: &fleet, method: "POST", path: "/v1/x?a=1", body: b"{}" };
        let signed = RequestSignature::make(&key, request, 1_700_000_000, [7; 16]);
        assert!(signed.verify(request).is_ok());
        for bent in [
            Request { audience: &other, ..request },
            Request { method: "DELETE", ..request },
            Request { path: "/v1/x?a=2", ..request },
            Request { body: b"{ }", ..request },
        ] {
            assert!(signed.verify(bent).is_err(), "{bent:?}");
        }
        assert!(RequestSignature { at: 1, ..signed.clone() }.verify(request).is_err());
        assert!(RequestSignature { nonce: "00".into(), ..signed }.verify(request).is_err());

        let announced = RequestSignature::make_with(&key, request, 1, [7; 16]).unwrap();
        assert!(announced.verify(request).is_ok());
        assert!(announced.verify_announced(request, &Sha256::of(b"{}")).is_ok());
        assert!(announced.verify_announced(request, &Sha256::of(b"{ }")).is_err());
    }

    #[test]
    fn a_request_of_a_key_that_only_reads_is_none_of_an_operators() {
        let key = SecretKey::generate().unwrap();
        let (fleet, body) = (Sha256::of(b"one"), Sha256::of(b""));
        let request = Request { audience: &fleet, method: "GET", path: "/v1/x", body: b"" };
        let reading = RequestSignature::make_reading(&key, request, 1, [7; 16]).unwrap();
        assert!(reading.verify_reading(request, &body).is_ok());
        assert!(reading.verify_announced(request, &body).is_err());
        let own = RequestSignature::make_with(&key, request, 1, [7; 16]).unwrap();
        assert!(own.verify_reading(request, &body).is_err());
    }
}
