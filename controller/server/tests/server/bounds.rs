//! How much memory, database space and audit log one party may use while the others are still served.

use crate::support::{Answer, Fleet, LIMIT, Machine, event, rotate};
use muster_protocol::announce::Announcement;
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::{HistoryEntry, MachineView};
use muster_protocol::report::{Accepted, Attack, Event, EventKind};
use muster_protocol::request::Asked;
use muster_server::config::ServerConfig;
use muster_server::store::Store;
use reqwest::Method;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;

/// Starts a report that never ends, of this many pieces of this many bytes.
async fn dribble(fleet: &Fleet, pieces: usize, bytes: usize) -> TcpStream {
    let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
    let head = format!(
        "POST /v1/reports HTTP/1.1\r\nhost: x\r\n{}: {}\r\ntransfer-encoding: chunked\r\n\r\n",
        api::MACHINE_SIGNATURE,
        "0".repeat(128)
    );
    let piece = format!("{bytes:x}\r\n{}\r\n", "x".repeat(bytes));
    stream.write_all((head + &piece.repeat(pieces)).as_bytes()).await.unwrap();
    stream
}

/// A check-in as this version's agents send it.
async fn announced(fleet: &Fleet, machine: &mut Machine) -> Answer {
    machine.seq += 1;
    let note = Some("n".repeat(50_000));
    let checkin = CheckIn { note, ..machine.checkin(fleet, machine.seq) };
    let body = serde_json::to_vec(&checkin).unwrap();
    let announcement = Announcement::make(&machine.name, api::CHECKIN, &body, &machine.key);
    let request = fleet.http.post(fleet.url(api::CHECKIN));
    let request = request.header(api::MACHINE_SIGNATURE, machine.key.sign(Context::CheckIn, &body).hex());
    Answer::of(request.header(api::MACHINE_ANNOUNCES, announcement.to_string()).body(body)).await
}

#[tokio::test]
async fn one_byte_pieces_cost_their_bytes_and_keep_nobody_out() {
    let fleet = Fleet::start_with("[limits]\nbody_memory_mib = 64").await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let _two = (dribble(&fleet, 60_000, 1).await, dribble(&fleet, 60_000, 1).await);
    for _ in 0..50 {
        machine.check_in(&fleet).await;
    }
}

#[tokio::test]
async fn an_address_that_takes_its_share_keeps_out_no_machine_that_announces_what_it_sends() {
    let fleet = Fleet::start_with("[limits]\nbody_memory_mib = 64").await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    // Nearly the whole share at once, the rest in small pieces.
    let mut held = Vec::new();
    for _ in 0..7 {
        held.push(dribble(&fleet, 1000, 1000).await);
    }
    // A machine of version 0.1 behind the same address uses the strangers' share, until that is used up.
    let note = Some("n".repeat(50_000));
    let until_full = async {
        loop {
            held.push(dribble(&fleet, 20, 1000).await);
            machine.seq += 1;
            let checkin = CheckIn { note: note.clone(), ..machine.checkin(&fleet, machine.seq) };
            let answer = machine.send_checkin(&fleet, &checkin).await;
            if answer.status == 503 {
                break answer;
            }
        }
    };
    let refused = tokio::time::timeout(LIMIT, until_full).await.unwrap();
    refused.refused(503, ProblemCode::Busy);
    for _ in 0..50 {
        announced(&fleet, &mut machine).await.good::<CheckInReply>();
    }
    // Operators, who announce their bodies too, are admitted all the same.
    fleet.operate(Method::GET, api::OPERATOR_MACHINES, vec![]).await.good::<Vec<MachineView>>();
    drop(held);
    let again = async {
        loop {
            machine.seq += 1;
            let checkin = CheckIn { note: note.clone(), ..machine.checkin(&fleet, machine.seq) };
            if machine.send_checkin(&fleet, &checkin).await.status == 200 {
                break;
            }
        }
    };
    tokio::time::timeout(LIMIT, again).await.unwrap();
}

#[tokio::test]
async fn an_announcement_that_does_not_fit_is_none_and_another_body_than_the_announced_is_refused() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    announced(&fleet, &mut machine).await.good::<CheckInReply>();
    machine.seq += 1;
    let body = serde_json::to_vec(&machine.checkin(&fleet, machine.seq)).unwrap();
    let send = async |header: String| {
        let request = fleet.http.post(fleet.url(api::CHECKIN)).body(body.clone());
        let request = request.header(api::MACHINE_SIGNATURE, machine.key.sign(Context::CheckIn, &body).hex());
        Answer::of(request.header(api::MACHINE_ANNOUNCES, header)).await
    };
    let other = Announcement::make(&machine.name, api::CHECKIN, b"another", &machine.key).to_string();
    send(other).await.refused(401, ProblemCode::BadSignature);
    let stranger = SecretKey::generate().unwrap();
    let forged = Announcement::make(&machine.name, api::CHECKIN, &body, &stranger).to_string();
    for none in [forged, "nonsense".to_owned()] {
        // The same check-in, so the same reply.
        send(none).await.good::<CheckInReply>();
    }
}

