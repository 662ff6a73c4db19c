//! Ed25519 keys, their files and their signatures.
//!
//! A key file is PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` writes it; with a passphrase it is
//! the encrypted form (RFC 5958 with PBES2 and scrypt, RFC 7914), which OpenSSL reads too.

use std::fmt;
use std::str::FromStr;

use ed25519_dalek::Signer as _;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::ids::{from_hex, to_hex};
use crate::random::{self, RandomError};

/// Why a key or a signature is refused.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// Not 32 bytes in hexadecimal, or not a point of the curve.
    #[error("this is not an ed25519 public key of 64 hexadecimal digits")]
    NotAPublicKey,
    /// A point of small order: a signature can be made without the private key.
    #[error("this public key is weak: anybody can forge its signatures")]
    Weak,
    /// Not 64 bytes in hexadecimal.
    #[error("this is not a signature of 128 hexadecimal digits")]
    NotASignature,
    /// The signature is not this key's over this message and context.
    #[error("the signature does not match the key and the message")]
    BadSignature,
    /// Not PKCS#8 in PEM, or not of an ed25519 key.
    #[error("this is not a private key file (PKCS#8 in PEM, beginning with -----BEGIN)")]
    NotAPrivateKey,
    /// The file has a passphrase and none was given.
    #[error("this private key file is encrypted: give its passphrase")]
    PassphraseNeeded,
    /// The passphrase is another one, or the file is damaged.
    #[error("the passphrase does not open this private key file")]
    WrongPassphrase,
    /// The file's key derivation costs more than any that OpenSSL or Muster writes.
    #[error(
        "opening this private key file would take more memory or time than any honest one: have it made again"
    )]
    Costly,
    /// Encoding to PKCS#8 failed.
    #[error("the private key cannot be written: {0}")]
    Encode(String),
    /// Whoever holds the key did not sign; their message.
    #[error("{0}")]
    Signer(String),
    /// No key could be made.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// What a signature is for. The context is signed in front of the message, so that no signature serves a
/// second purpose. TUF metadata is signed without one, as its specification requires; it always begins with
/// `{`, and no context does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// A machine's [`crate::enrol::EnrolRequest`].
    Enrolment,
    /// A machine's [`crate::checkin::CheckIn`].
    CheckIn,
    /// A machine's [`crate::report::Batch`].
    Reports,
    /// An operator's HTTP request ([`crate::operator::RequestSignature`]).
    OperatorRequest,
    /// A check-in, signed a second time by the key that replaces the machine's.
    KeyRotation,
    /// What an operator asks of one machine ([`crate::request`]).
    MachineRequest,
    /// What a machine sends before a body ([`crate::announce`]).
    Announcement,
    /// That another key may read on an operator's behalf ([`crate::signin`]).
    SignIn,
    /// An HTTP request signed by such a key.
    SessionRequest,
    /// What a machine was shown of the audit log ([`crate::audit::ShownLog`]).
    ShownLog,
    /// What a machine says about its part of a rollout ([`crate::plan::Claim`]).
    Attestation,
}

impl Context {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Enrolment => b"muster-enrolment-v1\0",
            Self::CheckIn => b"muster-check-in-v1\0",
            Self::Reports => b"muster-reports-v1\0",
            Self::OperatorRequest => b"muster-operator-request-v1\0",
            Self::KeyRotation => b"muster-key-rotation-v1\0",
            Self::MachineRequest => b"muster-machine-request-v1\0",
            Self::Announcement => b"muster-announcement-v1\0",
            Self::SignIn => b"muster-sign-in-v1\0",
            Self::SessionRequest => b"muster-session-request-v1\0",
            Self::ShownLog => b"muster-shown-log-v1\0",
            Self::Attestation => b"muster-attestation-v1\0",
        }
    }
    fn message(self, body: &[u8]) -> Vec<u8> {
        [self.prefix(), body].concat()
    }
}

/// An ed25519 public key that is not weak, written as 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey(ed25519_dalek::VerifyingKey);

impl PublicKey {
    /// Refuses bytes that are not a point of the curve, and weak keys.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = ed25519_dalek::VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::NotAPublicKey)?;
        if key.is_weak() { Err(KeyError::Weak) } else { Ok(Self(key)) }
    }
    /// The 32 bytes of the key (RFC 8032, 5.1.2).
    pub fn as_bytes(&self) -> &[u8; 32] {
        self.0.as_bytes()
    }
    /// 64 lower-case hexadecimal digits.
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
    /// (`verify_strict`).
    pub fn verify_raw(&self, message: &[u8], signature: &Signature) -> Result<(), KeyError> {
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        self.0.verify_strict(message, &signature).map_err(|_| KeyError::BadSignature)
    }
}
impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        Self::from_bytes(&from_hex::<32>(text).ok_or(KeyError::NotAPublicKey)?)
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
        key.hex()
    }
}
impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}
impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// An ed25519 signature, written as 128 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signature([u8; 64]);

