//! Check-ins: the sequence rule, the machine's state, its new key, and its bearer.

use std::hash::{DefaultHasher, Hasher as _};

use muster_protocol::audit::Checkpoint;
use muster_protocol::checkin::{BEARER_SECONDS, CheckIn, CheckInReply};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Sha256, to_hex};
use muster_protocol::keys::{PublicKey, Signature};
use muster_protocol::machine::Class;
use muster_protocol::request::MAX_REQUESTS;
use muster_protocol::session::SessionOffer;

use super::audit::NewEntry;
use super::change::{Change, CheckedIn, Decided};
use super::rollouts::{self, Said, Turn};
use super::rows::{EarlierCheckIn, Grant, Granted, LastCheckIn, NUMBERS_END, Request};
use super::seals::{Claims, Seals, SessionClaims};

/// How many new keys a machine may bring within a day without being asked to.
pub const KEYS_A_DAY: usize = 8;
pub const DAY_MS: i64 = 86_400_000;
/// The audit action for a new key.
pub const KEY_ROTATED: &str = "key-rotated";
/// How many check-ins before the last one are remembered.
const EARLIER: usize = 16;

/// How long a machine that says the same again is no news, in milliseconds.
const SAME_NEWS_MS: i64 = 60_000;

/// A check-in that its machine is proved to have sent.
#[derive(Debug, Clone, Copy)]
pub struct ReceivedCheckIn<'a> {
    pub checkin: &'a CheckIn,
    /// The bytes that were signed.
    pub body: &'a [u8],
    pub body_sha256: Sha256,
    pub key: &'a PublicKey,
    /// By the newest key: the new one, if the check-in brings one. `None` if a session proves it.
    pub signature: Option<&'a Signature>,
    pub now: UnixMillis,
    pub poll_seconds: u64,
    /// The newest entry of the audit log, for the machine to carry.
    pub log: Option<Checkpoint>,
    /// Whether what it says of a plan is signed by the key that the plan has of it.
    pub vouches: bool,
}

impl<'a> ReceivedCheckIn<'a> {
    /// The key that replaces the machine's current one.
    pub fn new_key(&self) -> Option<&'a PublicKey> {
        self.checkin.new_key.as_ref().filter(|new| *new != self.key)
    }
}

/// What is stored of a machine that is enrolled with the check-in's key.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Stored {
    /// Which of its lives the machine is in, and how often its bearers have been ended.
    pub enrolment: u64,
    pub counter: u64,
    /// The number of its last check-in.
    pub seq: u64,
    pub last: Option<LastCheckIn>,
    /// The check-ins before that, oldest first.
    pub earlier: Vec<EarlierCheckIn>,
    pub reports_through: u64,
    pub published: Option<Generation>,
    pub key_rotation_asked: bool,
    pub clone_alarm: bool,
    /// Whether an attack that it reported is ongoing.
    pub attack_open: bool,
    /// The requests waiting for it, in order of expiry.
    pub requests: Vec<Request>,
    /// Read only if the check-in brings a new key.
    pub rotation: Rotation,
    /// Where it is in the rollout of its latest generation.
    pub turn: Option<Box<Turn>>,
    /// What it last said of a plan and is stored.
    pub vouched: Option<Sha256>,
}

impl Stored {
    /// Whether nothing else is going on with the machine.
    pub fn is_routine(&self) -> bool {
        let waits = self.key_rotation_asked || self.clone_alarm || self.attack_open;
        !waits && self.requests.is_empty()
    }

    /// What is stored once this check-in and nothing else was. It is not for the same check-in again, since
    /// the reply is left out.
    pub fn after(self, checked_in: &CheckedIn) -> Self {
        let CheckedIn { seq, body, grant, ref earlier, vouched, .. } = *checked_in;
        let last = Some(LastCheckIn { body, granted: Granted::Sealed(grant), reply: None });
        Self { seq, last, earlier: earlier.clone(), vouched, ..self }
    }
}

