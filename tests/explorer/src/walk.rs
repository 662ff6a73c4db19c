//! The walk of the agent's half: its scenes, as the explorer takes them.

use crate::environment::{Action, after};
use crate::explore::{self, Goal};
use crate::properties;
use crate::scene::Scene;
use crate::world::World;

impl explore::Scene for Scene {
    type World = World;
    type Action = Action;

    fn name(&self) -> String {
        let published: Vec<String> = self
            .published
            .iter()
            .map(|published| match published.action {
                muster_protocol::target::Action::Switch => format!("{:?}", published.behaviour),
                action => format!("{:?} ({})", published.behaviour, action.as_str()),
            })
            .collect();
        let old = if self.old_fails { ", OLD cannot come back" } else { "" };
        let foreign = if self.foreign_profile { ", with a profile that does not run" } else { "" };
        let reports = if self.reports { ", with its reports" } else { "" };
        let epoch =
            self.epoch_from.map_or_else(String::new, |from| format!(", a new epoch before number {from}"));
        let gated = if self.gated { ", behind a gate" } else { "" };
        format!("{}: {}{epoch}{gated}{old}{foreign}{reports}", self.class, published.join(", then "))
    }

    fn first(&self) -> World {
        World::new(self)
    }

    fn actions(&self) -> Vec<Action> {
        Action::ALL.to_vec()
    }

    fn after(&self, world: &World, action: Action) -> Option<World> {
        after(world, self, action)
    }

    fn violated(&self, world: &World) -> Option<String> {
        properties::violated(world, self)
    }

    fn goals(&self) -> Vec<Goal<Self>> {
        vec![
            Goal {
                property: "I4: the machine alone comes to no end from here",
                is_reached: |_, world| properties::machine_is_safe(world),
                may: Action::is_the_machines,
            },
            Goal {
                property: "I3, I7: it is never settled, told and stored from here",
                is_reached: |scene, world| properties::all_is_told(world, scene),
                may: Action::is_sure,
            },
        ]
    }
}
