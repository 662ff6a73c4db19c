//! Operators' signed requests to machines: kept until the machine says that it has followed them, or until
//! they expire.

use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::request::{Asked, MAX_REQUESTS, MachineRequest, RequestError, SignedRequest};

use super::audit::{AuditContext, NewEntry};
use super::change::{Change, Decided};
use super::rows::Request;

/// Why a request is not relayed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskRefusal {
    #[error("the machine would refuse this: {0}; sign it again")]
    Unsound(RequestError),
    #[error("machine {0} is not enrolled: `muster machines list` shows those that are")]
    NotEnrolled(MachineName),
    #[error("{0} has changed its key since this request was signed: repeat it")]
    OtherKey(MachineName),
    #[error(
        "{MAX_REQUESTS} requests are already waiting for {0}: bring it online, or wait until they expire"
    )]
    TooMany(MachineName),
}

/// What is stored of an enrolled machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub key: PublicKey,
    pub key_rotation_asked: bool,
    /// The stored requests for it, expired or not.
    pub requests: Vec<Request>,
}

/// Stores a request with a verified signature; the reply to the machine's next check-in carries it. A
/// repeated request is already stored and logged.
pub fn ask(
    stored: Option<&Stored>,
    signed: &SignedRequest,
    request: &MachineRequest,
    context: &AuditContext<'_>,
) -> Result<Decided<()>, AskRefusal> {
    let (machine, id) = (&request.machine, signed.id());
    let stored = stored.ok_or_else(|| AskRefusal::NotEnrolled(machine.clone()))?;
    if matches!(&request.asked, Asked::RotateKey { key } if *key != stored.key) {
        return Err(AskRefusal::OtherKey(machine.clone()));
    }
    let ended = |request: &&Request| request.ends <= context.at.div_euclid(1000);
    let (gone, waiting): (Vec<_>, Vec<_>) = stored.requests.iter().partition(ended);
    if waiting.iter().filter(|request| request.id != id).count() >= MAX_REQUESTS {
        return Err(AskRefusal::TooMany(machine.clone()));
    }
    let mut changes = Vec::new();
    let ids: Vec<Sha256> = gone.into_iter().map(|request| request.id).collect();
    if !ids.is_empty() {
        changes.push(Change::RequestsDropped { machine: machine.clone(), ids });
    }
    if matches!(request.asked, Asked::RotateKey { .. }) && !stored.key_rotation_asked {
        changes.push(Change::KeyRotationAsked { machine: machine.clone(), at: context.at });
    }
    if !waiting.iter().any(|request| request.id == id) {
        let kept = Request {
            id,
            asks: request.asked.as_str().to_owned(),
            document: Some(signed.clone()),
            ends: request.ends,
            handed_on: false,
        };
        let (action, detail) = match &request.asked {
            Asked::Retry { derivation, .. } => ("retry-asked", derivation.name().to_owned()),
            Asked::RotateKey { key } => {
                ("key-rotation-asked", format!("in the place of key {}", key.short()))
            }
            Asked::Unknown => ("request-kept", "of a later version".to_owned()),
        };
        changes.push(Change::RequestKept { machine: machine.clone(), request: kept });
        changes.push(Change::Audited(NewEntry::by(context, action, detail).on(machine)));
    }
    changes.push(Change::MachineChanged { machine: machine.clone() });
    Ok(Decided { changes, answer: () })
}

#[cfg(test)]
mod tests;
