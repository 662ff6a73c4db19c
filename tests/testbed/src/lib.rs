//! Machines in folders: what a machine has besides Muster, stood in for as far as the agent touches it, and the
//! harness of the end-to-end tests.
//!
//! One program, `muster-machine`, makes machines and is every stand-in: hard-linked into `MACHINE/bin` under the names
//! `init`, `launchctl`, `systemctl`, `systemd-run` and `in-machine`, it finds its machine by where it lies.

pub mod caller;
pub mod faults;
pub mod fixture;
pub mod fleet;
pub mod machine;
pub mod programs;
pub mod root;
pub mod stand_in;
pub mod stolen;
pub mod thief;
pub mod told;
