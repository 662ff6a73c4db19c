//! What a machine does when its controller refuses it for sending too much.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_protocol::api;
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_testbed::stolen::{Stolen, VICTIM};
use muster_testbed::thief::Answer;

use crate::common::assert_agrees_with_itself;

#[test]
fn a_machine_that_is_told_to_come_later_comes_later_and_then_goes_on() {
    const WAIT: u64 = 3;
    let stolen = Stolen::new().unwrap();
    let times: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let (noted, clock) = (Arc::clone(&times), SystemClock::new());
    let of_victim = format!("/machines/{VICTIM}/");
    stolen.thief.intercept(move |asked| {
        let checks_in = asked.path == api::CHECKIN && String::from_utf8_lossy(&asked.body).contains(VICTIM);
        if !checks_in && !asked.path.contains(&of_victim) {
            return None;
        }
        noted.lock().unwrap().push(clock.awake());
        Some(Answer { status: 429, retry_after: Some(WAIT), ..Answer::default() })
    });
    // Otherwise its events about a new generation would be sent at once, again and again.
    stolen.ask(VICTIM).unwrap();
    stolen.fleet.until(VICTIM, "a fourth try", |_| times.lock().unwrap().len() >= 4).unwrap();
    let times = times.lock().unwrap().clone();
    for pair in times.windows(2).skip(1) {
        assert!(pair[1] - pair[0] >= Duration::from_secs(WAIT), "it came back too early: {times:?}");
    }
    stolen.thief.behave();
    stolen.fleet.fixture.say("greeting", "patient").unwrap();
    stolen.fleet.update(&[VICTIM]).unwrap();
    stolen
        .fleet
        .until(VICTIM, "the update", |machine| machine.greeting().as_deref() == Some("patient"))
        .unwrap();
    stolen.fleet.settled(VICTIM, 2, muster_protocol::operator::Condition::UpToDate).unwrap();
    assert_agrees_with_itself(&stolen.fleet, VICTIM);
}