fn long(seq: u64, bytes: usize) -> Event {
    event(seq, Some(1), EventKind::HookFailed { hook: "x".into(), detail: "y".repeat(bytes) })
}

#[tokio::test]
async fn a_machine_that_sends_megabytes_of_events_is_told_to_come_later_and_takes_no_room_of_others() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut other = fleet.enrolled("stibnite", Class::Darwin).await;
    let mut seq = 1;
    let refused = loop {
        let answer = machine.report(&fleet, seq, (seq..seq + 200).map(|seq| long(seq, 4000)).collect()).await;
        if answer.status != 200 {
            break answer;
        }
        seq += 200;
        assert!(seq < 20_000, "it was never refused");
    };
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!(wait > 1 && wait < 3600, "{wait}");
    let words = refused.refused(429, ProblemCode::TooMany);
    assert!(words.contains("size of its events"), "{words}");
    let stored: u64 = fleet.sql("SELECT sum(length(event)) FROM events").await.parse().unwrap();
    assert!(stored < 5 * 1024 * 1024, "{stored}");
    other.check_in(&fleet).await;
    other.report(&fleet, 1, vec![event(1, None, EventKind::Verified)]).await.good::<Accepted>();
    fleet.clock.forward(i64::try_from(wait).unwrap() + 60);
    machine.report(&fleet, seq, vec![long(seq, 4000)]).await.good::<Accepted>();
}

#[tokio::test]
async fn an_event_larger_than_any_agent_sends_is_cut_when_it_arrives() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    machine.report(&fleet, 1, vec![long(1, 900_000)]).await.good::<Accepted>();
    let length: usize = fleet.sql("SELECT max(length(event)) FROM events").await.parse().unwrap();
    assert!(length < 5000, "{length}");
}

#[tokio::test]
async fn of_each_machine_the_newest_events_are_kept_and_what_decided_on_a_generation_longest() {
    let fleet = Fleet::start_with("[limits]\nreport_kib_per_second = 0\nevent_mib = 1").await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let decided = EventKind::NeedsHuman { detail: "look".into() };
    machine.report(&fleet, 1, vec![event(1, Some(1), decided)]).await.good::<Accepted>();
    for batch in 0..20_u64 {
        let first = 2 + batch * 200;
        machine
            .report(&fleet, first, (first..first + 200).map(|seq| long(seq, 4000)).collect())
            .await
            .good::<Accepted>();
    }
    let stored = "SELECT sum(length(event) + 128) FROM events";
    let bytes: u64 = fleet.sql(stored).await.parse().unwrap();
    assert!((600_000..=1024 * 1024).contains(&bytes), "{bytes}");
    assert_eq!(fleet.sql("SELECT events_bytes FROM machines").await.parse::<u64>().unwrap(), bytes);
    assert_eq!(fleet.sql("SELECT min(seq) FROM events").await, "1", "what decided is still there");
    assert_eq!(fleet.sql("SELECT max(seq) FROM events").await, "4001");
    // Events that decided a generation are bounded too.
    for batch in 0..20_u64 {
        let first = 4002 + batch * 200;
        let event = |seq| event(seq, Some(seq), EventKind::NeedsHuman { detail: "y".repeat(4000) });
        machine.report(&fleet, first, (first..first + 200).map(event).collect()).await.good::<Accepted>();
    }
    assert!(fleet.sql(stored).await.parse::<u64>().unwrap() <= 1024 * 1024);
}

#[tokio::test]
async fn events_that_are_too_old_go_and_decisions_stay() {
    let mut fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let decided = EventKind::NeedsHuman { detail: "look".into() };
    machine.report(&fleet, 1, vec![event(1, Some(1), decided), long(2, 10)]).await.good::<Accepted>();
    fleet.clock.forward(3600);
    machine.report(&fleet, 3, vec![long(3, 10)]).await.good::<Accepted>();
    fleet.down().await;
    let database = ServerConfig::load(&fleet.config_file()).unwrap().database;
    let (data, id) = (fleet.dir.path().join("data"), Sha256::of(&fleet.root));
    let store = Store::open_in(&database, &data, &id).await.unwrap();
    store.forget_events(fleet.clock.unix_ms() - 1000).await.unwrap();
    store.close().await;
    assert_eq!(fleet.sql("SELECT group_concat(seq) FROM events").await, "1,3");
    let kept = "SELECT events_bytes - (SELECT sum(length(event) + 128) FROM events) FROM machines";
    assert_eq!(fleet.sql(kept).await, "0");
}

