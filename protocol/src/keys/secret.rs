//! Private keys in memory and in files.

use std::fmt;

use ed25519_dalek::Signer as _;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes};
use zeroize::Zeroizing;

use super::context::Context;
use super::error::KeyError;
use super::public::PublicKey;
use super::signature::Signature;
use crate::random;

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
        PublicKey::plain(self.0.verifying_key())
    }
    /// Signs `body` in `context`.
    pub fn sign(&self, context: Context, body: &[u8]) -> Signature {
        self.sign_raw(&context.message(body))
    }
    /// Signs exactly these bytes, as TUF requires.
    pub fn sign_raw(&self, message: &[u8]) -> Signature {
        Signature::from_bytes(self.0.sign(message).to_bytes())
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
    use crate::ids::to_hex;

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
    fn a_printed_key_tells_nothing_secret() {
        let key = SecretKey::generate().unwrap();
        let secret = to_hex(key.0.as_bytes());
        assert!(!format!("{key:?}").contains(&secret[..16]));
    }
}
