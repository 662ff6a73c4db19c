//! Small fleets, so that each is through in a moment; `tests/simulator` runs large ones.

use super::machine::{DAY, HOUR};
use super::*;

fn fleet(order: Order, bad: u64) -> Fleet {
    Fleet {
        machines: 200,
        days: 5,
        seed: 7,
        order,
        controller: Controller::Honest,
        bad,
        late: 300,
        laptops: 600,
        clocks: 5,
    }
}

#[test]
fn the_same_seed_gives_the_same_course_and_another_seed_another() {
    let one = run(fleet(Order::Waves, 100)).unwrap();
    assert_eq!(one, run(fleet(Order::Waves, 100)).unwrap());
    assert_ne!(one, run(Fleet { seed: 8, ..fleet(Order::Waves, 100) }).unwrap());
}

#[test]
fn a_good_generation_reaches_everybody_who_is_there() {
    let course = run(fleet(Order::Waves, 0)).unwrap();
    assert_eq!((course.halted, course.broken, course.too_early), (None, 0, 0));
    assert!(course.exposed > 180, "{} of 200", course.exposed);
    assert!(course.began.windows(2).all(|pair| pair[0] < pair[1]), "{:?}", course.began);
    // Canaries soak for two hours of their time awake.
    assert!(course.began[1].unwrap() - course.began[0].unwrap() >= 2 * HOUR);
    assert!(course.most_in_flight <= course.max_in_flight);
}

#[test]
fn a_generation_that_breaks_all_machines_reaches_canaries_alone() {
    let course = run(fleet(Order::Waves, 1000)).unwrap();
    assert!(course.halted.is_some());
    assert!(course.exposed as usize <= course.waves[0], "{} of {:?}", course.exposed, course.waves);
    let at_once = run(fleet(Order::AtOnce, 1000)).unwrap();
    assert!(at_once.exposed > 180, "{}", at_once.exposed);
}

#[test]
fn a_stolen_controller_that_says_go_skips_no_canary() {
    let stolen = |bad| run(Fleet { controller: Controller::Stolen, ..fleet(Order::Waves, bad) }).unwrap();
    let course = stolen(1000);
    assert_eq!(course.too_early, 0);
    assert!(course.exposed as usize <= course.waves[0], "{} of {:?}", course.exposed, course.waves);
    assert!(course.refused > 0, "machines were told to begin, and looked for the proof");
    // Where canaries are well it can only lose the budget and the pace, not the order.
    let good = stolen(0);
    assert_eq!(good.too_early, 0);
    assert!(good.began[1].unwrap() - good.began[0].unwrap() >= 2 * HOUR);
}

#[test]
fn a_controller_that_is_down_for_hours_only_takes_longer() {
    let course = run(Fleet { controller: Controller::Down, ..fleet(Order::Waves, 0) }).unwrap();
    assert_eq!((course.halted, course.too_early), (None, 0));
    assert!(course.exposed > 160, "{} of 200", course.exposed);
}

#[test]
fn a_clock_that_is_wrong_lets_nobody_begin_early_and_holds_its_own_machine_back() {
    let with = |clocks| run(Fleet { clocks, laptops: 0, ..fleet(Order::AtOnce, 0) }).unwrap();
    let (right, wrong) = (with(0), with(1000));
    assert!(wrong.exposed < right.exposed && wrong.exposed > 80, "{} of {}", wrong.exposed, right.exposed);
    let course = run(Fleet { clocks: 300, laptops: 0, ..fleet(Order::Waves, 0) }).unwrap();
    assert_eq!((course.halted, course.too_early, course.broken), (None, 0, 0));
    // The clocks of machines play no part in what the controller or a gate counts.
    assert!(course.began[1].is_none_or(|at| at - course.began[0].unwrap() >= 2 * HOUR));
}

#[test]
fn machines_that_sleep_get_it_when_they_are_back() {
    let laptops = run(Fleet { laptops: 1000, ..fleet(Order::AtOnce, 0) }).unwrap();
    let servers = run(Fleet { laptops: 0, ..fleet(Order::AtOnce, 0) }).unwrap();
    assert!(servers.reached[2].unwrap() < 6 * HOUR, "{:?}", servers.reached);
    assert!(laptops.reached[1].is_some_and(|at| at > DAY / 2), "{:?}", laptops.reached);
}

#[test]
fn the_picture_is_a_document_with_all_parts() {
    let course = run(fleet(Order::Waves, 100)).unwrap();
    let svg = draw(&course, "a < b & c");
    assert!(svg.starts_with("<svg ") && svg.ends_with("</svg>\n"));
    assert_eq!(svg.matches("<polygon ").count(), 5);
    assert!(svg.contains("a &lt; b &amp; c") && svg.contains("halted after"));
}
