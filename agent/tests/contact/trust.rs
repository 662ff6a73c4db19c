//! What a controller in an attacker's hands can try. Each time the machine stays on what it holds.

use std::collections::BTreeMap;
use std::path::Path;

use axum::body::{Body, Bytes};
use axum::response::IntoResponse as _;
use muster_agent::client::Client;
use muster_agent::config::Config;
use muster_agent::identity::Identity;
use muster_agent::trust::{Trust, TrustError};
use muster_protocol::api;
use muster_protocol::checkin::Holds;
use muster_protocol::ids::{Epoch, Generation, MAX_NUMBER, Sha256};
use muster_protocol::keys::SecretKey;
use muster_protocol::report::Attack;
use muster_protocol::target::Target;
use muster_protocol::tuf::canonical;
use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root, sign_timestamp};

use super::controller::{Controller, DAY, Fleet, NOW, root_of};

mod gated;
mod sent;

struct Machine {
    state: tempfile::TempDir,
    controller: Controller,
    fleet: Fleet,
    config: Config,
    identity: Identity,
    client: Client,
}

impl Machine {
    async fn new() -> Self {
        let controller = Controller::start().await;
        let fleet = Fleet::new();
        let state = tempfile::tempdir().unwrap();
        let (config, identity) = fleet.enrol(state.path(), &controller.url);
        let client = Client::new(&identity).unwrap();
        Self { state, controller, fleet, config, identity, client }
    }
    /// A machine that holds this generation.
    async fn holding(generation: u64) -> (Self, Trust) {
        let machine = Self::new().await;
        machine.controller.publish(&machine.fleet, &machine.fleet.publication(generation));
        let mut trust = machine.open();
        let target = trust.refresh(&machine.client, NOW).await.unwrap().unwrap();
        assert_eq!(target.generation.get(), generation);
        (machine, trust)
    }
    fn open(&self) -> Trust {
        Trust::open(&self.config, &self.identity).unwrap()
    }
    fn path(&self, file: &str) -> String {
        format!("{}/{file}", api::tuf_path(&self.fleet.machine))
    }
    fn files(&self) -> BTreeMap<String, Vec<u8>> {
        files(&self.state.path().join("tuf"))
    }

    /// No request changes a byte on disk or what is held now, in this process and in the next.
    async fn refuses(&self, trust: &mut Trust, attack: Option<Attack>, now: i64) -> TrustError {
        let (files, held, holds) = (self.files(), trust.held(), trust.holds());
        let error = trust.refresh(&self.client, now).await.unwrap_err();
        assert_eq!(error.attack(), attack, "{error}");
        assert_eq!(self.files(), files);
        assert_eq!((trust.held(), trust.holds()), (held.clone(), holds));
        assert_eq!(self.open().held(), held);
        error
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    files.map(|path| (path.display().to_string(), std::fs::read(&path).unwrap())).collect()
}

#[tokio::test]
async fn a_machine_for_which_nothing_was_published_holds_nothing() {
    let machine = Machine::new().await;
    let mut trust = machine.open();
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap(), None);
    assert_eq!(trust.holds(), Holds { root: 1, ..Holds::default() });
}

#[tokio::test]
async fn a_signed_generation_is_taken_and_survives_a_restart() {
    let (machine, trust) = Machine::holding(3).await;
    let held = trust.held().unwrap();
    assert_eq!(held, machine.fleet.target(3));
    let again = machine.open();
    assert_eq!(again.held(), Some(held));
    assert_eq!(again.holds(), trust.holds());
    assert_eq!(again.holds().targets, 3);
}

#[tokio::test]
async fn failure_mode_25_what_is_verified_and_kept_are_the_bytes_as_they_came() {
    let machine = Machine::new().await;
    let publication = machine.fleet.publication(1);
    machine.controller.publish(&machine.fleet, &publication);
    // The same document with one more blank has the same meaning, but is not what was signed.
    let hash = Sha256::of(publication.target.as_bytes());
    let path = api::target_path(&machine.fleet.machine, &hash);
    machine.controller.put(&path, publication.target.replacen(':', ": ", 1).into_bytes());
    let mut trust = machine.open();
    assert!(trust.refresh(&machine.client, NOW).await.is_err());
    machine.controller.put(&path, publication.target.clone().into_bytes());
    trust.refresh(&machine.client, NOW).await.unwrap();
    let kept = |name: &str| std::fs::read(machine.state.path().join("tuf").join(name)).unwrap();
    assert_eq!(kept("generation.json"), publication.target.as_bytes());
    assert_eq!(kept("targets.json"), publication.targets.as_bytes());
    assert_eq!(kept("snapshot.json"), publication.snapshot.as_bytes());
}

