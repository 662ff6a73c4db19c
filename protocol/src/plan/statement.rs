//! What machines say about their part of a rollout, and what the controller says to them.

use serde::{Deserialize, Serialize};

use super::document::{Plan, Voucher};
use crate::bounded;
use crate::ids::{MachineName, Sha256};
use crate::keys::{Context, KeyError, PublicKey, SecretKey, Signature};

/// The most statements that are fetched for one gate.
pub const MAX_STATEMENTS: usize = 256;
/// The most bytes that are fetched for one gate.
pub const MAX_STATEMENTS_BYTES: u64 = 64 * 1024;
/// The longest that a controller's leave to switch holds, in seconds.
pub const MAX_LEAVE_SECONDS: u64 = 3600;
/// The longest reason in a [`Leave`], in bytes.
pub const MAX_WHY_BYTES: usize = 512;

/// What a machine says about its output of a plan.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Said {
    /// It runs it, and its checks passed.
    Confirmed,
    /// It has run it well for the whole soak.
    Soaked,
    /// It went back later: nothing it said before counts.
    Withdrawn,
}

impl Said {
    /// Its word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Confirmed => "confirmed",
            Self::Soaked => "soaked",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// The most that a machine says of the plan it follows, in its check-ins. It is repeated in each of them, so
/// that a controller that was restored from a backup has it again.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vouch {
    /// The plan.
    pub plan: Sha256,
    /// What it says.
    pub said: Said,
    /// Over the [`Claim`], in `Context::Attestation`, by the key that the plan has of it.
    pub signature: Signature,
}

/// One machine's word, as it is passed on to others.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Whose word it is.
    pub machine: MachineName,
    /// What it says.
    pub said: Said,
    /// Over the [`Claim`], in `Context::Attestation`.
    pub signature: Signature,
}

/// `GET /v1/plans/HASH/statements`: what the controller has for one gate.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statements {
    /// In any order.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_STATEMENTS>")]
    pub statements: Vec<Statement>,
}

/// What a statement's signature covers. It has no time and no note, and binds the output and not the number
/// of a generation: refreshed signatures keep a plan.
#[derive(Debug, Clone, Copy)]
pub struct Claim<'a> {
    /// SHA-256 of the plan's bytes.
    pub hash: Sha256,
    /// The plan itself.
    pub plan: &'a Plan,
    /// Whose word it is, and for which output.
    pub voucher: &'a Voucher,
    /// What is said.
    pub said: Said,
}

impl Claim<'_> {
    /// None of the parts can contain a line break.
    fn message(&self) -> Vec<u8> {
        let (Plan { fleet, epoch, .. }, Voucher { machine, output, .. }) = (self.plan, self.voucher);
        let (hash, said) = (self.hash, self.said.as_str());
        format!("{fleet}\n{epoch}\n{hash}\n{machine}\n{output}\n{said}\n").into_bytes()
    }

    /// The machine's signature; `key` should be the one that the plan has of it.
    pub fn sign(&self, key: &SecretKey) -> Signature {
        key.sign(Context::Attestation, &self.message())
    }

    /// Checks a signature by the key that the plan has of the machine.
    pub fn verify(&self, signature: &Signature) -> Result<(), KeyError> {
        let key: &PublicKey = &self.voucher.key;
        key.verify(Context::Attestation, &self.message(), signature)
    }
}

/// What the controller says to a machine whose target has a plan, in the reply to a check-in. It is not
/// signed, so it can only hold a machine back: no machine switches by it before its gate is proven.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leave {
    /// The plan that it is about.
    pub plan: Sha256,
    /// For how long the machine may begin to switch, in seconds from its check-in; 0: it must wait.
    #[serde(default, deserialize_with = "bounded::number::<_, 0, MAX_LEAVE_SECONDS>")]
    pub seconds: u64,
    /// Why it must wait, in one sentence.
    #[serde(
        default,
        skip_serializing_if = "Option::is_none",
        deserialize_with = "bounded::some_truncated::<_, MAX_WHY_BYTES>"
    )]
    pub why: Option<String>,
}
