//! How a machine's circumstances affect a generation, and what a person at the machine can do about it.

use muster_protocol::checkin::Phase;
use muster_protocol::ids::Generation;
use muster_protocol::machine::Class;
use muster_protocol::report::{Asker, EventKind, UpdateStep};

use super::bed::{Bed, check};

#[test]
fn a_quarantine_is_lifted_by_a_word_at_the_machine_which_is_told_and_by_no_other() {
    let bed = Bed::new(Class::Nixos);
    let repaired = bed.machine.file("repaired");
    let mut target = bed.target(1, "");
    target.checks = vec![check(&format!("test -e {}", repaired.display()))];
    bed.controller.publish(&target);
    bed.until_event(1, "rolled-back");
    std::fs::write(&repaired, "").unwrap();
    bed.until_phase(Phase::RolledBack);
    bed.machine.until("the end is taken in", || {
        (!bed.machine.config.state("transaction.json").exists()).then_some(())
    });
    // The same derivation under a higher number stays refused.
    target.generation = Generation::new(2).unwrap();
    bed.controller.publish(&target);
    bed.until_event(2, "failed");
    let (code, words) = bed.machine.ask(&["check-now"]);
    assert_eq!(code, 0, "{words}");
    let (code, words) = bed.machine.ask(&["retry"]);
    assert_eq!((code, words.contains("generation 2 is tried again")), (0, true), "{words}");
    bed.assert_confirmed(&target);
    let retried = bed.until_event(2, "retried");
    assert!(
        matches!(
            &retried,
            EventKind::Retried { derivation, quarantined: true, by: Asker::Local { user: Some(_) } }
                if *derivation == target.derivation
        ),
        "{retried:?}"
    );
    assert_eq!(bed.controller.names(2)[..3], ["failed", "retried", "verified"]);
    let (code, words) = bed.machine.ask(&["retry"]);
    assert_eq!((code, words.contains("is confirmed and runs")), (1, true), "{words}");
}

/// Like the kernel's OOM killer. The first process of a namespace cannot do this to itself.
fn kill_whoever_sleeps(seconds: u32) {
    let command = format!("sleep\0{seconds}\0");
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(pid) = entry.file_name().to_string_lossy().parse() else { continue };
        if std::fs::read_to_string(entry.path().join("cmdline")).is_ok_and(|line| line.ends_with(&command)) {
            super::machine::end(pid);
        }
    }
}

/// Slow: it is tried four times, with growing pauses.
#[test]
fn a_builder_that_is_killed_is_tried_again_and_says_nothing_against_its_derivation() {
    let bed = Bed::new(Class::Nixos);
    let seconds = 100_000 + std::process::id();
    let target = bed.target_built_by(1, "", &format!("exec /bin/busybox sleep {seconds}"));
    bed.controller.publish(&target);
    let failed = bed.machine.until("the end of it", || {
        kill_whoever_sleeps(seconds);
        bed.controller.last(1, "failed")
    });
    let EventKind::Failed { step: UpdateStep::Build, detail, quarantined: false } = failed else {
        panic!("{failed:?}");
    };
    let first = detail.lines().next().unwrap();
    assert!(first.contains("failed due to signal 9") && first.contains("the machine"), "{detail}");
    bed.until_phase(Phase::Failed);
    bed.machine.until("the end is taken in", || {
        (!bed.machine.config.state("transaction.json").exists()).then_some(())
    });
    // A manual retry need not wait an hour, and needs no new number.
    let (code, words) = bed.machine.ask(&["check-now"]);
    assert_eq!(code, 0, "{words}");
    bed.machine.until("another try", || (bed.controller.names(1).len() > 3).then_some(()));
    assert_eq!(bed.controller.names(1)[..4], ["verified", "fetched", "failed", "verified"]);
}

/// A broken cache of the machine's own.
fn broken_cache(answer: &'static str) -> std::net::SocketAddr {
    use std::io::{Read as _, Write as _};
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(mut stream) = stream else { return };
            let mut request = [0; 4096];
            let read = stream.read(&mut request).unwrap_or(0);
            let request = String::from_utf8_lossy(&request[..read]).into_owned();
            let (status, body) = match request.contains("/nix-cache-info") {
                true => ("200 OK", "StoreDir: /nix/store\nWantMassQuery: 1\nPriority: 30\n".to_owned()),
                false => (answer, "<html><body>Please log in</body></html>".to_owned()),
            };
            let length = body.len();
            let head = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
            let body = if request.starts_with("HEAD") { String::new() } else { body };
            let _ = stream.write_all((head + &body).as_bytes());
        }
    });
    address
}