#[tokio::test]
async fn an_unchanged_generation_costs_two_requests() {
    let (machine, mut trust) = Machine::holding(1).await;
    let before = machine.controller.seen().len();
    trust.refresh(&machine.client, NOW).await.unwrap();
    let asked: Vec<_> =
        machine.controller.seen().split_off(before).into_iter().map(|seen| seen.path).collect();
    assert_eq!(asked, [machine.path("2.root.json"), machine.path("timestamp.json")]);
}

#[tokio::test]
async fn i2_an_older_generation_is_refused() {
    let (machine, mut trust) = Machine::holding(5).await;
    machine.controller.publish(&machine.fleet, &machine.fleet.publication(4));
    machine.refuses(&mut trust, Some(Attack::Rollback), NOW).await;
}

#[tokio::test]
async fn i2_another_target_under_a_number_that_was_seen_is_refused() {
    let (machine, mut trust) = Machine::holding(5).await;
    let seen = trust.held();
    // Operators to whom generation 5 was hidden sign another one under its number.
    let other = Target { deadline_seconds: 17, ..machine.fleet.target(5) };
    let other = sign_generation(&other, NOW + DAY, &[&machine.fleet.operator]).unwrap();
    machine.controller.publish(&machine.fleet, &other);
    let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::MixAndMatch), "{error}");
    assert!(error.to_string().contains("another target was seen as generation 5: sign the next one"));
    machine.refuses(&mut trust, Some(Attack::MixAndMatch), NOW).await;
    // Nor after a restart, nor via the first target, which is still good.
    let mut trust = machine.open();
    machine.refuses(&mut trust, Some(Attack::MixAndMatch), NOW).await;
    machine.controller.publish(&machine.fleet, &machine.fleet.publication(5));
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap(), seen);
    machine.controller.publish(&machine.fleet, &other);
    trust.refresh(&machine.client, NOW).await.unwrap_err();
    // The same target with a later expiry is not a different one, and the next number resolves it.
    let longer = sign_generation(&machine.fleet.target(5), NOW + 60 * DAY, &[&machine.fleet.operator]);
    machine.controller.publish(&machine.fleet, &longer.unwrap());
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap(), seen);
    machine.controller.publish(&machine.fleet, &other);
    trust.refresh(&machine.client, NOW).await.unwrap_err();
    machine.controller.publish(&machine.fleet, &machine.fleet.publication(6));
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap().unwrap().generation.get(), 6);
}

#[tokio::test]
async fn i2_a_generation_below_the_tokens_is_refused_by_a_machine_that_holds_none() {
    let machine = Machine::new().await;
    let identity = Identity { lowest: Generation::new(7).unwrap(), ..machine.identity.clone() };
    let mut trust = Trust::open(&machine.config, &identity).unwrap();
    machine.controller.publish(&machine.fleet, &machine.fleet.publication(6));
    let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::Rollback), "{error}");
    assert_eq!(trust.held(), None);
    assert!(
        machine
            .files()
            .keys()
            .all(|name| !name.ends_with("targets.json") && !name.ends_with("generation.json"))
    );
}

#[tokio::test]
async fn an_old_timestamp_is_refused() {
    let (machine, mut trust) = Machine::holding(1).await;
    let old = machine.controller.file(&machine.path("timestamp.json"));
    machine.controller.publish(&machine.fleet, &machine.fleet.publication(2));
    trust.refresh(&machine.client, NOW).await.unwrap();
    machine.controller.put(&machine.path("timestamp.json"), old);
    machine.refuses(&mut trust, Some(Attack::Rollback), NOW).await;
}

#[tokio::test]
async fn failure_mode_36_metadata_that_has_expired_or_seems_so_breaks_nothing_and_is_called_a_freeze() {
    let (machine, mut trust) = Machine::holding(1).await;
    machine.refuses(&mut trust, Some(Attack::Freeze), NOW + 2 * DAY).await;
    // A fresh timestamp over an operator's signature that has expired.
    let publication = machine.fleet.publication(1);
    let late = machine.fleet.timestamp(&publication.snapshot, NOW + 90 * DAY);
    machine.controller.put(&machine.path("timestamp.json"), late);
    let error = trust.refresh(&machine.client, NOW + 40 * DAY).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::Freeze), "{error}");
    assert_eq!(trust.held().unwrap().generation.get(), 1);
    // The machine's clock was wrong, by weeks or by years: once set right, it continues.
    for wrong in [-50 * 365 * DAY, 50 * 365 * DAY] {
        let _ = trust.refresh(&machine.client, NOW + wrong).await;
        assert_eq!(trust.held().unwrap().generation.get(), 1, "{wrong}");
        assert!(machine.open().refresh(&machine.client, NOW).await.unwrap().is_some(), "{wrong}");
    }
}

