//! Who signs a request: the operator's own key or, for requests that only read, a signed-in key.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use anyhow::Result;
use muster_protocol::api::ProblemCode;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{PublicKey, SecretKey, Signer};
use muster_protocol::operator::{REQUEST_WINDOW_SECONDS, Request, RequestSignature};
use muster_protocol::random;
use muster_protocol::signin::SignIn;
use reqwest::Method;

use crate::api::signed_in::{Place, SignedIn};
use crate::config::Config;
use crate::keys::signers::{KeySource, Look};
use crate::terminal::error::causes;
use crate::terminal::table;

pub enum Signing {
    Own(Arc<dyn Signer>),
    Reading(Box<Reading>),
}

/// Opens the operator's key only when needed.
pub struct Reading {
    source: KeySource,
    own: OnceLock<Arc<dyn Signer>>,
    place: Place,
    seconds: i64,
    state: Mutex<State>,
}

/// Only ever moves forward, so that no controller can make it prompt for ever.
enum State {
    Unknown,
    Kept(Arc<SignedIn>),
    /// The stored session is no longer accepted.
    Ended,
    /// Signed in now; stored once the controller has accepted it.
    New(Arc<SignedIn>, bool),
    /// No session is accepted, for example by an older controller.
    Refused,
}

/// Who signed a request.
pub enum By {
    Own(Arc<dyn Signer>),
    SignedIn(Arc<SignedIn>),
}

impl By {
    /// The request's signature, and the sign-in to send with it.
    pub fn sign(&self, request: Request<'_>) -> Result<(RequestSignature, Option<String>)> {
        let (now, nonce) = (SystemClock::new().unix_seconds(), random::bytes::<16>()?);
        Ok(match self {
            Self::Own(key) => (RequestSignature::make_with(key.as_ref(), request, now, nonce)?, None),
            Self::SignedIn(signed_in) => (
                RequestSignature::make_reading(&signed_in.key, request, now, nonce)?,
                Some(signed_in.sign_in.to_string()),
            ),
        })
    }
}

impl Signing {
    /// For requests that only read. A key that needs no prompt signs by itself; one that prompts is asked
    /// once every few hours.
    pub fn to_read(config: &Config) -> Result<Self> {
        let source = config.operator_key();
        let hours = config.file.session_hours;
        if hours == 0 {
            return Ok(Self::Own(source.open()?));
        }
        let (identity, own) = match source.look()? {
            Look::Open(key) => return Ok(Self::Own(key)),
            Look::Asks { identity, key } => (identity, key),
        };
        let place = match Place::new(config.file.fleet, identity) {
            Ok(place) => place,
            Err(error) => {
                tell!("warning: nobody can be signed in here: {}", causes(&error));
                return Ok(Self::Own(source.open()?));
            }
        };
        let own = own.map_or_else(OnceLock::new, OnceLock::from);
        Ok(Self::Reading(Box::new(Reading::new(source, own, place, i64::from(hours) * 3600))))
    }

    /// With a key that is open. A security key waits for a touch each time, so reading uses a signed-in key.
    pub fn with(config: &Config, key: Arc<dyn Signer>) -> Self {
        let hours = config.file.session_hours;
        if !key.public().is_security_key() || hours == 0 {
            return Self::Own(key);
        }
        match Place::new(config.file.fleet, Sha256::of(&key.public().to_bytes())) {
            Ok(place) => {
                let (source, own) = (KeySource::Agent(Some(key.public().to_string())), OnceLock::from(key));
                Self::Reading(Box::new(Reading::new(source, own, place, i64::from(hours) * 3600)))
            }
            Err(error) => {
                tell!("warning: nobody can be signed in here: {}", causes(&error));
                Self::Own(key)
            }
        }
    }

    /// The operator's own key.
    pub fn own(&self) -> Result<Arc<dyn Signer>> {
        match self {
            Self::Own(key) => Ok(Arc::clone(key)),
            Self::Reading(reading) => reading.own(),
        }
    }

    /// The operator's public key, which a session names as well.
    pub fn public(&self) -> Result<PublicKey> {
        Ok(match self.by(&Method::GET)? {
            By::Own(key) => key.public(),
            By::SignedIn(signed_in) => signed_in.sign_in.operator,
        })
    }

    /// Who signs the next request.
    pub fn by(&self, method: &Method) -> Result<By> {
        match self {
            Self::Reading(reading) if method == Method::GET => reading.by(),
            _ => self.own().map(By::Own),
        }
    }

