//! From one moment to the next: what each action does to machines, controller and messages.

use muster_protocol::plan::Said;

use super::agent::Agent;
use super::desk::{Ask, Asked, Desk, Phase, Told};
use super::engine;
use super::happening::{Action, Way, Wish};
use super::machine::{End, Kind, Lot, Machine, Move};
use super::plans::{Key, MOST};
use super::proof;
use super::properties;
use super::stage::Stage;
use super::world::{Truth, Wire, World};

/// Everything was published just now, and nobody knows of it yet.
pub fn first(stage: &Stage) -> World {
    let mut world = World {
        machines: [Machine::default(); MOST],
        desk: Desk::default(),
        published: 1,
        wire: None,
        signed: proof::stolen(stage),
        truths: [Truth::default(); MOST],
        held: [None; 2],
        left: stage.may,
        violation: None,
    };
    for who in stage.everyone() {
        world.desk.rows[who].published = 1;
        if !stage.thief {
            // Machines have prepared it and said so.
            world.prepares(stage, who, 1, true);
            let told = world.told(stage, who);
            world.desk.rows[who].told = Some(told);
        }
    }
    if !stage.thief {
        world.decides(stage, None);
    }
    world
}

/// The moment after `action`, or `None` where it cannot happen now.
pub fn after(stage: &Stage, world: &World, action: Action) -> Option<World> {
    let mut next = *world;
    happens(stage, &mut next, action)?;
    if let Action::Ends(who, _) | Action::GoesBack(who) = action {
        next.reports_in_any_order(stage, who.into());
    }
    for who in stage.everyone() {
        properties::of_word(stage, &mut next, who);
        if stage.thief
            && let Some((plan, said)) = (Agent { stage, who }).says(&next.machines[who])
        {
            next.signed |= proof::bit(plan, who, said);
        }
    }
    next.forgets(stage);
    (next != *world).then_some(next)
}

