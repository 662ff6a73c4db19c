//! Who may sign for a role, and whether enough of them did (TUF 4.2, 5.4.2).

use std::collections::{BTreeMap, BTreeSet};
use std::num::NonZeroU32;

use serde::Deserialize;

use super::TufError;
use super::metadata::Envelope;
use crate::ids::from_hex;
use crate::keys::{PublicKey, Signature};

/// The most keys that one document, or one role of it, may name.
const MAX_KEYS: usize = 256;

/// A public key of a document. Fields of it that are not known here still count for the signature over the document.
#[derive(Clone, Deserialize)]
#[serde(try_from = "RawKey")]
pub(super) enum Key {
    Ed25519(PublicKey),
    #[cfg(feature = "conformance")]
    P256(super::p256::Key),
    /// A kind that is not served here is no error: others may sign with it. It counts for nobody.
    Unknown,
}

#[derive(Deserialize)]
struct RawKey {
    keytype: String,
    scheme: String,
    keyval: RawKeyVal,
}

#[derive(Deserialize)]
struct RawKeyVal {
    public: String,
}

impl TryFrom<RawKey> for Key {
    type Error = String;
    fn try_from(raw: RawKey) -> Result<Self, String> {
        match (raw.keytype.as_str(), raw.scheme.as_str()) {
            ("ed25519", "ed25519") => raw
                .keyval
                .public
                .parse()
                .map(Self::Ed25519)
                .map_err(|why| format!("a key of it is none: {why}")),
            #[cfg(feature = "conformance")]
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                super::p256::Key::parse(&raw.keyval.public).map(Self::P256)
            }
            _ => Ok(Self::Unknown),
        }
    }
}

impl Key {
    fn signed(&self, message: &[u8], signature: &str) -> bool {
        match self {
            Self::Ed25519(key) => from_hex::<64>(signature)
                .is_some_and(|bytes| key.verify_raw(message, &Signature::from_bytes(bytes)).is_ok()),
            #[cfg(feature = "conformance")]
            Self::P256(key) => key.signed(message, signature),
            Self::Unknown => false,
        }
    }

    /// What makes two keys the same, whatever ids they go by.
    fn identity(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.as_bytes().to_vec(),
            #[cfg(feature = "conformance")]
            Self::P256(key) => key.identity(),
            Self::Unknown => vec![],
        }
    }
}

/// A role's key ids and threshold, as the metadata writes them. A threshold of 0, which anybody reaches, is none.
#[derive(Deserialize)]
pub(super) struct RawRole {
    keyids: Vec<String>,
    threshold: NonZeroU32,
}

/// Who may sign for one role, and how many of them must.
#[derive(Clone)]
pub(super) struct Authority {
    keys: BTreeMap<String, Key>,
    pub(super) threshold: NonZeroU32,
}

impl Authority {
    /// A threshold above the number of keys is sound, and never reached.
    pub(super) fn new(keys: &BTreeMap<String, Key>, role: RawRole) -> Result<Self, String> {
        if keys.len() > MAX_KEYS || role.keyids.len() > MAX_KEYS {
            return Err(format!("it names more than {MAX_KEYS} keys"));
        }
        let known = role.keyids.into_iter().filter_map(|id| keys.get(&id).cloned().map(|key| (id, key)));
        Ok(Self { keys: known.collect(), threshold: role.threshold })
    }

    /// Whether a threshold of distinct public keys signed; one key under two ids counts once.
    pub(super) fn verify(&self, what: &str, envelope: &Envelope) -> Result<(), TufError> {
        let mut good = BTreeSet::new();
        for claim in &envelope.signatures {
            let key = self.keys.get(&claim.keyid);
            good.extend(key.filter(|key| key.signed(&envelope.message, &claim.sig)).map(Key::identity));
        }
        let threshold = self.threshold.get();
        if good.len() >= threshold as usize {
            return Ok(());
        }
        Err(TufError::Signatures { what: what.to_owned(), found: good.len(), threshold })
    }

    pub(super) fn ed25519_keys(&self) -> Vec<PublicKey> {
        let mut keys = Vec::new();
        for key in self.keys.values() {
            match key {
                Key::Ed25519(key) if !keys.contains(key) => keys.push(*key),
                _ => {}
            }
        }
        keys
    }
}
