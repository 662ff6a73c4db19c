//! What the controller hands a machine to be shown again: bearers, and the tokens of sessions. Nothing
//! about them is stored, so checking one costs no row; what they claim is held against what is known of the
//! machine.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::session::ExchangeKey;
use zeroize::Zeroizing;

use super::rows::KnownMachine;

/// How many check-ins a bearer outlives.
pub const BEARERS_KEPT: u64 = 16;
/// What every bearer of this form begins with. Those of version 0.1 and those of operators are hexadecimal.
const BEARER: &str = "mb1.";
const BEARER_CONTEXT: &[u8] = b"muster-bearer-v2\0";
const SESSION: &str = "ms1.";
const SESSION_CONTEXT: &[u8] = b"muster-session-token-v1\0";
const FLEET_CONTEXT: &[u8] = b"muster-seal-key-of-fleet-v1\0";
const PRINT_CONTEXT: &[u8] = b"muster-seal-key-print-v1\0";
/// The longest text that is looked at.
const MOST: usize = 512;

type HmacSha256 = Hmac<sha2::Sha256>;

/// A secret that the controller alone knows, and its number.
#[derive(Clone)]
pub struct SealKey {
    id: u32,
    secret: Zeroizing<[u8; 32]>,
}

impl SealKey {
    pub fn new(id: u32, secret: [u8; 32]) -> Self {
        Self { id, secret: Zeroizing::new(secret) }
    }

    /// What this key is for one fleet: another fleet that has the same file takes nothing that it sealed.
    pub fn of_fleet(self, fleet: &Sha256) -> Self {
        let secret = mac(&self, FLEET_CONTEXT, fleet.as_bytes()).finalize().into_bytes();
        Self::new(self.id, secret.into())
    }
}

/// The keys that are in use: the first one seals, all of them are accepted.
#[derive(Clone)]
pub struct Seals {
    newest: SealKey,
    earlier: Vec<SealKey>,
    exchange: ExchangeKey,
}

impl Seals {
    /// With the controller's public key for sessions.
    pub fn new(newest: SealKey, earlier: Vec<SealKey>, exchange: ExchangeKey) -> Self {
        Self { newest, earlier, exchange }
    }

    pub fn exchange(&self) -> ExchangeKey {
        self.exchange
    }

    /// The number of the key that seals.
    pub fn newest(&self) -> u32 {
        self.newest.id
    }

    /// A number that tells whether two controllers seal with the same key, and nothing else.
    pub fn print(&self) -> i32 {
        self.print_of(&self.newest)
    }

    /// Whether bearers and sessions of whoever told this number are accepted here.
    pub fn accept(&self, print: i32) -> bool {
        std::iter::once(&self.newest).chain(&self.earlier).any(|key| self.print_of(key) == print)
    }

    fn print_of(&self, key: &SealKey) -> i32 {
        let of = [&key.id.to_be_bytes()[..], self.exchange.as_bytes()].concat();
        let [a, b, c, d, ..] = <[u8; 32]>::from(mac(key, PRINT_CONTEXT, &of).finalize().into_bytes());
        i32::from_be_bytes([a, b, c, d])
    }

    /// The key of this number; the newest one where it has been forgotten. What that one seals in its place
    /// has ended by then.
    fn key(&self, id: u32) -> &SealKey {
        self.known(id).unwrap_or(&self.newest)
    }

    fn known(&self, id: u32) -> Option<&SealKey> {
        std::iter::once(&self.newest).chain(&self.earlier).find(|key| key.id == id)
    }

    /// The bearer with these claims by the key of this number; the same text each time.
    pub fn bearer(&self, key: u32, claims: &Claims) -> String {
        self.seal(BEARER, BEARER_CONTEXT, key, &claims.to_bytes())
    }

    /// What a bearer of ours claims; `None` for anything else.
    pub fn read_bearer(&self, text: &str) -> Option<Claims> {
        Claims::from_bytes(&self.open(BEARER, BEARER_CONTEXT, text)?)
    }

    /// The token of the session with these claims; the same text each time.
    pub fn session(&self, key: u32, claims: &SessionClaims) -> String {
        self.seal(SESSION, SESSION_CONTEXT, key, &claims.to_bytes())
    }

    /// What a token of ours claims; `None` for anything else.
    pub fn read_session(&self, text: &str) -> Option<SessionClaims> {
        SessionClaims::from_bytes(&self.open(SESSION, SESSION_CONTEXT, text)?)
    }

