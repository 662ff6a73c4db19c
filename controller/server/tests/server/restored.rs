//! Backups: made while the controller runs, restored whole or not at all, and what a fleet meets that knows
//! more than the restored database.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use muster_protocol::api::{self, OPERATOR_AUDIT, ProblemCode};
use muster_protocol::audit::{Page, origin, verify};
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::operator::{HistoryEntry, MachineView, Readmit, Standing};
use muster_protocol::report::EventKind;
use muster_server::backup::{Backup, BackupError, backup, restore};
use muster_server::server::ServerError;
use muster_server::store::copy::CopyError;
use reqwest::{Method, StatusCode};
use sqlx::Connection as _;

use crate::support::postgres::Place;
use crate::support::{Answer, Fleet, enrol_request, event, rotate, system};

fn at(fleet: &Fleet, name: &str) -> PathBuf {
    fleet.dir.path().join(name)
}

async fn back_up(fleet: &Fleet, with_keys: bool) -> Result<Backup, BackupError> {
    backup(&fleet.config_file(), &at(fleet, "backup"), with_keys, &*fleet.clock).await
}

async fn bring_back(fleet: &Fleet) -> Result<Backup, BackupError> {
    bring_back_without(fleet, &[]).await
}

async fn bring_back_without(fleet: &Fleet, revoked: &[MachineName]) -> Result<Backup, BackupError> {
    restore(&fleet.config_file(), &at(fleet, "backup"), revoked, &*fleet.clock).await
}

/// The controller loses its database. Its keys of bearers are still there, which is the harder case.
async fn lose(fleet: &mut Fleet) {
    fleet.down().await;
    if let Some(lost) = &fleet.postgres {
        let new = Place::new().await.unwrap();
        let config = std::fs::read_to_string(fleet.config_file()).unwrap();
        let config = config.replace(&lost.setting(), &new.setting());
        std::fs::write(fleet.config_file(), config).unwrap();
        fleet.postgres = Some(new);
        return;
    }
    for name in ["muster.db", "muster.db-wal", "muster.db-shm"] {
        let _ = std::fs::remove_file(at(fleet, "data").join(name));
    }
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files_below(&path)) } else { found.push(path) }
    }
    found
}

async fn readmit(fleet: &Fleet, machine: &MachineName, key: &SecretKey, replace: bool) -> Answer {
    let (class, tags) = (Class::Nixos, Default::default());
    let known = Readmit { class, system: system(class), tags, key: key.public(), replace };
    let path = format!("{}/readmit", api::operator_machine(machine));
    fleet.operate(Method::POST, &path, serde_json::to_vec(&known).unwrap()).await
}

async fn revoke(fleet: &Fleet, machine: &MachineName) {
    let path = format!("{}/revoke", api::operator_machine(machine));
    fleet.operate(Method::POST, &path, vec![]).await.good::<MachineView>();
}

async fn log_of(fleet: &Fleet) -> Page {
    let log: Page = fleet.operate(Method::GET, OPERATOR_AUDIT, vec![]).await.good();
    verify(origin(&fleet.fleet_id()), &log.entries).unwrap();
    log
}

/// How often the machine's events of a generation are stored, each by what it said.
async fn notes(fleet: &Fleet, machine: &str) -> Vec<i64> {
    let path = format!("/v1/operator/machines/{machine}/history");
    let history: Vec<HistoryEntry> = fleet.operate(Method::GET, &path, vec![]).await.good();
    history.iter().flat_map(|entry| &entry.events).map(|event| event.at).collect()
}

