use std::collections::VecDeque;

use muster_protocol::machine::Class;

use super::*;
use crate::core::records::tests::{path, transaction};
use crate::core::records::{Old, Transaction};
use crate::core::state::State;

/// A machine that does what an activator says, without a clock of its own.
struct World {
    running: Option<StorePath>,
    profile: Option<StorePath>,
    disk: Option<Activation>,
    verdict: Option<GivenVerdict>,
    now: Duration,
    /// Who else switches, one answer a question.
    others: VecDeque<Option<String>>,
    /// How NEW's and OLD's activations end; the last answer stays.
    new: VecDeque<(i32, Outcome)>,
    old: VecDeque<(i32, Outcome)>,
    /// What is done, in words.
    did: Vec<String>,
    full: bool,
    timed_out: bool,
    /// Whose daemons, users and files are in place, if they are of one system.
    whole: Option<StorePath>,
}

impl World {
    fn new() -> Self {
        Self {
            running: Some(path("old")),
            profile: Some(path("old")),
            disk: None,
            verdict: None,
            now: Duration::ZERO,
            others: VecDeque::new(),
            new: VecDeque::from([(0, Outcome::Done)]),
            old: VecDeque::from([(0, Outcome::Done)]),
            did: Vec::new(),
            full: false,
            timed_out: false,
            whole: Some(path("old")),
        }
    }

    fn seen<T>(&self, look: impl FnOnce(&Sight<'_>) -> T) -> T {
        look(&Sight {
            running: self.running.as_ref(),
            profile: self.profile.as_ref(),
            verdict: self.verdict.as_ref(),
            now: self.now,
        })
    }

    fn perform(&mut self, act: &Act, record: &Activation) -> Done {
        match act {
            Act::Write if self.full => return Done::Failed("no space".into()),
            Act::Write => {
                self.did.push(format!("write {:?}", record.phase));
                self.disk = Some(record.clone());
            }
            Act::AskOthers => return Done::Others(self.others.pop_front().flatten()),
            Act::SetProfile(system) => {
                self.did.push(format!("profile {}", system.name()));
                self.profile = Some(system.clone());
            }
            Act::RemoveProfile => {
                self.did.push("no profile".into());
                self.profile = None;
            }
            Act::Tidy { from, .. } => {
                self.did.extend(from.iter().map(|from| format!("tidy {}", from.name())));
            }
            Act::Run { system, action, .. } => {
                self.did.push(format!("{} {}", action.as_str(), system.name()));
                let answers = if system == &record.new { &mut self.new } else { &mut self.old };
                let (exit, outcome) =
                    if answers.len() > 1 { answers.pop_front().unwrap() } else { answers[0] };
                let links = matches!(action, Action::Switch | Action::Test)
                    && matches!(outcome, Outcome::Done | Outcome::UnitsFailed | Outcome::ScriptFailed);
                if links {
                    self.running = Some(system.clone());
                    self.whole = Some(system.clone());
                }
                let timed_out = self.timed_out && system == &record.new;
                return Done::Ran(Ran {
                    exit,
                    output: "words".into(),
                    timed_out,
                    outcome,
                    person: None,
                    ailing: Ailing::default(),
                });
            }
            Act::EnsureAgent { to, .. } => self.did.push(format!("agent of {}", to.name())),
            Act::Pause(pause) => self.now += *pause,
            Act::End => {}
        }
        Done::Well
    }

    /// Follows the course to its end, or until `stop` says so of the act that comes next.
    fn follow(&mut self, mut course: Course, stop: impl Fn(&Self, &Act) -> bool) -> Course {
        for _ in 0..200_000 {
            let act = self.seen(|sight| course.next(sight));
            if act == Act::End || stop(self, &act) {
                return course;
            }
            let done = self.perform(&act, &course.record);
            self.seen(|sight| course.done(done, sight));
        }
        panic!("it never ends: {:?}", self.did);
    }

    fn run(&mut self, action: Action) -> Activation {
        let course = Course::begin(record(action), "boot", self.now);
        self.follow(course, |_, _| false);
        self.disk.clone().unwrap()
    }
}

fn of(action: Action) -> Transaction {
    let mut open = transaction(2, State::Activating);
    let crate::core::records::Origin::Signed { target } = &mut open.origin else { panic!("signed") };
    (target.action, target.class) = (action, Class::Nixos);
    open
}

fn record(action: Action) -> Activation {
    Activation::new(&of(action), "boot")
}

fn mac_record() -> Activation {
    Activation { class: Class::Darwin, ..record(Action::Switch) }
}

const CONFIRM: GivenVerdict = GivenVerdict::Confirm { degraded: Vec::new() };

fn undo() -> GivenVerdict {
    GivenVerdict::Undo { reason: Reason::HealthCheckFailed, detail: "ssh".into() }
}

#[test]
fn a_switch_is_recorded_before_each_of_its_steps() {
    let mut world = World::new();
    world.verdict = Some(CONFIRM);
    let record = world.run(Action::Switch);
    assert_eq!(record.phase, Phase::Confirmed);
    let expected = [
        "write Recorded",
        "profile system-2",
        "write ProfileSet",
        "write Activating",
        "switch system-2",
        "agent of system-2",
        "write Activated",
        "write Confirmed",
        "agent of system-2",
    ];
    assert_eq!(world.did, expected);
}

#[test]
fn failure_modes_12_and_13_an_undo_sets_old_by_name_and_runs_olds_own_script() {
    let mut world = World::new();
    world.verdict = Some(undo());
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::HealthCheckFailed)));
    let back = &world.did[7..];
    assert_eq!(back, ["write Undoing", "profile old", "switch old", "write Undone", "agent of old"]);
    assert_eq!((world.running, world.profile), (Some(path("old")), Some(path("old"))));
}

