//! Reading with a key that an operator signed in: what it may do, and everything it may not.

use crate::support::{Answer, Fleet, LIMIT, make_root};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Sha256, to_hex};
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::{MachineView, Request, RequestSignature, Standing};
use muster_protocol::random;
use muster_protocol::signin::{MAX_SECONDS, SignIn};
use reqwest::{Method, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MACHINES: &str = api::OPERATOR_MACHINES;

/// A key that `operator` signed in for an hour.
fn signed_in(fleet: &Fleet, operator: &SecretKey) -> (SecretKey, String) {
    let key = SecretKey::generate().unwrap();
    let sign_in = SignIn::make(operator, &fleet.fleet_id(), key.public(), fleet.now_s(), 3600).unwrap();
    (key, sign_in.to_string())
}

/// A sign-in as another program might write it, valid or not.
fn forged(fleet: &Sha256, by: &SecretKey, context: Context, key: &SecretKey, from: i64, to: i64) -> String {
    let (by_key, key) = (by.public(), key.public());
    let signed = by.sign(context, format!("{fleet}\n{by_key}\n{key}\n{from}\n{to}\n").as_bytes());
    format!("{by_key} {key} {from} {to} {}", signed.hex())
}

fn reading(fleet: &Fleet, key: &SecretKey, method: &Method, path: &str, body: &[u8]) -> RequestSignature {
    let audience = fleet.fleet_id();
    let request = Request { audience: &audience, method: method.as_str(), path, body };
    RequestSignature::make_reading(key, request, fleet.now_s(), random::bytes().unwrap()).unwrap()
}

async fn send(
    fleet: &Fleet,
    method: Method,
    path: &str,
    body: &[u8],
    signature: &RequestSignature,
    sign_in: &str,
) -> Answer {
    let request = fleet
        .http
        .request(method, fleet.url(path))
        .header(api::OPERATOR_SIGNATURE, serde_json::to_string(signature).unwrap())
        .header(api::OPERATOR_SIGN_IN, sign_in);
    Answer::of(request.body(body.to_vec())).await
}

async fn get(fleet: &Fleet, path: &str, key: &SecretKey, sign_in: &str) -> Answer {
    let signature = reading(fleet, key, &Method::GET, path, b"");
    send(fleet, Method::GET, path, b"", &signature, sign_in).await
}

#[tokio::test]
async fn a_key_that_was_signed_in_reads_what_its_operator_may_read() {
    let fleet = Fleet::start().await;
    fleet.enrolled("cinnabar", Class::Nixos).await;
    let (key, sign_in) = signed_in(&fleet, &fleet.operator);
    let read: Vec<MachineView> = get(&fleet, MACHINES, &key, &sign_in).await.good();
    assert_eq!(read.len(), 1);
    for path in [
        "/v1/operator/machines/cinnabar",
        "/v1/operator/machines/cinnabar/history?limit=3",
        "/v1/operator/machines/cinnabar/attacks",
        "/v1/operator/changes?after=0&wait=0",
        api::OPERATOR_DRAFTS,
        api::OPERATOR_AUDIT,
    ] {
        let answer = get(&fleet, path, &key, &sign_in).await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {}", answer.text);
    }
}

#[tokio::test]
async fn a_key_that_was_signed_in_changes_nothing_and_gets_no_bearer() {
    let fleet = Fleet::start().await;
    fleet.enrolled("cinnabar", Class::Nixos).await;
    let (key, sign_in) = signed_in(&fleet, &fleet.operator);
    let entries = fleet.sql("SELECT count(*) FROM audit").await;
    for (method, path) in [
        (Method::POST, api::OPERATOR_SESSION),
        (Method::POST, MACHINES),
        (Method::POST, "/v1/operator/machines/cinnabar/revoke"),
        (Method::POST, "/v1/operator/machines/cinnabar/readmit"),
        (Method::POST, "/v1/operator/machines/cinnabar/acknowledge"),
        (Method::POST, "/v1/operator/machines/cinnabar/requests"),
        (Method::POST, "/v1/operator/machines/cinnabar/generations"),
        (Method::POST, api::OPERATOR_DRAFTS),
        (Method::POST, "/v1/operator/drafts/0123456789abcdef/drop"),
        (Method::POST, api::OPERATOR_ROOT),
    ] {
        let signature = reading(&fleet, &key, &method, path, b"{}");
        let answer = send(&fleet, method.clone(), path, b"{}", &signature, &sign_in).await;
        let message = answer.refused(403, ProblemCode::Unauthorised);
        assert!(message.contains("the operator's own key"), "{message}");
        // Nor without the header, nor as an operator's own request.
        fleet.send_signed(method.clone(), path, b"{}".to_vec(), &signature).await.refused(
            if path == api::OPERATOR_ROOT { 401 } else { 403 },
            match path {
                api::OPERATOR_ROOT => ProblemCode::BadSignature,
                _ => ProblemCode::Revoked,
            },
        );
    }
    // A signature for reading is not valid for anything else, and vice versa.
    let signature = reading(&fleet, &key, &Method::GET, api::OPERATOR_SESSION, b"");
    send(&fleet, Method::POST, api::OPERATOR_SESSION, b"", &signature, &sign_in)
        .await
        .refused(403, ProblemCode::Unauthorised);
    let own = fleet.signature(&key, &Method::GET, MACHINES, b"");
    send(&fleet, Method::GET, MACHINES, b"", &own, &sign_in).await.refused(401, ProblemCode::BadSignature);
    assert_eq!(fleet.sql("SELECT count(*) FROM audit").await, entries);
    assert_eq!(fleet.sql("SELECT count(*) FROM bearers WHERE operator IS NOT NULL").await, "0");
    fleet.get("/cache/nix-cache-info", &sign_in).await.refused(401, ProblemCode::Unauthorised);
}

#[tokio::test]
async fn signing_in_ends_with_its_time_and_begins_by_nobodys_far_clock() {
    let fleet = Fleet::start().await;
    let (key, sign_in) = signed_in(&fleet, &fleet.operator);
    fleet.clock.forward(3599);
    get(&fleet, MACHINES, &key, &sign_in).await.good::<Vec<MachineView>>();
    fleet.clock.forward(1);
    let message = get(&fleet, MACHINES, &key, &sign_in).await.refused(401, ProblemCode::Unauthorised);
    assert!(message.contains("ended 0 s ago"), "{message}");
    fleet.clock.forward(-3600 - 301);
    let message = get(&fleet, MACHINES, &key, &sign_in).await.refused(401, ProblemCode::Unauthorised);
    assert!(message.contains("begins in 301 s"), "{message}");
    fleet.clock.forward(1);
    get(&fleet, MACHINES, &key, &sign_in).await.good::<Vec<MachineView>>();
}

#[tokio::test]
async fn signing_in_ends_with_its_operators_removal_at_once() {
    let fleet = Fleet::start().await;
    let (key, sign_in) = signed_in(&fleet, &fleet.operator);
    get(&fleet, MACHINES, &key, &sign_in).await.good::<Vec<MachineView>>();
    let newcomer = SecretKey::generate().unwrap();
    let next = make_root(2, &fleet.root_key, &[&newcomer], &fleet.online);
    fleet.put_root(2, &next).await;
    let message = get(&fleet, MACHINES, &key, &sign_in).await.refused(403, ProblemCode::Revoked);
    assert!(message.contains(&fleet.operator.public().short()), "{message}");
    let (key, sign_in) = signed_in(&fleet, &newcomer);
    get(&fleet, MACHINES, &key, &sign_in).await.good::<Vec<MachineView>>();
}

#[tokio::test]
async fn nobody_but_an_operator_signs_in_and_only_as_it_is_meant() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let (now, own) = (fleet.now_s(), fleet.fleet_id());
    let key = SecretKey::generate().unwrap();
    let by = |by: &SecretKey| forged(&own, by, Context::SignIn, &key, now, now + 3600);
    // Written by hand in its valid form: that it is accepted shows that the following ones fail for their own
    // reasons.
    get(&fleet, MACHINES, &key, &by(&fleet.operator)).await.good::<Vec<MachineView>>();

    for (who, stranger) in [
        ("a root key", &fleet.root_key),
        ("the online key", &fleet.online),
        ("a machine", &machine.key),
        ("the key itself", &key),
    ] {
        // Root holders read drafts with their own key.
        for path in [MACHINES, api::OPERATOR_DRAFTS] {
            let answer = get(&fleet, path, &key, &by(stranger)).await;
            assert_eq!(answer.status, StatusCode::FORBIDDEN, "{who} {path}: {}", answer.text);
            answer.refused(403, ProblemCode::Revoked);
        }
    }
    // A signed-in key cannot sign in another.
    let (first, sign_in) = signed_in(&fleet, &fleet.operator);
    let second = forged(&own, &first, Context::SignIn, &key, now, now + 3600);
    get(&fleet, MACHINES, &key, &second).await.refused(403, ProblemCode::Revoked);
    get(&fleet, MACHINES, &key, &sign_in).await.refused(401, ProblemCode::Unauthorised);
    // An operator's own key does not read on another operator's behalf.
    let itself = forged(&own, &fleet.operator, Context::SignIn, &fleet.operator, now, now + 3600);
    get(&fleet, MACHINES, &fleet.operator, &itself).await.refused(401, ProblemCode::Unauthorised);

    let other = Sha256::of(b"another fleet");
    let century = now + 100 * 365 * 86_400;
    for (what, words, sign_in) in [
        (
            "of another fleet",
            "another fleet",
            forged(&other, &fleet.operator, Context::SignIn, &key, now, now + 60),
        ),
        ("for a century", "12 hours", forged(&own, &fleet.operator, Context::SignIn, &key, now, century)),
        (
            "a second too long",
            "12 hours",
            forged(&own, &fleet.operator, Context::SignIn, &key, now, now + MAX_SECONDS + 1),
        ),
        ("backwards", "12 hours", forged(&own, &fleet.operator, Context::SignIn, &key, now, now - 1)),
        (
            "signed as a request",
            "does not match",
            forged(&own, &fleet.operator, Context::OperatorRequest, &key, now, now + 60),
        ),
        (
            "signed as a request to a machine",
            "does not match",
            forged(&own, &fleet.operator, Context::MachineRequest, &key, now, now + 60),
        ),
        (
            "lengthened",
            "does not match",
            by(&fleet.operator).replace(&(now + 3600).to_string(), &(now + 3601).to_string()),
        ),
    ] {
        let answer = get(&fleet, MACHINES, &key, &sign_in).await;
        assert_eq!(answer.status, StatusCode::UNAUTHORIZED, "{what}: {}", answer.text);
        let message = answer.refused(401, ProblemCode::Unauthorised);
        assert!(message.contains(words), "{what}: {message}");
    }
    let good = by(&fleet.operator);
    for bent in
        [String::new(), format!("{good} x"), format!("{good}{}", "0".repeat(4096)), "é".into(), "{}".into()]
    {
        get(&fleet, MACHINES, &key, &bent).await.refused(400, ProblemCode::Malformed);
    }
    let huge = "0".repeat(1024 * 1024);
    let signature = reading(&fleet, &key, &Method::GET, MACHINES, b"");
    let request = fleet
        .http
        .get(fleet.url(MACHINES))
        .header(api::OPERATOR_SIGNATURE, serde_json::to_string(&signature).unwrap())
        .header(api::OPERATOR_SIGN_IN, huge);
    // The connection may end before all of it is sent.
    if let Some(answer) = Answer::of_or_none(request).await {
        assert!(answer.status.is_client_error(), "{}", answer.status);
    }
}

