//! Every wait has a limit, every answer a maximum size.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{StatusCode, header};
use axum::response::IntoResponse as _;
use futures_util::stream;
use muster_agent::client::{Client, ClientError};
use muster_agent::identity::pem_of;
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::{CheckIn, CheckInReply, Holds, Phase};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{Context, SecretKey, Signature};
use muster_protocol::machine::Class;
use muster_protocol::report::Batch;
use muster_protocol::session::{ExchangeSecret, SessionOffer, SessionProof};

use super::controller::{BEARER, Controller, Fleet, problem};

async fn enrolled() -> (tempfile::TempDir, Controller, Fleet, Client) {
    let controller = Controller::start().await;
    let fleet = Fleet::new();
    let state = tempfile::tempdir().unwrap();
    let (_, identity) = fleet.enrol(state.path(), &controller.url);
    let client = Client::new(&identity).unwrap();
    (state, controller, fleet, client)
}

fn check_in(fleet: &Fleet) -> CheckIn {
    CheckIn {
        understands: vec![],
        signing: None,
        vouch: None,
        awaits: None,
        audience: Sha256::of(&fleet.root),
        machine: fleet.machine.clone(),
        class: Class::Nixos,
        system: "x86_64-linux".parse().unwrap(),
        boot_id: "b".into(),
        seq: 1,
        clock: 1,
        agent: "0".into(),
        runs: None,
        holds: Holds::default(),
        phase: Phase::Idle,
        phase_generation: None,
        note: None,
        refused: None,
        health: muster_protocol::checkin::Health::default(),
        new_key: None,
        age: None,
        followed: vec![],
        shown: None,
        session: None,
    }
}
fn body(check_in: &CheckIn) -> Vec<u8> {
    serde_json::to_vec(check_in).unwrap()
}
fn reply(bearer: &str) -> Vec<u8> {
    let reply = CheckInReply {
        bearer: bearer.into(),
        bearer_expires_in: 3600,
        poll_seconds: 55,
        ..CheckInReply::default()
    };
    serde_json::to_vec(&reply).unwrap()
}

#[tokio::test]
async fn a_check_in_is_signed_and_its_bearer_is_used_from_then_on() {
    let (state, controller, fleet, client) = enrolled().await;
    controller.put(api::CHECKIN, reply(BEARER));
    controller.put("/v1/x", "x");
    client.check_in(body(&check_in(&fleet)), None, None).await.unwrap();
    client.get("/v1/x", 10).await.unwrap();
    let seen = controller.seen();
    let signature: Signature = seen[0].headers[api::MACHINE_SIGNATURE].to_str().unwrap().parse().unwrap();
    let key = fleet.enrol(state.path(), &controller.url).1.key.public();
    key.verify(Context::CheckIn, &seen[0].body, &signature).unwrap();
    assert!(seen[0].headers.get("authorization").is_none());
    assert_eq!(seen[1].headers["authorization"], format!("Bearer {BEARER}"));
}

#[tokio::test]
async fn a_check_in_in_a_session_carries_its_proof_and_no_signature() {
    let (_state, controller, fleet, client) = enrolled().await;
    let (controllers, own) = (ExchangeSecret::generate().unwrap(), ExchangeSecret::generate().unwrap());
    let offer = SessionOffer { key: controllers.public(), token: "token".into(), expires_in: 3600 };
    let session = own.accept(&offer).unwrap();
    controller.put(api::CHECKIN, reply(BEARER));
    controller.put("/v1/x", "x");
    client.check_in_by_session(body(&check_in(&fleet)), &session).await.unwrap();
    client.get("/v1/x", 10).await.unwrap();
    let seen = controller.seen();
    let proof: SessionProof = seen[0].headers[api::MACHINE_SESSION].to_str().unwrap().parse().unwrap();
    assert_eq!(proof.body, Sha256::of(&seen[0].body));
    assert!(controllers.of_machine(&own.public(), "token").unwrap().verifies(api::CHECKIN, &proof));
    assert!(seen[0].headers.get(api::MACHINE_SIGNATURE).is_none());
    assert_eq!(seen[1].headers["authorization"], format!("Bearer {BEARER}"));
}

