//! What a flake says beside its systems: the optional output `muster`.
//!
//! ```nix
//! muster.machines.NAME = {
//!   tags = [ "laptops" ];
//!   deadlineSeconds = 300;
//!   action = "switch";
//!   checks.web = { http = "http://127.0.0.1/health"; };
//!   checks.ssh = { tcp = "127.0.0.1:22"; timeoutSeconds = 5; tries = 3; };
//!   checks.disk = { command = [ "/run/current-system/sw/bin/test" "-d" "/data" ]; };
//!   trustedNixKeys = [ ];
//! };
//! ```
//!
//! A fleet of our library has `muster.inventory` beside it, and `muster.settings`, which is not read here.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ids::{MachineName, Tag};
use muster_protocol::target::{Action, HealthCheck, Probe};
use serde::Deserialize;

use super::inventory::Inventory;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Muster {
    #[serde(default)]
    pub machines: BTreeMap<MachineName, Machine>,
    #[serde(default)]
    pub inventory: Option<Inventory>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase", default)]
pub struct Machine {
    pub tags: BTreeSet<Tag>,
    pub deadline_seconds: Option<u32>,
    pub action: Action,
    pub checks: BTreeMap<String, Check>,
    pub trusted_nix_keys: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub struct Check {
    command: Option<Vec<String>>,
    http: Option<String>,
    tcp: Option<String>,
    timeout_seconds: Option<u32>,
    tries: Option<u32>,
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("muster.machines.{machine}.checks.{check} must have exactly one of command, http and tcp")]
pub struct CheckError {
    pub machine: MachineName,
    pub check: String,
}

impl Machine {
    /// The checks as they are signed, in the order of their names.
    pub fn health_checks(&self, machine: &MachineName) -> Result<Vec<HealthCheck>, CheckError> {
        let made = self.checks.iter().map(|(name, check)| {
            let probe = match (&check.command, &check.http, &check.tcp) {
                (Some(command), None, None) => Probe::Command { command: command.clone() },
                (None, Some(url), None) => Probe::Http { url: url.clone() },
                (None, None, Some(address)) => Probe::Tcp { address: address.clone() },
                _ => return Err(CheckError { machine: machine.clone(), check: name.clone() }),
            };
            Ok(HealthCheck {
                name: name.clone(),
                probe,
                timeout_seconds: check.timeout_seconds.unwrap_or(10),
                tries: check.tries.unwrap_or(3),
            })
        });
        made.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Muster, serde_json::Error> {
        serde_json::from_str(text)
    }

    #[test]
    fn checks_become_probes() {
        let muster = parse(
            r#"{"machines":{"a":{"checks":{"web":{"http":"http://x/"},"ssh":{"tcp":"h:22","tries":1}}}}}"#,
        )
        .unwrap();
        let name = "a".parse().unwrap();
        let checks = muster.machines[&name].health_checks(&name).unwrap();
        assert_eq!(checks[0].probe, Probe::Tcp { address: "h:22".into() });
        assert_eq!((checks[0].tries, checks[0].timeout_seconds), (1, 10));
        assert_eq!(checks[1].probe, Probe::Http { url: "http://x/".into() });
    }

    #[test]
    fn a_check_is_one_thing() {
        let muster = parse(r#"{"machines":{"a":{"checks":{"x":{"http":"u","tcp":"t"}}}}}"#).unwrap();
        let name = "a".parse().unwrap();
        let error = muster.machines[&name].health_checks(&name).unwrap_err();
        assert!(error.to_string().contains("muster.machines.a.checks.x"));
    }

    #[test]
    fn a_misspelt_attribute_is_named() {
        let error = parse(r#"{"machines":{"a":{"deadline":3}}}"#).unwrap_err().to_string();
        assert!(error.contains("deadline"), "{error}");
    }
}
