//! Bearers: a machine gets one by checking in, an operator by opening a session.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use muster_protocol::api::ProblemCode;
use muster_protocol::ids::MachineName;
use muster_protocol::keys::PublicKey;

use super::revoked::revoked_operator;
use crate::core::rows::Principal;
use crate::http::path::OfMachine;
use crate::http::payer::Payer;
use crate::http::problem::{Refused, refuse};
use crate::http::request_peer::proved;
use crate::http::state::{App, Shared};

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

/// A request's bearer, not looked up yet.
pub struct Bearer(Option<String>);

impl FromRequestParts<Shared> for Bearer {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Infallible> {
        Ok(Self(bearer(&parts.headers)))
    }
}

impl Bearer {
    /// Looks it up: an enrolled machine, or an operator who is still in the root.
    async fn principal(&self, app: &App) -> Result<Principal, Refused> {
        let bearer = self.0.as_ref().ok_or_else(|| {
            Refused::unauthorised(
                "this needs a bearer: machines get one by checking in, operators at /v1/operator/session",
            )
        })?;
        let ended = || {
            Refused::unauthorised(
                "this bearer is unknown or has expired: check in again, or open a new session",
            )
        };
        let services = &app.services;
        let principal = match services.keyring.keys().seals.read_bearer(bearer) {
            Some(claims) => {
                let known = services.store.machine_key(&claims.machine).await?;
                let holds = known.is_some_and(|known| claims.hold(&known, services.now_s()));
                holds.then_some(Principal::Machine(claims.machine))
            }
            None => services.store.principal(bearer, services.now_s()).await?,
        };
        let principal = principal.ok_or_else(ended)?;
        if matches!(principal, Principal::Operator(_)) {
            services.roots.refresh().await?;
        }
        match &principal {
            Principal::Operator(key) if !services.roots.current().is_operator(key) => {
                return Err(revoked_operator(key));
            }
            Principal::Operator(key) => proved(&Payer::Operator(*key.as_bytes())).await?,
            Principal::Machine(name) => proved(&Payer::Machine(name.clone())).await?,
        }
        Ok(principal)
    }

    /// Whether it belongs to this machine. Counts the request as the machine's.
    pub async fn is_machines(&self, app: &App, machine: &MachineName) -> Result<(), Refused> {
        match self.principal(app).await? {
            Principal::Machine(name) if name == *machine => count(app, &name),
            _ => Err(somebody_elses(machine)),
        }
    }
}

/// A machine reading its own files, or an operator. The machine is the one that the path names.
pub struct MachineReader(pub MachineName);

impl FromRequestParts<Shared> for MachineReader {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Refused> {
        let OfMachine(machine) = OfMachine::from_request_parts(parts, app).await?;
        match Bearer(bearer(&parts.headers)).principal(app).await? {
            Principal::Machine(name) if name != machine => Err(somebody_elses(&machine)),
            Principal::Machine(name) => count(app, &name).map(|()| Self(machine)),
            Principal::Operator(_) => Ok(Self(machine)),
        }
    }
}

/// Any machine or operator, reading what is the same for all of them.
pub struct Reader;

impl FromRequestParts<Shared> for Reader {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Refused> {
        match Bearer(bearer(&parts.headers)).principal(app).await? {
            Principal::Machine(name) => count(app, &name).map(|()| Self),
            Principal::Operator(_) => Ok(Self),
        }
    }
}

/// A machine or an operator reading a file of the cache; a machine sends many such requests at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheReader {
    Machine,
    Operator,
}

impl FromRequestParts<Shared> for CacheReader {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Refused> {
        match Bearer(bearer(&parts.headers)).principal(app).await? {
            Principal::Machine(name) => {
                app.rates.cache(&name).map_err(|wait| too_many(&name, wait)).map(|()| Self::Machine)
            }
            Principal::Operator(_) => Ok(Self::Operator),
        }
    }
}

/// An operator who uploads to the cache.
pub struct Uploader(pub PublicKey);

impl FromRequestParts<Shared> for Uploader {
    type Rejection = Refused;

    async fn from_request_parts(parts: &mut Parts, app: &Shared) -> Result<Self, Refused> {
        match Bearer(bearer(&parts.headers)).principal(app).await? {
            Principal::Operator(key) => Ok(Self(key)),
            Principal::Machine(_) => {
                let message = "machines may only read here: operators upload, with a bearer of their own";
                Err(refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message))
            }
        }
    }
}

/// Counts one more request of a machine.
pub fn count(app: &App, machine: &MachineName) -> Result<(), Refused> {
    app.rates.machine(machine).map_err(|wait| too_many(machine, wait))
}

fn too_many(machine: &MachineName, wait: Duration) -> Refused {
    Refused::too_many(&format!("machine {machine}"), wait)
}

fn somebody_elses(machine: &MachineName) -> Refused {
    let message = format!("this bearer does not belong to {machine}: each machine may read only its own");
    refuse(StatusCode::FORBIDDEN, ProblemCode::Unauthorised, message)
}