#[tokio::test]
async fn a_new_key_is_signed_by_the_old_one_and_by_itself_and_used_once_it_is_taken() {
    let (state, controller, fleet, client) = enrolled().await;
    let old = fleet.enrol(state.path(), &controller.url).1.key.public();
    let next = SecretKey::generate().unwrap();
    let check_in = body(&CheckIn { new_key: Some(next.public()), ..check_in(&fleet) });
    // A controller of 0.1 or a proxy answers with an error: the old key stays in use.
    let tries = AtomicU64::new(0);
    controller.answer(api::CHECKIN, move |_| match tries.fetch_add(1, Ordering::SeqCst) {
        0 => problem(StatusCode::UNAUTHORIZED, ProblemCode::BadSignature, "no").into_response(),
        _ => reply(BEARER).into_response(),
    });
    client.check_in(check_in.clone(), Some(&next), None).await.unwrap_err();
    client.check_in(check_in.clone(), Some(&next), None).await.unwrap();
    client.use_key(&next);
    client.check_in(check_in, None, None).await.unwrap();
    let seen = controller.seen();
    let of = |index: usize, header: &str| -> Option<Signature> {
        seen[index].headers.get(header).map(|text| text.to_str().unwrap().parse().unwrap())
    };
    for index in [0, 1] {
        let body = &seen[index].body;
        old.verify(Context::CheckIn, body, &of(index, api::MACHINE_SIGNATURE).unwrap()).unwrap();
        next.public()
            .verify(Context::KeyRotation, body, &of(index, api::MACHINE_NEW_SIGNATURE).unwrap())
            .unwrap();
    }
    let by_next = of(2, api::MACHINE_SIGNATURE).unwrap();
    next.public().verify(Context::CheckIn, &seen[2].body, &by_next).unwrap();
    assert_eq!(of(2, api::MACHINE_NEW_SIGNATURE), None);
}

#[tokio::test]
async fn a_bearer_that_would_say_more_in_a_header_is_refused() {
    let (_state, controller, fleet, client) = enrolled().await;
    for bearer in ["", "a b", "a\nmachine evil login x password y", "ä"] {
        controller.put(api::CHECKIN, reply(bearer));
        let error = client.check_in(body(&check_in(&fleet)), None, None).await.unwrap_err();
        assert!(matches!(error, ClientError::Malformed { .. }), "{bearer:?}: {error}");
        client.get("/v1/x", 10).await.unwrap();
        assert!(controller.seen().pop().unwrap().headers.get("authorization").is_none(), "it is not used");
    }
}

#[tokio::test]
async fn an_endless_body_is_dropped_at_its_limit() {
    let (_state, controller, _fleet, client) = enrolled().await;
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    controller.answer("/v1/endless", move |_| {
        let count = Arc::clone(&count);
        let chunks = stream::repeat_with(move || {
            count.fetch_add(1, Ordering::Relaxed);
            Ok::<_, std::io::Error>(Bytes::from_static(&[b'x'; 1024]))
        });
        Body::from_stream(chunks).into_response()
    });
    let error = client.get("/v1/endless", 10_000).await.unwrap_err();
    assert!(matches!(error, ClientError::TooLarge { limit: 10_000, .. }), "{error}");
    assert!(!error.is_unreachable());
    // Only the sockets' buffers were filled: a few MiB, not what a check at the end would cost.
    assert!(sent.load(Ordering::Relaxed) < 64 * 1024);
}

#[tokio::test]
async fn a_body_that_says_it_is_too_long_is_not_read_at_all() {
    let (_state, controller, _fleet, client) = enrolled().await;
    controller.put("/v1/long", vec![b'x'; 11]);
    assert!(matches!(client.get("/v1/long", 10).await, Err(ClientError::TooLarge { .. })));
    controller.put("/v1/long", vec![b'x'; 10]);
    assert_eq!(client.get("/v1/long", 10).await.unwrap().unwrap().len(), 10);
    assert!(client.get("/v1/none", 10).await.unwrap().is_none());
}

/// Slow by nature: it waits for the client's limit, set to a fifth of a second here.
#[tokio::test]
async fn failure_mode_23_a_body_that_never_ends_to_come_is_given_up() {
    let (_state, controller, _fleet, client) = enrolled().await;
    let client = client.with_limit(Duration::from_millis(200));
    for path in ["/v1/slow", api::FLEET] {
        controller.answer(path, |_| {
            let start = stream::iter([Ok::<_, std::io::Error>(Bytes::from_static(b"{"))]);
            Body::from_stream(futures_util::StreamExt::chain(start, stream::pending())).into_response()
        });
    }
    assert!(client.get("/v1/slow", 10_000).await.unwrap_err().is_unreachable());
    assert!(client.probe().await.unwrap_err().is_unreachable());
}

