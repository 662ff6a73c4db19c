//! Everything that an impostor in the controller's place may answer.

use std::time::Duration;

use muster_protocol::api::{self, ProblemCode};
use muster_protocol::audit::Checkpoint;
use muster_protocol::checkin::{BEARER_SECONDS, CheckIn, CheckInReply, PollReply};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::{Context, PublicKey, SecretKey};
use muster_protocol::report::{Accepted, Batch, Stream};
use muster_protocol::request::{Asked, MachineRequest, SignedRequest};
use serde_json::{Value, json};

use super::dice::Dice;
use super::honest::{Answer, Honest, Request};

/// The numbers that a lie is most likely to use.
const NUMBERS: [u64; 14] = [
    0,
    1,
    2,
    3,
    60,
    601,
    4000,
    (1 << 32) + 1,
    (1 << 47) + 5,
    (1 << 48) - 1,
    1 << 48,
    (1 << 63) - 2,
    1 << 63,
    u64::MAX,
];
const CODES: [(u16, ProblemCode); 21] = [
    (400, ProblemCode::Malformed),
    (401, ProblemCode::BadSignature),
    (401, ProblemCode::Unauthorised),
    (403, ProblemCode::Revoked),
    (403, ProblemCode::WrongClass),
    (404, ProblemCode::UnknownMachine),
    (404, ProblemCode::NotFound),
    (408, ProblemCode::Busy),
    (409, ProblemCode::Sequence),
    (409, ProblemCode::EventNumbers),
    (409, ProblemCode::Conflict),
    (409, ProblemCode::Repeated),
    (410, ProblemCode::TokenUsed),
    (413, ProblemCode::TooLarge),
    (422, ProblemCode::Malformed),
    (429, ProblemCode::TooMany),
    (500, ProblemCode::Internal),
    (502, ProblemCode::Other),
    (503, ProblemCode::Busy),
    (507, ProblemCode::StorageFull),
    (302, ProblemCode::Other),
];
const WAITS: [&str; 10] =
    ["0", "1", "60", "599", "86400", "4294967296", "99999999999999999999", "-1", "soon", ""];

/// What happens to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// The honest answer.
    Honest,
    /// The honest answer, with some of its fields changed.
    Bent,
    /// The request never reaches the honest controller, and is answered with an error.
    Refused,
    /// It is processed, and an error is returned all the same.
    Denied,
    /// It is processed, and the answer breaks off.
    Cut,
    /// Something that is not an answer at all.
    Nonsense,
    /// Nobody answers.
    Silence,
    /// A success although nothing was stored.
    Invented,
    /// An earlier answer, to this or another request.
    Replayed,
}

const WAYS: [Way; 9] = [
    Way::Honest,
    Way::Bent,
    Way::Refused,
    Way::Denied,
    Way::Cut,
    Way::Nonsense,
    Way::Silence,
    Way::Invented,
    Way::Replayed,
];

/// The outcome of a request.
pub enum Comes {
    Answer(Answer),
    /// This many bytes of it, and then the connection breaks.
    Part(Answer, usize),
    /// After this long there is no connection at all.
    Nothing(Duration),
}

/// Keeps to one kind of lie for a while, and then changes it.
pub struct Liar {
    pub dice: Dice,
    manner: Vec<Way>,
    /// The error that it currently prefers.
    code: Option<(u16, ProblemCode)>,
    /// Only requests with this in their path are lied about.
    about: &'static str,
    /// Hints at generations that do not exist, and answers nonsense when asked for them.
    mocks: bool,
    /// Accepts each new key, and claims that another machine has it.
    denies_keys: bool,
    /// Passes on with each check-in what it forged once.
    hands_on: Option<SignedRequest>,
    left: u64,
    /// Every honest answer, oldest first.
    seen: Vec<(String, Answer)>,
    thief: SecretKey,
    /// The operator whose name it abuses.
    operator: Option<PublicKey>,
    /// The highest number of any report ever sent.
    sent: u64,
    /// Numbers of reports that it accepted and withheld.
    pub swallowed: Vec<u64>,
    pub answers: u64,
}

impl Liar {
    pub fn new(seed: u64) -> Self {
        Self {
            dice: Dice::new(seed),
            manner: vec![Way::Honest],
            code: None,
            about: "",
            mocks: false,
            denies_keys: false,
            hands_on: None,
            left: 0,
            seen: Vec::new(),
            thief: SecretKey::generate().unwrap(),
            operator: None,
            sent: 0,
            swallowed: Vec::new(),
            answers: 0,
        }
    }

    /// Records an honest answer.
    pub fn saw(&mut self, request: &Request, answer: &Answer) {
        if self.seen.len() < 500 && answer.status == 200 {
            self.seen.push((request.path.clone(), answer.clone()));
        }
    }

    fn change_manner(&mut self) {
        self.manner = (0..=self.dice.below(3)).map(|_| self.dice.of(&WAYS)).collect();
        if self.dice.one_in(3) {
            self.manner = WAYS.to_vec();
        }
        self.code = self.dice.one_in(2).then(|| self.dice.of(&CODES));
        self.about = self.dice.of(&["", "", "", api::CHECKIN, api::REPORTS, "/poll", "/tuf/", api::CACHE]);
        self.mocks = self.dice.one_in(4);
        self.denies_keys = self.dice.one_in(4);
        self.left = 1 + self.dice.below(60);
    }

