//! Who asks: machines by their signature or bearer, operators by a signed request or a bearer.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, Method, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_protocol::announce::Announcement;
use muster_protocol::api::{
    MACHINE_ANNOUNCES, MACHINE_NEW_SIGNATURE, MACHINE_SIGNATURE, OPERATOR_DRAFTS, OPERATOR_SIGN_IN,
    OPERATOR_SIGNATURE, ProblemCode,
};
use muster_protocol::clock::UnixMillis;
use muster_protocol::draft::MAX_DRAFT_BYTES;
use muster_protocol::ids::{MachineName, Sha256, from_hex, to_hex};
use muster_protocol::keys::{PublicKey, Signature};
use muster_protocol::operator::{self, MAX_REQUEST_BYTES, REQUEST_WINDOW_SECONDS, RequestSignature};
use muster_protocol::signin::SignIn;

use super::payer::Payer;
use super::problem::{Refused, refuse};
use super::request_peer::{proved, stranger};
use super::state::{App, Shared};
use crate::store::{Deed, Holder};

/// The bearer of `Authorization: Bearer …`, or the password of HTTP Basic.
pub fn bearer(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, rest) = value.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(rest.trim().to_owned());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
        return pair.split_once(':').map(|(_, password)| password.to_owned());
    }
    None
}

impl App {
    /// An enrolled machine, or an operator who still holds the role.
    pub(super) async fn holder(&self, headers: &HeaderMap) -> Result<Holder, Refused> {
        let bearer = bearer(headers).ok_or_else(|| {
            Refused::unauthorised(
                "this wants a bearer: machines get one by checking in, operators at /v1/operator/session",
            )
        })?;
        let ended = || {
            Refused::unauthorised("this bearer is unknown or has ended: check in, or open a session, anew")
        };
        let holder = self.services.store.holder(&bearer, self.services.now_s()).await?.ok_or_else(ended)?;
        match &holder {
            Holder::Operator(key) if !self.services.roots.current().is_operator(key) => {
                return Err(no_operator(key));
            }
            Holder::Operator(key) => proved(&Payer::Operator(*key.as_bytes())).await?,
            Holder::Machine(name) => proved(&Payer::Machine(name.clone())).await?,
        }
        Ok(holder)
    }

    /// The same for a file of the cache, of which machines ask many at once.
    pub(super) async fn reads_cache(&self, headers: &HeaderMap) -> Result<(), Refused> {
        match self.holder(headers).await? {
            Holder::Machine(name) => self.rates.cache(&name).map_err(|wait| too_many(&name, wait)),
            Holder::Operator(_) => Ok(()),
        }
    }

    fn count(&self, machine: &MachineName) -> Result<(), Refused> {
        self.rates.machine(machine).map_err(|wait| too_many(machine, wait))
    }

    /// Whether the bearer is this machine's own, or an operator's.
    pub(super) async fn may_read(&self, headers: &HeaderMap, machine: &MachineName) -> Result<(), Refused> {
        match self.holder(headers).await? {
            Holder::Machine(name) if name != *machine => Err(somebody_elses(machine)),
            Holder::Machine(name) => self.count(&name),
            Holder::Operator(_) => Ok(()),
        }
    }

    /// Whether the bearer is this machine's own.
    pub(super) async fn is_machine(&self, headers: &HeaderMap, machine: &MachineName) -> Result<(), Refused> {
        match self.holder(headers).await? {
            Holder::Machine(name) if name == *machine => self.count(&name),
            _ => Err(somebody_elses(machine)),
        }
    }

    pub(super) async fn is_operator(&self, headers: &HeaderMap) -> Result<PublicKey, Refused> {
        match self.holder(headers).await? {
            Holder::Operator(key) => Ok(key),
            Holder::Machine(_) => {
                let message = "machines only read here: operators upload, with a bearer of their own";
                Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message))
            }
        }
    }
}

fn too_many(machine: &MachineName, wait: std::time::Duration) -> Refused {
    Refused::too_many(&format!("machine {machine}"), wait)
}

fn somebody_elses(machine: &MachineName) -> Refused {
    let message = format!("this bearer is not that of {machine}: each machine reads its own alone");
    refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message)
}

