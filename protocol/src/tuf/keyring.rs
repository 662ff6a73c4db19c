//! Who may sign for a role, and whether enough of them did (TUF 4.2, 5.4.2).

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

use super::TufError;
use super::metadata::Envelope;
use crate::ids::from_hex;
use crate::keys::{PublicKey, Signature};

/// The most keys that one document may name.
pub(super) const MAX_KEYS: usize = 256;

/// A key as the metadata writes it. Fields that are not known here still count for the signature over the document.
#[derive(Deserialize)]
pub(super) struct RawKey {
    keytype: String,
    scheme: String,
    keyval: RawKeyVal,
}
#[derive(Deserialize)]
struct RawKeyVal {
    public: String,
}

/// A role's key ids and threshold as the metadata writes them.
#[derive(Deserialize)]
pub(super) struct RawRole {
    keyids: Vec<String>,
    threshold: u32,
}

#[derive(Clone)]
enum Key {
    Ed25519(PublicKey),
    #[cfg(feature = "conformance")]
    P256(Box<p256::ecdsa::VerifyingKey>),
}

impl Key {
    /// A key of a kind that is not served here is no error: others may sign with it, it only counts for nobody.
    fn parse(what: &str, raw: &RawKey) -> Result<Option<Self>, TufError> {
        let public = &raw.keyval.public;
        match (raw.keytype.as_str(), raw.scheme.as_str()) {
            ("ed25519", "ed25519") => match public.parse() {
                Ok(key) => Ok(Some(Self::Ed25519(key))),
                Err(why) => Err(TufError::malformed(what, why)),
            },
            #[cfg(feature = "conformance")]
            ("ecdsa" | "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp256") => {
                use p256::pkcs8::DecodePublicKey as _;
                match p256::ecdsa::VerifyingKey::from_public_key_pem(public) {
                    Ok(key) => Ok(Some(Self::P256(Box::new(key)))),
                    Err(why) => Err(TufError::malformed(what, why)),
                }
            }
            _ => Ok(None),
        }
    }

    /// What makes two keys the same, whatever ids they go by.
    fn identity(&self) -> Vec<u8> {
        match self {
            Self::Ed25519(key) => key.as_bytes().to_vec(),
            #[cfg(feature = "conformance")]
            Self::P256(key) => key.to_sec1_point(true).as_bytes().to_vec(),
        }
    }

    fn signed(&self, message: &[u8], signature: &str) -> bool {
        match self {
            Self::Ed25519(key) => from_hex::<64>(signature)
                .is_some_and(|bytes| key.verify_raw(message, &Signature::from_bytes(bytes)).is_ok()),
            #[cfg(feature = "conformance")]
            Self::P256(key) => {
                use p256::ecdsa::signature::Verifier as _;
                let bytes: Option<Vec<u8>> = (0..signature.len() / 2)
                    .map(|n| {
                        signature.get(2 * n..2 * n + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok())
                    })
                    .collect();
                bytes
                    .and_then(|der| p256::ecdsa::Signature::from_der(&der).ok())
                    .is_some_and(|signature| key.verify(message, &signature).is_ok())
            }
        }
    }
}

/// The keys of one document, by key id.
pub(super) struct KeyRing(BTreeMap<String, Option<Key>>);

impl KeyRing {
    pub(super) fn parse(what: &str, raw: &BTreeMap<String, RawKey>) -> Result<Self, TufError> {
        if raw.len() > MAX_KEYS {
            return Err(TufError::malformed(what, format!("it names more than {MAX_KEYS} keys")));
        }
        let keys = raw.iter().map(|(id, key)| Ok((id.clone(), Key::parse(what, key)?)));
        Ok(Self(keys.collect::<Result<_, TufError>>()?))
    }

    /// Who may sign for this role. A threshold above the number of keys is sound, and never reached.
    pub(super) fn authority(&self, what: &str, role: &RawRole) -> Result<Authority, TufError> {
        if role.threshold == 0 {
            return Err(TufError::malformed(what, "it has a role with threshold 0, which anybody reaches"));
        }
        if role.keyids.len() > MAX_KEYS {
            return Err(TufError::malformed(what, format!("it has a role with more than {MAX_KEYS} keys")));
        }
        let known = role.keyids.iter().filter_map(|id| Some((id.clone(), self.0.get(id)?.clone()?)));
        Ok(Authority { keys: known.collect(), threshold: role.threshold })
    }
}

/// Who may sign for one role, and how many of them must.
#[derive(Clone)]
pub(super) struct Authority {
    keys: BTreeMap<String, Key>,
    pub(super) threshold: u32,
}

impl Authority {
    /// Whether a threshold of distinct public keys signed; one key under two ids counts once.
    pub(super) fn verify(&self, what: &str, envelope: &Envelope) -> Result<(), TufError> {
        let mut good = BTreeSet::new();
        for (id, signature) in &envelope.signatures {
            if let Some(key) = self.keys.get(id)
                && key.signed(&envelope.message, signature)
            {
                good.insert(key.identity());
            }
        }
        if good.len() >= self.threshold as usize {
            Ok(())
        } else {
            let (what, found) = (what.to_owned(), good.len());
            Err(TufError::Signatures { what, found, threshold: self.threshold })
        }
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
