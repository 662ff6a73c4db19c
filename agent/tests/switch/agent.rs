//! The whole agent: a controller publishes, the machine follows, whatever is killed meanwhile.

use muster_agent::core::records::{ActivationPhase, GivenVerdict};
use muster_protocol::checkin::Phase;
use muster_protocol::ids::Generation;
use muster_protocol::machine::Class;
use muster_protocol::report::{EventKind, Reason, UpdateStep};
use muster_protocol::target::Action;

use super::bed::{Bed, check};
use super::machine::{HOLD, end};

const WHOLE: [&str; 6] = ["verified", "fetched", "built", "activating", "activated", "confirmed"];
const UNDONE: [&str; 6] = ["verified", "fetched", "built", "activating", "activated", "rolled-back"];

#[test]
fn generations_are_built_switched_confirmed_and_told() {
    for class in Class::ALL {
        follows_two_generations(class);
    }
}

fn follows_two_generations(class: Class) {
    let bed = Bed::new(class);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    let second = bed.publish(2, ": another");
    bed.assert_confirmed(&second);
    assert_eq!(bed.controller.names(1), WHOLE);
    assert_eq!(bed.controller.names(2), WHOLE);
    let last = bed.controller.check_ins().pop().unwrap();
    let runs = last.runs.unwrap();
    assert_eq!((runs.running, runs.generation), (second.output.clone(), Some(second.generation)));
    assert_eq!(last.holds.targets, 2);
    let roots = bed.machine.layout.gcroots();
    let rooted = |name: &str| std::fs::read_link(roots.join(name)).unwrap();
    assert_eq!(rooted("current").to_str(), Some(second.output.as_str()));
    assert_eq!(rooted("previous").to_str(), Some(first.output.as_str()));
}

#[test]
fn i4_i5_a_generation_that_fails_its_check_is_undone_once_and_quarantined() {
    let bed = Bed::new(Class::Nixos);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    let mut bad = bed.target(2, ": bad");
    bad.checks = vec![check("echo 'no ssh'; exit 1")];
    bed.controller.publish(&bad);
    let EventKind::RolledBack { reason, detail, quarantined, running } = bed.until_event(2, "rolled-back")
    else {
        panic!("the last event is the undo");
    };
    assert_eq!((reason, quarantined, &running), (Reason::HealthCheckFailed, true, &first.output));
    assert!(detail.contains("no ssh"), "{detail}");
    bed.machine.assert_on(&first.output);
    // The same derivation under a higher number is refused; a different one is accepted.
    let mut again = bad;
    again.generation = Generation::new(3).unwrap();
    bed.controller.publish(&again);
    let EventKind::Failed { step: UpdateStep::Verify, detail, .. } = bed.until_event(3, "failed") else {
        panic!("a quarantined derivation is refused");
    };
    assert!(detail.contains("generation 2"), "{detail}");
    let good = bed.publish(4, ": good");
    bed.assert_confirmed(&good);
    assert_eq!(bed.controller.names(2), UNDONE);
}

#[test]
fn a_unit_that_fails_since_the_switch_undoes_it_and_one_that_failed_before_does_not() {
    let bed = Bed::new(Class::Nixos);
    std::fs::write(bed.machine.file("failed-units"), "old.service loaded failed failed x\n").unwrap();
    let first = bed.publish(1, "exit 4");
    let confirmed = bed.until_event(1, "confirmed");
    assert!(matches!(confirmed, EventKind::Confirmed { degraded, .. } if degraded == ["old.service"]));
    bed.machine.assert_on(&first.output);
    bed.publish(2, "echo 'new.service loaded failed failed x' >> $R/failed-units; exit 4");
    let undone = bed.until_event(2, "rolled-back");
    assert!(matches!(undone, EventKind::RolledBack { reason: Reason::HealthCheckFailed, detail, .. }
        if detail.contains("new.service") && !detail.contains("old.service")));
    bed.machine.assert_on(&first.output);
}

#[test]
fn a_build_that_fails_is_told_with_the_end_of_its_log_and_changes_nothing() {
    let bed = Bed::new(Class::Nixos);
    let old = bed.machine.layout.running().unwrap();
    let target = bed.target_built_by(1, "", "echo 'no such compiler' >&2; exit 1");
    bed.controller.publish(&target);
    let failed = bed.until_event(1, "failed");
    let EventKind::Failed { step: UpdateStep::Build, detail, quarantined: true } = failed else {
        panic!("{failed:?}");
    };
    assert!(detail.contains("no such compiler"), "{detail}");
    bed.machine.assert_on(&old);
}

