//! What operators send, what the controller answers, and the headers of both sides.

use axum::http::{HeaderMap, HeaderName, HeaderValue};
use muster_agent::client::check_bearer;
use muster_protocol::api::retry_after;
use muster_protocol::api::{MACHINE_SIGNATURE, OPERATOR_SIGN_IN, OPERATOR_SIGNATURE, Problem};
use muster_protocol::audit::Page;
use muster_protocol::draft::{Draft, DraftView, Drafted, DraftedGeneration};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::Signer as _;
use muster_protocol::machine::Class;
use muster_protocol::operator::{
    AddMachine, AttackView, FleetView, HistoryEntry, MachineView, NewRoot, Publication, Request, RootTaken,
};
use muster_protocol::signin::SignIn;
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::check_publication;
use muster_server::http::readers;

use crate::input;
use crate::world::*;

/// The bodies of requests, and the answers that the CLI reads.
pub fn requests(data: &[u8]) -> bool {
    if let Ok(publication) = serde_json::from_slice::<Publication>(data) {
        let root = Root::parse_self_signed(&root()).expect("a root");
        if let Ok(checked) = check_publication(&root, &name(OWN), Class::Nixos, &publication, NOW) {
            assert_eq!(checked.target.machine, name(OWN));
            assert_eq!(checked.target.generation, publication.generation);
            assert_eq!(checked.target_sha256, Sha256::of(publication.target.as_bytes()));
            assert!(checked.targets_expires > NOW);
        }
    }
    input::json::<Publication>(data)
        | input::json::<AddMachine>(data)
        | input::json::<Vec<MachineView>>(data)
        | input::json::<MachineView>(data)
        | input::json::<Vec<HistoryEntry>>(data)
        | input::json::<FleetView>(data)
        | input::json::<Problem>(data)
}

/// Drafts, as a controller serves them or a mail brings them, new roots, and the audit log.
pub fn drafts(data: &[u8]) -> bool {
    if let Ok(draft) = Draft::parse(data) {
        let (fleet, root) = (Sha256::of(&root()), Root::parse_self_signed(&root()).expect("a root"));
        let sound = draft.check(&fleet, &root, NOW).is_ok();
        let complete = draft.progress(&root).is_ok_and(|progress| progress.is_complete());
        match &draft.what {
            Drafted::Generations { generations } if sound && complete => {
                for DraftedGeneration { machine, class, publication } in generations {
                    check_publication(&root, machine, *class, publication, NOW)
                        .expect("a sound draft with all signatures is a generation");
                }
            }
            Drafted::Root { root: next } if sound && complete => {
                root.successor(next.as_bytes()).expect("a sound draft with all signatures is the next root");
            }
            _ => {}
        }
    }
    input::json::<Draft>(data)
        | input::json::<Vec<DraftView>>(data)
        | input::json::<NewRoot>(data)
        | input::json::<RootTaken>(data)
        | input::json::<Vec<AttackView>>(data)
        | input::json::<Page>(data)
}

/// The only request that this fleet's operator signed.
pub fn signed_request(audience: &Sha256) -> Request<'_> {
    Request { audience, method: "POST", path: "/v1/operator/session", body: b"{}" }
}

/// The only sign-in that the operator signed.
pub fn signed_in(fleet: &Sha256) -> SignIn {
    SignIn::make(&key(OPERATOR), fleet, key(MACHINE).public(), NOW, 3600).expect("a signature")
}

/// The first byte selects the header.
pub fn headers(data: &[u8]) -> bool {
    let Some((which, value)) = data.split_first() else { return false };
    let header = |name: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert(HeaderName::from_static(name), HeaderValue::from_bytes(value).ok()?);
        Some(headers)
    };
    match which {
        b'a' => header("authorization").and_then(|headers| readers::bearer(&headers)).is_some(),
        b'm' => header(MACHINE_SIGNATURE).is_some_and(|headers| readers::machine_signature(&headers).is_ok()),
        b'o' => {
            let read =
                header(OPERATOR_SIGNATURE).and_then(|headers| readers::operator_signature(&headers).ok());
            if let Some(signature) = &read {
                let fleet = Sha256::of(&root());
                let good = signature.verify(signed_request(&fleet)).is_ok();
                let known = signature.nonce == "09".repeat(16) && signature.at == NOW;
                assert!(
                    !good
                        || known
                            && [key(OPERATOR).public(), Security(OPERATOR).public()].contains(&signature.key),
                    "a request that nobody signed"
                );
            }
            read.is_some()
        }
        b's' => {
            let read = header(OPERATOR_SIGN_IN).and_then(|headers| readers::sign_in(&headers).ok().flatten());
            if let Some(sign_in) = &read {
                assert_eq!(sign_in.to_string().as_bytes(), value, "two texts say the same");
                if sign_in.verify(&Sha256::of(&root()), NOW).is_ok() {
                    assert_eq!(sign_in.operator, key(OPERATOR).public(), "nobody signed this one in");
                    assert_eq!(sign_in.ends - sign_in.begins, 3600);
                }
            }
            read.is_some()
        }
        b'b' => input::text(value).is_some_and(|bearer| {
            let good = check_bearer(bearer).is_ok();
            assert!(!good || bearer.split_ascii_whitespace().count() == 1, "a bearer says more than itself");
            good
        }),
        b'r' => input::text(value).and_then(retry_after).is_some_and(|wait| {
            assert!(wait.as_secs() <= 3600);
            true
        }),
        _ => false,
    }
}
