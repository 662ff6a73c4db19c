//! Enrolment: a token is exchanged for a machine's key, once.

use muster_protocol::clock::UnixMillis;
use muster_protocol::enrol::{EnrolError, EnrolRequest};
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::Class;

use super::audit::NewEntry;
use super::change::{Change, Decided, Enrolled};
use super::rows::Token;

/// What is stored of a token and its machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Stored {
    pub token: Token,
    /// The key of the token's machine.
    pub key: Option<PublicKey>,
    pub revoked: bool,
    /// Whether a machine has the enrolling key, or the token's machine enrolled with it before.
    pub taken: bool,
}

/// Why a machine cannot enrol.
#[derive(Debug, thiserror::Error)]
pub enum EnrolRefusal {
    #[error(
        "the token names a root that this controller does not serve: use a token of this fleet, made with \
            `muster machines add`"
    )]
    RootUnknown,
    #[error(
        "this controller does not know the token: it belongs to another fleet, or a newer one has replaced \
            it; make one with `muster machines add`"
    )]
    TokenUnknown,
    #[error("the token was already used: make another with `muster machines add {0} --replace`")]
    TokenUsed(MachineName),
    #[error("the token has expired: make another with `muster machines add {0}`")]
    TokenExpired(MachineName),
    #[error(transparent)]
    BadCode(EnrolError),
    #[error("the token is for machine {token}, not for {asked}: copy the token that was made for {asked}")]
    OtherMachine { token: MachineName, asked: MachineName },
    #[error(
        "the token is for a machine of class {token}, but {machine} says that it is {asked}: make a token \
            with `muster machines add {machine} --class {asked}`"
    )]
    WrongClass { machine: MachineName, token: Class, asked: Class },
    #[error(
        "a machine is enrolled with this key, or this one was before: remove the agent's state from the copy \
            and enrol it with a token of its own"
    )]
    KeyTaken,
    #[error("machine {0} was revoked: make a new token with `muster machines add {0}`")]
    Revoked(MachineName),
}

/// Gives the machine its new key and marks the token as used, both or neither. Repeated with the same key
/// because the answer was lost, it changes nothing.
pub fn enrol(
    stored: Option<&Stored>,
    request: &EnrolRequest,
    now: UnixMillis,
) -> Result<Decided<()>, EnrolRefusal> {
    let stored = stored.ok_or(EnrolRefusal::TokenUnknown)?;
    let token = &stored.token;
    request.verify(&token.check_key).map_err(EnrolRefusal::BadCode)?;
    let machine = &token.machine;
    if *machine != request.machine {
        return Err(EnrolRefusal::OtherMachine { token: machine.clone(), asked: request.machine.clone() });
    }
    let asked = if token.class == request.class { request.system.class() } else { request.class };
    if token.class != asked {
        return Err(EnrolRefusal::WrongClass { machine: machine.clone(), token: token.class, asked });
    }
    if let Some(used) = &token.used {
        if used.by != request.key || stored.key != Some(request.key) {
            return Err(EnrolRefusal::TokenUsed(machine.clone()));
        }
        if stored.revoked {
            return Err(EnrolRefusal::Revoked(machine.clone()));
        }
        return Ok(Decided::unchanged(()));
    }
    if token.expires.saturating_mul(1000) <= now {
        return Err(EnrolRefusal::TokenExpired(machine.clone()));
    }
    if stored.taken {
        return Err(EnrolRefusal::KeyTaken);
    }
    let detail = format!("with key {}", request.key.short());
    let changes = vec![
        Change::TokenUsed { token: token.id, by: request.key, at: now },
        Change::Enrolled(Box::new(Enrolled {
            machine: machine.clone(),
            class: request.class,
            system: request.system.clone(),
            key: request.key,
            age: request.age.clone(),
            agent: request.agent.clone(),
            at: now,
        })),
        Change::BearersEnded { machine: machine.clone() },
        Change::AttacksEnded { machine: machine.clone(), at: now },
        Change::Audited(NewEntry::by_itself(now, "enrolled", detail).on(machine)),
        Change::MachineChanged { machine: machine.clone() },
    ];
    Ok(Decided { changes, answer: () })
}

#[cfg(test)]
mod tests;
