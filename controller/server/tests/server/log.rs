//! The audit log: its checkpoints reach machines and operators, and it is cut only where it was exported.

use muster_protocol::api::{self, ProblemCode};
use muster_protocol::audit::{
    AuditError, CUT_DAYS, Checkpoint, CutLog, LogCut, Page, Possession, ShownLog, origin, verify,
};
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::ids::Sha256;
use muster_protocol::machine::Class;
use muster_server::config::ServerConfig;
use muster_server::store::Store;
use reqwest::Method;

use crate::support::Fleet;

async fn log(fleet: &Fleet) -> Page {
    fleet.operate(Method::GET, api::OPERATOR_AUDIT, vec![]).await.good()
}

fn checkpoint(page: &Page, id: u64) -> Checkpoint {
    let entry = page.entries.iter().find(|entry| entry.id == id).unwrap();
    Checkpoint { id, hash: entry.hash }
}

/// What an operator sends who exported the log as in `page` and wants it cut at entry `id`.
fn cut_at(page: &Page, id: u64) -> CutLog {
    let mut holds = Possession::default();
    page.entries.iter().filter(|entry| entry.id <= id).for_each(|entry| holds.add(entry));
    CutLog { through: checkpoint(page, id), holds: holds.finish(), export: Sha256::of(b"export") }
}

async fn cut(fleet: &Fleet, asked: &CutLog) -> crate::support::Answer {
    fleet.operate(Method::POST, api::OPERATOR_AUDIT_CUT, serde_json::to_vec(asked).unwrap()).await
}

/// Removes what was cut, as the running controller does from time to time.
async fn forget(fleet: &mut Fleet) {
    fleet.down().await;
    let ServerConfig { database, data, .. } = ServerConfig::load(&fleet.config_file()).unwrap();
    let store = Store::open_in(&database, &data, &fleet.fleet_id()).await.unwrap();
    store.forget_cut_entries().await.unwrap();
    store.close().await;
    fleet.up().await;
}

#[tokio::test]
async fn a_machine_is_shown_the_logs_newest_entry_and_operators_see_what_it_was_shown() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let page = log(&fleet).await;
    let newest = checkpoint(&page, page.last);
    assert_eq!(machine.check_in(&fleet).await.log, Some(newest));
    // What is committed later is shown later, and a start reads what was committed before.
    fleet.invited("lead", Class::Nixos).await;
    let newer = Checkpoint { id: newest.id + 1, ..checkpoint(&log(&fleet).await, newest.id + 1) };
    assert_eq!(machine.check_in(&fleet).await.log, Some(newer));
    fleet.down().await;
    fleet.up().await;
    assert_eq!(machine.check_in(&fleet).await.log, Some(newer));

    let fork = Checkpoint { id: newest.id, hash: Sha256::of(b"another history") };
    let shown = ShownLog::sign(&machine.key, &machine.fleet, &machine.name, vec![fork, newer], 5);
    machine.seq += 1;
    let told = CheckIn { shown: Some(shown.clone()), ..machine.checkin(&fleet, machine.seq) };
    machine.send_checkin(&fleet, &told).await.good::<CheckInReply>();
    let view = fleet.view("cinnabar").await;
    assert_eq!(view.shown.as_ref(), Some(&shown));
    assert!(shown.verify(&fleet.fleet_id(), &view.machine, &view.key.unwrap()).is_ok());
    // A list that is too long is no machine's.
    let long = ShownLog { log: vec![fork; 5], ..shown };
    let told = CheckIn { shown: Some(long), ..machine.checkin(&fleet, machine.seq + 1) };
    machine.send_checkin(&fleet, &told).await.refused(400, ProblemCode::Malformed);
}

