//! Rollouts: plans, gated generations, leave in replies to check-ins, and what operators ask.

use std::collections::BTreeMap;
use std::time::Duration;

use muster_protocol::api::{
    self, OPERATOR_AUDIT, OPERATOR_BRAKE, OPERATOR_PLANS, OPERATOR_ROLLOUTS, ProblemCode,
};
use muster_protocol::audit::Page;
use muster_protocol::checkin::{CheckIn, CheckInReply, Phase, PollReply, Runs};
use muster_protocol::ids::{Epoch, Generation, MachineName, Sha256};
use muster_protocol::machine::Class;
use muster_protocol::operator::{
    AskRollout, BrakeView, MachineView, MemberState, NewPlan, PublicationsTaken, RolloutState, RolloutView,
    SetBrake, Wish,
};
use muster_protocol::plan::{
    Claim, FEATURE, Failure, Gate, Place, Plan, Said, Statement, Statements, Vouch, Voucher, Wave, gate,
};
use muster_protocol::target::Target;
use reqwest::{Method, StatusCode};

use crate::support::{Answer, Fleet, LIMIT, Machine, target, until};

mod void;

/// Machines of a fleet, and the plan of a rollout to them.
struct Rollout {
    machines: BTreeMap<String, Machine>,
    plan: Plan,
    hash: Sha256,
}

fn output() -> muster_protocol::ids::StorePath {
    target("any", Class::Nixos, 1).output
}

impl Rollout {
    /// Waves of these machines, all of which vouch.
    async fn to(fleet: &Fleet, waves: &[&[&str]], max_in_flight: u32) -> Self {
        let mut machines = BTreeMap::new();
        for name in waves.iter().copied().flatten() {
            machines.insert((*name).to_owned(), fleet.enrolled(name, Class::Nixos).await);
        }
        let mut rollout = Self { machines, plan: rollout_plan(fleet.fleet_id()), hash: Sha256::of(b"") };
        rollout.plan.waves = (0..)
            .zip(waves)
            .map(|(number, members): (u32, &&[&str])| Wave {
                name: format!("wave-{number}"),
                members: members.iter().map(|name| name.parse().unwrap()).collect(),
                vouchers: members
                    .iter()
                    .map(|name| Voucher {
                        machine: name.parse().unwrap(),
                        key: rollout.machines[*name].key.public(),
                        output: output(),
                    })
                    .collect(),
                at_least: 1,
                percent: 0,
                soak_seconds: 60,
                max_in_flight,
                windows: vec![],
            })
            .collect();
        rollout.hash = Sha256::of(&rollout.plan.to_bytes().unwrap());
        rollout
    }

    /// The same, with the plan sent and the first generation published for every machine.
    async fn published(fleet: &Fleet, waves: &[&[&str]], max_in_flight: u32) -> Self {
        let rollout = Self::to(fleet, waves, max_in_flight).await;
        rollout.send(fleet).await.good::<RolloutView>();
        for name in rollout.machines.keys() {
            rollout.publish(fleet, name).await.good::<MachineView>();
        }
        rollout
    }

    async fn send(&self, fleet: &Fleet) -> Answer {
        send(fleet, &self.plan.to_bytes().unwrap()).await
    }

    fn target(&self, name: &str) -> Target {
        let waves = self.plan.waves_of();
        let wave = waves[&name.parse::<MachineName>().unwrap()];
        let place = Place { plan: self.hash, wave: u32::try_from(wave).unwrap() };
        Target { rollout: Some(place), requires: vec![FEATURE.into()], ..target(name, Class::Nixos, 1) }
    }

    async fn publish(&self, fleet: &Fleet, name: &str) -> Answer {
        let publication = fleet.generation_by(&fleet.operator, &self.target(name));
        fleet.publish(&name.parse().unwrap(), &publication).await
    }

    /// A machine of this plan checks in.
    async fn checks_in(
        &mut self,
        fleet: &Fleet,
        name: &str,
        change: impl FnOnce(&mut CheckIn),
    ) -> CheckInReply {
        let checkin = self.next(fleet, name, change);
        self.machines[name].send_checkin(fleet, &checkin).await.good()
    }

