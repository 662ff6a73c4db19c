//! What programs of an earlier version sent one another: today's types read it and lose nothing of it.

use std::fs;
use std::path::Path;

use muster_protocol::api::{self, Problem};
use muster_protocol::audit::Page;
use muster_protocol::checkin::{CheckIn, CheckInReply, PollReply};
use muster_protocol::draft::DraftView;
use muster_protocol::enrol::{EnrolReply, EnrolRequest};
use muster_protocol::operator::{
    AddMachine, AttackView, Changes, FleetView, HistoryEntry, MachineView, NewRoot, Publication,
    RequestSignature, RootTaken, Session,
};
use muster_protocol::report::{Accepted, Batch};
use muster_protocol::request::SignedRequest;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

#[derive(Deserialize)]
struct Exchange {
    method: String,
    path: String,
    headers: std::collections::BTreeMap<String, String>,
    body: String,
    status: u16,
    reply: String,
}

/// Whether everything in the document is in what today's type makes of it. Fields may be new there.
fn keeps<T: DeserializeOwned + Serialize>(document: &str) {
    fn within(part: &Value, whole: &Value) -> bool {
        match (part, whole) {
            (Value::Object(part), Value::Object(whole)) => part.iter().all(|(name, value)| {
                // A field that is not written where it says nothing.
                whole.get(name).map_or(value.is_null(), |other| within(value, other))
            }),
            (Value::Array(part), Value::Array(whole)) => {
                part.len() == whole.len() && part.iter().zip(whole).all(|(part, whole)| within(part, whole))
            }
            _ => part == whole,
        }
    }
    let kind = std::any::type_name::<T>();
    let read: T = serde_json::from_str(document).unwrap_or_else(|why| panic!("{kind}: {why}: {document}"));
    let (before, after) = (serde_json::from_str(document).unwrap(), serde_json::to_value(&read).unwrap());
    assert!(within(&before, &after), "{kind}:\n{before}\n{after}");
}

/// Checks one exchange; false where it is no JSON of the API (TUF files have tests of their own).
fn check(exchange: &Exchange) -> bool {
    if let Some(signature) = exchange.headers.get(api::OPERATOR_SIGNATURE) {
        keeps::<RequestSignature>(signature);
    }
    let path = exchange.path.split('?').next().unwrap();
    if exchange.status != 200 {
        keeps::<Problem>(&exchange.reply);
        return true;
    }
    let (body, reply) = (exchange.body.as_str(), exchange.reply.as_str());
    let last = path.rsplit('/').next().unwrap();
    match (exchange.method.as_str(), path, last) {
        ("GET", api::FLEET, _) => keeps::<FleetView>(reply),
        ("POST", api::ENROL, _) => {
            keeps::<EnrolRequest>(body);
            keeps::<EnrolReply>(reply);
        }
        ("POST", api::CHECKIN, _) => {
            keeps::<CheckIn>(body);
            keeps::<CheckInReply>(reply);
        }
        ("POST", api::REPORTS, _) => {
            keeps::<Batch>(body);
            keeps::<Accepted>(reply);
        }
        ("POST", api::OPERATOR_SESSION, _) => keeps::<Session>(reply),
        ("POST", api::OPERATOR_MACHINES, _) => {
            keeps::<AddMachine>(body);
            keeps::<MachineView>(reply);
        }
        ("GET", api::OPERATOR_MACHINES, _) => keeps::<Vec<MachineView>>(reply),
        ("GET", api::OPERATOR_CHANGES, _) => keeps::<Changes>(reply),
        ("GET", api::OPERATOR_AUDIT, _) => keeps::<Page>(reply),
        ("GET", api::OPERATOR_DRAFTS, _) => keeps::<Vec<DraftView>>(reply),
        ("POST", api::OPERATOR_ROOT, _) => {
            keeps::<NewRoot>(body);
            keeps::<RootTaken>(reply);
        }
        ("GET", _, "poll") => keeps::<PollReply>(reply),
        ("GET", _, "history") => keeps::<Vec<HistoryEntry>>(reply),
        ("GET", _, "attacks") => keeps::<Vec<AttackView>>(reply),
        ("POST", _, "generations") => {
            keeps::<Publication>(body);
            keeps::<MachineView>(reply);
        }
        ("POST", _, "requests") => keeps::<SignedRequest>(body),
        ("GET", _, _) if path.starts_with(api::OPERATOR_MACHINES) => keeps::<MachineView>(reply),
        _ => return false,
    }
    true
}

#[test]
fn what_version_0_1_0_sent_is_read_and_nothing_of_it_is_lost() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures/0.1.0/exchanges.jsonl");
    let text = fs::read_to_string(file).unwrap();
    let checked = text.lines().filter(|line| check(&serde_json::from_str(line).unwrap())).count();
    assert!(checked >= 80, "{checked} of {}", text.lines().count());
}
