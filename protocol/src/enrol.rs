//! Enrolment: a one-time token, and the request that proves its sender holds it without revealing it.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq as _;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::ids::{Generation, MachineName, Sha256};
use crate::keys::{Context, KeyError, PublicKey, SecretKey, Signature};
use crate::machine::{Class, System};
use crate::random::{self, RandomError};
use crate::witness::Witness;

/// The largest enrolment request, in bytes.
pub const MAX_ENROL_BYTES: usize = 16 * 1024;
/// In front of the JSON of [`Token`] itself, as 0.1 wrote it; with a certificate it is too long for a line
/// of some terminals.
const WHOLE: &str = "muster1.";
/// In front of [`Short`].
const PREFIX: &str = "muster2.";
/// In front of the hash of a certificate in [`Token::tls_ca`].
const HASH: &str = "sha256:";

/// Why a token or an enrolment request is refused.
#[derive(Debug, thiserror::Error)]
pub enum EnrolError {
    /// The text is not a token, or not all of it.
    #[error("this is not a Muster token: it must begin with '{PREFIX}' or '{WHOLE}' and be copied whole")]
    NotAToken,
    /// The request was not made with the token it names.
    #[error("the token's code does not fit the request: it is another machine's token, or it was changed")]
    BadCode,
    /// The request is not signed by the key it brings.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No secret could be made.
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// What an operator hands to a new machine, as one line of text. Valid once and for one machine.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Token {
    /// The controller, `https://…` (or `http://` on loopback).
    pub url: String,
    /// The machine that may enrol with it.
    pub machine: MachineName,
    /// The class it must be of.
    pub class: Class,
    /// SHA-256 of `1.root.json`: the fleet's name.
    pub fleet: Sha256,
    /// SHA-256 of the root metadata that the machine must get: no trust on first use.
    pub root: Sha256,
    /// The version of that root.
    pub root_version: u64,
    /// The lowest generation to accept.
    pub lowest_generation: Generation,
    /// When it can no longer be used, in Unix seconds.
    pub expires: i64,
    /// What the machine proves to hold.
    pub secret: Secret,
    /// The only certificate authority that may vouch for the controller: its DER in base64, or `sha256:`
    /// and the hash of its DER where the controller sends the certificate in its chain. `None`: the public
    /// authorities.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<String>,
}

/// The certificate authority that an enrolling machine accepts the controller by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pin {
    /// DER in base64.
    Certificate(String),
    /// SHA-256 of the DER of a certificate in the controller's chain.
    Hash(Sha256),
}

/// A token as it is copied: short names, and hashes in base64, so that it stays far below the 1,024 bytes
/// that some terminals accept in a line.
#[derive(Serialize, Deserialize)]
struct Short {
    u: String,
    m: MachineName,
    c: Class,
    f: Bytes,
    /// `None` where the root is the first one, whose hash is the fleet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    r: Option<Bytes>,
    v: u64,
    g: Generation,
    e: i64,
    s: Secret32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    h: Option<Bytes>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    t: Option<String>,
}

/// 32 bytes in base64.
#[derive(Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Bytes(Sha256);
impl TryFrom<String> for Bytes {
    type Error = EnrolError;
    fn try_from(text: String) -> Result<Self, EnrolError> {
        bytes_of(&text).map(|bytes| Self(Sha256::from_bytes(bytes)))
    }
}
impl From<Bytes> for String {
    fn from(bytes: Bytes) -> String {
        URL_SAFE_NO_PAD.encode(bytes.0.as_bytes())
    }
}

#[derive(Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
struct Secret32(Secret);
impl TryFrom<String> for Secret32 {
    type Error = EnrolError;
    fn try_from(text: String) -> Result<Self, EnrolError> {
        bytes_of(&text).map(|bytes| Self(Secret(bytes)))
    }
}
impl From<Secret32> for String {
    fn from(secret: Secret32) -> String {
        URL_SAFE_NO_PAD.encode(secret.0.0)
    }
}
impl Clone for Secret32 {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}
impl Clone for Bytes {
    fn clone(&self) -> Self {
        Self(self.0)
    }
}

fn bytes_of(text: &str) -> Result<[u8; 32], EnrolError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| EnrolError::NotAToken)?;
    bytes.try_into().map_err(|_| EnrolError::NotAToken)
}

/// The token's 32 random bytes. They never travel to the controller in any form but through HMAC.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Secret([u8; 32]);

impl Secret {
    /// A new secret from the system's random source.
    pub fn generate() -> Result<Self, RandomError> {
        Ok(Self(random::bytes()?))
    }
    /// What the controller stores to check an enrolment with.
    pub fn check_key(&self) -> Sha256 {
        mac(&self.0, b"muster-enrolment-key-v1", &[])
    }
    /// What the operator keeps and the machine derives, so that the one believes the other's age key.
    pub fn witness(&self) -> Witness {
        Witness::new(*mac(&self.0, b"muster-witness-v1", &[]).as_bytes())
    }
    /// The public name of the token.
    pub fn token_id(&self) -> Sha256 {
        mac(&self.0, b"muster-token-id-v1", &[])
    }
}
impl TryFrom<String> for Secret {
    type Error = crate::ids::IdError;
    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse::<Sha256>().map(|bytes| Self(*bytes.as_bytes()))
    }
}
impl From<Secret> for String {
    fn from(secret: Secret) -> String {
        crate::ids::to_hex(&secret.0)
    }
}
impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Token for {}", self.machine)
    }
}