fn no_operator(key: &PublicKey) -> Refused {
    let message = format!(
        "the key {} is no operator's in the current root: sign with an operator's key, or have a root signed that names it",
        key.short()
    );
    refuse(StatusCode::FORBIDDEN, ProblemCode::Revoked, message)
}

/// The signature that a machine sent over its body.
pub fn machine_signature(headers: &HeaderMap) -> Result<Signature, Refused> {
    signature_in(headers, MACHINE_SIGNATURE)
}

/// Who is charged for the body that comes, and the hash that it must have then. A machine that announces its body by its
/// key pays for it; version 0.1 announces nothing, and an announcement that does not fit is none.
pub async fn announced(
    app: &App,
    headers: &HeaderMap,
    path: &str,
) -> Result<(Payer, Option<Sha256>), Refused> {
    let said = headers.get(MACHINE_ANNOUNCES).and_then(|value| value.to_str().ok());
    let Some(said) = said.and_then(|said| said.parse::<Announcement>().ok()) else {
        return Ok((stranger(), None));
    };
    let known = app.services.store.machine_key(&said.machine).await?.filter(|known| !known.revoked);
    match known.filter(|known| said.verify(path, &known.key).is_ok()) {
        Some(_) => Ok((Payer::Machine(said.machine), Some(said.body))),
        None => Ok((stranger(), None)),
    }
}

/// The body is the one that was announced.
pub fn fits(announced: Option<&Sha256>, body: &[u8]) -> Result<(), Refused> {
    match announced {
        Some(hash) if *hash != Sha256::of(body) => {
            let message =
                "the body is not the one that was announced: it was changed on the way, repeat the request";
            Err(refuse(StatusCode::UNAUTHORIZED, ProblemCode::BadSignature, message))
        }
        _ => Ok(()),
    }
}

/// That of the key that a check-in brings.
pub fn new_signature(headers: &HeaderMap) -> Result<Signature, Refused> {
    signature_in(headers, MACHINE_NEW_SIGNATURE)
}

fn signature_in(headers: &HeaderMap, name: &'static str) -> Result<Signature, Refused> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    let value = value.ok_or_else(|| {
        Refused::unauthorised(format!("this wants the machine's signature in the header {name}"))
    })?;
    value.parse().map_err(|error| Refused::malformed(format!("the header {name}: {error}")))
}

/// What is known of a machine that says so.
pub async fn known_machine(app: &App, machine: &MachineName) -> Result<crate::store::Known, Refused> {
    app.services.store.machine_key(machine).await?.ok_or_else(|| {
        let message = format!(
            "machine {machine} is not enrolled here: enrol it with a token of `muster machines add {machine}`"
        );
        refuse(StatusCode::NOT_FOUND, ProblemCode::UnknownMachine, message)
    })
}

pub fn not_by_its_key(machine: &MachineName) -> Refused {
    let message = format!(
        "the signature is not by the key of {machine}: if it was enrolled anew, this key has ended; see `muster-agent doctor`"
    );
    refuse(StatusCode::UNAUTHORIZED, ProblemCode::BadSignature, message)
}

/// Whether a machine that proved to hold its key may go on.
pub async fn admit(app: &App, machine: &MachineName, known: &crate::store::Known) -> Result<(), Refused> {
    if known.revoked {
        let message = format!(
            "machine {machine} was revoked: an operator may add it anew with `muster machines add {machine}`"
        );
        return Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Revoked, message));
    }
    proved(&Payer::Machine(machine.clone())).await?;
    app.count(machine)
}

/// The machine's key, once the body is known to be signed by it.
pub async fn signed_by_machine(
    app: &App,
    machine: &MachineName,
    context: muster_protocol::keys::Context,
    body: &[u8],
    signature: &Signature,
) -> Result<crate::store::Known, Refused> {
    let known = known_machine(app, machine).await?;
    known.key.verify(context, body, signature).map_err(|_| not_by_its_key(machine))?;
    admit(app, machine, &known).await?;
    Ok(known)
}

/// A request that an operator of the current root signed, with its body.
pub struct Signed {
    pub key: PublicKey,
    pub at: UnixMillis,
    pub body: Bytes,
}

impl Signed {
    pub fn deed(&self) -> Deed<'_> {
        Deed { operator: &self.key, at: self.at }
    }
}

impl FromRequest<Shared> for Signed {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refused> {
        signed_by(request, app, |key| app.services.roots.current().is_operator(key)).await
    }
}

