//! What a controller answers, at its extremes, and what it only passes on: whatever is read is within its
//! bounds, and a request counts only if an operator signed it.

use std::time::Duration;

use muster_protocol::announce::Announcement;
use muster_protocol::api::{CHECKIN, MAX_MESSAGE_BYTES, MAX_POLL_SECONDS, Problem};
use muster_protocol::checkin::{BEARER_SECONDS, CheckInReply, MAX_BEARER_BYTES, PollReply};
use muster_protocol::enrol::EnrolReply;
use muster_protocol::ids::{MAX_NUMBER, Sha256};
use muster_protocol::operator::{FleetView, HistoryEntry, MachineView};
use muster_protocol::report::{Accepted, MAX_EVENT_NUMBER};
use muster_protocol::request::{Asked, MAX_REQUESTS, MachineRequest, SignedRequest};

use crate::input;
use crate::world::*;

/// Every unsigned reply that an agent or the CLI reads.
pub fn replies(data: &[u8]) -> bool {
    if let Ok(reply) = serde_json::from_slice::<CheckInReply>(data) {
        assert!(reply.bearer.len() <= MAX_BEARER_BYTES);
        assert!((1..=BEARER_SECONDS).contains(&reply.bearer_expires_in));
        assert!((1..=MAX_POLL_SECONDS).contains(&reply.poll_seconds));
        assert!(reply.reports_through <= MAX_EVENT_NUMBER);
        assert!(reply.requests.len() <= MAX_REQUESTS);
        assert!(reply.generation.is_none_or(|generation| generation.get() <= MAX_NUMBER));
        // How the agent uses them.
        let until = Duration::MAX.checked_sub(Duration::from_secs(reply.bearer_expires_in) * 3 / 4);
        assert!(until.is_some());
    }
    if let Ok(accepted) = serde_json::from_slice::<Accepted>(data) {
        assert!(accepted.through <= MAX_EVENT_NUMBER);
    }
    if let Ok(problem) = serde_json::from_slice::<Problem>(data) {
        assert!(problem.message.len() <= MAX_MESSAGE_BYTES);
    }
    input::json::<CheckInReply>(data)
        | input::json::<PollReply>(data)
        | input::json::<Accepted>(data)
        | input::json::<EnrolReply>(data)
        | input::json::<FleetView>(data)
        | input::json::<MachineView>(data)
        | input::json::<Vec<HistoryEntry>>(data)
        | input::json::<Problem>(data)
}

/// The only request that an operator of this fleet signed for this machine.
pub fn asked() -> SignedRequest {
    let request = MachineRequest {
        fleet: Sha256::of(&root()),
        machine: name(OWN),
        asked: Asked::RotateKey { key: key(MACHINE).public() },
        made_at: NOW,
        ends: NOW + DAY,
        nonce: "09".repeat(16),
    };
    request.sign(&key(OPERATOR)).expect("a request can be signed")
}

/// The only announcement that this machine made.
pub fn announced() -> Announcement {
    Announcement::make(&name(OWN), CHECKIN, b"{}", &key(MACHINE))
}

/// An operator's request, as a reply carries it, and the announcement of a body.
pub fn signed(data: &[u8]) -> bool {
    if let Ok(read) = serde_json::from_slice::<SignedRequest>(data) {
        let operators = [key(OPERATOR).public()];
        if read.verify(&Sha256::of(&root()), &name(OWN), &operators, NOW).is_ok() {
            assert_eq!(read, asked(), "a request that no operator signed");
        }
        // Whatever the clock says.
        for now in [i64::MIN, -1, 0, i64::MAX] {
            assert!(read.verify(&Sha256::of(&root()), &name(OWN), &operators, now).is_err());
        }
    }
    let announcement = input::text(data).and_then(|text| text.parse::<Announcement>().ok());
    if let Some(read) = &announcement {
        assert_eq!(read.to_string().parse().as_ref(), Ok(read));
        if read.verify(CHECKIN, &key(MACHINE).public()).is_ok() {
            assert_eq!(*read, announced(), "an announcement that the machine did not make");
        }
    }
    input::json::<SignedRequest>(data) | announcement.is_some()
}