#[tokio::test]
async fn an_older_backup_bricks_no_machine_moves_none_backwards_and_raises_no_alarm() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut rotated = fleet.enrolled("quartz", Class::Nixos).await;
    let mut revoked_later = fleet.enrolled("galena", Class::Nixos).await;
    let mut revoked_too = fleet.enrolled("orpiment", Class::Nixos).await;
    let used_later = fleet.invited("beryl", Class::Nixos).await;
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    machine.check_in(&fleet).await;
    let said = |seq: u64| muster_protocol::report::Event {
        at: seq as i64,
        ..event(seq, Some(1), EventKind::Verified)
    };
    machine.report(&fleet, 1, vec![said(1), said(2)]).await.good::<serde_json::Value>();
    let early = fleet.session().await;
    let made = back_up(&fleet, false).await.unwrap();

    // What the backup does not know.
    let (bearer, session) = (machine.bearer(&fleet).await, fleet.session().await);
    for _ in 0..40 {
        machine.check_in(&fleet).await;
    }
    machine.report(&fleet, 3, vec![said(3), said(4)]).await.good::<serde_json::Value>();
    for number in 2..=3 {
        let next = fleet.generation("cinnabar", Class::Nixos, number);
        fleet.publish(&machine.name, &next).await.good::<MachineView>();
    }
    let (key_before, new_key) = (rotated.key.clone(), SecretKey::generate().unwrap());
    // Its bearers end with its key, and so does this one.
    let ended = rotated.bearer(&fleet).await;
    assert_eq!(rotate(&fleet, &mut rotated, &new_key).await.status, StatusCode::OK);
    let used = enrol_request(&used_later, &SecretKey::generate().unwrap());
    assert_eq!(fleet.post(api::ENROL, &used).await.status, StatusCode::OK);
    let mut unknown = fleet.enrolled("topaz", Class::Nixos).await;
    let gone = revoked_later.bearer(&fleet).await;
    revoke(&fleet, &revoked_later.name).await;
    // One check-in is on its way when the controller is lost.
    machine.seq += 1;
    let mut unanswered = machine.checkin(&fleet, machine.seq);
    (unanswered.holds.targets, unanswered.holds.snapshot) = (3, 3);

    lose(&mut fleet).await;
    let nobody: MachineName = "nobody".parse().unwrap();
    let error = bring_back_without(&fleet, &[nobody]).await.unwrap_err();
    assert!(matches!(error, BackupError::Revoke(_)), "{error}");
    let restored = bring_back_without(&fleet, std::slice::from_ref(&revoked_too.name)).await.unwrap();
    assert_eq!(restored.log, made.log);
    fleet.clock.forward(60);
    fleet.up().await;

    // It is taken with its own number, once, and there is no alarm.
    let reply = machine.send_checkin(&fleet, &unanswered).await;
    let again = machine.send_checkin(&fleet, &unanswered).await;
    assert_eq!((reply.status, &reply.text), (StatusCode::OK, &again.text));
    machine.check_in(&fleet).await;
    // What it reports next follows on what was stored before; what only the lost database had stays lost,
    // and nothing is there twice.
    machine.report(&fleet, 5, vec![said(5)]).await.good::<serde_json::Value>();
    machine.report(&fleet, 5, vec![said(5)]).await.good::<serde_json::Value>();
    assert_eq!(notes(&fleet, "cinnabar").await, [1, 2, 5]);
    // The next generation is above what it holds, and the numbers that it has seen are not taken again.
    machine.seq += 1;
    let mut holding = machine.checkin(&fleet, machine.seq);
    (holding.holds.targets, holding.holds.snapshot) = (3, 3);
    assert_eq!(machine.send_checkin(&fleet, &holding).await.status, StatusCode::OK);
    let second = fleet.generation("cinnabar", Class::Nixos, 2);
    fleet.publish(&machine.name, &second).await.refused(409, ProblemCode::Conflict);
    let fourth = fleet.generation("cinnabar", Class::Nixos, 4);
    fleet.publish(&machine.name, &fourth).await.good::<MachineView>();
    assert_eq!(machine.check_in(&fleet).await.generation.unwrap().get(), 4);
    // Every bearer of before has ended, also those that the backup takes for good.
    for bearer in [&bearer, &early, &session, &ended, &gone] {
        fleet.get("/cache/nix-cache-info", bearer).await.refused(401, ProblemCode::Unauthorised);
    }
    // A token that was used since enrols nobody else.
    let thief = enrol_request(&used_later, &SecretKey::generate().unwrap());
    fleet.post(api::ENROL, &thief).await.refused(404, ProblemCode::TokenUnknown);
    // A key that is newer than the backup is not known; the machine still has the one before it.
    let seq = rotated.seq + 1;
    let refused = rotated.send_checkin(&fleet, &rotated.checkin(&fleet, seq)).await;
    refused.refused(401, ProblemCode::BadSignature);
    rotated.key = key_before;
    assert_eq!(rotate(&fleet, &mut rotated, &new_key).await.status, StatusCode::OK);
    // A machine that enrolled since is admitted by its key.
    unknown.seq += 1;
    let stranger = unknown.send_checkin(&fleet, &unknown.checkin(&fleet, unknown.seq)).await;
    assert!(stranger.status.is_client_error(), "{}", stranger.text);
    readmit(&fleet, &unknown.name, &unknown.key, false).await.good::<MachineView>();
    unknown.check_in(&fleet).await;
    // Whoever is named as revoked is, from the first moment on.
    revoked_too.seq += 1;
    let out = revoked_too.send_checkin(&fleet, &revoked_too.checkin(&fleet, revoked_too.seq)).await;
    out.refused(403, ProblemCode::Revoked);
    assert_eq!(fleet.view("orpiment").await.standing, Standing::Revoked);
    // A revocation since is forgotten: an operator repeats it, and it holds at once.
    revoked_later.check_in(&fleet).await;
    revoke(&fleet, &revoked_later.name).await;
    revoked_later.seq += 1;
    let out = revoked_later.send_checkin(&fleet, &revoked_later.checkin(&fleet, revoked_later.seq)).await;
    assert!(out.status.is_client_error(), "{}", out.text);
    for name in ["cinnabar", "quartz", "topaz", "galena"] {
        assert!(!fleet.view(name).await.clone_alarm, "{name}");
    }
    // The log goes on from the backup's end, and says so.
    let log = log_of(&fleet).await;
    let end = usize::try_from(made.log.id).unwrap();
    assert_eq!(log.entries[end - 1].hash, made.log.hash);
    assert_eq!(log.entries[end].action, "controller-restored");
}

