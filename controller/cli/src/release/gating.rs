//! The rollout of an update: which one, worked out for its machines, sent to the controller, and named in
//! what is signed.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use muster_protocol::api::{OPERATOR_PLANS, OPERATOR_SESSION, ProblemCode, plan_path};
use muster_protocol::ids::{MachineName, Sha256, Tag};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{MachineView, NewPlan, RolloutView, Session, Standing};
use muster_protocol::plan::{FEATURE, MAX_PLAN_BYTES, Place, Plan, RolloutName};
use muster_protocol::random;
use muster_protocol::target::Target;

use super::drafts::is;
use super::rollout::work::{Identity, Known, Member, RolloutError, Worked, work_out};
use super::rollout::written::{self, Written};
use super::select;
use crate::api::client::Api;
use crate::config::Config;
use crate::flake::evaluate::Flake;
use crate::terminal::error::{Hint, WithHint as _};
use crate::terminal::list::listed;
use crate::trust::roots::Trusted;

/// The options of an update that choose its rollout.
#[derive(Debug, Clone, Default, Args)]
pub struct Choice {
    /// Switch in the waves of this rollout of the flake [default: rollout in muster.toml]
    #[arg(long, value_name = "NAME")]
    rollout: Option<RolloutName>,
    /// The same, with a rollout from a file (JSON or TOML)
    #[arg(long, value_name = "FILE")]
    rollout_file: Option<PathBuf>,
    /// Without waves: every machine switches as soon as it can, also out of a rollout that goes on
    #[arg(long, conflicts_with_all = ["rollout", "rollout_file"])]
    pub at_once: bool,
}

/// A rollout that was chosen, as written.
#[derive(Debug)]
pub struct Chosen {
    pub name: RolloutName,
    written: Written,
}

impl Choice {
    /// The rollout to use, read and checked; `None`: every machine switches at once.
    pub fn chosen(&self, config: &Config, flake: &Flake) -> Result<Option<Chosen>> {
        if self.at_once {
            return Ok(None);
        }
        if let Some(file) = &self.rollout_file {
            let name = match &self.rollout {
                Some(name) => name.clone(),
                None => name_of(file)?,
            };
            let written = written::from_file(file).hint("docs/rollouts.md says what a rollout may have")?;
            return Ok(Some(Chosen { name, written }));
        }
        let Some(name) = self.rollout.as_ref().or(config.file.rollout.as_ref()) else { return Ok(None) };
        declared(flake, name)?
            .ok_or_else(|| {
                let known = listed(flake.muster.rollouts.keys());
                anyhow!("the flake {} has no rollout {name}; it has {known}", flake.reference)
            })
            .hint(
                "write it under muster.rollouts (rollouts, in the inventory of lib.mkFleet), or see \
             --at-once",
            )
            .map(Some)
    }
}

fn name_of(file: &Path) -> Result<RolloutName> {
    let stem = file.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
    stem.parse()
        .map_err(|_| anyhow!("'{stem}' is no name of a rollout"))
        .hint("name it with --rollout NAME beside --rollout-file")
}

/// The flake's rollout of this name, if it has one.
pub fn declared(flake: &Flake, name: &RolloutName) -> Result<Option<Chosen>> {
    let Some(value) = flake.muster.rollouts.get(name.as_str()) else { return Ok(None) };
    let written = Written::read(&format!("muster.rollouts.{name}"), value)
        .with_context(|| format!("the flake {}", flake.reference))
        .hint("correct it there; docs/rollouts.md says what a rollout may have")?;
    Ok(Some(Chosen { name: name.clone(), written }))
}

/// A plan with the bytes that are signed.
#[derive(Debug, Clone)]
pub struct Sealed {
    pub plan: Plan,
    pub hash: Sha256,
    text: String,
}

impl Sealed {
    pub fn new(plan: Plan) -> Result<Self> {
        let bytes = plan.to_bytes()?;
        Ok(Self { plan, hash: Sha256::of(&bytes), text: String::from_utf8(bytes)? })
    }