#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rotation {
    /// Whether another machine has the new key.
    pub taken: bool,
    /// When its keys of the last day were logged, newest first: at most [`KEYS_A_DAY`].
    pub today: Vec<UnixMillis>,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckInRefusal {
    #[error(
        "this check-in is for fleet {}, and this controller serves {}: enrol the machine with a token of \
            this fleet",
        audience.short(),
        fleet.short()
    )]
    OtherFleet { audience: Sha256, fleet: Sha256 },
    #[error(
        "{machine} is enrolled as a {enrolled} machine and says that it is {reported}: enrol it anew with \
            --class {reported}"
    )]
    WrongClass { machine: MachineName, enrolled: Class, reported: Class },
    /// Its key was replaced or revoked in the meantime.
    #[error("machine {0} is not enrolled with this key: enrol it with a token of `muster machines add {0}`")]
    NotEnrolled(MachineName),
    #[error(
        "check-in {seq} of {machine} is not newer than {last}: somebody else holds this machine's key, or \
            its state was restored from a backup; enrol it again with a token of \
            `muster machines add {machine} --replace`"
    )]
    Sequence {
        machine: MachineName,
        seq: u64,
        last: u64,
        /// Whether the clone alarm was raised by this check-in, and not before.
        raised: bool,
    },
    /// It was delayed: the machine has already had its reply, and the reply to a later check-in.
    #[error("check-in {seq} of {machine} was already answered, and so were later ones")]
    Repeated { machine: MachineName, seq: u64 },
    #[error("the sequence number {0} is out of range: enrol the machine again")]
    OutOfRange(u64),
    #[error(
        "another machine has the new key of {0}: remove next-machine.pem from its state and let it make \
            another"
    )]
    KeyTaken(MachineName),
    #[error(
        "machine {machine} has changed its key {KEYS_A_DAY} times within a day: it may do so again in {}, or \
            at once if an operator asks for it with `muster machines rotate-key {machine}`",
        muster_protocol::moment::span(i64::try_from(*wait_seconds).unwrap_or(i64::MAX))
    )]
    TooManyKeys { machine: MachineName, wait_seconds: u64 },
    #[error("the controller's database holds a cached reply that it cannot read: restore a backup")]
    CachedReply,
}

/// Refuses a check-in for another fleet, or of another class than the machine is enrolled as.
pub fn require_own(checkin: &CheckIn, fleet: Sha256, enrolled: Class) -> Result<(), CheckInRefusal> {
    if checkin.audience != fleet {
        return Err(CheckInRefusal::OtherFleet { audience: checkin.audience, fleet });
    }
    if checkin.class != enrolled {
        let (machine, reported) = (checkin.machine.clone(), checkin.class);
        return Err(CheckInRefusal::WrongClass { machine, enrolled, reported });
    }
    Ok(())
}

/// Refuses a number that no count of check-ins reaches.
pub fn require_range(seq: u64) -> Result<(), CheckInRefusal> {
    if seq < NUMBERS_END { Ok(()) } else { Err(CheckInRefusal::OutOfRange(seq)) }
}

/// Decides a check-in. The clone alarm is a refusal that writes.
pub fn check_in(
    stored: Option<&Stored>,
    received: &ReceivedCheckIn<'_>,
    seals: &Seals,
) -> Decided<Result<CheckInReply, CheckInRefusal>> {
    match decide(stored, received, seals) {
        Ok(decided) => decided,
        Err(refusal) => Decided::unchanged(Err(refusal)),
    }
}

