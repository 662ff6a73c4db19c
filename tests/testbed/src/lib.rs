//! Machines in folders: stand-ins for whatever the agent touches on a machine besides Muster, and the harness
//! of the end-to-end tests.
//!
//! One program, `muster-machine`, makes machines and is every stand-in: hard-linked into `MACHINE/bin` as
//! `init`, `launchctl`, `systemctl`, `systemd-run` and `in-machine`, it finds its machine by its own path.

pub mod caller;
pub mod faults;
pub mod fixture;
pub mod fleet;
pub mod machine;
pub mod printed;
pub mod programs;
pub mod root;
pub mod security_key;
pub mod stand_in;
pub mod stolen;
pub mod thief;