#[tokio::test]
async fn i1_another_machines_generation_is_refused_before_anything_is_stored() {
    let (machine, mut trust) = Machine::holding(1).await;
    let target = Target { machine: "stibnite".parse().unwrap(), ..machine.fleet.target(9) };
    let foreign = sign_generation(&target, NOW + DAY, &[&machine.fleet.operator]).unwrap();
    machine.controller.publish(&machine.fleet, &foreign);
    let timestamp = sign_timestamp(
        &target.machine,
        foreign.snapshot.as_bytes(),
        1 << 40,
        NOW + DAY,
        &machine.fleet.online,
    );
    machine.controller.put(&machine.path("timestamp.json"), timestamp.unwrap());
    machine.refuses(&mut trust, Some(Attack::ForeignMachine), NOW).await;
}

#[tokio::test]
async fn i1_metadata_that_operators_did_not_sign_is_refused() {
    let (machine, mut trust) = Machine::holding(1).await;
    let thief = Fleet { operator: SecretKey::generate().unwrap(), ..Fleet::new() };
    let forged = sign_generation(&machine.fleet.target(2), NOW + DAY, &[&thief.operator]).unwrap();
    // The thief of the whole controller has its online key too, so the timestamp is trusted, and nothing
    // else.
    machine.controller.publish(&machine.fleet, &forged);
    let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::ForgedSignature), "{error}");
    assert_eq!(trust.held().unwrap().generation.get(), 1);
    assert_eq!(machine.open().holds().targets, 1);
    let timestamp =
        sign_timestamp(&machine.fleet.machine, forged.snapshot.as_bytes(), 1 << 40, NOW + DAY, &thief.online);
    machine.controller.put(&machine.path("timestamp.json"), timestamp.unwrap());
    machine.refuses(&mut trust, Some(Attack::ForgedSignature), NOW).await;
}

#[tokio::test]
async fn i1_a_changed_target_is_refused_and_the_old_one_stays() {
    let (machine, mut trust) = Machine::holding(1).await;
    let publication = machine.fleet.publication(2);
    machine.controller.publish(&machine.fleet, &publication);
    let path = api::target_path(&machine.fleet.machine, &Sha256::of(publication.target.as_bytes()));
    let changed = publication.target.replace("system-2.drv", "system-X.drv");
    assert_eq!(changed.len(), publication.target.len());
    machine.controller.put(&path, changed);
    let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::MixAndMatch), "{error}");
    // The metadata of generation 2 is good and stays; its target was never stored, now or on the next try.
    machine.refuses(&mut trust, Some(Attack::MixAndMatch), NOW).await;
    assert_eq!(trust.held().unwrap().generation.get(), 1);
    machine.controller.put(&path, publication.target.as_bytes());
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap(), Some(machine.fleet.target(2)));
}

#[tokio::test]
async fn endless_metadata_and_an_endless_target_are_refused() {
    let endless = |_: &super::controller::Received| {
        let chunks =
            futures_util::stream::repeat_with(|| Ok::<_, std::io::Error>(Bytes::from_static(&[b' '; 4096])));
        Body::from_stream(chunks).into_response()
    };
    let (machine, mut trust) = Machine::holding(1).await;
    let publication = machine.fleet.publication(2);
    machine.controller.publish(&machine.fleet, &publication);
    let path = api::target_path(&machine.fleet.machine, &Sha256::of(publication.target.as_bytes()));
    machine.controller.answer(&path, endless);
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap_err().attack(), Some(Attack::EndlessData));
    machine.controller.answer(&machine.path("timestamp.json"), endless);
    machine.refuses(&mut trust, Some(Attack::EndlessData), NOW).await;
}

#[tokio::test]
async fn metadata_that_is_not_json_is_refused() {
    let (machine, mut trust) = Machine::holding(1).await;
    for text in ["", "{", "null", "<html>", "{\"signed\":{}}"] {
        machine.controller.put(&machine.path("timestamp.json"), text);
        machine.refuses(&mut trust, Some(Attack::Malformed), NOW).await;
    }
}

