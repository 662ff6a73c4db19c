//! What several of these tests look at.

use muster_protocol::report::EventKind;
use muster_testbed::fleet::Fleet;

/// The locked input's source in the machine's store.
pub fn has_words(fleet: &Fleet, machine: &str) -> bool {
    let store = fleet.machine(machine).root.at("/nix/store");
    std::fs::read_dir(store).into_iter().flatten().flatten().any(|entry| {
        entry.file_name().to_string_lossy().ends_with("-source") && entry.path().join("minerals").exists()
    })
}

/// Profile, running system and what was signed are one.
#[track_caller]
pub fn assert_runs_published(fleet: &Fleet, name: &str) {
    let view = fleet.view(name).unwrap();
    let output = view.published.unwrap().target.output;
    let machine = fleet.machine(name);
    assert_eq!(machine.running().as_ref(), Some(&output), "{name} runs what was signed");
    assert_eq!(machine.profile(), Some(output), "{name} will boot what it runs");
}

/// Profile and running system agree (I3).
#[track_caller]
pub fn assert_agrees_with_itself(fleet: &Fleet, name: &str) {
    let machine = fleet.machine(name);
    assert_eq!(machine.running(), machine.profile(), "{name}: running system and profile agree");
}

/// How a generation ended: exactly one event says so, however often the agent was killed (I3, I7).
#[track_caller]
pub fn only_outcome(fleet: &Fleet, name: &str, generation: u64) -> EventKind {
    let outcomes: Vec<EventKind> = fleet
        .events(name, generation)
        .unwrap()
        .into_iter()
        .filter(|kind| {
            matches!(
                kind,
                EventKind::Confirmed { .. }
                    | EventKind::RolledBack { .. }
                    | EventKind::Failed { .. }
                    | EventKind::NeedsHuman { .. }
            )
        })
        .collect();
    assert_eq!(outcomes.len(), 1, "{name}, generation {generation}: {outcomes:#?}\n{}", fleet.logs(name));
    outcomes.into_iter().next().unwrap()
}

/// Every event of the machine arrived once and in order (I7).
#[track_caller]
pub fn assert_events_in_order(fleet: &Fleet, name: &str) {
    let mut history = fleet.history(name).unwrap();
    history.sort_by_key(|entry| entry.published.target.generation);
    for entry in history {
        let numbers: Vec<u64> = entry.events.iter().map(|event| event.seq).collect();
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "{name}: {numbers:?}");
    }
}

/// Changes the controller's database behind its back.
pub fn sql(database: &std::path::Path, statement: &str) -> sqlx::Result<u64> {
    use sqlx::{AssertSqlSafe, Connection as _, Executor as _, SqliteConnection};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let url = format!("sqlite://{}", database.display());
    runtime.block_on(async {
        let mut connection = SqliteConnection::connect(&url).await?;
        let done = connection.execute(AssertSqlSafe(statement.to_owned())).await?;
        connection.close().await?;
        Ok(done.rows_affected())
    })
}
