//! What a machine was given last, and so whether it may wait in a rollout: by what operators signed and what
//! was seen here, not by the controller's word.

use std::collections::BTreeMap;

use anyhow::Result;
use muster_protocol::ids::{Epoch, Generation, MachineName};
use muster_protocol::operator::MachineView;
use muster_protocol::target::Target;

use super::highest::{HighestSigned, Seen};
use super::signed;
use crate::api::client::Api;
use crate::trust::roots::Trusted;

/// What a machine was given last.
#[derive(Debug)]
pub enum InPlace {
    /// Nothing: what is signed now is its first generation.
    Nothing,
    /// This, which today's operators signed.
    Signed(Box<Target>),
    /// What was seen here when it was published.
    Seen(Seen),
    /// It cannot be told, and why.
    Unknown(String),
}

impl InPlace {
    /// Whether it may wait in a rollout by it. Whether it already runs it is the controller's word.
    pub fn may_wait(&self) -> bool {
        match self {
            Self::Nothing => false,
            Self::Signed(target) => target.rollout.is_some(),
            Self::Seen(seen) => seen.is_gated,
            Self::Unknown(_) => true,
        }
    }

    /// Why it may wait, in the words after its name.
    pub fn describe(&self) -> String {
        match self {
            Self::Nothing => "was given nothing yet".to_owned(),
            Self::Signed(target) => match &target.rollout {
                Some(place) => format!(
                    "leaves the rollout of plan {}, in which it may still wait with generation {}",
                    place.plan.short(),
                    target.generation
                ),
                None => "waits in no rollout".to_owned(),
            },
            Self::Seen(Seen { generation, is_gated: true }) => {
                format!("leaves the rollout of generation {generation}, in which it may still wait")
            }
            Self::Seen(_) => "waits in no rollout".to_owned(),
            Self::Unknown(why) => format!("may wait in a rollout: {why}"),
        }
    }
}

/// The newest generation that the machine may have been given: what it or the controller says, and whatever
/// comes before the one that is signed, since it takes no lower one.
fn claimed(view: &MachineView, next: Generation) -> Option<Generation> {
    let held = Generation::of(view.holds.epoch, view.holds.targets).ok();
    let published = view.published.as_ref().map(|published| published.target.generation);
    published.max(held).max(before(next))
}

fn before(next: Generation) -> Option<Generation> {
    Generation::of(next.epoch(), next.get().saturating_sub(1)).ok()
}

/// What this computer alone can say.
pub fn by_memory(highest: &HighestSigned, machine: &MachineName, next: Generation) -> InPlace {
    match (remembered(before(next), highest.published(machine)), before(next)) {
        (Some(seen), _) => InPlace::Seen(seen),
        (None, None) if highest.of(machine).is_none() => InPlace::Nothing,
        _ => InPlace::Unknown("this computer did not see what it was given last".to_owned()),
    }
}

/// Whether what was seen here is as new as anything that is said. Pure.
fn remembered(claimed: Option<Generation>, seen: Option<Seen>) -> Option<Seen> {
    seen.filter(|seen| claimed <= Some(seen.generation))
}

/// Pure. `highest` is the highest number that was ever signed for it.
fn judge(
    claimed: Option<Generation>,
    signed: Result<Target, String>,
    (seen, highest, epoch): (Option<Seen>, Option<Generation>, Epoch),
) -> InPlace {
    let why = match signed {
        // What is signed next must be higher than all that the machine may hold.
        Ok(target) if claimed <= Some(target.generation) => return InPlace::Signed(Box::new(target)),
        Ok(target) => {
            format!(
                "the controller shows generation {} as its newest, and the machine may have a later one",
                target.generation
            )
        }
        Err(why) => why,
    };
    if let Some(seen) = remembered(claimed, seen) {
        return InPlace::Seen(seen);
    }
    // A machine that has one takes no first generation but of a new epoch.
    let is_new = claimed.is_none() && highest.is_none_or(|highest| highest.epoch() == epoch);
    if is_new { InPlace::Nothing } else { InPlace::Unknown(why) }
}

