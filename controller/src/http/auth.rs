//! Who asks: machines by their signature or bearer, operators by a signed request or a bearer.

use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_protocol::api::{MACHINE_SIGNATURE, OPERATOR_SIGNATURE, ProblemCode};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, from_hex};
use muster_protocol::keys::{PublicKey, Signature};
use muster_protocol::operator::{self, REQUEST_WINDOW_SECONDS, RequestSignature};

use super::problem::{Refused, refuse};
use super::{App, Shared};
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
        let holder = self.store.holder(&bearer, self.now_s()).await?.ok_or_else(ended)?;
        match &holder {
            Holder::Operator(key) if !self.roots.current().is_operator(key) => Err(no_operator(key)),
            _ => Ok(holder),
        }
    }

    /// Whether the bearer is this machine's own, or an operator's.
    pub(super) async fn may_read(&self, headers: &HeaderMap, machine: &MachineName) -> Result<(), Refused> {
        match self.holder(headers).await? {
            Holder::Machine(name) if name != *machine => Err(somebody_elses(machine)),
            _ => Ok(()),
        }
    }

    /// Whether the bearer is this machine's own.
    pub(super) async fn is_machine(&self, headers: &HeaderMap, machine: &MachineName) -> Result<(), Refused> {
        match self.holder(headers).await? {
            Holder::Machine(name) if name == *machine => Ok(()),
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
    let value = headers.get(MACHINE_SIGNATURE).and_then(|value| value.to_str().ok());
    let value = value.ok_or_else(|| {
        Refused::unauthorised(format!("this wants the machine's signature in the header {MACHINE_SIGNATURE}"))
    })?;
    value.parse().map_err(|error| Refused::malformed(format!("the header {MACHINE_SIGNATURE}: {error}")))
}

/// The machine's key, once the body is known to be signed by it.
pub async fn signed_by_machine(
    app: &App,
    machine: &MachineName,
    context: muster_protocol::keys::Context,
    body: &[u8],
    signature: &Signature,
) -> Result<crate::store::Known, Refused> {
    let known = app.store.machine_key(machine).await?.ok_or_else(|| {
        let message = format!(
            "machine {machine} is not enrolled here: enrol it with a token of `muster machines add {machine}`"
        );
        refuse(StatusCode::NOT_FOUND, ProblemCode::UnknownMachine, message)
    })?;
    known.key.verify(context, body, signature).map_err(|_| {
        let message = format!(
            "the signature is not by the key of {machine}: if it was enrolled anew, this key has ended; see `muster-agent doctor`"
        );
        refuse(StatusCode::UNAUTHORIZED, ProblemCode::BadSignature, message)
    })?;
    if known.revoked {
        let message = format!(
            "machine {machine} was revoked: an operator may add it anew with `muster machines add {machine}`"
        );
        return Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Revoked, message));
    }
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
        let (parts, body) = request.into_parts();
        let signature = operator_signature(&parts.headers)?;
        let nonce: [u8; 16] = from_hex(&signature.nonce)
            .ok_or_else(|| Refused::malformed("the nonce of the signature must be 32 hexadecimal digits"))?;
        require_near(signature.at, app.now_s())?;
        let chain = app.roots.current();
        if !chain.is_operator(&signature.key) {
            return Err(no_operator(&signature.key));
        }
        let body = super::operator_body(&parts.headers, body).await?;
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let fleet = chain.fleet();
        let signed = operator::Request { audience: &fleet, method: parts.method.as_str(), path, body: &body };
        signature.verify(signed).map_err(|_| {
            let message = "the signature does not fit this request: see that muster.toml names this controller's url and fleet, with no proxy between that changes paths";
            refuse(StatusCode::UNAUTHORIZED, ProblemCode::BadSignature, message)
        })?;
        // Kept a second longer than anybody would believe its time.
        let until = signature.at.saturating_add(REQUEST_WINDOW_SECONDS + 1);
        if !app.store.use_nonce(&signature.key, &nonce, until).await? {
            let message = "this very request was sent before: sign it anew to repeat it";
            return Err(refuse(StatusCode::CONFLICT, ProblemCode::Sequence, message));
        }
        Ok(Self { key: signature.key, at: app.now(), body })
    }
}

pub fn operator_signature(headers: &HeaderMap) -> Result<RequestSignature, Refused> {
    let value = headers.get(OPERATOR_SIGNATURE).ok_or_else(|| {
        Refused::unauthorised(format!(
            "this wants an operator's signature in the header {OPERATOR_SIGNATURE}"
        ))
    })?;
    super::body::json("an operator's signature", value.as_bytes())
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
