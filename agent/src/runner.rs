//! `muster-agent run`: a few tasks on one thread; none blocks another.
//!
//! `contact` talks to the controller: check-ins, reports, the long poll, the trusted metadata. `work` brings
//! the machine to the verified target, and `soaking` counts how long it runs that well. They share what is
//! known in `shared`, whose parts say who may write them, and wake each other; between two polls nothing
//! wakes up at all, but for a soak once a minute.
//!
//! The agent never exits by itself, least of all during an activation: on a Mac `KeepAlive` would start the
//! OLD program in the middle of it. It does exit at once when its supervisor asks, since launchd holds up a
//! whole activation for a job that does not end. Everything is durable, so the next agent takes up what it
//! finds: a running activator is watched, a dead one is restarted, a finished one is settled.
//!
//! `lifecycle` starts `contact` (with `reporting`, `requests`, `errands`, `rotation`, `sessions`), `work`
//! (with `build`, `switch`, `rest`, `roots`), `soaking` and `commands`. All depend on `shared` (with
//! `checkin`), which depends on `heard`, `turns`, `doing`, `asks`, `next_key`, `wakes`, `counted` and
//! `ledger`; nothing depends on this file.

mod asks;
mod build;
mod chance;
mod checkin;
mod commands;
mod contact;
mod counted;
mod doing;
mod errands;
mod error;
mod heard;
#[cfg(test)]
mod hour;
mod ledger;
mod lifecycle;
mod next_key;
mod reporting;
mod requests;
mod rest;
mod roots;
mod rotation;
mod sessions;
mod shared;
mod soaking;
mod switch;
mod turns;
mod unanswered;
mod wakes;
mod work;

pub use lifecycle::run;
/// The file of the unanswered check-in, in the state folder.
pub use unanswered::FILE as UNANSWERED;
