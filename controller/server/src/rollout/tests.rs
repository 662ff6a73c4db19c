//! The engine by itself: each rule by name, and properties over random courses.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ids::{Epoch, MachineName, Sha256, StorePath};
use muster_protocol::keys::SecretKey;
use muster_protocol::operator::{MemberState, RolloutState, Wish};
use muster_protocol::plan::{After, Failure, Gate, Plan, Said, Voucher, Wave, machine_lacks, wave_lacks};

use super::engine::{Belongs, Decision, Given, Member, Observed, Stage, decide};

const AWAY: i64 = 1_000_000;
const NOW: i64 = 100_000_000;

fn name(text: &str) -> MachineName {
    text.parse().unwrap()
}

/// What the engine is told, for tests to change.
#[derive(Clone)]
struct World {
    plan: Plan,
    wish: Wish,
    brake: Option<String>,
    members: BTreeMap<MachineName, Member>,
    proven: BTreeSet<(MachineName, Said)>,
    forgiven: BTreeSet<MachineName>,
    now: i64,
}

impl World {
    /// Waves of these sizes, whose machines `0-0`, `0-1` … wait for their turn.
    fn new(sizes: &[usize], at_least: u32, max_in_flight: u32) -> Self {
        let output: StorePath = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap();
        let member = |wave: usize, number: usize| name(&format!("{wave}-{number}"));
        let waves = sizes.iter().enumerate().map(|(wave, size)| {
            let members: Vec<_> = (0..*size).map(|number| member(wave, number)).collect();
            let vouchers = members.iter().map(|machine| Voucher {
                machine: machine.clone(),
                key: SecretKey::generate().unwrap().public(),
                output: output.clone(),
            });
            Wave {
                name: format!("w{wave}"),
                vouchers: vouchers.collect(),
                members,
                at_least,
                percent: 0,
                soak_seconds: 3600,
                max_in_flight,
                windows: vec![],
            }
        });
        let plan = Plan {
            fleet: Sha256::of(b"fleet"),
            epoch: Epoch::default(),
            name: "weekly".parse().unwrap(),
            nonce: Sha256::of(b"nonce"),
            waves: waves.collect(),
            after: vec![],
            budget: 0,
            failures: Failure::all(),
        };
        let all = plan.waves.iter().flat_map(|wave| wave.members.clone());
        let ready =
            Member { seen: Some(NOW), belongs: Belongs::Here, stage: Stage::Ready, ..Member::default() };
        let members = all.map(|machine| (machine, ready.clone())).collect();
        Self {
            members,
            plan,
            wish: Wish::Run,
            brake: None,
            proven: BTreeSet::new(),
            forgiven: BTreeSet::new(),
            now: NOW,
        }
    }

    fn decide(&self) -> Decision {
        decide(&Observed {
            plan: &self.plan,
            wish: self.wish,
            wish_why: None,
            brake: self.brake.as_deref(),
            members: &self.members,
            proven: &self.proven,
            forgiven: &self.forgiven,
            away_ms: AWAY,
            now: self.now,
        })
    }

    fn member(&mut self, machine: &str) -> &mut Member {
        self.members.get_mut(&name(machine)).unwrap()
    }
    fn all(&mut self, change: impl Fn(&mut Member)) {
        self.members.values_mut().for_each(change);
    }
    fn soaked(&mut self, machine: &str) {
        self.member(machine).stage = Stage::Confirmed;
        self.proven.insert((name(machine), Said::Soaked));
    }
    /// What the decision does to the world.
    fn apply(&mut self, decision: &Decision) {
        for machine in &decision.leave {
            let until = self.now + super::engine::LEAVE_MS;
            self.members.get_mut(machine).unwrap().leave = Some(Given { until, taken_back: false });
        }
        for machine in &decision.take_back {
            if let Some(given) = &mut self.members.get_mut(machine).unwrap().leave {
                given.taken_back = true;
            }
        }
    }
    fn state_of(&self, machine: &str) -> (MemberState, String) {
        self.decide().members.remove(&name(machine)).unwrap()
    }
    fn gate(&self, machine: &MachineName) -> Gate {
        let wave = self.plan.waves_of()[machine];
        let says = |voucher: &Voucher, said| self.proven.contains(&(voucher.machine.clone(), said));
        match wave_lacks(&self.plan, wave, &says).or_else(|| machine_lacks(&self.plan, machine, &says)) {
            Some(lack) => Gate::Closed(lack),
            None => Gate::Open,
        }
    }
}

