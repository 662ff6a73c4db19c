//! Requests signed with operator keys: who signed, the subject in the path, and the document in the body.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::api::{OPERATOR_SIGNATURE, ProblemCode};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Sha256, from_hex, to_hex};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{self, MAX_REQUEST_BYTES, REQUEST_WINDOW_SECONDS, RequestSignature};

use super::revoked::revoked_operator;
use super::sign_in::{reads_for, sign_in};
use crate::core::audit::AuditContext;
use crate::http::body::{self, Document, whole};
use crate::http::path::FromPath;
use crate::http::payer::Payer;
use crate::http::problem::{Refused, refuse};
use crate::http::request_peer::{proved, stranger};
use crate::http::state::{App, Shared};
use crate::threads;

/// A request signed by an operator of the current root, with its parsed path and body.
///
/// The signature is checked before the path, and the path before the document. With a body type of `()` any
/// body is ignored.
pub struct Signed<T = (), On = ()> {
    pub by: PublicKey,
    pub at: UnixMillis,
    pub on: On,
    pub sent: T,
    /// What proves it.
    pub signature: RequestSignature,
}

impl<T, On> Signed<T, On> {
    /// The request's contents, apart from who signed it.
    pub fn split(self) -> (Signed<(), On>, T) {
        let Self { by, at, on, sent, signature } = self;
        (Signed { by, at, on, sent: (), signature }, sent)
    }
    pub fn audit_context(&self) -> AuditContext<'_> {
        AuditContext { operator: &self.by, at: self.at }
    }
}

impl<T: Document, On: FromPath> FromRequest<Shared> for Signed<T, On> {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refused> {
        signed_by(request, app, |key| app.services.roots.current().is_operator(key)).await
    }
}

/// The same, signed with an operator key or a root key; a root key may sign only roots.
pub struct SignedByKeyholder<T = (), On = ()>(pub Signed<T, On>);

impl<T: Document, On: FromPath> FromRequest<Shared> for SignedByKeyholder<T, On> {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refused> {
        signed_by(request, app, |key| app.services.roots.current().names(key)).await.map(Self)
    }
}

/// The same, signed with any key: the handler decides whether that key may send it, and then counts the
/// request.
pub struct SignedByAnyone<T> {
    signed: Signed<T>,
    nonce: [u8; 16],
    until: i64,
}

impl<T: Document> FromRequest<Shared> for SignedByAnyone<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refused> {
        let (parts, body) = request.into_parts();
        let claim = Claim::read(&parts, app)?;
        app.services.roots.refresh().await?;
        let body = claim.body(&parts, body, app, T::LIMIT).await?;
        let (nonce, until, by) = (claim.nonce, claim.until(), claim.by);
        let (at, signature) = (app.services.now(), claim.signature);
        let signed = Signed { by, at, on: (), sent: T::read(&body)?, signature };
        Ok(Self { signed, nonce, until })
    }
}

impl<T> SignedByAnyone<T> {
    pub fn by(&self) -> &PublicKey {
        &self.signed.by
    }
    pub fn sent(&self) -> &T {
        &self.signed.sent
    }
    /// The signer may send this: counts the request as theirs, and uses its nonce.
    pub async fn accepted(self, app: &App) -> Result<Signed<T>, Refused> {
        let by = &self.signed.by;
        count(app, Payer::Operator(*by.as_bytes())).await?;
        once(app, by, &self.nonce, self.until).await?;
        Ok(self.signed)
    }
}

async fn signed_by<T: Document, On: FromPath>(
    request: Request,
    app: &Shared,
    may: impl Fn(&PublicKey) -> bool,
) -> Result<Signed<T, On>, Refused> {
    let (mut parts, body) = request.into_parts();
    let on = On::text(&mut parts, app).await?;
    let claim = Claim::read(&parts, app)?;
    app.services.roots.refresh().await?;
    let by = claim.by;
    if !may(&by) {
        return Err(revoked_operator(&by));
    }
    let body = claim.body(&parts, body, app, T::LIMIT).await?;
    count(app, claim.payer()).await?;
    once(app, &by, &claim.nonce, claim.until()).await?;
    let at = app.services.now();
    Ok(Signed { by, at, on: On::read(on)?, sent: T::read(&body)?, signature: claim.signature })
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
        let message = "this request was already sent: sign it again to repeat it";
        return Err(refuse(StatusCode::CONFLICT, ProblemCode::Sequence, message));
    }
    Ok(())
}

