//! A rollout as one machine lives it, with the real runner and its files, in virtual time.

use muster_protocol::api;
use muster_protocol::checkin::{CheckIn, UNDERSTANDS};
use muster_protocol::enrol::Secret;
use muster_protocol::ids::{Epoch, Sha256, StorePath};
use muster_protocol::keys::SecretKey;
use muster_protocol::plan::{
    Claim, FEATURE, Failure, Leave, Place, Plan, Said, Statement, Statements, Voucher, Wave,
};
use muster_protocol::report::Event;
use muster_protocol::witness::Witness;

use super::*;
use crate::identity::save_witness;

const SOAK: Duration = Duration::from_secs(600);

/// A machine that runs generation 1, and generation 2 of a rollout that is not published yet.
struct Rollout {
    hour: Hour,
    plan: Plan,
    hash: Sha256,
    target: Target,
    /// The canary's key.
    canary: SecretKey,
    witness: Witness,
}

fn wave(name: &str, machine: &str, key: PublicKey, output: &StorePath) -> Wave {
    let machine = machine.parse::<muster_protocol::ids::MachineName>().unwrap();
    Wave {
        name: name.into(),
        members: vec![machine.clone()],
        vouchers: vec![Voucher { machine, key, output: output.clone() }],
        at_least: 1,
        percent: 0,
        soak_seconds: SOAK.as_secs(),
        max_in_flight: 1,
        windows: vec![],
    }
}

impl Rollout {
    /// The machine is in this wave: the first, or the one behind the canary.
    async fn new(own: u32) -> Self {
        let hour = Hour::begin(0, None).await;
        let witness = Secret::generate().unwrap().witness();
        save_witness(&hour.machine.config.state_dir, &witness).unwrap();
        hour.until("the first generation", 10 * MINUTE, || hour.is_right()).await.unwrap();
        let plain = wanted(Generation::new(2).unwrap());
        let canary = SecretKey::generate().unwrap();
        let mut waves = vec![
            wave("canaries", "canary", canary.public(), &path("canary")),
            wave("all", "m", hour.first_key, &plain.output),
        ];
        if own == 0 {
            waves.reverse();
        }
        let plan = Plan {
            fleet: hour.line.with(|honest| honest.fleet()),
            epoch: Epoch::default(),
            name: "weekly".parse().unwrap(),
            nonce: Sha256::of(b"nonce"),
            waves,
            after: vec![],
            budget: 0,
            failures: Failure::all(),
        };
        let hash = Sha256::of(&plan.to_bytes().unwrap());
        let target = Target {
            rollout: Some(Place { plan: hash, wave: own }),
            requires: vec![FEATURE.to_owned()],
            ..plain
        };
        Self { hour, plan, hash, target, canary, witness }
    }

    /// The next rollout of the same machines, with another system.
    fn follow(&mut self) {
        let plain = wanted(self.target.generation.next().unwrap());
        self.plan.nonce = Sha256::of(plain.output.as_str().as_bytes());
        for voucher in self.plan.waves.iter_mut().flat_map(|wave| &mut wave.vouchers) {
            if voucher.machine.as_str() == "m" {
                voucher.output = plain.output.clone();
            }
        }
        self.hash = Sha256::of(&self.plan.to_bytes().unwrap());
        let place = self.target.rollout.map(|place| Place { plan: self.hash, ..place });
        self.target = Target { rollout: place, requires: self.target.requires.clone(), ..plain };
    }

    fn serve_plan(&self, bytes: Vec<u8>) {
        self.hour.line.with(|honest| honest.files.insert(api::plan_path(&self.hash), bytes));
    }

    fn publish(&mut self) {
        self.serve_plan(self.plan.to_bytes().unwrap());
        self.publish_alone();
    }

    fn publish_alone(&mut self) {
        self.hour.newest = self.target.clone();
        self.hour.line.publish(&self.target);
    }

    /// What the controller shows of the canary.
    fn serve_statements(&self, said: &[Said]) {
        let voucher = self.plan.voucher(&"canary".parse().unwrap()).unwrap();
        let statement = |said: &Said| {
            let claim = Claim { hash: self.hash, plan: &self.plan, voucher, said: *said };
            Statement { machine: voucher.machine.clone(), said: *said, signature: claim.sign(&self.canary) }
        };
        let statements = Statements { statements: said.iter().map(statement).collect() };
        let bytes = serde_json::to_vec(&statements).unwrap();
        self.hour.line.with(|honest| honest.files.insert(self.statements_path(), bytes));
    }

    fn statements_path(&self) -> String {
        format!("{}/statements", api::plan_path(&self.hash))
    }

    /// From its next check-in on.
    fn says(&self, leave: Option<Leave>) {
        self.hour.line.with(|honest| honest.leave = leave);
        self.hour.line.call();
    }

