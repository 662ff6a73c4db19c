//! Publishing for many machines at once, and the files that come with the news of it.

use std::collections::HashSet;
use std::sync::Arc;

use crate::support::{Answer, Fleet, Machine, make_root, target, until};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::{Files, PollReply};
use muster_protocol::ids::Generation;
use muster_protocol::keys::SecretKey;
use muster_protocol::machine::Class;
use muster_protocol::operator::{
    MAX_PUBLICATIONS_BYTES, MachinePublication, MachineView, NewRoot, Publications, PublicationsTaken,
    Request, RequestSignature, RootTaken,
};
use reqwest::Method;

/// The next generation of each of these machines.
fn next(fleet: &Fleet, machines: &[(&str, u64)]) -> Vec<MachinePublication> {
    let one = |(machine, number): &(&str, u64)| MachinePublication {
        machine: machine.parse().unwrap(),
        publication: fleet.generation(machine, Class::Nixos, *number),
    };
    machines.iter().map(one).collect()
}

/// Sent as `muster update` does: the signature names the body's hash.
async fn send(fleet: &Fleet, by: &SecretKey, generations: &[MachinePublication]) -> Answer {
    let body = serde_json::to_vec(&Publications { generations: generations.to_vec() }).unwrap();
    send_bytes(fleet, by, body).await
}

async fn send_bytes(fleet: &Fleet, by: &SecretKey, body: Vec<u8>) -> Answer {
    let (id, path, nonce) = (fleet.fleet_id(), api::OPERATOR_GENERATIONS, muster_protocol::random::bytes());
    let request = Request { audience: &id, method: "POST", path, body: &body };
    let signature = RequestSignature::make_with(by, request, fleet.now_s(), nonce.unwrap()).unwrap();
    fleet.send_signed(Method::POST, path, body, &signature).await
}

async fn publish(fleet: &Fleet, machines: &[(&str, u64)]) -> Answer {
    send(fleet, &fleet.operator, &next(fleet, machines)).await
}

async fn three(fleet: &Fleet) -> [Machine; 3] {
    [
        fleet.enrolled("cinnabar", Class::Nixos).await,
        fleet.enrolled("realgar", Class::Nixos).await,
        fleet.enrolled("orpiment", Class::Nixos).await,
    ]
}

fn taken(published: usize, unchanged: usize) -> PublicationsTaken {
    PublicationsTaken { published, unchanged }
}

const STORED: &str = "SELECT (SELECT count(*) FROM generations) || ' ' ||
    (SELECT count(*) FROM audit WHERE action = 'generation-published') || ' ' ||
    (SELECT count(*) FROM machines WHERE published IS NOT NULL AND timestamp IS NOT NULL)";

#[tokio::test]
async fn generations_of_many_machines_are_published_by_one_request_and_again_mean_the_same() {
    let fleet = Fleet::start().await;
    let mut machines = three(&fleet).await;
    let first = next(&fleet, &[("cinnabar", 1), ("realgar", 1)]);
    let answer = send(&fleet, &fleet.operator, &first).await;
    assert_eq!(answer.good::<PublicationsTaken>(), taken(2, 0));
    assert_eq!(fleet.sql(STORED).await, "2 2 2");
    // The reply was lost: the same again, with one more.
    let more: Vec<_> = [first, next(&fleet, &[("orpiment", 1)])].concat();
    let again = send(&fleet, &fleet.operator, &more).await;
    assert_eq!(again.good::<PublicationsTaken>(), taken(1, 2));
    assert_eq!(fleet.sql(STORED).await, "3 3 3");
    let last = send(&fleet, &fleet.operator, &more).await;
    assert_eq!(last.good::<PublicationsTaken>(), taken(0, 3));
    // Each is what one request alone would have published.
    for machine in &mut machines {
        let view = fleet.view(machine.name.as_str()).await;
        let published = view.published.unwrap();
        assert_eq!(published.target, target(machine.name.as_str(), Class::Nixos, 1));
        assert_eq!(
            (published.by, published.signers),
            (fleet.operator.public(), vec![fleet.operator.public()])
        );
        let bearer = machine.bearer(&fleet).await;
        let timestamp = fleet.get(&machine.tuf("timestamp.json"), &bearer).await;
        assert_eq!(timestamp.status, 200, "{}", timestamp.text);
        assert_eq!(fleet.get(&machine.tuf("1.targets.json"), &bearer).await.status, 200);
    }
    publish(&fleet, &[("cinnabar", 2), ("realgar", 2), ("orpiment", 2)]).await.good::<PublicationsTaken>();
    assert_eq!(fleet.sql(STORED).await, "6 6 3");
}