fn happens(stage: &Stage, next: &mut World, action: Action) -> Option<()> {
    use Action as A;
    let here = |who: u8| Some(usize::from(who)).filter(|who| *who < stage.machines);
    match action {
        A::Prepares(who) => {
            let who = here(who)?;
            let newest = next.desk.rows[who].published;
            let behind = next.machines[who].newest < newest && !next.machines[who].asleep;
            behind.then(|| next.prepares(stage, who, newest, true))
        }
        A::CheckIn(who, way) => next.checks_in(stage, here(who)?, way),
        A::Arrives => next.arrives(stage),
        A::Fetches(who) => next.fetches(stage, here(who)?),
        A::Reports(who) => {
            let who = here(who)?;
            let machine = next.machines[who];
            if stage.thief || machine.asleep || !(machine.untold || machine.retries) {
                return None;
            }
            next.reports(stage, who);
            Some(())
        }
        A::Decides => (!stage.thief).then(|| next.decides(stage, None)),
        A::Begins(who) => {
            let who = here(who)?;
            let machine = next.machines[who];
            if machine.asleep || (Agent { stage, who }).kind(&machine) != Kind::Starts {
                return None;
            }
            properties::of_begin(stage, next, who);
            next.moves(stage, who, Move::Begins);
            next.truths[who].may = 0;
            if let Some(Wire::Reply { who: whose, stale, .. }) = &mut next.wire {
                *stale |= usize::from(*whose) == who;
            }
            Some(())
        }
        A::Ends(who, end) => next.ends(stage, here(who)?, end),
        A::Tick => {
            next.passes(stage);
            Some(())
        }
        A::Sleeps(who) => {
            let machine = &mut next.machines[here(who)?];
            if machine.asleep {
                return None;
            }
            machine.asleep = true;
            next.left.faults = next.left.faults.checked_sub(1)?;
            Some(())
        }
        A::Wakes(who) => {
            next.machines[here(who)?].asleep = false;
            Some(())
        }
        A::Reboots(who) => {
            let who = here(who)?;
            let machine = next.machines[who];
            if machine.switches || (machine.answer.is_none() && machine.proof.is_none() && !machine.used) {
                return None;
            }
            next.left.faults = next.left.faults.checked_sub(1)?;
            next.moves(stage, who, Move::Reboots);
            next.truths[who].may = 0;
            Some(())
        }
        A::Drifts(who) => {
            let who = here(who)?;
            let machine = next.machines[who];
            if machine.drifted || machine.switches || machine.confirmed == 0 || machine.asleep {
                return None;
            }
            next.left.troubles = next.left.troubles.checked_sub(1)?;
            next.truths[who].well = 0;
            next.moves(stage, who, Move::Drifts);
            Some(())
        }
        A::IsRestored(who) => {
            next.moves(stage, here(who)?, Move::IsRestored);
            Some(())
        }
        A::FallsIll(who) => {
            let machine = &mut next.machines[here(who)?];
            if machine.ill || machine.confirmed == 0 {
                return None;
            }
            machine.ill = true;
            next.left.troubles = next.left.troubles.checked_sub(1)?;
            Some(())
        }
        A::Heals(who) => {
            next.machines[here(who)?].ill = false;
            Some(())
        }
        A::GoesBack(who) => {
            let who = here(who)?;
            let machine = next.machines[who];
            if machine.confirmed == 0 || machine.open != 0 || machine.asleep {
                return None;
            }
            next.left.troubles = next.left.troubles.checked_sub(1)?;
            next.truths[who].well = 0;
            next.moves(stage, who, Move::GoesBack);
            Some(())
        }
        A::Rotates(who) => {
            let machine = &mut next.machines[here(who)?];
            if machine.key != Key::Named {
                return None;
            }
            machine.key = Key::Rotated;
            next.left.keys = next.left.keys.checked_sub(1)?;
            Some(())
        }
        A::IsReplaced(who) => {
            let who = here(who)?;
            next.left.keys = next.left.keys.checked_sub(1)?;
            next.moves(stage, who, Move::IsReplaced);
            (next.truths[who].well, next.truths[who].may) = (0, 0);
            let row = &mut next.desk.rows[who];
            (row.told, row.outcome, row.age) = (None, None, 0);
            next.wire = next.wire.filter(|wire| usize::from(wire.whose()) != who);
            Some(())
        }
        A::Operator(wish) => next.is_asked(stage, wish),
        A::Retries(who) => {
            let who = here(who)?;
            let machine = next.machines[who];
            // Operators ask it of a machine of which they know that it failed.
            let failed = machine.ended == Some(End::Failed) && !machine.untold;
            if stage.thief || !failed || machine.lifted || machine.open != 0 || machine.asleep {
                return None;
            }
            next.left.retries = next.left.retries.checked_sub(1)?;
            next.decides(stage, Some(Ask { wish: next.wish(), forgive: true }));
            next.moves(stage, who, Move::IsLifted);
            Some(())
        }
        A::Publishes => {
            let new = next.published + 1;
            stage.plan(new)?;
            next.left.publications = next.left.publications.checked_sub(1)?;
            next.published = new;
            for who in stage.everyone().filter(|who| stage.target(new, *who).is_some()) {
                let row = &mut next.desk.rows[who];
                (row.published, row.until, row.taken_back) = (new, None, false);
            }
            if !stage.thief {
                next.decides(stage, None);
            }
            Some(())
        }
        A::Hides(who) => {
            // The target, and no plan.
            let who = here(who).filter(|_| stage.thief && stage.plans.len() > 1)?;
            let newest = next.published;
            (next.machines[who].newest < newest
                && !next.machines[who].asleep
                && stage.target(newest, who).is_some())
            .then(|| next.prepares(stage, who, newest, false))
        }
        A::Shows(who, plan) => {
            let who = here(who).filter(|_| stage.thief && usize::from(plan) <= stage.plans.len())?;
            (!next.machines[who].has_plan).then(|| next.moves(stage, who, Move::IsShown(plan)))
        }
        A::Says(who, plan) => {
            let who = here(who).filter(|_| stage.thief && plan <= next.published)?;
            if next.machines[who].asleep || next.machines[who].newest == 0 {
                return None;
            }
            next.hears(stage, who, Some((plan, true)), 0, false);
            Some(())
        }
        A::Hands(who, lot) => {
            let who = here(who).filter(|_| stage.thief)?;
            let machine = next.machines[who];
            if machine.asleep || !machine.has_plan || machine.open == 0 || machine.switches {
                return None;
            }
            if proof::order_matters(stage, machine.newest, who, lot, next.signed) {
                next.violate("the order of statements makes a difference, or that they come twice");
            }
            next.moves(stage, who, Move::IsHanded(lot, next.signed));
            Some(())
        }
    }
}

