//! Whatever signs: a key in memory, or whoever holds one.

use super::context::Context;
use super::error::KeyError;
use super::public::PublicKey;
use super::secret::SecretKey;
use super::signature::Signature;

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