#[tokio::test]
async fn a_request_that_was_read_once_is_not_read_again_under_any_key_that_was_signed_in() {
    let fleet = Fleet::start().await;
    let (key, sign_in) = signed_in(&fleet, &fleet.operator);
    let signature = reading(&fleet, &key, &Method::GET, MACHINES, b"");
    send(&fleet, Method::GET, MACHINES, b"", &signature, &sign_in).await.good::<Vec<MachineView>>();
    for again in [&sign_in, &signed_in_anew(&fleet, &key)] {
        send(&fleet, Method::GET, MACHINES, b"", &signature, again).await.refused(409, ProblemCode::Sequence);
    }
    // Another path, another method, another time: the signature covers none of them.
    let path = "/v1/operator/machines/cinnabar";
    let signature = reading(&fleet, &key, &Method::GET, MACHINES, b"");
    send(&fleet, Method::GET, path, b"", &signature, &sign_in).await.refused(401, ProblemCode::BadSignature);
    let later = RequestSignature { at: signature.at + 1, ..signature.clone() };
    send(&fleet, Method::GET, MACHINES, b"", &later, &sign_in).await.refused(401, ProblemCode::BadSignature);
    let other = RequestSignature { nonce: to_hex(&[9; 16]), ..signature };
    send(&fleet, Method::GET, MACHINES, b"", &other, &sign_in).await.refused(401, ProblemCode::BadSignature);
    let nonces_of = fleet.sql("SELECT group_concat(DISTINCT lower(hex(key))) FROM nonces").await;
    assert_eq!(nonces_of, fleet.operator.public().hex(), "nonces are the operator's");
}

