//! Moves the time: machines wake, sleep and work by their timers, and the controller decides whenever
//! something changed, at most every few minutes.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};

use anyhow::{Context as _, Result};
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{RolloutState, Wish};
use muster_protocol::plan::{Failure, Plan, Said, Voucher, machine_lacks, wave_lacks};
use muster_server::rollout::engine::{Belongs, Given, LEAVE_SECONDS, Member, Observed, Stage, decide};

use super::course::{Course, Seen, clock};
use super::dice::Dice;
use super::machine::{DAY, Doing, Fate, HOUR, MINUTE, Machine, Shares, Time};
use super::order::{Order, names, places};
use crate::terminal::count::count;

/// How long a machine may be silent before it counts as away, in seconds: three polls of five minutes.
const AWAY: Time = 17 * MINUTE;
/// How often the controller decides at most, in seconds: as often as a machine polls.
const PACE: Time = 5 * MINUTE;

/// What the controller is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Controller {
    /// It decides as it should
    Honest,
    /// Whoever stole it says "go" to everybody, and knows of no failure
    Stolen,
    /// It does not answer for six hours of each day
    Down,
}

/// What is simulated.
#[derive(Debug, Clone, Copy)]
pub struct Fleet {
    pub machines: usize,
    pub days: u32,
    pub seed: u64,
    pub order: Order,
    pub controller: Controller,
    /// On how many of a thousand machines the generation fails.
    pub bad: u64,
    /// Of those, on how many of a thousand only after its checks have passed.
    pub late: u64,
    /// How many of a thousand machines are laptops.
    pub laptops: u64,
    /// The clock of how many of a thousand machines is wrong.
    pub clocks: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Wakes(usize),
    Sleeps(usize),
    /// A step ends; it counts only if the machine is still at this step.
    Ends(usize, u32),
    Decides,
    Counts,
}

struct World {
    fleet: Fleet,
    plan: Plan,
    /// In the order of their names, which is that of the plan.
    machines: Vec<Machine>,
    names: Vec<MachineName>,
    /// What machines have really signed.
    signed: BTreeSet<(MachineName, Said)>,
    members: BTreeMap<MachineName, Member>,
    events: BinaryHeap<Reverse<(Time, u64, Event)>>,
    count: u64,
    now: Time,
    dice: Dice,
    /// The controller will decide: something changed.
    dirty: bool,
    /// It was done once.
    done: bool,
    /// By the last decision: which waves' machines get leave as soon as they are ready.
    open: Vec<bool>,
    course: Course,
}

/// Runs a fleet through its days.
pub fn run(fleet: Fleet) -> Result<Course> {
    let mut world = World::new(fleet)?;
    let end = Time::from(fleet.days) * DAY;
    while let Some(Reverse((at, _, event))) = world.events.pop() {
        if at > end {
            break;
        }
        world.now = at;
        world.happens(event)?;
    }
    world.now = end;
    Ok(world.end())
}

impl World {
    fn new(fleet: Fleet) -> Result<Self> {
        let mut dice = Dice::new(fleet.seed);
        let names = names(fleet.machines)?;
        let plan = fleet.order.plan(&names)?;
        let waves = places(&plan);
        let vouchers: BTreeSet<&MachineName> =
            plan.waves.iter().flat_map(|wave| &wave.vouchers).map(|voucher| &voucher.machine).collect();
        let shares =
            Shares { laptops: fleet.laptops, bad: fleet.bad, late: fleet.late, clocks: fleet.clocks };
        let machines: Vec<Machine> = names
            .iter()
            .map(|name| Machine::new(waves[name], vouchers.contains(name), shares, &mut dice))
            .collect();
        let open = vec![true; plan.waves.len()];
        let course = Course {
            machines: fleet.machines,
            waves: plan.waves.iter().map(|wave| wave.members.len()).collect(),
            began: vec![None; plan.waves.len()],
            max_in_flight: plan.waves.iter().map(|wave| wave.max_in_flight).max().unwrap_or_default(),
            ..Course::default()
        };
        let here = Member { belongs: Belongs::Here, ..Member::default() };
        let members = names.iter().map(|name| (name.clone(), here.clone())).collect();
        let mut world = Self {
            fleet,
            plan,
            machines,
            names,
            signed: BTreeSet::new(),
            members,
            events: BinaryHeap::new(),
            count: 0,
            now: 0,
            dice,
            dirty: true,
            done: false,
            open,
            course,
        };
        for place in 0..world.machines.len() {
            world.plan_awake(place);
        }
        world.at(0, Event::Decides);
        world.at(0, Event::Counts);
        Ok(world)
    }

    fn at(&mut self, time: Time, event: Event) {
        self.count += 1;
        self.events.push(Reverse((time, self.count, event)));
    }

    fn plan_awake(&mut self, place: usize) {
        if let Some((wakes, sleeps)) = self.machines[place].next_awake(self.now, &mut self.dice) {
            self.at(wakes, Event::Wakes(place));
            self.at(sleeps.max(wakes), Event::Sleeps(place));
        }
    }

    fn tell(&mut self, what: String) {
        self.course.told.push((self.now, what));
    }

