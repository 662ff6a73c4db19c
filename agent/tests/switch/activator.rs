//! The activator by itself: no agent, no controller, no network.

use std::process::Child;

use muster_agent::core::records::{ActivationPhase as Phase, GivenVerdict};
use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::machine::{HOLD, Machine, end};

/// A machine on OLD, and NEW in its store.
fn bed(class: Class, body: &str) -> (Machine, StorePath, StorePath) {
    let machine = Machine::new(class);
    let old = machine.system("old", "");
    let new = machine.system("new", body);
    machine.install(&old);
    (machine, old, new)
}

fn confirm() -> GivenVerdict {
    GivenVerdict::Confirm { degraded: vec!["x.service".into()] }
}

fn undo() -> GivenVerdict {
    GivenVerdict::Undo { reason: Reason::HealthCheckFailed, detail: "ssh: refused".into() }
}

fn kill(child: &mut Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_system_that_is_confirmed_stays() {
    for class in Class::ALL {
        let (machine, _, new) = bed(class, "");
        machine.transaction(&new, Action::Switch, 60);
        let mut activator = machine.activate();
        let record = machine.until_phase(Phase::Activated);
        assert_eq!(record.exit, Some(0));
        machine.verdict(confirm());
        assert!(activator.wait().unwrap().success());
        let record = machine.record().unwrap();
        assert_eq!((record.phase, record.degraded), (Phase::Confirmed, vec!["x.service".to_owned()]));
        machine.assert_on(&new);
    }
}

#[test]
fn failure_mode_12_i3_a_verdict_to_undo_brings_old_back_by_olds_own_script() {
    for class in Class::ALL {
        let (machine, old, new) = bed(class, "");
        machine.transaction(&new, Action::Switch, 60);
        let mut activator = machine.activate();
        machine.until_phase(Phase::Activated);
        machine.verdict(undo());
        assert!(activator.wait().unwrap().success());
        let record = machine.record().unwrap();
        assert_eq!((record.phase, record.undo_exit), (Phase::Undone, Some(0)));
        assert_eq!(
            (record.reason, record.detail.as_str()),
            (Some(Reason::HealthCheckFailed), "ssh: refused")
        );
        machine.assert_on(&old);
        assert_eq!(machine.runs(), [format!("switch {new}"), format!("switch {old}")]);
    }
}

/// Slow: the shortest deadline is ten seconds.
#[test]
fn i4_without_an_agent_the_deadline_brings_old_back() {
    for (given, reason) in [
        (None, Reason::Deadline),
        (
            Some(GivenVerdict::Waiting { missing: Reason::ControllerUnreachable }),
            Reason::ControllerUnreachable,
        ),
    ] {
        let (machine, old, new) = bed(Class::Darwin, "");
        machine.transaction(&new, Action::Switch, 10);
        let mut activator = machine.activate();
        machine.until_phase(Phase::Activated);
        if let Some(given) = given {
            machine.verdict(given);
        }
        assert!(activator.wait().unwrap().success());
        let record = machine.record().unwrap();
        assert_eq!((record.phase, record.reason), (Phase::Undone, Some(reason)));
        assert!(record.detail.contains("within 10 s"), "{}", record.detail);
        machine.assert_on(&old);
    }
}

/// Slow: the shortest deadline is ten seconds.
#[test]
fn failure_mode_9_an_activation_that_hangs_is_ended_at_the_deadline_with_all_its_children() {
    for class in Class::ALL {
        let body = "sleep 1000 & setsid sh -c \"trap '' TERM; sleep 1000; : $R\" & wait";
        let (machine, old, new) = bed(class, body);
        machine.transaction(&new, Action::Switch, 10);
        let mut activator = machine.activate();
        machine.until_phase(Phase::Activating);
        assert!(activator.wait().unwrap().success());
        let record = machine.record().unwrap();
        assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::Deadline)));
        machine.until("no process of it runs", || machine.processes().is_empty().then_some(()));
        machine.assert_on(&old);
    }
}

#[test]
fn an_activation_that_fails_is_undone_with_its_own_words() {
    for class in Class::ALL {
        let (machine, old, new) = bed(class, "echo 'the disk is on fire' >&2; exit 2");
        machine.transaction(&new, Action::Switch, 60);
        machine.activate().wait().unwrap();
        let record = machine.record().unwrap();
        assert_eq!(
            (record.phase, record.exit, record.reason),
            (Phase::Undone, Some(2), Some(Reason::ActivationFailed))
        );
        assert!(record.detail.contains("the disk is on fire"), "{}", record.detail);
        machine.assert_on(&old);
    }
}

