//! The matrix of faults: every durable step of agent and activator, every fault, both classes of machines.
//!
//! A cell is one update. The agent or the activator is stopped exactly at the step (`agent/src/stops.rs`), the fault is done
//! to the machine, and it must then end well by itself.

pub mod cell;
pub mod check;
pub mod steps;
