//! A security key whose private key is known, and that states whatever a test wants.

use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::Result;
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{KeyError, Kind, PublicKey, SecretKey, Signature, Signer, Touch};

pub struct SecurityKey {
    pub secret: SecretKey,
    pub application: &'static str,
    pub flags: u8,
    counter: AtomicU32,
}

impl SecurityKey {
    /// One that is touched, and signs for `ssh:`.
    pub fn new() -> Result<Self> {
        Ok(Self::of(SecretKey::generate()?))
    }
    pub fn of(secret: SecretKey) -> Self {
        Self { secret, application: "ssh:", flags: 1, counter: AtomicU32::new(0) }
    }
    /// The same key for another application.
    pub fn for_application(&self, application: &'static str) -> Self {
        Self { application, ..Self::of(self.secret.clone()) }
    }
    /// The same key, touched by nobody.
    pub fn untouched(&self) -> Self {
        Self { flags: 0, ..Self::of(self.secret.clone()) }
    }
}

impl Signer for SecurityKey {
    fn public(&self) -> PublicKey {
        // Only a weak point is refused, and no private key has one.
        let public = self.secret.public();
        PublicKey::of(Kind::Security, public.as_bytes()).unwrap_or(public)
    }
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError> {
        let counter = self.counter.fetch_add(1, Ordering::Relaxed);
        let [application, message] = [self.application.as_bytes(), message].map(Sha256::of);
        let stated =
            [&application.as_bytes()[..], &[self.flags], &counter.to_be_bytes(), message.as_bytes()].concat();
        let touch = Touch { flags: self.flags, counter };
        Ok(Signature::of_security_key(*self.secret.sign_raw(&stated).as_bytes(), touch))
    }
}

/// A signer whose signatures are bent, or that signs under another's name.
pub struct Posing<'a> {
    pub by: &'a dyn Signer,
    pub named: PublicKey,
    pub bend: fn(Signature) -> Signature,
}

impl Signer for Posing<'_> {
    fn public(&self) -> PublicKey {
        self.named
    }
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError> {
        self.by.sign_raw(message).map(self.bend)
    }
}

/// The same signature with another counter.
pub fn counted_on(signature: Signature) -> Signature {
    match signature.touch() {
        Some(Touch { flags, counter }) => {
            let touch = Touch { flags, counter: counter.wrapping_add(1) };
            Signature::of_security_key(*signature.as_bytes(), touch)
        }
        None => signature,
    }
}