fn decide(
    stored: Option<&Stored>,
    received: &ReceivedCheckIn<'_>,
    seals: &Seals,
) -> Result<Decided<Result<CheckInReply, CheckInRefusal>>, CheckInRefusal> {
    let (checkin, now) = (received.checkin, received.now);
    let (machine, seq) = (&checkin.machine, checkin.seq);
    require_range(seq)?;
    let stored = stored.ok_or_else(|| CheckInRefusal::NotEnrolled(machine.clone()))?;
    let body = received.body_sha256;
    if seq <= stored.seq {
        let last = stored.last.as_ref().filter(|last| seq == stored.seq && last.body == body);
        if let Some(last) = last {
            return Ok(Decided::unchanged(Ok(repeated(stored, last, received, seals)?)));
        }
        if stored.earlier.contains(&EarlierCheckIn { seq, body: beginning(&body) }) {
            return Err(CheckInRefusal::Repeated { machine: machine.clone(), seq });
        }
        return Ok(alarm(stored, received));
    }
    let requests = Handing::of(&stored.requests, checkin, now);
    let reply = CheckInReply {
        rollout: stored.turn.as_ref().map(|turn| turn.leave(now)),
        bearer: String::new(),
        bearer_expires_in: BEARER_SECONDS,
        generation: stored.published,
        poll_seconds: received.poll_seconds,
        reports_through: stored.reports_through,
        rotate_key: stored.key_rotation_asked && checkin.new_key.is_none(),
        requests: requests.documents(),
        log: received.log,
        session: None,
    };
    let grant = granted(seals, now);
    let mut changes = requests.changes(machine);
    let vouch = checkin.vouch.as_ref().filter(|_| received.vouches);
    let vouched = vouch.map(rollouts::mark).or(stored.vouched);
    if let Some(vouch) = vouch.filter(|_| vouched != stored.vouched) {
        changes.push(Change::Said(Said { machine: machine.clone(), vouch: vouch.clone() }));
    }
    changes.push(Change::CheckedIn(Box::new(CheckedIn {
        machine: machine.clone(),
        seq,
        observed: String::from_utf8_lossy(received.body).into(),
        body,
        grant,
        reply: reply.clone(),
        agent: checkin.agent.clone(),
        at: now,
        clock_skew_ms: checkin.clock.saturating_sub(now),
        earlier: with_last(stored),
        told: told(checkin),
        vouched,
        turn: stored.turn.as_ref().map(|turn| (turn.at.plan, counts(checkin))),
    })));
    let mut counter = stored.counter;
    if let Some(new) = received.new_key() {
        changes.extend(rotate(stored, &requests, checkin, new, now)?);
        // The bearer of this very check-in is the new key's first.
        counter += 1;
    }
    if checkin.refused.is_none() && stored.attack_open {
        changes.push(Change::AttacksEnded { machine: machine.clone(), at: now });
    }
    changes.push(Change::MachineChanged { machine: machine.clone() });
    let sealed = Sealed { checkin, enrolment: stored.enrolment, counter, grant, seals };
    Ok(Decided { changes, answer: Ok(sealed.reply(reply)) })
}

fn granted(seals: &Seals, now: UnixMillis) -> Grant {
    let expires = now.div_euclid(1000).saturating_add_unsigned(BEARER_SECONDS);
    Grant { key: seals.newest(), expires }
}

/// What a check-in tells operators, as a number that is the same as long as a machine says the same: all but
/// its own number and its time.
pub fn told(checkin: &CheckIn) -> u64 {
    let CheckIn { system, boot_id, agent, runs, holds, phase, phase_generation, note, refused, .. } = checkin;
    let told = (system, boot_id, agent, runs, holds, phase, phase_generation, note, refused);
    let (mut text, mut hasher) = (Vec::with_capacity(1024), DefaultHasher::new());
    // Serialising what was parsed from JSON never fails.
    let rollout = (&checkin.understands, &checkin.signing, &checkin.awaits, &checkin.vouch);
    let _ =
        serde_json::to_writer(&mut text, &(told, &checkin.health, &checkin.age, &checkin.followed, rollout));
    hasher.write(&text);
    hasher.finish()
}

/// What counts in a rollout, as a number that is the same as long as a machine says the same.
fn counts(checkin: &CheckIn) -> u64 {
    let CheckIn { runs, phase, phase_generation, note, awaits, vouch, .. } = checkin;
    let (mut text, mut hasher) = (Vec::with_capacity(512), DefaultHasher::new());
    // Serialising what was parsed from JSON never fails.
    let said = (runs, phase, phase_generation, note, awaits, vouch, &checkin.health.degraded);
    let _ = serde_json::to_writer(&mut text, &said);
    hasher.write(&text);
    hasher.finish()
}

