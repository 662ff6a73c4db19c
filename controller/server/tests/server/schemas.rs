//! A database of every earlier schema is migrated with all that it holds, and goes on.
//!
//! The schemas are those of the files in `migrations`, and a table gets those of its values that it has a
//! column for. So a new migration is tested as soon as it is there; a new table needs a row here.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use muster_protocol::api::{self, OPERATOR_AUDIT, OPERATOR_DRAFTS, ProblemCode};
use muster_protocol::audit::{Page, origin, verify};
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::draft::{Draft, DraftView};
use muster_protocol::enrol::Token;
use muster_protocol::ids::{Sha256, to_hex};
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::operator::{AttackView, HistoryEntry, MachineView, Publication, RolloutView, Standing};
use muster_protocol::report::EventKind;
use muster_protocol::request::{Asked, SignedRequest};
use muster_server::core::audit::{AuditContext, NewEntry};
use reqwest::{Method, StatusCode};
use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection as _, PgConnection, SqliteConnection};

use crate::support::postgres::Place;
use crate::support::{Fleet, Machine, START_S, enrol_request, event, system, target};
use crate::trust::draft;

/// What version 0.1 and later ones stored besides roots. The last two say what is under way, and may be lost.
const NOT_FILLED: [&str; 4] = ["roots", "audit_of_0_1", "changes", "cache_marks"];

pub enum Database {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Database {
    /// An empty one in the place of the fleet's.
    pub async fn empty(fleet: &mut Fleet) -> Self {
        if let Some(before) = fleet.postgres.take() {
            let new = Place::new().await.unwrap();
            let config = std::fs::read_to_string(fleet.config_file()).unwrap();
            std::fs::write(fleet.config_file(), config.replace(&before.setting(), &new.setting())).unwrap();
            let connection = new.connect().await.unwrap();
            fleet.postgres = Some(new);
            return Self::Postgres(connection);
        }
        let file = fleet.dir.path().join("data/muster.db");
        for suffix in ["", "-wal", "-shm"] {
            let _ = std::fs::remove_file(format!("{}{suffix}", file.display()));
        }
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&file).create_if_missing(true);
        Self::Sqlite(SqliteConnection::connect_with(&options).await.unwrap())
    }