    /// Lies about new keys, and nothing else.
    pub fn only_denies_keys(&mut self) {
        (self.denies_keys, self.left) = (true, u64::MAX);
    }

    /// Passes on one forged request, and lies about nothing else.
    pub fn only_forges(&mut self, operator: PublicKey) {
        self.operator = Some(operator);
        let signature = self.thief.sign(Context::MachineRequest, b"something else");
        self.hands_on = Some(SignedRequest { request: "forged".to_owned(), key: operator, signature });
        self.left = u64::MAX;
    }

    /// Whether a poll is held as long as the honest controller would hold it.
    pub fn holds_polls(&mut self) -> bool {
        !self.dice.one_in(3)
    }

    /// `newest` is the highest report number the machine ever used.
    pub fn answer(&mut self, honest: &mut Honest, request: &Request, now: i64, newest: u64) -> Comes {
        self.answers += 1;
        self.operator = Some(honest.operator());
        if let Some(last) = serde_json::from_slice::<Batch>(&request.body)
            .ok()
            .and_then(|batch| batch.events.last().map(|event| event.seq))
        {
            self.sent = self.sent.max(last);
        }
        if self.left == 0 {
            self.change_manner();
        }
        self.left -= 1;
        let way = match request.path.contains(self.about) {
            _ if self.mocks && request.path.contains("/tuf/") => Way::Nonsense,
            _ if self.mocks && request.path.ends_with("/poll") => Way::Bent,
            true => self.dice.of(&self.manner.clone()),
            false => Way::Honest,
        };
        let mut honestly = |liar: &mut Self| {
            let answer = honest.answer(request, now);
            liar.saw(request, &answer);
            answer
        };
        let brings =
            serde_json::from_slice::<CheckIn>(&request.body).is_ok_and(|said| said.new_key.is_some());
        let answer = match way {
            _ if self.denies_keys && brings => {
                honestly(self);
                Answer::problem(409, ProblemCode::Conflict)
            }
            Way::Honest => {
                let mut answer = honestly(self);
                let reply = serde_json::from_slice::<CheckInReply>(&answer.body);
                if let (Some(forged), api::CHECKIN, Ok(mut reply)) =
                    (&self.hands_on, request.path.as_str(), reply)
                {
                    reply.requests = vec![forged.clone()];
                    answer = Answer::json(&reply);
                }
                answer
            }
            Way::Bent => {
                let answer = honestly(self);
                self.bent(request, answer, now)
            }
            Way::Denied => {
                honestly(self);
                self.refusal()
            }
            Way::Refused => self.refusal(),
            Way::Cut => {
                let answer = honestly(self);
                let length = usize::try_from(self.dice.below(answer.body.len() as u64)).unwrap();
                return Comes::Part(answer, length);
            }
            Way::Silence => return Comes::Nothing(Duration::from_secs(self.dice.of(&[0, 1, 25, 4000]))),
            Way::Nonsense => self.nonsense(),
            Way::Invented => self.invented(request, now),
            Way::Replayed => self.replayed(request),
        };
        if way != Way::Honest {
            self.swallows(honest, request, &answer, newest);
        }
        Comes::Answer(answer)
    }

    /// Reports that it claims to have stored and did not are lost, and nobody can do anything about that.
    fn swallows(&mut self, honest: &Honest, request: &Request, answer: &Answer, newest: u64) {
        let Ok(batch) = serde_json::from_slice::<Batch>(&request.body) else { return };
        let Ok(accepted) = serde_json::from_slice::<Accepted>(&answer.body) else { return };
        if request.path != api::REPORTS || answer.status != 200 {
            return;
        }
        // Of another stream, or never sent: no machine may believe that.
        let other = accepted.stream.is_some() && accepted.stream != batch.stream;
        if other || accepted.through > self.sent.min(newest) {
            return;
        }
        let stored = |seq: u64| honest.stored.iter().any(|(_, event)| event.seq == seq);
        // Everything ever sent that still waits.
        self.swallowed.extend((batch.oldest..=accepted.through).filter(|seq| !stored(*seq)).take(4096));
    }

    fn refusal(&mut self) -> Answer {
        let (status, code) = self.code.unwrap_or_else(|| self.dice.of(&CODES));
        let mut answer = Answer::problem(status, code);
        if self.dice.one_in(2) {
            answer.retry_after = Some(self.dice.of(&WAITS).to_owned());
        }
        if self.dice.one_in(4) {
            answer.body = b"<html>\x1b[2J503".to_vec();
        }
        answer
    }

    fn nonsense(&mut self) -> Answer {
        let body = match self.dice.below(6) {
            0 => Vec::new(),
            1 => b"[".repeat(40_000),
            2 => vec![b' '; 6 << 20],
            3 => b"null".to_vec(),
            4 => b"{\"bearer\":\"a b\",\"bearer_expires_in\":60,\"poll_seconds\":1,\"reports_through\":0}"
                .to_vec(),
            _ => (0..100).map(|_| u8::try_from(self.dice.below(256)).unwrap()).collect(),
        };
        Answer { status: self.dice.of(&[200, 200, 200, 204, 206, 999]), body, retry_after: None }
    }