#[test]
fn on_nixos_failed_units_are_no_failure_and_a_needed_reboot_is_awaited() {
    let (machine, _, new) = bed(Class::Nixos, "exit 4");
    machine.transaction(&new, Action::Switch, 60);
    let mut activator = machine.activate();
    assert_eq!(machine.until_phase(Phase::Activated).exit, Some(4));
    machine.verdict(confirm());
    activator.wait().unwrap();
    machine.assert_on(&new);

    let (machine, _, new) = bed(Class::Nixos, "exit 100");
    machine.transaction(&new, Action::Switch, 60);
    machine.activate().wait().unwrap();
    assert_eq!(machine.phase(), Some(Phase::AwaitingReboot));
}

#[test]
fn a_switch_that_somebody_else_makes_is_waited_for() {
    let (machine, _, new) =
        bed(Class::Nixos, "test -e $R/hold || exit 0; touch $R/locked; echo Could not acquire lock; exit 11");
    machine.hold();
    machine.transaction(&new, Action::Switch, 60);
    let mut activator = machine.activate();
    machine.until("a first try", || machine.file("locked").exists().then_some(()));
    assert_eq!(machine.phase(), Some(Phase::Activating));
    machine.let_go();
    machine.until_phase(Phase::Activated);
    machine.verdict(confirm());
    activator.wait().unwrap();
    assert!(machine.runs().len() >= 2);
}

/// As when logind is away: EAGAIN, after the link was set.
#[test]
fn an_exit_that_is_not_the_locks_is_a_failure_and_no_reason_to_run_it_again_and_again() {
    let body = "echo activating the configuration...; echo Unable to list users with logind: EAGAIN; exit 11";
    let (machine, old, new) = bed(Class::Nixos, body);
    machine.transaction(&new, Action::Switch, 60);
    machine.activate().wait().unwrap();
    let record = machine.record().unwrap();
    assert_eq!((record.phase, record.exit), (Phase::Undone, Some(11)));
    let first = record.detail.lines().next().unwrap();
    assert!(first.contains("after the new system was in place") && first.ends_with("EAGAIN"), "{first}");
    assert_eq!(machine.runs(), [format!("switch {new}"), format!("switch {old}")]);
    machine.assert_on(&old);
}

#[test]
fn a_script_that_failed_is_undone_though_units_failed_behind_it() {
    let body =
        "echo Failed to run activate script; echo 'warning: the following units failed: x.service'; exit 4";
    let (machine, old, new) = bed(Class::Nixos, body);
    machine.transaction(&new, Action::Switch, 60);
    machine.activate().wait().unwrap();
    let record = machine.record().unwrap();
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::ActivationFailed)));
    machine.assert_on(&old);
}

#[test]
fn what_old_checks_before_a_switch_does_not_stop_an_undo() {
    let (machine, old, new) = bed(Class::Nixos, "exit 2");
    machine.checks(&format!("[ $S != {old} ] || {{ echo Pre-switch checks failed; exit 1; }}"));
    machine.transaction(&new, Action::Switch, 60);
    machine.activate().wait().unwrap();
    assert_eq!(machine.phase(), Some(Phase::Undone));
    machine.assert_on(&old);
}

#[test]
fn boot_waits_for_the_reboot_and_test_and_dry_activate_leave_the_profile() {
    let (machine, old, new) = bed(Class::Nixos, "");
    machine.transaction(&new, Action::Boot, 60);
    machine.activate().wait().unwrap();
    assert_eq!(machine.phase(), Some(Phase::AwaitingReboot));
    assert_eq!(machine.layout.profile_target(), Some(new));
    assert_eq!(machine.layout.running(), Some(old));

    let (machine, old, new) = bed(Class::Nixos, "");
    machine.transaction(&new, Action::Test, 60);
    let mut activator = machine.activate();
    machine.until_phase(Phase::Activated);
    assert_eq!((machine.layout.running(), machine.layout.profile_target()), (Some(new), Some(old.clone())));
    machine.verdict(undo());
    activator.wait().unwrap();
    machine.assert_on(&old);

    let (machine, old, new) = bed(Class::Nixos, "exit 3");
    machine.transaction(&new, Action::DryActivate, 60);
    machine.activate().wait().unwrap();
    let record = machine.record().unwrap();
    assert_eq!((record.phase, record.exit), (Phase::Finished, Some(3)));
    machine.assert_on(&old);
    assert_eq!(machine.runs(), [format!("dry-activate {new}")]);
}