    /// From bytes that anybody may have sent.
    pub fn named(bytes: Vec<u8>, hash: Sha256) -> Result<Self> {
        let plan = Plan::parse_named(&bytes, hash)?;
        Ok(Self { plan, hash, text: String::from_utf8(bytes)? })
    }

    pub fn bytes(&self) -> &[u8] {
        self.text.as_bytes()
    }

    /// Puts a target into its place in the plan.
    pub fn put(&self, target: &mut Target) -> Result<()> {
        let wave = self.plan.waves_of().get(&target.machine).copied();
        let wave = wave.ok_or_else(|| anyhow!("the plan does not have {}", target.machine))?;
        let place = Place { plan: self.hash, wave: u32::try_from(wave)? };
        target.rollout = Some(place);
        if !target.requires.iter().any(|word| word == FEATURE) {
            target.requires.push(FEATURE.to_owned());
        }
        target.check()?;
        let terms = (&self.plan.fleet, self.plan.epoch);
        Ok(self.plan.require_place(terms, &target.machine, &target.output, &place)?)
    }

    /// Sends it to the controller, which must have it before a target names it.
    pub async fn send(&self, api: &Api) -> Result<()> {
        let sent: Result<serde_json::Value> =
            api.post(OPERATOR_PLANS, &NewPlan { plan: self.text.clone() }).await;
        match sent {
            Ok(_) => Ok(()),
            Err(error) if is(&error, &[ProblemCode::NotFound]) => Err(error)
                .context("the controller knows of no rollouts, and nothing was signed")
                .hint("update the controller first, or publish without waves: --at-once"),
            Err(error) => Err(error.context("the plan was not taken, and nothing was signed")),
        }
    }

    /// The plan that a target names, from the controller.
    pub async fn fetch(api: &Api, hash: Sha256) -> Result<Self> {
        let session: Session = api.post(OPERATOR_SESSION, &()).await?;
        let most = usize::try_from(MAX_PLAN_BYTES)?;
        let bytes = api.file(&plan_path(&hash), most, Some(&session.bearer)).await?;
        let bytes = bytes
            .ok_or_else(|| anyhow!("the controller does not have the plan {}", hash.short()))
            .hint("have the update made anew; if its maker kept the plan, give it to --plan")?;
        Self::named(bytes, hash)
    }
}

/// Whom a rollout may name, and what of each machine counts.
pub struct Fleet<'a> {
    pub config: &'a Config,
    pub trusted: &'a Trusted,
    pub flake: &'a Flake,
    pub views: &'a [MachineView],
}

