//! A token makes a machine a member, once, and of the right fleet.

use std::path::Path;

use base64::Engine as _;
use muster_agent::config::{Config, StandIn};
use muster_agent::enrol::{EnrolmentError, enrol, finish};
use muster_agent::identity::Identity;
use muster_agent::outbox::Outbox;
use muster_protocol::api;
use muster_protocol::enrol::{Secret, Token, pinned};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::report::EventKind;

use super::controller::{Controller, DAY, Fleet, NOW};

pub(super) struct Site {
    state: tempfile::TempDir,
    controller: Controller,
    fleet: Fleet,
    pub(super) config: Config,
    token: Token,
}

impl Site {
    pub(super) async fn new() -> Self {
        let controller = Controller::start().await;
        let fleet = Fleet::new();
        controller.put(&api::root_path(1), fleet.root.clone());
        let state = tempfile::tempdir().unwrap();
        let mut config = Config::parse("", "/nowhere/agent.toml".into()).unwrap();
        config.state_dir = state.path().join("muster");
        config.stand_in = Some(StandIn {
            root: state.path().to_path_buf(),
            store: None,
            path: "/nowhere".into(),
            system: "x86_64-linux".parse().unwrap(),
            nix_config: String::new(),
        });
        let token = token(&fleet, &controller);
        controller.expect_enrolment(token.secret.check_key());
        Self { state, controller, fleet, config, token }
    }
    pub(super) async fn enrol(&self, replace: bool) -> Result<String, EnrolmentError> {
        let token = self.token.encode().unwrap();
        enrol(&self.config, &token, replace, NOW * 1000).await.map(|done| done.machine.to_string())
    }
    fn identity(&self) -> Option<Identity> {
        Identity::load(&self.config).unwrap()
    }
    fn events(&self) -> Vec<EventKind> {
        let outbox = Outbox::open(&self.config.state("outbox"), 1).unwrap();
        let batch = outbox.batch(&self.fleet.machine, true);
        batch.map(|batch| batch.events.into_iter().map(|event| event.kind).collect()).unwrap_or_default()
    }
    /// Another token for the same machine, as made by `muster machines add --replace`.
    fn new_token(&mut self) {
        self.token = token(&self.fleet, &self.controller);
        self.controller.forget_enrolment();
        self.controller.expect_enrolment(self.token.secret.check_key());
    }
}

fn token(fleet: &Fleet, controller: &Controller) -> Token {
    Token {
        url: controller.url.clone(),
        machine: fleet.machine.clone(),
        class: fleet.class,
        fleet: Sha256::of(&fleet.root),
        root: Sha256::of(&fleet.root),
        root_version: 1,
        lowest_generation: Generation::new(4).unwrap(),
        expires: NOW + DAY,
        secret: Secret::generate().unwrap(),
        tls_ca: None,
    }
}

fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).map(|files| files.map(|file| file.unwrap().file_name()));
    let mut names: Vec<_> = files.into_iter().flatten().map(|name| name.into_string().unwrap()).collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_token_enrols_a_machine_whole() {
    let site = Site::new().await;
    assert_eq!(site.enrol(false).await.unwrap(), "cinnabar");
    let identity = site.identity().unwrap();
    assert_eq!(Some(identity.key.public()), site.controller.enrolled());
    assert_eq!(identity.lowest.get(), 4);
    assert_eq!(std::fs::read(site.config.state("tuf/root.json")).unwrap(), site.fleet.root);
    assert_eq!(
        names(&site.config.state_dir),
        ["age.txt", "enrolment.json", "machine.pem", "outbox", "tuf", "witness"]
    );
    assert!(matches!(site.events()[..], [EventKind::Enrolled { .. }]));
    assert!(matches!(site.enrol(false).await, Err(EnrolmentError::AlreadyEnrolled(_))));
    finish(&site.config).unwrap();
    assert_eq!(site.events().len(), 1);
}

