//! A user who chose a specialisation of the signed system runs the signed system, and keeps their choice.

use std::process::Command;

use muster_protocol::checkin::Phase;
use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use muster_protocol::target::Target;

use super::bed::{Bed, check};

/// A generation with this system as its specialisation `desk`.
fn with_desk(bed: &Bed, number: u64, desk: &StorePath) -> Target {
    let link = format!(
        "/bin/busybox mkdir -p $out/specialisation; /bin/busybox ln -s {desk} $out/specialisation/desk"
    );
    bed.target_built_by(number, &format!(": {number}"), &link)
}

fn itself(bed: &Bed) -> StorePath {
    bed.machine.layout.running_itself().unwrap()
}

fn until_noted(bed: &Bed, words: &str) {
    bed.machine.until(words, || {
        let check_in = bed.controller.check_ins().pop()?;
        check_in.note.filter(|note| note.contains(words) && check_in.phase == Phase::Confirmed).map(drop)
    });
}

/// Slow: the failing generation is undone.
#[test]
fn a_specialisation_of_the_confirmed_system_is_that_system_and_is_kept_by_the_next_one_that_has_it() {
    let bed = Bed::with(Class::Nixos, "[policy]\ndrift = 'enforce'\n");
    let desks = ["one", "two", "three"].map(|name| bed.machine.system(&format!("desk-{name}"), ""));
    let first = with_desk(&bed, 1, &desks[0]);
    bed.controller.publish(&first);
    bed.assert_confirmed(&first);
    assert_eq!(itself(&bed), first.output, "nobody chose it yet");

    let script = bed.machine.layout.physical(&desks[0]).join("bin/switch-to-configuration");
    assert!(Command::new(script).arg("switch").status().unwrap().success());
    assert_eq!(bed.machine.ask(&["check-now"]).0, 0);
    until_noted(&bed, "runs the specialisation 'desk'");
    let runs = bed.controller.check_ins().pop().unwrap().runs.unwrap();
    assert_eq!((runs.running, runs.generation), (first.output.clone(), Some(first.generation)));
    let (_, status) = bed.machine.ask(&["status"]);
    assert!(status.contains("specialisation 'desk'"), "{status}");
    assert_eq!(itself(&bed), desks[0], "the policy 'enforce' leaves it");

    let second = with_desk(&bed, 2, &desks[1]);
    bed.controller.publish(&second);
    bed.assert_confirmed(&second);
    assert_eq!(itself(&bed), desks[1], "it is kept");

    let mut bad = with_desk(&bed, 3, &desks[2]);
    bad.checks = vec![check("exit 1")];
    bed.controller.publish(&bad);
    bed.until_event(3, "rolled-back");
    bed.machine.assert_on(&second.output);
    assert_eq!(itself(&bed), desks[1], "an undo brings back what was chosen");

    let fourth = bed.publish(4, ": without");
    bed.assert_confirmed(&fourth);
    assert_eq!(itself(&bed), fourth.output);
    until_noted(&bed, "the specialisation 'desk', which this generation does not have");
    assert!(!bed.controller.names(1).contains(&"drift"));
}

#[test]
fn what_somebody_else_switched_to_is_named_and_a_word_brings_the_signed_system_back() {
    let bed = Bed::new(Class::Nixos);
    let first = bed.publish(1, "");
    bed.assert_confirmed(&first);
    let other = bed.machine.system("by-hand", "");
    bed.machine.install(&other);
    assert_eq!(bed.machine.ask(&["check-now"]).0, 0);
    until_noted(&bed, &format!("somebody else switched it to {other}"));
    let (code, words) = bed.machine.ask(&["retry"]);
    assert_eq!(code, 0, "{words}");
    bed.machine.until("the signed system", || (bed.machine.layout.running()? == first.output).then_some(()));
}
