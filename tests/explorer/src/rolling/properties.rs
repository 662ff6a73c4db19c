//! What must hold, by what is true in the world and not by what gate, agent or engine say.

use muster_protocol::plan::Said;

use super::agent::Agent;
use super::desk::{Asked, Desk, Phase, Ruling};
use super::engine;
use super::machine::{End, Machine};
use super::plans::Key;
use super::stage::Stage;
use super::world::World;

/// The waves before this one that its gate is about, by the documentation: the first and the one before.
fn before(wave: usize) -> Vec<usize> {
    match wave {
        0 => vec![],
        1 => vec![0],
        wave => vec![0, wave - 1],
    }
}

/// Whether in this wave of the plan so many as must be are such machines, of those that vouch.
fn enough(stage: &Stage, plan: u8, wave: usize, is: impl Fn(usize) -> bool) -> bool {
    let Some(rank) = stage.outline(plan).and_then(|outline| outline.waves.get(wave)) else { return false };
    let vouch = rank.machines.iter().filter(|who| !rank.silent.contains(who));
    vouch.filter(|who| is(usize::from(**who))).count() >= rank.at_least as usize
}

fn firsts(stage: &Stage, plan: u8, who: usize) -> impl Iterator<Item = usize> + '_ {
    let after = stage.outline(plan).map_or(&[][..], |outline| outline.after);
    after.iter().filter(move |(after, _)| usize::from(*after) == who).map(|(_, first)| usize::from(*first))
}

/// A machine is about to begin: its gate is truly proven, and it was told that it may.
pub fn of_begin(stage: &Stage, world: &mut World, who: usize) {
    let plan = world.machines[who].open;
    let has_key = |who: &usize| stage.stolen.iter().any(|stolen| usize::from(*stolen) == *who);
    let truths = world.truths;
    let soaked = |who: usize| truths[who].soaked & (1 << plan) != 0 || has_key(&who);
    let confirmed = |who: usize| truths[who].confirmed & (1 << plan) != 0 || has_key(&who);
    let waves = stage.wave(plan, who).map(before).unwrap_or_default();
    if !waves.into_iter().all(|wave| enough(stage, plan, wave, soaked)) {
        world.violate("a machine begins before enough of the waves before it have truly soaked");
    }
    if !firsts(stage, plan, who).all(confirmed) {
        world.violate("a machine begins before one that comes first has confirmed");
    }
    if truths[who].may != plan {
        world.violate("a machine begins without leave that it was given and that holds");
    }
    if world.held[usize::from(plan.saturating_sub(1)) % 2].is_some_and(|ticks| ticks > 0) {
        world.violate("a machine begins long after a stop, a pause or the brake");
    }
}

/// What a machine vouches for is so.
pub fn of_word(stage: &Stage, world: &mut World, who: usize) {
    let (machine, truth) = (&world.machines[who], world.truths[who]);
    let Some((plan, said)) = (Agent { stage, who }).says(machine) else { return };
    if said == Said::Soaked && truth.soaked & (1 << plan) == 0 {
        world.violate("a machine vouches for a soak that it never had");
    } else if said == Said::Soaked && machine.drifted && machine.confirmed == plan {
        world.violate("a machine stands by its word though somebody else changed its system");
    } else if said == Said::Confirmed && truth.confirmed & (1 << plan) == 0 {
        world.violate("a machine vouches for what it never confirmed");
    }
}

/// Whether an operator holds this plan back.
pub fn is_held(desk: &Desk, plan: u8) -> bool {
    desk.brake || desk.wishes[usize::from(plan - 1)] != Asked::Run
}

/// What the controller has heard of as failed, and nobody has forgiven. A report counts once the check-in
/// beside it has come, too: the controller cannot tell which of them is newer.
fn failures(stage: &Stage, desk: &Desk, plan: u8) -> usize {
    let failed = |who: &usize| {
        let row = &desk.rows[*who];
        let both = row.told.is_some_and(|told| !matches!(told.phase, Phase::Confirmed | Phase::Switches));
        let now = row.published == plan && row.outcome == Some((plan, End::Failed)) && both;
        (row.recorded(plan).failed || now) && !row.recorded(plan).forgiven
    };
    stage.everyone().filter(failed).count()
}

/// What an honest controller decided about a plan.
pub fn of_ruling(stage: &Stage, world: &mut World, plan: u8, ruling: &Ruling) {
    let Some(outline) = stage.outline(plan) else { return };
    if ruling.mute {
        world.violate("nobody says what a machine or a rollout waits for");
    }
    let again = engine::decide(stage, &ruling.desk, plan, None);
    if again.desk != ruling.desk {
        world.violate("deciding again changes something");
    }
    let desk = &ruling.desk;
    let rows = &desk.rows;
    let stands = stage.everyone().any(|who| rows[who].published == plan && rows[who].has_leave());
    if stands && is_held(desk, plan) {
        world.violate("leave stands though an operator holds the rollout");
    }
    for who in stage.everyone().filter(|who| ruling.given & (1 << who) != 0) {
        let Some(wave) = stage.wave(plan, who) else { continue };
        if rows[who].is_away(stage.patience) {
            world.violate("a machine that is away is given leave");
        }
        if failures(stage, desk, plan) > outline.budget as usize {
            world.violate("leave is given though more have failed than the budget allows");
        }
        let soaked = |who: usize| rows[who].has_soaked(plan);
        if !before(wave).into_iter().all(|wave| enough(stage, plan, wave, soaked)) {
            world.violate("leave is given though too few are known to have soaked and to stand by it");
        }
        if !percent(stage, desk, plan, wave) {
            world.violate("leave is given though too few of those that answer run it well");
        }
        let is_fresh = ruling.fresh & (1 << who) != 0;
        if is_fresh && flying(stage, world, desk, plan, wave) > outline.waves[wave].most as usize {
            world.violate("more than maxInFlight may switch at the same time");
        }
    }
}

