//! Clients that hang up in the middle of a request, wherever that is.

use std::time::Duration;

use muster_protocol::api;
use muster_protocol::machine::Class;
use muster_protocol::operator::MachineView;
use reqwest::Method;

use crate::support::Fleet;

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

async fn hung_up<T>(after: Duration, request: impl Future<Output = T>) {
    let _ = tokio::time::timeout(after, request).await;
}