    async fn run(&mut self, statement: &str) {
        let sql = AssertSqlSafe(statement.to_owned());
        let done = match self {
            Self::Sqlite(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
            Self::Postgres(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
        };
        done.unwrap_or_else(|error| panic!("{statement}: {error}"));
    }

    async fn texts(&mut self, query: String) -> Vec<String> {
        let sql = AssertSqlSafe(query);
        match self {
            Self::Sqlite(connection) => sqlx::query_scalar(sql).fetch_all(connection).await.unwrap(),
            Self::Postgres(connection) => sqlx::query_scalar(sql).fetch_all(connection).await.unwrap(),
        }
    }

    async fn tables(&mut self) -> BTreeSet<String> {
        let query = match self {
            Self::Sqlite(_) => {
                "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%'
                 AND name NOT LIKE '_sqlx%'"
            }
            Self::Postgres(_) => {
                "SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'
                 AND tablename <> 'schema_migrations'"
            }
        };
        self.texts(query.to_owned()).await.into_iter().collect()
    }

    async fn columns(&mut self, table: &str) -> Vec<String> {
        let query = match self {
            Self::Sqlite(_) => format!("SELECT name FROM pragma_table_info('{table}')"),
            Self::Postgres(_) => format!(
                "SELECT column_name::text FROM information_schema.columns
                 WHERE table_schema = 'public' AND table_name = '{table}'"
            ),
        };
        self.texts(query).await
    }

    fn bytes(&self, bytes: &[u8]) -> String {
        match self {
            Self::Sqlite(_) => format!("x'{}'", to_hex(bytes)),
            Self::Postgres(_) => format!("decode('{}', 'hex')", to_hex(bytes)),
        }
    }

    /// Inserts those of these values that the table has a column for.
    async fn insert(&mut self, table: &str, values: &[(&str, String)]) {
        let columns = self.columns(table).await;
        let has = |(column, _): &&(&str, String)| columns.iter().any(|known| known == column);
        let (names, values): (Vec<&str>, Vec<&str>) =
            values.iter().filter(has).map(|(column, value)| (*column, value.as_str())).unzip();
        let (names, values) = (names.join(", "), values.join(", "));
        self.run(&format!("INSERT INTO {table} ({names}) VALUES ({values})")).await;
    }

    /// What a controller of that time did at its first start.
    pub async fn migrate(&mut self, folder: &Path, newest: i64) {
        let earlier = tempfile::tempdir().unwrap();
        for (version, file) in versions(folder) {
            if version <= newest {
                std::fs::copy(&file, earlier.path().join(file.file_name().unwrap())).unwrap();
            }
        }
        let migrator = Migrator::new(earlier.path().to_owned()).await.unwrap();
        if let Self::Sqlite(connection) = self {
            return migrator.run(connection).await.unwrap();
        }
        self.run("CREATE TABLE schema_migrations (version BIGINT PRIMARY KEY, checksum BYTEA NOT NULL)")
            .await;
        for migration in migrator.iter() {
            let (version, checksum) = (migration.version, self.bytes(&migration.checksum));
            self.run(migration.sql.as_str()).await;
            self.run(&format!("INSERT INTO schema_migrations VALUES ({version}, {checksum})")).await;
        }
    }

    async fn close(self) {
        match self {
            Self::Sqlite(connection) => connection.close().await.unwrap(),
            Self::Postgres(connection) => connection.close().await.unwrap(),
        }
    }
}

pub fn folder(fleet: &Fleet) -> PathBuf {
    let kind = if fleet.postgres.is_some() { "postgres" } else { "sqlite" };
    Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(kind)
}

/// The schemas, by their numbers.
fn versions(folder: &Path) -> Vec<(i64, PathBuf)> {
    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    let version = |file: &Path| file.file_name()?.to_str()?.split_once('_')?.0.parse().ok();
    let mut versions: Vec<(i64, PathBuf)> = files.filter_map(|file| Some((version(&file)?, file))).collect();
    versions.sort();
    versions
}

fn text(text: &str) -> String {
    format!("'{}'", text.replace('\'', "''"))
}

/// What is stored, as the programs of then wrote it.
struct Held {
    machine: Machine,
    last: CheckIn,
    generation: Publication,
    /// For `quartz`, and unused.
    token: Token,
    asked: SignedRequest,
    bearer: &'static str,
}

const LAST: u64 = 41;
const NOW: i64 = START_S * 1000;

impl Held {
    fn new(fleet: &Fleet) -> Self {
        let (name, class) = ("cinnabar".parse().unwrap(), Class::Nixos);
        let key = SecretKey::generate().unwrap();
        let machine = Machine { name, class, key, seq: LAST, fleet: fleet.fleet_id() };
        let mut last = machine.checkin(fleet, LAST);
        (last.holds.targets, last.holds.snapshot, last.holds.root) = (1, 1, 1);
        let retry = Asked::Retry {
            derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().unwrap(),
            generation: None,
        };
        Self {
            asked: fleet.asks(&machine.name, retry),
            last,
            generation: fleet.generation("cinnabar", class, 1),
            token: fleet.token("quartz", class),
            bearer: "5d0ccc8ff0b2e4bd7b6d8ad5cf7c7a9b7f2f8a7fd1c05b5d4d3ad0b1f4b9d2aa",
            machine,
        }
    }

    /// Fills every table that there is.
    async fn fill(&self, fleet: &Fleet, database: &mut Database) {
        let tables = database.tables().await;
        let id = database.bytes(fleet.fleet_id().as_bytes());
        database.insert("fleet", &[("id", id)]).await;
        self.machines(database).await;
        let operator = database.bytes(fleet.operator.public().as_bytes());
        let number = |number: i64| number.to_string();
        let (machine, far) = (text("cinnabar"), number(START_S + 3600));
        let generation = &self.generation;
        let rows = [
            (
                "generations",
                vec![
                    ("generation", number(1)),
                    ("targets", database.bytes(generation.targets.as_bytes())),
                    ("snapshot", database.bytes(generation.snapshot.as_bytes())),
                    ("target", database.bytes(generation.target.as_bytes())),
                    ("target_sha256", database.bytes(Sha256::of(generation.target.as_bytes()).as_bytes())),
                    ("expires", number(START_S + 90 * 86_400)),
                    ("published_at", number(NOW)),
                    ("published_by", operator.clone()),
                ],
            ),
            (
                "tokens",
                vec![
                    ("id", database.bytes(self.token.secret.token_id().as_bytes())),
                    ("machine", text("quartz")),
                    ("class", text("nixos")),
                    ("check_key", database.bytes(self.token.secret.check_key().as_bytes())),
                    ("expires", far.clone()),
                    ("made_at", number(NOW)),
                ],
            ),
            (
                "bearers",
                vec![
                    ("hash", database.bytes(Sha256::of(self.bearer.as_bytes()).as_bytes())),
                    ("machine", "NULL".into()),
                    ("operator", operator.clone()),
                    ("expires", far.clone()),
                ],
            ),
            (
                "nonces",
                vec![
                    ("key", operator.clone()),
                    ("nonce", database.bytes(&[7; 16])),
                    ("expires", far.clone()),
                ],
            ),
            (
                "attacks",
                vec![
                    ("attack", text("freeze")),
                    ("detail", text("it has expired")),
                    ("at", number(NOW)),
                    ("received_at", number(NOW)),
                    ("ended_at", number(NOW)),
                ],
            ),
            (
                "requests",
                vec![
                    ("id", database.bytes(self.asked.id().as_bytes())),
                    ("asks", text("retry")),
                    ("document", text(&serde_json::to_string(&self.asked).unwrap())),
                    ("ends", far.clone()),
                ],
            ),
            ("drafts", {
                let draft = Draft { ends: START_S + 3600, ..draft(fleet, &["cinnabar"], 2) };
                vec![
                    ("id", database.bytes(draft.id().unwrap().as_bytes())),
                    ("kind", text("generations")),
                    ("made_at", number(draft.made_at)),
                    ("ends", number(draft.ends)),
                    ("document", text(&serde_json::to_string(&draft).unwrap())),
                ]
            }),
        ];
        let plan = database.bytes(Sha256::of(b"plan").as_bytes());
        let rows = rows.into_iter().chain([
            ("plans", vec![("hash", plan.clone()), ("document", database.bytes(b"plan"))]),
            (
                "rollouts",
                vec![
                    ("plan", plan.clone()),
                    ("name", text("weekly")),
                    ("budget", number(1)),
                    ("made_at", number(NOW)),
                    ("made_by", operator.clone()),
                    ("open", number(0)),
                ],
            ),
            ("rollout_members", vec![("plan", plan), ("failed", text("rolled-back"))]),
        ]);
        let mut filled = BTreeSet::from(["fleet", "machines", "events", "audit"].map(str::to_owned));
        for (table, mut values) in rows {
            filled.insert(table.to_owned());
            if !values.iter().any(|(column, _)| *column == "machine") {
                values.push(("machine", machine.clone()));
            }
            if tables.contains(table) {
                database.insert(table, &values).await;
            }
        }
        self.events(database).await;
        self.audit(fleet, database).await;
        let unknown: Vec<_> = tables
            .iter()
            .filter(|table| !filled.contains(*table) && !NOT_FILLED.contains(&table.as_str()))
            .collect();
        assert!(unknown.is_empty(), "give these tables a row here: {unknown:?}");
    }

    async fn machines(&self, database: &mut Database) {
        let body = serde_json::to_string(&self.last).unwrap();
        let reply = CheckInReply {
            rollout: None,
            bearer: String::new(),
            bearer_expires_in: 3600,
            generation: Some(muster_protocol::ids::Generation::FIRST),
            poll_seconds: 55,
            reports_through: 2,
            rotate_key: false,
            requests: vec![],
            log: None,
            session: None,
        };
        let identity = |name: &str| {
            vec![
                ("name", text(name)),
                ("class", text("nixos")),
                ("system", text(&system(Class::Nixos).to_string())),
                ("tags", text("[\"lab\"]")),
                ("added_at", NOW.to_string()),
            ]
        };
        let mut enrolled = identity("cinnabar");
        enrolled.extend([
            ("enrolment", "1".into()),
            ("key", database.bytes(self.machine.key.public().as_bytes())),
            ("age", text("age1example")),
            ("agent", text("0.1.0")),
            ("enrolled_at", NOW.to_string()),
            ("seq", LAST.to_string()),
            ("body_sha256", database.bytes(Sha256::of(body.as_bytes()).as_bytes())),
            ("bearer_salt", database.bytes(&[9; 32])),
            ("reply", text(&serde_json::to_string(&reply).unwrap())),
            ("observed", text(&body)),
            ("seen_at", NOW.to_string()),
            ("clock_skew_ms", "0".into()),
            ("reports_through", "2".into()),
            ("published", "1".into()),
        ]);
        database.insert("machines", &enrolled).await;
        database.insert("machines", &identity("quartz")).await;
    }

    async fn events(&self, database: &mut Database) {
        let running = target("cinnabar", Class::Nixos, 1).output;
        let confirmed = EventKind::Confirmed { running, ms: 1, degraded: vec![] };
        for (seq, kind) in [(1, EventKind::Verified), (2, confirmed)] {
            let event = event(seq, Some(1), kind);
            let values = [
                ("machine", text("cinnabar")),
                ("enrolment", "1".into()),
                ("seq", seq.to_string()),
                ("generation", "1".into()),
                ("received_at", NOW.to_string()),
                ("event", text(&serde_json::to_string(&event).unwrap())),
                ("decides", if seq == 2 { "TRUE" } else { "FALSE" }.to_owned()),
            ];
            database.insert("events", &values).await;
        }
    }

    /// The log of the first schema had no chain.
    async fn audit(&self, fleet: &Fleet, database: &mut Database) {
        let operator = fleet.operator.public();
        let context = AuditContext { operator: &operator, at: NOW };
        let mut before = origin(&fleet.fleet_id());
        for (action, detail) in [("machine-added", "a token"), ("generation-published", "1")] {
            let entry = NewEntry::by(&context, action, detail).on(&self.machine.name).chained(&before);
            let values = [
                ("id", entry.id.to_string()),
                ("at", entry.at.to_string()),
                ("operator", database.bytes(operator.as_bytes())),
                ("action", text(&entry.action)),
                ("machine", text("cinnabar")),
                ("detail", text(&entry.detail)),
                ("hash", database.bytes(entry.hash.as_bytes())),
            ];
            database.insert("audit", &values).await;
            before = muster_protocol::audit::Checkpoint { id: entry.id, hash: entry.hash };
        }
    }

    /// Finds everything, and goes on.
    async fn found(mut self, fleet: &Fleet, had: &BTreeSet<String>) {
        let view = fleet.view("cinnabar").await;
        assert_eq!((view.standing, view.key), (Standing::Enrolled, Some(self.machine.key.public())));
        assert_eq!(view.published.unwrap().target, target("cinnabar", Class::Nixos, 1));
        assert_eq!((view.agent.as_deref(), view.holds.targets), (Some("0.1.0"), 1));
        let path = |of: &str| format!("{}/{of}", api::operator_machine(&self.machine.name));
        let history: Vec<HistoryEntry> = fleet.operate(Method::GET, &path("history"), vec![]).await.good();
        assert_eq!(history.iter().map(|entry| entry.events.len()).collect::<Vec<_>>(), [2]);
        if had.contains("attacks") {
            let attacks: Vec<AttackView> = fleet.operate(Method::GET, &path("attacks"), vec![]).await.good();
            assert_eq!(attacks.len(), 1);
        }
        let rollouts: Vec<RolloutView> =
            fleet.operate(Method::GET, api::OPERATOR_ROLLOUTS, vec![]).await.good();
        assert_eq!(rollouts.len(), usize::from(had.contains("rollouts")));
        if had.contains("drafts") {
            let drafts: Vec<DraftView> = fleet.operate(Method::GET, OPERATOR_DRAFTS, vec![]).await.good();
            assert_eq!(drafts.len(), 1);
        }
        let log: Page = fleet.operate(Method::GET, OPERATOR_AUDIT, vec![]).await.good();
        verify(origin(&fleet.fleet_id()), &log.entries).unwrap();
        let told: Vec<&str> = log.entries.iter().map(|entry| entry.action.as_str()).collect();
        assert_eq!(told, ["machine-added", "generation-published", "root-found"]);
        assert_eq!(fleet.get("/cache/nix-cache-info", self.bearer).await.status, StatusCode::OK);

        // The last check-in has its answer again, and the count goes on where it was.
        let again: CheckInReply = self.machine.send_checkin(fleet, &self.last).await.good();
        assert_eq!(again.reports_through, 2);
        let reply = self.machine.check_in(fleet).await;
        assert_eq!((reply.reports_through, reply.requests.len()), (2, usize::from(had.contains("requests"))));
        assert_eq!(fleet.get("/cache/nix-cache-info", &reply.bearer).await.status, StatusCode::OK);
        let third = event(3, Some(1), EventKind::Verified);
        self.machine.report(fleet, 1, vec![third]).await.good::<serde_json::Value>();
        let second = fleet.generation("cinnabar", Class::Nixos, 2);
        fleet.publish(&self.machine.name, &second).await.good::<MachineView>();
        let enrol = enrol_request(&self.token, &SecretKey::generate().unwrap());
        assert_eq!(fleet.post(api::ENROL, &enrol).await.status, StatusCode::OK);
        let other = CheckIn { boot_id: "another".into(), ..self.machine.checkin(fleet, LAST - 1) };
        self.machine.send_checkin(fleet, &other).await.refused(409, ProblemCode::Sequence);
        assert!(fleet.view("cinnabar").await.clone_alarm);
    }
}

#[tokio::test]
async fn a_database_of_every_earlier_schema_is_found_whole_and_goes_on() {
    let mut fleet = Fleet::start().await;
    let all = versions(&folder(&fleet));
    assert!(all.iter().map(|(version, _)| *version).eq(1..=all.len() as i64), "forward only: {all:?}");
    for (version, _) in &all {
        fleet.down().await;
        let mut database = Database::empty(&mut fleet).await;
        database.migrate(&folder(&fleet), *version).await;
        let had = database.tables().await;
        let held = Held::new(&fleet);
        held.fill(&fleet, &mut database).await;
        database.close().await;
        fleet.up().await;
        held.found(&fleet, &had).await;
    }
}