#[test]
fn the_first_wave_begins_with_as_many_as_may_switch_at_once() {
    let mut world = World::new(&[5, 5], 1, 2);
    let first = world.decide();
    assert_eq!(first.leave, [name("0-0"), name("0-1")]);
    world.apply(&first);
    assert!(world.decide().leave.is_empty(), "the slots are taken");
    world.member("0-0").stage = Stage::Confirmed;
    assert_eq!(world.decide().leave, [name("0-2")]);
}

#[test]
fn a_later_wave_begins_when_its_gate_is_proven_and_not_before() {
    let mut world = World::new(&[2, 2, 2], 2, 9);
    world.apply(&world.decide());
    world.soaked("0-0");
    world.member("0-1").stage = Stage::Confirmed;
    assert!(world.decide().leave.is_empty());
    assert_eq!(
        world.decide().why,
        "wave 'w1' waits: its turn comes when 2 machines of wave 'w0' have soaked; 1 of them has"
    );
    world.soaked("0-1");
    assert_eq!(world.decide().leave, [name("1-0"), name("1-1")]);
    // The last wave waits for the one before it, not for the first alone.
    assert_eq!(world.state_of("2-0").0, MemberState::Waiting);
}

#[test]
fn stop_brake_pause_budget_and_a_revoked_machine_each_hold_everything_and_take_leave_back() {
    type Change = fn(&mut World);
    let changes: [(&str, Change, RolloutState); 5] = [
        ("stop", |world| world.wish = Wish::Stop, RolloutState::Stopped),
        ("brake", |world| world.brake = Some("a storm".into()), RolloutState::Paused),
        ("pause", |world| world.wish = Wish::Pause, RolloutState::Paused),
        ("budget", |world| world.member("0-3").stage = Stage::Failed, RolloutState::Halted),
        ("revoked", |world| world.member("0-3").belongs = Belongs::Revoked, RolloutState::Halted),
    ];
    for (what, change, state) in changes {
        let mut world = World::new(&[4, 1], 1, 1);
        world.apply(&world.decide());
        change(&mut world);
        let decision = world.decide();
        assert_eq!((decision.state, decision.leave.len()), (state, 0), "{what}");
        assert_eq!(decision.take_back, [name("0-0")], "{what}");
        world.apply(&decision);
        assert!(world.decide().take_back.is_empty(), "{what}: it is taken back once");
        assert!(!decision.why.is_empty());
    }
}

#[test]
fn stop_wins_over_everything() {
    let mut world = World::new(&[3], 1, 3);
    world.wish = Wish::Stop;
    world.brake = Some(String::new());
    world.member("0-0").stage = Stage::Failed;
    world.member("0-1").belongs = Belongs::Revoked;
    assert_eq!(world.decide().state, RolloutState::Stopped);
    assert!(world.decide().leave.is_empty());
}

#[test]
fn what_an_operator_has_forgiven_no_longer_halts() {
    let mut world = World::new(&[3], 1, 1);
    world.member("0-0").stage = Stage::Failed;
    world.member("0-1").belongs = Belongs::Revoked;
    assert_eq!(world.decide().state, RolloutState::Halted);
    world.forgiven = [name("0-0"), name("0-1")].into();
    assert_eq!(world.decide().leave, [name("0-2")]);
    assert_eq!(world.decide().failures, 0);
}

#[test]
fn a_failure_counts_once_and_stays_when_the_machine_moves_on() {
    let mut world = World::new(&[3], 1, 1);
    world.plan.budget = 1;
    let failed = world.member("0-0");
    (failed.failed, failed.stage) = (Some(Failure::RolledBack), Stage::Failed);
    assert_eq!(world.decide().failures, 1);
    world.member("0-0").belongs = Belongs::Elsewhere;
    assert_eq!(world.decide().failures, 1);
    assert_eq!(world.decide().state, RolloutState::Running);
    world.member("0-1").stage = Stage::Failed;
    assert_eq!(world.decide().state, RolloutState::Halted);
}

#[test]
fn only_the_kinds_that_the_plan_names_count() {
    let mut world = World::new(&[2], 1, 1);
    let member = world.member("0-0");
    (member.stage, member.degraded) = (Stage::Confirmed, true);
    assert_eq!(world.decide().failures, 1);
    world.plan.failures = vec![Failure::RolledBack];
    assert_eq!(world.decide().failures, 0);
}

