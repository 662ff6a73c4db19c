//! Breadth first through everything that can happen, so that the first trace that breaks a property is a
//! shortest one.

use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::{DefaultHasher, Hash, Hasher as _};

/// What is explored: where it begins, what can happen, what must hold.
pub trait Scene {
    /// One moment.
    type World: Hash;
    type Action: Copy + Debug;

    fn name(&self) -> String;
    fn first(&self) -> Self::World;
    /// What may happen in some moment of this scene.
    fn actions(&self) -> Vec<Self::Action>;
    /// The moment after `action`, or `None` where it cannot happen now.
    fn after(&self, world: &Self::World, action: Self::Action) -> Option<Self::World>;
    /// What does not hold in this moment, if anything.
    fn violated(&self, world: &Self::World) -> Option<String>;
    /// What every moment leads to.
    fn goals(&self) -> Vec<Goal<Self>>;
}

/// A good moment that every moment leads to, by some of the actions alone.
pub struct Goal<S: Scene + ?Sized> {
    /// What is broken where it cannot be reached.
    pub property: &'static str,
    pub is_reached: fn(&S, &S::World) -> bool,
    pub may: fn(S::Action) -> bool,
}

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

struct Explored<A> {
    /// How each state was first reached; the first one by nothing.
    from: Vec<Option<(u32, A)>>,
    /// Every step, for what moments lead to: from, to, by.
    steps: Vec<(u32, u32, A)>,
    /// Of each goal, in which states it is reached.
    reached: Vec<Vec<bool>>,
}

/// Explores until there is nothing new, a property breaks, or `limit` states are known.
pub fn explore<S: Scene>(scene: &S, limit: usize) -> Found {
    let (goals, actions) = (scene.goals(), scene.actions());
    let first = scene.first();
    let mut known: HashMap<u128, u32> = HashMap::from([(fingerprint(&first), 0)]);
    let mut all = Explored {
        from: vec![None],
        steps: Vec::new(),
        reached: goals.iter().map(|goal| vec![(goal.is_reached)(scene, &first)]).collect(),
    };
    let mut layer = vec![(0_u32, first)];
    let (mut depth, mut complete) = (0, true);
    while !layer.is_empty() && complete {
        let mut next_layer = Vec::new();
        for (place, world) in &layer {
            for &action in &actions {
                let Some(next) = scene.after(world, action) else { continue };
                let print = fingerprint(&next);
                if let Some(&found) = known.get(&print) {
                    all.steps.push((*place, found, action));
                    continue;
                }
                let new = u32::try_from(all.from.len()).unwrap_or(u32::MAX);
                known.insert(print, new);
                all.from.push(Some((*place, action)));
                all.steps.push((*place, new, action));
                for (goal, reached) in goals.iter().zip(&mut all.reached) {
                    reached.push((goal.is_reached)(scene, &next));
                }
                if let Some(property) = scene.violated(&next) {
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
    let broken = if complete { leads_nowhere(&all, &goals) } else { None };
    found(&all, depth, complete, broken)
}

fn found<A>(all: &Explored<A>, depth: usize, complete: bool, broken: Option<Counterexample>) -> Found {
    Found { states: all.from.len(), steps: all.steps.len(), depth, complete, broken }
}

/// A state from which a good end cannot be reached.
fn leads_nowhere<S: Scene>(all: &Explored<S::Action>, goals: &[Goal<S>]) -> Option<Counterexample> {
    for (goal, reached) in goals.iter().zip(&all.reached) {
        let mut before: Vec<Vec<u32>> = vec![Vec::new(); reached.len()];
        for (from, to, _) in all.steps.iter().filter(|(_, _, action)| (goal.may)(*action)) {
            before[*to as usize].push(*from);
        }
        let mut good = reached.clone();
        let mut open: Vec<u32> = (0_u32..).zip(reached).filter(|(_, good)| **good).map(|(n, _)| n).collect();
        while let Some(place) = open.pop() {
            for &from in &before[place as usize] {
                if !std::mem::replace(&mut good[from as usize], true) {
                    open.push(from);
                }
            }
        }
        if let Some(bad) = good.iter().position(|good| !good) {
            let trace = trace(&all.from, u32::try_from(bad).unwrap_or(u32::MAX));
            return Some(Counterexample { property: goal.property.to_owned(), trace });
        }
    }
    None
}

fn trace<A: Copy + Debug>(from: &[Option<(u32, A)>], mut place: u32) -> Vec<String> {
    let mut trace = Vec::new();
    while let Some((before, action)) = from[place as usize] {
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
