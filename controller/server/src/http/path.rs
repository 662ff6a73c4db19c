//! What stands in a request's path.

use muster_protocol::ids::{IdError, MachineName};

use super::problem::Refused;

pub fn machine_name(text: &str) -> Result<MachineName, Refused> {
    text.parse().map_err(|error: IdError| Refused::malformed(error.to_string()))
}