#[tokio::test]
async fn the_log_is_cut_at_an_exported_entry_and_its_chain_goes_on() {
    let mut fleet = Fleet::start().await;
    for name in ["cinnabar", "lead", "tin"] {
        fleet.enrolled(name, Class::Nixos).await;
    }
    let exported = log(&fleet).await;
    assert_eq!(exported.last, 7);
    let asked = cut_at(&exported, 5);
    let message = cut(&fleet, &asked).await.refused(409, ProblemCode::Conflict);
    assert!(message.contains("not 30 days old"), "{message}");
    fleet.clock.forward(CUT_DAYS * 86_400 + 60);

    let missing = CutLog { through: Checkpoint { id: 8, ..asked.through }, ..asked };
    cut(&fleet, &missing).await.refused(404, ProblemCode::NotFound);
    let other = CutLog { through: Checkpoint { hash: Sha256::of(b"x"), ..asked.through }, ..asked };
    cut(&fleet, &other).await.refused(409, ProblemCode::Conflict);
    let unread = CutLog { holds: Sha256::of(b"x"), ..asked };
    cut(&fleet, &unread).await.refused(422, ProblemCode::Malformed);
    assert!(log(&fleet).await.anchor.is_none());

    let done: LogCut = cut(&fleet, &asked).await.good();
    assert_eq!(done.anchor, asked.through);
    cut(&fleet, &asked).await.refused(409, ProblemCode::Conflict);
    let page = log(&fleet).await;
    assert_eq!((page.anchor, page.last), (Some(asked.through), 8));
    let last = verify(asked.through, &page.entries).unwrap();
    assert_eq!((last.id, page.entries[2].action.as_str()), (8, "log-cut"));
    assert_eq!(page.entries[2].by, Some(fleet.operator.public()));
    assert!(page.entries[2].detail.contains(&asked.through.hash.to_string()));

    // The entries are still in the database if the controller stops here; nobody sees them, and the next one
    // goes on removing them.
    assert_eq!(fleet.sql("SELECT count(*) FROM audit").await, "8");
    forget(&mut fleet).await;
    assert_eq!(fleet.sql("SELECT count(*) FROM audit").await, "3");
    assert_eq!(log(&fleet).await, page);
    fleet.enrolled("zinc", Class::Nixos).await;
    let longer = log(&fleet).await;
    assert_eq!(verify(asked.through, &longer.entries).unwrap().id, 10);
    assert_eq!(
        verify(origin(&fleet.fleet_id()), &longer.entries).unwrap_err(),
        AuditError::Gap { wanted: 1, found: 6 }
    );

    // Once more, from the anchor on.
    fleet.clock.forward(CUT_DAYS * 86_400 + 60);
    let again = cut_at(&longer, 9);
    cut(&fleet, &again).await.good::<LogCut>();
    forget(&mut fleet).await;
    let page = log(&fleet).await;
    assert_eq!((page.anchor, page.entries.len()), (Some(again.through), 2));
    assert_eq!(verify(again.through, &page.entries).unwrap().id, 11);
}

#[tokio::test]
async fn the_database_lets_no_entry_go_that_was_not_cut() {
    let fleet = Fleet::start().await;
    fleet.enrolled("cinnabar", Class::Nixos).await;
    for query in [
        "DELETE FROM audit WHERE id = 1",
        "UPDATE audit SET detail = ''",
        "INSERT OR REPLACE INTO audit SELECT * FROM audit WHERE id = 1",
        "UPDATE fleet SET audit_cut = 2, audit_cut_hash = (SELECT hash FROM audit WHERE id = 2)",
        "UPDATE fleet SET audit_cut = 9, audit_cut_hash = x'00'",
    ] {
        let refused = fleet.try_sql(query).await.unwrap_err().to_string();
        assert!(refused.contains("append-only"), "{query}: {refused}");
    }
    fleet.clock.forward(CUT_DAYS * 86_400 + 60);
    let page = log(&fleet).await;
    cut(&fleet, &cut_at(&page, 2)).await.good::<LogCut>();
    for query in [
        "DELETE FROM audit WHERE id = 3",
        "UPDATE fleet SET audit_cut = 3, audit_cut_hash = (SELECT hash FROM audit WHERE id = 3)",
        "UPDATE fleet SET audit_cut = 0, audit_cut_hash = NULL",
    ] {
        let refused = fleet.try_sql(query).await.unwrap_err().to_string();
        assert!(refused.contains("append-only"), "{query}: {refused}");
    }
}

#[tokio::test]
async fn a_log_that_somebody_changed_is_not_cut() {
    let fleet = Fleet::start().await;
    fleet.enrolled("cinnabar", Class::Nixos).await;
    let page = log(&fleet).await;
    fleet.clock.forward(CUT_DAYS * 86_400 + 60);
    fleet.try_sql("DROP TRIGGER audit_entries_are_never_changed").await.unwrap();
    fleet.try_sql("UPDATE audit SET detail = 'another' WHERE id = 2").await.unwrap();
    let message = cut(&fleet, &cut_at(&page, 3)).await.refused(409, ProblemCode::Conflict);
    assert!(message.contains("keep a copy of the database"), "{message}");
    assert!(log(&fleet).await.anchor.is_none());
}
