use muster_protocol::checkin::{Holds, Runs};
use muster_protocol::ids::{Generation, Sha256, StorePath};
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::report::{Attack, Reason, UpdateStep};
use muster_protocol::target::Target;

use super::*;
use crate::core::rows::Outcome;

const NOW: UnixMillis = 1_800_000_000_000;
const POLL: u64 = 55;

fn generation(number: u64) -> Generation {
    Generation::new(number).unwrap()
}
fn path(digit: char) -> StorePath {
    format!("/nix/store/{}-system", String::from(digit).repeat(32)).parse().unwrap()
}
fn target() -> Target {
    serde_json::from_value(serde_json::json!({
        "machine": "cinnabar", "class": "nixos", "generation": 2, "system": "x86_64-linux",
        "derivation": format!("{}.drv", path('9')), "output": path('2'),
    }))
    .unwrap()
}
fn told(phase: Phase, of: u64, running: char, confirmed: Option<u64>) -> CheckIn {
    CheckIn {
        understands: vec![],
        signing: None,
        vouch: None,
        awaits: None,
        audience: Sha256::of(b""),
        machine: "cinnabar".parse().unwrap(),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        boot_id: String::new(),
        seq: 1,
        clock: NOW,
        agent: "0.1.0".into(),
        runs: Some(Runs { running: path(running), profile: None, generation: confirmed.map(generation) }),
        holds: Holds::default(),
        phase,
        phase_generation: Some(generation(of)),
        note: None,
        refused: None,
        health: muster_protocol::checkin::Health::default(),
        new_key: None,
        age: None,
        followed: vec![],
        shown: None,
        session: None,
    }
}
fn machine(observed: Option<CheckIn>, outcome: Option<(u64, EventKind)>) -> Machine {
    let key = SecretKey::generate().unwrap().public();
    Machine {
        name: "cinnabar".parse().unwrap(),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        tags: Default::default(),
        has_key: true,
        key: Some(key),
        age: None,
        agent: None,
        enrolled_at: Some(NOW),
        revoked_at: None,
        seen_at: Some(NOW),
        clock_skew_ms: None,
        clone_alarm_at: None,
        key_rotated_at: None,
        key_rotation_asked_at: None,
        attack: None,
        observed,
        outcome: outcome.map(|(number, kind)| Outcome { generation: generation(number), kind }),
        published: Some(Published { target: target(), at: NOW, by: key, expires: i64::MAX, signers: vec![] }),
        generations_forgotten: 0,
        turn: None,
    }
}
fn decide(machine: &Machine) -> Condition {
    condition(machine, POLL, NOW)
}
fn confirmed_event(degraded: &[&str]) -> EventKind {
    EventKind::Confirmed {
        running: path('2'),
        ms: 1,
        degraded: degraded.iter().map(|unit| (*unit).to_owned()).collect(),
    }
}
fn rolled_back_event() -> EventKind {
    EventKind::RolledBack {
        running: path('1'),
        reason: Reason::HealthCheckFailed,
        detail: String::new(),
        quarantined: true,
    }
}

#[test]
fn a_machine_without_a_key_is_invited_and_a_revoked_one_revoked() {
    let all_well = machine(Some(told(Phase::Confirmed, 2, '2', Some(2))), None);
    assert_eq!(decide(&Machine { has_key: false, ..all_well.clone() }), Condition::Invited);
    assert_eq!(decide(&Machine { revoked_at: Some(1), ..all_well }), Condition::Revoked);
}

#[test]
fn offline_is_its_own_state_whatever_was_told_before() {
    let limit = (3 * 55 + 120) * 1000;
    for observed in
        [Some(told(Phase::Confirmed, 2, '2', Some(2))), Some(told(Phase::Failed, 2, '1', None)), None]
    {
        let machine = Machine { seen_at: Some(NOW - limit - 1), ..machine(observed, None) };
        assert_eq!(decide(&machine), Condition::Offline);
        assert_ne!(decide(&Machine { seen_at: Some(NOW - limit), ..machine }), Condition::Offline);
    }
}

#[test]
fn unknown_is_not_healthy() {
    assert_eq!(decide(&machine(None, None)), Condition::Updating);
    let silent = CheckIn { runs: None, ..told(Phase::Confirmed, 2, '2', None) };
    assert_eq!(decide(&machine(Some(silent), None)), Condition::Updating);
    let future = told(Phase::Unknown, 2, '1', None);
    assert_eq!(decide(&machine(Some(future), None)), Condition::Updating);
    let never_seen = Machine { seen_at: None, ..machine(None, None) };
    assert_eq!(decide(&never_seen), Condition::Offline);
}

#[test]
fn a_machine_is_up_to_date_when_it_runs_and_has_confirmed_the_latest() {
    for phase in [Phase::Confirmed, Phase::Idle] {
        assert_eq!(decide(&machine(Some(told(phase, 2, '2', Some(2))), None)), Condition::UpToDate);
    }
    let degraded =
        machine(Some(told(Phase::Idle, 2, '2', Some(2))), Some((2, confirmed_event(&["x.service"]))));
    assert_eq!(decide(&degraded), Condition::Degraded);
    let of_another =
        machine(Some(told(Phase::Idle, 2, '2', Some(2))), Some((1, confirmed_event(&["x.service"]))));
    assert_eq!(decide(&of_another), Condition::UpToDate);
}

