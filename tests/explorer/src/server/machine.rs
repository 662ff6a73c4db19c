//! A machine, as far as its controller deals with it: what its disk holds, and how it takes answers.

use muster_agent::core::answers::{Numbers, ends_check_in, numbers};
use muster_protocol::api::ProblemCode;
use muster_protocol::checkin::{CheckIn, CheckInReply, Holds};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::report::{Event, EventKind};
use muster_protocol::request::Asked;
use muster_server::core::checkin::CheckInRefusal;
use muster_server::core::reports::{NewEvent, ReportRefusal};

use super::cast::{Cast, OPERATORS, START_S};

/// The copies that a cloned machine and its clone are from then on.
pub const CLONES: u8 = 8;

/// What an operator signs: for which machine, which number, of which class.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Content {
    pub machine: u8,
    pub generation: Generation,
    pub darwin: bool,
    /// Two of one number differ in it.
    pub variant: u8,
}

/// What a computer has on its disk.
#[derive(Debug, Clone, Hash)]
pub struct Machine {
    /// Its name, and which of its copies it is.
    pub name: u8,
    pub copy: u8,
    pub key: u8,
    /// The token that it still has to enrol by.
    pub token: Option<u8>,
    /// The last number of a check-in.
    pub seq: u64,
    /// The check-in that has no answer yet.
    pub unanswered: Option<Said>,
    pub held: Option<Content>,
    /// The version of the timestamp that it trusts.
    pub timestamp: u64,
    /// Events that wait: their numbers, and what they are.
    pub waiting: Vec<(u64, u8)>,
    pub last: u64,
    pub stream: u8,
    /// The highest number that was sent.
    pub sent: u64,
    pub next_key: Option<u8>,
    pub followed: Vec<Sha256>,
}

/// A check-in, as it is sent again byte by byte.
#[derive(Debug, Clone, Hash)]
pub struct Said {
    pub by: u8,
    pub next_key: Option<u8>,
    pub seq: u64,
    name: u8,
    copy: u8,
    held: Option<Generation>,
    followed: Vec<Sha256>,
}

/// Events, as they are sent.
#[derive(Debug, Clone, Hash)]
pub struct Sent {
    pub name: u8,
    pub by: u8,
    pub stream: u8,
    pub events: Vec<(u64, u8)>,
}

impl Machine {
    pub fn new(name: u8, copy: u8, key: u8, token: Option<u8>) -> Self {
        Self {
            name,
            copy,
            key,
            token,
            seq: 0,
            unanswered: None,
            held: None,
            timestamp: 0,
            waiting: Vec::new(),
            last: 0,
            // Drawn at random: no two are the same.
            stream: 10 * copy,
            sent: 0,
            next_key: None,
            followed: Vec::new(),
        }
    }

    /// The check-in that waits for its answer, or the next one, which is written down before it is sent.
    pub fn next_check_in(&mut self) -> Said {
        if let Some(said) = &self.unanswered {
            return said.clone();
        }
        self.seq += 1;
        let said = Said {
            by: self.key,
            next_key: self.next_key,
            seq: self.seq,
            name: self.name,
            copy: self.copy,
            held: self.held.as_ref().map(|held| held.generation),
            followed: self.followed.clone(),
        };
        self.unanswered = Some(said.clone());
        said
    }

    /// Takes the answer to a check-in.
    pub fn hear(&mut self, said: &Said, answer: &Result<CheckInReply, CheckInRefusal>, cast: &Cast) {
        let status = match answer {
            Ok(_) => 200,
            Err(CheckInRefusal::NotEnrolled(_)) => 403,
            Err(CheckInRefusal::TooManyKeys { .. }) => 429,
            Err(CheckInRefusal::CachedReply) => 500,
            Err(CheckInRefusal::OutOfRange(_)) => 400,
            Err(_) => 409,
        };
        if ends_check_in(status) {
            self.unanswered = None;
        }
        let Ok(reply) = answer else { return };
        if let Some(next) = said.next_key {
            (self.key, self.next_key) = (next, None);
        }
        let operators = OPERATORS.map(|n| cast.key(n));
        let name = &cast.names[usize::from(self.name)];
        for signed in &reply.requests {
            // Whoever has the controller can send anything: the operators' signatures count alone.
            let Ok(request) = signed.verify(&cast.fleet, name, &operators, START_S) else { continue };
            if matches!(&request.asked, Asked::RotateKey { key } if *key == cast.key(self.key)) {
                self.next_key = Some(self.key + 1);
            }
            if !self.followed.contains(&signed.id()) {
                self.followed.push(signed.id());
            }
        }
    }

    pub fn next_report(&mut self) -> Option<Sent> {
        let (last, _) = self.waiting.last()?;
        self.sent = self.sent.max(*last);
        Some(Sent { name: self.name, by: self.key, stream: self.stream, events: self.waiting.clone() })
    }

    pub fn hear_of_report(&mut self, answer: &Result<u64, ReportRefusal>) {
        let code =
            matches!(answer, Err(ReportRefusal::OutOfRange { .. })).then_some(ProblemCode::EventNumbers);
        let through = answer.as_ref().ok().copied();
        match numbers(through, code, self.last) {
            Numbers::Renamed => (self.stream, self.sent) = (self.stream % 4 + 1, 0),
            Numbers::Good => {
                let through = through.unwrap_or(0).min(self.sent);
                self.waiting.retain(|(number, _)| *number > through);
            }
        }
    }

    pub fn tell(&mut self, what: u8) {
        self.last += 1;
        self.waiting.push((self.last, what));
    }
}

impl Said {
    pub fn check_in(&self, cast: &Cast) -> Option<CheckIn> {
        let mut checkin = cast.check_in(self.name, self.seq)?;
        checkin.boot_id = self.copy.to_string();
        checkin.new_key = self.next_key.map(|key| cast.key(key));
        checkin.followed.clone_from(&self.followed);
        if let Some(held) = self.held {
            checkin.holds = Holds { epoch: held.epoch(), targets: held.get(), ..Holds::default() };
        }
        Some(checkin)
    }

    /// Which copy of a cloned machine says it, if it was said after the cloning.
    pub fn own_words(&self) -> Option<u8> {
        (self.copy >= CLONES).then_some(self.copy)
    }

    /// Whether the controller believes that it is of the machine with this key.
    pub fn is_by(&self, key: &PublicKey, cast: &Cast) -> bool {
        cast.key(self.by) == *key || self.next_key.is_some_and(|next| cast.key(next) == *key)
    }
}

impl Sent {
    pub fn events(&self) -> Vec<NewEvent> {
        let event = |(seq, what): &(u64, u8)| {
            let event =
                Event { seq: *seq, at: i64::from(*what), generation: None, kind: EventKind::Verified };
            NewEvent::new(*seq, None, serde_json::to_string(&event).unwrap_or_default())
        };
        self.events.iter().map(event).collect()
    }
}
