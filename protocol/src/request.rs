//! What an operator asks of one machine besides its generations. The controller only passes it on, so it is
//! signed, names its recipient, is bound to what it changes, and expires.
//!
//! One operator's signature is enough, whatever the threshold for generations: a request does not make a
//! machine run anything. The worst it can do is to replace a key by another of the same machine, or to try
//! a signed generation once more.

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::ids::{Generation, MachineName, Sha256, StorePath};
use crate::keys::{Context, KeyError, PublicKey, Signature, Signer, sign_in};
use crate::random::{self, RandomError};

/// The most requests in one reply.
pub const MAX_REQUESTS: usize = 8;
/// The longest request, in bytes.
pub const MAX_REQUEST_BYTES: usize = 2048;
/// The longest that a request may be valid, in seconds.
pub const MAX_REQUEST_SECONDS: i64 = 30 * 86_400;
/// How far a machine's clock may be behind the operator's, in seconds. A clock that is ahead takes a
/// request for expired.
const CLOCKS_APART: i64 = 86_400;

/// A request, as the operator's key signed it.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SignedRequest {
    /// The text of a [`MachineRequest`] in JSON; its bytes are signed.
    #[serde(deserialize_with = "bounded::text::<_, MAX_REQUEST_BYTES>")]
    pub request: String,
    /// The operator's key.
    pub key: PublicKey,
    /// By `key`, over the bytes of `request`, in `Context::MachineRequest`.
    pub signature: Signature,
}

/// What is asked, of whom, and until when.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineRequest {
    /// SHA-256 of `1.root.json`; another fleet's request is refused.
    pub fleet: Sha256,
    /// The machine it is for; another machine's request is refused.
    pub machine: MachineName,
    /// What to do.
    #[serde(flatten)]
    pub asked: Asked,
    /// When it was made, in Unix seconds of the operator's clock.
    pub made_at: i64,
    /// When it expires, in Unix seconds.
    pub ends: i64,
    /// Random digits: asking twice makes two requests.
    pub nonce: String,
}

/// What a machine is asked to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "asks", rename_all = "kebab-case")]
pub enum Asked {
    /// Replace this key by a new one; void once it has been replaced.
    RotateKey {
        /// The key at the time of asking.
        key: PublicKey,
    },
    /// Try this derivation again, though it failed: it leaves quarantine, and its generation is tried as if
    /// it were new.
    Retry {
        /// What failed.
        derivation: StorePath,
        /// The generation that failed, if it is to be that one.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<Generation>,
    },
    /// A request of a later version.
    #[serde(other)]
    Unknown,
}

impl Asked {
    /// A short name, for logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::RotateKey { .. } => "rotate-key",
            Self::Retry { .. } => "retry",
            Self::Unknown => "unknown",
        }
    }
}

/// Why a request is not carried out.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RequestError {
    /// The key is not an operator's by the machine's root.
    #[error("a request is not signed by an operator that this machine trusts")]
    NotAnOperator,
    /// The signature is not the key's over these bytes.
    #[error("a request's signature is not by the key that it names")]
    BadSignature,
    /// The bytes are not a request, or one that is valid for too long.
    #[error("a request is not what an operator's program writes: {0}")]
    Malformed(String),
    /// The request is for somebody else.
    #[error("a request is for {machine} of fleet {fleet}, and not for this machine")]
    Foreign {
        /// The machine it is for.
        machine: MachineName,
        /// The beginning of the fleet it is for.
        fleet: String,
    },
    /// Its time is over.
    #[error("a request has expired")]
    Ended,
    /// It is from more than a day ahead of this machine's clock.
    #[error("a request was made in the future: check this machine's clock")]
    NotYet,
}

impl RequestError {
    /// Whether only forgery or misdirection explains it. A signer who is not an operator here may be one in
    /// a newer root, or may have been one.
    pub fn is_attack(&self) -> bool {
        !matches!(self, Self::Ended | Self::NotYet | Self::NotAnOperator)
    }
}

impl MachineRequest {
    /// A request that is valid for `seconds` from `now` (Unix seconds), at most [`MAX_REQUEST_SECONDS`].
    pub fn new(
        fleet: Sha256,
        machine: MachineName,
        asked: Asked,
        now: i64,
        seconds: i64,
    ) -> Result<Self, RandomError> {
        let nonce = crate::ids::to_hex(&random::bytes::<16>()?);
        let ends = now.saturating_add(seconds.clamp(1, MAX_REQUEST_SECONDS));
        Ok(Self { fleet, machine, asked, made_at: now, ends, nonce })
    }

