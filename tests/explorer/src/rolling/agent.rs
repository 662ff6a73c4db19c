//! What a machine does, by the decisions of the agent that ships: what is remembered is made into its
//! records, one of its functions is asked, and the records are made small again.

use std::time::Duration;

use muster_agent::core::plan::{Controller, Observed, Step, awaits_turn, next};
use muster_agent::core::policy::{Circumstances, Rules};
use muster_agent::core::records::{Journal, Known, Old, Quarantined, Settled, Transaction};
use muster_agent::core::rollout::{Answered, Counted, Followed, Heard, Says, Seen, Turn};
use muster_agent::core::state::State;
use muster_protocol::ids::{Epoch, Generation, StorePath};
use muster_protocol::machine::Class;
use muster_protocol::plan::{Gate, Lack, Leave, Place, Plan, Said};
use muster_protocol::policy::Policy;
use muster_protocol::report::Reason;
use muster_protocol::target::Target;

use super::guard::Break;
use super::machine::{Answer, End, Following, Kind, Lot, Machine, Move};
use super::plans::{Key, TICK_MS, TICK_S, path};
use super::proof;
use super::stage::{Stage, once};

/// Now, in time awake and by the wall clock.
const AWAKE: Duration = Duration::from_secs(1_000_000 * TICK_S);
const AT: i64 = 1_800_000_000_000;

fn ago(ticks: u8) -> Duration {
    AWAKE.saturating_sub(Duration::from_secs(u64::from(ticks) * TICK_S))
}

fn ago_at(ticks: u8) -> i64 {
    AT - i64::from(ticks) * i64::try_from(TICK_MS).unwrap_or(0)
}

/// One machine of a stage.
#[derive(Clone, Copy)]
pub struct Agent<'a> {
    pub stage: &'a Stage,
    pub who: usize,
}

impl<'a> Agent<'a> {
    /// What it does next.
    pub fn kind(self, machine: &Machine) -> Kind {
        let who = u8::try_from(self.who).unwrap_or(0);
        once(&self.stage.known.steps, (who, *machine), || self.decide(machine))
    }

    /// What becomes of it.
    pub fn after(self, machine: &Machine, then: Move) -> Machine {
        let who = u8::try_from(self.who).unwrap_or(0);
        once(&self.stage.known.moves, (who, *machine, then), || {
            self.moved(*machine, then).unwrap_or(*machine)
        })
    }

    /// The plan in whose rollout it says that it waits for its turn alone.
    pub fn awaits(self, machine: &Machine) -> u8 {
        if self.kind(machine) == Kind::Awaits { machine.open } else { 0 }
    }

    /// What it says of a plan in a check-in, signed by the key that the plan has of it.
    pub fn says(self, machine: &Machine) -> Option<(u8, Said)> {
        let followed = self.followed(machine)?;
        let keys = match machine.key {
            Key::Named => vec![Key::Named],
            // The former key is still at hand.
            Key::Rotated => vec![Key::Rotated, Key::Named],
            Key::Replaced => vec![Key::Replaced],
        };
        let held = keys.into_iter().find(|key| self.stage.key(self.who, *key) == followed.key);
        held.map(|_| (machine.followed.map_or(0, |followed| followed.plan), followed.said))
    }