#[tokio::test]
async fn retry_after_and_the_problem_reach_the_caller() {
    let (_state, controller, fleet, client) = enrolled().await;
    for (text, seconds) in [("7", Some(7)), ("999999", Some(600)), ("soon", None), ("-1", None)] {
        controller.answer(api::CHECKIN, move |_| {
            let busy =
                problem(StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy, "it is busy: try again later");
            ([(header::RETRY_AFTER, text)], busy).into_response()
        });
        let error = client.check_in(body(&check_in(&fleet)), None, None).await.unwrap_err();
        assert_eq!(error.retry_after(), seconds.map(Duration::from_secs), "{text}");
        assert!(error.is_unreachable() && !error.needs_new_bearer());
        assert_eq!(error.code(), Some(ProblemCode::Busy));
        assert!(error.to_string().contains("it is busy: try again later"));
    }
}

#[tokio::test]
async fn an_expired_bearer_asks_for_a_new_check_in() {
    let (_state, controller, _fleet, client) = enrolled().await;
    controller.answer(
        &api::poll_path(&"cinnabar".parse().unwrap(), None, 1).replace("?have=0&wait=1", ""),
        |_| {
            problem(
                StatusCode::UNAUTHORIZED,
                ProblemCode::Unauthorised,
                "the bearer has expired: check in again",
            )
        },
    );
    let error = client.poll(None, 1, 1).await.unwrap_err();
    assert!(error.needs_new_bearer() && !error.is_unreachable());
}

#[tokio::test]
async fn answers_that_are_not_the_controllers_are_told_apart() {
    let (_state, controller, fleet, client) = enrolled().await;
    controller.put(api::CHECKIN, "<html>Please log in to the hotel's network</html>");
    let error = client.check_in(body(&check_in(&fleet)), None, None).await.unwrap_err();
    assert!(matches!(error, ClientError::Malformed { .. }), "{error}");
    controller.answer(api::REPORTS, |_| (StatusCode::FOUND, [(header::LOCATION, "/v1/x")]).into_response());
    let batch = Batch { machine: fleet.machine.clone(), stream: None, oldest: 1, events: vec![] };
    let error = client.report(&batch).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { status: 302, .. }), "{error}");
    assert!(controller.seen().iter().all(|seen| seen.path != "/v1/x"), "no detour is taken");
}

#[tokio::test]
async fn a_controller_that_is_down_is_unreachable() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let client = Client::anonymous(&url, None).unwrap();
    let error = client.get("/v1/x", 10).await.unwrap_err();
    assert!(error.is_unreachable() && error.to_string().contains(&url), "{error}");
}

#[test]
fn only_loopback_may_do_without_tls() {
    for good in ["http://127.0.0.1:8443", "http://[::1]:8443/", "http://localhost", "https://muster.example/"]
    {
        let client = Client::anonymous(good, None).unwrap();
        assert!(!client.url().ends_with('/'), "{good}");
    }
    for bad in [
        "http://muster.example",
        "http://127.0.0.1.evil.example",
        "http://10.0.0.1:8443",
        "ftp://muster.example",
        "https://user:password@muster.example",
        "https://muster.example/?x",
        "muster.example",
        "",
    ] {
        assert!(matches!(Client::anonymous(bad, None), Err(ClientError::Address { .. })), "{bad}");
    }
    let error = Client::anonymous("https://muster.example", Some("no certificate")).unwrap_err();
    assert!(error.to_string().contains("make a new token"), "{error}");
}

#[tokio::test]
async fn a_pinned_controller_is_believed_by_the_tokens_authority_alone() {
    let (controller, ca) = Controller::start_tls().await;
    controller.put("/v1/x", "x");
    let good = Client::anonymous(&controller.url, Some(&pem_of(&ca))).unwrap();
    assert_eq!(good.get("/v1/x", 10).await.unwrap().unwrap(), b"x");
    let (_, other) = Controller::start_tls().await;
    for ca in [Some(pem_of(&other)), None] {
        let error =
            Client::anonymous(&controller.url, ca.as_deref()).unwrap().get("/v1/x", 10).await.unwrap_err();
        assert!(error.is_unreachable() && error.to_string().contains("certificate"), "{error}");
    }
}