    fn next(&mut self, fleet: &Fleet, name: &str, change: impl FnOnce(&mut CheckIn)) -> CheckIn {
        let machine = self.machines.get_mut(name).unwrap();
        machine.seq += 1;
        let mut checkin = machine.checkin(fleet, machine.seq);
        checkin.understands = vec![FEATURE.into()];
        change(&mut checkin);
        checkin
    }

    /// It has built its generation and waits for its turn alone.
    async fn waits(&mut self, fleet: &Fleet, name: &str) -> CheckInReply {
        let hash = self.hash;
        let waits = |checkin: &mut CheckIn| {
            (checkin.phase, checkin.phase_generation) = (Phase::Checked, Some(Generation::FIRST));
            checkin.awaits = Some(hash);
        };
        self.checks_in(fleet, name, waits).await
    }

    fn vouch(&self, name: &str, said: Said) -> Vouch {
        self.vouch_by(name, name, said)
    }

    fn vouch_by(&self, signs: &str, name: &str, said: Said) -> Vouch {
        let voucher = self.plan.voucher(&name.parse().unwrap()).unwrap();
        let claim = Claim { hash: self.hash, plan: &self.plan, voucher, said };
        Vouch { plan: self.hash, said, signature: claim.sign(&self.machines[signs].key) }
    }

    /// It runs its generation, and says so.
    async fn says(&mut self, fleet: &Fleet, name: &str, said: Said) -> CheckInReply {
        let vouch = self.vouch(name, said);
        self.checks_in(fleet, name, |checkin| {
            (checkin.phase, checkin.phase_generation) = (Phase::Confirmed, Some(Generation::FIRST));
            let (running, profile) = (output(), Some(output()));
            checkin.runs = Some(Runs { running, profile, generation: Some(Generation::FIRST) });
            checkin.vouch = Some(vouch);
        })
        .await
    }