#[test]
fn failure_mode_29_the_deadline_counts_from_the_activation_and_in_time_awake() {
    let mut world = World::new();
    // What came before in this process counts for nothing.
    world.now = Duration::from_secs(5000);
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::Deadline)));
    let waited = world.now - Duration::from_secs(5000);
    assert!(waited >= Duration::from_secs(60) && waited < Duration::from_secs(61), "{waited:?}");
}

#[test]
fn i4_an_activator_that_is_killed_again_and_again_does_not_put_the_deadline_off() {
    let mut world = World::new();
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    let mut lived = Duration::ZERO;
    for _ in 0..4 {
        // Each lives for ten seconds, by a clock that begins anew.
        let life = Duration::from_secs(10);
        world.follow(course, |world, act| matches!(act, Act::Pause(_)) && world.now >= life);
        lived += world.now;
        world.now = Duration::ZERO;
        let record = world.disk.clone().unwrap();
        course = world.seen(|sight| Course::resume(record, "boot", sight));
    }
    world.follow(course, |_, _| false);
    lived += world.now;
    let record = world.disk.unwrap();
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::Deadline)));
    // What a kill loses is what was not recorded yet: less than a sixteenth of the deadline each time.
    assert!(lived < Duration::from_secs(60 + 4 * 4), "{lived:?}");
}

#[test]
fn a_machine_that_has_just_come_up_gets_the_whole_deadline() {
    let mut found = record(Action::Switch);
    (found.phase, found.spent_ms, found.starts) = (Phase::Activated, 59_000, 1);
    let mut world = World::new();
    (world.running, world.profile) = (Some(path("system-2")), Some(path("system-2")));
    let course = world.seen(|sight| Course::resume(found, "the next boot", sight));
    world.follow(course, |_, _| false);
    assert!(world.now >= Duration::from_secs(60), "{:?}", world.now);
    assert_eq!(world.disk.unwrap().boot, "the next boot");
}

