//! Ed25519 keys, their files and their signatures.
//!
//! A key file is PKCS#8 in PEM, as `openssl genpkey -algorithm ed25519` writes it; with a passphrase it is
//! the encrypted form (RFC 5958 with PBES2 and scrypt, RFC 7914), which OpenSSL reads too. An operator's key may
//! be in a security key instead ([`SECURITY_KEY`]), which signs more than what it is given.

mod context;
mod error;
mod public;
mod secret;
mod signature;

pub use context::Context;
pub use error::KeyError;
pub use public::{APPLICATION, Kind, PublicKey, SECURITY_KEY};
#[cfg(feature = "passphrase")]
pub use secret::encrypt_pkcs8;
pub use secret::{SecretKey, is_encrypted};
pub use signature::{Signature, Touch};

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
