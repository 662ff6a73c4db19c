//! How a request can fail, and what follows.

use std::time::Duration;

use muster_protocol::api::{self, Problem, ProblemCode};

use crate::core::answers::ends_check_in;

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "the controller at {url} cannot be reached ({detail}): check that it runs and that this machine is \
         online"
    )]
    Unreachable { url: String, detail: String },
    #[error("{}", refusal(*status, problem.as_ref()))]
    Refused { status: u16, problem: Option<Problem>, retry_after: Option<Duration> },
    #[error("the controller's answer to {path} exceeds {limit} bytes and was discarded")]
    TooLarge { path: String, limit: u64 },
    #[error(
        "the controller's answer to {path} is not understood ({detail}): is a proxy or another program in \
         its place?"
    )]
    Malformed { path: String, detail: String },
    #[error("'{url}' is not the address of a controller: {detail}")]
    Address { url: String, detail: &'static str },
    #[error("the certificate that the token pins is not usable ({0}): make a new token")]
    Certificate(String),
    #[error("the HTTP client cannot be created: {0}")]
    Setup(String),
}

fn refusal(status: u16, problem: Option<&Problem>) -> String {
    match problem {
        Some(problem) => format!("the controller refused it ({status}): {}", problem.message),
        None => format!(
            "the controller answered with status {status} and no reason: {}",
            api::advice_about_a_stranger(status)
        ),
    }
}

impl ClientError {
    /// Whether nobody answered, or only an intermediary that does not speak for the controller.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::Unreachable { .. } => true,
            Self::Refused { status, .. } => matches!(status, 502..=504),
            _ => false,
        }
    }
    /// Whether a check-in with this answer need not be sent again.
    pub fn ends_check_in(&self) -> bool {
        matches!(self, Self::Refused { status, .. } if ends_check_in(*status))
    }
    /// How long the controller asks to be left alone.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Refused { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
    /// Whether a new check-in may help.
    pub fn needs_new_bearer(&self) -> bool {
        matches!(self, Self::Refused { status: 401, .. })
    }
    /// The controller's code for it.
    pub fn code(&self) -> Option<ProblemCode> {
        match self {
            Self::Refused { problem: Some(problem), .. } => Some(problem.code),
            _ => None,
        }
    }
}