/// Slow: the undo waits for the deadline.
#[test]
fn failure_mode_4_i4_a_generation_that_cuts_the_network_is_undone_and_tried_again_when_it_is_back() {
    let bed = Bed::new(Class::Nixos);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    let mut second = bed.target(2, HOLD);
    second.deadline_seconds = 10;
    bed.machine.hold();
    bed.controller.publish(&second);
    bed.machine.until_phase(ActivationPhase::Activating);
    bed.controller.cut(true);
    bed.machine.let_go();
    bed.machine.until_phase(ActivationPhase::Undone);
    bed.machine.assert_on(&first.output);
    bed.controller.cut(false);
    bed.assert_confirmed(&second);
    let names = bed.controller.names(2);
    assert_eq!(names[..6], UNDONE);
    assert_eq!(names[6..], WHOLE);
    let events = bed.controller.events();
    assert!(events.iter().any(|event| matches!(
        event.kind,
        EventKind::RolledBack { reason: Reason::ControllerUnreachable, quarantined: false, .. }
    )));
}

#[test]
fn failure_mode_3_i3_the_agent_is_killed_wherever_it_stands_and_the_report_arrives_once() {
    let places = ["building", "activating", "probing", "confirming"];
    for (class, place) in Class::ALL.into_iter().flat_map(|class| places.map(|place| (class, place))) {
        let mut bed = Bed::new(class);
        let mark = bed.machine.file("mark");
        let in_build = if place == "building" { "/bin/busybox sleep 1" } else { "" };
        let mut target = bed.target_built_by(1, HOLD, in_build);
        if place == "probing" {
            let command = format!("touch {0}; while test -e {0}.hold; do sleep 0.01; done", mark.display());
            std::fs::write(bed.machine.file("mark.hold"), "").unwrap();
            target.checks = vec![check(&command)];
        }
        if matches!(place, "activating") {
            bed.machine.hold();
        }
        bed.controller.publish(&target);
        match place {
            "building" => bed.until_phase(Phase::Building),
            "activating" => drop(bed.machine.until_phase(ActivationPhase::Activating)),
            "probing" => bed.machine.until("the check", || mark.exists().then_some(())),
            _ => drop(bed.machine.until_phase(ActivationPhase::Activated)),
        }
        bed.kill_agent();
        let _ = std::fs::remove_file(bed.machine.file("mark.hold"));
        bed.start_agent();
        bed.machine.let_go();
        bed.assert_confirmed(&target);
        let names = bed.controller.names(1);
        assert_eq!(names, WHOLE, "killed while {place} on {class}");
    }
}

#[test]
fn failure_mode_2_i9_an_agent_that_its_own_switch_ends_finishes_it_when_it_is_started_again() {
    for class in Class::ALL {
        let mut bed = Bed::new(class);
        std::fs::write(bed.machine.file("agent-pid"), bed.agent_pid().to_string()).unwrap();
        // As nix-darwin's `launchctl unload` and a restarted unit do, in the middle of the activation.
        let target = bed.publish(1, "kill -9 $(cat $R/agent-pid)");
        bed.machine.until_phase(ActivationPhase::Activated);
        bed.kill_agent();
        bed.start_agent();
        bed.assert_confirmed(&target);
        assert_eq!(bed.controller.names(1), WHOLE, "{class}");
    }
}

#[test]
fn failure_mode_13_after_a_re_publication_an_undo_goes_to_what_ran_and_not_one_back() {
    let bed = Bed::new(Class::Nixos);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    let second = bed.publish(2, ": second");
    bed.assert_confirmed(&second);
    // The first system again; in the profile it has a number of its own, or shares its old one.
    let mut again = first;
    again.generation = Generation::new(3).unwrap();
    bed.controller.publish(&again);
    bed.assert_confirmed(&again);
    let mut bad = bed.target(4, ": bad");
    bad.checks = vec![check("exit 1")];
    bed.controller.publish(&bad);
    bed.until_event(4, "rolled-back");
    bed.machine.assert_on(&again.output);
}

#[test]
fn failure_mode_22_an_agent_whose_controller_is_away_at_its_start_stays_and_joins_when_it_is_back() {
    let mut bed = Bed::new(Class::Darwin);
    bed.kill_agent();
    let target = bed.target(1, "");
    bed.controller.cut(true);
    bed.start_agent();
    bed.machine.until("a try or two", || (bed.controller.refused() >= 3).then_some(()));
    assert!(bed.agent_lives(), "a supervisor that starts it again and again helps nobody");
    bed.controller.cut(false);
    bed.controller.publish(&target);
    bed.assert_confirmed(&target);
}

#[test]
fn i3_an_activator_that_is_killed_is_started_again_by_the_agent() {
    let bed = Bed::new(Class::Nixos);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    bed.machine.hold();
    bed.publish(2, HOLD);
    bed.machine.until("its script", || bed.machine.runs().iter().any(|run| run.contains("-2")).then_some(()));
    for pid in bed.machine.processes() {
        let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let words = String::from_utf8_lossy(&words).into_owned();
        if words.contains("muster-agent") && words.ends_with("\0activate\0") {
            end(pid);
        }
    }
    let undone = bed.until_event(2, "rolled-back");
    assert!(
        matches!(undone, EventKind::RolledBack { reason: Reason::Interrupted, quarantined: false, .. }),
        "{undone:?}"
    );
    bed.machine.let_go();
    bed.machine.assert_on(&first.output);
    assert_eq!(bed.controller.names(2).iter().filter(|event| **event == "rolled-back").count(), 1);
}

