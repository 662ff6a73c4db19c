//! Breadth first through everything that can happen, so that the first trace that breaks a property is a shortest one.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher as _};

use crate::environment::{Action, after};
use crate::properties;
use crate::scene::Scene;
use crate::world::World;

/// What one exploration found.
#[derive(Debug)]
pub struct Found {
    pub states: usize,
    pub steps: usize,
    pub depth: usize,
    /// Whether nothing was left out for want of room.
    pub complete: bool,
    pub broken: Option<Counterexample>,
}

#[derive(Debug)]
pub struct Counterexample {
    pub property: String,
    pub trace: Vec<String>,
}

struct Explored {
    /// How each state was first reached.
    from: Vec<(u32, Action)>,
    /// Every step, for what moments lead to: from, to, by.
    steps: Vec<(u32, u32, Action)>,
    safe: Vec<bool>,
    told: Vec<bool>,
}

/// Explores until there is nothing new, a property breaks, or `limit` states are known.
pub fn explore(scene: &Scene, limit: usize) -> Found {
    let first = World::new(scene);
    let mut known: HashMap<u128, u32> = HashMap::from([(fingerprint(&first), 0)]);
    let mut all = Explored {
        from: vec![(0, Action::AgentStep)],
        steps: Vec::new(),
        safe: vec![properties::machine_is_safe(&first)],
        told: vec![properties::all_is_told(&first, scene)],
    };
    let mut layer = vec![(0_u32, first)];
    let (mut depth, mut complete) = (0, true);
    while !layer.is_empty() && complete {
        let mut next_layer = Vec::new();
        for (place, world) in &layer {
            for action in Action::ALL {
                let Some(next) = after(world, scene, action) else { continue };
                let print = fingerprint(&next);
                if let Some(&found) = known.get(&print) {
                    all.steps.push((*place, found, action));
                    continue;
                }
                let new = u32::try_from(all.from.len()).unwrap_or(u32::MAX);
                known.insert(print, new);
                all.from.push((*place, action));
                all.steps.push((*place, new, action));
                all.safe.push(properties::machine_is_safe(&next));
                all.told.push(properties::all_is_told(&next, scene));
                if let Some(property) = properties::violated(&next, scene) {
                    let trace = trace(&all.from, new);
                    return found(&all, depth + 1, false, Some(Counterexample { property, trace }));
                }
                next_layer.push((new, next));
            }
        }
        complete = all.from.len() < limit || next_layer.is_empty();
        depth += usize::from(!next_layer.is_empty());
        layer = next_layer;
    }
    // Of a graph that was cut off nobody can say what its last states lead to.
    let broken = if complete { leads_nowhere(&all) } else { None };
    found(&all, depth, complete, broken)
}

fn found(all: &Explored, depth: usize, complete: bool, broken: Option<Counterexample>) -> Found {
    Found { states: all.from.len(), steps: all.steps.len(), depth, complete, broken }
}

/// A state from which a good end cannot be reached.
fn leads_nowhere(all: &Explored) -> Option<Counterexample> {
    type Goal<'a> = (&'a str, &'a [bool], fn(Action) -> bool);
    let goals: [Goal<'_>; 2] = [
        ("I4: the machine alone comes to no end from here", &all.safe, Action::is_the_machines),
        ("I3, I7: it is never settled, told and stored from here", &all.told, Action::is_sure),
    ];
    for (property, goal, may) in goals {
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); goal.len()];
        for (from, to, _) in all.steps.iter().filter(|(_, _, action)| may(*action)) {
            before[*to as usize].push(*from);
        }
        let mut good = goal.to_vec();
        let mut open: Vec<u32> = (0_u32..).zip(goal).filter(|(_, good)| **good).map(|(n, _)| n).collect();
        while let Some(place) = open.pop() {
            for &from in &before[place as usize] {
                if !std::mem::replace(&mut good[from as usize], true) {
                    open.push(from);
                }
            }
        }
        if let Some(bad) = good.iter().position(|good| !good) {
            let trace = trace(&all.from, u32::try_from(bad).unwrap_or(u32::MAX));
            return Some(Counterexample { property: property.to_owned(), trace });
        }
    }
    None
}

fn trace(from: &[(u32, Action)], mut place: u32) -> Vec<String> {
    let mut trace = Vec::new();
    while place != 0 {
        let (before, action) = from[place as usize];
        trace.push(format!("{action:?}"));
        place = before;
    }
    trace.reverse();
    trace
}

/// 128 bits of what a state is: with millions of states no two fall together by chance.
pub fn fingerprint(world: &impl Hash) -> u128 {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        hasher.write_u8(salt);
        world.hash(&mut hasher);
        u128::from(hasher.finish())
    };
    half(1) << 64 | half(2)
}