    fn go(&self) {
        self.says(Some(Leave { plan: self.hash, seconds: 600, why: None }));
    }

    fn asked(&self, path: &str) -> usize {
        self.hour.line.with(|honest| honest.paths.iter().filter(|asked| *asked == path).count())
    }

    fn last(&self) -> CheckIn {
        self.hour.line.with(|honest| honest.last.clone()).unwrap()
    }

    fn note(&self) -> String {
        self.last().note.unwrap_or_default()
    }

    fn skipped(&self) -> usize {
        self.hour.line.with(|honest| {
            let skipped =
                |event: &EventKind| matches!(event, EventKind::Refused { attack: Attack::SkippedWave, .. });
            honest.stored.iter().filter(|(_, event)| skipped(&event.kind)).count()
        })
    }

    async fn until(&self, what: &str, limit: Duration, come: impl Fn() -> bool) -> Duration {
        self.hour.until(what, limit, come).await.unwrap()
    }

    /// It has built the generation, asks for its turn, and stays where it is for an hour.
    async fn waits(&self) {
        self.until("its wait", 10 * MINUTE, || self.last().awaits == Some(self.hash)).await;
        tokio::time::sleep(HOUR).await;
        assert!(!self.runs(), "{}", self.hour.stands());
        assert_eq!(self.last().awaits, Some(self.hash), "{}", self.note());
    }

    fn runs(&self) -> bool {
        self.hour.runs_newest()
    }

    async fn switches(&self) {
        self.until("its turn", 10 * MINUTE, || self.hour.is_right()).await;
    }

    /// What the machine says of its generation, if that is signed by the key that the plan has of it.
    fn vouches(&self) -> Option<Said> {
        let vouch = self.last().vouch?;
        let voucher = self.plan.voucher(&"m".parse().unwrap()).unwrap();
        let claim = Claim { hash: self.hash, plan: &self.plan, voucher, said: vouch.said };
        claim.verify(&vouch.signature).unwrap();
        assert_eq!(vouch.plan, self.hash);
        Some(vouch.said)
    }

    async fn restarts(&mut self) {
        self.hour.happens(Happens::Restart).await;
    }

    fn runs_system(&self, system: &StorePath) {
        let link = self.hour.machine.layout.current_system();
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(system.as_str(), link).unwrap();
    }
}

fn live(story: impl AsyncFnOnce()) {
    logged(u64::MAX, None, async {
        story().await;
        Ok(Duration::ZERO)
    })
    .unwrap();
}

#[test]
fn no_machine_switches_without_its_gate_whatever_the_controller_says() {
    live(async || {
        let mut it = Rollout::new(1).await;
        it.publish();
        it.waits().await;
        assert!(it.note().starts_with("waits for its wave"), "{}", it.note());
        // Leave, and no statement of anybody; nor one that does not count.
        let before = it.hour.line.with(|honest| honest.heard);
        for shown in
            [None, Some(vec![]), Some(vec![Said::Confirmed]), Some(vec![Said::Soaked, Said::Withdrawn])]
        {
            if let Some(shown) = shown {
                it.serve_statements(&shown);
            }
            it.go();
            it.waits().await;
            assert!(it.note().starts_with("the controller says go, but 0 of the 1"), "{}", it.note());
            assert_eq!(it.last().refused, Some(Attack::SkippedWave.in_check_in()));
        }
        assert_eq!(it.skipped(), 1, "it is reported once");
        let heard = it.hour.line.with(|honest| honest.heard) - before;
        assert!(heard < 1500, "{heard} requests in four hours");
        // Also after a restart, and until it is right again.
        it.restarts().await;
        it.waits().await;
        it.serve_statements(&[Said::Soaked]);
        it.go();
        it.switches().await;
        assert_eq!(it.last().refused, None);
    });
}

#[test]
fn an_open_gate_without_leave_is_not_enough_and_leave_of_another_plan_is_none() {
    live(async || {
        let mut it = Rollout::new(1).await;
        it.serve_statements(&[Said::Soaked]);
        it.publish();
        it.waits().await;
        let why = "5 machines of this wave are switching";
        it.says(Some(Leave { plan: it.hash, seconds: 0, why: Some(why.into()) }));
        it.waits().await;
        assert!(it.note().ends_with(why), "{}", it.note());
        it.says(Some(Leave { plan: Sha256::of(b"other"), seconds: 600, why: None }));
        it.waits().await;
        assert_eq!(it.asked(&it.statements_path()), 0, "nothing is fetched without leave");
        it.go();
        it.switches().await;
        assert_eq!((it.asked(&it.statements_path()), it.skipped()), (1, 0));
        assert_eq!(it.last().awaits, None);
    });
}

