//! Several operators, new roots and the audit log, over HTTP.

use std::collections::BTreeMap;

use crate::support::{Answer, Fleet, START_S, event, make_root, rotate, target};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::audit::{AuditError, Page, origin, verify};
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::draft::{Draft, DraftKind, DraftView, Drafted, DraftedGeneration};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::operator::{MachineView, NewRoot, Publication, RequestSignature, RootTaken};
use muster_protocol::report::{Accepted, Attack, EventKind};
use muster_protocol::request::Asked;
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::{RootSpec, draft_generation, draft_root, sign_root};
use reqwest::{Method, StatusCode};

const YEAR: i64 = 365 * 86_400;

fn key() -> SecretKey {
    SecretKey::generate().unwrap()
}

/// A request signed with any key.
async fn send_as(
    fleet: &Fleet,
    key: &SecretKey,
    method: Method,
    path: &str,
    body: &impl serde::Serialize,
) -> Answer {
    let body = serde_json::to_vec(body).unwrap();
    let mut signature = fleet.signature(key, &method, path, &body);
    signature.body = Some(Sha256::of(&body));
    fleet.send_signed(method, path, body, &signature).await
}

/// A root like the fleet's after `change`, signed by the root key.
fn next_root(fleet: &Fleet, version: u64, change: impl FnOnce(&mut RootSpec)) -> Vec<u8> {
    let mut spec = RootSpec {
        version,
        epoch: Default::default(),
        expires: START_S + YEAR,
        root: (vec![fleet.root_key.public()], 1),
        operators: (vec![fleet.operator.public()], 1),
        online: vec![fleet.online.public()],
    };
    change(&mut spec);
    sign_root(&spec, &[&fleet.root_key]).unwrap()
}

fn new_root(bytes: &[u8]) -> NewRoot {
    NewRoot { root: String::from_utf8(bytes.to_vec()).unwrap() }
}

/// A fleet whose generations need the signatures of two of these three operators; the first is the fleet's
/// own.
async fn of_three() -> (Fleet, [SecretKey; 2]) {
    let fleet = Fleet::start().await;
    let others = [key(), key()];
    let root = next_root(&fleet, 2, |spec| {
        spec.operators.0.extend(others.iter().map(SecretKey::public));
        spec.operators.1 = 2;
    });
    let taken: RootTaken =
        send_as(&fleet, &fleet.operator, Method::POST, api::OPERATOR_ROOT, &new_root(&root)).await.good();
    assert_eq!(taken, RootTaken { version: 2, online_key_named: true });
    (fleet, others)
}

pub fn draft(fleet: &Fleet, machines: &[&str], number: u64) -> Draft {
    let generations = machines.iter().map(|machine| DraftedGeneration {
        machine: machine.parse().unwrap(),
        class: Class::Nixos,
        publication: draft_generation(&target(machine, Class::Nixos, number), fleet.now_s() + 90 * 86_400)
            .unwrap(),
    });
    Draft {
        fleet: fleet.fleet_id(),
        made_at: 0,
        made_by: fleet.operator.public(),
        ends: i64::MAX,
        what: Drafted::Generations { generations: generations.collect() },
    }
}

fn publication(draft: &Draft) -> Publication {
    let Drafted::Generations { generations } = &draft.what else { panic!("a root") };
    generations[0].publication.clone()
}

async fn keep(fleet: &Fleet, by: &SecretKey, draft: &Draft) -> Answer {
    send_as(fleet, by, Method::POST, api::OPERATOR_DRAFTS, draft).await
}

async fn drafts(fleet: &Fleet) -> Vec<DraftView> {
    fleet.operate(Method::GET, api::OPERATOR_DRAFTS, vec![]).await.good()
}