#[tokio::test]
async fn i6_a_signed_target_of_another_class_or_system_is_not_kept() {
    let (machine, mut trust) = Machine::holding(1).await;
    let mut target = machine.fleet.target(2);
    target.system = "aarch64-linux".parse().unwrap();
    let publication = sign_generation(&target, NOW + DAY, &[&machine.fleet.operator]).unwrap();
    machine.controller.publish(&machine.fleet, &publication);
    let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::WrongClass), "{error}");
    assert_eq!(machine.open().held().unwrap().generation.get(), 1);

    let mac = Target {
        class: muster_protocol::machine::Class::Darwin,
        generation: Generation::new(3).unwrap(),
        ..target
    };
    let mac = Target { system: "aarch64-darwin".parse().unwrap(), ..mac };
    let publication = sign_generation(&mac, NOW + DAY, &[&machine.fleet.operator]).unwrap();
    machine.controller.publish(&machine.fleet, &publication);
    let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::WrongClass), "{error}");
    assert_eq!(machine.open().held().unwrap().generation.get(), 1);
}

#[tokio::test]
async fn withheld_metadata_is_no_attack_but_no_success_either() {
    let (machine, mut trust) = Machine::holding(1).await;
    machine.controller.take(&machine.path("timestamp.json"));
    machine.refuses(&mut trust, None, NOW).await;
}

#[tokio::test]
async fn a_new_root_is_followed_and_kept() {
    let (machine, mut trust) = Machine::holding(1).await;
    let operator = SecretKey::generate().unwrap();
    let root = root_of(2, &machine.fleet.root_key, &operator, &machine.fleet.online, NOW + 100 * DAY);
    machine.controller.put(&machine.path("2.root.json"), root.clone());
    let fleet = Fleet { operator, ..machine.fleet };
    machine.controller.publish(&fleet, &fleet.publication(2));
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap().unwrap().generation.get(), 2);
    assert_eq!(std::fs::read(machine.state.path().join("tuf/root.json")).unwrap(), root);
    assert_eq!(Trust::open(&machine.config, &machine.identity).unwrap().holds().root, 2);
}

#[tokio::test]
async fn a_disk_that_takes_nothing_leaves_what_is_held() {
    let (machine, mut trust) = Machine::holding(1).await;
    machine.controller.publish(&machine.fleet, &machine.fleet.publication(2));
    let temporary = machine.state.path().join("tuf/generation.json.new");
    // A folder in place of the temporary file makes the write fail as a full disk does.
    std::fs::create_dir(&temporary).unwrap();
    let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
    assert!(matches!(error, TrustError::Write { .. }) && error.attack().is_none(), "{error}");
    assert_eq!(trust.held().unwrap().generation.get(), 1);
    assert_eq!(machine.open().held().unwrap().generation.get(), 1);
    std::fs::remove_dir(&temporary).unwrap();
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap().unwrap().generation.get(), 2);
}

#[tokio::test]
async fn a_damaged_target_on_disk_is_fetched_again_and_a_damaged_root_says_what_to_do() {
    let (machine, _) = Machine::holding(1).await;
    std::fs::write(machine.state.path().join("tuf/generation.json"), "{").unwrap();
    let mut trust = machine.open();
    assert_eq!(trust.held(), None);
    assert!(trust.refresh(&machine.client, NOW).await.unwrap().is_some());
    std::fs::write(machine.state.path().join("tuf/root.json"), "{").unwrap();
    let error = Trust::open(&machine.config, &machine.identity).err().unwrap();
    assert!(error.to_string().contains("--replace"), "{error}");
}

#[tokio::test]
async fn a_generation_that_lists_the_target_of_an_older_one_is_refused_though_its_bytes_are_held() {
    let (machine, mut trust) = Machine::holding(1).await;
    let (fleet, old) = (&machine.fleet, machine.fleet.publication(1));
    let signed_again = |document: &str, change: &dyn Fn(&mut serde_json::Value)| {
        let mut document: serde_json::Value = serde_json::from_str(document).unwrap();
        change(&mut document["signed"]);
        let message = canonical::encode(&document["signed"]).unwrap();
        document["signatures"][0]["sig"] = fleet.operator.sign_raw(&message).hex().into();
        document.to_string()
    };
    let mut publication = fleet.publication(2);
    publication.targets = signed_again(&publication.targets, &|signed| {
        let listed = &mut signed["targets"][api::target_name(&fleet.machine)];
        listed["length"] = old.target.len().into();
        listed["hashes"]["sha256"] = Sha256::of(old.target.as_bytes()).hex().into();
    });
    let targets = publication.targets.clone();
    publication.snapshot = signed_again(&publication.snapshot, &|signed| {
        let pin = &mut signed["meta"]["targets.json"];
        pin["length"] = targets.len().into();
        pin["hashes"]["sha256"] = Sha256::of(targets.as_bytes()).hex().into();
    });
    publication.target = old.target.clone();
    machine.controller.publish(fleet, &publication);
    let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::MixAndMatch), "{error}");
    assert_eq!(trust.held().unwrap().generation.get(), 1);
}

