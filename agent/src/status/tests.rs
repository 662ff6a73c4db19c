use muster_protocol::ids::{Epoch, Sha256};
use muster_protocol::machine::Class;
use muster_protocol::plan::{Failure, Place, Wave};

use super::*;
use crate::core::policy::Deferral;
use crate::core::records::tests::target;

fn plan() -> Plan {
    let wave = |name: &str, machine: &str| Wave {
        name: name.into(),
        members: vec![machine.parse().unwrap()],
        vouchers: vec![],
        at_least: 0,
        percent: 0,
        soak_seconds: 0,
        max_in_flight: 1,
        windows: vec![],
    };
    Plan {
        fleet: Sha256::of(b"fleet"),
        epoch: Epoch::default(),
        name: "weekly".parse().unwrap(),
        nonce: Sha256::of(b"nonce"),
        waves: vec![wave("canaries", "first"), wave("office", "m")],
        after: vec![],
        budget: 0,
        failures: Failure::all(),
    }
}

#[test]
fn people_at_a_machine_see_which_rollout_and_wave_it_waits_in_why_and_since_when() {
    let place = Place { plan: Sha256::of(b"plan"), wave: 1 };
    let wanted = Target { rollout: Some(place), ..target(2, Class::Nixos) };
    let mut open = Transaction::signed("t".into(), wanted.clone(), 1);
    let seen = |open: &Transaction, plan: Option<&Plan>| in_rollout(Some(open), Some(&wanted), plan).unwrap();
    assert_eq!(seen(&open, Some(&plan())).waits, None, "it is still being built");
    let deferral = Deferral::new(Hold::Wave, "waits for its wave: 1 of the 2 machines");
    open.state = State::Deferred { deferral, stage: Stage::Switch };
    open.awaits_since = Some(7);
    let waits = seen(&open, Some(&plan()));
    assert_eq!(super::place(&waits), "weekly, wave 'office' (2 of 2)");
    assert_eq!(waits.waits.as_deref(), Some("waits for its wave: 1 of the 2 machines"));
    assert_eq!(waits.since, Some(7));
    assert!(super::place(&seen(&open, None)).contains("the plan is not here"));
    let again: InRollout = serde_json::from_str(&serde_json::to_string(&waits).unwrap()).unwrap();
    assert_eq!(again, waits);
    let next = next(Some(open.generation()), Some(&open.state), None, &Journal::default());
    assert_eq!(
        next,
        "switch to generation 2 when its turn in the rollout comes; a newer one takes its place"
    );
    assert_eq!(in_rollout(None, Some(&target(2, Class::Nixos)), None), None);
}