#[tokio::test]
async fn a_generation_waits_as_a_draft_until_a_threshold_has_signed_it() {
    let (fleet, [second, third]) = of_three().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let empty = draft(&fleet, &["cinnabar"], 1);
    let one = empty.sign(&fleet.operator).unwrap();
    fleet.publish(&machine.name, &publication(&one)).await.refused(422, ProblemCode::BadSignature);

    let view: DraftView = keep(&fleet, &fleet.operator, &one).await.good();
    assert_eq!((view.kind, view.missing), (DraftKind::Generations, 1));
    assert_eq!((view.id, view.signed), (one.id().unwrap(), vec![fleet.operator.public()]));
    // The sender does not get to choose what is not signed.
    assert_eq!(view.ends, fleet.now_s() + 14 * 86_400);

    // Another operator signs the controller's copy, or one that came by mail; the signatures are merged.
    let path = format!("{}/{}", api::OPERATOR_DRAFTS, view.id.short());
    let given: Draft = fleet.operate(Method::GET, &path, vec![]).await.good();
    assert_eq!(given.id().unwrap(), view.id);
    let view: DraftView = keep(&fleet, &third, &empty.sign(&third).unwrap()).await.good();
    assert_eq!(view.missing, 0);
    assert_eq!(drafts(&fleet).await.len(), 1);
    let complete: Draft = fleet.operate(Method::GET, &path, vec![]).await.good();
    let published: MachineView = fleet.publish(&machine.name, &publication(&complete)).await.good();
    let mut signers = published.published.unwrap().signers;
    signers.sort_by_key(|key| *key != fleet.operator.public());
    assert_eq!(signers, [fleet.operator.public(), third.public()]);

    // The published draft is over, and so is every other draft of that number.
    let late = draft(&fleet, &["cinnabar"], 1).sign(&second).unwrap();
    fleet.clock.forward(1);
    let message = keep(&fleet, &second, &late).await.refused(409, ProblemCode::Conflict);
    assert!(message.contains("the next generation of cinnabar is 2"), "{message}");
    assert!(
        drafts(&fleet).await[0]
            .void
            .as_deref()
            .is_some_and(|why| why.contains("generation of cinnabar is 2"))
    );
    let gone: Sha256 = fleet.operate(Method::POST, &format!("{path}/drop"), vec![]).await.good();
    assert_eq!(gone, view.id);
    assert!(drafts(&fleet).await.is_empty());
    fleet.operate(Method::GET, &path, vec![]).await.refused(404, ProblemCode::NotFound);
}

#[tokio::test]
async fn the_controller_keeps_no_draft_that_nobody_signed_or_no_machine_would_take() {
    let (fleet, [second, _]) = of_three().await;
    fleet.enrolled("cinnabar", Class::Nixos).await;
    let empty = draft(&fleet, &["cinnabar"], 1);
    keep(&fleet, &second, &empty).await.refused(422, ProblemCode::BadSignature);
    let by_strangers = empty.sign(&key()).unwrap().sign(&fleet.online).unwrap();
    keep(&fleet, &second, &by_strangers).await.refused(422, ProblemCode::BadSignature);

    let signed = empty.sign(&fleet.operator).unwrap();
    let with_junk = signed.sign(&key()).unwrap();
    keep(&fleet, &second, &with_junk).await.good::<DraftView>();
    let path = format!("{}/{}", api::OPERATOR_DRAFTS, signed.id().unwrap());
    let kept: Draft = fleet.operate(Method::GET, &path, vec![]).await.good();
    assert_eq!(serde_json::to_string(&kept.what).unwrap(), serde_json::to_string(&signed.what).unwrap());

    let unknown = draft(&fleet, &["nobody"], 1).sign(&second).unwrap();
    keep(&fleet, &second, &unknown).await.refused(409, ProblemCode::Conflict);
    let too_far = draft(&fleet, &["cinnabar"], 2).sign(&second).unwrap();
    keep(&fleet, &second, &too_far).await.refused(409, ProblemCode::Conflict);
    let mut foreign = signed.clone();
    foreign.fleet = Sha256::of(b"another");
    keep(&fleet, &second, &foreign).await.refused(422, ProblemCode::Malformed);
    for id in ["", "zz", "00", "0123456789abcdef", &"0".repeat(65), "%25%25%25%25%25%25%25%25"] {
        let answer = fleet.operate(Method::GET, &format!("{}/{id}", api::OPERATOR_DRAFTS), vec![]).await;
        assert!(answer.status == StatusCode::NOT_FOUND, "{id}: {}", answer.text);
    }
    // A root key signs only roots, and strangers do not get that far.
    keep(&fleet, &fleet.root_key, &signed).await.refused(403, ProblemCode::Unauthorised);
    keep(&fleet, &fleet.online, &signed).await.refused(403, ProblemCode::Revoked);
}