/// What a request says about its signer.
struct Claim {
    signature: RequestSignature,
    /// Whom it counts for: the key that signed it, or the operator on whose behalf that key reads. Nonces
    /// belong to the operator, however many keys they have signed in.
    by: PublicKey,
    nonce: [u8; 16],
    fleet: Sha256,
}

impl Claim {
    fn read(parts: &Parts, app: &App) -> Result<Self, Refused> {
        let signature = operator_signature(&parts.headers)?;
        let nonce: [u8; 16] = from_hex(&signature.nonce)
            .ok_or_else(|| Refused::malformed("the nonce of the signature must be 32 hexadecimal digits"))?;
        require_near(signature.at, app.services.now_s())?;
        let by = match sign_in(&parts.headers)? {
            None => signature.key,
            Some(sign_in) => reads_for(&sign_in, &signature.key, parts, app)?,
        };
        Ok(Self { signature, by, nonce, fleet: app.services.roots.fleet() })
    }

    /// Checks the signature.
    fn verify(&self, request: operator::Request<'_>, body: &Sha256) -> Result<(), Refused> {
        let verified = match self.by == self.signature.key {
            true => self.signature.verify_announced(request, body),
            false => self.signature.verify_reading(request, body),
        };
        verified.map_err(|_| does_not_fit())
    }

    /// Who pays for it. Signed-in keys are charged apart, so they never crowd out the operator's own
    /// requests.
    fn payer(&self) -> Payer {
        let by = *self.by.as_bytes();
        if self.by == self.signature.key { Payer::Operator(by) } else { Payer::Reader(by) }
    }

    /// Kept a second longer than the request's time is accepted.
    fn until(&self) -> i64 {
        self.signature.at.saturating_add(REQUEST_WINDOW_SECONDS + 1)
    }

    /// The body, checked against what was signed. A body whose hash is announced is read only after the
    /// signature is verified, and only such a body may be large.
    async fn body(&self, parts: &Parts, body: Body, app: &App, largest: usize) -> Result<Bytes, Refused> {
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let request =
            operator::Request { audience: &self.fleet, method: parts.method.as_str(), path, body: b"" };
        let (mut limit, mut payer) = (MAX_REQUEST_BYTES, stranger());
        if let Some(announced) = &self.signature.body {
            self.verify(request, announced)?;
            let chain = app.services.roots.current();
            if chain.names(&self.by) {
                payer = self.payer();
            }
            limit = largest;
        }
        let body = whole(&parts.headers, body, limit, &app.memory, payer).await?;
        let found = threads::on(body.len(), || Sha256::of(&body));
        match &self.signature.body {
            Some(announced) if *announced == found => Ok(body),
            Some(_) => Err(does_not_fit()),
            None => self.verify(request, &found).map(|()| body),
        }
    }
}

fn does_not_fit() -> Refused {
    let message = "the signature does not fit this request: see that muster.toml names this controller's \
        url and fleet, with no proxy between that changes paths";
    refuse(StatusCode::UNAUTHORIZED, ProblemCode::BadSignature, message)
}

pub fn operator_signature(headers: &HeaderMap) -> Result<RequestSignature, Refused> {
    let value = headers.get(OPERATOR_SIGNATURE).ok_or_else(|| {
        Refused::unauthorised(format!(
            "this needs an operator's signature in the header {OPERATOR_SIGNATURE}"
        ))
    })?;
    body::json("an operator's signature", value.as_bytes())
}

/// An operator's clock may be off a little; the error says by how much, so that it can be corrected.
fn require_near(at: i64, now: i64) -> Result<(), Refused> {
    let off = at.saturating_sub(now);
    if off.saturating_abs() <= REQUEST_WINDOW_SECONDS {
        return Ok(());
    }
    let side = if off < 0 { "behind" } else { "ahead of" };
    let message = format!(
        "your clock is {} s {side} the controller's, and {REQUEST_WINDOW_SECONDS} s are the limit: set the \
            clock and repeat",
        off.saturating_abs()
    );
    Err(Refused::unauthorised(message))
}
