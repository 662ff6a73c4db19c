//! Helpers that several of these tests use.

use muster_protocol::ids::Sha256;
use muster_protocol::report::EventKind;
use muster_server::store::Store;
use muster_testbed::fleet::Fleet;

/// Whether the source of the flake's locked input is in the machine's store.
pub fn has_words(fleet: &Fleet, machine: &str, own: &str) -> bool {
    std::fs::read_dir(fleet.machine(machine).store_folder())
        .into_iter()
        .flatten()
        .flatten()
        .any(|entry| std::fs::read_to_string(entry.path().join("own")).is_ok_and(|words| words == own))
}

/// The profile and the running system are what was signed.
#[track_caller]
pub fn assert_runs_published(fleet: &Fleet, name: &str) {
    let view = fleet.view(name).unwrap();
    let output = view.published.unwrap().target.output;
    let machine = fleet.machine(name);
    assert_eq!(machine.running().as_ref(), Some(&output), "{name} runs what was signed");
    assert_eq!(machine.profile(), Some(output), "{name} will boot what it runs");
}

/// The profile and the running system agree (I3).
#[track_caller]
pub fn assert_agrees_with_itself(fleet: &Fleet, name: &str) {
    let machine = fleet.machine(name);
    assert_eq!(machine.running(), machine.profile(), "{name}: running system and profile agree");
}

/// Everything that the machine reports about a generation, once that has ended and no report is pending.
#[track_caller]
pub fn reported(fleet: &Fleet, name: &str, generation: u64) -> Vec<EventKind> {
    let events = || fleet.events(name, generation).unwrap();
    fleet
        .until(name, "its last word", |_| {
            has_no_pending_reports(fleet, name) && events().iter().any(is_outcome)
        })
        .unwrap();
    events()
}

/// A generation's outcome: exactly one event reports it, however often the agent was killed (I3, I7).
#[track_caller]
pub fn only_outcome(fleet: &Fleet, name: &str, generation: u64) -> EventKind {
    let outcomes: Vec<EventKind> = reported(fleet, name, generation).into_iter().filter(is_outcome).collect();
    assert_eq!(outcomes.len(), 1, "{name}, generation {generation}: {outcomes:#?}\n{}", fleet.logs(name));
    outcomes.into_iter().next().unwrap()
}

fn is_outcome(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::Confirmed { .. }
            | EventKind::RolledBack { .. }
            | EventKind::Failed { .. }
            | EventKind::NeedsHuman { .. }
    )
}

/// Whether the agent runs and has no pending reports.
fn has_no_pending_reports(fleet: &Fleet, name: &str) -> bool {
    let status = fleet.agent(name, &["status", "--json"]).unwrap();
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap_or_default();
    status["agent_running"] == true && status["reports_waiting"] == 0
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

/// Uses the controller's store beside the running controller.
pub fn with_store(fleet: &Fleet, work: impl AsyncFnOnce(&Store)) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let folder = fleet.controller_folder();
    let id = Sha256::of(&std::fs::read(folder.join("root/1.root.json")).unwrap());
    runtime.block_on(async {
        let store = Store::open(&folder.join("data"), &id).await.unwrap();
        work(&store).await;
        store.close().await;
    });
}

/// Changes the controller's database as a thief who owns its folder can: neither the API nor the store
/// creates such states.
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