    fn target(self, generation: u8) -> Option<&'a Target> {
        self.stage.target(generation, self.who)
    }

    fn system(self, generation: u8) -> Option<StorePath> {
        path(self.stage.system(generation), "")
    }

    fn running(self, machine: &Machine) -> Option<StorePath> {
        if machine.drifted { path(9, "") } else { self.system(machine.confirmed) }
    }

    fn place(self, generation: u8) -> Option<(Place, &'a Plan)> {
        let place = self.target(generation)?.rollout?;
        Some((place, &self.stage.plan(generation)?.plan))
    }

    fn followed(self, machine: &Machine) -> Option<Followed> {
        let Following { plan, ticks, said } = machine.followed?;
        let (soaked_ms, target) = (u64::from(ticks) * TICK_MS, self.target(plan)?);
        let begun = Followed::of(&self.stage.plan(plan)?.plan, &self.stage.names[self.who], target)?;
        Some(Followed { soaked_ms, said, ..begun })
    }

    fn small(followed: &Followed) -> Option<Following> {
        let plan = u8::try_from(followed.generation.get()).ok()?;
        let ticks = u8::try_from(followed.soaked_ms / TICK_MS).ok()?;
        Some(Following { plan, ticks, said: followed.said })
    }

    fn journal(self, machine: &Machine) -> Journal {
        let known = |target: &Target| Known {
            generation: target.generation,
            output: target.output.clone(),
            derivation: Some(target.derivation.clone()),
            at: 0,
            target: Some(Box::new(target.clone())),
        };
        let condemned = (0..8_u8).filter(|system| machine.condemned & (1 << system) != 0);
        let quarantine = condemned.filter_map(|system| {
            let (derivation, generation) = (path(system, ".drv")?, Generation::FIRST);
            Some(Quarantined { derivation, generation, detail: String::new(), at: 0 })
        });
        let mut journal = Journal {
            confirmed: self.target(machine.confirmed).map(known),
            previous: path(0, ""),
            expected: self.system(machine.confirmed),
            tried: self.target(machine.tried).map(|target| target.generation),
            quarantine: quarantine.collect(),
            drift: path(9, "").filter(|_| machine.drifted),
            followed: self.followed(machine),
            ..Journal::default()
        };
        if machine.lifted
            && let Some(target) = self.target(machine.tried)
        {
            journal.lift(target);
        }
        journal
    }

    fn transaction(self, machine: &Machine) -> Option<Transaction> {
        let target = self.target(machine.open)?;
        let mut open = Transaction::signed(format!("t{}", machine.open), target.clone(), 0);
        open.state = if machine.switches { State::Activating } else { State::Checked };
        Some(open)
    }

    fn heard(self, machine: &Machine) -> Heard {
        let answered = machine.answer.and_then(|Answer { plan, go, awake, wall }| {
            let (seconds, why) = if go { (TICK_S, None) } else { (0, Some("it must wait".to_owned())) };
            let leave = Leave { plan: self.stage.plan(plan)?.hash, seconds, why };
            Some(Answered { leave, sent: ago(awake), sent_at: ago_at(wall) })
        });
        let proven = machine.proof.and_then(|(plan, open)| {
            let gate = if open { Gate::Open } else { Gate::Closed(Lack::NoSuchWave) };
            Some((self.place(plan)?.0, gate))
        });
        Heard { proven, answered, used: None }
    }

    /// What is known of the turn of the newest target.
    fn turn(self, machine: &Machine) -> Option<Turn> {
        let (stage, heard) = (self.stage, self.heard(machine));
        let (place, plan) = self.place(machine.newest)?;
        let mut says = heard.says(&place.plan, AWAKE, AT);
        let mut gate = heard.gate(&stage.names[self.who], place, plan).filter(|_| machine.has_plan);
        let told = machine.answer.filter(|answer| answer.go);
        if stage.breaks(Break::BeginWithoutGate) && says == Says::Go {
            gate = Some(Gate::Open);
        }
        if stage.breaks(Break::BeginWithoutLeave) && gate == Some(Gate::Open) {
            says = Says::Go;
        }
        if stage.breaks(Break::CountLeaveAwake) && told.is_some_and(|told| told.awake == 0) {
            says = Says::Go;
        }
        if stage.breaks(Break::TakeAnyLeave) && told.is_some_and(|told| told.wall == 0) {
            says = Says::Go;
        }
        let missing = (!machine.has_plan).then(|| "it was not fetched yet".to_owned());
        Some(Turn { place, missing, is_expired: false, gate, says })
    }

    fn decide(self, machine: &Machine) -> Kind {
        let (journal, transaction, turn) =
            (self.journal(machine), self.transaction(machine), self.turn(machine));
        let running = self.running(machine);
        let rules = Rules::new(&Policy::default(), &Policy::default());
        let circumstances = Circumstances::default();
        let observed = Observed {
            transaction: transaction.as_ref(),
            epoch: Epoch::default(),
            activation: None,
            activator_alive: machine.switches,
            given: None,
            running: running.as_ref(),
            boot: "boot",
            probed: None,
            controller: Controller { answers: true, reached_since_activation: true },
            rollback_asked: false,
            asked: false,
            console: None,
            rules: &rules,
            circumstances: Some(&circumstances),
            turn: turn.as_ref(),
            due: None,
            blockers: None,
            at: AT,
            not_before: None,
            now: AWAKE,
        };
        match next(&observed, &journal, self.target(machine.newest)) {
            Step::StartActivator => Kind::Starts,
            Step::Begin | Step::Supersede => Kind::Opens,
            Step::Refuse(_) => Kind::Refuses,
            step if awaits_turn(&step, transaction.as_ref()) == Some(true) => Kind::Awaits,
            _ => Kind::Other,
        }
    }

    fn moved(self, before: Machine, then: Move) -> Option<Machine> {
        let stage = self.stage;
        let mut machine = before;
        match then {
            Move::Prepares { generation, with_plan } => {
                let changed = generation != machine.newest;
                machine.newest = generation;
                machine.has_plan = with_plan || (machine.has_plan && !changed);
                match self.decide(&machine) {
                    Kind::Opens => (machine.open, machine.lifted) = (generation, false),
                    Kind::Refuses => {
                        (machine.tried, machine.ended) = (generation, Some(End::Failed));
                        (machine.untold, machine.lifted) = (true, false);
                    }
                    _ => {}
                }
            }
            Move::IsShown(generation) => {
                let (place, _) = self.place(machine.newest)?;
                let shown = stage.plan(generation)?;
                let read = Plan::parse_named(&shown.document, place.plan).ok();
                let fits = read.is_some_and(|plan| self.is_its_plan(&plan, machine.newest));
                machine.has_plan |= fits;
            }
            Move::Hears { answer, ticks, stale } => self.hears(&mut machine, answer, ticks, stale),
            Move::IsHanded(lot, signed) => self.is_handed(&mut machine, lot, signed)?,
            Move::Begins => {
                let mut heard = self.heard(&machine);
                heard.use_leave(AWAKE);
                if !stage.breaks(Break::UseLeaveTwice) {
                    machine.answer = machine.answer.filter(|_| heard.answered.is_some());
                }
                (machine.switches, machine.used) = (true, heard.used.is_some());
            }
            Move::Ends(end) => self.ends(&mut machine, end)?,
            Move::GoesBack => {
                let journal = self.journal(&machine);
                let (known, output) = (journal.confirmed.as_ref()?, path(0, "")?);
                let mut back = Transaction::rollback("back".to_owned(), known, output, Class::Nixos, 0);
                back.state = State::Confirmed { degraded: Vec::new() };
                self.settled(&mut machine, journal, &back);
                machine.ended = Some(End::Failed);
            }
            Move::IsLifted => {
                (machine.lifted, machine.retries, machine.condemned) = (true, true, 0);
                if self.decide(&machine) == Kind::Opens {
                    (machine.open, machine.lifted) = (machine.newest, false);
                }
            }
            Move::Passes => self.passes(&mut machine)?,
            Move::Drifts => {
                machine.drifted = true;
                self.counts(&mut machine, 0)?;
            }
            Move::IsRestored => machine.drifted = false,
            Move::Reboots => {
                let kept = machine.answer.filter(|_| stage.breaks(Break::KeepLeave));
                (machine.answer, machine.used, machine.proof) = (kept, false, None);
            }
            Move::IsReplaced => {
                machine = Machine { key: Key::Replaced, ..Machine::default() };
            }
        }
        Some(machine)
    }

    fn is_its_plan(self, plan: &Plan, generation: u8) -> bool {
        let fits = |target: &Target| {
            let place = target.rollout.as_ref()?;
            let of = (&self.stage.cast.fleet, Epoch::default());
            plan.require_place(of, &self.stage.names[self.who], &target.output, place).ok()
        };
        self.target(generation).and_then(fits).is_some()
    }

    fn hears(self, machine: &mut Machine, answer: Option<(u8, bool)>, ticks: u8, stale: bool) {
        let mut heard = self.heard(machine);
        // A moment before or after the check-in.
        let moment = Duration::from_millis(1);
        let sent = ago(ticks);
        heard.used = machine.used.then(|| if stale { sent + moment } else { sent.saturating_sub(moment) });
        if self.stage.breaks(Break::TakeStaleReply) {
            heard.used = None;
        }
        let leave = answer.and_then(|(plan, go)| {
            let (seconds, why) = if go { (TICK_S, None) } else { (0, Some("it must wait".to_owned())) };
            Some(Leave { plan: self.stage.plan(plan)?.hash, seconds, why })
        });
        heard.answered(leave, sent, ago_at(ticks));
        machine.answer = heard.answered.and_then(|heard| {
            let (plan, go) = answer?;
            let says = heard.says(&self.stage.plan(plan)?.hash, AWAKE, AT);
            let old = u8::from(says != Says::Go && go);
            Some(Answer { plan, go, awake: old, wall: old })
        });
    }

    fn is_handed(self, machine: &mut Machine, lot: Lot, signed: u32) -> Option<()> {
        let (place, plan) = self.place(machine.newest).filter(|_| machine.has_plan)?;
        let proven = proof::gate_of(self.stage, machine.newest, self.who, lot, signed);
        let mut heard = self.heard(machine);
        let name = &self.stage.names[self.who];
        // Of a broken gate what it says is taken as it is.
        let gate = match heard.gate(name, place, plan) {
            Some(Gate::Open) => Gate::Open,
            _ if self.stage.broken.is_some() => proven,
            _ => heard.prove(
                name,
                place,
                plan,
                &proof::statements(self.stage, machine.newest, self.who, lot, signed),
            ),
        };
        machine.proof = Some((machine.newest, gate == Gate::Open));
        Some(())
    }

    fn ends(self, machine: &mut Machine, end: End) -> Option<()> {
        let (journal, mut open) = (self.journal(machine), self.transaction(machine)?);
        let (target, plan) = (self.target(machine.open)?, self.stage.plan(machine.open)?);
        let follows = Followed::of(&plan.plan, &self.stage.names[self.who], target);
        open.old = Some(Old { running: path(0, ""), profile: path(0, "") });
        open.follows = follows.map(Box::new);
        open.state = match end {
            End::Confirmed => State::Confirmed { degraded: Vec::new() },
            End::Failed => {
                State::RolledBack { reason: Reason::HealthCheckFailed, detail: "a check fails".to_owned() }
            }
        };
        self.settled(machine, journal, &open);
        machine.ended = Some(end);
        Some(())
    }

    /// Takes a transaction that has ended into the journal.
    fn settled(self, machine: &mut Machine, mut journal: Journal, ended: &Transaction) {
        let running = match &ended.state {
            State::Confirmed { .. } => Some(ended.output().clone()),
            _ => self.running(machine),
        };
        journal.settle(ended, Settled { running: running.as_ref(), ..Settled::default() });
        let of = |generation: Generation| u8::try_from(generation.get()).unwrap_or(0);
        machine.tried = journal.tried.map_or(0, of);
        machine.confirmed = journal.confirmed.as_ref().map_or(0, |known| of(known.generation));
        machine.followed = journal.followed.as_ref().and_then(Self::small);
        machine.condemned = (0..8_u8)
            .filter(|system| path(*system, ".drv").is_some_and(|path| journal.quarantined(&path).is_some()))
            .fold(0, |all, system| all | 1 << system);
        (machine.open, machine.switches) = (0, false);
        (machine.untold, machine.lifted, machine.drifted) = (true, false, false);
        // A newer generation may have come meanwhile.
        if self.decide(machine) == Kind::Opens {
            machine.open = machine.newest;
        }
    }

    /// A tick passes.
    fn passes(self, machine: &mut Machine) -> Option<()> {
        let older = |age: u8| age.saturating_add(1).min(1);
        if let Some(answer) = machine.answer.as_mut().filter(|answer| answer.go) {
            answer.wall = older(answer.wall);
            answer.awake = if machine.asleep { answer.awake } else { older(answer.awake) };
            if !machine.asleep && !self.stage.breaks(Break::CountLeaveAwake) {
                (answer.awake, answer.wall) = (1, 1);
            }
        }
        if !machine.asleep || self.stage.breaks(Break::SoakAsleep) {
            self.counts(machine, TICK_MS)?;
        }
        Some(())
    }

    /// What the soak makes of that so much time awake has passed.
    fn counts(self, machine: &mut Machine, passed_ms: u64) -> Option<()> {
        let Some(followed) = self.followed(machine) else { return Some(()) };
        let confirmed = Some(machine.confirmed) == machine.followed.map(|followed| followed.plan);
        let mut drifted = confirmed && !machine.switches && machine.drifted;
        let mut runs =
            confirmed && !machine.switches && self.running(machine).as_ref() == Some(&followed.output);
        if self.stage.breaks(Break::SoakThroughDrift) && followed.said == Said::Confirmed {
            (drifted, runs) = (false, confirmed && !machine.switches);
        }
        if self.stage.breaks(Break::NeverWithdraw) && followed.said == Said::Soaked {
            drifted = false;
        }
        let failed = if machine.ill { vec!["app.service".to_owned()] } else { Vec::new() };
        let checks_pass = self.stage.breaks(Break::SkipLastChecks) || !machine.ill;
        let failed = if checks_pass { Vec::new() } else { failed };
        let counted = match followed.count(Seen { runs, drifted, passed_ms }) {
            Counted::Nothing => return Some(()),
            Counted::Changed(changed) => *changed,
            Counted::Over => followed.examined(checks_pass, &failed),
        };
        machine.followed = Self::small(&counted);
        Some(())
    }
}