    /// Checks in again and again, until it has leave or the time is over.
    async fn gets_leave(&mut self, fleet: &Fleet, name: &str) -> u64 {
        for _ in 0..LIMIT.as_millis() / 50 {
            let reply = self.waits(fleet, name).await;
            if let Some(seconds) = reply.rollout.map(|leave| leave.seconds).filter(|seconds| *seconds > 0) {
                return seconds;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{name} got no leave");
    }

    async fn show(&self, fleet: &Fleet) -> RolloutView {
        fleet.operate(Method::GET, &api::operator_rollout(&self.hash), vec![]).await.good()
    }

    async fn ask(&self, fleet: &Fleet, wish: Wish, forgive: bool) -> Answer {
        let ask = AskRollout { wish, forgive, why: Some("look first".into()) };
        let path = api::operator_rollout(&self.hash);
        fleet.operate(Method::POST, &path, serde_json::to_vec(&ask).unwrap()).await
    }

    async fn statements(&mut self, fleet: &Fleet, name: &str) -> Vec<Statement> {
        let wave = self.target(name).rollout.unwrap().wave;
        let bearer = self.checks_in(fleet, name, |_| ()).await.bearer;
        let path = api::statements_path(&self.hash, &name.parse().unwrap(), wave);
        fleet.get(&path, &bearer).await.good::<Statements>().statements
    }
}

fn rollout_plan(fleet: Sha256) -> Plan {
    Plan {
        fleet,
        epoch: Epoch::default(),
        name: "weekly".parse().unwrap(),
        nonce: Sha256::of(b"nonce"),
        waves: vec![],
        after: vec![],
        budget: 0,
        failures: Failure::all(),
    }
}

async fn send(fleet: &Fleet, plan: &[u8]) -> Answer {
    let new = NewPlan { plan: String::from_utf8(plan.to_vec()).unwrap() };
    fleet.operate(Method::POST, OPERATOR_PLANS, serde_json::to_vec(&new).unwrap()).await
}

async fn brake(fleet: &Fleet, on: bool) -> Option<BrakeView> {
    let asked = SetBrake { on, why: Some("fire".into()) };
    fleet.operate(Method::POST, OPERATOR_BRAKE, serde_json::to_vec(&asked).unwrap()).await.good()
}

async fn actions(fleet: &Fleet) -> Vec<String> {
    let log: Page = fleet.operate(Method::GET, OPERATOR_AUDIT, vec![]).await.good();
    let told = log.entries.into_iter().map(|entry| entry.action);
    told.filter(|action| action.starts_with("rollout") || action.starts_with("brake")).collect()
}

fn seconds(reply: &CheckInReply) -> u64 {
    reply.rollout.as_ref().unwrap().seconds
}

#[tokio::test]
async fn a_plan_is_stored_once_and_read_by_machines_and_operators_alone() {
    let fleet = Fleet::start().await;
    let rollout = Rollout::to(&fleet, &[&["cinnabar"], &["stibnite"]], 1).await;
    let path = api::plan_path(&rollout.hash);
    let bearer = rollout.machines["cinnabar"].clone().bearer(&fleet).await;
    fleet.get(&path, &bearer).await.refused(404, ProblemCode::NotFound);
    for _ in 0..2 {
        let view: RolloutView = rollout.send(&fleet).await.good();
        assert_eq!(
            (view.plan, view.state, view.by),
            (rollout.hash, RolloutState::Running, fleet.operator.public())
        );
    }
    assert_eq!(actions(&fleet).await, ["rollout-planned"]);
    for bearer in [bearer, fleet.session().await] {
        let answer = fleet.get(&path, &bearer).await;
        assert_eq!(answer.text.as_bytes(), rollout.plan.to_bytes().unwrap());
    }
    fleet.get(&path, "nobody's").await.refused(401, ProblemCode::Unauthorised);
    fleet
        .get(&api::plan_path(&Sha256::of(b"other")), &fleet.session().await)
        .await
        .refused(404, ProblemCode::NotFound);
    let list: Vec<RolloutView> = fleet.operate(Method::GET, OPERATOR_ROLLOUTS, vec![]).await.good();
    assert!(list.len() == 1 && list[0].members.is_empty() && list[0].waves.len() == 2, "{list:?}");
    let other = fleet.operate(Method::GET, &api::operator_rollout(&Sha256::of(b"other")), vec![]).await;
    other.refused(404, ProblemCode::NotFound);
}

#[tokio::test]
async fn a_plan_of_another_fleet_or_epoch_or_that_makes_no_sense_is_refused() {
    let fleet = Fleet::start().await;
    let rollout = Rollout::to(&fleet, &[&["cinnabar"], &["stibnite"]], 1).await;
    let bad = [
        Plan { fleet: Sha256::of(b"other"), ..rollout.plan.clone() },
        Plan { epoch: Epoch::new(1).unwrap(), ..rollout.plan.clone() },
        Plan { waves: vec![], ..rollout.plan.clone() },
    ];
    for plan in bad {
        send(&fleet, &plan.to_bytes().unwrap()).await.refused(422, ProblemCode::Malformed);
    }
    send(&fleet, b"{}").await.refused(422, ProblemCode::Malformed);
    assert!(actions(&fleet).await.is_empty());
}

#[tokio::test]
async fn a_gated_generation_needs_its_plan_its_place_and_an_agent_that_knows_rollouts() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::to(&fleet, &[&["cinnabar"], &["stibnite"]], 1).await;
    let why = rollout.publish(&fleet, "cinnabar").await.refused(422, ProblemCode::Malformed);
    assert!(why.contains("was not sent before"), "{why}");
    rollout.send(&fleet).await.good::<RolloutView>();
    let mut misplaced = rollout.target("cinnabar");
    misplaced.rollout.as_mut().unwrap().wave = 1;
    let other = Target {
        output: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-other".parse().unwrap(),
        ..rollout.target("cinnabar")
    };
    for wrong in [misplaced, other] {
        let publication = fleet.generation_by(&fleet.operator, &wrong);
        let answer = fleet.publish(&wrong.machine, &publication).await;
        answer.refused(422, ProblemCode::Malformed);
    }
    // An agent of an earlier version; and one that never said anything, which is taken.
    rollout.checks_in(&fleet, "cinnabar", |checkin| checkin.understands.clear()).await;
    let why = rollout.publish(&fleet, "cinnabar").await.refused(409, ProblemCode::Conflict);
    assert!(why.contains("does not know rollouts"), "{why}");
    let one = |name: &str| muster_protocol::operator::MachinePublication {
        machine: name.parse().unwrap(),
        publication: fleet.generation_by(&fleet.operator, &rollout.target(name)),
    };
    let all = muster_protocol::operator::Publications { generations: vec![one("cinnabar"), one("stibnite")] };
    let batch = |body: &muster_protocol::operator::Publications| serde_json::to_vec(body).unwrap();
    fleet
        .operate(Method::POST, api::OPERATOR_GENERATIONS, batch(&all))
        .await
        .refused(409, ProblemCode::Conflict);
    let rest = muster_protocol::operator::Publications { generations: vec![one("stibnite")] };
    let taken: PublicationsTaken =
        fleet.operate(Method::POST, api::OPERATOR_GENERATIONS, batch(&rest)).await.good();
    assert_eq!(taken.published, 1);
    rollout.checks_in(&fleet, "cinnabar", |_| ()).await;
    rollout.publish(&fleet, "cinnabar").await.good::<MachineView>();
    rollout.show(&fleet).await;
    let view = fleet.view("cinnabar").await;
    assert_eq!(view.understands, [FEATURE]);
    assert_eq!(
        view.rollout.map(|rollout| (rollout.wave_name, rollout.state)),
        Some(("wave-0".into(), MemberState::Preparing))
    );
}

#[tokio::test]
async fn a_gated_target_is_served_under_its_own_name_alone() {
    let fleet = Fleet::start().await;
    let rollout = Rollout::published(&fleet, &[&["cinnabar"]], 1).await;
    let plain = fleet.enrolled("plain", Class::Nixos).await;
    let publication = fleet.generation("plain", Class::Nixos, 1);
    fleet.publish(&plain.name, &publication).await.good::<MachineView>();
    let bearer = fleet.session().await;
    let gated = fleet.generation_by(&fleet.operator, &rollout.target("cinnabar")).target;
    let cinnabar: MachineName = "cinnabar".parse().unwrap();
    let (hash, of_plain) = (Sha256::of(gated.as_bytes()), Sha256::of(publication.target.as_bytes()));
    assert_eq!(fleet.get(&api::gated_path(&cinnabar, &hash), &bearer).await.text, gated);
    fleet.get(&api::target_path(&cinnabar, &hash), &bearer).await.refused(404, ProblemCode::NotFound);
    assert_eq!(fleet.get(&api::target_path(&plain.name, &of_plain), &bearer).await.text, publication.target);
    fleet.get(&api::gated_path(&plain.name, &of_plain), &bearer).await.refused(404, ProblemCode::NotFound);
    // The files of a poll come with it, whatever its name.
    let bearer = rollout.machines["cinnabar"].clone().bearer(&fleet).await;
    let reply: PollReply = fleet.get(&api::poll_files_path(&cinnabar, None, 0, 1), &bearer).await.good();
    assert_eq!(reply.files.unwrap().target, gated);
}

#[tokio::test]
async fn canaries_go_first_and_their_word_lets_the_others_go() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar"], &["realgar", "stibnite"]], 1).await;
    assert!(rollout.gets_leave(&fleet, "cinnabar").await <= 600);
    let reply = rollout.waits(&fleet, "stibnite").await;
    let leave = reply.rollout.unwrap();
    assert_eq!((leave.plan, leave.seconds), (rollout.hash, 0));
    assert!(leave.why.is_some());
    assert!(rollout.statements(&fleet, "stibnite").await.is_empty());
    rollout.says(&fleet, "cinnabar", Said::Confirmed).await;
    rollout.waits(&fleet, "realgar").await;
    let view = rollout.show(&fleet).await;
    assert_eq!((view.state, view.waves[0].confirmed, view.waves[1].in_flight), (RolloutState::Running, 1, 0));
    rollout.says(&fleet, "cinnabar", Said::Soaked).await;
    let statements = rollout.statements(&fleet, "stibnite").await;
    let opens = gate((rollout.hash, &rollout.plan), &"stibnite".parse().unwrap(), 1, &statements);
    assert_eq!((statements.len(), opens), (1, Gate::Open));
    rollout.gets_leave(&fleet, "realgar").await;
    assert_eq!(seconds(&rollout.waits(&fleet, "stibnite").await), 0, "one at a time");
    let view = rollout.show(&fleet).await;
    assert_eq!((view.waves[0].soaked, view.waves[1].in_flight, view.waves[1].open), (1, 1, true));
    assert_eq!(view.members[0].said, Some(Said::Soaked));
    rollout.says(&fleet, "realgar", Said::Confirmed).await;
    rollout.gets_leave(&fleet, "stibnite").await;
    for name in ["realgar", "stibnite"] {
        rollout.says(&fleet, name, Said::Soaked).await;
    }
    assert_eq!(rollout.show(&fleet).await.state, RolloutState::Done);
    let list: Vec<RolloutView> = fleet.operate(Method::GET, OPERATOR_ROLLOUTS, vec![]).await.good();
    assert_eq!(list[0].state, RolloutState::Done);
}

