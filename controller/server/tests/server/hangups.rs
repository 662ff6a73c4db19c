//! Clients that hang up in the middle of a request, wherever that is.

use std::time::Duration;

use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::PollReply;
use muster_protocol::ids::Generation;
use muster_protocol::machine::Class;
use muster_protocol::operator::{MachinePublication, MachineView, Publications, Standing};

use reqwest::Method;

use crate::support::{self, Answer, Fleet, until};

/// What a controller holds of its database is given back: SQLite has one that writes and four that read,
/// PostgreSQL sixteen. Were one lost each time, the last requests of this test would wait for ever.
#[tokio::test]
async fn whoever_hangs_up_while_the_database_is_asked_keeps_nothing_of_it() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let path = api::operator_machine(&machine.name);
    let alarm = format!("{path}/generations");
    for round in 0..240_u64 {
        let after = Duration::from_micros(50 * (round % 80));
        let number = 1 + round;
        let generation = serde_json::to_vec(&fleet.generation("cinnabar", Class::Nixos, number)).unwrap();
        let checkin = machine.checkin(&fleet, number);
        // Each is dropped at another instant of what it does: reading, beginning to write, committing.
        tokio::join!(
            hung_up(after, fleet.operate(Method::GET, &path, vec![])),
            hung_up(after, fleet.operate(Method::POST, &alarm, generation)),
            hung_up(after, machine.send_checkin(&fleet, &checkin)),
        );
    }
    machine.seq = 1000;
    let whole = async {
        let all = (0..40).map(|_| fleet.view("cinnabar"));
        futures_util::future::join_all(all).await;
        machine.check_in(&fleet).await;
        let held: MachineView = fleet.view("cinnabar").await;
        let next = held.published.map_or(1, |published| published.target.generation.get() + 1);
        fleet
            .publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, next))
            .await
            .good::<MachineView>();
    };
    tokio::time::timeout(crate::support::LIMIT, whole)
        .await
        .expect("something of the database is held for ever");
}

/// What is stored for an operator who hangs up is told to the machines that wait, as if he were still there.
#[tokio::test]
async fn whatever_a_client_that_hung_up_has_stored_is_told_to_those_who_wait() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&fleet).await;
    for round in 1..=120_u64 {
        let held = Generation::new(round - 1).ok();
        let request = fleet.http.get(fleet.url(&api::poll_path(&machine.name, held, 600)));
        let poll = tokio::spawn(Answer::of(request.bearer_auth(&bearer)));
        let server = fleet.server.as_ref().unwrap();
        until("a poll waits", || server.waiting_machines() == 1).await;
        let publication = fleet.generation("cinnabar", Class::Nixos, round);
        let generations =
            vec![MachinePublication { machine: machine.name.clone(), publication: publication.clone() }];
        let many = serde_json::to_vec(&Publications { generations }).unwrap();
        let after = Duration::from_micros(50 * (round % 60));
        if round % 2 == 0 {
            hung_up(after, fleet.publish(&machine.name, &publication)).await;
        } else {
            hung_up(after, fleet.operate(Method::POST, api::OPERATOR_GENERATIONS, many)).await;
        }
        // The same again changes nothing, and rings nobody, if it was stored.
        fleet.publish(&machine.name, &publication).await.good::<MachineView>();
        let told = tokio::time::timeout(support::LIMIT, poll).await;
        let told: PollReply = told.unwrap_or_else(|_| panic!("nobody rang in round {round}")).unwrap().good();
        assert_eq!(told.generation.map(Generation::get), Some(round));
    }
    fleet.down().await;
}

#[tokio::test]
async fn a_poll_ends_if_whoever_revoked_its_machine_has_hung_up() {
    let fleet = Fleet::start().await;
    for round in 0..40_u64 {
        let mut machine = fleet.enrolled(&format!("m{round}"), Class::Nixos).await;
        let bearer = machine.bearer(&fleet).await;
        let request = fleet.http.get(fleet.url(&api::poll_path(&machine.name, None, 600)));
        let poll = tokio::spawn(Answer::of(request.bearer_auth(&bearer)));
        let server = fleet.server.as_ref().unwrap();
        until("a poll waits", || server.waiting_machines() == 1).await;
        let path = format!("{}/revoke", api::operator_machine(&machine.name));
        let after = Duration::from_micros(50 * round);
        hung_up(after, fleet.operate(Method::POST, &path, vec![])).await;
        if fleet.view(machine.name.as_str()).await.standing != Standing::Revoked {
            fleet.operate(Method::POST, &path, vec![]).await.good::<MachineView>();
        }
        let told = tokio::time::timeout(support::LIMIT, poll).await;
        told.unwrap_or_else(|_| panic!("nobody rang in round {round}"))
            .unwrap()
            .refused(401, ProblemCode::Unauthorised);
    }
}

async fn hung_up<T>(after: Duration, request: impl Future<Output = T>) {
    let _ = tokio::time::timeout(after, request).await;
}