impl Token {
    /// The one line that is copied to the machine.
    pub fn encode(&self) -> Result<String, serde_json::Error> {
        let (h, t) = match self.pin() {
            Some(Pin::Hash(hash)) => (Some(Bytes(hash)), None),
            Some(Pin::Certificate(der)) => (None, Some(der)),
            None => (None, None),
        };
        let short = Short {
            u: self.url.clone(),
            m: self.machine.clone(),
            c: self.class,
            f: Bytes(self.fleet),
            r: (self.root != self.fleet).then_some(Bytes(self.root)),
            v: self.root_version,
            g: self.lowest_generation,
            e: self.expires,
            s: Secret32(self.secret.clone()),
            h,
            t,
        };
        Ok(format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(&short)?)))
    }

    /// Reads what [`Token::encode`] writes, and what 0.1 wrote.
    pub fn decode(text: &str) -> Result<Self, EnrolError> {
        let text = text.trim();
        let json = |body: &str| URL_SAFE_NO_PAD.decode(body).map_err(|_| EnrolError::NotAToken);
        if let Some(body) = text.strip_prefix(WHOLE) {
            return serde_json::from_slice(&json(body)?).map_err(|_| EnrolError::NotAToken);
        }
        let body = text.strip_prefix(PREFIX).ok_or(EnrolError::NotAToken)?;
        let short: Short = serde_json::from_slice(&json(body)?).map_err(|_| EnrolError::NotAToken)?;
        Ok(Self {
            url: short.u,
            machine: short.m,
            class: short.c,
            fleet: short.f.0,
            root: short.r.map_or(short.f.0, |root| root.0),
            root_version: short.v,
            lowest_generation: short.g,
            expires: short.e,
            secret: short.s.0,
            tls_ca: short.h.map(|hash| pinned(&hash.0)).or(short.t),
        })
    }

    /// The certificate authority that the token pins; `None` for the public ones.
    pub fn pin(&self) -> Option<Pin> {
        let text = self.tls_ca.as_ref()?;
        let hash = text.strip_prefix(HASH).and_then(|hash| hash.parse().ok());
        Some(hash.map_or_else(|| Pin::Certificate(text.clone()), Pin::Hash))
    }
}

/// What [`Token::tls_ca`] says of a certificate that the controller sends.
pub fn pinned(hash: &Sha256) -> String {
    format!("{HASH}{hash}")
}

fn mac(key: &[u8; 32], label: &[u8], parts: &[&[u8]]) -> Sha256 {
    // HMAC takes a key of any length, so this cannot fail; the fallback is never used.
    let mut mac =
        Hmac::<sha2::Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()));
    mac.update(label);
    for part in parts {
        mac.update(&(part.len() as u64).to_be_bytes());
        mac.update(part);
    }
    Sha256::from_bytes(mac.finalize().into_bytes().into())
}

/// The body of `POST /v1/enrol`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// [`Secret::token_id`] of the token.
    pub token: Sha256,
    /// The machine that enrols.
    pub machine: MachineName,
    /// The class it was invited as.
    pub class: Class,
    /// The Nix system it builds for.
    pub system: System,
    /// SHA-256 of the root metadata that it checked against the token.
    pub root: Sha256,
    /// The machine's own key, made on it.
    pub key: PublicKey,
    /// Its age recipient (`age1…`), made on it.
    pub age: String,
    /// The agent's version.
    pub agent: String,
    /// HMAC over all the above, with [`Secret::check_key`].
    pub code: Sha256,
    /// All the above, signed by `key`: the sender holds the key it enrols.
    pub signature: Signature,
}

/// Everything that an enrolling machine says of itself.
#[derive(Debug, Clone)]
pub struct Enrolling {
    /// The Nix system it builds for.
    pub system: System,
    /// Its age recipient, `age1…`.
    pub age: String,
    /// The agent's version.
    pub agent: String,
}

impl EnrolRequest {
    /// What the machine sends, once it has checked the root against the token.
    pub fn make(token: &Token, key: &SecretKey, machine: Enrolling) -> Self {
        let mut request = Self {
            token: token.secret.token_id(),
            machine: token.machine.clone(),
            class: token.class,
            system: machine.system,
            root: token.root,
            key: key.public(),
            age: machine.age,
            agent: machine.agent,
            code: Sha256::from_bytes([0; 32]),
            signature: Signature::from_bytes([0; 64]),
        };
        let message = request.message();
        request.code = mac(token.secret.check_key().as_bytes(), b"muster-enrolment-code-v1", &[&message]);
        request.signature = key.sign(Context::Enrolment, &message);
        request
    }