#[tokio::test]
async fn a_machine_that_waits_in_a_poll_is_woken_by_its_leave() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar"], &["stibnite"]], 1).await;
    rollout.gets_leave(&fleet, "cinnabar").await;
    let bearer = rollout.waits(&fleet, "stibnite").await.bearer;
    let path = api::poll_path(&"stibnite".parse().unwrap(), Some(Generation::FIRST), 600);
    let poll = fleet.get(&path, &bearer);
    let soaks = async {
        until("it waits", || fleet.server.as_ref().unwrap().waiting_machines() == 1).await;
        rollout.says(&fleet, "cinnabar", Said::Soaked).await;
    };
    let (reply, ()) = tokio::join!(poll, soaks);
    assert!(reply.good::<PollReply>().check_in);
    assert!(seconds(&rollout.waits(&fleet, "stibnite").await) > 0);
}

#[tokio::test]
async fn the_brake_and_a_pause_take_leave_back_before_they_are_answered() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar"], &["stibnite"]], 1).await;
    rollout.gets_leave(&fleet, "cinnabar").await;
    assert_eq!(brake(&fleet, true).await.unwrap().why.as_deref(), Some("fire"));
    let held = rollout.waits(&fleet, "cinnabar").await.rollout.unwrap();
    assert_eq!(held.seconds, 0);
    assert!(held.why.unwrap().contains("fire"));
    assert_eq!(rollout.show(&fleet).await.state, RolloutState::Paused);
    let found: Option<BrakeView> = fleet.operate(Method::GET, OPERATOR_BRAKE, vec![]).await.good();
    assert_eq!(found.unwrap().by, fleet.operator.public());
    brake(&fleet, true).await;
    assert_eq!(brake(&fleet, false).await, None);
    rollout.gets_leave(&fleet, "cinnabar").await;
    for _ in 0..2 {
        rollout.ask(&fleet, Wish::Pause, false).await.good::<RolloutView>();
        assert_eq!(seconds(&rollout.waits(&fleet, "cinnabar").await), 0);
    }
    rollout.ask(&fleet, Wish::Run, false).await.good::<RolloutView>();
    rollout.gets_leave(&fleet, "cinnabar").await;
    let view: RolloutView = rollout.ask(&fleet, Wish::Stop, false).await.good();
    assert_eq!(view.state, RolloutState::Stopped);
    assert_eq!(seconds(&rollout.waits(&fleet, "cinnabar").await), 0);
    rollout.ask(&fleet, Wish::Run, false).await.refused(409, ProblemCode::Conflict);
    rollout.ask(&fleet, Wish::Stop, false).await.good::<RolloutView>();
    let told =
        ["rollout-planned", "brake-on", "brake-off", "rollout-paused", "rollout-resumed", "rollout-stopped"];
    assert_eq!(actions(&fleet).await, told);
}

