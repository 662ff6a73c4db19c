use super::*;

const POLL: u64 = 25;

fn seconds(number: u64) -> Duration {
    Duration::from_secs(number)
}
fn millis(number: u64) -> Duration {
    Duration::from_millis(number)
}
fn generation(number: u64) -> Option<Generation> {
    Generation::new(number).ok()
}

/// What is seen of a machine that holds nothing and has nothing to report.
fn quiet(now: Duration) -> Observed {
    Observed { now, ..Observed::default() }
}

fn answer(sent: Duration) -> CheckedIn {
    CheckedIn { sent, bearer_seconds: 3600, poll_seconds: POLL, hint: None }
}

/// One that has checked in, reported and refreshed at this time, and has opened a poll.
fn listening(now: Duration) -> Schedule {
    let mut schedule = Schedule::new(POLL);
    assert_eq!(schedule.next(&quiet(now)), Next::CheckIn);
    schedule.checked_in(&answer(now));
    assert_eq!(schedule.next(&quiet(now)), Next::Report);
    schedule.reported(false, now);
    assert_eq!(schedule.next(&quiet(now)), Next::Refresh);
    schedule.refreshed(None, now);
    assert_eq!(schedule.next(&quiet(now)), Next::Poll);
    schedule.polling(now);
    assert_eq!(schedule.next(&quiet(now)), Next::Listen { until: None });
    schedule
}

#[test]
fn between_two_polls_nothing_is_asked() {
    let mut schedule = listening(seconds(0));
    schedule.polled(None, false, seconds(25)).unwrap();
    assert_eq!(schedule.next(&quiet(seconds(25))), Next::Poll, "no check-in, no metadata");
}

#[test]
fn what_changes_while_a_poll_is_open_is_gathered_for_a_moment_and_told_beside_it() {
    let mut schedule = listening(seconds(0));
    schedule.woken(seconds(5));
    let changed = Observed { to_tell: true, ..quiet(seconds(5)) };
    assert_eq!(schedule.next(&changed), Next::Gather { until: seconds(5) + MOMENT });
    schedule.woken(seconds(5));
    assert_eq!(
        schedule.next(&changed),
        Next::Gather { until: seconds(5) + MOMENT },
        "not put off by another"
    );
    schedule.gathered();
    assert_eq!(schedule.next(&changed), Next::CheckIn);
    schedule.checked_in(&answer(seconds(5)));
    assert_eq!(schedule.next(&quiet(seconds(5))), Next::Report);
    schedule.reported(false, seconds(5));
    assert_eq!(schedule.next(&quiet(seconds(5))), Next::Listen { until: None });
}

#[test]
fn no_more_than_two_check_ins_follow_each_other_at_once() {
    let mut schedule = Schedule::new(POLL);
    let always = Observed { to_tell: true, ..quiet(seconds(0)) };
    for _ in 0..2 {
        assert_eq!(schedule.next(&always), Next::CheckIn);
        schedule.checked_in(&answer(seconds(0)));
    }
    assert_eq!(schedule.next(&always), Next::Report);
}

#[test]
fn a_poll_that_calls_to_check_in_is_followed_by_one_and_another_answer_only_reminds_of_what_there_is_to_say()
{
    let to_tell = Observed { to_tell: true, ..quiet(seconds(25)) };
    let mut called = listening(seconds(0));
    called.polled(None, true, seconds(25)).unwrap();
    assert_eq!(called.next(&to_tell), Next::CheckIn);
    let mut answered = listening(seconds(0));
    answered.polled(generation(3), false, seconds(25)).unwrap();
    assert_eq!(answered.next(&to_tell), Next::Remind);
    assert_eq!(answered.next(&to_tell), Next::Refresh, "what the poll has brought comes first");
    answered.refreshed(generation(3), seconds(25));
    assert_eq!(answered.next(&to_tell), Next::Poll);
}

#[test]
fn the_bearer_is_renewed_after_three_quarters_of_its_time_and_when_it_is_not_known() {
    let mut schedule = listening(seconds(0));
    schedule.polled(None, true, seconds(2699)).unwrap();
    assert_eq!(schedule.next(&quiet(seconds(2699))), Next::Report);
    let mut schedule = listening(seconds(0));
    schedule.polled(None, true, seconds(2700)).unwrap();
    assert_eq!(schedule.next(&quiet(seconds(2700))), Next::CheckIn);
    let mut schedule = listening(seconds(0));
    let (wait, first) = schedule.failed(&Failure { unauthorised: true, ..Failure::default() }, seconds(1));
    assert!(first);
    assert_eq!(schedule.next(&quiet(seconds(1))), Next::Pause { until: seconds(1) + wait });
    assert_eq!(schedule.next(&quiet(seconds(1) + wait)), Next::CheckIn);
    // No reply makes it last forever.
    schedule.checked_in(&CheckedIn { bearer_seconds: u64::MAX, ..answer(seconds(2)) });
    let later = seconds(2) + seconds(BEARER_SECONDS);
    schedule.reported(false, later);
    schedule.refreshed(None, later);
    schedule.polling(later);
    schedule.polled(None, true, later + seconds(1)).unwrap();
    assert_eq!(schedule.next(&quiet(later + seconds(1))), Next::CheckIn);
}

