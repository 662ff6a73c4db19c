//! A security key in memory, for tests of what it may and may not sign.

use super::error::KeyError;
use super::public::{Kind, PublicKey};
use super::secret::SecretKey;
use super::signature::{Signature, Touch};
use super::signer::Signer;
use crate::ids::Sha256;

pub struct Soft(SecretKey);

impl Soft {
    pub fn generate() -> Self {
        Self(SecretKey::generate().unwrap())
    }
}

impl Signer for Soft {
    fn public(&self) -> PublicKey {
        PublicKey::of(Kind::Security, self.0.public().as_bytes()).unwrap()
    }
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError> {
        let [application, message] = [b"ssh:".as_slice(), message].map(Sha256::of);
        let stated = [&application.as_bytes()[..], &[1, 0, 0, 0, 9], message.as_bytes()].concat();
        let touch = Touch { flags: 1, counter: 9 };
        Ok(Signature::of_security_key(*self.0.sign_raw(&stated).as_bytes(), touch))
    }
}
