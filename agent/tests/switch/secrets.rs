//! Secrets that a system needs before its activation exist when it begins, and go back with it. The sops here
//! is a stand-in that prints the file; `tests/secrets` uses the real one.

use muster_agent::core::records::{ActivationPhase as Phase, GivenVerdict};
use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use muster_protocol::report::Reason;
use muster_protocol::target::Action;

use super::machine::Machine;

const PLACE: &str = "run/muster/early/key";

/// A system that keeps what its activation found of its secret, and needs `value`.
fn system(machine: &Machine, name: &str, value: &str, sops: &str) -> StorePath {
    let build = machine.file("build").join(name);
    let etc = build.join("etc/muster");
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(build.join("secret"), value).unwrap();
    let sops = machine.decrypts_with(&build.join("sops"), sops);
    let secret = machine.nix("nix-store", &["--add", build.join("secret").to_str().unwrap()]);
    let manifest = serde_json::json!({
        "version": 1, "sops": sops, "directory": "/run/muster/early",
        "files": [{"name": "key", "source": secret, "owner": "root", "group": "root", "mode": "0400"}],
    });
    std::fs::write(etc.join("activation-secrets.json"), manifest.to_string()).unwrap();
    machine.system(name, &format!("cp $R/{PLACE} $R/found-by-{name}"))
}

fn bed(class: Class, sops: &str) -> (Machine, StorePath, StorePath) {
    let machine = Machine::new(class);
    machine.ram_disks();
    std::fs::write(machine.file("state/age.txt"), "key").unwrap();
    let old = system(&machine, "old", "old secret", "cat \"$7\"");
    let new = system(&machine, "new", "new secret", sops);
    machine.install(&old);
    (machine, old, new)
}

#[test]
fn an_activation_finds_its_secrets_and_an_undo_its_own() {
    for class in Class::ALL {
        let (machine, old, new) = bed(class, "cat \"$7\"");
        machine.transaction(&new, Action::Switch, 60);
        let mut activator = machine.activate();
        machine.until_phase(Phase::Activated);
        assert_eq!(std::fs::read_to_string(machine.file("found-by-new")).unwrap(), "new secret");
        machine.verdict(GivenVerdict::Undo { reason: Reason::HealthCheckFailed, detail: "x".into() });
        assert!(activator.wait().unwrap().success());
        machine.assert_on(&old);
        assert_eq!(std::fs::read_to_string(machine.file("found-by-old")).unwrap(), "old secret");
        assert_eq!(std::fs::read_to_string(machine.file(PLACE)).unwrap(), "old secret");
    }
}

#[test]
fn without_its_secrets_a_system_is_not_activated() {
    let (machine, old, new) = bed(Class::Nixos, "echo no key >&2; exit 128");
    machine.transaction(&new, Action::Switch, 60);
    assert!(machine.activate().wait().unwrap().success());
    let record = machine.record().unwrap();
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::ActivationFailed)));
    assert!(record.detail.contains("muster machines accept"), "{}", record.detail);
    machine.assert_on(&old);
    assert!(!machine.runs().contains(&format!("switch {new}")), "{:?}", machine.runs());
}

#[test]
fn going_back_does_not_depend_on_what_decrypts() {
    let (machine, old, new) = bed(Class::Nixos, "cat \"$7\"");
    machine.transaction(&new, Action::Switch, 60);
    let mut activator = machine.activate();
    machine.until_phase(Phase::Activated);
    // Everything that OLD decrypts with is gone.
    machine.forget(&old, "etc/muster/activation-secrets.json");
    machine.verdict(GivenVerdict::Undo { reason: Reason::HealthCheckFailed, detail: "x".into() });
    assert!(activator.wait().unwrap().success());
    machine.assert_on(&old);
}

#[test]
fn a_start_of_the_machine_puts_them_back() {
    let (machine, _, _) = bed(Class::Nixos, "");
    assert!(!machine.file(PLACE).exists());
    let (code, words) = machine.ask(&["secrets"]);
    assert_eq!((code, words.contains("not enrolled")), (0, true), "{words}");
    machine.enrolled();
    let (code, words) = machine.ask(&["secrets"]);
    assert_eq!(code, 0, "{words}");
    assert_eq!(std::fs::read_to_string(machine.file(PLACE)).unwrap(), "old secret");
}

#[test]
fn a_renewed_age_key_is_told_with_what_to_do() {
    let machine = Machine::new(Class::Darwin);
    let (code, words) = machine.ask(&["renew-age-key"]);
    assert_eq!((code, words.contains("not enrolled")), (1, true), "{words}");
    machine.enrolled();
    let (code, words) = machine.ask(&["renew-age-key"]);
    assert_eq!(code, 0, "{words}");
    assert!(words.contains("to age1") && words.contains("muster machines accept m"), "{words}");
    let keys = std::fs::read_to_string(machine.file("state/age.txt")).unwrap();
    assert_eq!(keys.matches("AGE-SECRET-KEY-").count(), 2, "the old one still reads what there is");
}