/// What each of these machines was given before the generation that is to be signed. Where this computer saw
/// that it waits for nobody, nothing is fetched.
pub async fn look(
    api: &Api,
    trusted: &Trusted,
    highest: &mut HighestSigned,
    next: &[(&MachineView, Generation)],
) -> Result<BTreeMap<MachineName, InPlace>> {
    let mut found = BTreeMap::new();
    let mut unsure = Vec::new();
    for (view, next) in next {
        let claimed = claimed(view, *next);
        match remembered(claimed, highest.published(&view.machine)).filter(|seen| !seen.is_gated) {
            Some(seen) => drop(found.insert(view.machine.clone(), InPlace::Seen(seen))),
            None => unsure.push((*view, claimed)),
        }
    }
    let views: Vec<&MachineView> = unsure.iter().map(|(view, _)| *view).collect();
    let fetched = match views.iter().any(|view| view.published.is_some()) {
        true => signed::each(api, trusted, highest, &views).await?,
        false => views.iter().map(|_| Err(anyhow::anyhow!("the controller shows nothing"))).collect(),
    };
    for ((view, claimed), signed) in unsure.into_iter().zip(fetched) {
        let machine = &view.machine;
        let known = (highest.published(machine), highest.of(machine), trusted.root.epoch());
        let signed = signed.map_err(|error| format!("{error:#}"));
        found.insert(machine.clone(), judge(claimed, signed, known));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use muster_protocol::ids::Sha256;

    use super::*;

    fn of(text: &str) -> Generation {
        text.parse().unwrap()
    }

    fn target(generation: u64, is_gated: bool) -> Target {
        let mut target = serde_json::json!({
            "machine": "tin", "class": "nixos", "generation": generation, "system": "x86_64-linux",
            "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
            "output": "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system",
        });
        if is_gated {
            target["rollout"] = serde_json::json!({ "plan": Sha256::of(b"plan"), "wave": 1 });
            target["requires"] = serde_json::json!(["rollouts"]);
        }
        serde_json::from_value(target).unwrap()
    }

    #[test]
    fn what_operators_signed_or_this_computer_saw_decides_and_nothing_that_is_said() {
        let seen = |generation: &str, is_gated| Some(Seen { generation: of(generation), is_gated });
        let refused = || Err("not signed".to_owned());
        let waits = |claimed: Option<&str>, signed, seen: Option<Seen>, highest: Option<&str>, epoch: u64| {
            let known = (seen, highest.map(of), Epoch::new(epoch).unwrap());
            judge(claimed.map(of), signed, known).may_wait()
        };
        assert!(waits(Some("4"), Ok(target(4, true)), None, None, 0));
        assert!(!waits(Some("4"), Ok(target(4, false)), None, None, 0));
        // An older one without a gate is shown, and the machine holds another.
        assert!(waits(Some("5"), Ok(target(4, false)), None, Some("4"), 0));
        assert!(waits(Some("5"), Ok(target(4, false)), seen("5", true), Some("5"), 0));
        // A controller that was restored from a backup: this computer remembers.
        assert!(!waits(Some("5"), Ok(target(4, false)), seen("5", false), Some("5"), 0));
        // Its operators were replaced, or their signatures disowned.
        assert!(
            waits(Some("4"), refused(), None, Some("4"), 0)
                && waits(Some("4"), refused(), seen("3", false), None, 0)
        );
        assert!(!waits(Some("4"), refused(), seen("4", false), Some("4"), 1));
        // The first generation; in a new epoch, a machine that has an older one would take it, too.
        assert!(!waits(None, refused(), None, None, 0) && !waits(None, refused(), None, Some("1"), 0));
        assert!(!waits(None, refused(), None, Some("1.1"), 1) && !waits(None, refused(), None, None, 1));
        assert!(
            waits(None, refused(), None, Some("7"), 1)
                && waits(None, refused(), seen("7", true), Some("7"), 1)
        );
    }
}