#[test]
fn an_offline_machine_is_never_counted_as_well() {
    let mut world = World::new(&[2, 1], 2, 2);
    world.soaked("0-0");
    let away = world.member("0-1");
    (away.stage, away.seen) = (Stage::Confirmed, Some(NOW - AWAY - 1));
    assert_eq!(world.state_of("0-1").0, MemberState::Away);
    assert!(world.decide().leave.is_empty(), "one has soaked, the other is silent");
    assert_eq!(world.decide().state, RolloutState::Running);
    // What it proved before it went away counts.
    world.proven.insert((name("0-1"), Said::Soaked));
    assert_eq!(world.decide().leave, [name("1-0")]);
}

#[test]
fn a_machine_that_is_away_holds_nothing_up_where_enough_others_vouch_and_joins_later() {
    let mut world = World::new(&[2, 1], 1, 2);
    world.soaked("0-0");
    world.member("0-1").seen = None;
    assert_eq!(world.decide().leave, [name("1-0")]);
    world.soaked("1-0");
    let done = world.decide();
    assert_eq!(done.state, RolloutState::Done);
    assert_eq!(done.why, "2 machines took it, 1 do not answer and join when they are back");
    world.member("0-1").seen = Some(NOW);
    assert_eq!(world.decide().leave, [name("0-1")]);
    world.wish = Wish::Stop;
    assert!(world.decide().leave.is_empty(), "unless it was stopped");
}

#[test]
fn all_canaries_away_is_told() {
    let mut world = World::new(&[2, 1], 1, 2);
    for canary in ["0-0", "0-1"] {
        world.member(canary).seen = None;
    }
    let decision = world.decide();
    assert_eq!(decision.state, RolloutState::Running);
    assert!(decision.why.contains("nobody of an earlier wave answers"), "{}", decision.why);
}

#[test]
fn a_machine_that_had_leave_and_is_silent_may_have_begun_until_it_counts_as_away() {
    let mut world = World::new(&[2], 1, 1);
    world.apply(&world.decide());
    // Its leave has ended, and nobody has heard of it since.
    world.now += super::engine::LEAVE_MS + 1;
    world.member("0-1").seen = Some(world.now);
    assert!(world.decide().leave.is_empty());
    world.now += AWAY + 1;
    world.member("0-1").seen = Some(world.now);
    assert_eq!(world.decide().leave, [name("0-1")]);
}

#[test]
fn leave_that_was_not_used_goes_to_another_machine_first() {
    let mut world = World::new(&[2], 1, 1);
    world.apply(&world.decide());
    world.now += super::engine::LEAVE_MS + 1;
    world.all(|member| member.seen = Some(NOW + super::engine::LEAVE_MS + 1));
    assert_eq!(world.decide().leave, [name("0-1")]);
}

#[test]
fn leave_that_was_taken_back_keeps_its_slot_until_it_would_have_ended() {
    let mut world = World::new(&[2], 1, 1);
    world.apply(&world.decide());
    world.wish = Wish::Pause;
    world.apply(&world.decide());
    world.wish = Wish::Run;
    // The same machine gets it again: it may have begun before it heard.
    assert_eq!(world.decide().leave, [name("0-0")]);
    world.member("0-0").stage = Stage::Behind;
    assert!(world.decide().leave.is_empty());
}

#[test]
fn a_machine_that_comes_after_another_waits_for_it_alone() {
    let mut world = World::new(&[3], 1, 3);
    world.plan.after = vec![After { machine: name("0-0"), first: name("0-1") }];
    assert_eq!(world.decide().leave, [name("0-1"), name("0-2")]);
    assert_eq!(world.state_of("0-0").1, "its turn comes when 0-1 has confirmed its own");
    world.proven.insert((name("0-1"), Said::Confirmed));
    assert!(world.decide().leave.contains(&name("0-0")));
}

#[test]
fn of_a_large_wave_so_many_of_a_hundred_that_answer_must_run_it_well() {
    let mut world = World::new(&[10, 1], 1, 10);
    world.plan.waves[0].percent = 90;
    for number in 0..8 {
        world.soaked(&format!("0-{number}"));
    }
    assert_eq!(
        world.state_of("1-0").1,
        "its turn comes when 9 of the 10 machines of wave 'w0' that answer run it well; 8 do"
    );
    world.member("0-9").seen = None;
    world.member("0-8").seen = None;
    assert_eq!(world.decide().leave, [name("1-0")], "all eight that answer do");
}

