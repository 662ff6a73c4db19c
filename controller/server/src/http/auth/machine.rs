//! Request bodies from machines, each signed by the machine that the body names.

use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, StatusCode};
use muster_protocol::announce::Announcement;
use muster_protocol::api::{MACHINE_ANNOUNCES, MACHINE_NEW_SIGNATURE, MACHINE_SIGNATURE, ProblemCode};
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::{Context, PublicKey, Signature};
use muster_protocol::session::SessionProof;

use super::bearer::count;
use super::session::{by_session, in_force, session_ended, session_proof};
use crate::core::rows::KnownMachine;
use crate::http::body::{Document, at_once, small_body};
use crate::http::payer::Payer;
use crate::http::problem::{Refused, refuse};
use crate::http::request_peer::{proved, stranger};
use crate::http::state::{App, Shared};

/// A document that a machine sends.
pub trait MachineDocument: Document {
    /// The path it is sent to, which its announcement also covers.
    const PATH: &'static str;
    const CONTEXT: Context;
    fn machine(&self) -> &MachineName;
    /// A new key in the document, which must sign it as well.
    fn new_key(&self) -> Option<&PublicKey> {
        None
    }
    /// Whether a session may prove it in place of the machine's signature, for all that it says.
    fn is_routine(&self) -> bool {
        false
    }
}

/// A document signed with the known key of the machine that it names, or sent in its session, and counted
/// against that machine's rate.
///
/// Checks, in this order: a session's proof is good or a signature is present, the body is not too large,
/// it is the one announced, it parses, the machine is known, the signature matches, the machine is not
/// revoked, it is within its rate. The memory of an announced body is charged to its machine; a body that
/// came with its head takes none, so its announcement is not verified.
pub struct FromMachine<T> {
    /// In a box, since it is handed on many times.
    pub sent: Box<T>,
    /// The bytes as received, which are what was signed.
    pub bytes: Bytes,
    pub sha256: Sha256,
    /// What is stored of the machine.
    pub known: KnownMachine,
    /// The signature by the key that is in force once the document is accepted; `None` if a session proves
    /// it.
    pub signature: Option<Signature>,
}

impl<T: MachineDocument> FromRequest<Shared> for FromMachine<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refused> {
        let (parts, body) = request.into_parts();
        let headers = &parts.headers;
        if let Some(proof) = session_proof(headers)? {
            return Self::of_session(app, headers, body, &proof).await;
        }
        let signature = machine_signature(headers)?;
        let (bytes, sha256) = match at_once(body) {
            Ok(bytes) => {
                let sha256 = Sha256::of(&bytes);
                // Nobody has to pay for it, so an announcement matters only if it is of another body.
                if announcement(headers).is_some_and(|said| said.body != sha256) {
                    let (_, hash) = Box::pin(announced(app, headers, T::PATH)).await?;
                    fits(hash.as_ref(), &sha256)?;
                }
                (bytes, sha256)
            }
            Err(body) => {
                let (payer, hash) = Box::pin(announced(app, headers, T::PATH)).await?;
                let bytes = Box::pin(small_body(app, headers, body, T::LIMIT, payer)).await?;
                let sha256 = Sha256::of(&bytes);
                fits(hash.as_ref(), &sha256)?;
                (bytes, sha256)
            }
        };
        let sent = Box::new(T::read(&bytes)?);
        let machine = sent.machine();
        let (known, signature) = match sent.new_key() {
            None => (signed_by_known(app, machine, T::CONTEXT, &bytes, &signature).await?, signature),
            Some(new) => {
                let both = signed_by_both(app, machine, new, headers, T::CONTEXT, &bytes, &signature);
                Box::pin(both).await?
            }
        };
        admit(app, machine, &known).await?;
        Ok(Self { sent, bytes, sha256, known, signature: Some(signature) })
    }
}

impl<T: MachineDocument> FromMachine<T> {
    async fn of_session(
        app: &Shared,
        headers: &HeaderMap,
        body: Body,
        proof: &SessionProof,
    ) -> Result<Self, Refused> {
        let claims = by_session(app, T::PATH, proof).await?;
        let machine = &claims.machine;
        let bytes = match at_once(body) {
            Ok(bytes) => bytes,
            Err(body) => {
                let payer = Payer::Machine(machine.clone());
                Box::pin(small_body(app, headers, body, T::LIMIT, payer)).await?
            }
        };
        let sha256 = Sha256::of(&bytes);
        fits(Some(&proof.body), &sha256)?;
        let sent = Box::new(T::read(&bytes)?);
        if sent.machine() != machine || !sent.is_routine() {
            return Err(session_ended());
        }
        // Once more: the body may have taken its time.
        let known = in_force(app, &claims).await?;
        admit(app, machine, &known).await?;
        Ok(Self { sent, bytes, sha256, known, signature: None })
    }
}

