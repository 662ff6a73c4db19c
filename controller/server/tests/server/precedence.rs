//! The reason given for a request that is wrong in several ways: authentication comes before everything else.

use crate::support::{Answer, Fleet};
use muster_protocol::api::{self, ProblemCode};
use muster_protocol::checkin::MAX_CHECKIN_BYTES;
use muster_protocol::keys::{Context, SecretKey};
use muster_protocol::machine::Class;
use muster_protocol::operator::MachineView;
use reqwest::Method;

#[tokio::test]
async fn of_an_operators_request_the_signature_comes_first_then_the_name_and_then_what_it_says() {
    let fleet = Fleet::start().await;
    let path = |name: &str| format!("{}/{name}/generations", api::OPERATOR_MACHINES);
    let rubbish = || b"rubbish".to_vec();
    let unsigned = Answer::of(fleet.http.post(fleet.url(&path("no%20name"))).body(rubbish())).await;
    assert!(unsigned.refused(401, ProblemCode::Unauthorised).contains("operator's signature"));
    let stranger = SecretKey::generate().unwrap();
    let signature = fleet.signature(&stranger, &Method::POST, &path("no%20name"), &rubbish());
    let revoked = fleet.send_signed(Method::POST, &path("no%20name"), rubbish(), &signature).await;
    revoked.refused(403, ProblemCode::Revoked);
    let other = fleet.signature(&fleet.operator, &Method::POST, &path("no%20name"), b"something else");
    let changed = fleet.send_signed(Method::POST, &path("no%20name"), rubbish(), &other).await;
    changed.refused(401, ProblemCode::BadSignature);

    let name = fleet.operate(Method::POST, &path("no%20name"), rubbish()).await;
    let said = name.refused(400, ProblemCode::Malformed);
    assert!(said.contains("name") && !said.contains("JSON"), "{said}");
    // The document is checked before the unknown machine.
    let said =
        fleet.operate(Method::POST, &path("nobody"), rubbish()).await.refused(400, ProblemCode::Malformed);
    assert!(said.starts_with("this is not JSON, so it is not a signed generation"), "{said}");
    let said = fleet.operate(Method::POST, &path("nobody"), b"{}".to_vec()).await;
    assert!(said.refused(400, ProblemCode::Malformed).starts_with("this is not a signed generation"));
    // The query string is parsed before the signature is checked.
    let odd = format!("{}/nobody/history?limit=many", api::OPERATOR_MACHINES);
    Answer::of(fleet.http.get(fleet.url(&odd))).await.refused(400, ProblemCode::Malformed);
}

#[tokio::test]
async fn a_request_that_wants_no_body_takes_any() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let path = format!("{}/revoke", api::operator_machine(&machine.name));
    fleet.operate(Method::POST, &path, b"rubbish".to_vec()).await.good::<MachineView>();
}

#[tokio::test]
async fn of_a_machines_document_the_size_comes_before_what_it_says_and_that_before_the_signature() {
    let fleet = Fleet::start().await;
    let machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let large = vec![b'x'; MAX_CHECKIN_BYTES + 1];
    let unsigned = Answer::of(fleet.http.post(fleet.url(api::CHECKIN)).body(large.clone())).await;
    assert!(unsigned.refused(401, ProblemCode::Unauthorised).contains(api::MACHINE_SIGNATURE));
    let malformed = fleet.send(api::CHECKIN, "what?".into(), large.clone()).await;
    assert!(malformed.refused(400, ProblemCode::Malformed).contains(api::MACHINE_SIGNATURE));
    let signature = || machine.key.sign(Context::Reports, b"something else").hex();
    fleet.send(api::CHECKIN, signature(), large).await.refused(413, ProblemCode::TooLarge);
    let rubbish = fleet.send(api::CHECKIN, signature(), b"rubbish".to_vec()).await;
    let said = rubbish.refused(400, ProblemCode::Malformed);
    assert!(said.starts_with("this is not JSON, so it is not a check-in"), "{said}");
    let said =
        fleet.send(api::REPORTS, signature(), b"{}".to_vec()).await.refused(400, ProblemCode::Malformed);
    assert!(said.starts_with("this is not a batch of events"), "{said}");
    let batch =
        |name: &str| format!(r#"{{"machine":"{name}","oldest":1,"events":[{{"rubbish":1}}]}}"#).into_bytes();
    fleet.send(api::REPORTS, signature(), batch("nobody")).await.refused(404, ProblemCode::UnknownMachine);
    fleet.send(api::REPORTS, signature(), batch("cinnabar")).await.refused(401, ProblemCode::BadSignature);
    let signed = machine.key.sign(Context::Reports, &batch("cinnabar")).hex();
    let said = fleet.send(api::REPORTS, signed, batch("cinnabar")).await.refused(400, ProblemCode::Malformed);
    assert!(said.starts_with("this is not an event"), "{said}");
    let said = fleet.post(api::ENROL, &"rubbish").await.refused(400, ProblemCode::Malformed);
    assert!(said.starts_with("this is not an enrolment"), "{said}");
}

#[tokio::test]
async fn a_machines_name_is_read_before_the_bearer_and_the_caches_names_after_it() {
    let fleet = Fleet::start().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let (own, operators) = (machine.bearer(&fleet).await, fleet.session().await);
    for path in
        ["/v1/machines/no%20name/poll", "/v1/machines/no%20name/tuf/x", "/v1/machines/cinnabar/poll?have=x"]
    {
        fleet.get(path, "unknown").await.refused(400, ProblemCode::Malformed);
    }
    for path in
        ["/v1/machines/nobody/poll", "/v1/machines/nobody/tuf/x", "/cache/rubbish", "/cache/nar/rubbish"]
    {
        fleet.get(path, "unknown").await.refused(401, ProblemCode::Unauthorised);
    }
    for path in ["/v1/machines/nobody/poll", "/v1/machines/nobody/tuf/x"] {
        fleet.get(path, &own).await.refused(403, ProblemCode::Unauthorised);
    }
    // An operator reads every machine's files, but does not poll for a machine.
    fleet.get("/v1/machines/nobody/tuf/x", &operators).await.refused(404, ProblemCode::NotFound);
    fleet.get("/v1/machines/cinnabar/poll", &operators).await.refused(403, ProblemCode::Unauthorised);
    fleet.get("/cache/rubbish", &own).await.refused(404, ProblemCode::NotFound);
    let put = async |path: &str, bearer: &str| {
        Answer::of(fleet.http.put(fleet.url(path)).bearer_auth(bearer).body("rubbish")).await
    };
    for path in ["/cache/rubbish", "/cache/nar/rubbish"] {
        put(path, &own).await.refused(403, ProblemCode::Unauthorised);
        put(path, &operators).await.refused(422, ProblemCode::Malformed);
    }
}