#[tokio::test]
async fn a_repeated_check_in_gets_what_is_left_of_its_leave_and_no_more() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar"], &["stibnite"]], 1).await;
    rollout.gets_leave(&fleet, "cinnabar").await;
    let hash = rollout.hash;
    let again = rollout.next(&fleet, "cinnabar", |checkin| checkin.awaits = Some(hash));
    let machine = rollout.machines["cinnabar"].clone();
    let first = seconds(&machine.send_checkin(&fleet, &again).await.good());
    fleet.clock.forward(100);
    assert_eq!(seconds(&machine.send_checkin(&fleet, &again).await.good()), first - 100);
    rollout.ask(&fleet, Wish::Pause, false).await.good::<RolloutView>();
    assert_eq!(seconds(&machine.send_checkin(&fleet, &again).await.good()), 0);
}

#[tokio::test]
async fn what_a_machine_may_not_say_is_not_stored() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar"], &["realgar", "stibnite"]], 1).await;
    fleet.enrolled("stranger", Class::Nixos).await;
    let good = rollout.vouch("cinnabar", Said::Soaked);
    let hostile = [
        // Another machine's word, its word by another key, one of another plan, one of another kind.
        ("stibnite", good.clone()),
        ("cinnabar", rollout.vouch_by("stibnite", "cinnabar", Said::Soaked)),
        ("cinnabar", Vouch { plan: Sha256::of(b"other"), ..good.clone() }),
        ("cinnabar", Vouch { said: Said::Withdrawn, ..good.clone() }),
    ];
    for (name, vouch) in hostile {
        rollout.checks_in(&fleet, name, |checkin| checkin.vouch = Some(vouch)).await;
        assert!(rollout.statements(&fleet, "stibnite").await.is_empty());
    }
    let count = || fleet.sql("SELECT count(*) FROM rollout_members");
    assert_eq!(count().await, "0");
    rollout.checks_in(&fleet, "cinnabar", |checkin| checkin.vouch = Some(good.clone())).await;
    assert_eq!(rollout.statements(&fleet, "stibnite").await.len(), 1);
    // What it takes back stays taken back, whatever it says later.
    let withdrawn = rollout.vouch("cinnabar", Said::Withdrawn);
    rollout.checks_in(&fleet, "cinnabar", |checkin| checkin.vouch = Some(withdrawn)).await;
    rollout.checks_in(&fleet, "cinnabar", |checkin| checkin.vouch = Some(good)).await;
    let statements = rollout.statements(&fleet, "stibnite").await;
    assert_eq!(statements.iter().map(|one| one.said).collect::<Vec<_>>(), [Said::Withdrawn]);
    assert_eq!(rollout.show(&fleet).await.members[0].said, Some(Said::Withdrawn));
    let bearer = fleet.session().await;
    let path = api::statements_path(&rollout.hash, &"stranger".parse().unwrap(), 1);
    fleet.get(&path, &bearer).await.refused(404, ProblemCode::NotFound);
    let path = api::statements_path(&rollout.hash, &"stibnite".parse().unwrap(), 7);
    fleet.get(&path, &bearer).await.refused(404, ProblemCode::NotFound);
}