#[test]
fn a_revoked_machines_word_counts_no_longer() {
    let mut world = World::new(&[2, 1], 1, 2);
    world.soaked("0-0");
    world.forgiven = [name("0-0")].into();
    world.member("0-0").belongs = Belongs::Revoked;
    assert!(!world.decide().leave.contains(&name("1-0")));
}

#[test]
fn nothing_is_done_while_all_that_a_wave_has_is_away() {
    let mut world = World::new(&[1, 2], 1, 2);
    world.all(|member| member.seen = None);
    let decision = world.decide();
    assert_eq!(decision.state, RolloutState::Running, "{}", decision.why);
    assert!(decision.why.contains("does not answer") || decision.why.contains("nobody"), "{}", decision.why);
    // The canary took it; of the next wave nobody answers.
    world.member("0-0").stage = Stage::Confirmed;
    world.soaked("0-0");
    let decision = world.decide();
    assert_eq!(decision.state, RolloutState::Running, "{}", decision.why);
    assert!(decision.why.starts_with("2 machines do not answer"), "{}", decision.why);
    world.member("1-0").stage = Stage::Confirmed;
    world.member("1-0").seen = Some(NOW);
    world.soaked("1-0");
    let decision = world.decide();
    assert_eq!(decision.state, RolloutState::Done, "{}", decision.why);
}

#[test]
fn the_word_of_a_machine_that_failed_since_counts_no_longer() {
    let mut world = World::new(&[2, 1], 1, 2);
    world.plan.budget = 1;
    world.soaked("0-0");
    assert!(world.decide().leave.contains(&name("1-0")));
    // It did not boot, and fell back.
    world.member("0-0").stage = Stage::Failed;
    let decision = world.decide();
    assert!(decision.state == RolloutState::Running && !decision.leave.contains(&name("1-0")));
}

#[test]
fn a_rollout_whose_machines_all_got_another_generation_has_ended() {
    let mut world = World::new(&[2], 1, 1);
    world.all(|member| member.belongs = Belongs::Elsewhere);
    assert_eq!(world.decide().state, RolloutState::Superseded);
}

#[test]
fn a_machine_without_a_generation_of_the_plan_is_never_begun() {
    let mut world = World::new(&[2], 1, 2);
    world.member("0-0").belongs = Belongs::Unpublished;
    world.members.remove(&name("0-1"));
    assert!(world.decide().leave.is_empty());
    assert_eq!(world.state_of("0-1").1, "its generation is not published yet");
}

/// A small generator of numbers (xorshift64*), so that courses can be repeated by their seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }
    fn one<'a, T>(&mut self, list: &'a [T]) -> &'a T {
        &list[usize::try_from(self.roll(list.len() as u64)).unwrap()]
    }
}

/// One random change of the world, as machines, operators and time make it.
fn disturb(world: &mut World, dice: &mut Dice) {
    let machines: Vec<MachineName> = world.members.keys().cloned().collect();
    let machine = dice.one(&machines).clone();
    let (now, proven) = (world.now, &mut world.proven);
    let member = world.members.get_mut(&machine).unwrap();
    let leave = member.leave.is_some_and(|given| !given.taken_back && now <= given.until);
    match dice.roll(14) {
        0..=4 if member.stage == Stage::Ready && leave => {
            (member.stage, member.seen) = (Stage::Switching, Some(now));
        }
        5..=6 if member.stage == Stage::Switching => {
            (member.stage, member.seen) =
                (*dice.one(&[Stage::Confirmed, Stage::Confirmed, Stage::Failed]), Some(now));
        }
        7 if member.stage == Stage::Confirmed => drop(proven.insert((machine, Said::Soaked))),
        8 => member.seen = Some(now),
        9 => world.now += i64::try_from(dice.roll(400_000)).unwrap(),
        10 => world.wish = *dice.one(&[Wish::Run, Wish::Run, Wish::Pause]),
        11 => drop(world.forgiven.insert(machine)),
        12 if dice.roll(20) == 0 => member.belongs = Belongs::Elsewhere,
        13 => world.brake = (dice.roll(4) == 0).then(String::new),
        _ => {}
    }
}