#[test]
fn failure_mode_20_somebody_elses_switch_is_waited_for_before_anything_is_changed() {
    let mut world = World::new();
    world.verdict = Some(CONFIRM);
    world.others = (0..20).map(|_| Some("nixos-rebuild".to_owned())).collect();
    assert_eq!(world.run(Action::Switch).phase, Phase::Confirmed);
    assert!(world.now >= Duration::from_secs(10));
    // For ever is too long; the deadline has not begun, and nothing was changed.
    let mut world = World::new();
    world.others = (0..100_000).map(|_| Some("nixos-rebuild".to_owned())).collect();
    let record = world.run(Action::Switch);
    assert_eq!(record.phase, Phase::Untouched);
    assert!(record.detail.contains("nixos-rebuild"), "{}", record.detail);
    assert_eq!(world.did, ["write Recorded", "write Untouched"]);
}

#[test]
fn failure_mode_20_what_somebody_else_switched_to_meanwhile_is_not_undone() {
    for (running, profile) in [("theirs", "theirs"), ("old", "theirs"), ("theirs", "old")] {
        let mut world = World::new();
        (world.running, world.profile) = (Some(path(running)), Some(path(profile)));
        assert_eq!(world.run(Action::Switch).phase, Phase::Untouched);
        assert_eq!((world.running, world.profile), (Some(path(running)), Some(path(profile))));
    }
    // Where an earlier activator had set the profile, that alone is taken back.
    let mut world = World::new();
    (world.running, world.profile) = (Some(path("theirs")), Some(path("system-2")));
    let mut found = record(Action::Switch);
    (found.phase, found.starts) = (Phase::ProfileSet, 1);
    let course = world.seen(|sight| Course::resume(found, "boot", sight));
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.unwrap().phase, Phase::Undone);
    assert_eq!((world.running, world.profile), (Some(path("theirs")), Some(path("old"))));
}

#[test]
fn what_cannot_be_written_down_first_is_not_done() {
    let mut world = World::new();
    world.full = true;
    let course = Course::begin(record(Action::Switch), "boot", world.now);
    world.follow(course, |_, _| false);
    assert_eq!(world.did, Vec::<String>::new());
    // Full from the moment on that the profile was set: the profile goes back, and OLD's script need not run.
    let mut world = World::new();
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    course = world.follow(course, |world, _| world.profile == Some(path("system-2")));
    world.full = true;
    world.follow(course, |_, _| false);
    assert_eq!(world.profile, Some(path("old")));
    assert!(!world.did.iter().any(|did| did.starts_with("switch")), "{:?}", world.did);
}

#[test]
fn failure_mode_10_a_disk_that_is_full_keeps_nobody_from_going_back() {
    let mut world = World::new();
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    course = world.follow(course, |world, _| world.running == Some(path("system-2")));
    world.full = true;
    world.follow(course, |_, _| false);
    assert_eq!((&world.running, &world.profile), (&Some(path("old")), &Some(path("old"))));
    // The last record on disk is an earlier one: the next activator looks at the machine, and ends on OLD as well.
    let record = world.disk.clone().unwrap();
    assert_eq!(record.phase, Phase::Activating);
    world.full = false;
    let course = world.seen(|sight| Course::resume(record, "boot", sight));
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.unwrap().phase, Phase::Undone);
    assert_eq!((world.running, world.profile), (Some(path("old")), Some(path("old"))));
}

#[test]
fn a_result_is_written_as_soon_as_the_disk_takes_it() {
    let mut world = World::new();
    world.verdict = Some(CONFIRM);
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    course = world.follow(course, |world, act| *act == Act::Write && world.running == Some(path("system-2")));
    world.full = true;
    course = world.follow(course, |world, _| world.now >= Duration::from_secs(20));
    world.full = false;
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.unwrap().phase, Phase::Confirmed);
}

