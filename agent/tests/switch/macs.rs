//! The traps of nix-darwin: permissions, sessions, older closures, sleep.

use muster_agent::core::records::ActivationPhase;
use muster_protocol::checkin::Phase;
use muster_protocol::machine::Class;
use muster_protocol::report::{EventKind, Reason};

use super::bed::Bed;

/// nix-darwin's message where the agent may not modify applications.
const DENIED: &str = "error: permission denied when trying to update apps over SSH, aborting activation";

#[test]
fn failure_mode_5_a_permission_that_is_missing_needs_a_person_with_the_words_of_what_to_grant() {
    let bed = Bed::new(Class::Darwin);
    let old = bed.machine.layout.running().unwrap();
    std::fs::write(bed.machine.file("denied"), "").unwrap();
    // The checks pass, and the activation itself stops halfway.
    let target = bed.publish(1, &format!("test ! -e $R/denied || {{ echo '{DENIED}' >&2; exit 1; }}"));
    let undone = bed.until_event(1, "rolled-back");
    let EventKind::RolledBack { reason: Reason::NeedsHuman, detail, quarantined: false, .. } = undone else {
        panic!("{undone:?}");
    };
    for part in ["System Settings > Privacy & Security > App Management", "/muster-agent", "check-now"] {
        assert!(detail.contains(part), "{detail}");
    }
    bed.machine.assert_on(&old);
    bed.until_phase(Phase::NeedsHuman);
    let (_, words) = bed.machine.ask(&["status"]);
    assert!(words.contains("needs human") && words.contains("again once somebody has done"), "{words}");
    // It is not retried before somebody says that it is done.
    std::fs::remove_file(bed.machine.file("denied")).unwrap();
    assert_eq!(bed.controller.names(1).iter().filter(|event| **event == "activating").count(), 1);
    assert_eq!(bed.machine.ask(&["check-now"]).0, 0);
    bed.assert_confirmed(&target);
}

#[test]
fn failure_mode_8_a_changed_agent_of_a_user_waits_until_they_log_in() {
    let bed = Bed::new(Class::Darwin);
    bed.machine.log_in(None);
    let in_build = "/bin/busybox mkdir -p $out/user/Library/LaunchAgents; \
        echo plist > $out/user/Library/LaunchAgents/org.example.plist";
    let target = bed.target_built_by(1, "", in_build);
    bed.controller.publish(&target);
    let deferred = bed.until_event(1, "deferred");
    assert!(
        matches!(&deferred, EventKind::Deferred { why, .. } if why.contains("log in at the Mac's screen"))
    );
    assert!(!bed.controller.names(1).contains(&"activating"));
    bed.machine.log_in(Some(501));
    // The agent checks by itself each minute; no need to wait that long here.
    assert_eq!(bed.machine.ask(&["check-now"]).0, 0);
    bed.assert_confirmed(&target);
}

#[test]
fn failure_mode_8_an_activation_that_wanted_a_session_is_tried_again_at_the_next_login() {
    let bed = Bed::new(Class::Darwin);
    let old = bed.machine.layout.running().unwrap();
    bed.machine.log_in(None);
    let words = "Could not find domain for user gui/501";
    let target = bed.publish(1, &format!("test -e $R/session || {{ echo '{words}' >&2; exit 1; }}"));
    let undone = bed.until_event(1, "rolled-back");
    assert!(matches!(undone, EventKind::RolledBack { reason: Reason::NeedsHuman, quarantined: false, .. }));
    bed.machine.assert_on(&old);
    std::fs::write(bed.machine.file("session"), "").unwrap();
    bed.machine.log_in(Some(501));
    // The agent looks when a poll ends; the controller has nothing new.
    bed.controller.wake();
    bed.assert_confirmed(&target);
}

#[test]
fn failure_mode_40_the_mac_is_kept_awake_while_it_switches_and_no_longer() {
    let bed = Bed::new(Class::Darwin);
    let target = bed.publish(1, super::machine::HOLD);
    bed.assert_confirmed(&target);
    let asked = std::fs::read_to_string(bed.machine.file("awake")).unwrap();
    let words: Vec<&str> = asked.split_whitespace().collect();
    assert_eq!(words[..4], ["-i", "-m", "-s", "-w"]);
    let activator = words[4];
    bed.machine.until("the end of the assertion", || {
        let caffeinate = bed.machine.file("programs/caffeinate").display().to_string();
        let runs = bed.machine.processes().into_iter().any(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).into_owned();
            line.contains(&caffeinate) || line.ends_with(&format!("-w\0{activator}\0"))
        });
        (!runs).then_some(())
    });
}

/// Slow: waits for the cask's password until the deadline of ten seconds.
#[test]
fn failure_mode_7_a_cask_that_asks_for_a_password_is_ended_with_its_whole_session() {
    let bed = Bed::new(Class::Darwin);
    let old = bed.machine.layout.running().unwrap();
    // sudo opens a session of its own to ask in.
    let body = "setsid sh -c \"trap '' TERM HUP; sleep 1000; : $R\" & wait";
    let mut target = bed.target(1, body);
    target.deadline_seconds = 10;
    bed.controller.publish(&target);
    let undone = bed.until_event(1, "rolled-back");
    assert!(matches!(undone, EventKind::RolledBack { reason: Reason::Deadline, .. }), "{undone:?}");
    bed.machine.assert_on(&old);
    bed.machine.until("no process of it runs", || {
        let hangs = bed.machine.processes().into_iter().any(|pid| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&line).contains("sleep 1000; :")
        });
        (!hangs).then_some(())
    });
}

#[test]
fn failure_mode_14_the_agent_does_not_exit_while_an_activation_runs_whatever_happens_to_it() {
    let mut bed = Bed::new(Class::Darwin);
    let pid = bed.agent_pid();
    bed.machine.hold();
    let target = bed.publish(1, super::machine::HOLD);
    bed.machine.until_phase(ActivationPhase::Activating);
    // KeepAlive would start OLD's program now. Neither an absent controller nor an unreadable state makes it
    // exit.
    bed.controller.cut(true);
    std::fs::write(bed.machine.config.state("confirmation.json"), "{").unwrap();
    assert_ne!(bed.machine.ask(&["rollback"]).0, 0, "nor a person who asks for what cannot be now");
    assert!(bed.agent_lives());
    bed.controller.cut(false);
    bed.machine.let_go();
    bed.assert_confirmed(&target);
    assert!(bed.agent_lives() && bed.agent_pid() == pid);
}
