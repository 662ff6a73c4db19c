//! An operator whose key is in a security key, and machines, whose keys are not.

use muster_protocol::api::{self, ProblemCode};
use muster_protocol::audit::{Page, origin, verify};
use muster_protocol::checkin::CheckIn;
use muster_protocol::enrol::{EnrolReply, EnrolRequest};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::{
    Context, KeyError, Kind, PublicKey, SecretKey, Signature, Signer, Touch, sign_in,
};
use muster_protocol::machine::Class;
use muster_protocol::operator::{MachineView, Readmit, Request, RequestSignature, Session};
use muster_protocol::random;
use muster_protocol::request::{Asked, MachineRequest};
use muster_protocol::signin::SignIn;
use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root};
use reqwest::Method;

use crate::support::{Answer, Fleet, START_S, enrol_request, send_both, system, target};

/// A security key whose private key is known.
struct Security(SecretKey);

impl Signer for Security {
    fn public(&self) -> PublicKey {
        PublicKey::of(Kind::Security, self.0.public().as_bytes()).unwrap()
    }
    fn sign_raw(&self, message: &[u8]) -> Result<Signature, KeyError> {
        let [application, message] = [b"ssh:".as_slice(), message].map(Sha256::of);
        let stated = [&application.as_bytes()[..], &[1, 0, 0, 0, 9], message.as_bytes()].concat();
        let touch = Touch { flags: 1, counter: 9 };
        Ok(Signature::of_security_key(*self.0.sign_raw(&stated).as_bytes(), touch))
    }
}

/// A fleet whose second root names alice's security key beside the operator's.
async fn with_alice() -> (Fleet, Security) {
    let mut fleet = Fleet::start().await;
    let alice = Security(SecretKey::generate().unwrap());
    let spec = RootSpec {
        version: 2,
        epoch: Default::default(),
        expires: START_S + 365 * 86_400,
        root: (vec![fleet.root_key.public()], 1),
        operators: (vec![fleet.operator.public(), alice.public()], 1),
        online: vec![fleet.online.public()],
    };
    let root = sign_root(&spec, &[&fleet.root_key]).unwrap();
    fleet.down().await;
    fleet.put_root(2, &root).await;
    fleet.up().await;
    (fleet, alice)
}

async fn ask(fleet: &Fleet, key: &dyn Signer, method: Method, path: &str, body: &[u8]) -> Answer {
    let audience = fleet.fleet_id();
    let request = Request { audience: &audience, method: method.as_str(), path, body };
    let signed = RequestSignature::make_with(key, request, fleet.now_s(), random::bytes().unwrap()).unwrap();
    fleet.send_signed(method, path, body.to_vec(), &signed).await
}

#[tokio::test]
async fn what_a_security_key_asks_for_is_done_and_stored_under_its_kind() {
    let (fleet, alice) = with_alice().await;
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;
    let path = api::operator_machine(&machine.name);

    let publication =
        sign_generation(&target("cinnabar", Class::Nixos, 1), START_S + 86_400, &[&alice]).unwrap();
    let body = serde_json::to_vec(&publication).unwrap();
    let view: MachineView =
        ask(&fleet, &alice, Method::POST, &format!("{path}/generations"), &body).await.good();
    let published = view.published.unwrap();
    assert_eq!((published.by, &published.signers[..]), (alice.public(), &[alice.public()][..]));
    assert!(published.is_signed_by(&[alice.public()], 1));
    assert!(!published.is_signed_by(&[alice.0.public()], 1), "the same point as a plain key is nobody's");

    // A request to the machine reaches it as it was signed.
    let asked = Asked::RotateKey { key: machine.key.public() };
    let request =
        MachineRequest::new(fleet.fleet_id(), machine.name.clone(), asked, fleet.now_s(), 60).unwrap();
    let signed = request.sign(&alice).unwrap();
    let body = serde_json::to_vec(&signed).unwrap();
    ask(&fleet, &alice, Method::POST, &format!("{path}/requests"), &body).await.good::<MachineView>();
    let handed = machine.check_in(&fleet).await.requests;
    assert_eq!(handed, [signed]);
    let operators = [alice.public()];
    assert!(handed[0].verify(&fleet.fleet_id(), &machine.name, &operators, fleet.now_s()).is_ok());

    // A bearer of hers is hers, and the log is whole.
    let session: Session = ask(&fleet, &alice, Method::POST, api::OPERATOR_SESSION, b"null").await.good();
    assert!(!session.bearer.is_empty());
    let log: Page = ask(&fleet, &alice, Method::GET, api::OPERATOR_AUDIT, b"").await.good();
    verify(origin(&fleet.fleet_id()), &log.entries).unwrap();
    assert!(log.entries.iter().any(|entry| entry.by == Some(alice.public())));
    assert!(log.entries.iter().all(|entry| entry.by != Some(alice.0.public())));
}

