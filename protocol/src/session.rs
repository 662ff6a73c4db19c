//! Sessions: a signed check-in sets one up, and routine check-ins are then proved by a MAC, which costs the
//! controller a fraction of a signature.
//!
//! The signed check-in carries a fresh X25519 key of the machine (RFC 7748). The reply carries the
//! controller's and a token, which names machine, that key and an end, and which only the controller can
//! make. Both derive the session's key from the shared secret, both public keys and the token. What travels
//! reveals none of it: whoever reads every request and reply, or writes replies, can prove no check-in.
//! A session lives in the memory of both; whatever ends it, the machine signs the same bytes instead.

use std::fmt;
use std::str::FromStr;

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use x25519_dalek::{PublicKey as Point, StaticSecret};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::bounded;
use crate::ids::{Sha256, from_hex, to_hex};
use crate::random::{self, RandomError};

/// The longest that a session lasts, in seconds.
pub const SESSION_SECONDS: u64 = 3600;
/// The longest token of a session, in bytes.
pub const MAX_TOKEN_BYTES: usize = 256;

const KEY_CONTEXT: &[u8] = b"muster-session-key-v1\0";
const PROOF_CONTEXT: &[u8] = b"muster-session-proof-v1\0";

/// A public X25519 key, written as 64 hexadecimal digits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ExchangeKey([u8; 32]);

impl ExchangeKey {
    /// Any 32 bytes are a key; what a bad one leads to is refused when a session's key is derived.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }
    /// The 32 bytes of the key.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}
impl TryFrom<String> for ExchangeKey {
    type Error = &'static str;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        from_hex::<32>(&text).map(Self).ok_or("this is not an X25519 key of 64 hexadecimal digits")
    }
}
impl From<ExchangeKey> for String {
    fn from(key: ExchangeKey) -> String {
        to_hex(&key.0)
    }
}

/// A private X25519 key: the controller's lasting one, or the one that a machine makes for one session.
#[derive(Clone)]
pub struct ExchangeSecret(StaticSecret);

impl ExchangeSecret {
    /// A new key from the system's random source.
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self::from_bytes(*Zeroizing::new(random::bytes::<32>()?)))
    }
    /// Any 32 bytes are a key.
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(StaticSecret::from(bytes))
    }
    /// For the file that keeps it.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }
    /// The public half.
    pub fn public(&self) -> ExchangeKey {
        ExchangeKey(Point::from(&self.0).to_bytes())
    }

    /// The controller's side of the key of the session that `token` names, with the machine's key. `None`
    /// for a key that would make the secret known to anybody.
    pub fn of_machine(&self, machine: &ExchangeKey, token: &str) -> Option<SessionKey> {
        self.derive(machine, &self.public(), machine, token)
    }

    /// The machine's side: of what the controller offered in its reply to this key.
    pub fn accept(&self, offer: &SessionOffer) -> Option<Session> {
        let key = self.derive(&offer.key, &offer.key, &self.public(), &offer.token)?;
        Some(Session { token: offer.token.clone(), key })
    }

    fn derive(
        &self,
        other: &ExchangeKey,
        controller: &ExchangeKey,
        machine: &ExchangeKey,
        token: &str,
    ) -> Option<SessionKey> {
        let shared = self.0.diffie_hellman(&Point::from(other.0));
        if !shared.was_contributory() {
            return None;
        }
        let mut mac = keyed(shared.as_bytes());
        for part in [KEY_CONTEXT, &controller.0, &machine.0, token.as_bytes()] {
            mac.update(part);
        }
        Some(SessionKey(mac.finalize().into_bytes().into()))
    }
}
impl fmt::Debug for ExchangeSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ExchangeSecret")
    }
}

fn keyed(key: &[u8; 32]) -> Hmac<sha2::Sha256> {
    // HMAC takes a key of any length, so this cannot fail; the fallback is never used.
    Hmac::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()))
}

/// What the reply to a signed check-in offers.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionOffer {
    /// The controller's key.
    pub key: ExchangeKey,
    /// Shown with each check-in of the session.
    #[serde(deserialize_with = "bounded::text::<_, MAX_TOKEN_BYTES>")]
    pub token: String,
    /// How long the session lasts, in seconds from now.
    #[serde(deserialize_with = "bounded::number::<_, 60, SESSION_SECONDS>")]
    pub expires_in: u64,
}

/// The key that proves the check-ins of one session.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct SessionKey([u8; 32]);

impl SessionKey {
    fn mac(&self, path: &str, body: &Sha256) -> [u8; 32] {
        let mut mac = keyed(&self.0);
        for part in [PROOF_CONTEXT, path.as_bytes(), b"\0", body.as_bytes()] {
            mac.update(part);
        }
        mac.finalize().into_bytes().into()
    }

