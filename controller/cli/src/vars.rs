//! Variables and secrets of a fleet, in Clan's layout on disk. Pure functions decide what is generated and
//! for whom (`names`, `layout`, `generators`, `order`, `plan`, `recipients`, `members`, `change`); programs
//! and files are at the edge (`repository`, `transaction`, `sops`, `age`, `sandbox`, `memory`, `flake`,
//! `run`); `workspace`, `make` and `answers` put them together for the verbs. `docs/secrets.md` describes it
//! for operators.

pub mod age;
pub mod answers;
pub mod change;
pub mod check;
pub mod flake;
pub mod generators;
pub mod keys;
pub mod layout;
pub mod make;
pub mod members;
pub mod memory;
pub mod names;
pub mod order;
pub mod plan;
pub mod program;
pub mod recipients;
pub mod repository;
pub mod run;
pub mod sandbox;
pub mod secret;
pub mod sops;
pub mod transaction;
pub mod workspace;