#[test]
fn failures_are_waited_out_longer_each_time_and_a_try_out_of_turn_is_none_of_them() {
    let mut schedule = Schedule::new(POLL);
    let mut now = seconds(0);
    let mut waits = Vec::new();
    for _ in 0..12 {
        assert_eq!(schedule.next(&quiet(now)), Next::CheckIn);
        let (wait, first) = schedule.failed(&Failure::default(), now);
        assert_eq!(first, waits.is_empty());
        waits.push(wait);
        now += wait;
    }
    assert_eq!((waits[0], waits[1], waits[11]), (millis(250), millis(500), seconds(150)));
    assert_eq!(schedule.next(&quiet(now)), Next::CheckIn);
    let (again, _) = schedule.failed(&Failure::default(), now);
    schedule.woken(now + seconds(1));
    assert_eq!(schedule.next(&quiet(now + seconds(1))), Next::CheckIn, "there is something to tell");
    assert_eq!(schedule.failed(&Failure::default(), now + seconds(1)).0, again);
}

#[test]
fn while_a_generation_waits_to_be_confirmed_the_controller_is_tried_every_second() {
    let mut schedule = Schedule::new(POLL);
    let probing = Failure { probing: true, random: u64::MAX, ..Failure::default() };
    for tries in 0..20 {
        let now = seconds(tries);
        assert_eq!(schedule.next(&quiet(now)), Next::CheckIn);
        assert!(schedule.failed(&probing, now).0 <= PROBING_PAUSE);
    }
    let now = seconds(100);
    assert_eq!(schedule.next(&quiet(now)), Next::CheckIn);
    let (wait, first) = schedule.failed(&Failure::default(), now);
    assert!(!first && wait <= seconds(1), "none of them counted: {wait:?}");
}

#[test]
fn failure_mode_22_a_retry_after_puts_the_contact_off_for_eleven_minutes_at_most() {
    let mut schedule = listening(seconds(0));
    let silence = Failure { retry_after: Some(seconds(86_400)), random: u64::MAX, ..Failure::default() };
    assert!(schedule.failed(&silence, seconds(0)).0 <= seconds(660));
}

#[test]
fn polls_that_are_answered_at_once_are_a_failure_after_the_third_unless_signed_news_came() {
    let poll = |schedule: &mut Schedule, now| {
        let seen = quiet(now);
        loop {
            match schedule.next(&seen) {
                Next::CheckIn => schedule.checked_in(&answer(now)),
                Next::Report => schedule.reported(false, now),
                Next::Refresh => schedule.refreshed(None, now),
                Next::Poll => schedule.polling(now),
                Next::Listen { .. } => return schedule.polled(None, false, now),
                Next::Remind | Next::Gather { .. } | Next::Pause { .. } => {}
            }
        }
    };
    let mut schedule = Schedule::new(POLL);
    for _ in 0..HASTY {
        poll(&mut schedule, seconds(1)).unwrap();
    }
    assert_eq!(poll(&mut schedule, seconds(1)), Err(Spinning));
    let mut schedule = Schedule::new(POLL);
    for _ in 0..20 {
        poll(&mut schedule, seconds(1)).unwrap();
        schedule.signed_news();
    }
}

#[test]
fn reports_that_are_refused_keep_nothing_else_waiting_and_are_sent_again_while_a_poll_is_open() {
    let mut schedule = Schedule::new(POLL);
    let seen = |now| Observed { reports: true, ..quiet(now) };
    assert_eq!(schedule.next(&seen(seconds(0))), Next::CheckIn);
    schedule.checked_in(&answer(seconds(0)));
    assert_eq!(schedule.next(&seen(seconds(0))), Next::Report);
    let (wait, _) = schedule.not_reported(&Failure::default(), true, seconds(0));
    assert_eq!(schedule.next(&seen(seconds(0))), Next::Refresh);
    schedule.refreshed(None, seconds(0));
    assert_eq!(schedule.next(&seen(seconds(0))), Next::Poll);
    schedule.polling(seconds(0));
    assert_eq!(schedule.next(&seen(seconds(0))), Next::Listen { until: Some(wait) });
    schedule.reports_due();
    assert_eq!(schedule.next(&seen(wait)), Next::Report);
    schedule.reported(false, wait);
    assert_eq!(schedule.next(&quiet(wait)), Next::Listen { until: None });
}

#[test]
fn the_keys_before_are_tried_one_after_the_other_and_the_newest_again_after_them() {
    let mut schedule = Schedule::new(POLL);
    let mut tried = Vec::new();
    for _ in 0..4 {
        tried.push(schedule.older_key());
        schedule.key_not_known(2);
    }
    assert_eq!(tried, [None, Some(0), Some(1), None]);
    schedule.checked_in(&answer(seconds(0)));
    assert_eq!(schedule.older_key(), None);
}

#[test]
fn a_controller_shortens_polls_and_lengthens_none() {
    for (asked, whole) in [(5, 5), (0, 1), (u64::MAX, POLL)] {
        let mut schedule = Schedule::new(POLL);
        schedule.checked_in(&CheckedIn { poll_seconds: asked, ..answer(seconds(0)) });
        assert_eq!(schedule.poll_wait(0), whole);
        assert!(schedule.poll_wait(u64::MAX) <= whole);
    }
}

/// The key may then be replaced in two files, of which only one is written: the next try goes by the new
/// order.
#[test]
fn an_answered_check_in_ends_the_use_of_older_keys_before_anything_else_is_written() {
    let mut schedule = Schedule::new(POLL);
    schedule.key_not_known(2);
    assert_eq!(schedule.older_key(), Some(0));
    schedule.key_known();
    assert_eq!(schedule.older_key(), None);
}
