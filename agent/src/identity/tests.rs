use std::os::unix::fs::PermissionsExt as _;

use super::*;

fn config(folder: &Path) -> Config {
    let mut config = Config::parse("", "/nowhere/agent.toml".into()).unwrap();
    config.state_dir = folder.to_path_buf();
    config
}
fn enrolment() -> Enrolment {
    Enrolment {
        version: 1,
        machine: "cinnabar".parse().unwrap(),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        fleet: Sha256::of(b"fleet"),
        url: "http://127.0.0.1:8443/".into(),
        lowest_generation: Generation::FIRST,
        tls_ca: None,
        enrolled_at: 1,
    }
}

#[test]
fn a_machine_is_enrolled_only_once_everything_is_there() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    assert!(Identity::load(&config).unwrap().is_none());
    let keys = Keys::load_or_make(folder.path()).unwrap();
    assert!(Identity::load(&config).unwrap().is_none());
    Identity::save(folder.path(), &enrolment()).unwrap();
    let identity = Identity::load(&config).unwrap().unwrap();
    assert_eq!(identity.key.public(), keys.machine.public());
    assert_eq!(identity.age, keys.recipient());
    assert_eq!(identity.url, "http://127.0.0.1:8443");
    std::fs::remove_file(folder.path().join("machine.pem")).unwrap();
    assert!(matches!(Identity::load(&config), Err(IdentityError::KeyMissing(_))));
}