#[test]
fn leave_that_ended_before_it_could_be_used_is_asked_for_again_once_a_minute_at_most() {
    live(async || {
        let mut it = Rollout::new(1).await;
        it.publish();
        it.waits().await;
        it.says(Some(Leave { plan: it.hash, seconds: 1, why: None }));
        it.waits().await;
        // Each leave is answered by one look at the proof.
        let asked = it.asked(&it.statements_path());
        assert!((20..=70).contains(&asked), "{asked} times in an hour");
        assert_eq!(it.skipped(), 1);
    });
}

#[test]
fn leave_is_of_no_use_without_a_plan_and_survives_no_restart() {
    live(async || {
        let mut it = Rollout::new(0).await;
        it.publish_alone();
        let said = || it.last().phase_generation.map(Generation::get) == Some(2);
        it.until("generation 2", 10 * MINUTE, said).await;
        // The plan cannot be had, and what is said meanwhile lasts ten seconds.
        it.says(Some(Leave { plan: it.hash, seconds: 10, why: None }));
        tokio::time::sleep(10 * MINUTE).await;
        assert!(it.note().contains("plan of its rollout"), "{}", it.note());
        assert_eq!(it.last().awaits, None, "no leave helps it");
        it.hour.line.with(|honest| honest.leave = None);
        it.serve_plan(it.plan.to_bytes().unwrap());
        it.waits().await;
        // Leave is given, and the process ends before it looks.
        it.go();
        it.hour.line.with(|honest| honest.leave = None);
        it.restarts().await;
        it.waits().await;
        it.go();
        it.switches().await;
    });
}

#[test]
fn leave_that_is_taken_back_before_the_proof_came_starts_nothing() {
    live(async || {
        let mut it = Rollout::new(1).await;
        it.publish();
        it.waits().await;
        it.go();
        it.until("the refusal", 10 * MINUTE, || it.last().refused.is_some()).await;
        it.serve_statements(&[Said::Soaked]);
        it.says(None);
        it.waits().await;
        assert_eq!(it.last().refused, None, "the controller no longer says so");
    });
}

#[test]
fn a_statement_that_is_taken_back_between_leave_and_fetch_is_no_attack() {
    live(async || {
        let mut it = Rollout::new(1).await;
        it.publish();
        it.waits().await;
        let asked = it.asked(&it.statements_path());
        let why = "a canary is no longer well";
        let wait = Leave { plan: it.hash, seconds: 0, why: Some(why.into()) };
        it.hour.line.with(|honest| honest.then = Some(wait));
        it.go();
        it.until("the fetch", 10 * MINUTE, || it.asked(&it.statements_path()) > asked).await;
        let took = it.until("the reason", 10 * MINUTE, || it.note().contains("of the 1")).await;
        assert!(took < MINUTE, "it asks the controller again at once, and took {took:?}");
        it.waits().await;
        assert_eq!((it.last().refused, it.skipped()), (None, 0), "{}", it.note());
        assert_eq!(it.asked(&it.statements_path()), asked + 1);
        // Nor does one such moment make the next one an attack.
        let wait = Leave { plan: it.hash, seconds: 0, why: Some(why.into()) };
        it.hour.line.with(|honest| honest.then = Some(wait));
        it.go();
        it.waits().await;
        assert_eq!((it.last().refused, it.skipped()), (None, 0), "{}", it.note());
        it.serve_statements(&[Said::Soaked]);
        it.go();
        it.switches().await;
    });
}

#[test]
fn a_plan_that_is_refused_holds_the_machine_until_the_right_one_comes() {
    live(async || {
        let mut it = Rollout::new(0).await;
        it.go();
        let mut other = it.plan.clone();
        other.nonce = Sha256::of(b"another");
        it.serve_plan(other.to_bytes().unwrap());
        it.publish_alone();
        let refused = || it.last().refused == Some(Attack::MixAndMatch);
        it.until("the refusal", 10 * MINUTE, refused).await;
        tokio::time::sleep(HOUR).await;
        assert!(!it.runs() && it.note().contains("the plan has SHA-256"), "{}", it.note());
        // It is built meanwhile.
        let built = |event: &Event| {
            event.generation == Some(it.target.generation) && matches!(event.kind, EventKind::Built { .. })
        };
        assert!(it.hour.line.with(|honest| honest.stored.iter().any(|(_, event)| built(event))));
        let asked = it.asked(&api::plan_path(&it.hash));
        assert!((2..60).contains(&asked), "{asked} tries in an hour");
        it.serve_plan(it.plan.to_bytes().unwrap());
        it.switches().await;
        assert_eq!(it.last().refused, None);
    });
}

