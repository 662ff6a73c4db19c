//! Which machines go back when a rollout is undone: those that began. The others never left what they run.

use std::collections::BTreeMap;

use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MachineView, MemberState, RolloutView, Standing};

/// What undoing a rollout does to its machines.
#[derive(Debug, Default)]
pub struct Undo<'a> {
    /// They get the generation before.
    pub back: Vec<&'a MachineView>,
    /// They stay as they are.
    pub stay: Vec<MachineName>,
    /// They have another generation already.
    pub left: Vec<MachineName>,
}

/// `machines` are those of the whole fleet, as they are shown after the rollout.
pub fn selected<'a>(rollout: &RolloutView, machines: &'a [MachineView]) -> Undo<'a> {
    let known: BTreeMap<&MachineName, &MachineView> =
        machines.iter().map(|view| (&view.machine, view)).collect();
    let mut undo = Undo::default();
    for member in &rollout.members {
        let published = known.get(&member.machine).and_then(|view| {
            let target = &view.published.as_ref()?.target;
            let is_of_it = target.rollout.is_some_and(|place| place.plan == rollout.plan);
            (is_of_it && view.standing != Standing::Revoked).then_some((*view, target.generation))
        });
        let Some((view, generation)) = published else {
            undo.left.push(member.machine.clone());
            continue;
        };
        // One that is away may have said nothing that counts, and run it all the same.
        let runs_it = view.runs.as_ref().is_some_and(|runs| runs.generation == Some(generation));
        let has_begun = match member.state {
            // A state that this version does not know may be one of a machine that began.
            MemberState::InFlight
            | MemberState::Confirmed
            | MemberState::Soaked
            | MemberState::Failed
            | MemberState::Unknown => true,
            MemberState::Away => runs_it || member.said.is_some(),
            MemberState::Waiting | MemberState::Preparing => runs_it,
            MemberState::Left => {
                undo.left.push(member.machine.clone());
                continue;
            }
        };
        match has_begun {
            true => undo.back.push(view),
            false => undo.stay.push(member.machine.clone()),
        }
    }
    undo
}

#[cfg(test)]
pub mod tests {
    use muster_protocol::ids::Sha256;
    use muster_protocol::operator::MemberView;
    use muster_protocol::plan::Said;

    use super::*;
    use crate::release::select::tests::fleet;

    pub fn view(machine: &str, wave: u32, state: MemberState) -> MemberView {
        MemberView { machine: machine.parse().unwrap(), wave, state, why: String::new(), said: None }
    }

    /// A machine that was given generation 4, of this plan.
    fn given(name: &MachineName, plan: Sha256) -> MachineView {
        let published = serde_json::json!({
            "at": 0, "by": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "expires": 0,
            "target": {
                "machine": name, "class": "nixos", "generation": 4, "system": "x86_64-linux",
                "derivation": "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv",
                "output": "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system",
                "rollout": { "plan": plan, "wave": 0 } },
        });
        let published = Some(serde_json::from_value(published).unwrap());
        MachineView { machine: name.clone(), published, ..fleet().remove(0) }
    }

    #[test]
    fn whoever_began_goes_back_and_nobody_else() {
        let mut members = vec![
            view("soaked", 0, MemberState::Soaked),
            view("confirmed", 0, MemberState::Confirmed),
            view("failed", 0, MemberState::Failed),
            view("flying", 1, MemberState::InFlight),
            view("waiting", 1, MemberState::Waiting),
            view("preparing", 1, MemberState::Preparing),
            view("away", 1, MemberState::Away),
            view("left", 1, MemberState::Left),
            view("gone", 1, MemberState::Away),
            view("silent", 1, MemberState::Away),
            view("elsewhere", 1, MemberState::Soaked),
            view("revoked", 1, MemberState::Soaked),
            view("removed", 1, MemberState::Soaked),
        ];
        members[8].said = Some(Said::Confirmed);
        let plan = Sha256::of(b"plan");
        let mut machines: Vec<MachineView> =
            members[..12].iter().map(|member| given(&member.machine, plan)).collect();
        let runs = |number: u64| {
            let output = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system";
            serde_json::from_value(serde_json::json!({ "running": output, "generation": number })).unwrap()
        };
        // It vouches for nobody, and ran it before it was closed.
        machines[9].runs = Some(runs(4));
        machines[6].runs = Some(runs(3));
        machines[10] = given(&machines[10].machine, Sha256::of(b"other"));
        machines[11].standing = Standing::Revoked;
        let rollout = serde_json::json!({
            "plan": plan, "name": "weekly", "at": 0, "state": "halted", "why": "", "budget": 0,
            "by": "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a", "failures": 0,
            "waves": [], "members": members,
        });
        let Undo { back, stay, left } = selected(&serde_json::from_value(rollout).unwrap(), &machines);
        let names = |all: Vec<MachineName>| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let back = back.iter().map(|view| view.machine.clone()).collect();
        assert_eq!(names(back), ["soaked", "confirmed", "failed", "flying", "gone", "silent"]);
        assert_eq!(names(stay), ["waiting", "preparing", "away"]);
        assert_eq!(names(left), ["left", "elsewhere", "revoked", "removed"]);
    }
}
