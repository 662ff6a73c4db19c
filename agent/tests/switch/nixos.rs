//! What NixOS has and macOS does not: other actions, somebody else's lock, reboots.

use std::os::unix::fs::symlink;

use muster_agent::core::records::ActivationPhase;
use muster_protocol::checkin::Phase;
use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use muster_protocol::policy::{InhibitedPolicy, Policy, RebootPolicy};
use muster_protocol::report::EventKind;
use muster_protocol::target::Action;
use rustix::fs::FlockOperation;

use super::bed::Bed;

#[test]
fn failure_mode_20_a_switch_of_somebody_else_is_waited_for_and_told() {
    let bed = Bed::new(Class::Nixos);
    let lock = bed.machine.file("run/nixos/switch-to-configuration.lock");
    std::fs::create_dir_all(lock.parent().unwrap()).unwrap();
    let file = std::fs::File::create(lock).unwrap();
    rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive).unwrap();
    let target = bed.publish(1, "");
    let deferred = bed.until_event(1, "deferred");
    assert!(
        matches!(&deferred, EventKind::Deferred { why, .. } if why.contains("somebody else")),
        "{deferred:?}"
    );
    assert!(!bed.controller.names(1).contains(&"activating"));
    drop(file);
    assert_eq!(bed.machine.ask(&["check-now"]).0, 0);
    bed.assert_confirmed(&target);
}

#[test]
fn a_dry_activation_changes_nothing_and_is_confirmed_with_what_it_said() {
    let bed = Bed::new(Class::Nixos);
    let old = bed.machine.layout.running().unwrap();
    let mut target = bed.target(1, "echo would stop x.service");
    target.action = Action::DryActivate;
    bed.controller.publish(&target);
    bed.until_event(1, "confirmed");
    bed.until_phase(Phase::Confirmed);
    bed.machine.assert_on(&old);
    let last = bed.controller.check_ins().pop().unwrap();
    assert_eq!(last.note.as_deref(), Some("would stop x.service"));
    let (_, words) = bed.machine.ask(&["logs", "1"]);
    assert!(words.contains("activation> would stop x.service"), "{words}");
}

#[test]
fn a_system_that_is_only_tried_out_ends_with_the_boot_and_that_is_no_drift() {
    let mut bed = Bed::new(Class::Nixos);
    let old = bed.machine.layout.running().unwrap();
    let mut target = bed.target(1, "");
    target.action = Action::Test;
    bed.controller.publish(&target);
    bed.until_event(1, "confirmed");
    bed.machine.until("a settled transaction", || {
        (!bed.machine.config.state("transaction.json").exists()).then_some(())
    });
    assert_eq!(bed.machine.layout.profile_target(), Some(old.clone()));
    bed.kill_agent();
    bed.machine.reboot();
    bed.machine.install(&old);
    bed.start_agent();
    bed.machine.until("a check-in of what runs", || {
        (bed.controller.check_ins().last()?.runs.as_ref()?.running == old).then_some(())
    });
    assert!(!bed.controller.names(1).contains(&"drift"));
}

/// NixOS's message about a system with another D-Bus implementation, for everything but `boot` and
/// `dry-activate`.
fn inhibit(bed: &Bed) {
    bed.machine.checks(
        "case \"$S $A\" in *old*|*' boot'|*' dry-activate') ;; *)\n\
         echo 'There are changes to critical components of the system:'; echo\n\
         echo 'dbus-implementation : dbus -> broker'; echo\n\
         echo \"Pre-switch check 'switchInhibitors' failed\"; echo Pre-switch checks failed; exit 1;; esac",
    );
}

