//! Public keys: plain ones, and those of security keys (FIDO2).

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::context::Context;
use super::error::KeyError;
use super::signature::Signature;
use crate::ids::{Sha256, from_hex, to_hex};

/// The keytype and the scheme of a security key in TUF metadata, and how agents say that they verify it.
pub const SECURITY_KEY: &str = "sk-ssh-ed25519";
/// The application that a security key signs for: the one that `ssh-keygen` gives it unless told otherwise.
/// A security key signs for others too (a website's login), and those signatures count for nothing here.
pub const APPLICATION: &str = "ssh:";
/// In front of the digits of a security key.
const PREFIX: &str = "sk-ed25519:";
/// What follows a security key's point where it is stored as bytes.
const STORED: u8 = 1;

/// How a key signs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Exactly the bytes that it is given.
    Plain,
    /// As a FIDO2 security key: the application's hash, whether it was touched, a counter, and the hash of
    /// what it is given.
    Security,
}

/// An ed25519 public key that is not weak. A plain one is written as 64 hexadecimal digits, a security key's
/// as `sk-ed25519:` and 64.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey {
    point: ed25519_dalek::VerifyingKey,
    kind: Kind,
}

impl PublicKey {
    /// A plain key. Refuses bytes that are not a point of the curve, and weak keys.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        Self::of(Kind::Plain, bytes)
    }
    /// A key of this kind. Refuses bytes that are not a point of the curve, and weak keys.
    pub fn of(kind: Kind, bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let point = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotAPublicKey)?;
        if point.is_weak() { Err(KeyError::Weak) } else { Ok(Self { point, kind }) }
    }
    /// The key of a private one.
    pub(super) fn plain(point: ed25519_dalek::VerifyingKey) -> Self {
        Self { point, kind: Kind::Plain }
    }
    /// What [`Self::to_bytes`] gave.
    pub fn parse(bytes: &[u8]) -> Result<Self, KeyError> {
        let (point, rest) = bytes.split_first_chunk::<32>().ok_or(KeyError::NotAPublicKey)?;
        match rest {
            [] => Self::of(Kind::Plain, point),
            [STORED] => Self::of(Kind::Security, point),
            _ => Err(KeyError::NotAPublicKey),
        }
    }
    /// How it signs.
    pub fn kind(&self) -> Kind {
        self.kind
    }
    /// Whether a security key holds it.
    pub fn is_security_key(&self) -> bool {
        self.kind == Kind::Security
    }
    /// Refuses a security key, where each signature would wait for a touch.
    pub fn require_plain(&self) -> Result<(), KeyError> {
        if self.is_security_key() { Err(KeyError::NotPlain) } else { Ok(()) }
    }
    /// The 32 bytes of the key itself (RFC 8032, 5.1.2), whatever its kind. Whoever counts signers compares
    /// these: one point under two kinds is one signer.
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.point.as_bytes()
    }
    /// Whether both are one point, whatever their kinds: one signer.
    pub fn is_same_signer(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
    /// The key with its kind, as databases and hashes have it: 32 bytes, or 33 of a security key.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = self.as_bytes().to_vec();
        bytes.extend(self.is_security_key().then_some(STORED));
        bytes
    }
    /// The 64 lower-case hexadecimal digits of [`Self::as_bytes`], without the kind.
    pub fn hex(&self) -> String {
        to_hex(self.as_bytes())
    }
    /// The first twelve digits, for people to compare.
    pub fn short(&self) -> String {
        to_hex(&self.as_bytes()[..6])
    }
    /// Checks a signature made in `context`.
    pub fn verify(&self, context: Context, body: &[u8], signature: &Signature) -> Result<(), KeyError> {
        self.verify_raw(&context.message(body), signature)
    }
    /// Checks a signature over exactly these bytes, as TUF requires. Strict: no malleable signatures
    /// (`verify_strict`). A plain key's signature never counts for a security key, nor the other way round.
    pub fn verify_raw(&self, message: &[u8], signature: &Signature) -> Result<(), KeyError> {
        match (self.kind, signature.touch()) {
            (Kind::Plain, None) => self.verify_ed25519(message, signature),
            (Kind::Security, Some(touch)) => {
                let [application, message] = [APPLICATION.as_bytes(), message].map(Sha256::of);
                let stated = touch.to_bytes();
                let signed = [&application.as_bytes()[..], &stated, message.as_bytes()].concat();
                self.verify_ed25519(&signed, signature)?;
                if touch.is_present() { Ok(()) } else { Err(KeyError::Untouched) }
            }
            (Kind::Plain, Some(_)) | (Kind::Security, None) => Err(KeyError::BadSignature),
        }
    }
    fn verify_ed25519(&self, message: &[u8], signature: &Signature) -> Result<(), KeyError> {
        let signature = ed25519_dalek::Signature::from_bytes(signature.as_bytes());
        self.point.verify_strict(message, &signature).map_err(|_| KeyError::BadSignature)
    }
}
impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let (kind, digits) = match text.strip_prefix(PREFIX) {
            Some(digits) => (Kind::Security, digits),
            None => (Kind::Plain, text),
        };
        Self::of(kind, &from_hex::<32>(digits).ok_or(KeyError::NotAPublicKey)?)
    }
}
impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}
impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let prefix = if self.is_security_key() { PREFIX } else { "" };
        write!(f, "{prefix}{}", self.hex())
    }
}
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

#[cfg(test)]
mod tests {
    use super::super::secret::SecretKey;
    use super::*;

    #[test]
    fn the_identity_point_is_no_key() {
        let mut identity = [0; 32];
        identity[0] = 1;
        for kind in [Kind::Plain, Kind::Security] {
            assert!(matches!(PublicKey::of(kind, &identity), Err(KeyError::Weak)));
        }
    }

    #[test]
    fn a_key_keeps_its_kind_in_text_and_in_bytes() {
        let plain = SecretKey::generate().unwrap().public();
        let security = PublicKey::of(Kind::Security, plain.as_bytes()).unwrap();
        assert_ne!(plain, security);
        assert!(plain.is_same_signer(&security));
        assert_eq!(plain.to_string(), plain.hex());
        assert_eq!(security.to_string(), format!("sk-ed25519:{}", plain.hex()));
        for key in [plain, security] {
            assert_eq!(key.to_string().parse::<PublicKey>().unwrap(), key);
            assert_eq!(PublicKey::parse(&key.to_bytes()).unwrap(), key);
        }
        assert_eq!(plain.to_bytes(), plain.as_bytes(), "what is stored already stays as it is");
        assert!(plain.require_plain().is_ok() && security.require_plain().is_err());
        let hex = plain.hex();
        for text in [
            format!("SK-ed25519:{hex}"),
            format!("sk-ed25519:sk-ed25519:{hex}"),
            format!("sk-ed25519: {hex}"),
            format!("ed25519:{hex}"),
            "sk-ed25519:".to_owned(),
        ] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
        for bytes in [&[security.to_bytes(), vec![1]].concat()[..], &[&plain.as_bytes()[..], &[0]].concat()] {
            assert!(PublicKey::parse(bytes).is_err(), "{bytes:?}");
        }
    }
}