#[test]
fn a_target_that_waited_past_its_signatures_needs_new_ones() {
    live(async || {
        let mut it = Rollout::new(0).await;
        it.hour.line.with(|honest| honest.valid = 2 * 86_400);
        it.publish();
        it.waits().await;
        tokio::time::sleep(Duration::from_secs(3 * 86_400)).await;
        it.go();
        let expired = || it.note().contains("an operator must sign it again");
        it.until("its end", HOUR, expired).await;
        tokio::time::sleep(HOUR).await;
        assert!(!it.runs());
        // Signed again, under a higher number and with the same plan and output.
        it.hour.line.with(|honest| honest.valid = 30 * 86_400);
        it.target.generation = Generation::new(3).unwrap();
        it.publish();
        it.switches().await;
    });
}

#[test]
fn a_voucher_says_what_it_runs_and_that_it_soaked_across_restarts_and_a_rotation() {
    live(async || {
        let mut it = Rollout::new(0).await;
        assert_eq!(it.last().understands, UNDERSTANDS);
        let claim = |it: &Rollout| {
            let (last, fleet) = (it.last(), it.plan.fleet);
            let signing = last.signing.unwrap();
            assert!(it.witness.verifies_key(&fleet, &last.machine, &signing));
            signing.key
        };
        assert_eq!(claim(&it), it.hour.first_key);
        it.go();
        it.publish();
        it.switches().await;
        it.until("its word", MINUTE, || it.vouches() == Some(Said::Confirmed)).await;
        let began = it.hour.machine.clock.awake();
        for _ in 0..3 {
            tokio::time::sleep(Duration::from_secs(150)).await;
            it.restarts().await;
        }
        it.hour.happens(Happens::Rotation).await;
        let rotated = || it.hour.line.with(|honest| honest.key != it.hour.first_key);
        it.until("its new key", 10 * MINUTE, rotated).await;
        it.until("its soak", SOAK, || it.vouches() == Some(Said::Soaked)).await;
        let took = it.hour.machine.clock.awake() - began;
        assert!((SOAK..SOAK + 5 * MINUTE).contains(&took), "{took:?}");
        it.until("its claim", MINUTE, || claim(&it) == it.hour.machine.keys().machine.public()).await;
        // It is repeated, after a restart too, and after a generation of no plan.
        it.restarts().await;
        tokio::time::sleep(HOUR).await;
        it.hour.happens(Happens::Publication).await;
        it.switches().await;
        assert_eq!(it.vouches(), Some(Said::Soaked));
    });
}

#[test]
fn the_soak_of_each_rollout_is_counted_from_its_own_confirmation() {
    live(async || {
        let mut it = Rollout::new(0).await;
        for round in 0..3 {
            it.go();
            it.publish();
            it.switches().await;
            it.until("its word", MINUTE, || it.vouches() == Some(Said::Confirmed)).await;
            let took = it.until("its soak", 2 * SOAK, || it.vouches() == Some(Said::Soaked)).await;
            assert!(took >= SOAK - MINUTE, "rollout {round} soaked for {took:?}");
            // It runs on for a while, as most do.
            tokio::time::sleep(HOUR / (round + 1)).await;
            it.follow();
        }
    });
}

#[test]
fn drift_begins_the_soak_anew_and_withdraws_it_once_it_is_over() {
    live(async || {
        let mut it = Rollout::new(0).await;
        it.go();
        it.publish();
        it.switches().await;
        tokio::time::sleep(SOAK / 2).await;
        it.runs_system(&path("by-hand"));
        tokio::time::sleep(2 * SOAK).await;
        assert_eq!(it.vouches(), Some(Said::Confirmed));
        it.runs_system(&it.target.output);
        let took = it.until("its soak", 2 * SOAK, || it.vouches() == Some(Said::Soaked)).await;
        assert!(took >= SOAK - MINUTE, "{took:?}");
        it.runs_system(&path("by-hand"));
        it.until("its withdrawal", 10 * MINUTE, || it.vouches() == Some(Said::Withdrawn)).await;
        it.runs_system(&it.target.output);
        tokio::time::sleep(2 * SOAK).await;
        assert_eq!(it.vouches(), Some(Said::Withdrawn));
    });
}

#[test]
fn a_machine_whose_key_is_not_that_of_the_plan_says_nothing() {
    live(async || {
        let mut it = Rollout::new(0).await;
        let other = SecretKey::generate().unwrap().public();
        it.plan.waves[0].vouchers[0].key = other;
        it.hash = Sha256::of(&it.plan.to_bytes().unwrap());
        it.target.rollout = Some(Place { plan: it.hash, wave: 0 });
        it.go();
        it.publish();
        it.switches().await;
        tokio::time::sleep(2 * SOAK).await;
        assert_eq!(it.last().vouch, None);
    });
}