    fn replayed(&mut self, request: &Request) -> Answer {
        let kind = |path: &str| path.rsplit(['/', '.']).nth(1).map(str::to_owned);
        let wanted = kind(&request.path);
        let same: Vec<&Answer> =
            self.seen.iter().filter(|(path, _)| kind(path) == wanted).map(|(_, answer)| answer).collect();
        if same.is_empty() || self.dice.one_in(10) {
            let all: Vec<Answer> = self.seen.iter().map(|(_, answer)| answer.clone()).collect();
            return if all.is_empty() { self.nonsense() } else { self.dice.of(&all) };
        }
        let same: Vec<Answer> = same.into_iter().cloned().collect();
        self.dice.of(&same)
    }

    fn invented(&mut self, request: &Request, now: i64) -> Answer {
        let answer = match request.path.as_str() {
            api::CHECKIN => Answer::json(&CheckInReply {
                bearer: "invented".into(),
                bearer_expires_in: BEARER_SECONDS,
                poll_seconds: 60,
                log: Some(Checkpoint { id: self.dice.of(&NUMBERS), hash: Sha256::of(b"a lie") }),
                ..CheckInReply::default()
            }),
            api::REPORTS => match serde_json::from_slice::<Batch>(&request.body) {
                Ok(batch) => {
                    let last = batch.events.last().map_or(0, |event| event.seq);
                    Answer::json(&Accepted { through: last, stream: batch.stream })
                }
                Err(_) => self.nonsense(),
            },
            path if path.ends_with("/poll") => {
                Answer::json(&PollReply { generation: None, check_in: false, files: None })
            }
            _ => Answer { status: 200, body: b"invented".to_vec(), retry_after: None },
        };
        if self.dice.one_in(2) { self.bent(request, answer, now) } else { answer }
    }

    /// Requests that no operator signed, or that somebody signed for another machine.
    fn forged(&mut self, now: i64) -> Vec<SignedRequest> {
        let asked = Asked::RotateKey { key: self.thief.public() };
        let machine = self.dice.of(&["m", "other"]).parse().unwrap();
        let request = MachineRequest::new(Sha256::of(b"fleet"), machine, asked, now, 600).unwrap();
        let signature = self.thief.sign(Context::MachineRequest, b"something else");
        let bent = SignedRequest { request: format!("{now}"), key: self.thief.public(), signature };
        let mut forged = vec![request.sign(&self.thief).unwrap(), bent];
        // In an operator's name, which makes it an attack and not just a mistake.
        if let Some(key) = self.operator.filter(|_| self.dice.one_in(2)) {
            forged.push(SignedRequest { key, ..forged[0].clone() });
        }
        forged
    }

    /// The answer with other numbers and strings in it; files with other bytes.
    fn bent(&mut self, request: &Request, mut answer: Answer, now: i64) -> Answer {
        let Ok(Value::Object(mut reply)) = serde_json::from_slice::<Value>(&answer.body) else {
            if let Some(byte) = answer.body.first_mut() {
                *byte ^= 1;
            }
            return answer;
        };
        if reply.contains_key("signed") || request.path.contains("/targets/") {
            // A signed file: change something in the middle.
            let place = usize::try_from(self.dice.below(answer.body.len() as u64)).unwrap();
            match self.dice.below(3) {
                0 => answer.body[place] = b'0'.wrapping_add(u8::try_from(self.dice.below(10)).unwrap()),
                1 => answer.body.truncate(place),
                _ => answer.body.extend(vec![b' '; 70 * 1024]),
            }
            return answer;
        }
        for field in ["bearer_expires_in", "poll_seconds", "reports_through", "through"] {
            if reply.contains_key(field) && self.dice.one_in(2) {
                reply.insert(field.to_owned(), self.dice.of(&NUMBERS).into());
            }
        }
        if self.dice.one_in(2) {
            let generation = match self.dice.below(4) {
                0 => Value::Null,
                1 => json!("3.7"),
                2 => json!(Generation::FIRST),
                _ => self.dice.of(&NUMBERS).into(),
            };
            reply.insert("generation".into(), generation);
        }
        if request.path == api::CHECKIN {
            reply.insert("rotate_key".into(), self.dice.one_in(2).into());
            if self.dice.one_in(2) {
                let forged = self.forged(now);
                reply.insert("requests".into(), serde_json::to_value(forged).unwrap());
            }
        }
        if request.path.ends_with("/poll") {
            reply.insert("check_in".into(), self.dice.one_in(2).into());
        }
        if reply.contains_key("stream") && self.dice.one_in(2) {
            let other = match self.dice.below(3) {
                0 => Value::Null,
                1 => json!(Stream::generate().unwrap()),
                _ => json!("zz"),
            };
            reply.insert("stream".into(), other);
        }
        answer.body = serde_json::to_vec(&reply).unwrap();
        answer
    }
}
