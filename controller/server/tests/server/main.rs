//! A real server in this process, and clients that sign their requests.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod alarms;
mod batch;
mod blobs;
mod bounds;
mod cache;
mod collect;
mod copying;
mod hangups;
mod hardware;
mod lifecycle;
mod limits;
mod log;
mod machines;
mod migration;
mod operators;
mod parties;
mod precedence;
mod recorded;
mod resting;
mod restored;
mod retention;
mod rollouts;
mod schemas;
mod sessions;
mod shared;
mod sign_in;
mod stores;
mod support;
mod trust;
mod upgrades;
mod watched;
