//! The operators' API: how requests are signed, and what is sent.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::checkin::MAX_BEARER_BYTES;
use crate::ids::{Generation, MachineName, Sha256, Tag};
use crate::keys::{Context, KeyError, PublicKey, SecretKey, Signature, Signer, sign_in};
use crate::machine::{Class, System};
use crate::report::Event;

mod rollouts;
mod views;

pub use rollouts::{
    AskRollout, BrakeView, MachineRollout, MemberState, MemberView, NewPlan, RolloutState, RolloutView,
    SetBrake, WaveView, Wish,
};
use views::is_zero;
pub use views::{
    AttackView, Condition, MachineSummary, MachineView, Published, PublishedSummary, RunsSummary, Standing,
    TargetSummary, next_generation,
};

/// How far an operator's clock may be from the controller's, in seconds.
pub const REQUEST_WINDOW_SECONDS: i64 = 300;
/// The largest body of an operator's request, in bytes (the cache has its own limits).
pub const MAX_REQUEST_BYTES: usize = 1024 * 1024;
/// How long an operator's bearer token for the cache is valid, in seconds.
pub const SESSION_SECONDS: u64 = 3600;

/// What an operator's key signs for each request. Sent in the header `muster-operator`, as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestSignature {
    /// The key that signed: an operator's, or one that reads on an operator's behalf.
    pub key: PublicKey,
    /// When it was signed, in Unix seconds of the operator's clock; the controller allows
    /// [`REQUEST_WINDOW_SECONDS`].
    pub at: i64,
    /// 16 random bytes in hexadecimal; the controller refuses one it has seen.
    pub nonce: String,
    /// Over the fleet, method, path, time, nonce and body's hash.
    pub signature: Signature,
    /// SHA-256 of the body. It lets the controller check the signature before it reads the body; only then
    /// may the body be a large one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<Sha256>,
}

/// The request to sign.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    /// The fleet (SHA-256 of `1.root.json`).
    pub audience: &'a Sha256,
    /// The HTTP method, in upper case.
    pub method: &'a str,
    /// Path and query, as sent.
    pub path: &'a str,
    /// The body; empty where there is none.
    pub body: &'a [u8],
}

impl RequestSignature {
    /// Signs with a key in memory, without announcing the body's hash.
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
    /// Signs with a key that reads on an operator's behalf.
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
    /// Checks that `key` signed exactly this request. Time, nonce and the key's rights are up to the
    /// caller.
    pub fn verify(&self, request: Request<'_>) -> Result<(), KeyError> {
        self.verify_announced(request, &Sha256::of(request.body))
    }
    /// Like [`Self::verify`] before the body has been read, by its announced hash; the body of `request` is
    /// ignored.
    pub fn verify_announced(&self, request: Request<'_>, body: &Sha256) -> Result<(), KeyError> {
        self.verify_as(Context::OperatorRequest, request, body)
    }
    /// Like [`Self::verify_announced`], for a key that reads on an operator's behalf.
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

/// The reply of `POST /v1/operator/session`: a bearer token for `nix copy`, which only supports HTTP Basic.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Session {
    /// The password; any user name will do.
    #[serde(deserialize_with = "bounded::text::<_, MAX_BEARER_BYTES>")]
    pub bearer: String,
    /// How long it is valid, in seconds from now.
    #[serde(deserialize_with = "bounded::number::<_, 0, SESSION_SECONDS>")]
    pub expires_in: u64,
}

/// `POST /v1/operator/machines`: a new machine, or a new token for one.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddMachine {
    /// The name it gets, or has.
    pub machine: MachineName,
    /// The class it is to enrol with.
    pub class: Class,
    /// The Nix system it is to enrol with.
    pub system: System,
    /// Its tags in the inventory.
    #[serde(default)]
    pub tags: BTreeSet<Tag>,
    /// The token's public ID ([`crate::enrol::Secret::token_id`]). The secret stays with the operator.
    pub token: Sha256,
    /// The key that enrolments are checked with ([`crate::enrol::Secret::check_key`]).
    pub check_key: Sha256,
    /// When the token can no longer be used, in Unix seconds.
    pub expires: i64,
    /// Whether a machine that is already enrolled may be replaced: its key is revoked when the new token is
    /// used.
    #[serde(default)]
    pub replace: bool,
}

