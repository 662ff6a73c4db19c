//! Several controllers over one database, agents and an operator at work, and things killed at random. In the
//! end nothing is lost, nothing is there twice, and every machine is in its right state.
//!
//! `dice` makes the run repeatable; `postgres` and `relay` are the database and the way to it; `controllers`
//! are the programs; `agent` and `operator` do what real ones do; `chaos` kills; `verdict` looks at what is
//! left. `blobs` are the archives that generations bring along, in a folder or in `garage`. `life` is a fleet
//! with all of them, and `speed` is how long things take in it while nothing is broken.

pub mod agent;
pub mod blobs;
pub mod chaos;
pub mod controllers;
pub mod dice;
pub mod garage;
pub mod life;
pub mod operator;
pub mod postgres;
pub mod relay;
pub mod speed;
pub mod verdict;