#[tokio::test]
async fn a_draft_is_forgotten_after_two_weeks() {
    let (fleet, _) = of_three().await;
    fleet.enrolled("cinnabar", Class::Nixos).await;
    let signed = draft(&fleet, &["cinnabar"], 1).sign(&fleet.operator).unwrap();
    keep(&fleet, &fleet.operator, &signed).await.good::<DraftView>();
    fleet.clock.forward(14 * 86_400);
    assert!(drafts(&fleet).await.is_empty());
}

#[tokio::test]
async fn a_root_waits_for_a_threshold_of_old_and_new_holders_and_counts_at_once() {
    let fleet = Fleet::start().await;
    let (second_root, newcomer) = (key(), key());
    let spec = RootSpec {
        version: 2,
        epoch: Default::default(),
        expires: START_S + YEAR,
        root: (vec![fleet.root_key.public(), second_root.public()], 2),
        operators: (vec![newcomer.public()], 1),
        online: vec![fleet.online.public()],
    };
    let names = BTreeMap::from([(newcomer.public().hex(), "alice".to_owned())]);
    let root = draft_root(&spec, &names).unwrap();
    let empty = Draft {
        fleet: fleet.fleet_id(),
        made_at: 0,
        made_by: fleet.root_key.public(),
        ends: 0,
        what: Drafted::Root { root },
    };
    let one = empty.sign(&fleet.root_key).unwrap();
    // A root holder need not be an operator to send it.
    let view: DraftView = keep(&fleet, &fleet.root_key, &one).await.good();
    assert_eq!((view.kind, view.missing), (DraftKind::Root, 1));
    let Drafted::Root { root } = &one.what else { panic!() };
    let incomplete = NewRoot { root: root.clone() };
    send_as(&fleet, &fleet.root_key, Method::POST, api::OPERATOR_ROOT, &incomplete)
        .await
        .refused(422, ProblemCode::BadSignature);
    fleet.operate(Method::GET, api::OPERATOR_MACHINES, vec![]).await.good::<Vec<MachineView>>();

    let both = one.sign(&second_root).unwrap();
    let Drafted::Root { root } = &both.what else { panic!() };
    let complete = NewRoot { root: root.clone() };
    // A sender named in neither root is turned away, however good the root is.
    send_as(&fleet, &key(), Method::POST, api::OPERATOR_ROOT, &complete)
        .await
        .refused(403, ProblemCode::Unauthorised);
    let taken: RootTaken =
        send_as(&fleet, &newcomer, Method::POST, api::OPERATOR_ROOT, &complete).await.good();
    assert_eq!(taken.version, 2);
    fleet.operate(Method::GET, api::OPERATOR_MACHINES, vec![]).await.refused(403, ProblemCode::Revoked);
    send_as(&fleet, &newcomer, Method::POST, api::OPERATOR_ROOT, &complete)
        .await
        .refused(409, ProblemCode::Conflict);
    let served = Answer::of(fleet.http.get(fleet.url(&api::root_path(2)))).await;
    assert_eq!(served.text, *root);
    // It is with the other roots, for the next start and for backups.
    assert_eq!(fleet.kept_root(2).await, root.as_bytes());
}