#[tokio::test]
async fn a_root_that_is_not_the_tokens_ends_it_before_anything_is_sent() {
    let site = Site::new().await;
    site.controller.put(&api::root_path(1), Fleet::new().root);
    let error = site.enrol(false).await.unwrap_err();
    assert!(matches!(error, EnrolmentError::RootMismatch { .. }), "{error}");
    assert!(site.controller.seen().iter().all(|seen| seen.path != api::ENROL));
    assert!(site.identity().is_none());
    site.controller.take(&api::root_path(1));
    assert!(matches!(site.enrol(false).await, Err(EnrolmentError::NoRoot { .. })));
}

#[tokio::test]
async fn an_answer_that_was_lost_is_made_good_by_the_same_token() {
    let site = Site::new().await;
    site.controller.lose_replies(1);
    let error = site.enrol(false).await.unwrap_err();
    assert!(error.to_string().contains("cannot be reached"), "{error}");
    assert!(site.identity().is_none());
    let granted = site.controller.enrolled().unwrap();
    site.enrol(false).await.unwrap();
    assert_eq!(site.identity().unwrap().key.public(), granted);
}

#[tokio::test]
async fn a_used_or_unknown_token_is_refused_in_the_controllers_words() {
    let site = Site::new().await;
    site.enrol(false).await.unwrap();
    let second = Site { state: tempfile::tempdir().unwrap(), ..Site::new().await };
    let error = enrol(&second.config, &site.token.encode().unwrap(), false, 0).await.unwrap_err();
    assert!(error.to_string().contains("make another"), "{error}");
    assert!(second.identity().is_none());
    assert!(matches!(enrol(&second.config, "hello", false, 0).await, Err(EnrolmentError::Token(_))));
}

#[tokio::test]
async fn an_expired_token_is_the_controllers_to_judge() {
    let mut site = Site::new().await;
    site.token.expires = 1;
    site.enrol(false).await.unwrap();
}

#[tokio::test]
async fn i6_a_token_of_another_class_is_refused_before_anything_is_sent() {
    let mut site = Site::new().await;
    site.token.class = muster_protocol::machine::Class::Darwin;
    assert!(matches!(site.enrol(false).await, Err(EnrolmentError::WrongClass { .. })));
    assert!(site.controller.seen().is_empty());
    site.token.url = "http://192.0.2.1:8443".into();
    site.token.class = site.fleet.class;
    let error = site.enrol(false).await.unwrap_err();
    assert!(error.to_string().contains("use https://"), "{error}");
}

#[tokio::test]
async fn a_replaced_machine_gets_new_keys_and_keeps_its_floors() {
    let mut site = Site::new().await;
    site.enrol(false).await.unwrap();
    let first = site.identity().unwrap();
    std::fs::write(site.config.state("tuf/targets.json"), "floor").unwrap();
    std::fs::write(site.config.state("journal.json"), "{}").unwrap();
    site.new_token();
    site.enrol(true).await.unwrap();
    let second = site.identity().unwrap();
    assert_ne!(first.key.public(), second.key.public());
    assert_ne!(first.age, second.age);
    assert!(site.config.state("tuf/targets.json").exists() && site.config.state("journal.json").exists());
}

#[tokio::test]
async fn a_machine_of_another_fleet_begins_anew() {
    let mut site = Site::new().await;
    site.enrol(false).await.unwrap();
    for file in ["tuf/targets.json", "journal.json"] {
        std::fs::write(site.config.state(file), "of the old fleet").unwrap();
    }
    site.fleet = Fleet::new();
    site.controller.put(&api::root_path(1), site.fleet.root.clone());
    site.new_token();
    site.enrol(true).await.unwrap();
    assert!(!site.config.state("tuf/targets.json").exists() && !site.config.state("journal.json").exists());
    assert_eq!(std::fs::read(site.config.state("tuf/root.json")).unwrap(), site.fleet.root);
    assert_eq!(site.events().len(), 1);
}

