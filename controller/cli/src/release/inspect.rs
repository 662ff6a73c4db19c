//! What a draft would do, taken from the bytes that are signed.

use std::collections::BTreeMap;

use anyhow::Result;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::draft::{Checked, Draft, Drafted};
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MachineView, Published};
use muster_protocol::policy::Policy;
use muster_protocol::shown;
use muster_protocol::target::{HealthCheck, Probe};
use muster_protocol::tuf::repository::{CheckedPublication, root_names};

use super::difference::{self, Difference};
use crate::api::client::Api;
use crate::flake::derivations::Derivations;
use crate::trust::roots::Trusted;

use crate::terminal::count::count;
use crate::terminal::table;
use crate::trust::change::tell_root;

/// What machines have now, according to the controller.
pub struct Current(Option<BTreeMap<MachineName, Option<Published>>>);

impl Current {
    pub async fn ask(api: &Api) -> Result<Self> {
        // A root holder who is not an operator may not see machines, and does not need to.
        let machines: Result<Vec<MachineView>> = api.get(OPERATOR_MACHINES).await;
        let known = machines
            .ok()
            .map(|machines| machines.into_iter().map(|view| (view.machine, view.published)).collect());
        Ok(Self(known))
    }
    pub fn unknown() -> Self {
        Self(None)
    }
    fn of(&self, machine: &MachineName) -> Option<&Published> {
        self.0.as_ref()?.get(machine)?.as_ref()
    }
}

/// Prints all of it.
pub async fn tell(
    draft: &Draft,
    checked: &Checked,
    trusted: &Trusted,
    current: &Current,
    flake: Option<&str>,
) -> Result<()> {
    say!(
        "Draft {}, made by {} on {}",
        draft.id()?.short(),
        trusted.name(&draft.made_by),
        table::date(draft.made_at)
    );
    match (checked, &draft.what) {
        (Checked::Root(next), Drafted::Root { root }) => {
            tell_root(trusted, next, &root_names(root.as_bytes()));
        }
        (Checked::Generations(generations), _) => {
            let new = generations.iter().map(|checked| &checked.target);
            let pairs: Vec<_> =
                new.map(|new| (current.of(&new.machine).map(|old| &old.target), new)).collect();
            let differences = difference::between(&pairs, &mut Derivations::default()).await;
            for (generation, difference) in generations.iter().zip(&differences) {
                for line in lines(generation, current, difference) {
                    say!("{line}");
                }
            }
            if flake.is_none() {
                say!(
                    "Nothing was evaluated again: give --flake to compare the draft with what you have read."
                );
            }
        }
        _ => {}
    }
    let progress = draft.progress(&trusted.root)?;
    let signed: Vec<String> = progress.signed.iter().map(|key| trusted.name(key)).collect();
    let signed = if signed.is_empty() { "nobody yet".to_owned() } else { signed.join(", ") };
    say!("signed by {signed}; {} more wanted", count(progress.missing, "signature", "signatures"));
    Ok(())
}

/// One generation, and how it differs from what the machine has.
fn lines(checked: &CheckedPublication, current: &Current, difference: &Difference) -> Vec<String> {
    let target = &checked.target;
    let mut lines = vec![format!(
        "{} ({}, {}) generation {}",
        target.machine, target.class, target.system, target.generation
    )];
    let mut line = |name: &str, value: String| lines.push(format!("    {name:<16} {}", shown::field(&value)));
    line("derivation", target.derivation.to_string());
    line("output", target.output.to_string());
    let old = current.of(&target.machine);
    match (old, &current.0) {
        (Some(old), _) => {
            line("in the place of", format!("generation {}, {}", old.target.generation, old.target.output));
        }
        (None, Some(_)) => line("in the place of", "nothing: it is the first".into()),
        (None, None) => line("in the place of", "not known here".into()),
    }
    let (summary, more) = difference.describe();
    line("that is", summary.to_owned());
    for change in more {
        line("", change);
    }
    line("action", target.action.as_str().to_owned());
    match (&target.rollout, old.is_some_and(|old| old.target.rollout.is_some())) {
        (Some(place), _) => {
            line("rollout", format!("wave {} of plan {}", place.wave.saturating_add(1), place.plan.short()));
        }
        (None, true) => line("rollout", "none: it leaves its rollout, and switches at once".to_owned()),
        (None, false) => {}
    }
    for feature in &target.requires {
        line("requires", format!("an agent that knows of {feature}"));
    }
    line("deadline", format!("{} s", target.deadline_seconds));
    for check in &target.checks {
        line("check", describe_check(check));
    }
    if target.checks.is_empty() {
        line("check", "none but that the system runs and reaches the controller".into());
    }
    for (setting, value) in settings(&target.policy) {
        line("policy", format!("{setting}: {value}"));
    }
    for key in &target.trusted_nix_keys {
        line("takes built from", key.clone());
    }
    for option in target.evaluation.describe() {
        line("evaluated with", option);
    }
    if let Some(message) = &target.message {
        line("message", message.clone());
    }
    line("signature ends", table::date(checked.targets_expires * 1000));
    lines
}

/// The settings of a policy, as they are signed. Hooks run as root: nothing is left out.
pub fn settings(policy: &Policy) -> BTreeMap<String, String> {
    match serde_json::to_value(policy) {
        Ok(serde_json::Value::Object(fields)) => {
            fields.into_iter().map(|(name, value)| (name, value.to_string())).collect()
        }
        _ => BTreeMap::new(),
    }
}

fn describe_check(check: &HealthCheck) -> String {
    let what = match &check.probe {
        Probe::Command { command } => format!("runs {}", shown::command(command)),
        Probe::Http { url } => format!("asks {url}"),
        Probe::Tcp { address } => format!("connects to {address}"),
        Probe::Unit { unit } => format!("wants the unit {unit} active"),
        Probe::Label { label } => format!("wants the job {label} well"),
        Probe::Unknown => "is of a kind that this muster does not know, and fails".to_owned(),
    };
    let tries = count(check.tries, "try", "tries");
    format!("{}: {what} ({tries} of {} s)", check.name, check.timeout_seconds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_that_another_operator_wrote_forges_no_line_of_what_is_signed() {
        let forged = "true\n    derivation       /nix/store/good.drv\n    signature ends   2099";
        let check: HealthCheck = serde_json::from_value(serde_json::json!({
            "name": "web", "kind": "command",
            "command": ["/bin/sh", "-c", forged, "a b"],
        }))
        .unwrap();
        let told = shown::field(&describe_check(&check));
        assert!(!told.contains('\n'), "{told}");
        let command = format!("runs /bin/sh -c $'{}' 'a b' (", forged.replace('\n', r"\n"));
        assert!(told.contains(&command), "{told}");
    }
}