impl Fleet<'_> {
    /// Works a rollout out for these targets; `key_of` says whose word counts, or why not.
    pub fn work_out(
        &self,
        chosen: &Chosen,
        nonce: Sha256,
        targets: &[&Target],
        mut key_of: impl FnMut(&MachineView) -> Result<Result<PublicKey, String>>,
    ) -> Result<Worked> {
        let tags = self.tags();
        let mut only_there: BTreeMap<&Tag, Vec<&MachineName>> = BTreeMap::new();
        let mut members = Vec::new();
        for target in targets {
            let view = self.views.iter().find(|view| view.machine == target.machine);
            let view = view.ok_or_else(|| anyhow!("the controller does not know {}", target.machine))?;
            let key = key_of(view)?;
            let own = tags.get(&view.machine).cloned().unwrap_or_default();
            for tag in view.tags.iter().filter(|tag| !own.contains(tag.as_str())) {
                only_there.entry(tag).or_default().push(&view.machine);
            }
            members.push(Member {
                machine: target.machine.clone(),
                class: target.class,
                tags: own,
                output: target.output.clone(),
                key,
            });
        }
        let identity = Identity {
            fleet: self.config.file.fleet,
            epoch: self.trusted.root.epoch(),
            name: chosen.name.clone(),
            nonce,
        };
        let worked = work_out(&chosen.written, &identity, &members, &self.known(&tags));
        let mut worked = worked.map_err(|error: RolloutError| {
            let hint = error.hint().to_owned();
            anyhow::Error::new(error)
                .context(format!("rollout {} cannot be worked out", chosen.name))
                .context(Hint(hint))
        })?;
        for tag in chosen.written.waves.iter().flat_map(|wave| &wave.tags) {
            if let Some(names) = only_there.get(tag) {
                let verb = if names.len() == 1 { "has" } else { "have" };
                worked.notes.push(format!(
                    "{} {verb} the tag {tag} only at the controller, which does not count here: write it into the \
                     flake",
                    listed(names)
                ));
            }
        }
        Ok(worked)
    }

    /// Each machine's tags by the flake alone: the controller must not choose who is a canary.
    fn tags(&self) -> BTreeMap<&MachineName, BTreeSet<String>> {
        let found = self.flake.found.iter().map(|found| (found.machine.as_str(), &found.tags));
        let found: BTreeMap<&str, &BTreeSet<String>> = found.collect();
        let of = |view: &MachineView| {
            let named = found.get(view.machine.as_str()).copied().into_iter().flatten().cloned();
            select::flake_tags(view, &self.flake.muster).into_iter().chain(named).collect()
        };
        self.views.iter().map(|view| (&view.machine, of(view))).collect()
    }

    fn known(&self, tags: &BTreeMap<&MachineName, BTreeSet<String>>) -> Known {
        let found = &self.flake.found;
        let mut tags: BTreeSet<String> = tags.values().flatten().cloned().collect();
        tags.extend(found.iter().flat_map(|found| found.tags.iter().cloned()));
        tags.extend(["all", "nixos", "darwin"].map(str::to_owned));
        let mut machines: BTreeSet<MachineName> =
            self.views.iter().map(|view| view.machine.clone()).collect();
        machines.extend(found.iter().filter_map(|found| found.machine.parse().ok()));
        Known { machines, tags }
    }
}

/// 32 fresh bytes.
pub fn nonce() -> Result<Sha256> {
    Ok(Sha256::from_bytes(random::bytes()?))
}

/// Refuses machines whose agents do not know of gates: they would never find such a target.
pub fn require_new_agents<'a>(views: impl IntoIterator<Item = &'a MachineView>) -> Result<()> {
    let old: Vec<&MachineName> = views
        .into_iter()
        .filter(|view| view.standing == Standing::Enrolled)
        .filter(|view| !view.understands.iter().any(|word| word == FEATURE))
        .map(|view| &view.machine)
        .collect();
    if old.is_empty() {
        return Ok(());
    }
    Err(anyhow!("these machines run agents that know of no rollouts: {}", listed(old))).hint(
        "update their agents first, with `muster update --at-once MACHINE …`, or leave them out: name the \
         others",
    )
}

