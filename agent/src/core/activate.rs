//! The steps of an activator, forwards and back: a machine that is told what it sees and what became of its last step, and
//! says the next one. [`super::resume`] says where it begins after a kill or a reboot.
//!
//! Nothing here touches the world. Each [`Act`] happens whole, fails, or is cut short by the end of this process; what
//! stays then is [`Course::record`] as it was last written, and the machine itself.
//!
//! `forth` and `back` move the [`Course`] of `place`; all stand on `act`.

mod act;
mod back;
mod forth;
mod place;
#[cfg(test)]
mod tests;

pub use act::{Act, Ailing, Done, Outcome, Ran, Sight, Way};
pub use place::Course;
