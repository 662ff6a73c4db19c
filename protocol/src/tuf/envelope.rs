//! A document with its signatures, before anything in it is trusted (TUF 4.2).

use std::collections::BTreeSet;

use serde::Deserialize;
use serde_json::Value;

use super::{Result, TufError, canonical, require_form};

/// The most signatures that one document may carry.
const MAX_SIGNATURES: usize = 256;

/// A document as received: what is signed, the bytes that the signatures cover, and who claims to have
/// signed.
#[derive(Deserialize)]
pub(super) struct Envelope {
    #[serde(deserialize_with = "canonical::strict")]
    pub(super) signed: Value,
    pub(super) signatures: Vec<Claim>,
    #[serde(skip)]
    pub(super) message: Vec<u8>,
}

/// The claim that this key signed.
#[derive(Deserialize)]
pub(super) struct Claim {
    pub(super) keyid: String,
    pub(super) sig: String,
}

impl Envelope {
    pub(super) fn parse(what: &str, bytes: &[u8]) -> Result<Self> {
        let mut envelope: Self =
            serde_json::from_slice(bytes).map_err(|why| TufError::malformed(what, why))?;
        let (claims, max) = (&envelope.signatures, MAX_SIGNATURES);
        require_form(what, claims.len() <= max, format_args!("it carries more than {max} signatures"))?;
        // 4.2: a key ID may appear only once.
        let ids: BTreeSet<_> = claims.iter().map(|claim| &claim.keyid).collect();
        require_form(what, ids.len() == claims.len(), "two signatures have the same key ID")?;
        envelope.message =
            canonical::encode(&envelope.signed).map_err(|why| TufError::malformed(what, why))?;
        Ok(envelope)
    }
}