#[tokio::test]
async fn failures_beyond_the_budget_halt_it_until_an_operator_has_looked() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar", "realgar"], &["stibnite"]], 2).await;
    rollout.gets_leave(&fleet, "cinnabar").await;
    rollout
        .checks_in(&fleet, "cinnabar", |checkin| {
            (checkin.phase, checkin.phase_generation) = (Phase::NeedsHuman, Some(Generation::FIRST));
        })
        .await;
    let view = rollout.show(&fleet).await;
    assert_eq!((view.state, view.failures), (RolloutState::Halted, 1), "{}", view.why);
    assert_eq!(seconds(&rollout.waits(&fleet, "realgar").await), 0);
    let view: RolloutView = rollout.ask(&fleet, Wish::Run, true).await.good();
    assert_eq!((view.state, view.failures), (RolloutState::Running, 0), "{}", view.why);
    rollout.gets_leave(&fleet, "realgar").await;
    assert_eq!(actions(&fleet).await, ["rollout-planned", "rollout-halted", "rollout-failures-forgiven"]);
}

#[tokio::test]
async fn revoking_one_that_vouches_halts_it() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar", "realgar"], &["stibnite"]], 1).await;
    rollout.gets_leave(&fleet, "cinnabar").await;
    rollout.says(&fleet, "cinnabar", Said::Soaked).await;
    rollout.gets_leave(&fleet, "stibnite").await;
    let path = format!("{}/revoke", api::operator_machine(&"cinnabar".parse().unwrap()));
    fleet.operate(Method::POST, &path, vec![]).await.good::<MachineView>();
    let view = rollout.show(&fleet).await;
    assert_eq!(view.state, RolloutState::Halted, "{}", view.why);
    assert_eq!(seconds(&rollout.waits(&fleet, "stibnite").await), 0);
}

#[tokio::test]
async fn a_machine_leaves_a_rollout_by_its_next_generation() {
    let fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar"], &["stibnite"]], 1).await;
    rollout.gets_leave(&fleet, "cinnabar").await;
    let next = fleet.generation("cinnabar", Class::Nixos, 2);
    fleet.publish(&"cinnabar".parse().unwrap(), &next).await.good::<MachineView>();
    let reply = rollout.checks_in(&fleet, "cinnabar", |_| ()).await;
    assert_eq!((reply.rollout, fleet.view("cinnabar").await.rollout), (None, None));
    let view = rollout.show(&fleet).await;
    assert_eq!((view.members[0].state, view.waves[0].left), (MemberState::Left, 1));
}

