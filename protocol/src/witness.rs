//! Proof that a machine's age key is really its own. The controller passes the key on and is not trusted
//! with it: the operator who makes a token keeps a key derived from its secret, the machine derives the
//! same one, and the controller cannot.

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::ids::{IdError, MachineName, Sha256, to_hex};
use crate::keys::PublicKey;

/// The key shared by a machine and the operator who invited it.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Witness([u8; 32]);

impl Witness {
    pub(crate) fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// 64 hexadecimal digits, for a file that only its owner reads.
    pub fn to_text(&self) -> zeroize::Zeroizing<String> {
        zeroize::Zeroizing::new(to_hex(&self.0))
    }
    /// Reads what [`Witness::to_text`] writes.
    pub fn parse(text: &str) -> Result<Self, IdError> {
        text.trim().parse::<Sha256>().map(|bytes| Self(*bytes.as_bytes()))
    }

    /// The machine's proof that this recipient is its own.
    pub fn prove(&self, fleet: &Sha256, machine: &MachineName, recipient: &str) -> Sha256 {
        self.mac(b"muster-age-recipient-v1", fleet, machine, recipient.as_bytes())
    }

    /// The machine's claim that it signs with this key.
    pub fn claim(&self, fleet: &Sha256, machine: &MachineName, key: PublicKey) -> KeyClaim {
        let proof = self.mac(b"muster-signing-key-v1", fleet, machine, key.as_bytes());
        KeyClaim { key, proof }
    }

    /// Whether the machine itself claims this key.
    pub fn verifies_key(&self, fleet: &Sha256, machine: &MachineName, claim: &KeyClaim) -> bool {
        let wanted = self.claim(fleet, machine, claim.key).proof;
        bool::from(wanted.as_bytes().ct_eq(claim.proof.as_bytes()))
    }

    fn mac(&self, what: &[u8], fleet: &Sha256, machine: &MachineName, value: &[u8]) -> Sha256 {
        // HMAC takes a key of any length, so this cannot fail; the fallback is never used.
        let mut mac =
            Hmac::<sha2::Sha256>::new_from_slice(&self.0).unwrap_or_else(|_| Hmac::new(&Default::default()));
        mac.update(what);
        for part in [fleet.as_bytes().as_slice(), machine.as_str().as_bytes(), value] {
            mac.update(&(part.len() as u64).to_be_bytes());
            mac.update(part);
        }
        Sha256::from_bytes(mac.finalize().into_bytes().into())
    }

    /// Whether the machine itself claims this recipient; never without a proof.
    pub fn verifies(&self, fleet: &Sha256, machine: &MachineName, claim: &AgeClaim) -> bool {
        let wanted = self.prove(fleet, machine, &claim.recipient);
        claim.proof.is_some_and(|proof| bool::from(wanted.as_bytes().ct_eq(proof.as_bytes())))
    }
}
impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Witness")
    }
}

/// The age recipient that a machine states in each check-in.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgeClaim {
    /// `age1…`.
    pub recipient: String,
    /// What [`Witness::prove`] gives; `None` where the machine was enrolled by a version that had no
    /// witness.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proof: Option<Sha256>,
}

/// The key that a machine signs with, as it states it in each check-in. An operator who invited the machine
/// can tell that it comes from the machine itself, and not from the controller.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyClaim {
    /// The key.
    pub key: PublicKey,
    /// What [`Witness::claim`] gives.
    pub proof: Sha256,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::enrol::Secret;

    #[test]
    fn only_who_has_the_tokens_secret_can_claim_a_recipient() {
        let secret = Secret::generate().unwrap();
        let witness = secret.witness();
        let (fleet, machine): (Sha256, MachineName) = (Sha256::of(b"fleet"), "tin".parse().unwrap());
        let claim = |witness: &Witness, recipient: &str| AgeClaim {
            recipient: recipient.to_owned(),
            proof: Some(witness.prove(&fleet, &machine, recipient)),
        };
        assert!(witness.verifies(&fleet, &machine, &claim(&witness, "age1a")));
        // The controller's key is derived from the same secret, and is useless here.
        let controllers = Witness::new(*secret.check_key().as_bytes());
        assert!(!witness.verifies(&fleet, &machine, &claim(&controllers, "age1a")));
        let mut other = claim(&witness, "age1a");
        other.recipient = "age1b".into();
        assert!(!witness.verifies(&fleet, &machine, &other));
        assert!(!witness.verifies(&fleet, &"lead".parse().unwrap(), &claim(&witness, "age1a")));
        assert!(!witness.verifies(&Sha256::of(b"another"), &machine, &claim(&witness, "age1a")));
        other.proof = None;
        assert!(!witness.verifies(&fleet, &machine, &other));
    }

    #[test]
    fn only_who_has_the_tokens_secret_can_claim_a_signing_key() {
        let witness = Secret::generate().unwrap().witness();
        let (fleet, machine): (Sha256, MachineName) = (Sha256::of(b"fleet"), "tin".parse().unwrap());
        let [key, other] = [0, 1].map(|_| crate::keys::SecretKey::generate().unwrap().public());
        let claim = witness.claim(&fleet, &machine, key);
        assert!(witness.verifies_key(&fleet, &machine, &claim));
        assert!(!witness.verifies_key(&fleet, &machine, &KeyClaim { key: other, ..claim }));
        assert!(!witness.verifies_key(&fleet, &"lead".parse().unwrap(), &claim));
        assert!(!witness.verifies_key(&Sha256::of(b"another"), &machine, &claim));
        // A proof of one kind is none of the other.
        let recipient = witness.prove(&fleet, &machine, "age1a");
        assert!(!witness.verifies_key(&fleet, &machine, &KeyClaim { proof: recipient, ..claim }));
    }

    #[test]
    fn it_survives_a_file() {
        let witness = Secret::generate().unwrap().witness();
        assert_eq!(Witness::parse(&format!("{}\n", *witness.to_text())).unwrap(), witness);
        assert!(Witness::parse("hello").is_err());
        assert_eq!(format!("{witness:?}"), "Witness");
    }
}