/// Slow: Nix itself retries a cache that answers 502.
#[test]
fn what_a_broken_cache_of_the_machine_does_not_give_is_built_at_home() {
    for answer in ["200 OK", "502 Bad Gateway"] {
        let mut bed = Bed::new(Class::Nixos);
        bed.kill_agent();
        let cache = format!("substituters = http://{}", broken_cache(answer));
        bed.machine.add_to_nix_config(&format!("{cache}\ndownload-attempts = 1\n"));
        bed.start_agent();
        let target = bed.publish(1, "");
        bed.assert_confirmed(&target);
        let (_, log) = bed.machine.ask(&["logs", "1"]);
        let notes: Vec<String> =
            bed.controller.check_ins().into_iter().filter_map(|check_in| check_in.note).collect();
        if answer.starts_with("200") {
            assert!(log.contains("is built here now"), "{answer}: {log}");
            assert!(notes.iter().any(|note| note.contains("is built here now")), "{notes:?}");
        }
    }
}

/// Slow: a manual rollback would be undone after its deadline if it needed somebody else's confirmation.
#[test]
fn a_persons_rollback_needs_no_controller() {
    let bed = Bed::new(Class::Nixos);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    let second = bed.publish(2, ": two");
    bed.assert_confirmed(&second);
    bed.controller.cut(true);
    let (code, words) = bed.machine.ask(&["rollback"]);
    assert_eq!(code, 0, "{words}");
    bed.machine.until("it is taken in", || {
        let journal = bed.machine.files.journal().unwrap().whole()?;
        (journal.last?.phase == Phase::RolledBack).then_some(())
    });
    bed.machine.assert_on(&first.output);
    bed.controller.cut(false);
    bed.until_event(2, "rolled-back");
}

#[test]
fn a_machine_that_was_revoked_says_so_wherever_it_is_asked() {
    let bed = Bed::new(Class::Nixos);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    bed.controller.revoke();
    let (code, words) = bed.machine.ask(&["check-now"]);
    assert_eq!((code, words.contains("no longer accepts this machine")), (1, true), "{words}");
    let (_, status) = bed.machine.ask(&["status"]);
    assert!(status.contains("machine m was revoked"), "{status}");
    let (code, doctor) = bed.machine.ask(&["doctor"]);
    assert!(code == 1 && doctor.contains("BAD  membership"), "{doctor}");
    assert!(doctor.contains("muster machines add m --replace"), "{doctor}");
}

#[test]
fn where_nix_cannot_build_is_waited_out_and_seen_by_doctor_and_says_nothing_against_the_derivation() {
    let mut bed = Bed::new(Class::Nixos);
    bed.kill_agent();
    let folder = bed.machine.file("builds");
    bed.machine.add_to_nix_config(&format!("build-dir = {}\n", folder.display()));
    bed.start_agent();
    let target = bed.publish(1, "");
    bed.machine.until("what is in the way", || {
        let note = bed.controller.check_ins().pop()?.note?;
        note.contains("Nix cannot build here").then_some(())
    });
    let (code, doctor) = bed.machine.ask(&["doctor"]);
    assert!(code == 1 && doctor.contains("BAD  builds"), "{doctor}");
    std::fs::create_dir(&folder).unwrap();
    bed.assert_confirmed(&target);
    assert!(!bed.controller.names(1).contains(&"failed"));
}

/// The state folder is a file at first, in which nobody can create one, not even root.
#[test]
fn an_agent_whose_state_folder_cannot_be_used_stays_says_what_to_do_and_goes_on_when_it_can() {
    let mut bed = Bed::new(Class::Nixos);
    bed.kill_agent();
    let state = bed.machine.config.state_dir.clone();
    let aside = state.with_extension("aside");
    std::fs::rename(&state, &aside).unwrap();
    std::fs::write(&state, "").unwrap();
    bed.start_agent();
    bed.machine.until("what is in the way", || {
        let log = std::fs::read_to_string(bed.machine.file("log")).ok()?;
        log.contains("a person is needed: ").then_some(())
    });
    assert!(bed.agent_lives(), "a supervisor would start it again and again");
    std::fs::remove_file(&state).unwrap();
    std::fs::rename(&aside, &state).unwrap();
    let target = bed.publish(1, "");
    bed.assert_confirmed(&target);
}