/// `POST /v1/operator/invitations`: new machines, or new tokens for known ones; all of them or none.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddMachines {
    /// Each machine once; at least one, and at most [`MAX_ADDED`].
    pub machines: Vec<AddMachine>,
}

/// The most machines in one [`AddMachines`].
pub const MAX_ADDED: usize = 1000;

/// The reply to [`AddMachines`].
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinesAdded {
    /// How many machines may enrol now.
    pub added: usize,
}

/// `POST /v1/operator/machines/NAME/readmit`: a machine that a lost database knew, with the key that it has.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Readmit {
    /// Its class.
    pub class: Class,
    /// Its Nix system.
    pub system: System,
    /// Its tags in the inventory.
    #[serde(default)]
    pub tags: BTreeSet<Tag>,
    /// The key that it signs with. Its age key comes with its next check-in.
    pub key: PublicKey,
    /// Whether a machine that is enrolled with another key gets this one in its place.
    #[serde(default)]
    pub replace: bool,
}

/// `POST /v1/operator/machines/NAME/generations`: one signed generation, as the bytes that were signed.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// The generation that all three documents are.
    pub generation: Generation,
    /// `N.targets.json`, a text of JSON.
    pub targets: String,
    /// `N.snapshot.json`, a text of JSON.
    pub snapshot: String,
    /// `generation.json`, a text of JSON.
    pub target: String,
}

/// The most generations in one [`Publications`].
pub const MAX_PUBLICATIONS: usize = 10_000;
/// How many of them `muster update` sends in one request: those who wait for what is stored already get it
/// while the next ones are stored.
pub const PUBLISHED_TOGETHER: usize = 250;
/// The largest [`Publications`], in bytes: 10,000 small generations, with some room to spare.
pub const MAX_PUBLICATIONS_BYTES: usize = 32 * 1024 * 1024;

/// `POST /v1/operator/generations`: the next generations of many machines. All of them are published, or
/// none.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publications {
    /// One for each machine; 1 to [`MAX_PUBLICATIONS`].
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_PUBLICATIONS>")]
    pub generations: Vec<MachinePublication>,
}

/// One machine's generation among many.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachinePublication {
    /// The machine it is for.
    pub machine: MachineName,
    /// What was signed.
    pub publication: Publication,
}

/// The reply to [`Publications`].
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublicationsTaken {
    /// How many were published now.
    pub published: usize,
    /// How many were published before, exactly like this.
    pub unchanged: usize,
}

/// `POST /v1/operator/root`: the next root, signed by a threshold of the previous root's keys and of its
/// own.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewRoot {
    /// `N.root.json`, a text of JSON.
    pub root: String,
}

/// The reply to [`NewRoot`].
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootTaken {
    /// The version that is now the current one.
    pub version: u64,
    /// Whether this root lists one of the controller's keys for timestamps. Until it does, machines take
    /// nothing new.
    pub online_key_named: bool,
}

/// `GET /v1/operator/machines/NAME/history`, newest generation first.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// The generation.
    pub published: Published,
    /// The newest events the machine reported about it, oldest first.
    pub events: Vec<Event>,
    /// How many older events are left out.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

/// The reply of `GET /v1/operator/changes`: the number of the fleet's newest change, and which process of the
/// controller counts. Another number, even a lower one, or another instance means that something changed.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// Passed back as `after` to wait for the next one.
    pub cursor: u64,
    /// Passed back as `instance`, which is what `after` is a number of. Controllers of version 0.1 name none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The machines that changed after `after`, in the order of their changes. `None`: any may have, since
    /// the instance is another one, or they are more than [`MAX_CHANGED`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub machines: Option<Vec<MachineName>>,
}

/// The most machines that [`Changes`] names.
pub const MAX_CHANGED: usize = 1000;

/// `GET /v1/fleet`: what anybody may know, and what a new CLI needs.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetView {
    /// SHA-256 of `1.root.json`: the fleet's name.
    pub fleet: Sha256,
    /// The version of the current root.
    pub root_version: u64,
    /// SHA-256 of the current root.
    pub root: Sha256,
    /// The controller's version.
    pub version: String,
}

#[cfg(test)]
mod tests {
    use super::*;

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
