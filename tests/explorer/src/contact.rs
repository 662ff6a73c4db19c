//! The agent's contact with the controller: `core::schedule` says what is next, as it ships, and every
//! request may be answered, lost on its way back, refused, put off or lied to, with changes, publications,
//! kills and time in between. This follows `runner/contact.rs` of the agent.

mod properties;
mod world;

use std::collections::HashMap;

use crate::explore::{Counterexample, Found, fingerprint};
use crate::scene::Break;
use world::{Budget, Event, World};

/// Explores what may happen with so many faults, until there is nothing new or a property breaks.
pub fn explore(faults: u8, broken: Option<Break>, limit: usize) -> Found {
    let budget = Budget { faults, changes: 1, events: 1, publications: 2, polls: 1 };
    let first = World::new(budget, broken);
    let mut known: HashMap<u128, ()> = HashMap::from([(fingerprint(&first), ())]);
    let mut from: Vec<(usize, Event)> = vec![(0, Event::Answered)];
    let (mut layer, mut depth, mut steps) = (vec![(0, first)], 0, 0);
    while !layer.is_empty() && from.len() < limit {
        let mut next_layer = Vec::new();
        for (place, world) in &layer {
            for event in Event::ALL {
                let Some(next) = world.after(event) else { continue };
                steps += 1;
                if known.insert(fingerprint(&next), ()).is_some() {
                    continue;
                }
                let new = from.len();
                from.push((*place, event));
                if let Some(property) = properties::violated(&next) {
                    let broken = Some(Counterexample { property, trace: trace(&from, new) });
                    return Found { states: from.len(), steps, depth: depth + 1, complete: false, broken };
                }
                next_layer.push((new, next));
            }
        }
        depth += usize::from(!next_layer.is_empty());
        layer = next_layer;
    }
    Found { states: from.len(), steps, depth, complete: layer.is_empty(), broken: None }
}

fn trace(from: &[(usize, Event)], mut place: usize) -> Vec<String> {
    let mut trace = Vec::new();
    while place != 0 {
        let (before, event) = from[place];
        trace.push(format!("{event:?}"));
        place = before;
    }
    trace.reverse();
    trace
}
