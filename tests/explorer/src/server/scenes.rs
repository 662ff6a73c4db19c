//! What is walked of the controller's half.

use std::rc::Rc;

use super::cast::Cast;
pub use super::controller::Break;
use super::happening::Action;
use super::properties;
use super::stage::{Budget, Scene};
use super::steps;
use super::world::World;
use crate::explore::{self, Goal};

impl explore::Scene for Scene {
    type World = World;
    type Action = Action;

    fn name(&self) -> String {
        format!("controller: {}", self.name)
    }

    fn first(&self) -> World {
        steps::first(self)
    }

    fn actions(&self) -> Vec<Action> {
        Action::all()
    }

    fn after(&self, world: &World, action: Action) -> Option<World> {
        steps::after(world, self, action)
    }

    fn violated(&self, world: &World) -> Option<String> {
        properties::violated(world, self)
    }

    fn goals(&self) -> Vec<Goal<Self>> {
        vec![
            Goal {
                property: "I7: what a machine told is never stored from here",
                is_reached: |scene, world| properties::all_is_stored(world, scene),
                may: Action::is_sure,
            },
            Goal {
                property: "a machine never has what is published, or never follows what it was asked, from \
                    here",
                is_reached: |scene, world| properties::all_is_taken(world, scene),
                may: Action::is_sure,
            },
        ]
    }
}

/// Every scene, with so many faults at once.
pub fn scenes(cast: &Rc<Cast>, faults: u8) -> Vec<Scene> {
    let none = Budget { faults, ..Budget::default() };
    let scene =
        |name, check_ins, may| Scene { name, cast: cast.clone(), check_ins, thief: false, may, broken: None };
    let thief = scene("two computers have one token", 1, Budget { replacements: 1, revocations: 1, ..none });
    vec![
        scene("check-ins and reports", 3, Budget { events: 3, ..none }),
        Scene { thief: true, ..thief },
        scene("a machine is replaced", 1, Budget { replacements: 1, events: 2, ..none }),
        scene("a machine is revoked", 2, Budget { revocations: 1, events: 1, ..none }),
        scene("a machine is asked for a new key", 3, Budget { requests: 1, events: 1, ..none }),
        scene("two controllers publish", 1, Budget { publications: 3, hours: 1, ..none }),
        scene("a new epoch", 1, Budget { publications: 3, epochs: 1, ..none }),
        scene(
            "a machine changes its class",
            1,
            Budget { publications: 2, reclasses: 1, revocations: 1, ..none },
        ),
        scene("a backup is restored", 2, Budget { backups: 1, events: 2, ..none }),
        scene("a backup without what was published", 1, Budget { backups: 1, publications: 2, ..none }),
        scene("a machine's disk is brought back", 1, Budget { disks: 1, events: 2, ..none }),
        scene("a machine is cloned", 2, Budget { clones: 1, alarms: 1, events: 1, ..none }),
        scene("two operators sign a draft", 0, Budget { drafts: 3, ..none }),
        scene("the controller is somebody else's", 2, Budget { takeovers: 1, publications: 2, ..none }),
    ]
}

/// The scene in which the properties notice that the guard is gone.
pub fn without(guard: Break, cast: &Rc<Cast>) -> Option<Scene> {
    let name = match guard {
        Break::TakeAnyBody => "a machine is cloned",
        Break::ForgetReply | Break::AlarmOnDelay | Break::StoreTwice | Break::SkipEvents => {
            "check-ins and reports"
        }
        Break::ForgetSequence => "a machine is cloned",
        Break::ForgetRename => "a machine's disk is brought back",
        Break::TakeUsedToken => "two computers have one token",
        Break::KeepTokens => "two computers have one token",
        Break::PublishAnyNumber => "a new epoch",
        Break::DecideOnOldFacts | Break::TimestampByClock => "two controllers publish",
        Break::PublishForOldClass => "a machine changes its class",
        Break::TimestampByCount => "a backup without what was published",
        Break::KeepBearers | Break::DropHandedOn => "a machine is asked for a new key",
        Break::KeepLastDraft => "two operators sign a draft",
        Break::LogUnchained | Break::ForgetCursor => "check-ins and reports",
        Break::TrustStore => "the controller is somebody else's",
    };
    let scene = scenes(cast, 1).into_iter().find(|scene| scene.name == name)?;
    Some(Scene { broken: Some(guard), ..scene })
}