#[tokio::test]
async fn one_machine_that_is_refused_refuses_all_and_each_is_named() {
    let fleet = Fleet::start().await;
    let [.., revoked] = three(&fleet).await;
    let path = format!("{}/revoke", api::operator_machine(&revoked.name));
    fleet.operate(Method::POST, &path, vec![]).await.good::<MachineView>();
    let answer = publish(&fleet, &[("cinnabar", 1), ("realgar", 3), ("orpiment", 1), ("nobody", 1)]).await;
    let message = answer.refused(403, ProblemCode::Revoked);
    assert!(message.contains("none of the 4 generations was published"), "{message}");
    assert!(message.contains("orpiment: ") && message.contains("nobody: "), "{message}");
    let message =
        publish(&fleet, &[("cinnabar", 1), ("realgar", 3)]).await.refused(409, ProblemCode::Conflict);
    assert!(message.contains("realgar: generation 3") && !message.contains("cinnabar"), "{message}");
    // 404 is for addresses, which an older controller does not have.
    publish(&fleet, &[("cinnabar", 1), ("nobody", 1)]).await.refused(409, ProblemCode::UnknownMachine);
    let mut forged = next(&fleet, &[("cinnabar", 1), ("realgar", 1)]);
    let stranger = SecretKey::generate().unwrap();
    forged[1].publication = fleet.generation_by(&stranger, &target("realgar", Class::Nixos, 1));
    send(&fleet, &fleet.operator, &forged).await.refused(422, ProblemCode::BadSignature);
    assert_eq!(fleet.sql(STORED).await, "0 0 0");
}

#[tokio::test]
async fn a_request_that_names_a_machine_twice_or_none_or_is_too_large_is_refused() {
    let fleet = Fleet::start().await;
    three(&fleet).await;
    let twice = publish(&fleet, &[("cinnabar", 1), ("realgar", 1), ("cinnabar", 1)]).await;
    assert!(twice.refused(400, ProblemCode::Malformed).contains("cinnabar is named twice"));
    publish(&fleet, &[]).await.refused(400, ProblemCode::Malformed);
    for odd in ["", "{}", "[]", r#"{"generations":7}"#, r#"{"generations":[{"machine":"cinnabar"}]}"#] {
        send_bytes(&fleet, &fleet.operator, odd.into()).await.refused(400, ProblemCode::Malformed);
    }
    let large = vec![b' '; MAX_PUBLICATIONS_BYTES + 1];
    send_bytes(&fleet, &fleet.operator, large).await.refused(413, ProblemCode::TooLarge);
    let stranger = SecretKey::generate().unwrap();
    let answer = send(&fleet, &stranger, &next(&fleet, &[("cinnabar", 1)])).await;
    answer.refused(403, ProblemCode::Revoked);
    assert_eq!(fleet.sql(STORED).await, "0 0 0");
}

#[tokio::test]
async fn of_a_large_publication_every_row_is_written() {
    let fleet = Fleet::start().await;
    fleet
        .try_sql(
            "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 600)
             INSERT INTO machines (name, class, system, tags, added_at)
             SELECT 'host-' || i, 'nixos', 'x86_64-linux', '[]', 0 FROM n",
        )
        .await
        .unwrap();
    let names: Vec<String> = (1..=600).map(|n| format!("host-{n}")).collect();
    let all: Vec<(&str, u64)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    assert_eq!(publish(&fleet, &all).await.good::<PublicationsTaken>(), taken(600, 0));
    assert_eq!(fleet.sql(STORED).await, "600 600 600");
    let kept = "SELECT count(*) FROM machines m JOIN generations g ON g.machine = m.name
        WHERE g.generation = m.published AND g.target LIKE '%\"' || m.name || '\"%'
          AND m.timestamp LIKE '%\"' || m.name || '\"%' AND m.timestamp_version > 0";
    assert_eq!(fleet.sql(kept).await, "600");
    // The log is one chain, with an entry for each machine.
    let page = fleet.operate(Method::GET, &format!("{}?after=0", api::OPERATOR_AUDIT), vec![]).await;
    let page: muster_protocol::audit::Page = page.good();
    let origin = muster_protocol::audit::origin(&fleet.fleet_id());
    let mut before = origin.hash;
    let mut named = HashSet::new();
    for entry in &page.entries {
        assert_eq!(entry.hash, muster_protocol::audit::hash(&before, entry));
        before = entry.hash;
        named.extend(entry.machine.clone());
    }
    assert_eq!(named.len(), 600);
}

