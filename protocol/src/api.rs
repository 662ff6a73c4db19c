//! Paths, headers and errors of the HTTP API.

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::ids::{Generation, MachineName, Sha256};

/// `GET`: [`crate::operator::FleetView`], for anybody.
pub const FLEET: &str = "/v1/fleet";
/// `GET`: whether the process is alive, in one sentence.
pub const HEALTH: &str = "/healthz";
/// `GET`: whether it can serve requests now, in one sentence.
pub const READY: &str = "/readyz";
/// `GET`: this API as an OpenAPI document.
pub const OPENAPI: &str = "/v1/openapi.json";
/// `GET`: what Prometheus scrapes, at an address of its own (`metrics_listen`).
pub const METRICS: &str = "/metrics";
/// `POST`: [`crate::enrol::EnrolRequest`].
pub const ENROL: &str = "/v1/enrol";
/// `POST`: [`crate::checkin::CheckIn`].
pub const CHECKIN: &str = "/v1/checkin";
/// `POST`: [`crate::report::Batch`].
pub const REPORTS: &str = "/v1/reports";
/// The binary cache, for machines and operators with a bearer token.
pub const CACHE: &str = "/cache";
/// `POST` with an operator's bearer: which paths the cache does not have ([`crate::cache::AskedFor`]).
pub const CACHE_MISSING: &str = "/cache/missing";
/// `POST` with an operator's bearer: small paths for the cache ([`crate::cache::Uploads`]).
pub const CACHE_PATHS: &str = "/cache/paths";
/// `POST`: a bearer token for the cache ([`crate::operator::Session`]).
pub const OPERATOR_SESSION: &str = "/v1/operator/session";
/// `GET`: every machine; `POST`: [`crate::operator::AddMachine`].
pub const OPERATOR_MACHINES: &str = "/v1/operator/machines";
/// `GET`: what a list shows of every machine ([`crate::operator::MachineSummary`]).
pub const OPERATOR_SUMMARIES: &str = "/v1/operator/machines?fields=summary";
/// `POST`: [`crate::operator::AddMachines`].
pub const OPERATOR_INVITATIONS: &str = "/v1/operator/invitations";
/// `POST`: generations of many machines at once ([`crate::operator::Publications`]).
pub const OPERATOR_GENERATIONS: &str = "/v1/operator/generations";
/// `GET`: waits for a change of the fleet ([`crate::operator::Changes`]).
pub const OPERATOR_CHANGES: &str = "/v1/operator/changes";
/// `POST`: [`crate::operator::NewPlan`].
pub const OPERATOR_PLANS: &str = "/v1/operator/plans";
/// `GET`: rollouts, the newest first ([`crate::operator::RolloutView`]).
pub const OPERATOR_ROLLOUTS: &str = "/v1/operator/rollouts";
/// `GET`: [`crate::operator::BrakeView`] or null; `POST`: [`crate::operator::SetBrake`].
pub const OPERATOR_BRAKE: &str = "/v1/operator/brake";
/// `GET` and `POST`: drafts ([`crate::draft`]).
pub const OPERATOR_DRAFTS: &str = "/v1/operator/drafts";
/// `POST`: [`crate::operator::NewRoot`].
pub const OPERATOR_ROOT: &str = "/v1/operator/root";
/// `POST`: [`crate::cache::Collect`]; both `POST` and `GET`: [`crate::cache::Collection`].
pub const OPERATOR_COLLECT: &str = "/v1/operator/cache/collect";
/// `GET`: a page of the audit log ([`crate::audit::Page`]).
pub const OPERATOR_AUDIT: &str = "/v1/operator/audit";
/// `POST`: [`crate::audit::CutLog`].
pub const OPERATOR_AUDIT_CUT: &str = "/v1/operator/audit/cut";

/// The header with the machine's signature over the body, in hexadecimal.
pub const MACHINE_SIGNATURE: &str = "muster-signature";
/// The header with the signature by the new key of a check-in that replaces the machine's key, in
/// hexadecimal.
pub const MACHINE_NEW_SIGNATURE: &str = "muster-new-signature";
/// The header with a machine's [`crate::announce::Announcement`]; agents of version 0.1 send none.
pub const MACHINE_ANNOUNCES: &str = "muster-announces";
/// The header with a [`crate::session::SessionProof`], in place of the signature of a check-in that brings
/// no new key and sets up no session.
pub const MACHINE_SESSION: &str = "muster-session";
/// The header with an operator's [`crate::operator::RequestSignature`], in JSON.
pub const OPERATOR_SIGNATURE: &str = "muster-operator";
/// The header with the [`crate::signin::SignIn`] of a key that reads on an operator's behalf; that key
/// signed the request.
pub const OPERATOR_SIGN_IN: &str = "muster-sign-in";

/// The header with the ID of a request: a client's own, or one that the controller made. It is in the
/// controller's log lines about the request, and in each refusal.
pub const REQUEST_ID: &str = "x-request-id";

/// The longest ID of a request, in bytes.
pub const MAX_REQUEST_ID_BYTES: usize = 64;

/// A request's ID, if it is one plain word that may be logged and shown.
pub fn request_id(text: &str) -> Option<&str> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    ((1..=MAX_REQUEST_ID_BYTES).contains(&text.len()) && text.bytes().all(plain)).then_some(text)
}