impl World {
    fn moves(&mut self, stage: &Stage, who: usize, then: Move) {
        self.machines[who] = Agent { stage, who }.after(&self.machines[who], then);
    }

    fn prepares(&mut self, stage: &Stage, who: usize, generation: u8, with_plan: bool) {
        self.moves(stage, who, Move::Prepares { generation, with_plan });
    }

    /// What a machine says in a check-in.
    fn told(&self, stage: &Stage, who: usize) -> Told {
        let machine = &self.machines[who];
        let (phase, about) = match (machine.open, machine.switches, machine.ended) {
            (0, _, None) => (Phase::Idle, 0),
            (0, _, Some(End::Confirmed)) => (Phase::Confirmed, machine.tried),
            (0, _, Some(End::Failed)) => (Phase::RolledBack, machine.tried),
            (open, true, _) => (Phase::Switches, open),
            (open, false, _) => (Phase::Waits, open),
        };
        let runs = if machine.drifted { 0 } else { machine.confirmed };
        let awaits = Agent { stage, who }.awaits(machine);
        Told { phase, about, runs, awaits, ill: machine.ill }
    }

    fn checks_in(&mut self, stage: &Stage, who: usize, way: Way) -> Option<()> {
        let number = u8::try_from(who).ok()?;
        if stage.thief || self.machines[who].asleep {
            return None;
        }
        if way != Way::Answered {
            self.left.faults = self.left.faults.checked_sub(1)?;
        }
        let told = self.told(stage, who);
        let says = Agent { stage, who }.says(&self.machines[who]);
        let machine = &mut self.machines[who];
        if machine.untold && machine.ended == Some(End::Confirmed) && !stage.reports {
            machine.untold = false;
        }
        if way == Way::Delayed {
            let free = self.wire.is_none();
            self.wire = Some(Wire::CheckIn { who: number, told, says });
            return free.then_some(());
        }
        // The controller refuses an earlier one that comes after this.
        self.wire = self.wire.filter(|wire| wire.whose() != number);
        let answer = self.takes(stage, who, told, says);
        if way != Way::Undecided {
            self.decides(stage, None);
        }
        match way {
            Way::Unheard | Way::Delayed => {}
            Way::Late => {
                let free = self.wire.is_none();
                self.wire = Some(Wire::Reply { who: number, answer, ticks: 0, stale: false });
                return free.then_some(());
            }
            Way::Answered | Way::Undecided => {
                self.hears(stage, who, answer, 0, false);
                self.fetches(stage, who);
            }
            Way::Unproven => self.hears(stage, who, answer, 0, false),
        }
        Some(())
    }

    /// The controller stores a check-in; its reply says what was decided before.
    fn takes(
        &mut self,
        stage: &Stage,
        who: usize,
        told: Told,
        says: Option<(u8, Said)>,
    ) -> Option<(u8, bool)> {
        let row = &mut self.desk.rows[who];
        (row.told, row.age) = (Some(told), 0);
        if let Some((plan, said)) = says {
            let recorded = &mut row.recorded[usize::from(plan.saturating_sub(1)) % 2];
            match said {
                Said::Confirmed => recorded.confirmed = true,
                Said::Soaked => recorded.soaked = true,
                Said::Withdrawn => recorded.withdrawn = true,
            }
        }
        let plan = self.desk.rows[who].published;
        let go = engine::leave(stage, &self.desk, who).is_some_and(|leave| leave.seconds > 0);
        if go && properties::is_held(&self.desk, plan) {
            self.violate("a machine is told to go on though an operator holds the rollout");
        }
        Some((plan, go))
    }

    fn hears(&mut self, stage: &Stage, who: usize, answer: Option<(u8, bool)>, ticks: u8, stale: bool) {
        self.moves(stage, who, Move::Hears { answer, ticks, stale });
        self.truths[who].may = match answer {
            Some((plan, true)) if ticks == 0 && !stale => plan,
            _ => 0,
        };
    }