#[tokio::test]
async fn a_backup_of_a_busy_controller_is_of_one_moment() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut made = Vec::new();
    for _ in 0..3 {
        let backing = back_up(&fleet, false);
        tokio::pin!(backing);
        let done = loop {
            tokio::select! {
                done = &mut backing => break done.unwrap(),
                reply = machine.check_in(&fleet) => assert!(!reply.bearer.is_empty()),
            }
            fleet.invited(&format!("m{}", machine.seq), Class::Nixos).await;
        };
        made.push(done);
        std::fs::rename(at(&fleet, "backup"), at(&fleet, &format!("backup-{}", made.len()))).unwrap();
    }
    assert!(
        files_below(fleet.dir.path()).iter().all(|path| !path.to_string_lossy().contains(".muster-backup"))
    );
    lose(&mut fleet).await;
    std::fs::rename(at(&fleet, "backup-3"), at(&fleet, "backup")).unwrap();
    assert_eq!(bring_back(&fleet).await.unwrap().log, made[2].log);
    fleet.up().await;
    // Each machine of the list has its entry in the log.
    let machines: Vec<MachineView> = fleet.operate(Method::GET, api::OPERATOR_MACHINES, vec![]).await.good();
    let added = log_of(&fleet).await.entries.iter().filter(|entry| entry.action == "machine-added").count();
    assert_eq!(machines.len(), added);
}

/// The manifest with a file's hash as it is now.
fn vouch_for(backup: &Path, name: &str) {
    let path = backup.join("manifest.json");
    let mut manifest: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let bytes = std::fs::read(backup.join(name)).unwrap();
    manifest["files"][name] = serde_json::json!({ "bytes": bytes.len(), "sha256": Sha256::of(&bytes) });
    std::fs::write(path, serde_json::to_vec(&manifest).unwrap()).unwrap();
}

