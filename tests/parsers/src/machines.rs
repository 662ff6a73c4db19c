//! What machines and the controller send one another: enrolment, check-ins, polls and reports.

use muster_protocol::api::Problem;
use muster_protocol::checkin::{CheckIn, CheckInReply, PollReply};
use muster_protocol::enrol::{EnrolReply, EnrolRequest, Enrolling, Token};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::Context;
use muster_protocol::machine::Class;
use muster_protocol::report::{Accepted, Batch, Event, MAX_BATCH_EVENTS};
use muster_server::http::readers::{Numbered, RawBatch};

use crate::input;
use crate::world::*;

/// The only token that the fleet issued.
pub fn token() -> Token {
    Token {
        url: "https://muster.example:8443".into(),
        machine: name(OWN),
        class: Class::Nixos,
        fleet: Sha256::of(&root()),
        root: Sha256::of(&root()),
        root_version: 1,
        lowest_generation: Generation::FIRST,
        expires: NOW + DAY,
        secret: "07".repeat(32).try_into().expect("a secret"),
        tls_ca: None,
    }
}

/// The only request made with it.
pub fn request() -> EnrolRequest {
    let enrolling = Enrolling {
        system: "x86_64-linux".parse().expect("a system"),
        age: "age1npsd7vudzd3sxvtlf0all7slplcxmme43tkasahkwsqcgn6saydqj9sepa".into(),
        agent: "0.1.0".into(),
    };
    EnrolRequest::make(&token(), &key(MACHINE), enrolling)
}

/// The token, the request made with it, the reply to it.
pub fn enrolment(data: &[u8]) -> bool {
    let token_read = input::text(data).and_then(|text| Token::decode(text).ok()).is_some_and(|read| {
        let again = Token::decode(&read.encode().expect("a token can be written"));
        assert!(again.expect("what was written can be read") == read);
        true
    });
    if let Ok(sent) = serde_json::from_slice::<EnrolRequest>(data)
        && sent.verify(&token().secret.check_key()).is_ok()
    {
        assert_eq!(sent, request(), "a request that nobody with the token made");
    }
    token_read | input::json::<EnrolRequest>(data) | input::json::<EnrolReply>(data)
}

/// A machine's check-in, and every answer that the controller may give to it and to a poll.
pub fn check_in(data: &[u8]) -> bool {
    input::json::<CheckIn>(data)
        | input::json::<CheckInReply>(data)
        | input::json::<PollReply>(data)
        | input::json::<Problem>(data)
}

/// A batch of events as the controller reads it, and as programs of this version read it again later.
pub fn reports(data: &[u8]) -> bool {
    let accepted = input::json::<Accepted>(data);
    let Ok(batch) = serde_json::from_slice::<RawBatch>(data) else {
        assert!(
            serde_json::from_slice::<Batch>(data).is_err(),
            "the controller reads less than a machine may send"
        );
        return accepted;
    };
    let signature = key(MACHINE).sign(Context::Reports, data);
    assert!(key(MACHINE).public().verify(Context::CheckIn, data, &signature).is_err());
    let mut numbered = true;
    for raw in batch.events.iter().take(MAX_BATCH_EVENTS) {
        let head = serde_json::from_str::<Numbered>(raw.get());
        if let Ok(event) = serde_json::from_str::<Event>(raw.get()) {
            let head = head.as_ref().expect("an event has a number");
            assert_eq!((head.seq, head.generation), (event.seq, event.generation));
        }
        numbered &= head.is_ok();
    }
    numbered
}
