//! `muster database copy`: what a released version wrote, there and back.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use muster_server::config::ServerConfig;
use muster_server::database::{self, DatabaseError};
use muster_server::server::{Server, ServerError};
use muster_server::store::copy::CopyError;
use sqlx::{AssertSqlSafe, Column as _, Connection as _, Row as _, ValueRef as _};

use crate::recorded::fixture;
use crate::support::postgres::Place;

/// Writes `NAME.toml` for a controller whose data are in the folder `NAME`, with the fixture's first roots.
fn configure(folder: &Path, name: &str, roots: &[&str], more: &str) {
    let from = fixture().join("controller");
    fs::create_dir_all(folder.join(name).join("root")).unwrap();
    for file in roots {
        fs::copy(from.join("root").join(file), folder.join(name).join("root").join(file)).unwrap();
    }
    let key = folder.join("online.pem");
    fs::copy(from.join("online.pem"), &key).unwrap();
    fs::set_permissions(key, fs::Permissions::from_mode(0o600)).unwrap();
    let config = format!(
        "listen = \"127.0.0.1:0\"\nurl = \"http://127.0.0.1:1\"\ndata = \"{name}\"\nroot = \"{name}/root\"\n\
         online_key = \"online.pem\"\n{more}"
    );
    fs::write(folder.join(format!("{name}.toml")), config).unwrap();
}

/// Every row of every table.
async fn rows(database: &Path) -> Vec<String> {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(database);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    let tables: Vec<String> = sqlx::query_scalar(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE '_sqlx%' ORDER BY name",
    )
    .fetch_all(&mut connection)
    .await
    .unwrap();
    let mut all = Vec::new();
    for table in tables {
        let query = AssertSqlSafe(format!("SELECT * FROM {table}"));
        for row in sqlx::query(query).fetch_all(&mut connection).await.unwrap() {
            let value = |at: usize| match row.try_get_raw(at).unwrap().is_null() {
                true => "NULL".to_owned(),
                false => format!("{:?}", row.get_unchecked::<Vec<u8>, _>(at)),
            };
            let mut values: Vec<String> = row
                .columns()
                .iter()
                .map(|column| format!("{}={}", column.name(), value(column.ordinal())))
                .collect();
            values.sort();
            all.push(format!("{table}: {}", values.join(" ")));
        }
    }
    all.sort();
    all
}

#[tokio::test]
async fn a_released_versions_database_is_the_same_after_it_was_copied_there_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let both = ["1.root.json", "2.root.json"];
    configure(at, "old", &both, "");
    fs::copy(fixture().join("controller/muster.db"), at.join("old/muster.db")).unwrap();
    let postgres = Place::new().await;
    let shared = postgres.as_ref().map(|postgres| postgres.setting()).unwrap_or_default();
    configure(at, "there", &both, &shared);
    configure(at, "back", &[], "");
    let (old, there, back) = (at.join("old.toml"), at.join("there.toml"), at.join("back.toml"));

    let copied = database::copy(&old, &there).await.unwrap();
    assert!(copied.iter().any(|(table, count)| table == "audit" && *count > 0), "{copied:?}");
    assert_eq!(database::copy(&there, &back).await.unwrap(), copied);
    assert_eq!(rows(&at.join("back/muster.db")).await, rows(&at.join("old/muster.db")).await);
    for root in both {
        let root = |name: &str| fs::read(at.join(name).join("root").join(root)).unwrap();
        assert_eq!(root("back"), root("old"), "the roots came along");
    }

    // Nothing is written into a database that has something.
    let error = database::copy(&old, &there).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Copy(CopyError::NotEmpty(..))), "{error}");
    assert!(matches!(database::copy(&old, &old).await, Err(DatabaseError::Same(..))));
    // No controller starts on what was copied, unless that is undone on purpose.
    let _ = rustls::crypto::ring::default_provider().install_default();
    for moved in [&old, &there] {
        let Err(refused) = Server::start(ServerConfig::load(moved).unwrap()).await else {
            panic!("it started")
        };
        let text = refused.to_string();
        assert!(text.contains("was copied to") && text.contains("to give up that copy"), "{text}");
    }
    match &postgres {
        Some(postgres) => postgres.try_sql("COMMENT ON TABLE fleet IS NULL").await.unwrap(),
        None => fs::remove_file(at.join("there/moved-to")).unwrap(),
    }
    // Nor is anything copied from under a controller, in its folder or beside it.
    let server = Server::start(ServerConfig::load(&there).unwrap()).await.unwrap();
    let error = database::copy(&there, &at.join("back.toml")).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Folder(ServerError::Locked(_))), "{error}");
    if postgres.is_some() {
        configure(at, "beside", &both, &shared);
        let beside = at.join("beside.toml");
        let mut refused = database::copy(&beside, &back).await.unwrap_err();
        // It listens a moment after it has started.
        while !matches!(refused, DatabaseError::AtWork(..)) {
            assert!(matches!(refused, DatabaseError::Copy(CopyError::NotEmpty(..))), "{refused}");
            refused = database::copy(&beside, &back).await.unwrap_err();
        }
        assert!(refused.to_string().contains("stop them"), "{refused}");
    }
    server.stop().await.unwrap();
}

#[tokio::test]
async fn what_is_no_database_is_not_copied_and_nothing_is_made() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    configure(at, "old", &["1.root.json"], "");
    configure(at, "new", &["1.root.json"], "");
    let (old, new) = (at.join("old.toml"), at.join("new.toml"));
    let mistyped = fs::read_to_string(&old).unwrap().replace("data = \"old\"", "data = \"odl\"");
    fs::write(&old, mistyped).unwrap();
    let error = database::copy(&old, &new).await.unwrap_err().to_string();
    assert!(error.contains("there is no database in"), "{error}");
    assert!(!at.join("odl").exists() && !at.join("new/muster.db").exists());
    if let Some(postgres) = Place::new().await {
        configure(at, "empty", &["1.root.json"], &postgres.setting());
        let error = database::copy(&at.join("empty.toml"), &new).await.unwrap_err().to_string();
        assert!(error.contains("there is no database in PostgreSQL"), "{error}");
    }
    // A file that is something else says what to do.
    fs::write(at.join("new/muster.db"), "something else, and long enough to be read as a header of it")
        .unwrap();
    let error = database::copy(&new, &old).await.unwrap_err().to_string();
    assert!(error.contains("restore a backup"), "{error}");
}

#[tokio::test]
async fn a_database_whose_log_was_changed_is_not_copied() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let both = ["1.root.json", "2.root.json"];
    configure(at, "old", &both, "");
    configure(at, "new", &both, "");
    let file = at.join("old/muster.db");
    fs::copy(fixture().join("controller/muster.db"), &file).unwrap();
    // Today's schema first.
    let _ = rustls::crypto::ring::default_provider().install_default();
    Server::start(ServerConfig::load(&at.join("old.toml")).unwrap()).await.unwrap().stop().await.unwrap();
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file);
    let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
    for statement in
        ["DROP TRIGGER audit_entries_are_never_changed", "UPDATE audit SET at = at + 1 WHERE id = 2"]
    {
        sqlx::query(statement).execute(&mut connection).await.unwrap();
    }
    connection.close().await.unwrap();
    let error = database::copy(&at.join("old.toml"), &at.join("new.toml")).await.unwrap_err();
    assert!(matches!(error, DatabaseError::Copy(CopyError::Log(_))), "{error}");
    assert!(rows(&at.join("new/muster.db")).await.iter().all(|row| row.starts_with("fleet")));
}