#[test]
fn i7_reports_whose_replies_are_lost_arrive_once() {
    let bed = Bed::new(Class::Nixos);
    bed.controller.lose_replies(3);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    assert_eq!(bed.controller.names(1), WHOLE);
}

#[test]
fn the_phases_are_told_while_they_last() {
    let bed = Bed::new(Class::Nixos);
    let target = bed.target_built_by(1, HOLD, "/bin/busybox sleep 1");
    bed.machine.hold();
    bed.controller.publish(&target);
    bed.until_phase(Phase::Building);
    bed.until_phase(Phase::Activating);
    bed.machine.let_go();
    bed.assert_confirmed(&target);
    let phases = bed.controller.phases();
    assert_eq!(phases.first(), Some(&Phase::Idle), "{phases:?}");
    let place = |phase| phases.iter().position(|seen| *seen == phase);
    assert!(place(Phase::Building) < place(Phase::Activating));
    assert!(place(Phase::Activating) < place(Phase::Confirmed));
}

#[test]
fn drift_is_told_once_and_a_local_rollback_is_told_as_the_operators() {
    let bed = Bed::new(Class::Nixos);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    let second = bed.publish(2, ": second");
    bed.assert_confirmed(&second);
    let other = bed.machine.system("by-hand", "");
    bed.machine.install(&other);
    let asked = |verb: &str| assert!(bed.machine.spawn(&[verb]).wait().unwrap().success(), "{verb}");
    asked("check-now");
    bed.until_event(2, "drift");
    asked("check-now");
    asked("rollback");
    let back = bed.until_event(2, "rolled-back");
    assert!(
        matches!(&back, EventKind::RolledBack { reason: Reason::Operator, quarantined: true, running, .. }
        if *running == first.output),
        "{back:?}"
    );
    bed.machine.assert_on(&first.output);
    assert_eq!(bed.controller.names(2).iter().filter(|event| **event == "drift").count(), 1);
    bed.until_phase(Phase::RolledBack);
}

#[test]
fn a_system_for_the_next_boot_is_confirmed_after_it() {
    let mut bed = Bed::new(Class::Nixos);
    let mut target = bed.target(1, "");
    target.action = Action::Boot;
    bed.controller.publish(&target);
    bed.until_phase(Phase::AwaitingReboot);
    bed.kill_agent();
    bed.machine.reboot();
    bed.machine.install(&target.output);
    bed.start_agent();
    bed.assert_confirmed(&target);
    assert_eq!(bed.controller.names(1), WHOLE);
}

#[test]
fn an_activation_that_nobody_remembers_comes_to_its_end_and_the_machine_agrees_with_itself() {
    let mut bed = Bed::new(Class::Nixos);
    let old = bed.machine.layout.running().unwrap();
    bed.kill_agent();
    let new = bed.machine.system("new", "");
    bed.machine.transaction(&new, Action::Switch, 60);
    let mut activator = bed.machine.activate();
    bed.machine.until_phase(ActivationPhase::Activated);
    std::fs::write(bed.machine.config.state("transaction.json"), "damaged").unwrap();
    bed.start_agent();
    bed.machine.verdict(GivenVerdict::Undo { reason: Reason::Operator, detail: String::new() });
    activator.wait().unwrap();
    bed.machine.assert_on(&old);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
}

#[test]
fn failure_mode_6_files_in_the_way_of_a_mac_need_a_person_and_are_looked_for_again_when_asked() {
    let bed = Bed::new(Class::Darwin);
    let old = bed.machine.layout.running().unwrap();
    std::fs::create_dir_all(bed.machine.file("etc")).unwrap();
    std::fs::write(bed.machine.file("etc/zshrc"), "").unwrap();
    let check = "test -e $R/etc/zshrc && { echo 'error: Unexpected files in /etc, aborting activation'; \
        echo '  /etc/zshrc'; exit 2; }; true";
    bed.machine.activation_script(&bed.machine.file("template-1"), "");
    // The check comes before everything else, in a preflight as in the activation.
    let script = bed.machine.file("template-1/activate");
    let text = std::fs::read_to_string(&script).unwrap().replacen(
        "[ \"$checkActivation\"",
        &format!("{check}\n[ \"$checkActivation\""),
        1,
    );
    std::fs::write(&script, text).unwrap();
    let target = bed.evaluate(1, "");
    bed.controller.publish(&target);
    let EventKind::NeedsHuman { detail } = bed.until_event(1, "needs-human") else {
        panic!("a person is needed");
    };
    assert!(detail.contains("/etc/zshrc"), "{detail}");
    bed.until_phase(Phase::NeedsHuman);
    bed.machine.assert_on(&old);
    let asked = || assert!(bed.machine.spawn(&["check-now"]).wait().unwrap().success());
    asked();
    std::fs::remove_file(bed.machine.file("etc/zshrc")).unwrap();
    asked();
    bed.assert_confirmed(&target);
    let names = bed.controller.names(1);
    assert_eq!(names.iter().filter(|event| **event == "needs-human").count(), 1, "{names:?}");
}