#[test]
fn a_generation_that_nixos_does_not_switch_to_waits_is_named_and_can_be_had_at_the_next_boot() {
    let bed = Bed::new(Class::Nixos);
    let old = bed.machine.layout.running().unwrap();
    bed.machine.until("an agent that says so", || {
        let (code, words) = bed.machine.ask(&["at-boot"]);
        (code != 0 && words.contains("nothing waits here for a reboot")).then_some(())
    });
    inhibit(&bed);
    let target = bed.publish(1, "");
    let deferred = bed.until_event(1, "deferred");
    let EventKind::Deferred { why, .. } = deferred else { panic!("{deferred:?}") };
    assert!(why.contains("dbus-implementation: dbus -> broker") && why.contains("at-boot"), "{why}");
    bed.until_phase(Phase::Deferred);
    assert!(bed.controller.check_ins().last().unwrap().note.as_deref().unwrap().contains("dbus -> broker"));
    bed.machine.assert_on(&old);
    // Asked again it says the same, but reports it only once.
    assert_eq!(bed.machine.ask(&["check-now"]).0, 0);
    let (code, words) = bed.machine.ask(&["at-boot"]);
    assert_eq!(code, 0, "{words}");
    bed.machine.until("the next boot's system", || {
        (bed.machine.phase() == Some(ActivationPhase::AwaitingReboot)).then_some(())
    });
    assert_eq!(bed.machine.layout.profile_target(), Some(target.output));
    assert_eq!(bed.machine.layout.running(), Some(old));
    let names = bed.controller.names(1);
    assert_eq!(names.iter().filter(|kind| **kind == "deferred").count(), 1, "{names:?}");
    assert!(!names.contains(&"failed") && !names.contains(&"rolled-back"), "{names:?}");
}

#[test]
fn where_the_policy_says_so_the_next_boot_brings_what_nixos_does_not_switch_to() {
    let mut bed = Bed::new(Class::Nixos);
    inhibit(&bed);
    let mut target = bed.target(1, "");
    target.policy.inhibited = Some(InhibitedPolicy::Boot);
    bed.controller.publish(&target);
    bed.machine.until("the next boot's system", || {
        (bed.machine.phase() == Some(ActivationPhase::AwaitingReboot)).then_some(())
    });
    assert_eq!(bed.machine.runs(), [format!("boot {}", target.output)]);
    bed.kill_agent();
    bed.machine.reboot();
    bed.machine.install(&target.output);
    bed.start_agent();
    bed.assert_confirmed(&target);
}

#[test]
fn a_unit_that_only_the_switchs_words_name_is_a_failed_one_unless_it_was_before() {
    let bed = Bed::new(Class::Nixos);
    let old = bed.machine.layout.running().unwrap();
    let said = "echo 'warning: the following units failed: loops.service'; exit 4";
    bed.publish(1, said);
    let undone = bed.until_event(1, "rolled-back");
    assert!(
        matches!(&undone, EventKind::RolledBack { detail, .. } if detail.contains("loops.service")),
        "{undone:?}"
    );
    bed.machine.assert_on(&old);
    std::fs::write(bed.machine.file("failed-units"), "loops.service loaded failed failed x\n").unwrap();
    let target = bed.publish(2, &format!(": again; {said}"));
    let confirmed = bed.until_event(2, "confirmed");
    assert!(matches!(confirmed, EventKind::Confirmed { degraded, .. } if degraded == ["loops.service"]));
    bed.assert_confirmed(&target);
}

/// Gives a system the three parts that only a boot brings.
fn kernel(bed: &Bed, system: &StorePath, name: &str) {
    let folder = bed.machine.layout.physical(system);
    // A store path is read-only; this is the machine's own copy of it.
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    for part in ["kernel", "initrd", "kernel-modules"] {
        symlink(format!("/nix/store/{name}/{part}"), folder.join(part)).unwrap();
    }
}