impl Signature {
    /// A signature that was read elsewhere; it is checked when it is used.
    pub fn from_bytes(bytes: [u8; 64]) -> Self {
        Self(bytes)
    }
    /// The 64 bytes of the signature (RFC 8032, 5.1.6).
    pub fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
    /// 128 lower-case hexadecimal digits.
    pub fn hex(&self) -> String {
        to_hex(&self.0)
    }
}
impl FromStr for Signature {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        from_hex::<64>(text).map(Self).ok_or(KeyError::NotASignature)
    }
}
impl TryFrom<String> for Signature {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}
impl From<Signature> for String {
    fn from(signature: Signature) -> String {
        signature.hex()
    }
}
impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

/// An ed25519 private key. Wiped from memory when dropped; never printed.
#[derive(Clone)]
pub struct SecretKey(ed25519_dalek::SigningKey);

impl SecretKey {
    /// A new key from the system's random source.
    pub fn generate() -> Result<Self, KeyError> {
        let seed = Zeroizing::new(random::bytes::<32>()?);
        Ok(Self(ed25519_dalek::SigningKey::from_bytes(&seed)))
    }
    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }
    /// Signs `body` in `context`.
    pub fn sign(&self, context: Context, body: &[u8]) -> Signature {
        self.sign_raw(&context.message(body))
    }
    /// Signs exactly these bytes, as TUF requires.
    pub fn sign_raw(&self, message: &[u8]) -> Signature {
        Signature(self.0.sign(message).to_bytes())
    }
    /// Without the public key, which OpenSSL does not accept inside a private one (RFC 5958, version 2).
    fn pkcs8(&self) -> KeypairBytes {
        KeypairBytes { secret_key: self.0.to_bytes(), public_key: None }
    }
    /// The text of a key file without a passphrase.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, KeyError> {
        self.pkcs8().to_pkcs8_pem(LineEnding::LF).map_err(|error| KeyError::Encode(error.to_string()))
    }
    /// Reads a key file that has no passphrase.
    pub fn from_pem(text: &str) -> Result<Self, KeyError> {
        if is_encrypted(text) {
            return Err(KeyError::PassphraseNeeded);
        }
        ed25519_dalek::SigningKey::from_pkcs8_pem(text).map(Self).map_err(|_| KeyError::NotAPrivateKey)
    }
    /// The text of a key file that only `passphrase` opens.
    #[cfg(feature = "passphrase")]
    pub fn to_encrypted_pem(&self, passphrase: &str) -> Result<Zeroizing<String>, KeyError> {
        let plain = self.pkcs8().to_pkcs8_der().map_err(|error| KeyError::Encode(error.to_string()))?;
        encrypt_pkcs8(plain.as_bytes(), passphrase)
    }
    /// Reads a key file, with a passphrase or without.
    #[cfg(feature = "passphrase")]
    pub fn from_encrypted_pem(text: &str, passphrase: &str) -> Result<Self, KeyError> {
        if !is_encrypted(text) {
            return Self::from_pem(text);
        }
        let (_, document) =
            pkcs8::SecretDocument::from_pem(text.trim()).map_err(|_| KeyError::NotAPrivateKey)?;
        let encrypted = pkcs8::EncryptedPrivateKeyInfoRef::try_from(document.as_bytes())
            .map_err(|_| KeyError::NotAPrivateKey)?;
        if !is_sound(&encrypted.encryption_algorithm) {
            return Err(KeyError::NotAPrivateKey);
        }
        if !is_affordable(&encrypted.encryption_algorithm) {
            return Err(KeyError::Costly);
        }
        let plain = encrypted.decrypt(passphrase).map_err(|_| KeyError::WrongPassphrase)?;
        ed25519_dalek::SigningKey::from_pkcs8_der(plain.as_bytes())
            .map(Self)
            .map_err(|_| KeyError::NotAPrivateKey)
    }
}
impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey of {}", self.public().short())
    }
}

/// Something that can sign: a key in memory, or an agent that holds one.
pub trait Signer: Send + Sync {
    /// The key that signatures verify with.
    fn public(&self) -> PublicKey;
    /// Signs exactly these bytes; fails where the holder is unreachable or declines.
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError>;
    /// Whether the key is in this process, so that several threads may sign with it at once.
    fn is_in_memory(&self) -> bool {
        false
    }
}

