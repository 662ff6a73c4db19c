//! What the controller forgets of generations, attacks and tokens, and what it keeps whatever its age.

use muster_protocol::checkin::{CheckIn, CheckInReply, Holds};
use muster_protocol::machine::Class;
use muster_protocol::operator::{HistoryEntry, MachineView};
use muster_protocol::report::{Accepted, Attack, EventKind};
use muster_server::config::ServerConfig;
use muster_server::core::retention::Kept;
use muster_server::store::Store;
use reqwest::Method;

use crate::support::{Fleet, event};

/// Forgets as the running controller does from time to time.
async fn forget(fleet: &mut Fleet, kept: Kept) {
    let (now, now_s) = (fleet.now_s() * 1000, fleet.now_s());
    Box::pin(fleet.down()).await;
    let ServerConfig { database, data, .. } = ServerConfig::load(&fleet.config_file()).unwrap();
    let store = Store::open_in(&database, &data, &fleet.fleet_id()).await.unwrap();
    store.sweep(now_s).await.unwrap();
    store.forget_generations(kept).await.unwrap();
    store.forget_attacks(now - 86_400_000).await.unwrap();
    store.forget_tokens(now_s).await.unwrap();
    store.close().await;
    Box::pin(fleet.up()).await;
}

async fn numbers(fleet: &Fleet) -> Vec<u64> {
    let history: Vec<HistoryEntry> =
        fleet.operate(Method::GET, "/v1/operator/machines/cinnabar/history", vec![]).await.good();
    history.iter().map(|entry| entry.published.target.generation.get()).collect()
}

#[tokio::test]
async fn old_generations_go_except_the_newest_the_youngest_and_what_the_machine_holds() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    for number in 1..=6 {
        fleet
            .publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, number))
            .await
            .good::<MachineView>();
        fleet.clock.forward(86_400);
    }
    machine.seq += 1;
    let holds = Holds { targets: 2, ..Holds::default() };
    let told = CheckIn { holds, ..machine.checkin(&fleet, machine.seq) };
    machine.send_checkin(&fleet, &told).await.good::<CheckInReply>();
    let days = |fleet: &Fleet, days: i64| (fleet.now_s() - days * 86_400) * 1000 - 1;

    let all_young = Kept { newest: 2, since: days(&fleet, 6) };
    forget(&mut fleet, all_young).await;
    assert_eq!(numbers(&fleet).await, [6, 5, 4, 3, 2, 1]);
    let many = Kept { newest: 6, since: days(&fleet, 0) };
    forget(&mut fleet, many).await;
    assert_eq!(numbers(&fleet).await, [6, 5, 4, 3, 2, 1]);
    let some_young = Kept { newest: 2, since: days(&fleet, 3) };
    forget(&mut fleet, some_young).await;
    assert_eq!(numbers(&fleet).await, [6, 5, 4, 2], "3 and 1 are old, 2 is held");
    assert_eq!(fleet.view("cinnabar").await.generations_forgotten, 2);
    let none_young = Kept { newest: 1, since: days(&fleet, 0) };
    forget(&mut fleet, none_young).await;
    assert_eq!(numbers(&fleet).await, [6, 2]);
    forget(&mut fleet, none_young).await;
    let view = fleet.view("cinnabar").await;
    assert_eq!((view.generations_forgotten, view.published.unwrap().target.generation.get()), (4, 6));
    // The files of the one that is offered are served, and the next one is published.
    let bearer = machine.bearer(&fleet).await;
    assert_eq!(fleet.get(&machine.tuf("6.targets.json"), &bearer).await.status, 200);
    assert_eq!(fleet.get(&machine.tuf("5.targets.json"), &bearer).await.status, 404);
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 7)).await.good::<MachineView>();
}

fn confirmed() -> EventKind {
    let running = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap();
    EventKind::Confirmed { running, ms: 1, degraded: vec![] }
}

#[tokio::test]
async fn the_last_three_generations_that_a_machine_confirmed_are_kept_whatever_their_age() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    for number in 1..=8 {
        fleet
            .publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, number))
            .await
            .good::<MachineView>();
        fleet.clock.forward(86_400);
    }
    let back = EventKind::RolledBack {
        running: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap(),
        reason: muster_protocol::report::Reason::DidNotBoot,
        detail: "no tries left".into(),
        quarantined: true,
    };
    let told = [(1, confirmed()), (2, confirmed()), (3, confirmed()), (4, back.clone()), (5, confirmed())];
    let told = told.into_iter().chain([(6, confirmed()), (6, back)]);
    let told = (1..).zip(told).map(|(seq, (generation, kind))| event(seq, Some(generation), kind));
    machine.report(&fleet, 1, told.collect()).await.good::<Accepted>();
    machine.check_in(&fleet).await;
    let none_young = Kept { newest: 1, since: (fleet.now_s() + 1) * 1000 };
    forget(&mut fleet, none_young).await;
    assert_eq!(numbers(&fleet).await, [8, 5, 3, 2], "6 was confirmed, and did not boot later");
    forget(&mut fleet, none_young).await;
    assert_eq!(numbers(&fleet).await, [8, 5, 3, 2]);
}

#[tokio::test]
async fn attacks_that_ended_and_tokens_that_expired_go_once_they_are_old() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    fleet.invited("lead", Class::Nixos).await;
    let refused = EventKind::Refused { attack: Attack::Rollback, detail: "x".into() };
    machine.report(&fleet, 1, vec![event(1, None, refused.clone())]).await.good::<Accepted>();
    machine.check_in(&fleet).await;
    let kept = Kept { newest: 1, since: 0 };
    let count = "SELECT (SELECT count(*) FROM attacks) || ' ' || (SELECT count(*) FROM tokens)";
    forget(&mut fleet, kept).await;
    assert_eq!(fleet.sql(count).await, "1 2");
    fleet.clock.forward(2 * 86_400);
    machine.seq += 1;
    let refuses = CheckIn { refused: Some(Attack::Rollback), ..machine.checkin(&fleet, machine.seq) };
    machine.send_checkin(&fleet, &refuses).await.good::<CheckInReply>();
    machine.report(&fleet, 2, vec![event(2, None, refused)]).await.good::<Accepted>();
    forget(&mut fleet, kept).await;
    assert_eq!(fleet.sql(count).await, "1 2", "the ended one went, the one that goes on stays");
    fleet.clock.forward(40 * 86_400);
    forget(&mut fleet, kept).await;
    assert_eq!(fleet.sql(count).await, "1 0");
    assert_eq!(fleet.view("lead").await.standing, muster_protocol::operator::Standing::Invited);
}
