//! The steps of an activator, forwards and back: a state machine that is given what is observed and the
//! result of its last step, and returns the next one. [`super::resume`] says where it starts after a kill or
//! a reboot.
//!
//! Nothing here has side effects. Each [`Act`] happens completely, fails, or is cut short when this process
//! ends; what remains then is the last written [`Course::record`] and the machine itself.
//!
//! `forth` and `back` move the [`Course`] of `place`; all depend on `act`.

mod act;
mod back;
mod forth;
mod place;
#[cfg(test)]
mod tests;

pub use act::{Act, Ailing, Done, Outcome, Ran, Sight, Way};
pub use place::Course;