    fn happens(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Wakes(place) => {
                self.machines[place].set_awake(true, self.now);
                self.machines[place].seen = self.now;
                if self.machines[place].sets_clock(&mut self.dice) {
                    self.machines[place].begins(Doing::Ready, 0, self.now);
                }
                self.dirty |= self.is_awaited(place);
                self.go_on(place);
            }
            Event::Sleeps(place) => {
                self.machines[place].set_awake(false, self.now);
                self.plan_awake(place);
            }
            Event::Ends(place, step) if self.machines[place].step == step => {
                self.ends(place)?;
            }
            Event::Ends(..) => {}
            Event::Decides => {
                if std::mem::take(&mut self.dirty) {
                    self.controller()?;
                }
                self.at(self.now + PACE, Event::Decides);
            }
            Event::Counts => {
                self.count();
                // Who counts as away changes by itself.
                self.dirty = true;
                self.at(self.now + HOUR, Event::Counts);
            }
        }
        Ok(())
    }

    /// Sets the timer of what a machine does.
    fn go_on(&mut self, place: usize) {
        let machine = &self.machines[place];
        let waits = matches!(machine.doing, Doing::Expired | Doing::Ready | Doing::Undone | Doing::Degraded);
        let fails = machine.fails_in();
        if !machine.awake || waits || (machine.doing == Doing::Runs && fails.is_none()) {
            return;
        }
        let left = match machine.doing {
            Doing::Runs => fails.unwrap_or_default(),
            _ => fails.map_or(machine.left, |fails| fails.min(machine.left)),
        };
        let (at, event) = (self.now + left, Event::Ends(place, machine.step));
        self.at(at, event);
    }

    /// A step of a machine ends.
    fn ends(&mut self, place: usize) -> Result<()> {
        let now = self.now;
        let (wave, doing) = (self.machines[place].wave, self.machines[place].doing);
        let soak = Time::try_from(self.plan.waves[wave].soak_seconds)?;
        self.dirty |= doing != Doing::Preparing;
        let machine = &mut self.machines[place];
        match doing {
            Doing::Preparing => machine.begins(machine.prepared(), 0, now),
            Doing::Switching => match machine.fate {
                Fate::Undone => machine.begins(Doing::Undone, 0, now),
                _ if machine.vouches => machine.begins(Doing::Soaking, soak, now),
                _ => machine.begins(Doing::Runs, 0, now),
            },
            Doing::Soaking | Doing::Runs => {
                machine.begins(doing, machine.left - (now - machine.since).max(0), now);
                if machine.fails_in() == Some(0) {
                    machine.begins(Doing::Degraded, 0, now);
                } else if doing == Doing::Soaking {
                    machine.begins(Doing::Runs, 0, now);
                    self.signed.insert((self.names[place].clone(), Said::Soaked));
                }
            }
            Doing::Expired | Doing::Ready | Doing::Undone | Doing::Degraded => {}
        }
        self.dirty |= self.is_awaited(place);
        self.go_on(place);
        Ok(())
    }

    /// Whether a machine is ready whose wave is open: any other one waits, whatever is decided.
    fn is_awaited(&self, place: usize) -> bool {
        let machine = &self.machines[place];
        machine.doing == Doing::Ready && self.open[machine.wave]
    }

    fn is_down(&self) -> bool {
        self.fleet.controller == Controller::Down && (6 * HOUR..12 * HOUR).contains(&self.now.rem_euclid(DAY))
    }

    /// The controller decides, and machines that are awake hear of it.
    fn controller(&mut self) -> Result<()> {
        if self.is_down() {
            self.dirty = true;
            return Ok(());
        }
        self.course.decisions += 1;
        self.look();
        let leave = match self.fleet.controller {
            Controller::Honest | Controller::Down => self.decide(),
            Controller::Stolen => {
                let ready = self.names.iter().zip(&self.machines);
                ready
                    .filter(|(_, machine)| machine.doing == Doing::Ready)
                    .map(|(name, _)| name.clone())
                    .collect()
            }
        };
        for name in leave {
            let place = self.names.binary_search(&name).ok().context("the engine named a stranger")?;
            self.hears(place)?;
        }
        Ok(())
    }

    /// What the controller sees of every machine.
    fn look(&mut self) {
        let (now, names, machines) = (self.now, &self.names, &self.machines);
        for (place, name) in names.iter().enumerate() {
            let machine = &machines[place];
            let Some(member) = self.members.get_mut(name) else { continue };
            let seen = if machine.awake { now } else { machine.seen };
            member.seen = Some(seen * 1000);
            // What a machine does while it is away is seen when it is back.
            if machine.awake {
                member.stage = machine.stage();
                member.degraded = machine.doing == Doing::Degraded;
            }
            if member.failed.is_none() && (member.stage == Stage::Failed || member.degraded) {
                let kind = if member.degraded { Failure::Degraded } else { Failure::RolledBack };
                member.failed = Some(kind);
            }
        }
    }

    fn decide(&mut self) -> Vec<MachineName> {
        let decision = decide(&Observed {
            plan: &self.plan,
            wish: Wish::Run,
            wish_why: None,
            brake: None,
            members: &self.members,
            proven: &self.signed,
            forgiven: &BTreeSet::new(),
            away_ms: AWAY * 1000,
            now: self.now * 1000,
        });
        let until = self.now * 1000 + i64::try_from(LEAVE_SECONDS).unwrap_or_default() * 1000;
        for name in &decision.leave {
            if let Some(member) = self.members.get_mut(name) {
                member.leave = Some(Given { until, taken_back: false });
            }
        }
        for name in &decision.take_back {
            if let Some(Member { leave: Some(given), .. }) = self.members.get_mut(name) {
                given.taken_back = true;
            }
        }
        let runs = decision.state == RolloutState::Running || decision.state == RolloutState::Done;
        self.open = decision.waves.iter().map(|wave| runs && wave.open).collect();
        if decision.state == RolloutState::Halted && self.course.halted.is_none() {
            self.course.halted = Some(self.now);
            (self.course.exposed, self.course.broken) = self.exposed();
            self.tell(format!("halted: {}", decision.why));
        }
        // Machines that come back take it later, each time.
        if decision.state == RolloutState::Done && !std::mem::replace(&mut self.done, true) {
            self.tell(format!("done: {}", decision.why));
        }
        (self.course.state, self.course.why) = (decision.state.as_str().to_owned(), decision.why);
        decision.leave
    }

    /// A machine that is awake hears that it may begin, and looks whether its gate is proven.
    fn hears(&mut self, place: usize) -> Result<()> {
        let (wave, name) = (self.machines[place].wave, self.names[place].clone());
        if !self.machines[place].awake || self.machines[place].doing != Doing::Ready {
            return Ok(());
        }
        let says = |voucher: &Voucher, said| self.signed.contains(&(voucher.machine.clone(), said));
        let lack = wave_lacks(&self.plan, wave, &says).or_else(|| machine_lacks(&self.plan, &name, &says));
        if lack.is_some() {
            self.course.refused += 1;
            return Ok(());
        }
        // What a machine must never do, looked at once more and by other means.
        if wave > 0 {
            let first = &self.plan.waves[0];
            let soaked = first.vouchers.iter().filter(|voucher| says(voucher, Said::Soaked)).count();
            self.course.too_early += u32::from(soaked < first.at_least as usize);
        }
        if self.course.began[wave].is_none() {
            self.course.began[wave] = Some(self.now);
            let size = self.plan.waves[wave].members.len();
            let size = count(size, "machine", "machines");
            self.tell(format!("wave '{}' begins ({size})", self.plan.waves[wave].name));
        }
        // A lid that was closed in the middle of it keeps nobody else waiting.
        let others = self.machines.iter().filter(|other| {
            let here = other.awake || self.now - other.seen <= AWAY;
            other.wave == wave && other.doing == Doing::Switching && here
        });
        let in_flight = u32::try_from(others.count()).unwrap_or(u32::MAX).saturating_add(1);
        self.course.most_in_flight = self.course.most_in_flight.max(in_flight);
        let takes = self.dice.between(1, 8) * MINUTE;
        self.machines[place].begins(Doing::Switching, takes, self.now);
        self.go_on(place);
        Ok(())
    }

    /// On how many machines the generation has run, and on how many it failed.
    fn exposed(&self) -> (u32, u32) {
        let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
        let exposed = self.machines.iter().filter(|machine| machine.is_exposed()).count();
        let broken =
            self.machines.iter().filter(|m| matches!(m.doing, Doing::Undone | Doing::Degraded)).count();
        (number(exposed), number(broken))
    }

    fn count(&mut self) {
        let mut seen = Seen { after_seconds: self.now, ..Seen::default() };
        for machine in &self.machines {
            *match machine.doing {
                Doing::Preparing => &mut seen.preparing,
                Doing::Expired | Doing::Ready => &mut seen.waiting,
                Doing::Switching => &mut seen.switching,
                Doing::Soaking | Doing::Runs => &mut seen.runs,
                Doing::Degraded | Doing::Undone => &mut seen.failed,
            } += 1;
        }
        let all = self.machines.len() as u64;
        for (place, share) in [50, 90, 99].into_iter().enumerate() {
            if self.course.reached[place].is_none() && u64::from(seen.runs) * 100 >= all * share {
                self.course.reached[place] = Some(self.now);
                self.tell(format!("{share} % of the machines run it"));
            }
        }
        self.course.seen.push(seen);
    }

    fn end(mut self) -> Course {
        self.count();
        if self.course.halted.is_none() {
            (self.course.exposed, self.course.broken) = self.exposed();
        }
        if self.fleet.controller == Controller::Stolen {
            self.course.state = "nobody knows".to_owned();
            self.course.why = "its controller was stolen, and said go to everybody".to_owned();
        }
        let (exposed, broken) = (self.course.exposed, self.course.broken);
        let when = self.course.halted.map_or("by the end".to_owned(), |at| format!("by {}", clock(at)));
        let exposed = count(exposed, "machine", "machines");
        self.tell(format!("{exposed} had run it {when}; it had failed on {broken} of them"));
        self.course
    }
}