#[tokio::test]
async fn no_root_is_taken_that_does_not_follow_or_arms_the_controller() {
    let fleet = Fleet::start().await;
    let send = async |bytes: &[u8]| {
        send_as(&fleet, &fleet.operator, Method::POST, api::OPERATOR_ROOT, &new_root(bytes)).await
    };
    let skipping = next_root(&fleet, 3, |_| ());
    assert!(send(&skipping).await.refused(409, ProblemCode::Conflict).contains("the next one is 2"));
    send(&fleet.root).await.refused(409, ProblemCode::Conflict);
    let foreign = make_root(2, &key(), &[&fleet.operator], &fleet.online);
    send(&foreign).await.refused(422, ProblemCode::BadSignature);
    send(b"<html>").await.refused(422, ProblemCode::Malformed);
    // I8: a key on the controller signs nothing but timestamps.
    let armed = next_root(&fleet, 2, |spec| spec.operators.0.push(spec.online[0]));
    let message = send(&armed).await.refused(422, ProblemCode::Malformed);
    assert!(message.contains("a controller must hold no such key"), "{message}");
    let armed = next_root(&fleet, 2, |spec| spec.root.0.push(spec.online[0]));
    send(&armed).await.refused(422, ProblemCode::Malformed);
    // The limit on the number of keys in a role.
    let many = (0..300).map(|_| key().public()).collect::<Vec<_>>();
    let spec = RootSpec {
        version: 2,
        epoch: Default::default(),
        expires: START_S + YEAR,
        root: (vec![fleet.root_key.public()], 1),
        operators: (many, 1),
        online: vec![fleet.online.public()],
    };
    assert!(draft_root(&spec, &BTreeMap::new()).is_err());
    assert!(!fleet.dir.path().join("root/2.root.json").exists());
    assert_eq!(fleet.sql("SELECT count(*) FROM audit WHERE action LIKE 'root%'").await, "1");
}

#[tokio::test]
async fn a_root_in_the_folder_that_arms_the_controller_is_not_followed_and_stops_the_next_start() {
    let mut fleet = Fleet::start().await;
    let armed = next_root(&fleet, 2, |spec| spec.operators.0.push(spec.online[0]));
    std::fs::write(fleet.dir.path().join("root/2.root.json"), armed).unwrap();
    let served = Answer::of(fleet.http.get(fleet.url(&api::root_path(2)))).await;
    served.refused(404, ProblemCode::NotFound);
    fleet.down().await;
    let config = muster_server::config::ServerConfig::load(&fleet.config_file()).unwrap();
    let Err(error) = muster_server::server::Server::start(config).await else { panic!("it started") };
    assert!(error.to_string().contains("must hold no such key"), "{error}");
}

#[tokio::test]
async fn a_controller_whose_online_key_is_named_no_more_signs_nothing_until_it_gets_the_new_one() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    let bearer = machine.bearer(&fleet).await;
    let path = machine.tuf("timestamp.json");
    assert_eq!(fleet.get(&path, &bearer).await.status, StatusCode::OK);

    let new = key();
    let root = next_root(&fleet, 2, |spec| spec.online = vec![new.public()]);
    let taken: RootTaken =
        send_as(&fleet, &fleet.operator, Method::POST, api::OPERATOR_ROOT, &new_root(&root)).await.good();
    assert!(!taken.online_key_named);
    // Machines would call its timestamps forged, so it issues none and publishes nothing.
    let answer = fleet.get(&path, &bearer).await;
    let wait: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((5..=10).contains(&wait), "{wait}");
    answer.refused(503, ProblemCode::Busy);
    fleet
        .publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 2))
        .await
        .refused(503, ProblemCode::Busy);
    assert_eq!(fleet.view("cinnabar").await.published.unwrap().target.generation, Generation::FIRST);

    std::fs::write(fleet.dir.path().join("online.pem"), new.to_pem().unwrap().as_bytes()).unwrap();
    let answer = fleet.get(&path, &bearer).await;
    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 2)).await.good::<MachineView>();
}

