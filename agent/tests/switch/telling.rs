//! What the agent reports about its work: progress, logs, changes, durations; and to its service manager.

use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use muster_protocol::machine::Class;
use muster_protocol::report::{EventKind, UpdateStep};

use super::bed::Bed;
use super::machine::Machine;

#[test]
fn what_a_generation_changed_and_how_long_each_step_took_is_told_after_its_end() {
    let bed = Bed::new(Class::Nixos);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    let second = bed.publish(2, ": another");
    bed.assert_confirmed(&second);
    let EventKind::Summary(summary) = bed.until_event(2, "summary") else { panic!("a summary") };
    let closure = summary.closure.unwrap();
    assert_eq!(closure.changed, ["system 1 -> 2"], "{closure:?}");
    assert!(closure.added.is_empty() && closure.removed.is_empty() && closure.bytes != 0, "{closure:?}");
    for (what, ms) in [
        ("fetch", summary.fetch_ms),
        ("build", summary.build_ms),
        ("preflight", summary.preflight_ms),
        ("activation", summary.activation_ms),
        ("probe", summary.probe_ms),
        ("total", summary.total_ms),
    ] {
        assert!(ms.is_some(), "{what}");
    }
    assert_eq!(summary.undo_ms, None);
    let mut bad = bed.target(3, ": bad");
    bad.checks = vec![super::bed::check("exit 1")];
    bed.controller.publish(&bad);
    let EventKind::Summary(summary) = bed.until_event(3, "summary") else { panic!("a summary") };
    assert!(summary.undo_ms.is_some());
}

/// Slow: progress is reported from the fifth second of a step on.
#[test]
fn progress_of_a_build_is_told_while_it_lasts_and_all_that_it_said_is_kept_on_the_machine() {
    let bed = Bed::new(Class::Nixos);
    let in_build = "n=0; while [ $n -lt 24 ]; do n=$((n+1)); echo line $n; /bin/busybox sleep 0.5; done";
    let target = bed.target_built_by(1, "", in_build);
    bed.controller.publish(&target);
    let EventKind::Progress(progress) = bed.until_event(1, "progress") else { panic!("progress") };
    assert_eq!((progress.step, progress.to_build), (UpdateStep::Build, 1));
    assert_eq!(progress.current.as_deref(), Some("system-1"));
    bed.machine.until("a check-in that tells of it", || {
        bed.controller
            .check_ins()
            .iter()
            .any(|check_in| check_in.note.as_deref().is_some_and(|note| note.starts_with("building, ")))
            .then_some(())
    });
    bed.assert_confirmed(&target);
    let (code, words) = bed.machine.ask(&["logs", "1"]);
    assert_eq!(code, 0);
    assert!(words.contains("system-1> line 1\n") && words.contains("system-1> line 24\n"), "{words}");
    let events = bed.controller.events();
    let count = events.iter().filter(|event| matches!(event.kind, EventKind::Progress(_))).count();
    assert!((1..=2).contains(&count), "a build of twelve seconds reports it {count} times");
    assert!(bed.machine.ask(&["logs", "7"]).1.contains("there are 1"));
}

#[test]
fn the_end_of_a_failed_builds_log_goes_with_the_report_and_all_of_it_stays_here() {
    let bed = Bed::new(Class::Nixos);
    let in_build = "n=0; while [ $n -lt 2000 ]; do n=$((n+1)); echo line $n of the compiler; done; exit 7";
    let target = bed.target_built_by(1, "", in_build);
    bed.controller.publish(&target);
    let EventKind::Failed { step: UpdateStep::Build, detail, .. } = bed.until_event(1, "failed") else {
        panic!("failed")
    };
    assert!(detail.contains("line 2000 of the compiler") && detail.len() <= 4096, "{detail}");
    let (_, words) = bed.machine.ask(&["logs"]);
    assert!(words.contains("line 1 of the compiler\n") && words.contains("line 2000 of the compiler\n"));
}

#[test]
fn the_agent_tells_its_supervisor_that_it_is_ready_and_again_and_again_that_it_lives() {
    let mut bed = Bed::new(Class::Nixos);
    bed.kill_agent();
    let path = bed.machine.file("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let variables = [("NOTIFY_SOCKET", path.as_path()), ("WATCHDOG_USEC", "200000".as_ref())];
    let mut agent = bed.machine.spawn_with(&["run"], &variables);
    let (mut notified, mut buffer) = (String::new(), [0; 1024]);
    let mut ready = false;
    while !(ready && notified.contains("STATUS=") && notified.matches("WATCHDOG=1").count() >= 3) {
        let length = socket.recv(&mut buffer).expect("the supervisor is notified within a minute");
        notified.push_str(&String::from_utf8_lossy(&buffer[..length]));
        notified.push('\n');
        if !std::mem::replace(&mut ready, notified.contains("READY=1")) && ready {
            // 'systemctl start' returns here, and the next command may follow at once.
            let own = bed.machine.config.state_dir.join(muster_agent::local::SOCKET);
            assert!(std::os::unix::net::UnixStream::connect(own).is_ok(), "ready, and nobody listens");
        }
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
}

#[test]
fn an_agent_that_waits_for_its_enrolment_is_ready_all_the_same() {
    let machine = Machine::with(Class::Nixos, "");
    let path = machine.file("notify");
    let socket = UnixDatagram::bind(&path).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut agent = machine.spawn_with(&["run"], &[("NOTIFY_SOCKET", path.as_path())]);
    let (mut notified, mut buffer) = (String::new(), [0; 1024]);
    while !(notified.contains("READY=1") && notified.contains("not enrolled")) {
        let length = socket.recv(&mut buffer).expect("the supervisor is notified within a minute");
        notified.push_str(&String::from_utf8_lossy(&buffer[..length]));
    }
    agent.kill().unwrap();
    agent.wait().unwrap();
}