    /// Whether whoever holds this key sends that body to `path`. The body itself is to be held against the
    /// proof's hash.
    pub fn verifies(&self, path: &str, proof: &SessionProof) -> bool {
        bool::from(self.mac(path, &proof.body).ct_eq(&proof.mac))
    }
}
impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SessionKey")
    }
}

/// A session, as the machine holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Session {
    token: String,
    key: SessionKey,
}

impl Session {
    /// The proof that this body was sent to `path` in this session.
    pub fn prove(&self, path: &str, body: &[u8]) -> SessionProof {
        let body = Sha256::of(body);
        SessionProof { token: self.token.clone(), body, mac: self.key.mac(path, &body) }
    }
}

/// `TOKEN HASH MAC`, as the header [`crate::api::MACHINE_SESSION`] carries it in place of a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionProof {
    /// The session.
    pub token: String,
    /// SHA-256 of the body.
    pub body: Sha256,
    mac: [u8; 32],
}

impl fmt::Display for SessionProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.token, self.body, to_hex(&self.mac))
    }
}

impl FromStr for SessionProof {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut words = text.split(' ');
        let (Some(token), Some(body), Some(mac), None) =
            (words.next(), words.next(), words.next(), words.next())
        else {
            return Err("a session's proof is a token, a hash and a MAC");
        };
        if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
            return Err("its first word is not a session's token");
        }
        Ok(Self {
            token: token.to_owned(),
            body: body.parse().map_err(|_| "its second word is not a SHA-256")?,
            mac: from_hex(mac).ok_or("its third word is not a MAC")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/v1/checkin";

    fn offer(controller: &ExchangeSecret) -> SessionOffer {
        SessionOffer { key: controller.public(), token: "ms1.abc".into(), expires_in: 3600 }
    }

    #[test]
    fn what_the_machine_proves_the_controller_verifies_and_only_that() {
        let [controller, machine, reader] = [(); 3].map(|()| ExchangeSecret::generate().unwrap());
        let session = machine.accept(&offer(&controller)).unwrap();
        let key = controller.of_machine(&machine.public(), "ms1.abc").unwrap();
        let proof = session.prove(PATH, b"body");
        assert!(key.verifies(PATH, &proof));
        assert!(!key.verifies("/v1/reports", &proof), "another path");
        assert!(!key.verifies(PATH, &SessionProof { body: Sha256::of(b"other"), ..proof.clone() }));
        let again: SessionProof = proof.to_string().parse().unwrap();
        assert_eq!(again, proof);
        let other = controller.of_machine(&machine.public(), "ms1.other").unwrap();
        assert!(!other.verifies(PATH, &proof), "another token");
        // Whoever reads all that travels has both public keys, the token and the proofs.
        let theirs = reader.of_machine(&machine.public(), "ms1.abc").unwrap();
        assert!(!theirs.verifies(PATH, &proof));
        let theirs = reader.accept(&offer(&controller)).unwrap();
        assert!(!key.verifies(PATH, &theirs.prove(PATH, b"body")));
        // Whoever answers in the controller's place gets proofs that the controller does not take.
        let theirs = machine.accept(&offer(&reader)).unwrap();
        assert!(!key.verifies(PATH, &theirs.prove(PATH, b"body")));
    }

    #[test]
    fn a_key_that_gives_the_secret_away_makes_no_session() {
        let secret = ExchangeSecret::generate().unwrap();
        for bytes in [[0; 32], {
            let mut one = [0; 32];
            one[0] = 1;
            one
        }] {
            let weak = ExchangeKey::from_bytes(bytes);
            assert!(secret.of_machine(&weak, "t").is_none());
            let offer = SessionOffer { key: weak, token: "t".into(), expires_in: 60 };
            assert!(secret.accept(&offer).is_none());
        }
    }

    #[test]
    fn what_is_no_proof_is_refused_with_its_reason() {
        let hash = "0".repeat(64);
        let long = "x".repeat(MAX_TOKEN_BYTES + 1);
        for bad in [
            String::new(),
            "token".into(),
            format!("token {hash}"),
            format!("token {hash} {hash} more"),
            format!("token {hash} 00"),
            format!("token 00 {hash}"),
            format!(" {hash} {hash}"),
            format!("{long} {hash} {hash}"),
        ] {
            assert!(bad.parse::<SessionProof>().is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_are_not_printed() {
        let secret = ExchangeSecret::generate().unwrap();
        let session = secret.accept(&offer(&secret)).unwrap();
        assert!(format!("{session:?} {secret:?}").contains("SessionKey"));
        let kept = ExchangeSecret::from_bytes(*secret.to_bytes());
        assert_eq!(kept.public(), secret.public());
    }
}