    /// Drops what nothing rests on any more, so that moments which differ in it alone are one.
    fn forgets(&mut self, stage: &Stage) {
        let again = self.left.retries > 0 || self.left.publications > 0 || self.left.keys > 0;
        let counts = stage.outlines.iter().any(|outline| outline.waves.iter().any(|rank| rank.percent > 0));
        for who in stage.everyone() {
            let (machine, row) = (&mut self.machines[who], &mut self.desk.rows[who]);
            let plan = row.published;
            if machine.tried != plan || machine.open != 0 || machine.lifted || again {
                continue;
            }
            (machine.answer, machine.proof, machine.used) = (None, None, false);
            let ended = row.told.is_some_and(|told| told.runs == plan || told.phase == Phase::RolledBack);
            if ended && row.until.is_some_and(|until| until <= 0) {
                (row.until, row.taken_back) = (None, false);
            }
            let vouches = stage.voucher(plan, who).is_some() && !row.recorded(plan).soaked;
            if ended && !counts && !vouches {
                row.age = 0;
            }
        }
    }

    /// A machine that has leave asks what proves its gate.
    fn fetches(&mut self, stage: &Stage, who: usize) -> Option<()> {
        let machine = self.machines[who];
        let plan = machine.newest;
        let has_leave =
            machine.answer.is_some_and(|answer| answer.go && answer.plan == plan && answer.wall == 0);
        let proven = machine.proof == Some((plan, true));
        if stage.thief || machine.asleep || machine.open == 0 || machine.switches || !has_leave || proven {
            return None;
        }
        let signed = self.recorded(stage, plan);
        if proof::order_matters(stage, plan, who, Lot::Honest, signed) {
            self.violate("the order of statements makes a difference, or that they come twice");
        }
        self.moves(stage, who, Move::IsHanded(Lot::Honest, signed));
        Some(())
    }

    fn recorded(&self, stage: &Stage, plan: u8) -> u32 {
        let mut signed = 0;
        for who in stage.everyone() {
            let recorded = self.desk.rows[who].recorded(plan);
            let words = [
                (Said::Confirmed, recorded.confirmed),
                (Said::Soaked, recorded.soaked),
                (Said::Withdrawn, recorded.withdrawn),
            ];
            let said = words.into_iter().filter(|(_, has)| *has);
            signed = said.fold(signed, |all, (said, _)| all | proof::bit(plan, who, said));
        }
        signed
    }

    fn arrives(&mut self, stage: &Stage) -> Option<()> {
        match self.wire.take()? {
            Wire::CheckIn { who, told, says } => {
                self.takes(stage, who.into(), told, says);
                self.decides(stage, None);
            }
            Wire::Reply { who, answer, ticks, stale } => {
                let who = usize::from(who);
                if self.machines[who].asleep {
                    return None;
                }
                self.hears(stage, who, answer, ticks, stale);
                self.fetches(stage, who);
            }
        }
        Some(())
    }

    fn reports(&mut self, stage: &Stage, who: usize) {
        let machine = &mut self.machines[who];
        let (told, outcome) = (*machine, &mut self.desk.rows[who].outcome);
        (machine.untold, machine.retries) = (false, false);
        if told.retries {
            *outcome = engine::reported(stage, *outcome, told.tried, None);
        }
        if told.untold {
            *outcome = engine::reported(stage, *outcome, told.tried, told.ended);
        }
        self.decides(stage, None);
    }

    /// A report and the check-in beside it leave the same behind, whichever comes first.
    fn reports_in_any_order(&mut self, stage: &Stage, who: usize) {
        let machine = &self.machines[who];
        // A good end is seen in a check-in alone where those are not reported.
        let reports = machine.untold && (stage.reports || machine.ended == Some(End::Failed));
        if stage.thief || machine.asleep || !reports {
            return;
        }
        let (mut one, mut other) = (*self, *self);
        one.reports(stage, who);
        let first = one.checks_in(stage, who, Way::Answered);
        let second = other.checks_in(stage, who, Way::Answered);
        other.reports(stage, who);
        if first.is_some() && second.is_some() && one.desk != other.desk {
            self.violate("it makes a difference whether a report or the check-in beside it comes first");
        }
    }