#[tokio::test]
async fn a_request_whose_announced_body_is_another_is_refused() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let path = format!("{}/generations", api::operator_machine(&machine.name));
    let good = serde_json::to_vec(&fleet.generation("cinnabar", Class::Nixos, 1)).unwrap();
    let mut signature = fleet.signature(&fleet.operator, &Method::POST, &path, &good);
    signature.body = Some(Sha256::of(&good));
    let bent = RequestSignature { body: Some(Sha256::of(b"{}")), ..signature.clone() };
    fleet
        .send_signed(Method::POST, &path, b"{}".to_vec(), &bent)
        .await
        .refused(401, ProblemCode::BadSignature);
    fleet
        .send_signed(Method::POST, &path, b"{}".to_vec(), &signature)
        .await
        .refused(401, ProblemCode::BadSignature);
    fleet.send_signed(Method::POST, &path, good, &signature).await.good::<MachineView>();
}

async fn log(fleet: &Fleet) -> Page {
    fleet.operate(Method::GET, api::OPERATOR_AUDIT, vec![]).await.good()
}

#[tokio::test]
async fn every_deed_and_every_danger_stands_in_a_chained_log() {
    let (fleet, _) = of_three().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    machine.check_in(&fleet).await;
    machine.send_checkin(&fleet, &CheckIn { boot_id: "copy".into(), ..machine.checkin(&fleet, 1) }).await;
    machine.send_checkin(&fleet, &CheckIn { boot_id: "copy 2".into(), ..machine.checkin(&fleet, 1) }).await;
    let path = format!("{}/acknowledge", api::operator_machine(&machine.name));
    fleet.operate(Method::POST, &path, vec![]).await.good::<MachineView>();
    let asked = fleet.asks(&machine.name, Asked::RotateKey { key: machine.key.public() });
    fleet.ask(&machine.name, &asked).await.good::<MachineView>();
    rotate(&fleet, &mut machine, &key()).await.good::<CheckInReply>();
    let refused = |detail: &str| EventKind::Refused { attack: Attack::Rollback, detail: detail.into() };
    machine
        .report(&fleet, 1, vec![event(1, None, refused("a")), event(2, None, refused("b"))])
        .await
        .good::<Accepted>();
    let signed = draft(&fleet, &["cinnabar"], 1).sign(&fleet.operator).unwrap();
    keep(&fleet, &fleet.operator, &signed).await.good::<DraftView>();

    let page = log(&fleet).await;
    let told: Vec<(&str, bool)> =
        page.entries.iter().map(|entry| (entry.action.as_str(), entry.by.is_some())).collect();
    assert_eq!(
        told,
        [
            ("root-found", false),
            ("root-published", true),
            ("machine-added", true),
            ("enrolled", false),
            ("clone-alarm", false),
            ("clone-alarm-ended", true),
            ("key-rotation-asked", true),
            ("key-rotated", false),
            ("attack-refused", false),
            ("draft-made", true),
        ]
    );
    let last = verify(origin(&fleet.fleet_id()), &page.entries).unwrap();
    assert_eq!((last.id, page.last), (10, 10));
    // Reading can continue from any entry.
    let rest: Page =
        fleet.operate(Method::GET, &format!("{}?after=4&limit=3", api::OPERATOR_AUDIT), vec![]).await.good();
    assert_eq!(rest.entries, page.entries[4..7]);
}