#[test]
fn a_reboot_into_the_new_system_waits_for_its_verdict_and_into_another_one_is_undone() {
    for comes_up in [true, false] {
        let (machine, old, new) = bed(Class::Nixos, "");
        machine.transaction(&new, Action::Boot, 60);
        machine.activate().wait().unwrap();
        // Before the reboot there is nothing to do.
        machine.activate().wait().unwrap();
        assert_eq!(machine.phase(), Some(Phase::AwaitingReboot));
        machine.reboot();
        if comes_up {
            machine.install(&new);
            let mut activator = machine.activate();
            machine.until_phase(Phase::Activated);
            machine.verdict(confirm());
            activator.wait().unwrap();
            machine.assert_on(&new);
        } else {
            machine.activate().wait().unwrap();
            let record = machine.record().unwrap();
            assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::DidNotBoot)));
            machine.assert_on(&old);
        }
    }
}

#[test]
fn an_undo_that_fails_says_so_and_asks_for_a_person() {
    let machine = Machine::new(Class::Nixos);
    let old = machine.system("old", "echo 'old is broken too'; exit 2");
    let new = machine.system("new", "exit 2");
    machine.install(&old);
    machine.transaction(&new, Action::Switch, 60);
    machine.activate().wait().unwrap();
    let record = machine.record().unwrap();
    assert_eq!(record.phase, Phase::UndoFailed);
    assert!(record.detail.contains("old is broken too"), "{}", record.detail);
    assert_eq!(machine.layout.profile_target(), Some(old), "the next boot is OLD's");
}

#[test]
fn a_machine_without_an_earlier_system_has_nothing_to_go_back_to() {
    let machine = Machine::new(Class::Darwin);
    let new = machine.system("new", "");
    machine.transaction(&new, Action::Switch, 60);
    let mut activator = machine.activate();
    machine.until_phase(Phase::Activated);
    machine.verdict(undo());
    activator.wait().unwrap();
    let record = machine.record().unwrap();
    assert_eq!(record.phase, Phase::UndoFailed);
    assert!(record.detail.contains("no earlier system"), "{}", record.detail);
}

#[test]
fn two_activators_never_work_at_once() {
    let (machine, _, new) = bed(Class::Darwin, HOLD);
    machine.hold();
    machine.transaction(&new, Action::Switch, 60);
    let mut first = machine.activate();
    machine.until_phase(Phase::Activating);
    assert!(machine.activate().wait().unwrap().success());
    machine.let_go();
    machine.until_phase(Phase::Activated);
    machine.verdict(confirm());
    first.wait().unwrap();
    assert_eq!(machine.runs().len(), 1);
}

/// Where an activator is killed. The phases before the activation are so short that the record is written
/// instead.
const KILLS: [Phase; 5] =
    [Phase::Recorded, Phase::ProfileSet, Phase::Activating, Phase::Activated, Phase::Undoing];

fn killed_in(phase: Phase, class: Class) -> (Machine, StorePath, StorePath) {
    let machine = Machine::new(class);
    let old = machine.system("old", HOLD);
    let new = machine.system("new", HOLD);
    machine.install(&old);
    machine.hold();
    machine.transaction(&new, Action::Switch, 60);
    let mut activator = machine.activate();
    machine.until_phase(Phase::Activating);
    machine.until("its script", || (!machine.runs().is_empty()).then_some(()));
    match phase {
        Phase::Activating => {}
        Phase::Activated | Phase::Undoing => {
            machine.let_go();
            machine.until_phase(Phase::Activated);
            if phase == Phase::Undoing {
                machine.hold();
                machine.verdict(undo());
                machine.until("OLD's script", || (machine.runs().len() == 2).then_some(()));
            }
        }
        _ => {
            kill(&mut activator);
            for pid in machine.processes() {
                end(pid);
            }
            let mut record = machine.record().unwrap();
            record.phase = phase;
            machine.install(&old);
            if phase == Phase::ProfileSet {
                let profile = machine.layout.profile();
                machine.nix("nix-env", &["-p", profile.to_str().unwrap(), "--set", new.as_str()]);
            }
            machine.files.write_activation(&record).unwrap();
        }
    }
    if activator.try_wait().unwrap().is_none() {
        kill(&mut activator);
    }
    machine.let_go();
    (machine, old, new)
}

