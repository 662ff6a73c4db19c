//! What a flake says besides its systems: the optional output `muster`.
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
//!   window = { days = [ "sat" ]; from = "22:00"; to = "04:00"; };
//! };
//! muster.rollouts.NAME.waves = [ { name = "canaries"; tags = [ "canary" ]; soak = "2h"; } ];
//! ```
//!
//! Next to `window` come all other settings of [`muster_protocol::policy::written::InFlake`]. A fleet of our
//! library also has `muster.inventory`, and `muster.settings`, which is not read here.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ids::{MachineName, Tag};
use muster_protocol::policy::Policy;
use muster_protocol::policy::written::{CheckInFlake, InFlake};
use muster_protocol::target::{Action, HealthCheck};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::inventory::Inventory;

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Muster {
    #[serde(default)]
    pub machines: BTreeMap<MachineName, Machine>,
    #[serde(default)]
    pub inventory: Option<Inventory>,
    /// As written: a rollout is checked when it is used, so that a mistake in it keeps nobody from the
    /// others.
    #[serde(default)]
    pub rollouts: BTreeMap<String, Value>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Map<String, Value>")]
pub struct Machine {
    pub tags: BTreeSet<Tag>,
    pub deadline_seconds: Option<u32>,
    pub action: Action,
    pub checks: BTreeMap<String, CheckInFlake>,
    pub trusted_nix_keys: Vec<String>,
    pub policy: Policy,
}

/// The settings that are not policy.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Plain {
    tags: BTreeSet<Tag>,
    deadline_seconds: Option<u32>,
    action: Action,
    checks: BTreeMap<String, CheckInFlake>,
    trusted_nix_keys: Vec<String>,
}

const PLAIN: [&str; 5] = ["tags", "deadlineSeconds", "action", "checks", "trustedNixKeys"];

/// All settings are on one level in a flake. Those that are not plain must be policy, which rejects unknown
/// fields.
impl TryFrom<Map<String, Value>> for Machine {
    type Error = serde_json::Error;
    fn try_from(written: Map<String, Value>) -> Result<Self, Self::Error> {
        let (plain, policy): (Map<_, _>, Map<_, _>) =
            written.into_iter().partition(|(name, _)| PLAIN.contains(&name.as_str()));
        let plain: Plain = serde_json::from_value(plain.into())?;
        let policy: InFlake = serde_json::from_value(policy.into())?;
        Ok(Self {
            tags: plain.tags,
            deadline_seconds: plain.deadline_seconds,
            action: plain.action,
            checks: plain.checks,
            trusted_nix_keys: plain.trusted_nix_keys,
            policy: policy.into(),
        })
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "muster.machines.{machine}.checks.{check} must have exactly one of command, http, tcp, unit and label"
)]
pub struct CheckError {
    pub machine: MachineName,
    pub check: String,
}

impl Machine {
    /// The checks as they are signed, sorted by name.
    pub fn health_checks(&self, machine: &MachineName) -> Result<Vec<HealthCheck>, CheckError> {
        let made = self.checks.iter().map(|(name, check)| {
            check
                .clone()
                .named(name)
                .ok_or_else(|| CheckError { machine: machine.clone(), check: name.clone() })
        });
        made.collect()
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::policy::RebootPolicy;
    use muster_protocol::target::Probe;

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
    fn policies_stand_beside_the_other_settings() {
        let text = r#"{"machines":{"a":{"tags":["x"],"window":{"from":"22:00","to":"04:00"},"reboot":"window",
            "urgent":true,"before":{"drain":{"command":["drain"]}}}}}"#;
        let muster = parse(text).unwrap();
        let machine = muster.machines.values().next().unwrap();
        assert_eq!((machine.tags.len(), machine.policy.windows.len()), (1, 1));
        assert_eq!(machine.policy.reboot, Some(RebootPolicy::Window));
        assert!(machine.policy.urgent && machine.policy.before[0].name == "drain");
        for (text, name) in [
            (r#"{"machines":{"a":{"reboot":"often"}}}"#, "often"),
            (r#"{"machines":{"a":{"minBattery":3}}}"#, "minBattery"),
            (r#"{"machines":{"a":{"checks":{"x":{"port":3}}}}}"#, "port"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }

    #[test]
    fn a_misspelt_attribute_is_named() {
        let error = parse(r#"{"machines":{"a":{"deadline":3}}}"#).unwrap_err().to_string();
        assert!(error.contains("deadline"), "{error}");
    }
}
