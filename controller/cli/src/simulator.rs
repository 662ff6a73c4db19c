//! A fleet in simulated time: the controller's own engine and the machines' own gate, over machines that
//! sleep, lose their network and fail, and a controller that is down or lies. Everything follows from the
//! seed.
//!
//! `world` moves the time, `machine` is one machine, `order` makes the plans that are compared, `course` is
//! what is told of it all, and `picture` draws that.

mod course;
mod dice;
mod machine;
mod order;
mod picture;
mod world;

pub use course::{Course, clock};
pub use order::Order;
pub use picture::draw;
pub use world::{Controller, Fleet, run};

#[cfg(test)]
mod tests;