#[test]
fn exit_codes_are_told_apart() {
    for (exit, outcome, action, phase, words) in [
        (0, Outcome::Done, Action::Switch, Phase::Confirmed, ""),
        (4, Outcome::UnitsFailed, Action::Switch, Phase::Confirmed, ""),
        (100, Outcome::RebootNeeded, Action::Switch, Phase::AwaitingReboot, ""),
        (0, Outcome::Done, Action::Boot, Phase::AwaitingReboot, ""),
        (0, Outcome::Done, Action::Test, Phase::Confirmed, ""),
        (
            1,
            Outcome::Refused,
            Action::Switch,
            Phase::Undone,
            "checks or its boot loader refused (exit 1): words",
        ),
        (2, Outcome::ScriptFailed, Action::Switch, Phase::Undone, "activation script failed (exit 2)"),
        (4, Outcome::ScriptFailed, Action::Switch, Phase::Undone, "activation script failed (exit 4)"),
        (
            9,
            Outcome::Failed,
            Action::Switch,
            Phase::Undone,
            "broke off before the new system was in place (exit 9)",
        ),
        (3, Outcome::Failed, Action::DryActivate, Phase::Finished, "words"),
    ] {
        let mut world = World::new();
        (world.verdict, world.new) = (Some(CONFIRM), VecDeque::from([(exit, outcome)]));
        let record = world.run(action);
        assert_eq!((record.phase, record.exit), (phase, Some(exit)), "{outcome:?} {action:?}");
        assert!(record.detail.contains(words), "{}", record.detail);
        let sets = world.did.contains(&"profile system-2".to_owned());
        assert_eq!(sets, sets_profile(action));
    }
}

#[test]
fn a_lock_that_is_taken_in_between_is_waited_for_until_the_deadline() {
    let mut world = World::new();
    world.verdict = Some(CONFIRM);
    world.new = VecDeque::from([(11, Outcome::Locked), (11, Outcome::Locked), (0, Outcome::Done)]);
    assert_eq!(world.run(Action::Switch).phase, Phase::Confirmed);
    let mut world = World::new();
    world.new = VecDeque::from([(11, Outcome::Locked)]);
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::Interrupted)));
    // Each pause is longer than the one before it: in the 60 seconds of the deadline it is run a dozen times.
    let runs = world.did.iter().filter(|did| *did == "switch system-2").count();
    assert!((5..20).contains(&runs), "{runs}");
}

/// D-Bus is killed in mid-switch, say: exit code 1, with the link on NEW.
#[test]
fn what_broke_off_behind_the_link_is_not_told_as_refused_and_its_cause_stands_first() {
    let mut world = World::new();
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    course = world.follow(course, |_, act| matches!(act, Act::Run { .. }));
    let _ = world.seen(|sight| course.next(sight));
    world.running = Some(path("system-2"));
    let output = "Checking switch inhibitors... done\nactivating the configuration...\n\
        Error: Failed to process dbus messages\n";
    let ran = Ran {
        exit: 1,
        output: output.to_owned(),
        timed_out: false,
        outcome: Outcome::Failed,
        person: None,
        ailing: Ailing::default(),
    };
    world.seen(|sight| course.done(Done::Ran(ran), sight));
    let detail = course.record.detail.clone();
    assert_eq!(
        detail.lines().next().unwrap(),
        "the activation broke off after the new system was in place (exit 1): Failed to process dbus messages"
    );
    assert!(detail.contains("activating the configuration..."), "the rest of it is kept: {detail}");
    // What comes of the undo is told in the first line as well.
    world.old = VecDeque::from([(2, Outcome::ScriptFailed)]);
    world.follow(course, |_, _| false);
    let detail = world.disk.unwrap().detail;
    assert!(detail.lines().next().unwrap().contains("; going back to"), "{detail}");
}

#[test]
fn an_old_system_with_another_init_comes_back_with_the_next_boot_and_needs_nobody() {
    let mut world = World::new();
    world.verdict = Some(undo());
    world.old = VecDeque::from([(100, Outcome::RebootNeeded)]);
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.undo_exit), (Phase::Undone, Some(100)));
    assert!(record.detail.contains("comes back with the next reboot"), "{}", record.detail);
    assert_eq!(world.did.iter().filter(|did| *did == "switch old").count(), 1);
    assert_eq!((world.running, world.profile), (Some(path("system-2")), Some(path("old"))));
}