#[tokio::test]
async fn a_security_key_signs_in_a_plain_key_that_reads() {
    let (fleet, alice) = with_alice().await;
    let session = SecretKey::generate().unwrap();
    let signed_in = SignIn::make(&alice, &fleet.fleet_id(), session.public(), fleet.now_s(), 3600).unwrap();
    let audience = fleet.fleet_id();
    let path = api::OPERATOR_MACHINES;
    let request = Request { audience: &audience, method: "GET", path, body: b"" };
    let signed =
        RequestSignature::make_reading(&session, request, fleet.now_s(), random::bytes().unwrap()).unwrap();
    let request = fleet
        .http
        .get(fleet.url(path))
        .header(api::OPERATOR_SIGNATURE, serde_json::to_string(&signed).unwrap())
        .header(api::OPERATOR_SIGN_IN, signed_in.to_string());
    Answer::of(request).await.good::<Vec<MachineView>>();
}

#[tokio::test]
async fn the_private_key_of_a_security_key_asks_for_nothing_as_a_plain_key() {
    let (fleet, alice) = with_alice().await;
    let path = api::OPERATOR_MACHINES;
    ask(&fleet, &alice, Method::GET, path, b"").await.good::<Vec<MachineView>>();
    ask(&fleet, &alice.0, Method::GET, path, b"").await.refused(403, ProblemCode::Revoked);
    let audience = fleet.fleet_id();
    let request = Request { audience: &audience, method: "GET", path, body: b"" };
    let made = |key: &dyn Signer| {
        RequestSignature::make_with(key, request, fleet.now_s(), random::bytes().unwrap()).unwrap()
    };
    let plain = RequestSignature { key: alice.public(), ..made(&alice.0) };
    let twin = RequestSignature { key: fleet.operator.public(), ..made(&Security(fleet.operator.clone())) };
    for claimed in [plain, twin] {
        let answer = fleet.send_signed(Method::GET, path, vec![], &claimed).await;
        answer.refused(401, ProblemCode::BadSignature);
    }
}

#[tokio::test]
async fn no_machine_enrols_rotates_or_is_readmitted_with_a_security_key() {
    let fleet = Fleet::start().await;
    let security = Security(SecretKey::generate().unwrap());
    let mut machine = fleet.enrolled("cinnabar", Class::Nixos).await;

    machine.seq += 1;
    let checkin = CheckIn { new_key: Some(security.public()), ..machine.checkin(&fleet, machine.seq) };
    let body = serde_json::to_vec(&checkin).unwrap();
    let by_old = machine.key.sign(Context::CheckIn, &body).hex();
    let by_new = sign_in(&security, Context::KeyRotation, &body).unwrap().hex();
    let said = send_both(&fleet, by_old, by_new, body).await.refused(400, ProblemCode::Malformed);
    assert!(said.contains("a machine") && said.contains("plain ed25519 key"), "{said}");
    machine.check_in(&fleet).await;

    let known = Readmit {
        class: Class::Nixos,
        system: system(Class::Nixos),
        tags: Default::default(),
        key: security.public(),
        replace: true,
    };
    let path = format!("{}/readmit", api::operator_machine(&machine.name));
    let answer = fleet.operate(Method::POST, &path, serde_json::to_vec(&known).unwrap()).await;
    let said = answer.refused(422, ProblemCode::Malformed);
    assert!(said.contains("plain ed25519 key"), "{said}");

    // That one which is signed as it should be is refused, too, is a test of the protocol.
    let token = fleet.invited("realgar", Class::Nixos).await;
    let honest = enrol_request(&token, &security.0);
    let posing = EnrolRequest { key: security.public(), ..honest.clone() };
    fleet.post(api::ENROL, &posing).await.refused(403, ProblemCode::BadSignature);
    fleet.post(api::ENROL, &honest).await.good::<EnrolReply>();
}