#[test]
fn a_dry_activation_leaves_the_old_system_and_is_up_to_date() {
    let mut machine = machine(Some(told(Phase::Confirmed, 2, '1', None)), None);
    machine.published.as_mut().unwrap().target.action = Action::DryActivate;
    assert_eq!(decide(&machine), Condition::UpToDate);
}

#[test]
fn a_machine_on_its_way_is_updating() {
    for phase in [
        Phase::Verified,
        Phase::Fetching,
        Phase::Building,
        Phase::Checked,
        Phase::Activating,
        Phase::Probing,
        Phase::RollingBack,
        Phase::Deferred,
        Phase::AwaitingReboot,
    ] {
        // Even if it has tried this generation before and will try again.
        let machine = machine(Some(told(phase, 2, '1', Some(1))), Some((2, rolled_back_event())));
        assert_eq!(decide(&machine), Condition::Updating, "{phase:?}");
    }
    let on_the_last = machine(Some(told(Phase::Confirmed, 1, '1', Some(1))), Some((1, confirmed_event(&[]))));
    assert_eq!(decide(&on_the_last), Condition::Updating);
}

#[test]
fn running_the_new_system_is_not_enough() {
    let unconfirmed = machine(Some(told(Phase::Probing, 2, '2', None)), None);
    assert_eq!(decide(&unconfirmed), Condition::Updating);
}

#[test]
fn a_machine_that_undid_the_latest_is_rolled_back() {
    let by_phase = machine(Some(told(Phase::RolledBack, 2, '1', Some(1))), None);
    assert_eq!(decide(&by_phase), Condition::RolledBack);
    let by_event = machine(Some(told(Phase::Idle, 2, '1', Some(1))), Some((2, rolled_back_event())));
    assert_eq!(decide(&by_event), Condition::RolledBack);
    let an_older_one = machine(Some(told(Phase::RolledBack, 1, '1', None)), Some((1, rolled_back_event())));
    assert_eq!(decide(&an_older_one), Condition::Updating);
}

#[test]
fn a_machine_that_could_not_try_the_latest_has_failed() {
    let event = EventKind::Failed { step: UpdateStep::Build, detail: String::new(), quarantined: true };
    assert_eq!(decide(&machine(Some(told(Phase::Failed, 2, '1', None)), None)), Condition::Failed);
    assert_eq!(decide(&machine(Some(told(Phase::Idle, 2, '1', None)), Some((2, event)))), Condition::Failed);
}

#[test]
fn a_machine_that_cannot_help_itself_needs_a_human() {
    assert_eq!(decide(&machine(Some(told(Phase::NeedsHuman, 1, '1', None)), None)), Condition::NeedsHuman);
    let changed_by_hand = told(Phase::Confirmed, 2, '7', None);
    let drifted = machine(Some(changed_by_hand), Some((2, confirmed_event(&[]))));
    assert_eq!(decide(&drifted), Condition::NeedsHuman);
}

#[test]
fn an_attack_comes_before_progress() {
    let refused = CheckIn { refused: Some(Attack::Rollback), ..told(Phase::Confirmed, 2, '2', Some(2)) };
    assert_eq!(decide(&machine(Some(refused), None)), Condition::UnderAttack);
    let cloned =
        Machine { clone_alarm_at: Some(NOW), ..machine(Some(told(Phase::Confirmed, 2, '2', Some(2))), None) };
    assert_eq!(decide(&cloned), Condition::UnderAttack);
}

#[test]
fn nothing_published_is_no_generation() {
    let machine = Machine { published: None, ..machine(Some(told(Phase::Idle, 1, '1', None)), None) };
    assert_eq!(decide(&machine), Condition::NoGeneration);
}

#[test]
fn a_machine_that_is_paused_or_fell_silent_at_work_is_not_called_updating() {
    let at_work = machine(Some(told(Phase::Building, 2, '1', Some(1))), None);
    assert_eq!(decide(&at_work), Condition::Updating);
    let limit = (55 + 45) * 1000;
    let heard = |seen_at| Machine { seen_at: Some(seen_at), ..at_work.clone() };
    assert_eq!(decide(&heard(NOW - limit)), Condition::Updating);
    assert_eq!(decide(&heard(NOW - limit - 1)), Condition::Offline);
    // A machine that is where it should be may miss some polls.
    let well = machine(Some(told(Phase::Confirmed, 2, '2', Some(2))), None);
    assert_eq!(decide(&Machine { seen_at: Some(NOW - limit - 1), ..well }), Condition::UpToDate);
    let paused = |phase, until| {
        let mut told = told(phase, 2, '1', Some(1));
        told.health.paused_until = Some(until);
        decide(&machine(Some(told), None))
    };
    assert_eq!(paused(Phase::Deferred, NOW + 1), Condition::Paused);
    assert_eq!(paused(Phase::Deferred, UnixMillis::MAX), Condition::Paused);
    assert_eq!(paused(Phase::Deferred, NOW), Condition::Updating, "the pause is over");
    assert_eq!(paused(Phase::Probing, NOW + 1), Condition::Updating, "what is under way is finished");
}
