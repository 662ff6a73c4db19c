//! Connections that wait, and go on afterwards, over plain sockets.

use crate::support::{Fleet, LIMIT, until};
use muster_protocol::machine::Class;
use muster_protocol::operator::MachineView;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const OK: &str = "HTTP/1.1 200 OK\r\n";

fn poll(bearer: &str, more: &str) -> String {
    format!(
        "GET /v1/machines/cinnabar/poll?wait=60 HTTP/1.1\r\nhost: x\r\n{more}authorization: Bearer \
            {bearer}\r\n\r\n"
    )
}

/// Connects, and waits in a poll.
async fn waiting(fleet: &Fleet, bearer: &str) -> TcpStream {
    let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
    stream.write_all(poll(bearer, "").as_bytes()).await.unwrap();
    let server = fleet.server.as_ref().unwrap();
    until("the poll waits", || server.waiting_machines() == 1).await;
    stream
}

#[tokio::test]
async fn what_is_sent_while_a_poll_waits_is_answered_after_it() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&fleet).await;
    let mut stream = waiting(&fleet, &bearer).await;
    // One whole request and part of another, longer than what is read ahead of a request.
    let whole = "GET /v1/fleet HTTP/1.1\r\nhost: x\r\n\r\n";
    let part = format!("HEAD /v1/fleet HTTP/1.1\r\nhost: x\r\nx-long: {}", "x".repeat(4000));
    stream.write_all(format!("{whole}{part}").as_bytes()).await.unwrap();
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    let (mut said, mut piece) = (String::new(), vec![0; 4096]);
    while said.matches(OK).count() < 2 || !said.ends_with('}') {
        let read = tokio::time::timeout(LIMIT, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(read > 0, "closed after {said}");
        said.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    let (first, second) = (said.find("\"generation\":1").unwrap(), said.find("\"root_version\"").unwrap());
    assert!(first < second, "{said}");
    let rest = format!("\r\n\r\n{}", poll(&bearer, "connection: close\r\n"));
    stream.write_all(rest.as_bytes()).await.unwrap();
    let mut said = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut said)).await.unwrap().unwrap();
    assert_eq!(said.matches(OK).count(), 2, "{said}");
    assert!(said.contains("connection: close\r\n") && said.contains("\"generation\":1"), "{said}");
}

#[tokio::test]
async fn a_machine_that_leaves_while_it_waits_is_forgotten_and_one_that_stays_asks_again() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let bearer = machine.bearer(&fleet).await;
    let server = fleet.server.as_ref().unwrap();
    drop(waiting(&fleet, &bearer).await);
    until("nobody waits", || server.waiting_machines() == 0).await;

    let mut stream = waiting(&fleet, &bearer).await;
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    let mut said = [0; OK.len()];
    for _ in 0..3 {
        tokio::time::timeout(LIMIT, stream.read_exact(&mut said)).await.unwrap().unwrap();
        assert_eq!(said, OK.as_bytes());
        let mut rest = vec![0; 4096];
        assert!(tokio::time::timeout(LIMIT, stream.read(&mut rest)).await.unwrap().unwrap() > 0);
        stream.write_all(poll(&bearer, "").as_bytes()).await.unwrap();
    }
}
