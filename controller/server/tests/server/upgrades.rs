//! A database whose schema is newer than this controller's: what the first controller of the next version
//! leaves behind while the others are still to be replaced.

use muster_protocol::api::{self, OPERATOR_AUDIT};
use muster_protocol::audit::{Page, origin, verify};
use muster_protocol::checkin::PollReply;
use muster_protocol::ids::{Sha256, nix_base32};
use muster_protocol::machine::Class;
use muster_protocol::operator::{HistoryEntry, MachineView};
use muster_protocol::report::{Accepted, EventKind};
use muster_server::config::ServerConfig;
use muster_server::server::Server;
use reqwest::{Method, StatusCode};

use crate::schemas::{Database, folder};
use crate::support::{Answer, Fleet, LIMIT, event, system, target, until};

/// Every table has one more column than this version knows, and there is one more table.
const NEXT: &str = "DO $$ DECLARE name text; BEGIN
    FOR name IN SELECT tablename FROM pg_tables
        WHERE schemaname = 'public' AND tablename <> 'schema_migrations'
    LOOP EXECUTE format('ALTER TABLE %I ADD COLUMN of_next_version TEXT NOT NULL DEFAULT ''next''', name);
    END LOOP; END $$;
    CREATE TABLE of_next_version (machine TEXT PRIMARY KEY REFERENCES machines (name));
    CREATE INDEX of_next_version_seen ON machines (seen_at);
    INSERT INTO schema_migrations (version, checksum) VALUES (1000, '\\x00')";
const NEXT_OF_SQLITE: &str =
    "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
     VALUES (1000, 'next', TRUE, x'00', 0)";

async fn refused(fleet: &Fleet) -> String {
    let config = ServerConfig::load(&fleet.config_file()).unwrap();
    match Server::start_at(config, fleet.clock.clone()).await {
        Ok(_) => panic!("it serves a database that it does not know"),
        Err(error) => error.to_string(),
    }
}

#[tokio::test]
async fn controllers_that_run_go_on_on_the_tables_of_the_next_version() {
    let here = Fleet::start().await;
    if here.postgres.is_none() {
        return println!("not run: SQLite is one controller's");
    }
    let there = here.beside("").await;
    let mut before = here.enrolled("cinnabar", Class::Nixos).await;
    let bearer = before.bearer(&here).await;
    here.publish(&before.name, &here.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    before.report(&here, 1, vec![event(1, Some(1), EventKind::Verified)]).await.good::<Accepted>();

    // A machine waits while the tables change.
    let path = api::poll_path(&before.name, muster_protocol::ids::Generation::new(1).ok(), 600);
    let (woken, ()) = tokio::join!(here.get(&path, &bearer), async {
        until("the machine waits", || here.server.as_ref().unwrap().waiting_machines() == 1).await;
        here.try_sql(NEXT).await.unwrap();
        there
            .publish(&before.name, &there.generation("cinnabar", Class::Nixos, 2))
            .await
            .good::<MachineView>();
    });
    assert!(woken.good::<PollReply>().generation.is_some());
    for (fleet, number) in [(&here, 2), (&there, 4)] {
        assert_eq!(Answer::of(fleet.http.get(fleet.url("/readyz"))).await.status, StatusCode::OK);
        before.check_in(fleet).await;
        let events = (number..number + 2).map(|seq| event(seq, Some(2), EventKind::Verified)).collect();
        let accepted: Accepted = before.report(fleet, number, events).await.good();
        assert_eq!(accepted.through, number + 1);
        let files = fleet.get(&before.tuf("timestamp.json"), &before.bearer(fleet).await).await;
        assert_eq!(files.status, StatusCode::OK);
        let name = format!("new{number}");
        let mut machine = fleet.enrolled(&name, Class::Nixos).await;
        let bearer = machine.bearer(fleet).await;
        assert_eq!(fleet.get("/cache/nix-cache-info", &bearer).await.status, StatusCode::OK);
        let (archive, session) = (name.clone().into_bytes(), fleet.session().await);
        let path = format!("{}/nar/{}.nar.zst", api::CACHE, nix_base32(&Sha256::of(&archive)));
        let put = fleet.http.put(fleet.url(&path)).bearer_auth(session).body(archive);
        assert_eq!(Answer::of(put).await.status, StatusCode::CREATED);
        assert_eq!(fleet.get(&path, &bearer).await.text, name);
        fleet.publish(&machine.name, &fleet.generation(&name, Class::Nixos, 1)).await.good::<MachineView>();
        assert_eq!(fleet.view(&name).await.published.unwrap().target, target(&name, Class::Nixos, 1));
        fleet
            .operate(Method::POST, &format!("{}/revoke", api::operator_machine(&machine.name)), vec![])
            .await
            .good::<MachineView>();
    }
    let path = format!("{}/history", api::operator_machine(&before.name));
    let history: Vec<HistoryEntry> = there.operate(Method::GET, &path, vec![]).await.good();
    assert_eq!(history.iter().map(|entry| entry.events.len()).collect::<Vec<_>>(), [4, 1]);
    let log: Page = here.operate(Method::GET, OPERATOR_AUDIT, vec![]).await.good();
    verify(origin(&here.fleet_id()), &log.entries).unwrap();
    assert_eq!(here.sql("SELECT DISTINCT of_next_version FROM machines").await, "next");
    assert_eq!(here.view("cinnabar").await.system, system(Class::Nixos));
}

#[tokio::test]
async fn a_controller_does_not_start_on_the_tables_of_a_newer_version_and_says_what_to_start() {
    let mut fleet = Fleet::start().await;
    fleet.down().await;
    fleet.try_sql(fleet.dialect(NEXT_OF_SQLITE, NEXT)).await.unwrap();
    let said = refused(&fleet).await;
    for part in ["a newer muster has migrated it to schema 1000", "that version"] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!said.contains('\n'), "{said}");
}

/// A backup, or somebody's psql, may read a table for minutes. The new version waits for that, and those of
/// the version before must not wait behind it for so long.
#[tokio::test]
async fn a_migration_that_has_to_wait_for_a_table_holds_nobody_else_up_for_long() {
    let mut fleet = Fleet::start().await;
    if fleet.postgres.is_none() {
        return println!("not run: a migration of SQLite has it for itself");
    }
    fleet.down().await;
    let mut database = Database::empty(&mut fleet).await;
    database.migrate(&folder(&fleet), 1).await;
    let place = fleet.postgres.clone().unwrap();
    let mut reads = place.connect().await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT count(*) FROM machines").execute(&mut reads).await.unwrap();
    let others = async {
        let waits = "SELECT count(*) FROM pg_locks WHERE NOT granted AND mode = 'AccessExclusiveLock'";
        while place.sql(waits).await == "0" {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        // As patient as controllers are.
        let patient = "SET lock_timeout = '8s'; SELECT count(*) FROM machines";
        let mut other = place.connect().await.unwrap();
        sqlx::raw_sql(patient).execute(&mut other).await.unwrap();
        sqlx::raw_sql("ROLLBACK").execute(&mut reads).await.unwrap();
    };
    let both = async { tokio::join!(fleet.up(), others) };
    tokio::time::timeout(LIMIT, both).await.unwrap();
    fleet.enrolled("cinnabar", Class::Nixos).await;
}