#[tokio::test]
async fn a_root_whose_entry_in_the_log_was_cut_off_counts_and_is_found_by_the_next_start() {
    let mut fleet = Fleet::start().await;
    let cut_off = "CREATE TRIGGER cut_off BEFORE INSERT ON audit WHEN NEW.action = 'root-published'
         BEGIN SELECT RAISE(ABORT, 'cut off'); END";
    fleet.try_sql(cut_off).await.unwrap();
    let root = next_root(&fleet, 2, |_| ());
    let answer = send_as(&fleet, &fleet.operator, Method::POST, api::OPERATOR_ROOT, &new_root(&root)).await;
    assert_eq!(answer.good::<RootTaken>().version, 2, "it counts, so it is not refused");
    assert!(fleet.dir.path().join("root/2.root.json").exists());
    assert_eq!(log(&fleet).await.entries.len(), 1, "the root of the fleet's first start alone");
    fleet.down().await;
    fleet.up().await;
    fleet.down().await;
    fleet.up().await;
    let found = log(&fleet).await.entries;
    let found: Vec<(&str, &str)> =
        found.iter().map(|entry| (entry.action.as_str(), entry.detail.as_str())).collect();
    assert_eq!(found, [("root-found", "version 1"), ("root-found", "version 2")]);
}

#[tokio::test]
async fn a_roots_entry_that_could_not_be_written_follows_under_the_name_of_its_operator() {
    let fleet = Fleet::start().await;
    let cut_off = "CREATE TRIGGER cut_off BEFORE INSERT ON audit WHEN NEW.action = 'root-published'
         BEGIN SELECT RAISE(ABORT, 'cut off'); END";
    fleet.try_sql(cut_off).await.unwrap();
    let root = next_root(&fleet, 2, |_| ());
    let answer = send_as(&fleet, &fleet.operator, Method::POST, api::OPERATOR_ROOT, &new_root(&root)).await;
    assert_eq!(answer.good::<RootTaken>().version, 2);
    // While the log cannot say what is in force, nothing newer comes into force.
    let next = next_root(&fleet, 3, |_| ());
    let answer = send_as(&fleet, &fleet.operator, Method::POST, api::OPERATOR_ROOT, &new_root(&next)).await;
    answer.refused(500, ProblemCode::Internal);
    assert!(!fleet.dir.path().join("root/3.root.json").exists());
    fleet.try_sql("DROP TRIGGER cut_off").await.unwrap();
    let answer = send_as(&fleet, &fleet.operator, Method::POST, api::OPERATOR_ROOT, &new_root(&next)).await;
    assert_eq!(answer.good::<RootTaken>().version, 3);
    let found = log(&fleet).await.entries;
    let found: Vec<_> =
        found.iter().map(|entry| (entry.action.as_str(), entry.detail.as_str(), entry.by)).collect();
    let by = Some(fleet.operator.public());
    assert_eq!(
        found,
        [
            ("root-found", "version 1", None),
            ("root-published", "version 2", by),
            ("root-published", "version 3", by)
        ]
    );
}

#[tokio::test]
async fn a_log_that_was_changed_behind_the_triggers_shows() {
    let fleet = Fleet::start().await;
    fleet.enrolled("cinnabar", Class::Nixos).await;
    let without = fleet.dialect(
        "DROP TRIGGER audit_entries_are_never_changed",
        "DROP TRIGGER audit_entries_are_never_changed ON audit",
    );
    fleet.try_sql(without).await.unwrap();
    fleet.try_sql("UPDATE audit SET operator = NULL WHERE action = 'machine-added'").await.unwrap();
    let page = log(&fleet).await;
    assert_eq!(verify(origin(&fleet.fleet_id()), &page.entries), Err(AuditError::Changed(2)));
}

/// A check-in that brings a new key, signed by both.
#[tokio::test]
async fn old_roots_and_their_holders_stay_verifiable_by_a_machine_that_slept() {
    let (fleet, _) = of_three().await;
    let mut root = Root::parse_self_signed(&fleet.root).unwrap();
    for version in 2.. {
        let answer = Answer::of(fleet.http.get(fleet.url(&api::root_path(version)))).await;
        if answer.status == StatusCode::NOT_FOUND {
            break;
        }
        root = root.successor(answer.text.as_bytes()).unwrap();
    }
    assert_eq!(root.version(), 2);
}
