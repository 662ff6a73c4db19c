//! Boots that do not bring up what they should: what the boot loader counted is in a folder in place of the
//! EFI system partition, with the names that systemd gives its files.

use muster_agent::core::records::ActivationPhase;
use muster_protocol::checkin::Phase;
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::machine::Class;
use muster_protocol::policy::{DriftPolicy, Policy};
use muster_protocol::report::{EventKind, Reason};
use muster_protocol::target::{Action, Target};

use super::bed::Bed;

/// The boot loader's entries, by the names of their files, and the one that it booted.
fn entries(bed: &Bed, entries: &[(&str, &StorePath)], selected: &str) {
    let folder = bed.machine.file("boot/loader/entries");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    for (file, system) in entries {
        let text = format!("title NixOS\nversion Generation 9 26.11\noptions init={system}/init quiet\n");
        std::fs::write(folder.join(file), text).unwrap();
    }
    let variables = bed.machine.file("sys/firmware/efi/efivars");
    std::fs::create_dir_all(&variables).unwrap();
    let mut bytes = vec![6, 0, 0, 0];
    selected.encode_utf16().chain([0]).for_each(|unit| bytes.extend(unit.to_le_bytes()));
    let name = "LoaderEntrySelected-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
    std::fs::write(variables.join(name), bytes).unwrap();
}

/// The machine comes up on this system after a reboot, whatever its profile says.
fn comes_up_on(bed: &mut Bed, system: &StorePath) {
    bed.kill_agent();
    bed.machine.reboot();
    for link in ["run/current-system", "run/booted-system"] {
        let link = bed.machine.file(link);
        let _ = std::fs::remove_file(&link);
        std::os::unix::fs::symlink(system.as_str(), &link).unwrap();
    }
    bed.start_agent();
}

fn settled(bed: &Bed) {
    bed.machine.until("a settled transaction", || {
        (!bed.machine.config.state("transaction.json").exists()).then_some(())
    });
}

fn enforced(bed: &Bed, number: u64, action: Action) -> Target {
    let mut target = bed.target(number, "");
    target.action = action;
    target.policy = Policy { drift: Some(DriftPolicy::Enforce), ..Policy::default() };
    bed.controller.publish(&target);
    target
}

#[test]
fn i3_a_generation_for_the_next_boot_that_does_not_boot_is_undone_and_says_what_was_counted() {
    for (file, words) in [
        ("nixos-5b1e+0-3.conf", "nixos-5b1e.conf has no tries left after 3"),
        ("nixos-5b1e+3.conf", "was not tried: somebody chose another one, nixos-04aa.conf"),
        ("nixos-5b1e.conf", "another boot entry was booted, nixos-04aa.conf"),
    ] {
        let mut bed = Bed::new(Class::Nixos);
        let old = bed.machine.layout.running().unwrap();
        let target = enforced(&bed, 1, Action::Boot);
        bed.until_phase(Phase::AwaitingReboot);
        entries(&bed, &[("nixos-04aa.conf", &old), (file, &target.output)], "nixos-04aa.conf");
        comes_up_on(&mut bed, &old);
        let undone = bed.until_event(1, "rolled-back");
        let EventKind::RolledBack { reason, detail, quarantined, running } = undone else { panic!() };
        assert_eq!((reason, quarantined, &running), (Reason::DidNotBoot, true, &old));
        assert!(detail.contains("did not bring the new system up") && detail.contains(words), "{detail}");
        settled(&bed);
        bed.machine.assert_on(&old);
        assert_eq!(bed.machine.runs(), [format!("boot {}", target.output), format!("boot {old}")]);
        bed.until_phase(Phase::RolledBack);
    }
}

#[test]
fn i5_a_confirmed_generation_whose_boot_fails_is_taken_back_once_and_not_enforced() {
    let mut bed = Bed::new(Class::Nixos);
    let old = bed.machine.layout.running().unwrap();
    let target = enforced(&bed, 1, Action::Switch);
    bed.assert_confirmed(&target);
    entries(&bed, &[("nixos-04aa.conf", &old), ("nixos-5b1e+0-3.conf", &target.output)], "nixos-04aa.conf");
    comes_up_on(&mut bed, &old);
    let undone = bed.until_event(1, "rolled-back");
    let EventKind::RolledBack { reason, detail, quarantined, running } = undone else { panic!() };
    assert_eq!((reason, quarantined, &running), (Reason::DidNotBoot, true, &old));
    assert!(detail.contains("it was confirmed") && detail.contains("has no tries left"), "{detail}");
    settled(&bed);
    bed.machine.assert_on(&old);
    bed.until_phase(Phase::RolledBack);
    let runs = [format!("switch {}", target.output), format!("boot {old}")];
    assert_eq!(bed.machine.runs(), runs);
    // Neither the next start of the agent nor somebody else's switch brings it back.
    bed.kill_agent();
    let other = bed.machine.system("other", "");
    bed.machine.install(&other);
    bed.start_agent();
    bed.machine.until("a check-in of what runs", || {
        (bed.controller.check_ins().last()?.runs.as_ref()?.running == other).then_some(())
    });
    // Its derivation is not tried under another number either.
    let again = Target { generation: Generation::new(2).unwrap(), ..target };
    bed.controller.publish(&again);
    let refused = bed.until_event(2, "failed");
    assert!(matches!(refused, EventKind::Failed { quarantined: true, .. }), "{refused:?}");
    assert_eq!(bed.machine.runs(), runs);
    let told = bed.controller.names(1);
    assert_eq!(told.iter().filter(|name| **name == "rolled-back").count(), 1, "{told:?}");
}

#[test]
fn a_machine_that_comes_up_on_another_system_without_proof_has_drifted_as_before() {
    for file in [None, Some("nixos-5b1e+3.conf")] {
        let mut bed = Bed::new(Class::Nixos);
        let old = bed.machine.layout.running().unwrap();
        let target = bed.publish(1, "");
        bed.assert_confirmed(&target);
        if let Some(file) = file {
            entries(&bed, &[("nixos-04aa.conf", &old), (file, &target.output)], "nixos-04aa.conf");
        }
        comes_up_on(&mut bed, &old);
        let drift = bed.until_event(1, "drift");
        assert!(matches!(&drift, EventKind::Drift { running, .. } if *running == old), "{drift:?}");
        assert_eq!(bed.machine.layout.profile_target(), Some(target.output));
        assert!(!bed.controller.names(1).contains(&"rolled-back"));
        assert_eq!(bed.machine.phase(), None::<ActivationPhase>);
    }
}
