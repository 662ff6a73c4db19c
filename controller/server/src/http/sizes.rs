//! The futures of requests that machines send all the time, or wait in, are small.
//!
//! A future keeps room for the largest that it may wait for. Each request has its own in memory while it is
//! answered, and what thousands of them leave behind is not given back to the system.

use axum::extract::{FromRequest as _, Request, State};
use muster_protocol::checkin::CheckIn;
use muster_protocol::ids::MachineName;

use super::auth::machine::FromMachine;
use super::machine::{check_in, poll};
use super::state::Shared;
use crate::store::Store;

/// The size of what a function returns, in bytes.
fn size<A, F>(_: impl FnOnce(A) -> F) -> usize {
    size_of::<F>()
}

fn is_small(what: &str, bytes: usize, most: usize) {
    assert!(bytes <= most, "{what} takes {bytes} bytes, and may take {most}: box what is large and rare");
}

#[test]
fn a_poll_and_a_routine_check_in_are_small() {
    let state = |app: &'static Shared| State(app.clone());
    let asked = |(request, app): (Request, &'static Shared)| poll::Asked::from_request(request, app);
    is_small("what a poll asks", size(asked), 64);
    is_small("a poll", size(|(app, asked)| poll::poll(state(app), asked)), 320);
    let from =
        |(request, app): (Request, &'static Shared)| FromMachine::<CheckIn>::from_request(request, app);
    is_small("who checks in", size(from), 6 * 1024);
    is_small("a check-in", size(|(app, sent)| check_in::check_in(state(app), sent)), 5 * 1024);
}

#[test]
fn what_every_request_passes_through_is_small() {
    let outermost = |(app, request, router)| super::outermost(app, request, router);
    is_small("what every request passes through", size(outermost), 512);
}

#[test]
fn what_asks_the_database_has_a_box() {
    type Named = (&'static Store, &'static MachineName);
    is_small("a machine's key", size(|(store, name): Named| store.machine_key(name)), 512);
    is_small("a machine's news", size(|(store, name): Named| store.news(name)), 512);
    is_small("a machine that is seen", size(|(store, name): Named| store.seen(name, 0)), 1536);
    is_small(
        "a check-in's place",
        size(|(store, arrived): (&'static Store, _)| store.check_in(arrived)),
        2048,
    );
}