#[test]
fn in_every_course_no_more_begin_than_may_and_nobody_begins_before_its_gate() {
    for seed in 1..400 {
        let mut dice = Dice(seed);
        let mut world = World::new(&[3, 5, 6], 2, 2);
        world.plan.budget = 1;
        world.plan.after = vec![After { machine: name("1-0"), first: name("1-4") }];
        for step in 0..200 {
            disturb(&mut world, &mut dice);
            let decision = world.decide();
            assert!(!decision.why.is_empty(), "seed {seed}, step {step}: a rollout always says why");
            assert!(decision.members.values().all(|(_, why)| !why.is_empty()));
            if world.wish != Wish::Run || world.brake.is_some() {
                assert!(decision.leave.is_empty(), "seed {seed}, step {step}: it is held");
            }
            for machine in &decision.leave {
                assert_eq!(world.gate(machine), Gate::Open, "seed {seed}, step {step}: {machine}");
            }
            world.apply(&decision);
            assert!(
                world.decide().leave.is_empty(),
                "seed {seed}, step {step}: deciding twice gives nothing more"
            );
            for wave in &world.plan.waves {
                let begin = wave.members.iter().filter(|machine| {
                    let member = &world.members[*machine];
                    let leave = member.leave.is_some_and(|given| world.now <= given.until);
                    let silent = member.seen.is_none_or(|seen| world.now - seen > AWAY);
                    member.belongs == Belongs::Here
                        && (member.stage == Stage::Switching && !silent
                            || member.stage == Stage::Ready && leave)
                });
                assert!(begin.count() <= 2, "seed {seed}, step {step}: {}", wave.name);
            }
            // Numbers of a wave add up.
            for (view, wave) in decision.waves.iter().zip(&world.plan.waves) {
                let all = view.waiting + view.preparing + view.in_flight + view.confirmed + view.soaked;
                assert_eq!(
                    all + view.failed + view.away + view.left,
                    u32::try_from(wave.members.len()).unwrap()
                );
            }
        }
    }
}

#[test]
fn the_order_in_which_reports_arrive_changes_nothing() {
    for seed in 1..200 {
        let mut dice = Dice(seed);
        let start = World::new(&[3, 4], 1, 7);
        let all: Vec<MachineName> = start.members.keys().cloned().collect();
        let mut reports: Vec<(MachineName, Stage)> = all
            .iter()
            .map(|machine| {
                (machine.clone(), *dice.one(&[Stage::Confirmed, Stage::Failed, Stage::Ready, Stage::Behind]))
            })
            .collect();
        let end = |reports: &[(MachineName, Stage)]| {
            let mut world = start.clone();
            for (machine, stage) in reports {
                world.members.get_mut(machine).unwrap().stage = *stage;
                if *stage == Stage::Confirmed {
                    world.proven.insert((machine.clone(), Said::Soaked));
                }
            }
            world.decide()
        };
        let one = end(&reports);
        for _ in 0..reports.len() {
            let (from, to) = (dice.roll(7), dice.roll(7));
            reports.swap(usize::try_from(from).unwrap(), usize::try_from(to).unwrap());
        }
        assert_eq!(one, end(&reports), "seed {seed}");
    }
}

#[test]
fn every_rollout_ends_or_says_what_it_waits_for() {
    for seed in 1..200 {
        let mut dice = Dice(seed);
        let mut world = World::new(&[2, 3, 4], 1, 2);
        world.plan.budget = 9;
        // An honest fleet of which some fail and some never answer.
        let silent: BTreeSet<MachineName> =
            world.members.keys().filter(|_| dice.roll(6) == 0).cloned().collect();
        let mut rounds = 0;
        let last = loop {
            rounds += 1;
            assert!(rounds < 500, "seed {seed}: it neither ends nor stands");
            for (machine, member) in &mut world.members {
                member.seen = (!silent.contains(machine)).then_some(world.now);
            }
            let decision = world.decide();
            world.apply(&decision);
            for machine in &decision.leave {
                let fails = dice.roll(5) == 0;
                let member = world.members.get_mut(machine).unwrap();
                member.stage = if fails { Stage::Failed } else { Stage::Confirmed };
                if !fails {
                    world.proven.insert((machine.clone(), Said::Soaked));
                }
            }
            world.now += 1000;
            if decision.leave.is_empty() {
                break decision;
            }
        };
        match last.state {
            RolloutState::Done => {}
            RolloutState::Running => {
                assert!(last.why.contains("its turn comes when"), "seed {seed}: {}", last.why);
            }
            state => panic!("seed {seed}: {state:?}: {}", last.why),
        }
    }
}