#[test]
fn keys_are_made_once_and_for_root_alone() {
    let folder = tempfile::tempdir().unwrap();
    let first = Keys::load_or_make(folder.path()).unwrap();
    let again = Keys::load_or_make(folder.path()).unwrap();
    assert_eq!(first.machine.public(), again.machine.public());
    assert_eq!(first.recipient(), again.recipient());
    for name in ["machine.pem", "age.txt"] {
        let mode = std::fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
}

#[test]
fn the_next_key_is_durable_before_it_is_shown_and_takes_the_old_ones_place_whole() {
    let folder = tempfile::tempdir().unwrap();
    let old = Keys::load_or_make(folder.path()).unwrap();
    assert!(next_key(folder.path()).unwrap().is_none());
    let next = make_next_key(folder.path()).unwrap();
    assert_eq!(make_next_key(folder.path()).unwrap().public(), next.public(), "it is made once");
    assert_eq!(Keys::load(folder.path()).unwrap().machine.public(), old.machine.public());
    let mode = std::fs::metadata(folder.path().join("next-machine.pem")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    take_next_key(folder.path(), 5).unwrap();
    let now = Keys::load(folder.path()).unwrap();
    assert_eq!(now.machine.public(), next.public());
    assert_eq!(now.recipient(), old.recipient(), "its secrets stay readable");
    assert!(next_key(folder.path()).unwrap().is_none());
    assert!(take_next_key(folder.path(), 6).is_err(), "there is none to take");
    assert_eq!(Keys::load(folder.path()).unwrap().machine.public(), next.public());
}

#[test]
fn a_key_stays_usable_for_30_days_after_another_took_its_place() {
    let folder = tempfile::tempdir().unwrap();
    let mut keys = vec![Keys::load_or_make(folder.path()).unwrap().machine.public()];
    assert!(previous_keys(folder.path(), 0).unwrap().is_empty());
    for day in 0..6 {
        keys.insert(0, make_next_key(folder.path()).unwrap().public());
        take_next_key(folder.path(), day * 86_400_000).unwrap();
    }
    assert_eq!(rotated_at(folder.path()).unwrap(), Some(5 * 86_400_000));
    let kept = |day: i64| -> Vec<_> {
        let kept = previous_keys(folder.path(), day * 86_400_000).unwrap();
        kept.iter().map(SecretKey::public).collect()
    };
    assert_eq!(kept(6), keys[1..5], "the newest four");
    assert_eq!(kept(34), keys[1..2]);
    assert!(kept(35).is_empty());
    let file = folder.path().join(PREVIOUS_KEYS);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    std::fs::write(&file, "{").unwrap();
    assert!(kept(6).is_empty());
    std::fs::write(&file, "[]").unwrap();
    make_next_key(folder.path()).unwrap();
    forget_other_keys(folder.path()).unwrap();
    assert!(next_key(folder.path()).unwrap().is_none() && !file.exists());
}

#[test]
fn an_age_key_is_a_file_of_ages() {
    let folder = tempfile::tempdir().unwrap();
    Keys::load_or_make(folder.path()).unwrap();
    let text = std::fs::read_to_string(folder.path().join("age.txt")).unwrap();
    assert!(text.lines().nth(1).unwrap().starts_with("AGE-SECRET-KEY-1"), "{text}");
    assert_eq!(keys_in(&text).len(), 1);
}

#[test]
fn a_renewed_key_comes_first_and_the_old_ones_still_read() {
    let folder = tempfile::tempdir().unwrap();
    let first = Keys::load_or_make(folder.path()).unwrap().recipient();
    for _ in 0..20 {
        let newest = Keys::renew_age(folder.path()).unwrap();
        assert_eq!(Keys::load_or_make(folder.path()).unwrap().recipient(), newest);
    }
    let text = std::fs::read_to_string(folder.path().join("age.txt")).unwrap();
    let known: Vec<String> = keys_in(&text).iter().map(AgeKey::recipient).collect();
    assert_eq!(known.len(), MAX_AGE_KEYS);
    assert!(!known.contains(&first));
    let mode = std::fs::metadata(folder.path().join("age.txt")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn the_claim_is_of_the_newest_key_and_proved_with_what_the_token_gave() {
    let (pending, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let witness = muster_protocol::enrol::Secret::generate().unwrap().witness();
    let (fleet, machine): (Sha256, MachineName) = (Sha256::of(b"fleet"), "tin".parse().unwrap());
    Keys::load_or_make(pending.path()).unwrap();
    save_witness(pending.path(), &witness).unwrap();
    Keys::install(pending.path(), state.path()).unwrap();
    let newest = Keys::renew_age(state.path()).unwrap();
    let claims = AgeClaims::default();
    let claim = claims.get(state.path(), &fleet, &machine).unwrap();
    assert_eq!(claim.recipient, newest);
    assert!(witness.verifies(&fleet, &machine, &claim));
    assert_eq!(claims.get(state.path(), &fleet, &machine).unwrap(), claim);
    let renewed = Keys::renew_age(state.path()).unwrap();
    assert_eq!(claims.get(state.path(), &fleet, &machine).unwrap().recipient, renewed);
    // Enrolled by a version that kept none.
    let old = tempfile::tempdir().unwrap();
    Keys::load_or_make(old.path()).unwrap();
    Keys::install(old.path(), state.path()).unwrap();
    assert_eq!(claims.get(state.path(), &fleet, &machine).unwrap().proof, None);
}

#[test]
fn a_damaged_enrolment_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    std::fs::write(folder.path().join("enrolment.json"), "{").unwrap();
    assert!(Identity::load(&config).unwrap_err().to_string().contains("--replace"));
}

#[test]
fn an_enrolment_of_a_later_release_still_loads() {
    let folder = tempfile::tempdir().unwrap();
    let config = config(folder.path());
    Keys::load_or_make(folder.path()).unwrap();
    let mut later = serde_json::to_value(enrolment()).unwrap();
    later["version"] = 2.into();
    later["a field of the future"] = true.into();
    std::fs::write(folder.path().join("enrolment.json"), later.to_string()).unwrap();
    assert!(Identity::load(&config).unwrap().is_some());
}

#[test]
fn a_certificate_in_base64_becomes_pem_of_64_columns() {
    let pem = pem_of(&"A".repeat(130));
    assert_eq!(pem.lines().map(str::len).max(), Some(64.max("-----BEGIN CERTIFICATE-----".len())));
    assert!(pem.ends_with("AA\n-----END CERTIFICATE-----\n"), "{pem}");
}