#[test]
fn what_the_activation_says_that_failed_is_recorded_and_a_users_session_degrades() {
    let mut world = World::new();
    world.verdict = Some(CONFIRM);
    let mut course = Course::begin(record(Action::Switch), "boot", world.now);
    course = world.follow(course, |_, act| matches!(act, Act::Run { .. }));
    let act = world.seen(|sight| course.next(sight));
    let Done::Ran(ran) = world.perform(&act, &course.record) else { panic!("it runs") };
    let ailing = Ailing { units: vec!["x.service".into()], sessions: vec!["the session of alice".into()] };
    let ran = Ran { exit: 4, outcome: Outcome::UnitsFailed, ailing, ..ran };
    world.seen(|sight| course.done(Done::Ran(ran), sight));
    world.follow(course, |_, _| false);
    let record = world.disk.unwrap();
    assert_eq!((record.phase, record.failed), (Phase::Confirmed, vec!["x.service".to_owned()]));
    assert_eq!(record.degraded, ["the session of alice"]);
}

#[test]
fn failure_mode_9_an_activation_that_hangs_is_undone() {
    let mut world = World::new();
    world.timed_out = true;
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.reason), (Phase::Undone, Some(Reason::Deadline)));
    assert!(record.detail.contains("did not end within 60 s"), "{}", record.detail);
}

/// After the reboot NEW ran and was ill; OLD's script was ended between the link and the units.
#[test]
fn i3_an_undo_of_a_booted_system_that_was_cut_short_is_a_switch_to_its_end() {
    let mut world = World::new();
    let found =
        Activation { phase: Phase::Undoing, reason: Some(Reason::HealthCheckFailed), ..record(Action::Boot) };
    let course = world.seen(|sight| Course::resume(found, "boot", sight));
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.as_ref().unwrap().phase, Phase::Undone);
    assert!(world.did.contains(&"switch old".to_owned()), "{:?}", world.did);
}

/// A Mac's agent that NEW took out would otherwise stay out until the next boot.
#[test]
fn i9_the_agents_job_is_looked_after_though_the_activator_was_killed_behind_its_last_record() {
    for phase in [Phase::Undone, Phase::UndoFailed] {
        let mut world = World::new();
        let found = Activation { phase, ..record(Action::Switch) };
        let course = world.seen(|sight| Course::resume(found, "boot", sight));
        world.follow(course, |_, _| false);
        assert_eq!(world.did, ["agent of old"]);
    }
}

/// NEW's activation failed, the disk took no word of the undo, and the machine rebooted into NEW when the profile was back.
#[test]
fn i3_an_undo_that_a_full_disk_did_not_take_is_finished_after_a_reboot() {
    let mut world = World::new();
    (world.running, world.verdict) = (Some(path("system-2")), Some(CONFIRM));
    for phase in [Phase::Activating, Phase::Activated] {
        let found = Activation { phase, ..record(Action::Switch) };
        world.profile = found.old.profile.clone();
        let course = world.seen(|sight| Course::resume(found, "next boot", sight));
        world.follow(course, |_, _| false);
        let done = world.disk.clone().unwrap();
        assert_eq!((done.phase, done.reason), (Phase::Undone, Some(Reason::Interrupted)));
        assert_eq!((&world.running, &world.profile), (&Some(path("old")), &Some(path("old"))));
        world.running = Some(path("system-2"));
    }
}

#[test]
fn old_is_tried_three_times_and_somebody_elses_switch_is_no_failure_of_it() {
    let mut world = World::new();
    world.verdict = Some(undo());
    world.old = VecDeque::from([(2, Outcome::ScriptFailed), (11, Outcome::Locked), (0, Outcome::Done)]);
    let record = world.run(Action::Switch);
    assert_eq!((record.phase, record.undo_exit), (Phase::Undone, Some(0)));

    let mut world = World::new();
    world.verdict = Some(undo());
    world.old = VecDeque::from([(2, Outcome::Failed)]);
    let record = world.run(Action::Switch);
    assert_eq!(record.phase, Phase::UndoFailed);
    assert!(
        record.detail.contains("ssh; going back to") && record.detail.contains("failed too"),
        "{record:?}"
    );
    assert_eq!(world.did.iter().filter(|did| *did == "switch old").count(), 3);
    assert_eq!(world.profile, Some(path("old")), "the next boot is OLD's");
}