    /// Signs it; fails where the key's holder does not sign.
    pub fn sign(&self, signer: &dyn Signer) -> Result<SignedRequest, KeyError> {
        let request = serde_json::to_string(self).map_err(|error| KeyError::Encode(error.to_string()))?;
        let signature = sign_in(signer, Context::MachineRequest, request.as_bytes())?;
        Ok(SignedRequest { request, key: signer.public(), signature })
    }
}

impl SignedRequest {
    /// The ID under which a machine remembers that it carried it out: the hash of its bytes.
    pub fn id(&self) -> Sha256 {
        Sha256::of(self.request.as_bytes())
    }

    /// The request, if one of `operators` signed it for `machine` and it is valid at `now` (Unix seconds).
    pub fn verify(
        &self,
        fleet: &Sha256,
        machine: &MachineName,
        operators: &[PublicKey],
        now: i64,
    ) -> Result<MachineRequest, RequestError> {
        if !operators.contains(&self.key) {
            return Err(RequestError::NotAnOperator);
        }
        self.key
            .verify(Context::MachineRequest, self.request.as_bytes(), &self.signature)
            .map_err(|_| RequestError::BadSignature)?;
        let request: MachineRequest = serde_json::from_str(&self.request)
            .map_err(|error| RequestError::Malformed(error.to_string()))?;
        if request.fleet != *fleet || request.machine != *machine {
            let fleet = request.fleet.short();
            return Err(RequestError::Foreign { machine: request.machine, fleet });
        }
        let life = request.ends.saturating_sub(request.made_at);
        if !(0..=MAX_REQUEST_SECONDS).contains(&life) {
            return Err(RequestError::Malformed("it is good for too long".into()));
        }
        if now >= request.ends {
            return Err(RequestError::Ended);
        }
        if now < request.made_at.saturating_sub(CLOCKS_APART) {
            return Err(RequestError::NotYet);
        }
        Ok(request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SecretKey;

    const NOW: i64 = 1_800_000_000;

    #[test]
    fn a_request_counts_for_its_machine_by_an_operator_and_until_its_end() {
        let [operator, other] = [(); 2].map(|()| SecretKey::generate().unwrap());
        let (fleet, machine): (Sha256, MachineName) = (Sha256::of(b"fleet"), "tin".parse().unwrap());
        let asked = Asked::RotateKey { key: other.public() };
        let request = MachineRequest::new(fleet, machine.clone(), asked, NOW, 3600).unwrap();
        let signed = request.sign(&operator).unwrap();
        let trusted = [operator.public()];
        let verify = |signed: &SignedRequest, now| signed.verify(&fleet, &machine, &trusted, now);
        assert_eq!(verify(&signed, NOW), Ok(request.clone()));
        assert_eq!(verify(&signed, NOW - 3600), Ok(request.clone()), "clocks differ");
        assert_eq!(verify(&signed, NOW + 3600), Err(RequestError::Ended));
        assert_eq!(verify(&signed, NOW - 100_000), Err(RequestError::NotYet));
        assert_eq!(verify(&request.sign(&other).unwrap(), NOW), Err(RequestError::NotAnOperator));
        let bent = SignedRequest { request: signed.request.replace("tin", "zinc"), ..signed.clone() };
        assert_eq!(verify(&bent, NOW), Err(RequestError::BadSignature));
        let foreign = signed.verify(&fleet, &"zinc".parse().unwrap(), &trusted, NOW);
        assert!(foreign.is_err_and(|error| error.is_attack()));
        assert!(signed.verify(&Sha256::of(b"other"), &machine, &trusted, NOW).is_err());
        let long = MachineRequest { ends: i64::MAX, ..request.clone() }.sign(&operator).unwrap();
        assert!(matches!(verify(&long, NOW), Err(RequestError::Malformed(_))));
        let backwards =
            MachineRequest { ends: i64::MIN, made_at: i64::MAX, ..request }.sign(&operator).unwrap();
        assert!(matches!(verify(&backwards, NOW), Err(RequestError::Malformed(_))));
    }

    #[test]
    fn what_a_later_version_asks_for_is_unknown_and_no_attack() {
        let operator = SecretKey::generate().unwrap();
        let (fleet, machine): (Sha256, MachineName) = (Sha256::of(b"fleet"), "tin".parse().unwrap());
        let text = format!(
            r#"{{"fleet":"{fleet}","machine":"tin","asks":"dance","tune":3,
                "made_at":{NOW},"ends":{},"nonce":""}}"#,
            NOW + 5
        );
        let signature = operator.sign(Context::MachineRequest, text.as_bytes());
        let signed = SignedRequest { request: text, key: operator.public(), signature };
        let read = signed.verify(&fleet, &machine, &[operator.public()], NOW).unwrap();
        assert_eq!(read.asked, Asked::Unknown);
    }
}
