//! What an activator does when it finds the record of one that was killed or that a reboot ended.
//!
//! | phase | same boot | after a reboot |
//! | --- | --- | --- |
//! | recorded, profile-set | begin again: nothing ran yet | nixos: NEW runs: wait; darwin: the profile is NEW: once more; otherwise begin again |
//! | activating | nixos: undo, it stopped half way; darwin: once more | nixos: NEW runs: wait, otherwise undo; darwin: once more |
//! | activated | wait | NEW runs: wait; otherwise undo |
//! | awaiting-reboot | stay | NEW runs: wait; otherwise undo |
//! | undoing | undo | undo |
//! | unknown (of a later version) | undo | NEW runs: wait; otherwise undo |
//! | confirmed, undone, undo-failed, finished, untouched | nothing | nothing |
//!
//! On a Mac the link `/run/current-system` proves nothing about an activation: the boot job `activate-system`
//! points it at the profile and then sets up only /etc and the keyboard, and an activation that changes that
//! job makes it do so half way. So only the record says that NEW's activation ended; one that was cut short
//! is run again, which nix-darwin's scripts allow.
//!
//! Where a boot was to bring NEW up and did not, the reason says so ([`Reason::DidNotBoot`]), and the
//! activator adds what the boot loader knows about it ([`super::boots`]).
//!
//! A verdict to undo takes precedence over all of this; one to confirm counts where the table says wait.
//! There is no wait where the profile is OLD's again: an undo was begun that a full disk did not record, and
//! it is finished. The deadline continues in the same boot and starts over after a reboot; so a record that
//! was taken up [`MAX_STARTS`] times is undone. An interrupted trial run is run again. After undone and
//! undo-failed the agent's job is checked once more.

use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::records::{Activation, ActivationPhase as Phase, GivenVerdict, sets_profile};

/// How often activators take up the same record before giving the new system up.
pub const MAX_STARTS: u32 = 5;

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// From the start.
    Begin,
    /// NEW's activation was started, or the boot did part of it: run it to its end.
    Again,
    /// NEW runs; wait for the verdict.
    Wait,
    /// Nothing to do before the next reboot.
    Stay,
    Undo {
        reason: Reason,
        detail: String,
    },
    /// Everything is done.
    Nothing,
}

/// Decides as the table above says. `new_runs`, `profile` and `boot` are observed now; `given` is the agent's
/// verdict on this record.
pub fn resume(
    found: &Activation,
    new_runs: bool,
    profile: Option<&StorePath>,
    boot: &str,
    given: Option<&GivenVerdict>,
) -> Resume {
    let rebooted = found.boot != boot;
    let undo = |reason, detail: &str| Resume::Undo { reason, detail: detail.to_owned() };
    if found.phase.is_final() {
        return Resume::Nothing;
    }
    if found.phase == Phase::Undoing {
        return undo(found.reason.unwrap_or(Reason::Interrupted), &found.detail);
    }
    if found.action == Action::DryActivate {
        return Resume::Begin;
    }
    if let Some(GivenVerdict::Undo { reason, detail }) = given {
        return undo(*reason, detail);
    }
    if found.phase == Phase::AwaitingReboot && !rebooted {
        return Resume::Stay;
    }
    if found.starts >= MAX_STARTS {
        return undo(Reason::Interrupted, "the activation was interrupted repeatedly");
    }
    if went_back(found, profile) {
        return undo(
            Reason::Interrupted,
            "the profile is already back: an undo that could not be recorded was interrupted",
        );
    }
    let mac = found.class == Class::Darwin;
    match found.phase {
        Phase::Recorded | Phase::ProfileSet if mac && rebooted && profile == Some(&found.new) => {
            Resume::Again
        }
        Phase::Recorded | Phase::ProfileSet if mac => Resume::Begin,
        Phase::Activating if mac => Resume::Again,
        _ if rebooted && new_runs => Resume::Wait,
        Phase::Recorded | Phase::ProfileSet => Resume::Begin,
        Phase::Activating if rebooted => {
            undo(Reason::Interrupted, "the machine stopped during the activation")
        }
        Phase::Activating => undo(Reason::Interrupted, "the activation was killed halfway"),
        Phase::Activated if !rebooted => Resume::Wait,
        // A system that is only tried out ends with the boot.
        Phase::Activated if !sets_profile(found.action) => {
            undo(Reason::NotRunning, "after a reboot the machine runs another system")
        }
        Phase::Activated => undo(Reason::DidNotBoot, "after a reboot the machine came up on another system"),
        Phase::AwaitingReboot => undo(Reason::DidNotBoot, "the reboot did not bring the new system up"),
        Phase::Unknown => undo(Reason::Interrupted, "a later version of muster-agent left it unfinished"),
        Phase::Undoing
        | Phase::Confirmed
        | Phase::Undone
        | Phase::UndoFailed
        | Phase::Finished
        | Phase::Untouched => Resume::Nothing,
    }
}

/// Whether the profile that was set for NEW is OLD's again although the record has no undo.
fn went_back(found: &Activation, profile: Option<&StorePath>) -> bool {
    let was_set = sets_profile(found.action) && !matches!(found.phase, Phase::Recorded | Phase::ProfileSet);
    was_set && profile.is_some() && profile != Some(&found.new) && profile == found.old.profile.as_ref()
}