#[tokio::test]
async fn a_backup_is_restored_whole_where_no_database_is_or_not_at_all() {
    let mut fleet = Fleet::start().await;
    fleet.invited("cinnabar", Class::Nixos).await;
    back_up(&fleet, false).await.unwrap();
    assert!(matches!(back_up(&fleet, false).await, Err(BackupError::Exists(_))));
    let folder = at(&fleet, "backup");
    // A running controller, and one that is only stopped.
    let running = bring_back(&fleet).await.unwrap_err();
    assert!(matches!(running, BackupError::Folder(ServerError::Locked(_))), "{running}");
    fleet.down().await;
    let there = bring_back(&fleet).await.unwrap_err();
    let full = matches!(there, BackupError::NotEmpty(_) | BackupError::Copy(CopyError::NotEmpty(..)));
    assert!(full, "{there}");
    fleet.up().await;
    assert_eq!(fleet.view("cinnabar").await.standing, Standing::Invited, "it is as it was");
    lose(&mut fleet).await;

    // No key is in it, and only its owner reads it.
    let secret = fleet.online.to_pem().unwrap();
    let line = secret.lines().nth(1).unwrap().as_bytes();
    for path in files_below(&folder) {
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(line.len()).any(|found| found == line), "{}", path.display());
        for (path, wanted) in [(&*path, 0o600), (path.parent().unwrap(), 0o700)] {
            assert_eq!(std::fs::metadata(path).unwrap().permissions().mode() & 0o777, wanted, "{path:?}");
        }
    }
    // Whatever is wrong with it, nothing of it is in place.
    let manifest = std::fs::read(folder.join("manifest.json")).unwrap();
    let nothing_is_there = |error: &BackupError| {
        assert!(!at(&fleet, "data").join("muster.db").exists(), "{error}");
        assert!(!at(&fleet, "data").join("restoring").exists(), "{error}");
    };
    for name in ["muster.db", "root/1.root.json", "controller.toml"] {
        let good = std::fs::read(folder.join(name)).unwrap();
        let mut bent = good.clone();
        *bent.last_mut().unwrap() ^= 1;
        std::fs::write(folder.join(name), bent).unwrap();
        let error = bring_back(&fleet).await.unwrap_err();
        assert!(matches!(error, BackupError::Changed(_)), "{name}: {error}");
        nothing_is_there(&error);
        std::fs::write(folder.join(name), good).unwrap();
    }
    let text = String::from_utf8(manifest.clone()).unwrap();
    for (from, to) in [
        ("\"controller.toml\"", "\"root/../../x\""),
        ("\"format\": 1", "\"format\": 2"),
        ("\"root/1.root.json\"", "\"root/2.root.json\""),
        ("\"format\"", "\"x\""),
    ] {
        std::fs::write(folder.join("manifest.json"), text.replace(from, to)).unwrap();
        let error = bring_back(&fleet).await.unwrap_err();
        assert!(matches!(error, BackupError::Manifest(..)), "{error}");
        nothing_is_there(&error);
    }
    std::fs::write(folder.join("manifest.json"), &manifest).unwrap();
    // A newer program's database, one whose log was rewritten, and one that ends elsewhere.
    let good = std::fs::read(folder.join("muster.db")).unwrap();
    for (statements, wanted) in [
        (
            &["INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
               VALUES (9999, 'later', TRUE, x'00', 0)"][..],
            "a newer muster has migrated it to schema 9999",
        ),
        (
            &["DROP TRIGGER audit_entries_are_never_changed", "UPDATE audit SET at = at + 1 WHERE id = 1"],
            "does not hold together",
        ),
        (
            &[
                "DROP TRIGGER audit_entries_are_never_removed",
                "DELETE FROM audit WHERE id = (SELECT max(id) FROM audit)",
            ],
            "ends at another entry",
        ),
    ] {
        let options = sqlx::sqlite::SqliteConnectOptions::new().filename(folder.join("muster.db"));
        let mut connection = sqlx::SqliteConnection::connect_with(&options).await.unwrap();
        for statement in statements {
            sqlx::query(*statement).execute(&mut connection).await.unwrap();
        }
        connection.close().await.unwrap();
        vouch_for(&folder, "muster.db");
        let error = bring_back(&fleet).await.unwrap_err();
        assert!(error.to_string().contains(wanted), "{error}");
        nothing_is_there(&error);
        std::fs::write(folder.join("muster.db"), &good).unwrap();
    }
    std::fs::write(folder.join("manifest.json"), &manifest).unwrap();
    // Another fleet's root folder.
    let root = at(&fleet, "root/1.root.json");
    let other = Fleet::start().await;
    std::fs::write(&root, &other.root).unwrap();
    let error = bring_back(&fleet).await.unwrap_err();
    assert!(matches!(error, BackupError::OtherRoot(_)), "{error}");
    // What an earlier try left behind, and a root folder without its roots, are no hindrance.
    std::fs::remove_file(&root).unwrap();
    std::fs::create_dir_all(at(&fleet, "data/restoring")).unwrap();
    std::fs::write(at(&fleet, "data/restoring/muster.db"), "half").unwrap();
    bring_back(&fleet).await.unwrap();
    assert_eq!(std::fs::read(&root).unwrap(), fleet.root);
    fleet.up().await;
    assert_eq!(fleet.view("cinnabar").await.standing, Standing::Invited);
}