/// Of the wave before, so many of every hundred that answer run it well. One that has shown that counts;
/// otherwise one that is away is neither well nor ill.
fn percent(stage: &Stage, desk: &Desk, plan: u8, wave: usize) -> bool {
    let Some(before) = wave.checked_sub(1) else { return true };
    let Some(rank) = stage.outline(plan).and_then(|outline| outline.waves.get(before)) else { return true };
    let (mut answer, mut well) = (0_u32, 0_u32);
    for number in rank.machines {
        let row = &desk.rows[usize::from(*number)];
        let is_well = match rank.silent.contains(number) {
            true => {
                let confirmed = row.outcome == Some((plan, End::Confirmed));
                let runs = row.told.is_some_and(|told| (told.runs == plan || confirmed) && !told.ill);
                runs && !row.is_away(stage.patience)
            }
            false => row.has_soaked(plan),
        };
        answer += u32::from(is_well || !row.is_away(stage.patience));
        well += u32::from(is_well);
    }
    well * 100 >= answer * u32::from(rank.percent)
}

/// How many of a wave switch, or may begin to: those that are away count no longer.
fn flying(stage: &Stage, world: &World, desk: &Desk, plan: u8, wave: usize) -> usize {
    let flies = |who: &usize| {
        let (machine, row): (&Machine, _) = (&world.machines[*who], &desk.rows[*who]);
        let switches = machine.switches && machine.open == plan && !row.is_away(stage.patience);
        let may = world.truths[*who].may == plan && machine.open == plan;
        let will = row.published == plan && row.has_leave() && machine.tried < plan && !machine.switches;
        stage.wave(plan, *who) == Some(wave) && (switches || may || will)
    };
    stage.everyone().filter(flies).count()
}

/// Whether every machine has come to an end, or something that no machine can mend stands in its way: who is
/// missing cannot vouch any more.
pub fn is_over(stage: &Stage, world: &World) -> bool {
    if world.desk.wishes[usize::from(world.published.saturating_sub(1)) % 2] == Asked::Stop {
        return true;
    }
    stage.everyone().all(|who| has_ended(stage, world, who) || is_barred(stage, world, who))
}

/// Its newest generation, and whether it is through with it.
fn has_ended(stage: &Stage, world: &World, who: usize) -> bool {
    let (machine, row) = (&world.machines[who], &world.desk.rows[who]);
    let plan = row.published;
    let through = machine.tried == plan && !machine.switches && !machine.untold && machine.open == 0;
    let told = match machine.ended {
        Some(End::Confirmed) if !machine.lifted => {
            let silent = stage.voucher(plan, who).is_none() || machine.key == Key::Replaced;
            silent || row.recorded(plan).soaked || row.recorded(plan).withdrawn
        }
        Some(End::Failed) => !machine.lifted,
        _ => false,
    };
    through && told
}

/// Whether it failed, and nobody asked for another try.
fn has_failed(machine: &Machine, plan: u8) -> bool {
    machine.tried == plan && machine.ended == Some(End::Failed) && !machine.lifted && machine.open == 0
}

/// Whether it waits for a wave, or a machine, that cannot vouch any more.
fn is_barred(stage: &Stage, world: &World, who: usize) -> bool {
    let plan = world.desk.rows[who].published;
    let able = |who: usize| {
        let (machine, row) = (&world.machines[who], &world.desk.rows[who]);
        let withdrawn = row.recorded(plan).withdrawn
            || machine.followed.is_some_and(|of| of.plan == plan && of.said == Said::Withdrawn);
        let failed = has_failed(machine, plan);
        let can = machine.key != Key::Replaced && !failed && row.published == plan;
        !withdrawn && (row.recorded(plan).soaked || (can && !is_barred(stage, world, who)))
    };
    let waves = stage.wave(plan, who).map(before).unwrap_or_default();
    let percent = waves.last().is_none_or(|wave| can_be_well(stage, world, plan, *wave));
    !percent
        || !waves.into_iter().all(|wave| enough(stage, plan, wave, able))
        || !firsts(stage, plan, who).all(able)
}

/// Whether so many of every hundred of a wave as must be may still run it well.
fn can_be_well(stage: &Stage, world: &World, plan: u8, wave: usize) -> bool {
    let Some(rank) = stage.outline(plan).and_then(|outline| outline.waves.get(wave)) else { return true };
    let failed = |who: &&u8| has_failed(&world.machines[usize::from(**who)], plan);
    let (all, failed) = (rank.machines.len(), rank.machines.iter().filter(failed).count());
    (all - failed) * 100 >= all * usize::from(rank.percent)
}
