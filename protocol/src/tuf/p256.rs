//! ECDSA P-256, which the official TUF conformance suite signs with. No shipped program contains it.

use p256::ecdsa::signature::Verifier as _;
use p256::ecdsa::{Signature, VerifyingKey};
use p256::pkcs8::DecodePublicKey as _;

#[derive(Clone)]
pub(super) struct Key(Box<VerifyingKey>);

impl Key {
    /// Reads a key in PEM.
    pub(super) fn parse(pem: &str) -> Result<Self, String> {
        VerifyingKey::from_public_key_pem(pem).map(|key| Self(Box::new(key))).map_err(|why| why.to_string())
    }
    pub(super) fn identity(&self) -> Vec<u8> {
        self.0.to_sec1_point(true).as_bytes().to_vec()
    }
    /// Checks a signature in DER, written in hexadecimal.
    pub(super) fn signed(&self, message: &[u8], signature: &str) -> bool {
        let byte =
            |n: usize| signature.get(2 * n..2 * n + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
        let der: Option<Vec<u8>> = (0..signature.len() / 2).map(byte).collect();
        der.and_then(|der| Signature::from_der(&der).ok())
            .is_some_and(|signature| self.0.verify(message, &signature).is_ok())
    }
}
