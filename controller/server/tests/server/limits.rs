//! What one machine, operator, address or connection may take from the controller, over real HTTP.

use std::time::Duration;

use crate::support::{Answer, Fleet, LIMIT};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::CheckInReply;
use muster_protocol::ids::{Sha256, nix_base32};
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::MachineView;
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Repeats a request until it is told to retry later; returns how often it was accepted, and the refusal.
async fn flood(mut send: impl AsyncFnMut() -> Answer) -> (u32, Answer) {
    for count in 0..5000 {
        let answer = send().await;
        if answer.status == StatusCode::TOO_MANY_REQUESTS {
            return (count, answer);
        }
    }
    panic!("it was never refused");
}

fn retry_after(answer: &Answer) -> i64 {
    answer.headers["retry-after"].to_str().unwrap().parse().unwrap()
}

#[tokio::test]
async fn a_machine_that_floods_is_told_when_to_come_again_and_slows_down_nobody_else() {
    let fleet = Fleet::start_with("[limits]\nmachine_per_second = 1").await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut other = fleet.enrolled("stibnite", Class::Darwin).await;
    let (let_in, refused) = flood(async || {
        machine.seq += 1;
        machine.send_checkin(&fleet, &machine.checkin(&fleet, machine.seq)).await
    })
    .await;
    assert_eq!(let_in, 12);
    let wait = retry_after(&refused);
    assert!((1..=4).contains(&wait), "{wait}");
    let message = refused.refused(429, ProblemCode::TooMany);
    assert!(message.contains("cinnabar") && message.contains("repeat in"), "{message}");
    other.check_in(&fleet).await;
    // Its reports and its metadata are counted with it.
    machine.report(&fleet, 1, vec![]).await.refused(429, ProblemCode::TooMany);
    fleet.clock.forward(wait);
    machine.send_checkin(&fleet, &machine.checkin(&fleet, machine.seq)).await.good::<CheckInReply>();
}