/// The same by an operator or by a holder of a root key, who may sign roots and nothing else.
pub struct SignedByHolder(pub Signed);

impl FromRequest<Shared> for SignedByHolder {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refused> {
        let holds = |key: &PublicKey| {
            let chain = app.services.roots.current();
            chain.is_operator(key) || chain.is_root_key(key)
        };
        signed_by(request, app, holds).await.map(Self)
    }
}

/// A request that some key signed, whoever that is. The handler finds out, and then remembers the nonce.
pub struct SignedBySomebody {
    pub signed: Signed,
    pub nonce: [u8; 16],
    pub until: i64,
}

impl FromRequest<Shared> for SignedBySomebody {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refused> {
        let (parts, body) = request.into_parts();
        let claim = Claim::read(&parts, app)?;
        let body = claim.body(&parts, body, app).await?;
        let (nonce, until) = (claim.nonce, claim.until());
        Ok(Self { signed: Signed { key: claim.by, at: app.services.now(), body }, nonce, until })
    }
}

async fn signed_by(
    request: Request,
    app: &Shared,
    holds: impl Fn(&PublicKey) -> bool,
) -> Result<Signed, Refused> {
    let (parts, body) = request.into_parts();
    let claim = Claim::read(&parts, app)?;
    let key = claim.by;
    if !holds(&key) {
        return Err(no_operator(&key));
    }
    let body = claim.body(&parts, body, app).await?;
    count(app, claim.payer()).await?;
    once(app, &key, &claim.nonce, claim.until()).await?;
    Ok(Signed { key, at: app.services.now(), body })
}

/// Whoever signed is an operator, or holds a root key: the request counts, once.
pub async fn remember(app: &App, key: &PublicKey, nonce: &[u8; 16], until: i64) -> Result<(), Refused> {
    count(app, Payer::Operator(*key.as_bytes())).await?;
    once(app, key, nonce, until).await
}

async fn count(app: &App, payer: Payer) -> Result<(), Refused> {
    proved(&payer).await?;
    let (counted, who, key) = match &payer {
        Payer::Operator(key) => (app.rates.operator(key), "operator", key),
        Payer::Reader(key) => (app.rates.reader(key), "what was signed in by operator", key),
        Payer::Address(_) | Payer::Machine(_) => return Ok(()),
    };
    counted.map_err(|wait| Refused::too_many(&format!("{who} {}", to_hex(&key[..6])), wait))
}

async fn once(app: &App, key: &PublicKey, nonce: &[u8; 16], until: i64) -> Result<(), Refused> {
    if !app.services.store.use_nonce(key, nonce, until).await? {
        let message = "this very request was sent before: sign it anew to repeat it";
        return Err(refuse(StatusCode::CONFLICT, ProblemCode::Sequence, message));
    }
    Ok(())
}

/// What a request says of who signed it.
struct Claim {
    signature: RequestSignature,
    /// In whose name it is: the key that signed it, or the operator in whose place that key reads. Nonces are theirs,
    /// however many keys they have read.
    by: PublicKey,
    nonce: [u8; 16],
    fleet: Sha256,
}

impl Claim {
    fn read(parts: &axum::http::request::Parts, app: &App) -> Result<Self, Refused> {
        let signature = operator_signature(&parts.headers)?;
        let nonce: [u8; 16] = from_hex(&signature.nonce)
            .ok_or_else(|| Refused::malformed("the nonce of the signature must be 32 hexadecimal digits"))?;
        require_near(signature.at, app.services.now_s())?;
        let by = match sign_in(&parts.headers)? {
            None => signature.key,
            Some(sign_in) => reads_for(&sign_in, &signature.key, parts, app)?,
        };
        Ok(Self { signature, by, nonce, fleet: app.services.roots.current().fleet() })
    }

    /// Whether the signature fits.
    fn verify(&self, request: operator::Request<'_>, body: &Sha256) -> Result<(), Refused> {
        let verified = match self.by == self.signature.key {
            true => self.signature.verify_announced(request, body),
            false => self.signature.verify_reading(request, body),
        };
        verified.map_err(|_| does_not_fit())
    }

    /// Who pays for it. Whatever keys that were signed in do, the operator's own requests are not kept out by it.
    fn payer(&self) -> Payer {
        let by = *self.by.as_bytes();
        if self.by == self.signature.key { Payer::Operator(by) } else { Payer::Reader(by) }
    }