#[tokio::test]
async fn a_history_of_very_much_is_an_answer_of_bounded_size() {
    let fleet = Fleet::start_with("[limits]\nreport_kib_per_second = 0").await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 1)).await.good::<MachineView>();
    for batch in 0..20_u64 {
        let first = 1 + batch * 200;
        machine
            .report(&fleet, first, (first..first + 200).map(|seq| long(seq, 4000)).collect())
            .await
            .good::<Accepted>();
    }
    let path = format!("{}/history", api::operator_machine(&machine.name));
    let answer = fleet.operate(Method::GET, &path, vec![]).await;
    assert!(answer.text.len() < 3 * 1024 * 1024, "{}", answer.text.len());
    let history: Vec<HistoryEntry> = answer.good();
    let (entry, newest) = (&history[0], history[0].events.last().unwrap());
    assert_eq!(newest.seq, 4000);
    let stored: u64 = fleet.sql("SELECT count(*) FROM events").await.parse().unwrap();
    assert_eq!(entry.events.len() as u64 + entry.left_out, stored);
    assert!(entry.left_out > 0);

    // Generations left out of one response can be requested by their number.
    fleet.publish(&machine.name, &fleet.generation("cinnabar", Class::Nixos, 2)).await.good::<MachineView>();
    for batch in 0..4_u64 {
        let first = 4001 + batch * 200;
        let of_the_second = |seq| Event { generation: Some(Generation::new(2).unwrap()), ..long(seq, 4000) };
        machine
            .report(&fleet, first, (first..first + 200).map(of_the_second).collect())
            .await
            .good::<Accepted>();
    }
    let crowded: Vec<HistoryEntry> = fleet.operate(Method::GET, &path, vec![]).await.good();
    let before = |text: &str| format!("{path}?limit=5&before={text}");
    let alone: Vec<HistoryEntry> = fleet.operate(Method::GET, &before("2"), vec![]).await.good();
    let numbers = |history: &[HistoryEntry]| {
        history.iter().map(|entry| entry.published.target.generation.get()).collect::<Vec<_>>()
    };
    assert_eq!((numbers(&crowded), numbers(&alone)), (vec![2, 1], vec![1]));
    assert!(alone[0].events.len() > crowded[1].events.len() && crowded[1].left_out > 0);
    assert_eq!(
        numbers(&fleet.operate(Method::GET, &before("1"), vec![]).await.good::<Vec<HistoryEntry>>()),
        Vec::<u64>::new()
    );
    for wrong in ["0", "-1", "x", "1.0.0", "99999999999999999999"] {
        let refused = fleet.operate(Method::GET, &before(wrong), vec![]).await;
        assert_eq!(refused.status, 400, "{wrong}: {}", refused.text);
        assert!(refused.text.contains(&format!("before={wrong}")), "{}", refused.text);
    }
}

#[tokio::test]
async fn a_machine_that_brings_one_key_after_the_other_has_a_few_entries_a_day_in_the_log() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let key = || SecretKey::generate().unwrap();
    for _ in 0..8 {
        rotate(&fleet, &mut machine, &key()).await.good::<CheckInReply>();
    }
    let before = machine.clone();
    let refused = rotate(&fleet, &mut machine, &key()).await;
    let wait: u64 = refused.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((86_000..=86_400).contains(&wait), "{wait}");
    let words = refused.refused(429, ProblemCode::TooMany);
    assert!(words.contains("rotate-key cinnabar"), "{words}");
    let entries = "SELECT count(*) FROM audit WHERE action = 'key-rotated'";
    assert_eq!(fleet.sql(entries).await, "8");
    // Its old key is still valid, and an operator's request allows the new one.
    machine = Machine { seq: machine.seq, ..before };
    machine.check_in(&fleet).await;
    let asked = fleet.asks(&machine.name, Asked::RotateKey { key: machine.key.public() });
    fleet.ask(&machine.name, &asked).await.good::<MachineView>();
    rotate(&fleet, &mut machine, &key()).await.good::<CheckInReply>();
    fleet.clock.forward(86_400);
    rotate(&fleet, &mut machine, &key()).await.good::<CheckInReply>();
}

#[tokio::test]
async fn attacks_that_push_each_other_out_of_the_table_are_in_the_log_once_an_hour_all_the_same() {
    let fleet = Fleet::start_with("[limits]\nmachine_per_second = 0\nreport_kib_per_second = 0").await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut seq = 1;
    for round in 0..6 {
        let attack = if round % 2 == 0 { Attack::Freeze } else { Attack::Rollback };
        for _ in 0..3 {
            let wolf = |seq| event(seq, None, EventKind::Refused { attack, detail: String::new() });
            machine.report(&fleet, seq, (seq..seq + 250).map(wolf).collect()).await.good::<Accepted>();
            seq += 250;
        }
    }
    assert_eq!(fleet.sql("SELECT count(*) FROM audit WHERE action = 'attack-refused'").await, "2");
}