/// The same key, signed in once more.
fn signed_in_anew(fleet: &Fleet, key: &SecretKey) -> String {
    SignIn::make(&fleet.operator, &fleet.fleet_id(), key.public(), fleet.clock.unix_seconds() - 1, 60)
        .unwrap()
        .to_string()
}

const REVOKE: &str = "/v1/operator/machines/cinnabar/revoke";

#[tokio::test]
async fn keys_that_one_operator_signed_in_share_one_rate_and_the_operator_goes_on_to_revoke() {
    let fleet = Fleet::start_with("[limits]\noperator_per_second = 1\n").await;
    fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut refused = 0;
    for _ in 0..15 {
        let (key, sign_in) = signed_in(&fleet, &fleet.operator);
        let answer = get(&fleet, MACHINES, &key, &sign_in).await;
        match answer.status {
            StatusCode::TOO_MANY_REQUESTS => refused += 1,
            status => assert_eq!(status, StatusCode::OK),
        }
    }
    assert_eq!(refused, 3, "12 at once, and one a second after them");
    fleet.operate(Method::POST, REVOKE, vec![]).await.good::<MachineView>();
    let machines: Vec<MachineView> = fleet.operate(Method::GET, MACHINES, vec![]).await.good();
    assert_eq!(machines[0].standing, Standing::Revoked);
}