    /// Kept a second longer than anybody would believe its time.
    fn until(&self) -> i64 {
        self.signature.at.saturating_add(REQUEST_WINDOW_SECONDS + 1)
    }

    /// The body, once it is known to be what was signed. One whose hash is announced is read only after the signature
    /// was found good, and only such a one may be large.
    async fn body(
        &self,
        parts: &axum::http::request::Parts,
        body: axum::body::Body,
        app: &App,
    ) -> Result<Bytes, Refused> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let request =
            operator::Request { audience: &self.fleet, method: parts.method.as_str(), path, body: b"" };
        let (mut limit, mut payer) = (MAX_REQUEST_BYTES, stranger());
        if let Some(announced) = &self.signature.body {
            self.verify(request, announced)?;
            let chain = app.services.roots.current();
            if chain.is_operator(&self.by) || chain.is_root_key(&self.by) {
                payer = self.payer();
            }
            if parts.method == Method::POST && parts.uri.path() == OPERATOR_DRAFTS {
                limit = MAX_DRAFT_BYTES;
            }
        }
        let body = super::body::whole(&parts.headers, body, limit, &app.memory, payer).await?;
        let found = Sha256::of(&body);
        match &self.signature.body {
            Some(announced) if *announced == found => Ok(body),
            Some(_) => Err(does_not_fit()),
            None => self.verify(request, &found).map(|()| body),
        }
    }
}

fn does_not_fit() -> Refused {
    let message = "the signature does not fit this request: see that muster.toml names this controller's url and fleet, with no proxy between that changes paths";
    refuse(StatusCode::UNAUTHORIZED, ProblemCode::BadSignature, message)
}

pub fn operator_signature(headers: &HeaderMap) -> Result<RequestSignature, Refused> {
    let value = headers.get(OPERATOR_SIGNATURE).ok_or_else(|| {
        Refused::unauthorised(format!(
            "this wants an operator's signature in the header {OPERATOR_SIGNATURE}"
        ))
    })?;
    super::body::json("an operator's signature", value.as_bytes())
}

/// That the key which signed the request reads in an operator's place, if the request says so.
pub fn sign_in(headers: &HeaderMap) -> Result<Option<SignIn>, Refused> {
    let Some(value) = headers.get(OPERATOR_SIGN_IN) else { return Ok(None) };
    let malformed =
        |why: &str| Refused::malformed(format!("the header {OPERATOR_SIGN_IN}: {why}; sign in anew"));
    value.to_str().map_err(|_| malformed("it is no text"))?.parse().map(Some).map_err(malformed)
}

/// The operator in whose place `key` signed this request, if it may: to read, while they are one and signed in.
fn reads_for(
    sign_in: &SignIn,
    key: &PublicKey,
    parts: &axum::http::request::Parts,
    app: &App,
) -> Result<PublicKey, Refused> {
    if parts.method != Method::GET {
        let message = "a key that was signed in only reads: sign this request with the operator's own key";
        return Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message));
    }
    let chain = app.services.roots.current();
    if !chain.is_operator(&sign_in.operator) {
        return Err(no_operator(&sign_in.operator));
    }
    let bad = |why: String| {
        let message = format!("signing in does not count: {why}; sign in anew");
        refuse(StatusCode::UNAUTHORIZED, ProblemCode::Unauthorised, message)
    };
    if sign_in.key != *key || sign_in.operator == *key {
        return Err(bad("it is for another key than the one that signed the request".to_owned()));
    }
    sign_in.verify(&chain.fleet(), app.services.now_s()).map_err(|error| bad(error.to_string()))?;
    Ok(sign_in.operator)
}

/// An operator's clock may be off a little; by how much is said, since that is what there is to mend.
fn require_near(at: i64, now: i64) -> Result<(), Refused> {
    let off = at.saturating_sub(now);
    if off.saturating_abs() <= REQUEST_WINDOW_SECONDS {
        return Ok(());
    }
    let side = if off < 0 { "behind" } else { "ahead of" };
    let message = format!(
        "your clock is {} s {side} the controller's, and {REQUEST_WINDOW_SECONDS} s are the limit: set the clock and repeat",
        off.saturating_abs()
    );
    Err(Refused::unauthorised(message))
}
