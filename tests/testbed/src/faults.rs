//! The matrix of faults: every durable step of agent and activator, every fault, both classes of machines.
//!
//! A cell is one update. The agent or the activator is stopped exactly at the step (`agent/src/stops.rs`),
//! the machine suffers the fault, and must then recover by itself.

pub mod cell;
pub mod check;
pub mod steps;
