use muster_protocol::ids::Generation;
use muster_protocol::machine::Class;
use muster_protocol::policy::Policy;
use muster_protocol::report::UpdateStep as Ended;

use super::*;
use crate::core::policy::Pause;
use crate::core::reboot::Rebooted;
use crate::core::records::tests::{path, rolled_back, target, transaction};
use crate::core::records::{Again, Cause, Known, Origin, Settled};
use crate::core::window::Openness;

mod activator;
mod begin;
mod deferral;
mod epoch;
mod rest;
mod turn;

fn activation(number: u64, phase: Phase) -> Activation {
    let mut record = Activation::new(&transaction(number, State::Activating), "boot");
    (record.phase, record.exit, record.ms, record.starts) = (phase, Some(0), 1, 1);
    (record.reason, record.detail) = (Some(Reason::Deadline), "late".into());
    record
}

/// A machine on which nothing prevents a step.
static WELL: Circumstances = Circumstances {
    window: Openness::Open,
    on_battery: None,
    metered: false,
    free_disk: None,
    free_memory: None,
    busy: None,
    absent: None,
};
static RULES: std::sync::LazyLock<Rules> =
    std::sync::LazyLock::new(|| Rules::new(&Policy::default(), &Policy::default()));

fn observed<'a>() -> Observed<'a> {
    Observed {
        epoch: Epoch::default(),
        transaction: None,
        activation: None,
        activator_alive: true,
        given: None,
        running: None,
        boot: "boot",
        probed: None,
        controller: Controller { answers: true, reached_since_activation: true },
        rollback_asked: false,
        asked: false,
        console: None,
        rules: &RULES,
        circumstances: Some(&WELL),
        turn: None,
        due: None,
        blockers: None,
        at: 1_000,
        not_before: None,
        now: Duration::from_secs(100),
    }
}

fn generation(number: u64) -> Generation {
    Generation::new(number).unwrap()
}

fn known(number: u64) -> Known {
    let target = Some(Box::new(target(number, Class::Nixos)));
    let output = path(&format!("system-{number}"));
    Known { generation: generation(number), output, derivation: None, at: 1, target }
}

fn tried(number: u64) -> Journal {
    Journal { tried: Some(generation(number)), ..Journal::default() }
}

fn deferred(hold: Hold, stage: Stage) -> State {
    State::Deferred { deferral: Deferral::new(hold, "x"), stage }
}

fn later(number: u64) -> Generation {
    Generation::of(Epoch::new(1).unwrap(), number).unwrap()
}