/// An unsigned document: its contents must prove who sent it.
pub struct FromStranger<T>(pub T);

impl<T: Document> FromRequest<Shared> for FromStranger<T> {
    type Rejection = Refused;

    async fn from_request(request: Request, app: &Shared) -> Result<Self, Refused> {
        let (parts, body) = request.into_parts();
        let bytes = small_body(app, &parts.headers, body, T::LIMIT, stranger()).await?;
        T::read(&bytes).map(Self)
    }
}

/// The machine's signature over the body.
pub fn machine_signature(headers: &HeaderMap) -> Result<Signature, Refused> {
    signature_in(headers, MACHINE_SIGNATURE)
}

/// What the header announces; nobody has checked yet who says so.
fn announcement(headers: &HeaderMap) -> Option<Announcement> {
    headers.get(MACHINE_ANNOUNCES)?.to_str().ok()?.parse().ok()
}

/// Who is charged for the incoming body, and the hash it must have. A machine that announces its body with
/// its key is charged; version 0.1 announces nothing, and an announcement that does not verify is ignored.
async fn announced(app: &App, headers: &HeaderMap, path: &str) -> Result<(Payer, Option<Sha256>), Refused> {
    let Some(said) = announcement(headers) else { return Ok((stranger(), None)) };
    let known = app.services.store.machine_key(&said.machine).await?.filter(|known| !known.revoked);
    match known.filter(|known| said.verify(path, &known.key).is_ok()) {
        Some(_) => Ok((Payer::Machine(said.machine), Some(said.body))),
        None => Ok((stranger(), None)),
    }
}

/// Checks that the body is the one announced.
fn fits(announced: Option<&Sha256>, body: &Sha256) -> Result<(), Refused> {
    match announced {
        Some(hash) if hash != body => {
            let message =
                "the body is not the one that was announced: it was changed on the way, repeat the request";
            Err(refuse(StatusCode::UNAUTHORIZED, ProblemCode::BadSignature, message))
        }
        _ => Ok(()),
    }
}

fn signature_in(headers: &HeaderMap, name: &'static str) -> Result<Signature, Refused> {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    let value = value.ok_or_else(|| {
        Refused::unauthorised(format!("this needs the machine's signature in the header {name}"))
    })?;
    value.parse().map_err(|error| Refused::malformed(format!("the header {name}: {error}")))
}

/// What is stored of the named machine.
async fn known_machine(app: &App, machine: &MachineName) -> Result<KnownMachine, Refused> {
    app.services.store.machine_key(machine).await?.ok_or_else(|| {
        let message = format!(
            "machine {machine} is not enrolled here: enrol it with a token of `muster machines add {machine}`"
        );
        refuse(StatusCode::NOT_FOUND, ProblemCode::UnknownMachine, message)
    })
}

fn not_by_its_key(machine: &MachineName) -> Refused {
    let message = format!(
        "the signature is not by the key of {machine}: if it was enrolled anew, this key has ended; see \
            `muster-agent doctor`"
    );
    refuse(StatusCode::UNAUTHORIZED, ProblemCode::BadSignature, message)
}

/// Whether a machine that proved to hold its key may continue.
async fn admit(app: &App, machine: &MachineName, known: &KnownMachine) -> Result<(), Refused> {
    if known.revoked {
        let message = format!(
            "machine {machine} was revoked: an operator may add it again with `muster machines add {machine}`"
        );
        return Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Revoked, message));
    }
    proved(&Payer::Machine(machine.clone())).await?;
    count(app, machine)
}

async fn signed_by_known(
    app: &App,
    machine: &MachineName,
    context: Context,
    body: &[u8],
    signature: &Signature,
) -> Result<KnownMachine, Refused> {
    let known = known_machine(app, machine).await?;
    known.key.verify(context, body, signature).map_err(|_| not_by_its_key(machine))?;
    Ok(known)
}

/// A document with a new key is signed by the old key and the new one. Once the new key is in force, its
/// signature alone is enough: the machine missed the reply and sends the document again.
async fn signed_by_both(
    app: &App,
    machine: &MachineName,
    new: &PublicKey,
    headers: &HeaderMap,
    context: Context,
    body: &[u8],
    by_old: &Signature,
) -> Result<(KnownMachine, Signature), Refused> {
    new.require_plain().map_err(|why| Refused::malformed(why.to_string()))?;
    let by_new = signature_in(headers, MACHINE_NEW_SIGNATURE)?;
    let known = known_machine(app, machine).await?;
    new.verify(Context::KeyRotation, body, &by_new).map_err(|_| not_by_its_key(machine))?;
    if known.key != *new {
        known.key.verify(context, body, by_old).map_err(|_| not_by_its_key(machine))?;
    }
    Ok((known, by_new))
}
