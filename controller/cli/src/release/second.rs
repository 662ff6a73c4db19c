//! The plans of a draft, as its next signer looks at them: the bytes that the targets name, each machine's
//! place, the keys that this operator knows, and the order that the flake says.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::operator::MachineView;
use muster_protocol::plan::{MAX_PLAN_BYTES, Plan, RolloutName};
use muster_protocol::target::Target;

use super::gating::{self, Fleet, Sealed};
use super::in_place::InPlace;
use super::rollout::{compared, told};
use crate::api::client::Api;
use crate::config::Config;
use crate::fleet::proven::{Proof, ProvenKeys};
use crate::terminal::error::{WithHint as _, causes};
use crate::terminal::list::listed;
use crate::trust::roots::Trusted;

/// The plans that targets name, each verified by its hash and with every target in its place.
pub async fn plans(
    api: Option<&Api>,
    file: Option<&Path>,
    (config, trusted): (&Config, &Trusted),
    targets: &[&Target],
) -> Result<Vec<Sealed>> {
    let mut plans: BTreeMap<Sha256, Sealed> = BTreeMap::new();
    for target in targets {
        let Some(place) = target.rollout else { continue };
        let sealed = match plans.entry(place.plan) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => entry.insert(plan(api, file, place.plan).await?),
        };
        let terms = (&config.file.fleet, trusted.root.epoch());
        sealed
            .plan
            .require_place(terms, &target.machine, &target.output, &place)
            .with_context(|| format!("the draft for {} does not fit its rollout", target.machine))
            .hint("do not sign this draft; find out who made it")?;
    }
    Ok(plans.into_values().collect())
}

async fn plan(api: Option<&Api>, file: Option<&Path>, hash: Sha256) -> Result<Sealed> {
    match (file, api) {
        (Some(file), _) => Sealed::named(read(file)?, hash)
            .with_context(|| file.display().to_string())
            .hint("give --plan the file that was written beside the draft"),
        (None, Some(api)) => Sealed::fetch(api, hash).await,
        (None, None) => Err(anyhow!("the draft is for a rollout, and its plan is not here"))
            .hint("give --plan the file that `muster update --draft-file` wrote beside the draft"),
    }
}

fn read(file: &Path) -> Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(file)
        .and_then(|file| file.take(MAX_PLAN_BYTES + 1).read_to_end(&mut bytes))
        .with_context(|| format!("cannot read {}", file.display()))?;
    Ok(bytes)
}

/// Shows a plan, and which of its machines the draft is not for.
pub fn tell(sealed: &Sealed, targets: &[&Target], now: UnixMillis) {
    for line in told::lines(&sealed.plan, now) {
        say!("{line}");
    }
    let waves = sealed.plan.waves_of();
    let others = waves.keys().filter(|name| !targets.iter().any(|target| target.machine == ***name));
    let others: Vec<&MachineName> = others.copied().collect();
    if !others.is_empty() {
        say!("  not in this draft: {}", listed(others));
    }
}

/// What is wrong with the plan's keys as far as this operator knows, in sentences.
pub fn unknown_keys(
    plan: &Plan,
    config: &Config,
    views: &[MachineView],
    keys: &mut ProvenKeys,
) -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    for voucher in plan.waves.iter().flat_map(|wave| &wave.vouchers) {
        let machine = &voucher.machine;
        let proof = match views.iter().find(|view| &view.machine == machine) {
            Some(view) => keys.look(config, view)?,
            None => Proof::Missing("the controller does not know it".to_owned()),
        };
        match proof {
            Proof::Proved(key) | Proof::Kept(key) if key == voucher.key => {}
            Proof::Proved(key) | Proof::Kept(key) => wrong.push(format!(
                "{machine}: the plan has the key {}, and the machine proved {}",
                voucher.key.short(),
                key.short()
            )),
            Proof::Missing(why) => wrong.push(format!("{machine}: its key is not proved here: {why}")),
        }
    }
    Ok(wrong)
}

/// What takes machines out of a rollout that the controller cannot be asked about, and what does without one
/// where there is a default. Pure.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Ungated {
    /// In sentences: nobody signs it by the way.
    pub doubts: Vec<String>,
    /// To know.
    pub notes: Vec<String>,
}