/// Whether operators who follow the fleet are told of a check-in that changed nothing but when the machine
/// was seen: what it tells and when, now and the last time.
pub fn is_news(now: (u64, UnixMillis), before: Option<(u64, UnixMillis)>) -> bool {
    before.is_none_or(|(told, at)| told != now.0 || !(0..SAME_NEWS_MS).contains(&now.1.saturating_sub(at)))
}

/// The requests that the reply carries, and those to remove.
struct Handing<'a> {
    kept: Vec<&'a Request>,
    gone: Vec<Sha256>,
}

impl<'a> Handing<'a> {
    /// Requests that the machine says it has followed are removed. So are expired ones: otherwise they would
    /// make the machine check in again and again.
    fn of(requests: &'a [Request], checkin: &CheckIn, now: UnixMillis) -> Self {
        let goes = |request: &Request| {
            request.ends <= now.div_euclid(1000) || checkin.followed.contains(&request.id)
        };
        let (gone, kept): (Vec<_>, Vec<_>) = requests.iter().partition(|request| goes(request));
        Self { kept, gone: gone.into_iter().map(|request| request.id).collect() }
    }

    fn handed(&self) -> impl Iterator<Item = &'a Request> {
        self.kept.iter().copied().take(MAX_REQUESTS)
    }

    fn documents(&self) -> Vec<muster_protocol::request::SignedRequest> {
        self.handed().filter_map(|request| request.document.clone()).collect()
    }

    fn changes(&self, machine: &MachineName) -> Vec<Change> {
        let mut changes = Vec::new();
        if !self.gone.is_empty() {
            changes.push(Change::RequestsDropped { machine: machine.clone(), ids: self.gone.clone() });
        }
        if self.handed().any(|request| !request.handed_on) {
            changes.push(Change::RequestsHandedOn { machine: machine.clone() });
        }
        changes
    }
}

/// Replaces the old key with the new one; bearers issued for the old key are revoked. Each new key is an
/// entry in the audit log, which cannot be shortened: so a machine may change its key only a few times a day
/// on its own.
fn rotate(
    stored: &Stored,
    requests: &Handing<'_>,
    checkin: &CheckIn,
    new: &PublicKey,
    now: UnixMillis,
) -> Result<Vec<Change>, CheckInRefusal> {
    let machine = &checkin.machine;
    if let Some(oldest) = stored.rotation.today.get(KEYS_A_DAY - 1)
        && !stored.key_rotation_asked
    {
        let wait = oldest.saturating_add(DAY_MS).saturating_sub(now);
        let wait_seconds = u64::try_from(wait).unwrap_or(0).div_ceil(1000);
        return Err(CheckInRefusal::TooManyKeys { machine: machine.clone(), wait_seconds });
    }
    if stored.rotation.taken {
        return Err(CheckInRefusal::KeyTaken(machine.clone()));
    }
    let mut changes = vec![
        Change::KeyReplaced { machine: machine.clone(), key: *new, at: now },
        Change::BearersEnded { machine: machine.clone() },
    ];
    // A request for a new key is void once the key has changed.
    let void = |request: &&&Request| request.asks == "rotate-key";
    let ids: Vec<Sha256> = requests.kept.iter().filter(void).map(|request| request.id).collect();
    if !ids.is_empty() {
        changes.push(Change::RequestsDropped { machine: machine.clone(), ids });
    }
    let detail = format!("to key {}", new.short());
    changes.push(Change::Audited(NewEntry::by_itself(now, KEY_ROTATED, detail).on(machine)));
    Ok(changes)
}

