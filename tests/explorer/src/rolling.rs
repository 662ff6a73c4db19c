//! A small rollout: engine, gate and agent that ship, together, with machines, a network and operators round
//! them, and with a controller that is honest or somebody else's.
//!
//! `plans` makes what is signed; `machine` is what is remembered of a machine, `desk` of a controller, both
//! as small as can be; `guard` names what is taken out. `stage` says what one exploration is about. `proof`,
//! `agent` and `engine` ask the code that ships; `world` is one moment, `happening` what can happen to it,
//! `properties` what must hold, by the world's own count. `steps` leads from one moment to the next, and
//! `scenes` is what is walked. Each uses those before it alone.

mod agent;
mod desk;
mod engine;
mod guard;
mod happening;
mod machine;
mod plans;
mod proof;
mod properties;
pub mod scenes;
mod stage;
mod steps;
#[cfg(test)]
mod tests;
mod world;

pub use guard::Break;
