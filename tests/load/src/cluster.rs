//! Several controllers over one database, agents and an operator at work, and things killed at random. In the
//! end nothing is lost, nothing is there twice, and every machine is in its right state.
//!
//! `dice` makes the run repeatable; `postgres` and `relay` are the database and the way to it; `controllers`
//! are the programs; `agent` and `operator` do what real ones do; `chaos` kills; `verdict` looks at what is
//! left.

pub mod agent;
pub mod chaos;
pub mod controllers;
pub mod dice;
pub mod operator;
pub mod postgres;
pub mod relay;
pub mod verdict;
