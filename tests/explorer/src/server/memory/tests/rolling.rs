//! Rollouts: plans, what is asked of them, what machines say, and what is decided.

use muster_protocol::operator::{AskRollout, SetBrake, Wish};
use muster_protocol::plan::{Failure, Place, Plan, Said, Vouch, Voucher, Wave};
use muster_server::core::rollouts::facts::{Facts, Observed, Seen};
use muster_server::core::rollouts::{self, Known, Turn};
use muster_server::rollout::deciding::{self, Of};

use super::*;

/// Two plans of both machines, one after the other, whose keys are those of any machine.
fn plan(cast: &Cast, n: u8) -> (Sha256, Plan, Vec<u8>) {
    let output = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system";
    let wave = |(number, machine): (u8, &MachineName)| Wave {
        name: format!("wave-{number}"),
        members: vec![machine.clone()],
        vouchers: vec![Voucher {
            machine: machine.clone(),
            key: cast.key(MACHINES + number),
            output: output.parse().unwrap(),
        }],
        at_least: 1,
        percent: 0,
        soak_seconds: 1,
        max_in_flight: 1,
        windows: vec![],
    };
    let plan = Plan {
        fleet: cast.fleet,
        epoch: Epoch::default(),
        name: "weekly".parse().unwrap(),
        nonce: Sha256::of(&[n]),
        waves: (0..).zip(&cast.names).map(wave).collect(),
        after: vec![],
        budget: 0,
        failures: Failure::all(),
    };
    let document = plan.to_bytes().unwrap();
    (Sha256::of(&document), plan, document)
}

impl Both {
    fn any_plan(&mut self) -> (Sha256, Plan, Vec<u8>) {
        plan(&self.cast, u8::from(self.random.yes(2)))
    }

    /// Mostly none, and none of a plan that is not stored.
    pub(super) fn turn_of(&mut self, name: &MachineName) -> Option<Box<Turn>> {
        let (hash, plan, _) = self.any_plan();
        if self.random.yes(3) || !self.memory.rollouts.contains_key(&hash) {
            return None;
        }
        let wave = self.cast.names.iter().position(|other| other == name)?;
        let place = Place { plan: hash, wave: u32::try_from(wave).unwrap() };
        Turn::of_new(&plan, place).map(Box::new)
    }

    /// The store does not ask whether it is signed.
    pub(super) fn vouch(&mut self) -> Option<Vouch> {
        let (plan, ..) = self.any_plan();
        let said =
            [Said::Confirmed, Said::Soaked, Said::Withdrawn][usize::try_from(self.random.below(3)).unwrap()];
        let signature = Signature::from_bytes([u8::try_from(self.random.below(4)).unwrap(); 64]);
        self.random.yes(3).then_some(Vouch { plan, said, signature })
    }

    pub(super) async fn roll(&mut self, context: &AuditContext<'_>) -> &'static str {
        let (hash, plan, document) = self.any_plan();
        match self.random.below(4) {
            0 => {
                let open = self.memory.rollouts.values().filter(|kept| kept.open).count() as u64;
                let known = Known { stored: self.memory.rollouts.contains_key(&hash), open };
                let decided = rollouts::plan(&known, (hash, &plan, &document), context);
                let here = decided.map(|decided| self.keep(decided)).map_err(|refusal| refusal.to_string());
                assert_eq!(here, of_store(self.store.store_plan((hash, &plan, &document), context).await));
                "plan"
            }
            1 => {
                let asked = SetBrake { on: self.random.yes(2), why: Some("look".into()) };
                let decided = rollouts::brake(self.memory.brake.as_ref(), &asked, context);
                let here = self.keep(decided);
                assert_eq!(here, self.store.set_brake(&asked, context).await.unwrap());
                "brake"
            }
            _ => {
                let wish = match self.random.below(9) {
                    0 => Wish::Stop,
                    1..=3 => Wish::Pause,
                    _ => Wish::Run,
                };
                let ask = AskRollout { wish, forgive: self.random.yes(4), why: None };
                let asking = self.random.yes(2).then_some((&ask, *context));
                let of = Of {
                    hash,
                    plan: &plan,
                    epoch: Epoch::default(),
                    away_ms: 60_000,
                    now: self.now,
                    is_signed: &|_, _, _| true,
                };
                let decided = deciding::decide(&of, self.memory.facts_of_rollout(&hash).as_ref(), asking);
                let here = decided.map(|decided| self.keep(decided)).map_err(|refusal| refusal.to_string());
                let decision = |facts: Option<&Facts>| deciding::decide(&of, facts, asking);
                assert_eq!(here, of_store(self.store.decide_rollout((hash, &plan), decision).await));
                "decide about a rollout"
            }
        }
    }

    pub(super) async fn compare_rollouts(&self, at: &str) {
        let mut rollouts: Vec<_> = self.memory.rollouts.values().cloned().collect();
        rollouts.sort_by_key(|rollout| (std::cmp::Reverse(rollout.at), rollout.plan));
        assert_eq!(self.store.rollouts().await.unwrap(), rollouts, "{at}");
        let open: BTreeSet<_> = rollouts.iter().filter(|one| one.open).map(|one| one.plan).collect();
        assert_eq!(BTreeSet::from_iter(self.store.open_rollouts().await.unwrap()), open, "{at}");
        assert_eq!(self.store.brake().await.unwrap(), self.memory.brake, "{at}");
        for plan in self.memory.rollouts.keys() {
            let document = self.store.plan(plan).await.unwrap().unwrap();
            assert_eq!(Sha256::of(&document), *plan, "{at}");
            let names: Vec<&MachineName> = self.cast.names.iter().collect();
            let here: BTreeMap<_, _> = self.memory.recorded(plan);
            assert_eq!(self.store.recorded(plan, &names).await.unwrap(), here, "{at}");
        }
    }
}

impl Memory {
    fn recorded(&self, plan: &Sha256) -> BTreeMap<MachineName, Recorded> {
        let of_it = self.members.iter().filter(|((of, _), _)| of == plan);
        of_it.map(|((_, name), recorded)| (name.clone(), recorded.clone())).collect()
    }

    fn facts_of_rollout(&self, plan: &Sha256) -> Option<Facts> {
        let kept = self.rollouts.get(plan)?;
        let seen = |(name, row): (&MachineName, &Row)| {
            let mut generations = self.generations.iter().filter(|((of, _), _)| of == name);
            let seen = Seen {
                revoked: row.revoked_at.is_some(),
                seen_at: row.seen_at,
                observed: row.observed.as_deref().and_then(Observed::read),
                outcome: row.outcome.clone(),
                published: row.published,
                turn: row.turn.clone(),
                named: generations.any(|(_, stored)| stored.plan == Some(*plan)),
            };
            (name.clone(), seen)
        };
        Some(Facts {
            rollout: kept.clone(),
            brake: self.brake.clone(),
            machines: self.machines.iter().map(seen).collect(),
            members: self.recorded(plan),
        })
    }
}