#[tokio::test]
async fn a_restored_backup_hears_again_what_its_machines_said() {
    let mut fleet = Fleet::start().await;
    let mut rollout = Rollout::published(&fleet, &[&["cinnabar"], &["stibnite"]], 1).await;
    rollout.says(&fleet, "cinnabar", Said::Confirmed).await;
    let backup = fleet.dir.path().join("backup");
    muster_server::backup::backup(&fleet.config_file(), &backup, false, &*fleet.clock).await.unwrap();
    rollout.says(&fleet, "cinnabar", Said::Soaked).await;
    assert_eq!(rollout.statements(&fleet, "stibnite").await.len(), 1);
    fleet.down().await;
    if let Some(lost) = &fleet.postgres {
        let new = crate::support::postgres::Place::new().await.unwrap();
        let config = std::fs::read_to_string(fleet.config_file()).unwrap();
        std::fs::write(fleet.config_file(), config.replace(&lost.setting(), &new.setting())).unwrap();
        fleet.postgres = Some(new);
    } else {
        for name in ["muster.db", "muster.db-wal", "muster.db-shm"] {
            let _ = std::fs::remove_file(fleet.dir.path().join("data").join(name));
        }
    }
    muster_server::backup::restore(&fleet.config_file(), &backup, &[], &*fleet.clock).await.unwrap();
    fleet.up().await;
    fleet.clock.forward(60);
    assert!(rollout.statements(&fleet, "stibnite").await.is_empty(), "it was said after the backup");
    rollout.says(&fleet, "cinnabar", Said::Soaked).await;
    assert_eq!(rollout.statements(&fleet, "stibnite").await.len(), 1);
}

#[tokio::test]
async fn two_controllers_together_give_no_more_leave_than_the_plan_allows() {
    let fleet = Fleet::start().await;
    let names: Vec<String> = (0..12).map(|n| format!("m{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut rollout = Rollout::published(&fleet, &[&names], 3).await;
    let there = if fleet.postgres.is_some() { Some(fleet.beside("").await) } else { None };
    for (number, name) in names.iter().enumerate() {
        let at = there.as_ref().filter(|_| number % 2 == 0).unwrap_or(&fleet);
        rollout.waits(at, name).await;
    }
    // Both are asked at the same time, again and again, while their own rounds go on.
    for _ in 0..20 {
        let asked = (0..4).map(|n| rollout.show(there.as_ref().filter(|_| n % 2 == 0).unwrap_or(&fleet)));
        for view in futures_util::future::join_all(asked).await {
            assert_eq!(view.waves[0].in_flight, 3);
        }
    }
    let mut with_leave = 0;
    for name in &names {
        with_leave += u32::from(seconds(&rollout.waits(&fleet, name).await) > 0);
    }
    assert_eq!(with_leave, 3);
}

#[tokio::test]
async fn a_plan_is_kept_while_a_generation_names_it_and_forgotten_afterwards() {
    let mut fleet = Fleet::start().await;
    let named = Rollout::published(&fleet, &[&["cinnabar"]], 1).await;
    let unused = Plan { nonce: Sha256::of(b"unused"), ..named.plan.clone() };
    send(&fleet, &unused.to_bytes().unwrap()).await.good::<RolloutView>();
    assert_eq!(fleet.sql("SELECT count(*) FROM plans").await, "2");
    fleet.down().await;
    let config = muster_server::config::ServerConfig::load(&fleet.config_file()).unwrap();
    let id = fleet.fleet_id();
    let store = muster_server::store::Store::open_in(&config.database, &config.data, &id).await.unwrap();
    store.forget_plans(fleet.now_s() * 1000 + 1).await.unwrap();
    store.close().await;
    fleet.up().await;
    assert_eq!(fleet.sql("SELECT count(*) FROM plans").await, "1");
    let bearer = fleet.session().await;
    assert_eq!(fleet.get(&api::plan_path(&named.hash), &bearer).await.status, StatusCode::OK);
}
