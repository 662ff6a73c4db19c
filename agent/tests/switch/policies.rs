//! When and how generations are installed: windows, pauses, hooks, and drift.

use muster_protocol::checkin::Phase;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::Generation;
use muster_protocol::machine::Class;
use muster_protocol::policy::{DriftPolicy, Hook, Policy, Window};
use muster_protocol::report::{EventKind, Reason};
use muster_protocol::target::Target;

use super::bed::Bed;

/// A window that is closed now and for some hours more; the machines of these tests use UTC.
fn elsewhen() -> Window {
    let hour = (SystemClock::new().unix_seconds().div_euclid(3600) + 12).rem_euclid(24);
    let text = format!(r#"{{"from":"{hour:02}:00","to":"{hour:02}:30"}}"#);
    serde_json::from_str(&text).unwrap()
}

fn with_policy(target: Target, policy: Policy) -> Target {
    Target { policy, ..target }
}

#[test]
fn outside_its_window_a_generation_is_built_and_waits_and_a_newer_urgent_one_takes_its_place() {
    let bed = Bed::new(Class::Nixos);
    let old = bed.machine.layout.running().unwrap();
    let windows = || vec![elsewhen()];
    let waits = with_policy(bed.target(1, ""), Policy { windows: windows(), ..Policy::default() });
    bed.controller.publish(&waits);
    let EventKind::Deferred { why, until: Some(until) } = bed.until_event(1, "deferred") else {
        panic!("it says when the window opens");
    };
    assert!(why.contains("outside its window"), "{why}");
    assert!(until > SystemClock::new().unix_ms());
    bed.until_phase(Phase::Deferred);
    assert_eq!(bed.controller.names(1), ["verified", "fetched", "built", "deferred"]);
    bed.machine.assert_on(&old);
    let (code, words) = bed.machine.ask(&["status"]);
    assert_eq!(code, 0, "{words}");
    for part in [
        "phase        deferred, generation 1",
        "outside its window",
        "waits        until ",
        "as soon as the policy allows it",
    ] {
        assert!(words.contains(part), "{part}: {words}");
    }
    let haste = Policy { windows: windows(), urgent: true, ..Policy::default() };
    let urgent = with_policy(bed.target(2, ": urgent"), haste);
    bed.controller.publish(&urgent);
    bed.assert_confirmed(&urgent);
    assert!(!bed.controller.names(1).contains(&"activating"));
}

#[test]
fn the_machines_own_window_holds_a_generation_up_as_well_as_the_operators() {
    let window = serde_json::to_value(elsewhen()).unwrap();
    let settings = format!("[policy]\nwindow = {{ from = {}, to = {} }}", window["from"], window["to"]);
    let bed = Bed::with(Class::Darwin, &settings);
    let target = bed.publish(1, "");
    assert!(matches!(bed.until_event(1, "deferred"), EventKind::Deferred { until: Some(_), .. }));
    assert_ne!(bed.machine.layout.running(), Some(target.output));
}

#[test]
fn a_pause_outlives_the_agent_and_holds_whatever_is_published_until_it_is_resumed() {
    let mut bed = Bed::new(Class::Nixos);
    bed.until_phase(Phase::Idle);
    let (code, words) = bed.machine.ask(&["pause", "--for", "4h"]);
    assert!(code == 0 && words.contains("paused until "), "{words}");
    bed.kill_agent();
    bed.start_agent();
    let mut target = bed.target(1, "");
    // However urgent it is: somebody at the machine wants to be left alone.
    target.policy.urgent = true;
    bed.controller.publish(&target);
    assert!(
        matches!(bed.until_event(1, "deferred"), EventKind::Deferred { why, .. } if why.contains("paused"))
    );
    assert_eq!(bed.controller.names(1), ["verified", "deferred"], "not even fetched");
    bed.machine.until("a check-in that tells of the pause", || {
        bed.controller.check_ins().last()?.health.paused_until.map(drop)
    });
    let (code, words) = bed.machine.ask(&["resume"]);
    assert!(code == 0 && words.contains("updates resumed"), "{words}");
    bed.assert_confirmed(&target);
    assert!(bed.machine.ask(&["resume"]).1.contains("were not paused"));
    assert!(bed.machine.ask(&["pause", "--for", "soon"]).1.contains("such as 90m, 4h or 2d"));
}

#[test]
fn hooks_put_a_switch_off_and_are_told_what_it_is_about_and_one_that_fails_afterwards_changes_nothing() {
    let settings = "[policy.before.gate]\ncommand = ['sh', '-c', 'env | grep ^MUSTER_ > ROOT/before; \
        test ! -e ROOT/closed || { echo busy with a backup; exit 1; }']\n";
    let bed = Bed::with(Class::Nixos, settings);
    let closed = bed.machine.file("closed");
    std::fs::write(&closed, "").unwrap();
    let mut target = bed.target(1, "");
    let root = bed.machine.root().display();
    let after = format!("env | grep ^MUSTER_ > {root}/after; echo nobody listens; exit 3");
    target.policy.after = vec![Hook {
        name: "tell".into(),
        command: vec!["sh".into(), "-c".into(), after],
        timeout_seconds: 5,
    }];
    bed.controller.publish(&target);
    let deferred = bed.until_event(1, "deferred");
    assert!(
        matches!(&deferred, EventKind::Deferred { why, .. } if why.contains("'gate'") && why.contains("busy with a backup")),
        "{deferred:?}"
    );
    std::fs::remove_file(closed).unwrap();
    assert_eq!(bed.machine.ask(&["check-now"]).0, 0);
    bed.assert_confirmed(&target);
    let failed = bed.until_event(1, "hook-failed");
    assert!(
        matches!(&failed, EventKind::HookFailed { hook, detail } if hook == "tell" && detail.contains("nobody listens"))
    );
    let facts = |name: &str| std::fs::read_to_string(bed.machine.file(name)).unwrap();
    for fact in ["MUSTER_WHEN=before", "MUSTER_GENERATION=1", "MUSTER_STATE=built", "MUSTER_MACHINE="] {
        assert!(facts("before").contains(fact), "{fact}: {}", facts("before"));
    }
    let new = format!("MUSTER_NEW={}", target.output);
    for fact in ["MUSTER_WHEN=after", "MUSTER_STATE=confirmed", "MUSTER_OLD=/nix/store/", &new] {
        assert!(facts("after").contains(fact), "{fact}: {}", facts("after"));
    }
}

#[test]
fn the_machines_own_checks_are_asked_beside_the_signed_ones() {
    let settings = "[checks.data]\ncommand = ['sh', '-c', 'test -e ROOT/data || { echo no data; exit 1; \
        }']\ntries = 1\n";
    let bed = Bed::with(Class::Darwin, settings);
    let old = bed.machine.layout.running().unwrap();
    bed.publish(1, "");
    let undone = bed.until_event(1, "rolled-back");
    assert!(
        matches!(&undone, EventKind::RolledBack { reason: Reason::HealthCheckFailed, detail, .. } if detail.contains("no data")),
        "{undone:?}"
    );
    bed.machine.assert_on(&old);
    std::fs::write(bed.machine.file("data"), "").unwrap();
    let good = bed.publish(2, ": other");
    bed.assert_confirmed(&good);
}

#[test]
fn failure_mode_20_drift_is_undone_where_the_policy_says_so_and_a_system_that_resists_is_left() {
    let bed = Bed::new(Class::Nixos);
    let policy = Policy { drift: Some(DriftPolicy::Enforce), ..Policy::default() };
    let first = with_policy(bed.target(1, "test ! -e $R/broken || exit 2"), policy);
    bed.controller.publish(&first);
    bed.assert_confirmed(&first);
    let other = bed.machine.system("by-hand", "");
    bed.machine.install(&other);
    let asked = || assert_eq!(bed.machine.ask(&["check-now"]).0, 0);
    asked();
    bed.machine.until("the confirmed system again", || {
        (bed.machine.layout.running().as_ref() == Some(&first.output)).then_some(())
    });
    bed.machine.until("its confirmation", || {
        (bed.controller.names(1).iter().filter(|event| **event == "confirmed").count() == 2).then_some(())
    });
    bed.machine.assert_on(&first.output);
    let names = bed.controller.names(1);
    assert_eq!(names[6..], ["drift", "activating", "activated", "confirmed"], "{names:?}");
    // It is tried once, and the machine stays on what somebody chose.
    std::fs::write(bed.machine.file("broken"), "").unwrap();
    bed.machine.install(&other);
    asked();
    let undone = bed.until_event(1, "rolled-back");
    assert!(matches!(undone, EventKind::RolledBack { quarantined: false, .. }), "{undone:?}");
    bed.machine.until("a settled transaction", || {
        (!bed.machine.config.state("transaction.json").exists()).then_some(())
    });
    asked();
    bed.machine.assert_on(&other);
    std::fs::remove_file(bed.machine.file("broken")).unwrap();
    let next = bed.publish(2, ": next");
    bed.assert_confirmed(&next);
    assert_eq!(bed.controller.names(1).iter().filter(|event| **event == "rolled-back").count(), 1);
}

#[test]
fn failure_mode_39_old_generations_of_the_profile_go_only_after_a_confirmation_and_old_stays() {
    let settings = "[policy]\nkeep_generations = 2\n";
    let bed = Bed::with(Class::Nixos, settings);
    let numbers = || {
        let folder = bed.machine.layout.profile().parent().unwrap().to_path_buf();
        let mut numbers: Vec<u64> = std::fs::read_dir(folder)
            .unwrap()
            .filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                name.strip_prefix("system-")?.strip_suffix("-link")?.parse().ok()
            })
            .collect();
        numbers.sort_unstable();
        numbers
    };
    for number in 1..=3 {
        let target = bed.publish(number, &format!(": {number}"));
        bed.assert_confirmed(&target);
    }
    bed.machine.until("two generations of the profile", || (numbers() == [3, 4]).then_some(()));
    let mut bad = bed.target(4, ": bad");
    bad.checks = vec![super::bed::check("exit 1")];
    bed.controller.publish(&bad);
    bed.until_event(4, "rolled-back");
    bed.machine.until("a settled transaction", || {
        (!bed.machine.config.state("transaction.json").exists()).then_some(())
    });
    // NEW and OLD were set once more each; nothing was removed.
    assert_eq!(numbers()[..2], [3, 4]);
    let generation = Generation::new(4).unwrap();
    assert_eq!(bed.controller.check_ins().last().unwrap().phase_generation, Some(generation));
}