/// Two machines hold the key, or one of them is a restored backup: logged once per alarm, however often the
/// machine repeats it.
fn alarm(stored: &Stored, received: &ReceivedCheckIn<'_>) -> Decided<Result<CheckInReply, CheckInRefusal>> {
    let (machine, seq, at) = (&received.checkin.machine, received.checkin.seq, received.now);
    let mut changes = Vec::new();
    if !stored.clone_alarm {
        let detail = format!("check-in {seq} came again, or too late");
        changes.push(Change::CloneAlarm { machine: machine.clone(), at });
        changes.push(Change::Audited(NewEntry::by_itself(at, "clone-alarm", detail).on(machine)));
    }
    changes.push(Change::MachineChanged { machine: machine.clone() });
    let (machine, raised) = (machine.clone(), !stored.clone_alarm);
    Decided { changes, answer: Err(CheckInRefusal::Sequence { machine, seq, last: stored.seq, raised }) }
}

fn beginning(body: &Sha256) -> [u8; 16] {
    let mut beginning = [0; 16];
    beginning.iter_mut().zip(body.as_bytes()).for_each(|(to, from)| *to = *from);
    beginning
}

/// The earlier check-ins, with the last one added.
fn with_last(stored: &Stored) -> Vec<EarlierCheckIn> {
    let last = stored.last.as_ref();
    let last = last.map(|last| EarlierCheckIn { seq: stored.seq, body: beginning(&last.body) });
    let known = stored.earlier.len() + usize::from(last.is_some());
    stored.earlier.iter().copied().chain(last).skip(known.saturating_sub(EARLIER)).collect()
}

/// The reply to the last check-in, unchanged but for its leave, of which only what is left now is told. Its
/// bearer is made again from its end and the key that sealed it. Only a restored backup has raised the
/// counter since: otherwise there would be no last check-in.
fn repeated(
    stored: &Stored,
    last: &LastCheckIn,
    received: &ReceivedCheckIn<'_>,
    seals: &Seals,
) -> Result<CheckInReply, CheckInRefusal> {
    let rollout = stored.turn.as_ref().map(|turn| turn.leave(received.now));
    let reply = CheckInReply { rollout, ..last.reply.clone().ok_or(CheckInRefusal::CachedReply)? };
    let grant = match last.granted {
        Granted::Sealed(grant) => grant,
        Granted::Salted(salt) => {
            let signature = received.signature.ok_or(CheckInRefusal::CachedReply)?;
            return Ok(CheckInReply { bearer: bearer_of_0_1(&salt, signature), ..reply });
        }
    };
    let Stored { enrolment, counter, .. } = *stored;
    Ok(Sealed { checkin: received.checkin, enrolment, counter, grant, seals }.reply(reply))
}

/// Version 0.1 stored the bearer's hash, and derived it from a salt and the signature.
fn bearer_of_0_1(salt: &[u8; 32], signature: &Signature) -> String {
    to_hex(Sha256::of(&[b"muster-bearer-v1\0".as_slice(), salt, signature.as_bytes()].concat()).as_bytes())
}

/// What a reply hands out and nothing in the store reveals. It is made again when the check-in is repeated.
struct Sealed<'a> {
    checkin: &'a CheckIn,
    enrolment: u64,
    counter: u64,
    grant: Grant,
    seals: &'a Seals,
}

impl Sealed<'_> {
    fn reply(&self, reply: CheckInReply) -> CheckInReply {
        CheckInReply { bearer: self.bearer(), session: self.session(), ..reply }
    }

    fn bearer(&self) -> String {
        let Self { checkin, enrolment, counter, grant, seals } = *self;
        let (machine, seq, expires) = (checkin.machine.clone(), checkin.seq, grant.expires);
        seals.bearer(grant.key, &Claims { machine, enrolment, counter, seq, expires })
    }

    fn session(&self) -> Option<SessionOffer> {
        let Self { checkin, enrolment, counter, grant, seals } = *self;
        let (machine, expires, key) = (checkin.machine.clone(), grant.expires, checkin.session?);
        let token = seals.session(grant.key, &SessionClaims { machine, enrolment, counter, expires, key });
        Some(SessionOffer { key: seals.exchange(), token, expires_in: BEARER_SECONDS })
    }
}

#[cfg(test)]
pub(crate) mod tests;