/// The first twelve bytes of the response to a request without a body, over a connection of its own, and the
/// connection.
async fn over_a_new_connection(
    fleet: &Fleet,
    method: &Method,
    path: &str,
    signature: &RequestSignature,
    sign_in: Option<&str>,
) -> (String, TcpStream) {
    let mut stream = TcpStream::connect(fleet.address()).await.unwrap();
    let signature = serde_json::to_string(signature).unwrap();
    let mut head = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\ncontent-length: 0\r\n{}: {signature}\r\n",
        api::OPERATOR_SIGNATURE
    );
    if let Some(sign_in) = sign_in {
        head += &format!("{}: {sign_in}\r\n", api::OPERATOR_SIGN_IN);
    }
    head += "\r\n";
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut said = vec![0; 12];
    tokio::time::timeout(LIMIT, stream.read_exact(&mut said)).await.unwrap().unwrap();
    (String::from_utf8(said).unwrap(), stream)
}

#[tokio::test]
async fn keys_that_one_operator_signed_in_hold_few_connections_and_the_operator_gets_in() {
    let fleet = Fleet::start().await;
    fleet.enrolled("cinnabar", Class::Nixos).await;
    let mut held = Vec::new();
    let (said, mut last) = loop {
        let (key, sign_in) = signed_in(&fleet, &fleet.operator);
        let signature = reading(&fleet, &key, &Method::GET, MACHINES, b"");
        let (said, stream) =
            over_a_new_connection(&fleet, &Method::GET, MACHINES, &signature, Some(&sign_in)).await;
        if said != "HTTP/1.1 200" {
            break (said, stream);
        }
        held.push(stream);
        assert!(held.len() < 600, "it was never refused");
    };
    assert_eq!((held.len(), said.as_str()), (32, "HTTP/1.1 429"));
    let mut rest = String::new();
    tokio::time::timeout(LIMIT, last.read_to_string(&mut rest)).await.unwrap().unwrap();
    assert!(rest.contains("retry-after: ") && rest.contains("connections"), "{rest}");
    let signature = fleet.signature(&fleet.operator, &Method::POST, REVOKE, b"");
    let (said, _own) = over_a_new_connection(&fleet, &Method::POST, REVOKE, &signature, None).await;
    assert_eq!(said, "HTTP/1.1 200");
}

#[tokio::test]
async fn reading_brings_no_body_of_a_drafts_size() {
    let fleet = Fleet::start().await;
    let (key, sign_in) = signed_in(&fleet, &fleet.operator);
    let large = vec![b'x'; 2 * 1024 * 1024];
    let path = api::OPERATOR_DRAFTS;
    let signature = reading(&fleet, &key, &Method::GET, path, &large);
    send(&fleet, Method::GET, path, &large, &signature, &sign_in).await.refused(413, ProblemCode::TooLarge);
    fleet.operate(Method::GET, path, large).await.refused(413, ProblemCode::TooLarge);
}