#[test]
fn failure_mode_18_an_undo_that_says_it_succeeded_and_changed_nothing_is_not_believed() {
    let mut world = World::new();
    world.verdict = Some(undo());
    // It says that units failed, and does not link itself, as the script of a failed system's `current-system` does.
    world.old = VecDeque::from([(0, Outcome::Refused)]);
    assert_eq!(world.run(Action::Switch).phase, Phase::UndoFailed);
    let mut world = World::new();
    let course = Course::begin(record(Action::Switch), "boot", world.now);
    world.verdict = Some(undo());
    // Somebody else's profile stands there after the undo.
    let mut course =
        world.follow(course, |_, act| matches!(act, Act::Run { system, .. } if *system == path("old")));
    for _ in 0..3 {
        course =
            world.follow(course, |_, act| matches!(act, Act::Run { system, .. } if *system == path("old")));
        let act = world.seen(|sight| course.next(sight));
        let done = world.perform(&act, &course.record);
        world.profile = Some(path("theirs"));
        world.seen(|sight| course.done(done, sight));
    }
    world.follow(course, |_, _| false);
    assert!(world.disk.unwrap().detail.contains("the system profile points elsewhere"));
}

#[test]
fn a_machine_without_an_earlier_system_has_nothing_to_go_back_to() {
    let mut world = World::new();
    (world.running, world.profile, world.verdict) = (None, None, Some(undo()));
    let mut first = record(Action::Switch);
    first.old = Old::default();
    let course = Course::begin(first, "boot", world.now);
    world.follow(course, |_, _| false);
    let record = world.disk.unwrap();
    assert_eq!(record.phase, Phase::UndoFailed);
    assert!(record.detail.contains("no earlier system"), "{}", record.detail);
}

/// Every act of a whole switch and a whole undo × killed before it × the same boot or the next: whoever takes it up
/// brings the machine to OLD or NEW, and profile and running system agree (I3).
#[test]
fn i3_killed_before_any_step_the_next_activator_ends_on_old_or_new() {
    for verdict in [CONFIRM, undo()] {
        let steps = {
            let mut world = World::new();
            world.verdict = Some(verdict.clone());
            world.run(Action::Switch);
            world.did.len() + 4
        };
        for kill in 0..steps {
            for boot in ["boot", "the next boot"] {
                let mut world = World::new();
                world.verdict = Some(verdict.clone());
                let mut course = Course::begin(record(Action::Switch), "boot", world.now);
                for _ in 0..kill {
                    let act = world.seen(|sight| course.next(sight));
                    let done = world.perform(&act, &course.record);
                    world.seen(|sight| course.done(done, sight));
                }
                if boot != "boot" {
                    world.running = world.profile.clone();
                }
                let course = match world.disk.clone() {
                    Some(found) => world.seen(|sight| Course::resume(found, boot, sight)),
                    None => Course::begin(record(Action::Switch), boot, world.now),
                };
                world.follow(course, |_, _| false);
                let what = format!("{verdict:?} killed before step {kill}, then {boot}: {:?}", world.did);
                assert!(world.disk.as_ref().unwrap().phase.is_final(), "{what}");
                assert_eq!(world.running, world.profile, "{what}");
                let ends = [Some(path("old")), Some(path("system-2"))];
                assert!(ends.contains(&world.running), "{what}");
                if verdict == undo() {
                    assert_eq!(world.running, Some(path("old")), "{what}");
                }
            }
        }
    }
}