#[tokio::test]
async fn keys_are_in_a_backup_only_if_they_are_asked_for() {
    let fleet = Fleet::start().await;
    back_up(&fleet, true).await.unwrap();
    let key = at(&fleet, "backup/keys/online_key");
    assert_eq!(std::fs::read(&key).unwrap(), std::fs::read(at(&fleet, "online.pem")).unwrap());
    assert_eq!(std::fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let names: Vec<_> = files_below(&at(&fleet, "backup"))
        .iter()
        .map(|path| path.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    assert!(!names.iter().any(|name| name.contains("bearer")), "{names:?}");
}

#[tokio::test]
async fn a_fleet_is_rebuilt_from_an_empty_database_without_going_to_its_machines() {
    let mut fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let second = fleet.enrolled("quartz", Class::Nixos).await;
    for number in 1..=2 {
        let next = fleet.generation("cinnabar", Class::Nixos, number);
        fleet.publish(&machine.name, &next).await.good::<MachineView>();
    }
    let bearer = machine.bearer(&fleet).await;
    lose(&mut fleet).await;
    fleet.clock.forward(60);
    fleet.up().await;
    machine.seq += 1;
    let stranger = machine.send_checkin(&fleet, &machine.checkin(&fleet, machine.seq)).await;
    assert!(stranger.status.is_client_error(), "{}", stranger.text);

    readmit(&fleet, &machine.name, &machine.key, false).await.good::<MachineView>();
    fleet.get("/cache/nix-cache-info", &bearer).await.refused(401, ProblemCode::Unauthorised);
    machine.seq += 1;
    let mut holding = machine.checkin(&fleet, machine.seq);
    (holding.holds.targets, holding.holds.snapshot) = (2, 2);
    assert_eq!(machine.send_checkin(&fleet, &holding).await.status, StatusCode::OK);
    let view = fleet.view("cinnabar").await;
    assert_eq!((view.standing, view.clone_alarm), (Standing::Enrolled, false));
    assert_eq!((view.key, view.published), (Some(machine.key.public()), None));
    // The next generation is above what the machine holds.
    for (number, status) in [(1, StatusCode::CONFLICT), (3, StatusCode::OK)] {
        let next = fleet.generation("cinnabar", Class::Nixos, number);
        assert_eq!(fleet.publish(&machine.name, &next).await.status, status, "{number}");
    }
    // Nobody's key is replaced without a word, and no key is two machines'.
    readmit(&fleet, &machine.name, &second.key, false).await.refused(409, ProblemCode::Conflict);
    readmit(&fleet, &second.name, &machine.key, false).await.refused(409, ProblemCode::Conflict);
    readmit(&fleet, &second.name, &second.key, false).await.good::<MachineView>();
    let third = SecretKey::generate().unwrap();
    readmit(&fleet, &second.name, &third, true).await.good::<MachineView>();
    assert_eq!(fleet.view("quartz").await.key, Some(third.public()));
    // Who was revoked here stays out.
    revoke(&fleet, &second.name).await;
    readmit(&fleet, &second.name, &third, true).await.refused(409, ProblemCode::Conflict);
    let log = log_of(&fleet).await;
    assert_eq!(log.entries.iter().filter(|entry| entry.action == "machine-readmitted").count(), 3);
}