#[test]
fn a_reboot_that_is_due_is_told_with_what_is_in_its_way_and_asked_for_once() {
    let bed = Bed::new(Class::Nixos);
    let old = bed.machine.layout.running().unwrap();
    kernel(&bed, &old, "linux-6.1");
    symlink(old.as_str(), bed.machine.file("run/booted-system")).unwrap();
    std::fs::write(
        bed.machine.file("inhibitors"),
        "backup 0 root 922 borg shutdown:sleep A backup is under way block\n",
    )
    .unwrap();
    let links =
        "for p in kernel initrd kernel-modules; do /bin/busybox ln -s /nix/store/linux-6.6/$p $out/$p; done";
    let in_build = format!("/bin/busybox mkdir -p $out; {links}");
    let mut target = bed.target_built_by(1, "", &in_build);
    target.policy = Policy { reboot: Some(RebootPolicy::Now), ..Policy::default() };
    bed.controller.publish(&target);
    bed.assert_confirmed(&target);
    let health = || bed.controller.check_ins().last().map(|check_in| check_in.health.clone());
    bed.machine.until("a check-in that tells of the inhibitor", || {
        health().filter(|health| health.reboot_waits.as_deref().is_some_and(|why| why.contains("A backup")))
    });
    assert_eq!(health().unwrap().reboot, ["initrd", "kernel", "kernel-modules"]);
    let (_, words) = bed.machine.ask(&["status"]);
    assert!(
        words.contains("reboot       is due for initrd, kernel, kernel-modules: backup inhibits it"),
        "{words}"
    );
    assert!(!bed.machine.file("reboots").exists());
    std::fs::remove_file(bed.machine.file("inhibitors")).unwrap();
    assert_eq!(bed.machine.ask(&["check-now"]).0, 0);
    assert!(
        matches!(bed.until_event(1, "rebooting"), EventKind::Rebooting { why } if why.contains("kernel"))
    );
    bed.machine.until("the reboot", || bed.machine.file("reboots").exists().then_some(()));
    // The stand-in does not reboot: no second request follows.
    for _ in 0..3 {
        assert_eq!(bed.machine.ask(&["check-now"]).0, 0);
    }
    bed.machine.until("a check-in that says so", || {
        health().filter(|health| health.reboot_waits.as_deref() == Some("the machine is about to reboot"))
    });
    assert_eq!(std::fs::read_to_string(bed.machine.file("reboots")).unwrap(), "reboot\n");
}

#[test]
fn a_generation_for_the_next_boot_brings_it_about_where_the_policy_says_so() {
    let mut bed = Bed::new(Class::Nixos);
    let mut target = bed.target(1, "");
    target.action = Action::Boot;
    target.policy.reboot = Some(RebootPolicy::Now);
    bed.controller.publish(&target);
    bed.machine.until("the reboot", || bed.machine.file("reboots").exists().then_some(()));
    assert_eq!(bed.machine.phase(), Some(ActivationPhase::AwaitingReboot));
    bed.kill_agent();
    bed.machine.reboot();
    bed.machine.install(&target.output);
    bed.start_agent();
    bed.assert_confirmed(&target);
    assert_eq!(std::fs::read_to_string(bed.machine.file("reboots")).unwrap(), "reboot\n");
}

#[test]
fn failure_mode_1_units_that_failed_already_are_degraded_and_heal_in_what_is_told() {
    let bed = Bed::new(Class::Nixos);
    std::fs::write(bed.machine.file("failed-units"), "old.service loaded failed failed x\n").unwrap();
    let target = bed.publish(1, "exit 4");
    let confirmed = bed.until_event(1, "confirmed");
    assert!(matches!(confirmed, EventKind::Confirmed { degraded, .. } if degraded == ["old.service"]));
    bed.assert_confirmed(&target);
    bed.machine.until("a check-in that names it", || {
        (bed.controller.check_ins().last()?.health.degraded.as_deref()
            == Some(&["old.service".to_owned()][..]))
        .then_some(())
    });
    assert!(bed.machine.ask(&["status"]).1.contains("degraded     old.service failed"));
    std::fs::write(bed.machine.file("failed-units"), "").unwrap();
    let next = bed.publish(2, ": next");
    bed.assert_confirmed(&next);
    bed.machine.until("a check-in that names none", || {
        (bed.controller.check_ins().last()?.health.degraded.as_deref() == Some(&[][..])).then_some(())
    });
}