/// `uses_rollouts` says whether this fleet has any, as far as this operator's own files say.
pub fn ungated(
    targets: &[&Target],
    in_place: &BTreeMap<MachineName, InPlace>,
    default: Option<&RolloutName>,
    uses_rollouts: bool,
) -> Ungated {
    let mut found = Ungated::default();
    let mut without = Vec::new();
    for target in targets.iter().filter(|target| target.rollout.is_none()) {
        let machine = &target.machine;
        match in_place.get(machine) {
            Some(before @ (InPlace::Signed(_) | InPlace::Seen(_))) if before.may_wait() => {
                let why = before.describe();
                found.doubts.push(format!("{machine} leaves its rollout: it switches at once; it {why}"));
            }
            // It only renews what waits for nobody.
            Some(InPlace::Signed(before)) if before.output == target.output => continue,
            Some(before @ InPlace::Unknown(_)) => {
                let told = format!("{machine} would switch at once, and it {}", before.describe());
                if uses_rollouts { &mut found.doubts } else { &mut found.notes }.push(told);
            }
            _ => {}
        }
        without.push(machine);
    }
    if let Some(default) = default.filter(|_| !without.is_empty()) {
        let without = listed(without);
        found
            .doubts
            .push(format!("no rollout for {without}: muster.toml here names {default} for every update"));
    }
    found
}

/// How the plan differs from what the flake says now; `None` if the flake has no such rollout.
pub fn against_flake(
    fleet: &Fleet<'_>,
    sealed: &Sealed,
    targets: &[&Target],
    keys: &mut ProvenKeys,
) -> Result<Option<Vec<String>>> {
    let Some(chosen) = gating::declared(fleet.flake, &sealed.plan.name)? else { return Ok(None) };
    let of_plan: Vec<&Target> = targets
        .iter()
        .copied()
        .filter(|target| target.rollout.is_some_and(|place| place.plan == sealed.hash))
        .collect();
    // Keys that are not proved here were named before: here the order counts.
    let own = fleet.work_out(&chosen, sealed.plan.nonce, &of_plan, |view| {
        match sealed.plan.voucher(&view.machine) {
            Some(voucher) => Ok(Ok(voucher.key)),
            None => Ok(keys.look(fleet.config, view)?.key()),
        }
    });
    Ok(Some(match own {
        Ok(own) => compared::differences(&sealed.plan, &own.plan),
        Err(error) => {
            vec![format!("the flake's rollout cannot be worked out for this draft: {}", causes(&error))]
        }
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::highest::Seen;
    use super::*;

    fn target(machine: &str, output: &str, rollout: bool) -> Target {
        let mut target = json!({
            "machine": machine, "class": "nixos", "generation": 4, "system": "x86_64-linux",
            "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
            "output": format!("/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-{output}"),
        });
        if rollout {
            target["rollout"] = json!({ "plan": Sha256::of(b"plan"), "wave": 1 });
            target["requires"] = json!(["rollouts"]);
        }
        serde_json::from_value(target).unwrap()
    }

    #[test]
    fn the_next_signer_is_told_that_a_gate_is_taken_off_and_where_a_default_is_left_out() {
        let signed = |output, rollout| InPlace::Signed(Box::new(target("tin", output, rollout)));
        let of = |before: Option<InPlace>, drafted: &Target, default: Option<&str>, uses_rollouts| {
            let in_place = before.map(|before| (drafted.machine.clone(), before)).into_iter().collect();
            let default = default.map(|name| name.parse().unwrap());
            let Ungated { doubts, notes } = ungated(&[drafted], &in_place, default.as_ref(), uses_rollouts);
            (doubts.join("; "), notes.join("; "))
        };
        let (new, gated) = (target("tin", "new", false), target("tin", "new", true));
        let taken = "tin leaves its rollout: it switches at once";
        for before in [signed("old", true), signed("new", true)] {
            assert!(of(Some(before), &new, None, false).0.starts_with(taken));
        }
        let seen = |is_gated| InPlace::Seen(Seen { generation: "3".parse().unwrap(), is_gated });
        assert!(of(Some(seen(true)), &new, None, false).0.starts_with(taken));
        let nothing = (String::new(), String::new());
        assert_eq!(of(Some(signed("old", true)), &gated, Some("weekly"), true), nothing);
        assert_eq!(of(Some(seen(false)), &new, None, true), nothing);
        assert_eq!(of(Some(InPlace::Nothing), &new, None, true), nothing);
        // What cannot be told is a doubt where there are rollouts at all.
        let unknown = || Some(InPlace::Unknown("it has no file".to_owned()));
        assert!(of(unknown(), &new, None, true).0.contains("may wait in a rollout: it has no file"));
        assert!(of(unknown(), &new, None, false).1.contains("may wait in a rollout: it has no file"));
        // A default: a new system does without it; a renewal of what had none does not.
        let left_out = of(Some(signed("old", false)), &new, Some("weekly"), true).0;
        assert!(left_out.contains("no rollout for tin: muster.toml here names weekly"), "{left_out}");
        assert_eq!(of(Some(signed("new", false)), &new, Some("weekly"), true), nothing);
    }
}