    fn ends(&mut self, stage: &Stage, who: usize, end: End) -> Option<()> {
        let machine = self.machines[who];
        if !machine.switches || machine.asleep {
            return None;
        }
        if end == End::Failed {
            self.left.failures = self.left.failures.checked_sub(1)?;
        }
        self.moves(stage, who, Move::Ends(end));
        if end == End::Confirmed {
            let truth = &mut self.truths[who];
            (truth.well, truth.confirmed) = (0, truth.confirmed | 1 << machine.open);
        }
        Some(())
    }

    /// A tick passes for everybody.
    fn passes(&mut self, stage: &Stage) {
        for who in stage.everyone() {
            let machine = self.machines[who];
            let truth = &mut self.truths[who];
            truth.may = 0;
            let runs = machine.confirmed > 0 && !machine.drifted && !machine.switches && !machine.asleep;
            let plan = machine.confirmed;
            let wave = stage.wave(plan, who);
            let soak = wave.and_then(|wave| stage.outline(plan)?.waves.get(wave)).map_or(0, |rank| rank.soak);
            let soak = u8::try_from(soak).unwrap_or(u8::MAX);
            if runs && truth.soaked & (1 << plan) == 0 {
                truth.well = truth.well.saturating_add(1).min(soak);
                if truth.well == soak && machine.ill {
                    truth.well = 0;
                } else if truth.well == soak && machine.key != Key::Replaced {
                    truth.soaked |= 1 << plan;
                }
            }
            self.moves(stage, who, Move::Passes);
        }
        for held in self.held.iter_mut().flatten() {
            *held = 1;
        }
        self.wire = match self.wire.take() {
            // A request is on its way for less time than leave holds.
            Some(Wire::CheckIn { .. }) | None => None,
            Some(Wire::Reply { who, answer, stale, .. }) => {
                Some(Wire::Reply { who, answer, ticks: 1, stale })
            }
        };
        if !stage.thief {
            self.desk.passes(stage.patience);
            self.decides(stage, None);
        }
    }

    fn wish(&self) -> Asked {
        self.desk.wishes[usize::from(self.published.saturating_sub(1)) % 2]
    }

    fn is_asked(&mut self, stage: &Stage, wish: Wish) -> Option<()> {
        if stage.thief {
            return None;
        }
        let asks = |wish| Some(Ask { wish, forgive: false });
        let costs = matches!(wish, Wish::Stop | Wish::Pause | Wish::Brake);
        if costs {
            self.left.asks = self.left.asks.checked_sub(1)?;
        }
        let running = self.wish() == Asked::Run;
        match wish {
            Wish::Stop => self.decides(stage, asks(Asked::Stop)),
            Wish::Pause if running => self.decides(stage, asks(Asked::Pause)),
            Wish::Resume if self.wish() == Asked::Pause => self.decides(stage, asks(Asked::Run)),
            Wish::Brake if !self.desk.brake => {
                self.desk.brake = true;
                self.decides(stage, None);
            }
            Wish::Release if self.desk.brake => {
                self.desk.brake = false;
                self.decides(stage, None);
            }
            Wish::Forgive => {
                let ask = Ask { wish: self.wish(), forgive: true };
                self.decides(stage, Some(ask));
            }
            _ => return None,
        }
        Some(())
    }

    /// The controller decides about every plan; an operator asked something of the newest.
    fn decides(&mut self, stage: &Stage, ask: Option<Ask>) {
        for plan in 1..=self.published {
            let before = self.desk;
            let asks = ask.filter(|_| plan == self.published);
            if let Some(Ask { wish, .. }) = asks {
                // What the world knows that was asked, whatever becomes of it.
                self.desk.wishes[usize::from(plan - 1) % 2] = before.wishes[usize::from(plan - 1) % 2];
                let ruling = engine::decide(stage, &before, plan, asks);
                self.desk = ruling.desk;
                self.desk.wishes[usize::from(plan - 1) % 2] = wish;
                let ruling = super::desk::Ruling { desk: self.desk, ..ruling };
                properties::of_ruling(stage, self, plan, &ruling);
            } else {
                let ruling = engine::decide(stage, &before, plan, None);
                self.desk = ruling.desk;
                properties::of_ruling(stage, self, plan, &ruling);
            }
            let held = &mut self.held[usize::from(plan - 1) % 2];
            *held = properties::is_held(&self.desk, plan).then(|| held.unwrap_or(0));
        }
    }
}