    /// The controller accepted a request signed by `by`.
    pub fn taken(&self, by: &By) {
        if let (Self::Reading(reading), By::SignedIn(signed_in)) = (self, by) {
            reading.taken(signed_in);
        }
    }

    /// The controller refused a request signed by `by`. Returns whether another signature might be accepted.
    pub fn refused(&self, by: &By, code: Option<ProblemCode>) -> bool {
        match (self, by) {
            (Self::Reading(reading), By::SignedIn(signed_in))
                if is_of_signer(code, &signed_in.sign_in, SystemClock::new().unix_seconds()) =>
            {
                reading.refused(signed_in);
                true
            }
            _ => false,
        }
    }
}

/// Whether a refusal is about the signer. Refusals about the clock, the address or the fleet apply to any
/// signature.
fn is_of_signer(code: Option<ProblemCode>, sign_in: &SignIn, now: i64) -> bool {
    // The controller's clock may differ from ours by as much as it tolerates in requests, and it reports both
    // cases alike.
    let ended_there = sign_in.ends.saturating_sub(now) <= REQUEST_WINDOW_SECONDS || sign_in.begins > now;
    match code {
        // For keys that the root does not name: to an older controller every signed-in key is one.
        Some(ProblemCode::Revoked) => true,
        Some(ProblemCode::Unauthorised) => ended_there,
        _ => false,
    }
}

impl Reading {
    pub fn new(source: KeySource, own: OnceLock<Arc<dyn Signer>>, place: Place, seconds: i64) -> Self {
        Self { source, own, place, seconds, state: Mutex::new(State::Unknown) }
    }

    fn own(&self) -> Result<Arc<dyn Signer>> {
        if let Some(key) = self.own.get() {
            return Ok(Arc::clone(key));
        }
        let key = self.source.open()?;
        Ok(Arc::clone(self.own.get_or_init(|| key)))
    }

    fn by(&self) -> Result<By> {
        let mut state = lock(&self.state);
        if let State::Unknown = *state {
            *state = self.kept().map_or(State::Ended, |kept| State::Kept(Arc::new(kept)));
        }
        if let State::Ended = *state {
            *state = State::New(Arc::new(self.sign_in()?), false);
        }
        Ok(match &*state {
            State::Kept(signed_in) | State::New(signed_in, _) => By::SignedIn(Arc::clone(signed_in)),
            State::Unknown | State::Ended | State::Refused => By::Own(self.own()?),
        })
    }

    fn kept(&self) -> Option<SignedIn> {
        match self.place.load(SystemClock::new().unix_seconds()) {
            // ssh-agent may hold another key by now.
            Ok(kept) => {
                kept.filter(|kept| self.own.get().is_none_or(|own| own.public() == kept.sign_in.operator))
            }
            Err(error) => {
                tell!("warning: a key that was signed in is not used: {}", causes(&error));
                None
            }
        }
    }

    /// Signs in: asks the operator's key once, for a key that lives in memory.
    fn sign_in(&self) -> Result<SignedIn> {
        let own = self.own()?;
        let key = SecretKey::generate()?;
        let now = SystemClock::new().unix_seconds();
        let sign_in = SignIn::make(own.as_ref(), &self.place.fleet, key.public(), now, self.seconds)?;
        Ok(SignedIn { sign_in, key })
    }

    fn taken(&self, by: &Arc<SignedIn>) {
        let mut state = lock(&self.state);
        let State::New(signed_in, is_stored) = &mut *state else { return };
        if *is_stored || !Arc::ptr_eq(signed_in, by) {
            return;
        }
        *is_stored = true;
        match self.place.keep(by, SystemClock::new().unix_seconds()) {
            Ok(()) => tell!(
                "Signed in: reading asks for no key within {}. `muster sign-out` ends it.",
                table::span(self.seconds)
            ),
            Err(error) => tell!("warning: signing in is not kept: {}", causes(&error)),
        }
    }

    fn refused(&self, by: &Arc<SignedIn>) {
        let mut state = lock(&self.state);
        let (kept, signed_in) = match &*state {
            State::Kept(signed_in) => (true, signed_in),
            State::New(signed_in, _) => (false, signed_in),
            State::Unknown | State::Ended | State::Refused => return,
        };
        // Another request may have found out first.
        if Arc::ptr_eq(signed_in, by) {
            self.place.forget();
            *state = if kept { State::Ended } else { State::Refused };
        }
    }
}

fn lock(state: &Mutex<State>) -> std::sync::MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}