async fn in_force(fleet: &Fleet, root: &[u8]) {
    let new = NewRoot { root: String::from_utf8(root.to_vec()).unwrap() };
    let body = serde_json::to_vec(&new).unwrap();
    fleet.operate(Method::POST, api::OPERATOR_ROOT, body).await.good::<RootTaken>();
}

#[tokio::test]
async fn an_operator_who_is_removed_in_between_publishes_no_more() {
    let fleet = Fleet::start().await;
    three(&fleet).await;
    publish(&fleet, &[("cinnabar", 1)]).await.good::<PublicationsTaken>();
    let next_root = make_root(2, &fleet.root_key, &[&SecretKey::generate().unwrap()], &fleet.online);
    in_force(&fleet, &next_root).await;
    publish(&fleet, &[("realgar", 1), ("orpiment", 1)]).await.refused(403, ProblemCode::Revoked);
    assert_eq!(fleet.sql(STORED).await, "1 1 1");
}

/// The answer to a poll that wants the files, as an agent that trusts root 1.
async fn poll(fleet: &Fleet, machine: &Machine, bearer: &str, have: Option<Generation>, wait: u64) -> Answer {
    fleet.get(&api::poll_files_path(&machine.name, have, wait, 1), bearer).await
}

/// That the files are those which the machine would fetch.
async fn are_current(fleet: &Fleet, machine: &Machine, bearer: &str, files: &Files, number: u64) {
    let get = async |file: String| fleet.get(&machine.tuf(&file), bearer).await.text;
    assert_eq!(files.timestamp, get("timestamp.json".into()).await);
    assert_eq!(files.snapshot, get(format!("{number}.snapshot.json")).await);
    assert_eq!(files.targets, get(format!("{number}.targets.json")).await);
    let hash = muster_protocol::ids::Sha256::of(files.target.as_bytes());
    assert_eq!(files.target, fleet.get(&api::target_path(&machine.name, &hash), bearer).await.text);
}

#[tokio::test]
async fn machines_that_wait_get_the_files_with_the_news() {
    let fleet = Arc::new(Fleet::start().await);
    let machines = three(&fleet).await;
    let mut polls = Vec::new();
    for mut machine in machines.clone() {
        let bearer = machine.bearer(&fleet).await;
        let fleet = Arc::clone(&fleet);
        polls.push(tokio::spawn(async move {
            let reply: PollReply = poll(&fleet, &machine, &bearer, None, 600).await.good();
            (machine, bearer, reply)
        }));
    }
    let server = fleet.server.as_ref().unwrap();
    until("three polls wait", || server.waiting_machines() == 3).await;
    publish(&fleet, &[("cinnabar", 1), ("realgar", 1), ("orpiment", 1)]).await.good::<PublicationsTaken>();
    for waiting in polls {
        let (machine, bearer, reply) = waiting.await.unwrap();
        assert_eq!(reply.generation, Some(Generation::FIRST));
        let files = reply.files.unwrap();
        assert_eq!((files.root, files.roots.len()), (1, 0));
        are_current(&fleet, &machine, &bearer, &files, 1).await;
        // One that comes later is answered from what is stored.
        let late: PollReply = poll(&fleet, &machine, &bearer, None, 600).await.good();
        assert_eq!(late.files, Some(files));
        let known: PollReply = poll(&fleet, &machine, &bearer, Some(Generation::FIRST), 0).await.good();
        assert_eq!(known.files, None, "there is nothing new");
        // An agent of version 0.1 does not want them.
        let plain: PollReply = fleet.get(&api::poll_path(&machine.name, None, 0), &bearer).await.good();
        assert_eq!((plain.generation, plain.files), (Some(Generation::FIRST), None));
    }
    assert_eq!(server.waiting_machines(), 0);
}