    fn seal(&self, form: &str, context: &[u8], key: u32, claims: &[u8]) -> String {
        let key = self.key(key);
        let mut bytes = [&key.id.to_be_bytes()[..], claims].concat();
        let mac = mac(key, context, &bytes).finalize().into_bytes();
        bytes.extend_from_slice(&mac);
        form.to_owned() + &URL_SAFE_NO_PAD.encode(bytes)
    }

    fn open(&self, form: &str, context: &[u8], text: &str) -> Option<Vec<u8>> {
        let text = text.strip_prefix(form).filter(|text| text.len() <= MOST)?;
        let mut bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
        let (sealed, by) = bytes.split_last_chunk::<32>()?;
        let (id, _) = sealed.split_first_chunk::<4>()?;
        let key = self.known(u32::from_be_bytes(*id))?;
        mac(key, context, sealed).verify_slice(by).ok()?;
        bytes.truncate(bytes.len() - 32);
        bytes.drain(..4);
        Some(bytes)
    }
}

impl std::fmt::Debug for Seals {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Seals({})", self.newest.id)
    }
}

fn mac(key: &SealKey, context: &[u8], bytes: &[u8]) -> HmacSha256 {
    // HMAC takes a key of any length, so this cannot fail; the fallback is never used.
    let mut mac = HmacSha256::new_from_slice(&*key.secret)
        .unwrap_or_else(|_| HmacSha256::new(&hmac::digest::Key::<HmacSha256>::default()));
    mac.update(context);
    mac.update(bytes);
    mac
}

/// What a bearer claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claims {
    pub machine: MachineName,
    /// The life of the machine that it was made for.
    pub enrolment: u64,
    /// How often the machine's bearers had been ended.
    pub counter: u64,
    /// The number of the check-in that it came with.
    pub seq: u64,
    /// Unix seconds.
    pub expires: i64,
}

impl Claims {
    fn to_bytes(&self) -> Vec<u8> {
        let Self { machine, enrolment, counter, seq, expires } = self;
        let numbers =
            [enrolment.to_be_bytes(), counter.to_be_bytes(), seq.to_be_bytes(), expires.to_be_bytes()];
        [numbers.as_flattened(), machine.as_str().as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, name) = bytes.split_first_chunk::<32>()?;
        let (numbers, _) = numbers.as_chunks::<8>();
        let [enrolment, counter, seq, expires] = numbers else { return None };
        Some(Self {
            machine: std::str::from_utf8(name).ok()?.parse().ok()?,
            enrolment: u64::from_be_bytes(*enrolment),
            counter: u64::from_be_bytes(*counter),
            seq: u64::from_be_bytes(*seq),
            expires: i64::from_be_bytes(*expires),
        })
    }

    /// Whether the machine may still use it. A check-in of which this controller has not heard yet may have
    /// brought it.
    pub fn hold(&self, known: &KnownMachine, now_s: i64) -> bool {
        !known.revoked
            && (self.enrolment, self.counter) == (known.enrolment, known.counter)
            && now_s < self.expires
            && self.seq.saturating_add(BEARERS_KEPT) > known.seq
    }
}

/// What the token of a session claims.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionClaims {
    pub machine: MachineName,
    pub enrolment: u64,
    pub counter: u64,
    /// Unix seconds.
    pub expires: i64,
    /// The key that the machine signed for it.
    pub key: ExchangeKey,
}

impl SessionClaims {
    fn to_bytes(&self) -> Vec<u8> {
        let Self { machine, enrolment, counter, expires, key } = self;
        let numbers = [enrolment.to_be_bytes(), counter.to_be_bytes(), expires.to_be_bytes()];
        [numbers.as_flattened(), key.as_bytes(), machine.as_str().as_bytes()].concat()
    }

    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (numbers, rest) = bytes.split_first_chunk::<24>()?;
        let (key, name) = rest.split_first_chunk::<32>()?;
        let (numbers, _) = numbers.as_chunks::<8>();
        let [enrolment, counter, expires] = numbers else { return None };
        Some(Self {
            machine: std::str::from_utf8(name).ok()?.parse().ok()?,
            enrolment: u64::from_be_bytes(*enrolment),
            counter: u64::from_be_bytes(*counter),
            expires: i64::from_be_bytes(*expires),
            key: ExchangeKey::from_bytes(*key),
        })
    }

    /// Whether the session goes on.
    pub fn hold(&self, known: &KnownMachine, now_s: i64) -> bool {
        !known.revoked
            && (self.enrolment, self.counter) == (known.enrolment, known.counter)
            && now_s < self.expires
    }
}

#[cfg(test)]
mod tests;
