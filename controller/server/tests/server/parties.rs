//! How many connections and turns one party may use while the others are still served, over real HTTP.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};

use crate::support::{Answer, Fleet, LIMIT, enrol_request};
use muster_protocol::api;
use muster_protocol::enrol::EnrolReply;
use muster_protocol::ids::{Sha256, nix_base32};
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::MachineView;
use reqwest::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// A connection on which a bearer was presented: the start of the response, and the connection.
async fn shown(fleet: &Fleet, bearer: &str) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
    let head =
        format!("GET /cache/nix-cache-info HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bearer}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = vec![0; 12];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut said)).await.unwrap().unwrap();
    (String::from_utf8(said).unwrap(), stream)
}

#[tokio::test]
async fn a_machine_holds_so_many_connections_and_no_more_and_others_are_let_in() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut other = fleet.enrolled("stibnite", Class::Darwin).await;
    let bearer = machine.bearer(&fleet).await;
    let mut held = Vec::new();
    let (said, mut refused) = loop {
        let (said, stream) = shown(&fleet, &bearer).await;
        if said != "HTTP/1.1 200" {
            break (said, stream);
        }
        held.push(stream);
        assert!(held.len() <= 1000, "it was never refused");
    };
    // Nix opens 25 at once.
    assert!(held.len() >= 100, "{}", held.len());
    assert_eq!(said, "HTTP/1.1 429");
    let mut rest = Vec::new();
    tokio::time::timeout(LIMIT, refused.read_to_end(&mut rest)).await.unwrap().unwrap();
    let rest = String::from_utf8(rest).unwrap();
    assert!(rest.contains("connections"), "it is told why, and the connection ends: {rest}");
    let wait = rest.split("\r\n").find_map(|line| line.strip_prefix("retry-after: "));
    let wait = wait.and_then(|text| text.parse::<u64>().ok()).expect("and when to come again");
    assert!((5..=10).contains(&wait), "{wait}");
    let others = other.bearer(&fleet).await;
    assert_eq!(shown(&fleet, &others).await.0, "HTTP/1.1 200");
    held.clear();
    let again = async { while shown(&fleet, &bearer).await.0 != "HTTP/1.1 200" {} };
    tokio::time::timeout(LIMIT, again).await.unwrap();
}

#[tokio::test]
async fn a_machine_that_enrols_anew_is_kept_out_by_nobody_who_had_its_key_before() {
    let fleet = Fleet::start().await;
    let mut stolen = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = stolen.bearer(&fleet).await;
    let mut held = Vec::new();
    while let (said, stream) = shown(&fleet, &bearer).await
        && said == "HTTP/1.1 200"
    {
        held.push(stream);
        assert!(held.len() <= 1000, "it was never refused");
    }
    let token = fleet.token("cinnabar", Class::Nixos);
    assert_eq!(fleet.add(&token, true).await.status, 200);
    let key = SecretKey::generate().unwrap();
    let enrolled = fleet.post(api::ENROL, &enrol_request(&token, &key)).await;
    assert_eq!(enrolled.good::<EnrolReply>().machine.as_str(), "cinnabar");
    drop(held);
}

#[tokio::test]
async fn whoever_asks_much_at_once_waits_behind_themselves() {
    const AT_ONCE: usize = 60;
    let fleet = Arc::new(Fleet::start_with("[limits]\nmachine_per_second = 0").await);
    let flooding = fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut honest = fleet.enrolled("stibnite", Class::Darwin).await;
    honest.check_in(&fleet).await;
    let (answered, seq) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    // Over connections of its own.
    let client = reqwest::Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let mut floods = tokio::task::JoinSet::new();
    for _ in 0..AT_ONCE {
        let (fleet, machine, client) = (fleet.clone(), flooding.clone(), client.clone());
        let (answered, seq) = (answered.clone(), seq.clone());
        floods.spawn(async move {
            loop {
                let seq = seq.fetch_add(1, Ordering::SeqCst) as u64 + 1;
                let checkin = machine.checkin(&fleet, seq);
                let body = serde_json::to_vec(&checkin).unwrap();
                let signature = machine.key.sign(Context::CheckIn, &body).hex();
                let request = client.post(fleet.url(api::CHECKIN)).header(api::MACHINE_SIGNATURE, signature);
                Answer::of(request.body(body)).await;
                answered.fetch_add(1, Ordering::SeqCst);
            }
        });
    }
    // All of them are connected.
    let all = async {
        while answered.load(Ordering::SeqCst) < 2 * AT_ONCE {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(LIMIT, all).await.unwrap();
    let before = answered.load(Ordering::SeqCst);
    const TIMES: usize = 10;
    for _ in 0..TIMES {
        honest.check_in(&fleet).await;
    }
    let meanwhile = answered.load(Ordering::SeqCst) - before;
    floods.abort_all();
    // In one queue with all of them, about sixty would precede each of its own.
    assert!(
        meanwhile < TIMES * AT_ONCE / 2,
        "{meanwhile} of the others' were answered before {TIMES} of its own"
    );
}

/// A single thread does all file work, so that a test can keep the disk busy.
#[test]
fn uploads_that_wait_for_the_disk_hold_no_turn_of_their_operator() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let fleet = Fleet::start().await;
        let bearer = fleet.session().await;
        let mut uploads = Vec::new();
        for number in 0..3 {
            let nar = [number; 8];
            let name = format!("{}.nar.zst", nix_base32(&Sha256::of(&nar)));
            let head = format!(
                "PUT /cache/nar/{name} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer \
                    {bearer}\r\ncontent-length: 8\r\n\r\n"
            );
            let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
            stream.write_all(&[head.as_bytes(), &nar[1..]].concat()).await.unwrap();
            uploads.push((stream, number));
        }
        let (free, busy) = mpsc::channel::<()>();
        let disk = tokio::task::spawn_blocking(move || busy.recv());
        for (stream, last) in &mut uploads {
            stream.write_all(&[*last]).await.unwrap();
        }
        for _ in 0..50 {
            fleet.operate(Method::GET, api::OPERATOR_MACHINES, vec![]).await.good::<Vec<MachineView>>();
        }
        drop(free);
        let _ = disk.await.unwrap();
        for (stream, _) in &mut uploads {
            let mut said = vec![0; 12];
            tokio::time::timeout(LIMIT, stream.read_exact(&mut said)).await.unwrap().unwrap();
            assert_eq!(said, b"HTTP/1.1 201");
        }
    });
}