/// The machines that would leave an open rollout before they run what it gives them. Pure.
pub fn leaving<'a>(
    open: &[RolloutView],
    views: impl IntoIterator<Item = &'a MachineView>,
) -> Vec<(MachineName, RolloutName)> {
    let each = views.into_iter().filter_map(|view| {
        let published = view.published.as_ref()?;
        let place = published.target.rollout?;
        let rollout = open.iter().find(|rollout| rollout.plan == place.plan)?;
        let runs = view.runs.as_ref().and_then(|runs| runs.generation) == Some(published.target.generation);
        (!runs).then(|| (view.machine.clone(), rollout.name.clone()))
    });
    each.collect()
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::SecretKey;

    use super::super::rollout::work::tests::{output, plan_of};
    use super::*;

    fn view(more: &serde_json::Value) -> MachineView {
        let mut view = serde_json::json!({
            "machine": "tin", "class": "nixos", "system": "x86_64-linux", "tags": [],
            "standing": "enrolled", "condition": "updating", "clone_alarm": false,
            "holds": { "root": 1, "timestamp": 1, "snapshot": 1, "targets": 1 },
        });
        if let (Some(view), Some(more)) = (view.as_object_mut(), more.as_object()) {
            view.extend(more.clone());
        }
        serde_json::from_value(view).unwrap()
    }

    fn target(machine: &str) -> serde_json::Value {
        serde_json::json!({
            "machine": machine, "class": "nixos", "generation": 3, "system": "x86_64-linux",
            "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv", "output": output(machine),
        })
    }

    #[test]
    fn a_target_is_put_where_the_plan_has_its_machine() {
        let written = serde_json::json!({ "waves": [{ "name": "a", "machines": ["tin"] }] });
        let sealed = Sealed::new(plan_of(&written, &["tin", "lead"])).unwrap();
        let mut gated: Target = serde_json::from_value(target("lead")).unwrap();
        sealed.put(&mut gated).unwrap();
        assert_eq!(gated.rollout, Some(Place { plan: sealed.hash, wave: 1 }));
        assert_eq!(
            (gated.requires.as_slice(), gated.listed_as().as_str()),
            (&[FEATURE.to_owned()][..], "lead/gated.json")
        );
        let mut other: Target = serde_json::from_value(target("tin")).unwrap();
        other.output = output("lead");
        assert!(sealed.put(&mut other).is_err(), "its word would count for another system");
        let mut stranger: Target = serde_json::from_value(target("zinc")).unwrap();
        assert!(sealed.put(&mut stranger).is_err());
        assert!(Sealed::named(sealed.bytes().to_vec(), sealed.hash).is_ok());
        assert!(Sealed::named(sealed.bytes().to_vec(), Sha256::of(b"x")).is_err());
    }

    #[test]
    fn old_agents_are_refused_by_name_and_machines_that_have_not_enrolled_are_not() {
        let new = view(&serde_json::json!({ "understands": ["x", "rollouts"] }));
        let invited = view(&serde_json::json!({ "standing": "invited" }));
        assert!(require_new_agents([&new, &invited]).is_ok());
        let refused = require_new_agents([&new, &view(&serde_json::json!({}))]).unwrap_err();
        assert!(format!("{refused:#}").contains("know of no rollouts: tin"), "{refused:#}");
    }

    #[test]
    fn a_machine_that_waits_in_an_open_rollout_would_leave_it() {
        let plan = Sha256::of(b"plan");
        let open: RolloutView = serde_json::from_value(serde_json::json!({
            "plan": plan, "name": "weekly", "at": 0, "by": SecretKey::generate().unwrap().public(),
            "state": "running", "why": "", "budget": 0, "failures": 0, "waves": [], "said": null,
        }))
        .unwrap();
        let published = |place: serde_json::Value| {
            let mut target = target("tin");
            target["rollout"] = place;
            target["requires"] = serde_json::json!(["rollouts"]);
            serde_json::json!({ "target": target, "at": 0, "by": open.by, "expires": 0 })
        };
        let waiting = view(
            &serde_json::json!({ "published": published(serde_json::json!({ "plan": plan, "wave": 1 })) }),
        );
        let left = leaving(std::slice::from_ref(&open), [&waiting]);
        assert_eq!(left, [("tin".parse().unwrap(), "weekly".parse().unwrap())]);
        let mut done = waiting.clone();
        done.runs = serde_json::from_value(serde_json::json!({
            "running": output("tin"), "booted": output("tin"), "generation": 3,
        }))
        .unwrap();
        assert!(leaving(std::slice::from_ref(&open), [&done]).is_empty());
        assert!(leaving(&[], [&waiting]).is_empty());
        let ungated = view(&serde_json::json!({ "published": published(serde_json::json!(null)) }));
        assert!(leaving(&[open], [&ungated]).is_empty());
    }
}