/// On a Mac the next boot points the link at the profile and brings nothing else of NEW, and NEW's activation may be killed half
/// way: what is in place is of one system in the end, and it is what runs.
#[test]
fn i3_a_mac_that_lost_its_power_at_any_step_is_whole_in_the_end() {
    for verdict in [CONFIRM, undo()] {
        for kill in 0..16 {
            for boot in ["boot", "the next boot"] {
                let mut world = World::new();
                world.verdict = Some(verdict.clone());
                let mut course = Course::begin(mac_record(), "boot", world.now);
                for _ in 0..kill {
                    let act = world.seen(|sight| course.next(sight));
                    let done = world.perform(&act, &course.record);
                    world.seen(|sight| course.done(done, sight));
                }
                if matches!(world.seen(|sight| course.next(sight)), Act::Run { .. }) {
                    world.whole = None;
                }
                if boot != "boot" {
                    world.running = world.profile.clone();
                }
                let course = match world.disk.clone() {
                    Some(found) => world.seen(|sight| Course::resume(found, boot, sight)),
                    None => Course::begin(mac_record(), boot, world.now),
                };
                world.follow(course, |_, _| false);
                let what = format!("{verdict:?} killed before step {kill}, then {boot}: {:?}", world.did);
                let end = world.disk.as_ref().unwrap().phase;
                let system = if end == Phase::Undone { path("old") } else { path("system-2") };
                assert!(matches!(end, Phase::Undone | Phase::Confirmed), "{what}");
                for found in [&world.running, &world.profile, &world.whole] {
                    assert_eq!(found.as_ref(), Some(&system), "{what}");
                }
                assert!(verdict != CONFIRM || end == Phase::Confirmed, "{what}");
            }
        }
    }
}

#[test]
fn a_system_that_refused_before_it_touched_anything_costs_only_its_profile() {
    for first in [false, true] {
        let mut world = World::new();
        let mut record = mac_record();
        if first {
            (world.running, world.profile, record.old) = (None, None, Old::default());
        }
        world.new = VecDeque::from([(2, Outcome::Untouched)]);
        world.old = VecDeque::from([(2, Outcome::Untouched)]);
        let course = Course::begin(record, "boot", world.now);
        world.follow(course, |_, _| false);
        assert_eq!(world.disk.as_ref().unwrap().phase, Phase::Undone, "{:?}", world.did);
        assert_eq!(world.did.iter().filter(|did| did.starts_with("switch")).count(), 1, "{:?}", world.did);
        assert_eq!(world.profile, (!first).then(|| path("old")));
    }
}

#[test]
fn one_that_was_cut_short_and_then_refuses_is_undone_by_olds_own_script() {
    let mut world = World::new();
    world.new = VecDeque::from([(2, Outcome::Untouched)]);
    let course = Course::begin(mac_record(), "boot", world.now);
    world.follow(course, |_, act| matches!(act, Act::Run { .. }));
    (world.running, world.whole) = (world.profile.clone(), None);
    let found = world.disk.clone().unwrap();
    let course = world.seen(|sight| Course::resume(found, "the next boot", sight));
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.as_ref().unwrap().phase, Phase::Undone);
    let old = Some(path("old"));
    assert_eq!((&world.running, &world.profile, &world.whole), (&old, &old, &old), "{:?}", world.did);
}

#[test]
fn a_mac_that_somebody_else_switched_after_the_power_cut_is_left_to_them() {
    let mut world = World::new();
    let course = Course::begin(mac_record(), "boot", world.now);
    world.follow(course, |_, act| matches!(act, Act::Run { .. }));
    (world.running, world.profile) = (Some(path("theirs")), Some(path("theirs")));
    let found = world.disk.clone().unwrap();
    let course = world.seen(|sight| Course::resume(found, "the next boot", sight));
    world.follow(course, |_, _| false);
    assert_eq!(world.disk.as_ref().unwrap().phase, Phase::Untouched);
    assert_eq!(world.profile, Some(path("theirs")));
}

/// A Mac whose undo failed keeps jobs of what could not be undone; its boots and other activations look only at the link.
#[test]
fn i3_what_an_undo_that_failed_left_in_place_goes_with_the_next_activation_whichever_way_it_ends() {
    for (verdict, phase) in [(CONFIRM, Phase::Confirmed), (undo(), Phase::Undone)] {
        let mut world = World::new();
        world.verdict = Some(verdict);
        let next = Activation { leftovers: vec![path("stuck")], ..mac_record() };
        world.follow(Course::begin(next, "boot", world.now), |_, _| false);
        assert!(world.did.iter().any(|did| did == "tidy stuck"), "{:?}", world.did);
        assert_eq!(world.disk.unwrap().phase, phase);
    }
}
