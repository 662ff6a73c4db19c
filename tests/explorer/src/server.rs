//! The controller's half: its pure core over a store in memory, with machines and operators round it.
//!
//! `memory` keeps what is stored; `controller` decides, whole or with one guard taken out; `cast` is who
//! takes part,
//! `documents` what they sign, `machine` what a computer's disk holds, `happening` what can happen. `stage`
//! says what one
//! exploration is about, `world` is one moment of it, and `properties` what must hold there. `deciding`
//! carries decisions out;
//! `operators` and `steps` lead to the next moment; `scenes` is what is walked. Each uses those before it
//! alone.

mod cast;
mod controller;
mod deciding;
mod documents;
mod happening;
mod machine;
mod memory;
mod operators;
mod properties;
pub mod scenes;
mod stage;
mod steps;
mod world;

pub use cast::{Cast, MACHINES, STRANGER, system};

/// Who takes part; none where their keys cannot be made.
pub fn cast() -> Option<Cast> {
    Cast::new()
}
