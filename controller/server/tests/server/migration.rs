//! The database of a released version is migrated with all that it holds.

use crate::support::{Fleet, target};
use muster_protocol::api;
use muster_protocol::audit::{Page, origin, verify};
use muster_protocol::operator::{HistoryEntry, MachineView, Standing};
use reqwest::Method;
use sqlx::Connection as _;

/// A database with the schema of version 0.1 before its later migrations: one machine with one generation,
/// and an audit log of three entries. Written with SQL, since today's store writes only today's schema; the
/// recorded folder of 0.1.0 (`recorded.rs`) has the later migrations already.
async fn of_0_1(fleet: &Fleet) {
    let folder = fleet.dir.path().join("migrations-of-0.1");
    std::fs::create_dir(&folder).unwrap();
    let first = concat!(env!("CARGO_MANIFEST_DIR"), "/migrations/sqlite/0001_start.sql");
    std::fs::copy(first, folder.join("0001_start.sql")).unwrap();
    let database = fleet.dir.path().join("data/muster.db");
    for suffix in ["", "-wal", "-shm"] {
        let _ = std::fs::remove_file(format!("{}{suffix}", database.display()));
    }
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&database).create_if_missing(true);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    sqlx::migrate::Migrator::new(folder).await.unwrap().run(&mut connection).await.unwrap();
    let generation = fleet.generation("cinnabar", muster_protocol::machine::Class::Nixos, 1);
    let operator = fleet.operator.public();
    sqlx::query("INSERT INTO fleet (id) VALUES ($1)")
        .bind(fleet.fleet_id().as_bytes().to_vec())
        .execute(&mut connection)
        .await
        .unwrap();
    sqlx::query(
        "INSERT INTO machines (name, class, system, tags, added_at, enrolment, key, enrolled_at, seq, \
            seen_at, published)
         VALUES ('cinnabar', 'nixos', 'x86_64-linux', '[\"lab\"]', 5, 1, $1, 6, 41, 7, 1)",
    )
    .bind(operator.as_bytes().to_vec())
    .execute(&mut connection)
    .await
    .unwrap();
    sqlx::query(
        "INSERT INTO generations (machine, generation, targets, snapshot, target, target_sha256, expires, \
            published_at,
             published_by) VALUES ('cinnabar', 1, $1, $2, $3, $4, 9, 8, $5)",
    )
    .bind(generation.targets.as_bytes().to_vec())
    .bind(generation.snapshot.as_bytes().to_vec())
    .bind(generation.target.as_bytes().to_vec())
    .bind(vec![0_u8; 32])
    .bind(operator.as_bytes().to_vec())
    .execute(&mut connection)
    .await
    .unwrap();
    for (at, action, machine, detail) in [
        (5, "machine-added", Some("cinnabar"), "a token"),
        (7, "session-opened", None, ""),
        (8, "generation-published", Some("cinnabar"), "1"),
    ] {
        sqlx::query("INSERT INTO audit (at, operator, action, machine, detail) VALUES ($1, $2, $3, $4, $5)")
            .bind(at)
            .bind(operator.as_bytes().to_vec())
            .bind(action)
            .bind(machine)
            .bind(detail)
            .execute(&mut connection)
            .await
            .unwrap();
    }
    connection.close().await.unwrap();
}

#[tokio::test]
async fn a_database_of_version_0_1_keeps_its_machines_and_its_log_gets_a_chain() {
    let mut fleet = Fleet::start().await;
    fleet.down().await;
    of_0_1(&fleet).await;
    fleet.up().await;

    let view: MachineView = fleet.view("cinnabar").await;
    assert_eq!((view.standing, view.key), (Standing::Enrolled, Some(fleet.operator.public())));
    let published = view.published.unwrap();
    assert_eq!(published.target, target("cinnabar", muster_protocol::machine::Class::Nixos, 1));
    assert!(published.is_signed_by(&[fleet.operator.public()], 1));
    assert!(view.attack.is_none() && view.key_rotated_at.is_none());
    let history: Vec<HistoryEntry> =
        fleet.operate(Method::GET, "/v1/operator/machines/cinnabar/history", vec![]).await.good();
    assert_eq!(history.len(), 1);

    // However often it starts, the log is migrated once.
    fleet.down().await;
    fleet.up().await;
    let page: Page = fleet.operate(Method::GET, api::OPERATOR_AUDIT, vec![]).await.good();
    let told: Vec<(i64, &str, &str)> =
        page.entries.iter().map(|entry| (entry.at, entry.action.as_str(), entry.detail.as_str())).collect();
    assert_eq!(
        told[..3],
        [(5, "machine-added", "a token"), (7, "session-opened", ""), (8, "generation-published", "1")]
    );
    assert_eq!((told.len(), told[3].1), (4, "root-found"));
    verify(origin(&fleet.fleet_id()), &page.entries).unwrap();
    assert!(fleet.try_sql("DELETE FROM audit").await.unwrap_err().to_string().contains("append-only"));
}