/// The longest that a long poll may wait, in seconds, on either side.
pub const MAX_POLL_SECONDS: u64 = 600;
/// The longest `Retry-After` that is followed, in seconds: a controller may slow a machine down, but not
/// silence it for longer than a person would wait.
pub const MAX_RETRY_AFTER_SECONDS: u64 = 600;
/// How much of a problem's message is kept, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// `1.root.json`, `2.root.json` …: public, since everybody must be able to follow the chain (TUF 5.3).
pub fn root_path(version: u64) -> String {
    format!("/v1/root/{version}.root.json")
}
/// The folder of a machine's TUF repository; it serves the roots too.
pub fn tuf_path(machine: &MachineName) -> String {
    format!("/v1/machines/{machine}/tuf")
}
/// The target's path inside its repository.
pub fn target_name(machine: &MachineName) -> String {
    format!("{machine}/generation.json")
}
/// The path of a target that has a place in a rollout. Another one, so that an agent that knows nothing of
/// gates does not find it.
pub fn gated_name(machine: &MachineName) -> String {
    format!("{machine}/gated.json")
}
/// Where the target is fetched, with its hash in front of the file name (consistent snapshots, TUF 6.2).
pub fn target_path(machine: &MachineName, hash: &Sha256) -> String {
    format!("{}/targets/{machine}/{hash}.generation.json", tuf_path(machine))
}
/// The same for a target that has a place in a rollout.
pub fn gated_path(machine: &MachineName, hash: &Sha256) -> String {
    format!("{}/targets/{machine}/{hash}.gated.json", tuf_path(machine))
}
/// The plan of a rollout, for machines and operators with a bearer token.
pub fn plan_path(plan: &Sha256) -> String {
    format!("/v1/plans/{plan}")
}
/// What machines said of that plan, as far as the gate of this machine's wave needs it.
pub fn statements_path(plan: &Sha256, machine: &MachineName, wave: u32) -> String {
    format!("{}/statements?machine={machine}&wave={wave}", plan_path(plan))
}
/// Waits until the latest generation differs from `have`, or for `wait` seconds.
pub fn poll_path(machine: &MachineName, have: Option<Generation>, wait: u64) -> String {
    let have = have.map_or_else(|| "0".to_owned(), |have| have.to_string());
    format!("/v1/machines/{machine}/poll?have={have}&wait={wait}")
}
/// The same, for an agent that trusts this version of the root and wants the files along with the news.
pub fn poll_files_path(machine: &MachineName, have: Option<Generation>, wait: u64, root: u64) -> String {
    format!("{}&root={root}&files=1", poll_path(machine, have, wait))
}
/// One rollout, by its plan: `GET`: [`crate::operator::RolloutView`]; `POST`:
/// [`crate::operator::AskRollout`].
pub fn operator_rollout(plan: &Sha256) -> String {
    format!("{OPERATOR_ROLLOUTS}/{plan}")
}
/// One machine, by its name.
pub fn operator_machine(machine: &MachineName) -> String {
    format!("{OPERATOR_MACHINES}/{machine}")
}

/// Whether a URL's host is this computer, the only one that plain HTTP may go to. Accepts IPv6 addresses in
/// brackets.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The body of every reply that is not a success.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What a program decides by.
    pub code: ProblemCode,
    /// One sentence that says what is wrong and what to do. Cut to [`MAX_MESSAGE_BYTES`].
    #[serde(deserialize_with = "bounded::truncated::<_, MAX_MESSAGE_BYTES>")]
    pub message: String,
}

/// A `Retry-After` in whole seconds, within bounds. The other form, a date, depends on a clock that may be
/// wrong by hours (RFC 9110, 10.2.3).
pub fn retry_after(value: &str) -> Option<std::time::Duration> {
    let value = value.trim();
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than fit a number ask for more than the longest wait.
    let seconds = value.parse().unwrap_or(u64::MAX).min(MAX_RETRY_AFTER_SECONDS);
    digits.then(|| std::time::Duration::from_secs(seconds))
}

/// Why a request was refused, for programs. Unknown codes read as `Other`.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemCode {
    /// The body or a header is not what it should be.
    Malformed,
    /// The body is larger than its limit.
    TooLarge,
    /// The bearer token is missing, expired or somebody else's.
    Unauthorised,
    /// The signature does not match the request and the key.
    BadSignature,
    /// The session is unknown or has ended: sign the same bytes.
    SessionEnded,
    /// There is no machine of this name.
    UnknownMachine,
    /// The machine or the operator was revoked.
    Revoked,
    /// There is no such enrolment token.
    TokenUnknown,
    /// The enrolment token was used.
    TokenUsed,
    /// The enrolment token has expired.
    TokenExpired,
    /// The number was used with another body, or is not higher than the last: perhaps a second machine with
    /// this key.
    Sequence,
    /// The check-in was answered before, and so was a later one.
    Repeated,
    /// No honest machine counts its events like this; it begins a new stream.
    EventNumbers,
    /// Somebody else was faster, or something else is in the way; read again and repeat.
    Conflict,
    /// The class or the system is not the machine's.
    WrongClass,
    /// There is nothing here.
    NotFound,
    /// The database or memory is in use; try again soon.
    Busy,
    /// Too many requests; `Retry-After` says when to try again.
    TooMany,
    /// The controller's disk is full.
    StorageFull,
    /// The controller failed; its log says why.
    Internal,
    /// A code of a later version.
    #[serde(other)]
    Other,
}

/// What to do about a reply that is not a controller's, by its status: something in between sent it.
pub fn advice_about_a_stranger(status: u16) -> &'static str {
    match status {
        407 => "a proxy on the way wants a password",
        413 => {
            "what is in front of the controller accepts nothing this large: raise its limit \
             (client_max_body_size in nginx); no disk is full"
        }
        502..=504 => {
            "what is in front of the controller does not reach it: see that `muster serve` runs behind it"
        }
        _ => {
            "see that the url is a Muster controller's: a proxy, a portal or another program may \
             answer in its place"
        }
    }
}