/// The next root, which begins an epoch with the same keys.
fn new_epoch(fleet: &Fleet) -> Vec<u8> {
    let spec = RootSpec {
        version: 2,
        epoch: Epoch::new(1).unwrap(),
        expires: NOW + 100 * DAY,
        root: (vec![fleet.root_key.public()], 1),
        operators: (vec![fleet.operator.public()], 1),
        online: vec![fleet.online.public()],
    };
    sign_root(&spec, &[&fleet.root_key]).unwrap()
}

fn signed_in_epoch_one(fleet: &Fleet, number: u64) -> muster_protocol::operator::Publication {
    let generation = Generation::of(Epoch::new(1).unwrap(), number).unwrap();
    let target = Target { generation, ..fleet.target(number) };
    sign_generation(&target, NOW + DAY, &[&fleet.operator]).unwrap()
}

#[tokio::test]
async fn i2_a_machine_that_was_brought_to_the_last_number_takes_generation_1_of_a_new_epoch() {
    let machine = Machine::new().await;
    let identity = Identity { lowest: Generation::new(MAX_NUMBER).unwrap(), ..machine.identity.clone() };
    machine.controller.publish(&machine.fleet, &machine.fleet.publication(MAX_NUMBER));
    let mut trust = Trust::open(&machine.config, &identity).unwrap();
    trust.refresh(&machine.client, NOW).await.unwrap();
    let old = machine.fleet.publication(MAX_NUMBER);

    machine.controller.put(&machine.path("2.root.json"), new_epoch(&machine.fleet));
    machine.controller.take(&machine.path("timestamp.json"));
    // Nothing was signed in it yet: nothing is held, and nothing earlier is on disk.
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap(), None);
    assert_eq!((trust.held(), trust.holds().epoch.get(), trust.holds().targets), (None, 1, 0));
    for file in ["timestamp.json", "snapshot.json", "targets.json", "generation.json"] {
        assert!(!machine.state.path().join("tuf").join(file).exists(), "{file}");
    }
    machine.controller.publish(&machine.fleet, &signed_in_epoch_one(&machine.fleet, 1));
    let taken = trust.refresh(&machine.client, NOW).await.unwrap().unwrap();
    assert_eq!(taken.generation.to_string(), "1.1");
    assert_eq!(Trust::open(&machine.config, &identity).unwrap().held(), Some(taken.clone()));

    // What was signed before the epoch is refused, in this process and in the next.
    machine.controller.publish(&machine.fleet, &old);
    let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::Rollback), "{error}");
    let mut again = Trust::open(&machine.config, &identity).unwrap();
    let error = again.refresh(&machine.client, NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::Rollback), "{error}");
    assert_eq!((trust.held(), again.held()), (Some(taken.clone()), Some(taken)));
}

#[tokio::test]
async fn an_agent_that_died_behind_the_root_of_a_new_epoch_leaves_what_was_before_it() {
    let (machine, trust) = Machine::holding(4).await;
    assert_eq!(trust.held().unwrap().generation.get(), 4);
    drop(trust);
    // The root is durable, and nothing else happened.
    std::fs::write(machine.state.path().join("tuf/root.json"), new_epoch(&machine.fleet)).unwrap();
    let mut trust = machine.open();
    assert_eq!((trust.held(), trust.holds().epoch.get(), trust.holds().targets), (None, 1, 0));
    // The old files are still there; bringing them back has no effect.
    let error = trust.refresh(&machine.client, NOW).await.unwrap_err();
    assert_eq!(error.attack(), Some(Attack::Rollback), "{error}");
    assert!(!machine.state.path().join("tuf/generation.json").exists());
    machine.controller.publish(&machine.fleet, &signed_in_epoch_one(&machine.fleet, 1));
    let taken = trust.refresh(&machine.client, NOW).await.unwrap().unwrap();
    assert_eq!(taken.generation.to_string(), "1.1");
}

#[tokio::test]
async fn a_number_that_would_leave_hardly_any_above_it_is_refused() {
    let (machine, mut trust) = Machine::holding(4).await;
    machine.controller.publish(&machine.fleet, &machine.fleet.publication(MAX_NUMBER));
    machine.refuses(&mut trust, Some(Attack::FastForward), NOW).await;
    machine.controller.publish(&machine.fleet, &machine.fleet.publication(5));
    assert_eq!(trust.refresh(&machine.client, NOW).await.unwrap().unwrap().generation.get(), 5);
}