#[tokio::test]
async fn a_replacement_that_is_refused_leaves_the_machine_as_it_was() {
    let site = Site::new().await;
    site.enrol(false).await.unwrap();
    let before = std::fs::read(site.config.state("machine.pem")).unwrap();
    // The token is used, with keys other than these new ones.
    let other = Token { secret: Secret::generate().unwrap(), ..site.token.clone() };
    let error = enrol(&site.config, &other.encode().unwrap(), true, NOW * 1000).await.unwrap_err();
    assert!(matches!(error, EnrolmentError::Client(_)), "{error}");
    assert_eq!(std::fs::read(site.config.state("machine.pem")).unwrap(), before);
    std::fs::write(site.config.state("transaction.json"), "{}").unwrap();
    assert!(matches!(site.enrol(true).await, Err(EnrolmentError::Switching)));
}

/// Every state that a crash after the controller's grant can leave: the grant is stored in a folder of its
/// own, and put in force file by file.
#[tokio::test]
async fn a_crash_after_the_grant_is_finished_at_the_next_start() {
    let mut site = Site::new().await;
    site.enrol(false).await.unwrap();
    let old = site.identity().unwrap().key.public();
    site.new_token();
    // A machine elsewhere shows what the folder contains once the grant is stored.
    let twin = Site::new().await;
    twin.enrol(false).await.unwrap();
    let granted = site.config.state("enrolling/0123456789ab");
    std::fs::create_dir_all(&granted).unwrap();
    for file in ["machine.pem", "age.txt", "enrolment.json"] {
        std::fs::copy(twin.config.state(file), granted.join(file)).unwrap();
    }
    std::fs::write(granted.join("root.json"), &twin.fleet.root).unwrap();
    for installed in 0..=2 {
        for file in &["machine.pem", "age.txt"][..installed] {
            std::fs::copy(granted.join(file), site.config.state(file)).unwrap();
        }
        let copy = tempfile::tempdir().unwrap();
        copy_folder(&site.config.state_dir, copy.path());
        let config = Config { state_dir: copy.path().to_path_buf(), ..site.config.clone() };
        finish(&config).unwrap();
        let new = Identity::load(&config).unwrap().unwrap().key.public();
        assert_ne!(new, old);
        assert_eq!(new, twin.identity().unwrap().key.public(), "{installed} files were installed");
        assert!(!config.state("enrolling").exists());
        finish(&config).unwrap();
    }
    drop(site.state);
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        if file.file_type().unwrap().is_dir() {
            copy_folder(&file.path(), &to.join(file.file_name()));
        } else {
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    }
}

#[tokio::test]
async fn an_authority_is_found_by_its_hash_in_what_the_controller_sends_and_kept() {
    let mut site = Site::new().await;
    let (controller, authority) = Controller::start_tls().await;
    controller.put(&api::root_path(1), site.fleet.root.clone());
    controller.expect_enrolment(site.token.secret.check_key());
    site.token.url = controller.url.clone();
    let der = base64::engine::general_purpose::STANDARD.decode(&authority).unwrap();

    // Another authority's hash: nobody is trusted, and nothing was sent.
    site.token.tls_ca = Some(pinned(&Sha256::of(b"another")));
    let refused = site.enrol(false).await.unwrap_err().to_string();
    assert!(refused.contains("does not send the certificate authority that the token names"), "{refused}");
    assert!(controller.seen().is_empty() && site.identity().is_none());

    site.token.tls_ca = Some(pinned(&Sha256::of(&der)));
    assert!(site.token.encode().unwrap().len() < 600);
    site.enrol(false).await.unwrap();
    let kept = site.identity().unwrap();
    assert_eq!(kept.tls_ca, Some(muster_agent::identity::pem_of(&authority)));
    assert!(std::fs::read_to_string(kept.ca_file.unwrap()).unwrap().contains("BEGIN CERTIFICATE"));
}