#[tokio::test]
async fn a_machine_revoked_between_publishing_and_waking_gets_no_files() {
    for _ in 0..5 {
        let fleet = Arc::new(Fleet::start().await);
        let [mut machine, ..] = three(&fleet).await;
        let bearer = machine.bearer(&fleet).await;
        let waiting = tokio::spawn({
            let (fleet, machine) = (Arc::clone(&fleet), machine.clone());
            async move { poll(&fleet, &machine, &bearer, None, 600).await }
        });
        let server = fleet.server.as_ref().unwrap();
        until("a poll waits", || server.waiting_machines() == 1).await;
        let path = format!("{}/revoke", api::operator_machine(&machine.name));
        let revoking = fleet.operate(Method::POST, &path, vec![]);
        let publishing = publish(&fleet, &[("cinnabar", 1)]);
        let (revoked, published) = tokio::join!(revoking, publishing);
        revoked.good::<MachineView>();
        let answer = waiting.await.unwrap();
        // Whichever came first, each as a whole: nothing is handed out after the revocation.
        match (published.status.as_u16(), answer.status.as_u16()) {
            (403, 401) | (200, 200 | 401) => {}
            other => panic!("{other:?}: {}", answer.text),
        }
    }
}

#[tokio::test]
async fn what_was_committed_before_a_crash_is_found_by_the_next_poll() {
    let mut fleet = Fleet::start().await;
    let [mut machine, ..] = three(&fleet).await;
    publish(&fleet, &[("cinnabar", 1), ("realgar", 1)]).await.good::<PublicationsTaken>();
    fleet.down().await;
    fleet.up().await;
    let bearer = machine.bearer(&fleet).await;
    let reply: PollReply = poll(&fleet, &machine, &bearer, None, 600).await.good();
    assert_eq!(reply.generation, Some(Generation::FIRST));
    are_current(&fleet, &machine, &bearer, &reply.files.unwrap(), 1).await;
}

#[tokio::test]
async fn newer_roots_come_along_and_files_that_are_to_be_signed_anew_do_not() {
    let fleet = Fleet::start().await;
    let [mut machine, ..] = three(&fleet).await;
    publish(&fleet, &[("cinnabar", 1)]).await.good::<PublicationsTaken>();
    let next_root = make_root(2, &fleet.root_key, &[&fleet.operator], &fleet.online);
    in_force(&fleet, &next_root).await;
    let bearer = machine.bearer(&fleet).await;
    let reply: PollReply = poll(&fleet, &machine, &bearer, None, 0).await.good();
    let files = reply.files.unwrap();
    assert_eq!((files.root, files.roots), (2, vec![String::from_utf8(next_root).unwrap()]));
    let path = api::poll_files_path(&machine.name, None, 0, 2);
    let reply: PollReply = fleet.get(&path, &bearer).await.good();
    assert_eq!(reply.files.unwrap().roots, Vec::<String>::new());
    for odd in ["root=x&files=1", "root=1&files=much", "root=-1&files=1"] {
        let path = format!("{}&{odd}", api::poll_path(&machine.name, None, 0));
        fleet.get(&path, &bearer).await.refused(400, ProblemCode::Malformed);
    }
    // Half of the timestamp's life is over.
    fleet.clock.forward(12 * 3600 + 1);
    let bearer = machine.bearer(&fleet).await;
    let reply: PollReply = poll(&fleet, &machine, &bearer, None, 0).await.good();
    assert_eq!((reply.generation, reply.files), (Some(Generation::FIRST), None));
    fleet.get(&machine.tuf("timestamp.json"), &bearer).await;
    let reply: PollReply = poll(&fleet, &machine, &bearer, None, 0).await.good();
    are_current(&fleet, &machine, &bearer, &reply.files.unwrap(), 1).await;
}
