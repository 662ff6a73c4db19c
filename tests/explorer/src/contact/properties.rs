//! What must hold of the agent's contact, whatever the controller and the network do.

use std::time::Duration;

use muster_agent::core::schedule::Next;

use super::world::{Event, World};

/// So many requests without any time passing are enough for whatever comes together: each hasty poll may
/// bring a check-in for what waited and one for what is new, reports and metadata, and of hasty polls there
/// are four until they count as a failure.
const MOST_REQUESTS: u8 = 24;
/// As long as it may take until a reachable controller has heard everything and been heard: eleven minutes of
/// a `Retry-After`, and ten of a hint that brought nothing.
const HEARD_AGAIN: Duration = Duration::from_secs(22 * 60);
/// And as many steps.
const MOST_STEPS: u32 = 300;

pub fn violated(world: &World) -> Option<String> {
    world.violation.clone().or_else(|| spins(world)).or_else(|| is_deaf(world))
}

fn spins(world: &World) -> Option<String> {
    (world.requests > MOST_REQUESTS)
        .then(|| format!("it never comes to rest: {} requests without any time passing", world.requests))
}

/// Nothing goes wrong from here on: then it is at rest within the bound, holds what is published and has told
/// everything.
fn is_deaf(world: &World) -> Option<String> {
    let mut world = world.clone().well();
    let began = world.now;
    for _ in 0..MOST_STEPS {
        if world.is_settled() {
            return None;
        }
        let event = match world.next() {
            Next::Listen { .. } if world.poll_has_news() => Event::PollBringsNews,
            Next::Listen { until: None } => Event::PollEnds,
            Next::Listen { .. } | Next::Gather { .. } | Next::Pause { .. } => Event::TimePasses,
            _ => Event::Answered,
        };
        let Some(next) = world.after(event) else { break };
        world = next.well();
        if world.now.saturating_sub(began) > HEARD_AGAIN {
            break;
        }
    }
    let minutes = HEARD_AGAIN.as_secs() / 60;
    Some(format!(
        "a controller that answers is not heard, or does not hear everything, within {minutes} minutes"
    ))
}
