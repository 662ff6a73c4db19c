//! Paths, headers and errors of the HTTP API.

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::ids::{Generation, MachineName, Sha256};

pub const FLEET: &str = "/v1/fleet";
pub const ENROL: &str = "/v1/enrol";
pub const CHECKIN: &str = "/v1/checkin";
pub const REPORTS: &str = "/v1/reports";
pub const CACHE: &str = "/cache";
pub const OPERATOR_SESSION: &str = "/v1/operator/session";
pub const OPERATOR_MACHINES: &str = "/v1/operator/machines";
pub const OPERATOR_CHANGES: &str = "/v1/operator/changes";
pub const OPERATOR_DRAFTS: &str = "/v1/operator/drafts";
pub const OPERATOR_ROOT: &str = "/v1/operator/root";
pub const OPERATOR_AUDIT: &str = "/v1/operator/audit";

/// The header with the machine's signature over the body, in hexadecimal.
pub const MACHINE_SIGNATURE: &str = "muster-signature";
/// The header with the signature of the key that a check-in brings in place of the old one, in hexadecimal.
pub const MACHINE_NEW_SIGNATURE: &str = "muster-new-signature";
/// The header with a machine's [`crate::announce::Announcement`]; agents of version 0.1 send none.
pub const MACHINE_ANNOUNCES: &str = "muster-announces";
/// The header with an operator's [`crate::operator::RequestSignature`], in JSON.
pub const OPERATOR_SIGNATURE: &str = "muster-operator";
/// The header with the [`crate::signin::SignIn`] of a key that reads in an operator's place; then that key signed the request.
pub const OPERATOR_SIGN_IN: &str = "muster-sign-in";

/// The longest that a long poll may wait, in seconds, on either side.
pub const MAX_POLL_SECONDS: u64 = 600;
/// The longest `Retry-After` that is followed, in seconds: a controller may slow a machine down, and not silence it for longer
/// than a person waits.
pub const MAX_RETRY_AFTER_SECONDS: u64 = 600;
/// How much of a problem's message is kept, in bytes.
pub const MAX_MESSAGE_BYTES: usize = 4096;

/// `1.root.json`, `2.root.json` …: public, since everybody must be able to follow the chain.
pub fn root_path(version: u64) -> String {
    format!("/v1/root/{version}.root.json")
}
/// The folder of a machine's TUF repository; roots are served there as well.
pub fn tuf_path(machine: &MachineName) -> String {
    format!("/v1/machines/{machine}/tuf")
}
/// The target's path inside its repository.
pub fn target_name(machine: &MachineName) -> String {
    format!("{machine}/generation.json")
}
/// Where the target is fetched, with its hash before the file's name (consistent snapshots, TUF 6.2).
pub fn target_path(machine: &MachineName, hash: &Sha256) -> String {
    format!("{}/targets/{machine}/{hash}.generation.json", tuf_path(machine))
}
/// Waits until the latest generation is another one than `have`, or `wait` seconds have gone.
pub fn poll_path(machine: &MachineName, have: Option<Generation>, wait: u64) -> String {
    let have = have.map_or_else(|| "0".to_owned(), |have| have.to_string());
    format!("/v1/machines/{machine}/poll?have={have}&wait={wait}")
}
pub fn operator_machine(machine: &MachineName) -> String {
    format!("{OPERATOR_MACHINES}/{machine}")
}

/// Whether a URL's host is this very machine, the only one that plain HTTP may go to. Takes IPv6 addresses in brackets too.
pub fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    bare == "localhost" || bare.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    pub code: ProblemCode,
    /// One sentence that says what is wrong and what to do.
    #[serde(deserialize_with = "bounded::truncated::<_, MAX_MESSAGE_BYTES>")]
    pub message: String,
}

/// A `Retry-After` in whole seconds, within bounds. The other form, a date, would be read with a clock that may be wrong by hours.
pub fn retry_after(value: &str) -> Option<std::time::Duration> {
    let value = value.trim();
    let digits = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit());
    // More digits than a number has ask for more than the longest wait.
    let seconds = value.parse().unwrap_or(u64::MAX).min(MAX_RETRY_AFTER_SECONDS);
    digits.then(|| std::time::Duration::from_secs(seconds))
}

/// What a program may decide by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemCode {
    Malformed,
    TooLarge,
    /// No bearer, an expired one, or one of somebody else.
    Unauthorised,
    BadSignature,
    UnknownMachine,
    /// The machine or the operator was revoked.
    Revoked,
    TokenUnknown,
    TokenUsed,
    TokenExpired,
    /// A number was used with another body, or is not higher than the last.
    Sequence,
    /// The check-in was answered before, and a later one after it.
    Repeated,
    /// The numbers of the events are nobody's honest ones; the machine begins another count.
    EventNumbers,
    /// Somebody else was faster; read again and repeat.
    Conflict,
    WrongClass,
    NotFound,
    Busy,
    /// Too many requests; `Retry-After` says when to come again.
    TooMany,
    StorageFull,
    Internal,
    #[serde(other)]
    Other,
}

/// What to do about an answer that is no controller's: by its status, whatever stands in between.
pub fn advice_about_a_stranger(status: u16) -> &'static str {
    match status {
        407 => "a proxy on the way wants a password",
        413 => {
            "what stands before the controller takes nothing this large: raise its limit (client_max_body_size in nginx); no \
             disk is full"
        }
        502..=504 => {
            "what stands before the controller does not reach it: see that `muster serve` runs behind it"
        }
        _ => {
            "see that the url is a Muster controller's: a proxy, a portal or another program may answer in its place"
        }
    }
}