#[test]
fn i3_killed_in_any_phase_the_next_activator_brings_the_machine_to_old_or_new() {
    for class in Class::ALL {
        for phase in KILLS {
            let (machine, old, new) = killed_in(phase, class);
            let mut activator = machine.activate();
            let record = machine.until("a decision", || {
                machine.record().filter(|record| {
                    record.phase.is_final() || (record.phase == Phase::Activated && record.starts > 1)
                })
            });
            if record.phase == Phase::Activated {
                machine.verdict(confirm());
            }
            activator.wait().unwrap();
            let record = machine.record().unwrap();
            match (phase, record.phase) {
                (Phase::Recorded | Phase::ProfileSet | Phase::Activated, Phase::Confirmed) => {
                    machine.assert_on(&new);
                }
                (Phase::Activating, Phase::Undone) => {
                    machine.assert_on(&old);
                    assert_eq!(record.reason, Some(Reason::Interrupted));
                }
                // The script left behind may have ended before the next activator looked.
                (Phase::Activating, Phase::Confirmed) if class == Class::Darwin => machine.assert_on(&new),
                (Phase::Undoing, Phase::Undone) => {
                    machine.assert_on(&old);
                    assert_eq!(record.reason, Some(Reason::HealthCheckFailed));
                }
                (_, other) => panic!("killed in {phase:?} on {class} it ended as {other:?}"),
            }
        }
    }
}

#[test]
fn i3_after_a_power_cut_in_the_middle_the_machine_ends_on_what_it_booted_or_on_old() {
    for class in Class::ALL {
        for phase in KILLS {
            for boots_new in [false, true] {
                let (machine, old, new) = killed_in(phase, class);
                for pid in machine.processes() {
                    end(pid);
                }
                machine.until("quiet", || machine.processes().is_empty().then_some(()));
                machine.reboot();
                machine.install(if boots_new { &new } else { &old });
                let mut activator = machine.activate();
                machine.until("a decision", || {
                    let record = machine.record()?;
                    (record.boot == "boot-2" && (record.phase.is_final() || record.phase == Phase::Activated))
                        .then_some(())
                });
                if machine.phase() == Some(Phase::Activated) {
                    machine.verdict(confirm());
                }
                activator.wait().unwrap();
                let end = machine.phase().unwrap();
                let what = format!("{class}, cut in {phase:?}, boots NEW: {boots_new}");
                match end {
                    Phase::Confirmed => machine.assert_on(&new),
                    Phase::Undone => machine.assert_on(&old),
                    other => panic!("{what}: {other:?}"),
                }
                let expected = match phase {
                    Phase::Undoing => Phase::Undone,
                    Phase::Activating | Phase::Activated if !boots_new => Phase::Undone,
                    _ => Phase::Confirmed,
                };
                assert_eq!(end, expected, "{what}");
            }
        }
    }
}

#[test]
fn a_record_that_is_damaged_is_made_up_from_the_transaction() {
    let (machine, _, new) = bed(Class::Darwin, "");
    machine.transaction(&new, Action::Switch, 60);
    std::fs::write(machine.config.state("activation.json"), "{\"version\": 1, \"tran").unwrap();
    let mut activator = machine.activate();
    machine.until_phase(Phase::Activated);
    machine.verdict(confirm());
    activator.wait().unwrap();
    machine.assert_on(&new);
    assert!(machine.config.state("activation.json.damaged").exists());
}

#[test]
fn without_a_transaction_there_is_nothing_to_do() {
    let (machine, old, _) = bed(Class::Nixos, "");
    assert!(machine.activate().wait().unwrap().success());
    assert_eq!(machine.phase(), None);
    machine.assert_on(&old);
}

#[test]
fn the_verdict_on_another_transaction_is_none() {
    let (machine, _, new) = bed(Class::Nixos, "");
    let mut other = machine.transaction(&new, Action::Switch, 60);
    machine.verdict(undo());
    other.id = "another".into();
    machine.files.write_transaction(&other).unwrap();
    let mut activator = machine.activate();
    let record = machine.until_phase(Phase::Activated);
    assert_eq!(record.transaction, "another");
    let given =
        muster_agent::core::records::Confirmation { transaction: "another".into(), verdict: confirm() };
    machine.files.write_confirmation(&given).unwrap();
    activator.wait().unwrap();
    machine.assert_on(&new);
}