impl Signer for SecretKey {
    fn public(&self) -> PublicKey {
        self.public()
    }
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError> {
        Ok(self.sign_raw(message))
    }
    fn is_in_memory(&self) -> bool {
        true
    }
}

/// Signs `body` in `context` with whatever holds the key.
pub fn sign_in(signer: &dyn Signer, context: Context, body: &[u8]) -> Result<Signature, KeyError> {
    signer.sign_raw(&context.message(body))
}

/// Whether a key file needs a passphrase.
pub fn is_encrypted(pem: &str) -> bool {
    pem.trim_start().starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----")
}

/// scrypt's N is a power of two above 1 (RFC 7914, section 2). The library assumes that, and panics at 0.
#[cfg(feature = "passphrase")]
fn is_sound(scheme: &pkcs8::pkcs5::EncryptionScheme) -> bool {
    use pkcs8::pkcs5::pbes2::Kdf;
    match scheme.pbes2().map(|scheme| &scheme.kdf) {
        Some(Kdf::Scrypt(scrypt)) => scrypt.cost_parameter > 1 && scrypt.cost_parameter.is_power_of_two(),
        _ => true,
    }
}

/// Limits what deriving the key may cost: scrypt up to 64 MiB, PBKDF2 up to ten million rounds. The file
/// states the cost, so its author chooses it. OpenSSL's files and ours need 16 MiB.
#[cfg(feature = "passphrase")]
fn is_affordable(scheme: &pkcs8::pkcs5::EncryptionScheme) -> bool {
    use pkcs8::pkcs5::pbes2::Kdf;
    match scheme.pbes2().map(|scheme| &scheme.kdf) {
        Some(Kdf::Scrypt(scrypt)) => {
            let blocks = scrypt.cost_parameter.saturating_mul(scrypt.block_size.into());
            blocks <= 1 << 19 && scrypt.parallelization <= 8
        }
        Some(Kdf::Pbkdf2(pbkdf2)) => pbkdf2.iteration_count <= 10_000_000,
        _ => false,
    }
}

/// The text of an encrypted key file for any private key in PKCS#8 DER, not only ed25519.
#[cfg(feature = "passphrase")]
pub fn encrypt_pkcs8(der: &[u8], passphrase: &str) -> Result<Zeroizing<String>, KeyError> {
    let encode = |error: &dyn fmt::Display| KeyError::Encode(error.to_string());
    let info = pkcs8::PrivateKeyInfoRef::try_from(der).map_err(|error| encode(&error))?;
    let encrypted = info.encrypt(passphrase).map_err(|error| encode(&error))?;
    encrypted.to_pem("ENCRYPTED PRIVATE KEY", LineEnding::LF).map_err(|error| encode(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_file() {
        let key = SecretKey::generate().unwrap();
        let again = SecretKey::from_pem(&key.to_pem().unwrap()).unwrap();
        assert_eq!(key.public(), again.public());
    }

    #[test]
    #[cfg(feature = "passphrase")]
    fn an_encrypted_key_opens_with_its_passphrase_only() {
        let key = SecretKey::generate().unwrap();
        let text = key.to_encrypted_pem("a good one").unwrap();
        assert!(text.starts_with("-----BEGIN ENCRYPTED PRIVATE KEY-----"));
        assert_eq!(SecretKey::from_encrypted_pem(&text, "a good one").unwrap().public(), key.public());
        assert!(matches!(SecretKey::from_encrypted_pem(&text, "a bad one"), Err(KeyError::WrongPassphrase)));
        assert!(matches!(SecretKey::from_pem(&text), Err(KeyError::PassphraseNeeded)));
    }

    #[test]
    fn a_signature_serves_one_context_only() {
        let key = SecretKey::generate().unwrap();
        let signature = key.sign(Context::CheckIn, b"body");
        assert!(key.public().verify(Context::CheckIn, b"body", &signature).is_ok());
        assert!(key.public().verify(Context::Reports, b"body", &signature).is_err());
        assert!(key.public().verify(Context::CheckIn, b"b0dy", &signature).is_err());
    }

    #[test]
    fn the_identity_point_is_no_key() {
        let mut identity = [0; 32];
        identity[0] = 1;
        assert!(matches!(PublicKey::from_bytes(&identity), Err(KeyError::Weak)));
    }

    #[test]
    fn a_printed_key_tells_nothing_secret() {
        let key = SecretKey::generate().unwrap();
        let secret = to_hex(key.0.as_bytes());
        assert!(!format!("{key:?}").contains(&secret[..16]));
    }
}
