//! Which machines go back when a rollout is undone: those that began. The others never left what they run.

use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MemberState, MemberView};

/// What undoing a rollout does to its machines.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Undo {
    /// They get the generation before.
    pub back: Vec<MachineName>,
    /// They stay as they are.
    pub stay: Vec<MachineName>,
    /// They have another generation already.
    pub left: Vec<MachineName>,
}

pub fn selected(members: &[MemberView]) -> Undo {
    let mut undo = Undo::default();
    for member in members {
        let group = match member.state {
            // A state that this version does not know may be one of a machine that began.
            MemberState::InFlight
            | MemberState::Confirmed
            | MemberState::Soaked
            | MemberState::Failed
            | MemberState::Unknown => &mut undo.back,
            // It may have begun before it went away: what it said last decides.
            MemberState::Away if member.said.is_some() => &mut undo.back,
            MemberState::Waiting | MemberState::Preparing | MemberState::Away => &mut undo.stay,
            MemberState::Left => &mut undo.left,
        };
        group.push(member.machine.clone());
    }
    undo
}

#[cfg(test)]
pub mod tests {
    use muster_protocol::plan::Said;

    use super::*;

    pub fn view(machine: &str, wave: u32, state: MemberState) -> MemberView {
        MemberView { machine: machine.parse().unwrap(), wave, state, why: String::new(), said: None }
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
        ];
        members[8].said = Some(Said::Confirmed);
        let Undo { back, stay, left } = selected(&members);
        let names = |all: Vec<MachineName>| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        assert_eq!(names(back), ["soaked", "confirmed", "failed", "flying", "gone"]);
        assert_eq!(names(stay), ["waiting", "preparing", "away"]);
        assert_eq!(names(left), ["left"]);
    }
}