#[tokio::test]
async fn the_cache_has_a_limit_of_its_own_for_each_machine() {
    let fleet = Fleet::start_with("[limits]\nmachine_per_second = 1\ncache_per_second = 2").await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&fleet).await;
    let (let_in, _) = flood(async || fleet.get("/cache/nix-cache-info", &bearer).await).await;
    assert_eq!(let_in, 24);
    machine.check_in(&fleet).await;
    // An operator who pushes a closure is not slowed down by it.
    let session = fleet.session().await;
    for _ in 0..100 {
        assert_eq!(fleet.get("/cache/nix-cache-info", &session).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn an_operator_has_a_limit_too() {
    let fleet = Fleet::start_with("[limits]\noperator_per_second = 1").await;
    let (let_in, refused) =
        flood(async || fleet.operate(Method::GET, api::OPERATOR_MACHINES, vec![]).await).await;
    assert_eq!(let_in, 12);
    refused.refused(429, ProblemCode::TooMany);
    fleet.clock.forward(5);
    fleet.operate(Method::GET, api::OPERATOR_MACHINES, vec![]).await.good::<Vec<MachineView>>();
}

#[tokio::test]
async fn an_address_is_charged_for_what_proves_nothing_and_the_fleet_behind_it_goes_on() {
    let fleet = Fleet::start_with("[limits]\naddress_per_second = 1").await;
    let mut honest = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = honest.bearer(&fleet).await;
    let stranger = SecretKey::generate().unwrap();
    let body = serde_json::to_vec(&honest.checkin(&fleet, 900)).unwrap();
    let forged = stranger.sign(Context::CheckIn, &body).hex();
    let (let_in, refused) =
        flood(async || fleet.send(api::CHECKIN, forged.clone(), body.clone()).await).await;
    assert!((90..=100).contains(&let_in), "{let_in}");
    assert!(retry_after(&refused) >= 1);
    refused.refused(429, ProblemCode::TooMany);
    // All its unauthenticated requests are refused now: guessed bearers, tokens and names, and public files.
    fleet.get("/cache/nix-cache-info", "a guess").await.refused(429, ProblemCode::TooMany);
    Answer::of(fleet.http.get(fleet.url(api::FLEET))).await.refused(429, ProblemCode::TooMany);
    Answer::of(fleet.http.get(fleet.url("/nowhere"))).await.refused(429, ProblemCode::TooMany);
    // Authenticated members of the fleet still get through, from the same address.
    honest.check_in(&fleet).await;
    assert_eq!(fleet.get("/cache/nix-cache-info", &bearer).await.status, StatusCode::OK);
    fleet.operate(Method::GET, api::OPERATOR_MACHINES, vec![]).await.good::<Vec<MachineView>>();
    fleet.clock.forward(10);
    assert_eq!(Answer::of(fleet.http.get(fleet.url(api::FLEET))).await.status, StatusCode::OK);
}

#[tokio::test]
async fn ten_thousand_machines_behind_one_address_wake_and_ask_at_once() {
    // The defaults of a controller.toml that sets no limits; few machines, but as many requests.
    let fleet = Fleet::start().await;
    let mut machines = Vec::new();
    for number in 0..20 {
        machines.push(fleet.enrolled(&format!("m{number}"), Class::Nixos).await);
    }
    for machine in &mut machines {
        let bearer = machine.bearer(&fleet).await;
        for _ in 0..500 {
            let answer = fleet.get(&machine.tuf("1.root.json"), &bearer).await;
            assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
        }
    }
    // Ten thousand expired bearers, as after a restored backup: each is refused as expired, and none is told
    // to wait.
    for _ in 0..10_000 {
        fleet.get("/cache/nix-cache-info", "ended").await.refused(401, ProblemCode::Unauthorised);
    }
}

#[tokio::test]
async fn a_machine_may_wait_in_eight_polls_and_no_more() {
    let fleet = std::sync::Arc::new(Fleet::start().await);
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&fleet).await;
    let path = api::poll_path(&machine.name, None, 600);
    let (told, mut answers) = tokio::sync::mpsc::unbounded_channel();
    for _ in 0..12 {
        let (fleet, path, bearer, told) = (fleet.clone(), path.clone(), bearer.clone(), told.clone());
        tokio::spawn(async move { told.send(fleet.get(&path, &bearer).await) });
    }
    let mut next = async || tokio::time::timeout(LIMIT, answers.recv()).await.unwrap().unwrap();
    // Four are too many; the others wait.
    for _ in 0..4 {
        let refused = next().await;
        assert!(retry_after(&refused) > 1);
        refused.refused(429, ProblemCode::TooMany);
    }
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    for _ in 0..8 {
        assert_eq!(next().await.status, StatusCode::OK);
    }
    assert_eq!(fleet.get(&api::poll_path(&machine.name, None, 0), &bearer).await.status, StatusCode::OK);
}

/// Whether the far end closes the connection, whatever it sends first.
async fn is_closed(stream: &mut TcpStream) -> Vec<u8> {
    let mut said = Vec::new();
    let read = tokio::time::timeout(LIMIT, stream.read_to_end(&mut said)).await;
    assert!(read.is_ok(), "it was still open after {LIMIT:?}");
    said
}

#[tokio::test]
async fn a_head_that_never_ends_ends_the_connection() {
    let fleet = Fleet::start_with("[limits]\nidle_seconds = 1").await;
    for head in ["", "GET /v1/fl", "GET /v1/fleet HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let said = String::from_utf8(is_closed(&mut stream).await).unwrap();
        assert!(!said.contains("200 OK"), "{said}");
    }
    // A request that is too long is refused, not buffered.
    let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
    let long = format!("GET /v1/fleet HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "x".repeat(1_000_000));
    let _ = stream.write_all(long.as_bytes()).await;
    let mut said = [0; 12];
    if stream.read_exact(&mut said).await.is_ok() {
        assert_eq!(&said, b"HTTP/1.1 431");
    }
}

#[tokio::test]
async fn an_upload_that_stands_still_or_crawls_is_given_up() {
    let fleet = Fleet::start_with("[limits]\nidle_seconds = 1").await;
    let bearer = fleet.session().await;
    for crawl in [false, true] {
        let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
        let head = format!(
            "PUT /cache/nar/{}.nar HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bearer}\r\ncontent-length: \
                1000000\r\n\r\n",
            "1".repeat(52)
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut reading, mut writing) = stream.into_split();
        let dripping = tokio::spawn(async move {
            while crawl && writing.write_all(b"x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            writing
        });
        let mut said = vec![0; 12];
        tokio::time::timeout(LIMIT, reading.read_exact(&mut said)).await.unwrap().unwrap();
        assert_eq!(String::from_utf8_lossy(&said), "HTTP/1.1 408", "crawl: {crawl}");
        drop(reading);
        let _ = tokio::time::timeout(LIMIT, dripping).await.unwrap();
    }
    assert_eq!(std::fs::read_dir(fleet.dir.path().join("data/blobs/nar")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_reader_that_takes_nothing_of_a_large_answer_is_left() {
    let fleet = Fleet::start_with("[limits]\nidle_seconds = 1").await;
    let bearer = fleet.session().await;
    let nar = vec![7; 64 * 1024 * 1024];
    let path = format!("/cache/nar/{}.nar", nix_base32(&Sha256::of(&nar)));
    let put = fleet.http.put(fleet.url(&path)).bearer_auth(&bearer).body(nar.clone());
    assert_eq!(Answer::of(put).await.status, StatusCode::CREATED);
    let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bearer}\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    // Reads nothing until the controller gives up.
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut said = Vec::new();
    let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut said)).await.unwrap();
    assert!(said.len() < nar.len(), "it got all {} bytes", said.len());
}

#[tokio::test]
async fn there_are_so_many_connections_and_no_more() {
    let fleet = Fleet::start_with("[limits]\nconnections = 3").await;
    let mut open = Vec::new();
    for _ in 0..3 {
        open.push(TcpStream::connect(fleet.address()).await.unwrap());
    }
    // Whoever finds no place is told so, and when to come again.
    let mut waits = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let mut fourth = TcpStream::connect(fleet.address()).await.unwrap();
        fourth.write_all(b"GET /v1/fleet HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let said = String::from_utf8(is_closed(&mut fourth).await).unwrap();
        assert!(said.starts_with("HTTP/1.1 503 Service Unavailable\r\n"), "{said}");
        let wait = said.split("\r\n").find_map(|line| line.strip_prefix("retry-after: ")).unwrap();
        waits.insert(wait.to_owned());
    }
    assert!(waits.len() > 3, "they come back at different times: {waits:?}");
    drop(open);
    let again = async {
        while Answer::of_or_none(fleet.http.get(fleet.url(api::FLEET))).await.is_none() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LIMIT, again).await.unwrap();
}

#[tokio::test]
async fn connections_that_prove_nothing_are_few_for_one_address_and_those_of_machines_are_not_counted() {
    let fleet = Fleet::start_with("[limits]\nunproven_per_address = 2").await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&fleet).await;
    // Connections on which the machine has presented its bearer.
    let mut proven = Vec::new();
    for _ in 0..10 {
        let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
        let head = format!(
            "GET /cache/nix-cache-info HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bearer}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut said = [0; 15];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(&said, b"HTTP/1.1 200 OK");
        proven.push(stream);
    }
    // Silence takes no place. Those who begin a request and do not end it take them all.
    let _silent = TcpStream::connect(fleet.address()).await.unwrap();
    let mut slow = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
        stream.write_all(b"GET /v1/fl").await.unwrap();
        slow.push(stream);
    }
    // The next one is neither closed nor read until one of them goes.
    let mut next = TcpStream::connect(fleet.address()).await.unwrap();
    next.write_all(b"GET /v1/fleet HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut said = [0; 15];
    let early = tokio::time::timeout(Duration::from_millis(300), next.read_exact(&mut said)).await;
    assert!(early.is_err(), "two are read and have proved nothing, and it was served all the same");
    slow.pop();
    tokio::time::timeout(LIMIT, next.read_exact(&mut said)).await.unwrap().unwrap();
    assert_eq!(&said, b"HTTP/1.1 200 OK");
}

#[tokio::test]
async fn a_herd_behind_one_address_stands_in_line_and_each_of_it_is_answered() {
    let fleet = Fleet::start_with("[limits]\nunproven_per_address = 2").await;
    let mut bearers = Vec::new();
    for number in 0..10 {
        bearers.push(fleet.enrolled(&format!("m{number}"), Class::Nixos).await.bearer(&fleet).await);
    }
    // All are connected before any of them asks.
    let mut herd = Vec::new();
    for number in 0..400 {
        herd.push((number, TcpStream::connect(fleet.address()).await.unwrap()));
    }
    for (number, stream) in &mut herd {
        let bearer = &bearers[*number % bearers.len()];
        let head = format!(
            "GET /cache/nix-cache-info HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {bearer}\r\n\r\n"
        );
        stream.write_all(head.as_bytes()).await.unwrap();
    }
    for (number, mut stream) in herd {
        let mut said = [0; 15];
        let read = tokio::time::timeout(LIMIT, stream.read_exact(&mut said)).await.unwrap();
        assert!(read.is_ok(), "number {number} got no answer");
        assert_eq!(String::from_utf8_lossy(&said), "HTTP/1.1 200 OK", "number {number}");
    }
}

/// Sends this over a new connection, and reads until the far end closes it.
async fn said_to(fleet: &Fleet, sent: &str) -> String {
    let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
    stream.write_all(sent.as_bytes()).await.unwrap();
    String::from_utf8(is_closed(&mut stream).await).unwrap()
}

#[tokio::test]
async fn clients_of_every_age_and_manner_are_understood() {
    let fleet = Fleet::start().await;
    let old = said_to(&fleet, "GET /v1/fleet HTTP/1.0\r\n\r\n").await;
    assert!(old.starts_with("HTTP/1.0 200 OK\r\n") && old.ends_with('}'), "{old}");
    let two = "GET /v1/fleet HTTP/1.1\r\nhost: x\r\n\r\n\
               GET /v1/fleet HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    let pipelined = said_to(&fleet, two).await;
    assert_eq!(pipelined.matches("HTTP/1.1 200 OK\r\n").count(), 2, "{pipelined}");
    let head = said_to(&fleet, "HEAD /v1/fleet HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    let waits = "POST /v1/enrol HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\nexpect: 100-continue\r\n\
                 connection: close\r\n\r\n";
    let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
    stream.write_all(waits.as_bytes()).await.unwrap();
    let mut said = [0; 25];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut said)).await.unwrap().unwrap();
    assert_eq!(&said, b"HTTP/1.1 100 Continue\r\n\r\n");
    stream.write_all(b"{}").await.unwrap();
    let said = String::from_utf8(is_closed(&mut stream).await).unwrap();
    assert!(said.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{said}");
    let nonsense = said_to(&fleet, "\u{16}\u{3}\u{1} this is no request\r\n\r\n").await;
    assert!(nonsense.starts_with("HTTP/1.1 400 Bad Request\r\n"), "{nonsense}");
}

#[tokio::test]
async fn every_body_has_a_limit_of_its_own() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let signature = machine.key.sign(Context::CheckIn, b"").hex();
    let bearer = machine.bearer(&fleet).await;
    let operator = fleet.session().await;
    let x = |bytes: usize| vec![b'x'; bytes];
    Answer::of(fleet.http.post(fleet.url(api::ENROL)).body(x(17 * 1024)))
        .await
        .refused(413, ProblemCode::TooLarge);
    fleet.send(api::CHECKIN, signature.clone(), x(65 * 1024)).await.refused(413, ProblemCode::TooLarge);
    fleet.send(api::REPORTS, signature, x(1025 * 1024)).await.refused(413, ProblemCode::TooLarge);
    fleet
        .operate(Method::POST, api::OPERATOR_MACHINES, x(1025 * 1024))
        .await
        .refused(413, ProblemCode::TooLarge);
    // A draft may not be large unless its hash is announced; then up to 32 MiB.
    fleet
        .operate(Method::POST, api::OPERATOR_DRAFTS, x(1025 * 1024))
        .await
        .refused(413, ProblemCode::TooLarge);
    let announced = async |bytes: usize| {
        let body = x(bytes);
        let mut signature = fleet.signature(&fleet.operator, &Method::POST, api::OPERATOR_DRAFTS, &body);
        signature.body = Some(Sha256::of(&body));
        fleet.send_signed(Method::POST, api::OPERATOR_DRAFTS, body, &signature).await
    };
    announced(2 * 1024 * 1024).await.refused(400, ProblemCode::Malformed);
    announced(33 * 1024 * 1024).await.refused(413, ProblemCode::TooLarge);
    // An upload by a machine is refused before its size is considered.
    let put =
        |who: &str, bytes| fleet.http.put(fleet.url("/cache/x.narinfo")).bearer_auth(who).body(x(bytes));
    Answer::of(put(&bearer, 10)).await.refused(403, ProblemCode::Unauthorised);
    let narinfo = format!("/cache/{}.narinfo", "1".repeat(32));
    let large = fleet.http.put(fleet.url(&narinfo)).bearer_auth(&operator).body(x(257 * 1024));
    Answer::of(large).await.refused(413, ProblemCode::TooLarge);
}