#[cfg(test)]
mod tests {
    use super::super::records::tests::path;
    use super::super::records::{Old, Unknown};
    use super::*;

    fn found(phase: Phase, class: Class) -> Activation {
        Activation {
            version: 1,
            transaction: "t".into(),
            class,
            action: Action::Switch,
            new: path("new"),
            old: Old { running: Some(path("old")), profile: Some(path("old")) },
            deadline_seconds: 60,
            boot: "first".into(),
            phase,
            starts: 1,
            exit: None,
            ms: 0,
            reason: None,
            detail: String::new(),
            undo_exit: None,
            undo_ms: None,
            spent_ms: 0,
            degraded: vec![],
            failed: vec![],
            sessions: vec![],
            leftovers: vec![],
            unknown: Unknown::new(),
        }
    }

    /// One letter a decision: Begin, Again, Wait, Stay, Undo, Nothing.
    fn letter(resume: &Resume) -> char {
        match resume {
            Resume::Begin => 'B',
            Resume::Again => 'A',
            Resume::Wait => 'W',
            Resume::Stay => 'S',
            Resume::Undo { .. } => 'U',
            Resume::Nothing => 'N',
        }
    }

    /// Columns: same boot and OLD runs, same boot and NEW runs, rebooted and OLD runs, rebooted and NEW runs.
    const TABLE: [(Phase, &str, &str); 12] = [
        (Phase::Recorded, "BBBW", "BBBA"),
        (Phase::ProfileSet, "BBBW", "BBBA"),
        (Phase::Activating, "UUUW", "AAAA"),
        (Phase::Activated, "WWUW", "WWUW"),
        (Phase::AwaitingReboot, "SSUW", "SSUW"),
        (Phase::Undoing, "UUUU", "UUUU"),
        (Phase::Confirmed, "NNNN", "NNNN"),
        (Phase::Undone, "NNNN", "NNNN"),
        (Phase::UndoFailed, "NNNN", "NNNN"),
        (Phase::Finished, "NNNN", "NNNN"),
        (Phase::Untouched, "NNNN", "NNNN"),
        (Phase::Unknown, "UUUW", "UUUW"),
    ];

    /// When NEW runs the profile is NEW too, as after a boot of a Mac.
    fn row(phase: Phase, class: Class, given: Option<&GivenVerdict>, starts: u32) -> String {
        [("first", false), ("first", true), ("second", false), ("second", true)]
            .map(|(boot, new_runs)| {
                let record = Activation { starts, ..found(phase, class) };
                let profile = new_runs.then(|| record.new.clone());
                letter(&resume(&record, new_runs, profile.as_ref(), boot, given))
            })
            .iter()
            .collect()
    }

    #[test]
    fn every_phase_of_both_classes_is_resumed_as_the_table_says() {
        assert!(TABLE.iter().map(|(phase, ..)| *phase).eq(Phase::ALL));
        for (phase, nixos, darwin) in TABLE {
            assert_eq!(row(phase, Class::Nixos, None, 1), nixos, "{phase:?} on nixos");
            assert_eq!(row(phase, Class::Darwin, None, 1), darwin, "{phase:?} on darwin");
        }
    }

    #[test]
    fn a_verdict_to_undo_comes_first_and_nothing_is_taken_up_for_ever() {
        let undo = GivenVerdict::Undo { reason: Reason::HealthCheckFailed, detail: "ssh".into() };
        for (phase, nixos, _) in TABLE {
            let expected = if phase.is_final() { "NNNN" } else { "UUUU" };
            assert_eq!(row(phase, Class::Nixos, Some(&undo), 1), expected, "{phase:?}");
            let tired: String = nixos.chars().map(|c| if c == 'B' || c == 'W' { 'U' } else { c }).collect();
            assert_eq!(row(phase, Class::Nixos, None, MAX_STARTS), tired, "{phase:?}");
        }
    }

    #[test]
    fn a_boot_that_did_not_bring_the_new_system_up_is_the_reason_unless_it_was_only_tried_out() {
        for (phase, action, expected) in [
            (Phase::AwaitingReboot, Action::Boot, Reason::DidNotBoot),
            (Phase::Activated, Action::Switch, Reason::DidNotBoot),
            (Phase::Activated, Action::Test, Reason::NotRunning),
            (Phase::Activating, Action::Switch, Reason::Interrupted),
        ] {
            let record = Activation { action, ..found(phase, Class::Nixos) };
            let resumed = resume(&record, false, Some(&record.new), "second", None);
            assert!(
                matches!(resumed, Resume::Undo { reason, .. } if reason == expected),
                "{phase:?} {resumed:?}"
            );
        }
    }

    #[test]
    fn an_undo_goes_on_with_its_own_reason() {
        let mut record = found(Phase::Undoing, Class::Darwin);
        (record.reason, record.detail) = (Some(Reason::Deadline), "too late".into());
        let confirm = GivenVerdict::Confirm { degraded: vec![] };
        let expected = Resume::Undo { reason: Reason::Deadline, detail: "too late".into() };
        assert_eq!(resume(&record, true, None, "first", Some(&confirm)), expected);
    }
}
