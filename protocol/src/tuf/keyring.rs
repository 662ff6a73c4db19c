//! Who may sign for a role, and whether enough of them did (TUF 4.2, 5.4.2).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;
use std::sync::Arc;

use serde::Deserialize;

use super::envelope::Envelope;
use super::{Result, TufError};
use crate::keys::{PublicKey, Written};

/// The most keys that one document may name.
const MAX_KEYS: usize = 256;

/// A public key in a document. Fields unknown here still count for the signature over the document.
#[derive(Clone, Deserialize)]
#[serde(try_from = "Written")]
pub(super) enum Key {
    /// A plain one, or a security key's.
    Ed25519(PublicKey),
    #[cfg(feature = "conformance")]
    P256(super::p256::Key),
    /// A key type that is not supported here is not an error, since others may sign with it. Its signatures
    /// never count.
    Unknown,
}

impl TryFrom<Written> for Key {
    type Error = String;
    fn try_from(written: Written) -> Result<Self, String> {
        match (written.key()?, written.keytype.as_str(), written.scheme.as_str()) {
            (Some(key), ..) => Ok(Self::Ed25519(key)),
            #[cfg(feature = "conformance")]
            (None, "ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                super::p256::Key::parse(written.value()).map(Self::P256)
            }
            _ => Ok(Self::Unknown),
        }
    }
}

impl Key {
    /// The bytes of the public key if it made this signature. They tell keys apart, whatever key IDs a
    /// document gives them: one point as a plain key and as a security key is one signer.
    fn signed(&self, message: &[u8], signature: &str) -> Option<Vec<u8>> {
        match self {
            Self::Ed25519(key) => {
                let good = key.verify_raw(message, &signature.parse().ok()?).is_ok();
                good.then(|| key.as_bytes().to_vec())
            }
            #[cfg(feature = "conformance")]
            Self::P256(key) => key.signed(message, signature).then(|| key.identity()),
            Self::Unknown => None,
        }
    }
}

/// The keys of a document, by key ID.
#[derive(Clone, Deserialize)]
#[serde(try_from = "BTreeMap<String, Key>")]
pub(super) struct Keys(pub(super) Arc<BTreeMap<String, Key>>);

impl TryFrom<BTreeMap<String, Key>> for Keys {
    type Error = String;
    fn try_from(keys: BTreeMap<String, Key>) -> Result<Self, String> {
        let few = keys.len() <= MAX_KEYS;
        few.then(|| Self(keys.into())).ok_or_else(|| format!("it names more than {MAX_KEYS} keys"))
    }
}

/// Who may sign for a role, and how many of them must. A threshold of 0, which anybody reaches, is refused;
/// one above the number of keys is valid and never reached.
#[derive(Clone, Deserialize)]
pub(super) struct Holders {
    pub(super) keyids: BTreeSet<String>,
    pub(super) threshold: NonZeroU32,
}

/// Who may sign something: the keys of a document, and which of them count.
pub(super) type Authority<'a> = (&'a Keys, &'a Holders);

/// Requires signatures by a threshold of distinct public keys; a key with two key IDs counts once. Returns
/// the bytes of the keys that signed.
pub(super) fn verify(
    (keys, holders): Authority<'_>,
    what: &str,
    envelope: &Envelope,
) -> Result<BTreeSet<Vec<u8>>> {
    let claims = envelope.signatures.iter().filter(|claim| holders.keyids.contains(&claim.keyid));
    let good = claims.filter_map(|claim| keys.0.get(&claim.keyid)?.signed(&envelope.message, &claim.sig));
    let (good, threshold) = (good.collect::<BTreeSet<_>>(), holders.threshold.get());
    let (what, found) = (what.to_owned(), good.len());
    if found >= threshold as usize { Ok(good) } else { Err(TufError::Signatures { what, found, threshold }) }
}
