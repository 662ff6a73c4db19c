//! What holds a step up before the activation.

use super::*;

#[test]
fn each_step_before_the_activation_is_taken_only_when_nothing_stands_against_it() {
    let closed = Circumstances {
        window: Openness::Closed { why: "outside".into(), opens: Some(9_000) },
        ..WELL.clone()
    };
    let full = Circumstances { free_disk: Some(0), ..WELL.clone() };
    for (state, stage) in [
        (State::Verified, Stage::Fetch),
        (State::Fetched, Stage::Build),
        (State::Built, Stage::Switch),
        (State::Checked, Stage::Switch),
    ] {
        let transaction = transaction(2, state);
        let step = |seen: Option<&Circumstances>| {
            let mut observed = observed();
            observed.transaction = Some(&transaction);
            observed.circumstances = seen;
            next(&observed, &tried(1), None)
        };
        assert_eq!(step(None), Step::Look(stage), "nothing is done unseen");
        assert!(!matches!(step(Some(&WELL)), Step::Defer(_)), "{stage:?}");
        assert!(matches!(step(Some(&full)), Step::Defer(Deferral { hold: Hold::Disk, .. })), "{stage:?}");
        assert_eq!(matches!(step(Some(&closed)), Step::Defer(_)), stage == Stage::Switch, "{stage:?}");
    }
}

#[test]
fn what_was_put_off_is_looked_at_again_goes_on_as_soon_as_it_may_and_tells_a_new_reason_once() {
    let closed = Circumstances {
        window: Openness::Closed { why: "outside".into(), opens: Some(31_000) },
        ..WELL.clone()
    };
    let busy = Circumstances { busy: Some("nixos-rebuild".into()), ..WELL.clone() };
    let until = Some(31_000);
    let deferral = Deferral { hold: Hold::Window, why: "outside, in other words".into(), until };
    let transaction = transaction(2, State::Deferred { deferral, stage: Stage::Switch });
    let step = |seen: Option<&Circumstances>| {
        let mut observed = observed();
        observed.transaction = Some(&transaction);
        observed.circumstances = seen;
        next(&observed, &tried(1), None)
    };
    assert_eq!(step(None), Step::Look(Stage::Switch));
    // Thirty seconds are left by the wall clock.
    assert_eq!(step(Some(&closed)), Step::Wait(Duration::from_secs(130)));
    assert!(matches!(step(Some(&busy)), Step::Defer(Deferral { hold: Hold::Busy, .. })));
    assert_eq!(step(Some(&WELL)), Step::Enter(Input::Retried));
}

#[test]
fn a_pause_holds_everything_but_a_local_rollback() {
    let pause = Pause { until: None, since: 0, by: Some(0) };
    let journal = Journal { pause: Some(pause), ..tried(1) };
    let signed = transaction(2, State::Verified);
    let back = Transaction::rollback("r".into(), &known(1), path("system-0"), Class::Nixos, 2);
    let mut observed = observed();
    observed.transaction = Some(&signed);
    assert!(matches!(next(&observed, &journal, None), Step::Defer(Deferral { hold: Hold::Paused, .. })));
    observed.transaction = Some(&back);
    assert_eq!(next(&observed, &journal, None), Step::Preflight);
}

#[test]
fn a_target_that_requires_what_this_version_does_not_know_waits_for_a_newer_agent_and_is_told_once() {
    let mut open = transaction(2, State::Verified);
    let Origin::Signed { target: signed } = &mut open.origin else { panic!("signed") };
    signed.requires = vec!["gates".into()];
    let seen = Observed { transaction: Some(&open), ..observed() };
    let Step::Defer(deferral) = next(&seen, &tried(1), None) else { panic!("it is not begun") };
    assert_eq!(deferral.hold, Hold::Newer);
    assert!(
        deferral.why.contains("newer muster-agent") && deferral.why.ends_with("gates"),
        "{}",
        deferral.why
    );
    let waiting = Transaction { state: State::Deferred { deferral, stage: Stage::Fetch }, ..open };
    let seen = Observed { transaction: Some(&waiting), ..observed() };
    assert!(matches!(next(&seen, &tried(1), None), Step::Wait(_) | Step::Idle));
    // Neither failed nor in quarantine: a later generation supersedes it.
    assert_eq!(next(&seen, &tried(1), Some(&target(3, Class::Nixos))), Step::Supersede);
    // And a version that knows all of it continues.
    let mut understood = waiting.clone();
    let Origin::Signed { target: signed } = &mut understood.origin else { panic!("signed") };
    signed.requires.clear();
    let seen = Observed { transaction: Some(&understood), ..observed() };
    assert_eq!(next(&seen, &tried(1), None), Step::Enter(Input::Retried));
}