    /// Whether the sender holds the token and the key, which must be a plain one.
    pub fn verify(&self, check_key: &Sha256) -> Result<(), EnrolError> {
        let message = self.message();
        let wanted = mac(check_key.as_bytes(), b"muster-enrolment-code-v1", &[&message]);
        if !bool::from(wanted.as_bytes().ct_eq(self.code.as_bytes())) {
            return Err(EnrolError::BadCode);
        }
        self.key.require_plain()?;
        Ok(self.key.verify(Context::Enrolment, &message, &self.signature)?)
    }

    /// Every field that is authenticated, each with its length before it.
    fn message(&self) -> Vec<u8> {
        let parts: [&[u8]; 8] = [
            self.token.as_bytes(),
            self.machine.as_str().as_bytes(),
            self.class.as_str().as_bytes(),
            self.system.as_str().as_bytes(),
            self.root.as_bytes(),
            self.key.as_bytes(),
            self.age.as_bytes(),
            self.agent.as_bytes(),
        ];
        parts.iter().flat_map(|part| [&(part.len() as u64).to_be_bytes()[..], part].concat()).collect()
    }
}

/// The reply to an enrolment.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolReply {
    /// The name it is enrolled under.
    pub machine: MachineName,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::soft::Soft;
    use crate::keys::{Signer as _, sign_in};

    fn token() -> Token {
        Token {
            url: "http://127.0.0.1:8443".into(),
            machine: "stibnite".parse().unwrap(),
            class: Class::Darwin,
            fleet: Sha256::of(b"fleet"),
            root: Sha256::of(b"root"),
            root_version: 1,
            lowest_generation: Generation::FIRST,
            expires: 2_000_000_000,
            secret: Secret::generate().unwrap(),
            tls_ca: None,
        }
    }
    fn request(token: &Token) -> EnrolRequest {
        let enrolling = Enrolling {
            system: "aarch64-darwin".parse().unwrap(),
            age: "age1example".into(),
            agent: "0.1.0".into(),
        };
        EnrolRequest::make(token, &SecretKey::generate().unwrap(), enrolling)
    }

    #[test]
    fn a_token_survives_being_copied() {
        let token = token();
        let line = token.encode().unwrap();
        assert_eq!(Token::decode(&format!("  {line}\n")).unwrap(), token);
        assert!(Token::decode(&line[..line.len() - 5]).is_err());
        assert!(Token::decode("hello").is_err());
    }

    #[test]
    fn a_token_stays_short_and_those_of_0_1_are_read() {
        let mut token = token();
        token.url = "https://muster.a-rather-long-company-name.example:8443".into();
        token.root = Sha256::of(b"a later root");
        token.tls_ca = Some(pinned(&Sha256::of(b"a certificate")));
        let line = token.encode().unwrap();
        assert!(line.len() < 600, "{} characters", line.len());
        assert_eq!(Token::decode(&line).unwrap(), token);
        assert_eq!(token.pin(), Some(Pin::Hash(Sha256::of(b"a certificate"))));

        token.tls_ca = Some("MIIB".into());
        assert_eq!(token.pin(), Some(Pin::Certificate("MIIB".into())));
        assert_eq!(Token::decode(&token.encode().unwrap()).unwrap(), token);
        let old = format!("{WHOLE}{}", URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap()));
        assert_eq!(Token::decode(&old).unwrap(), token);
    }

    #[test]
    fn the_secret_never_travels() {
        let token = token();
        let sent = serde_json::to_string(&request(&token)).unwrap();
        assert!(!sent.contains(&String::from(token.secret.clone())));
        assert!(!sent.contains(&token.secret.check_key().hex()));
    }

    #[test]
    fn every_changed_field_is_noticed() {
        let token = token();
        let key = token.secret.check_key();
        let good = request(&token);
        assert!(good.verify(&key).is_ok());
        let other = SecretKey::generate().unwrap().public();
        for bad in [
            EnrolRequest { machine: "blackphos".parse().unwrap(), ..good.clone() },
            EnrolRequest { class: Class::Nixos, ..good.clone() },
            EnrolRequest { system: "x86_64-darwin".parse().unwrap(), ..good.clone() },
            EnrolRequest { root: Sha256::of(b"another"), ..good.clone() },
            EnrolRequest { age: "age1mine".into(), ..good.clone() },
            EnrolRequest { agent: "9".into(), ..good.clone() },
            EnrolRequest { key: other, ..good.clone() },
        ] {
            assert!(bad.verify(&key).is_err(), "{bad:?}");
        }
        assert!(good.verify(&Secret::generate().unwrap().check_key()).is_err());
    }

    #[test]
    fn a_security_key_enrols_no_machine() {
        let (token, security) = (token(), Soft::generate());
        let mut request = EnrolRequest { key: security.public(), ..request(&token) };
        let message = request.message();
        let check_key = token.secret.check_key();
        request.code = mac(check_key.as_bytes(), b"muster-enrolment-code-v1", &[&message]);
        request.signature = sign_in(&security, Context::Enrolment, &message).unwrap();
        assert!(security.public().verify(Context::Enrolment, &message, &request.signature).is_ok());
        let refused = request.verify(&check_key);
        assert!(matches!(refused, Err(EnrolError::Key(KeyError::NotPlain))), "{refused:?}");
    }
}
