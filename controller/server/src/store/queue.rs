//! Check-ins that wait for the next transaction.

use std::collections::{HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use muster_protocol::audit::Checkpoint;
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::{PublicKey, Signature};
use tokio::sync::oneshot;

use super::alone::alone;
use super::error::StoreError;
use crate::core::change::Decided;
use crate::core::checkin::{self, CheckInRefusal, ReceivedCheckIn};
use crate::core::seals::Seals;
use crate::metrics::Running;

/// How many check-ins one transaction takes.
pub const MOST_TOGETHER: usize = 256;
/// How many bytes of check-ins may wait. Ten thousand usual ones are 20 MB; in memory each is two to three
/// times as large.
const MOST_BYTES: usize = 32 * 1024 * 1024;
/// What one counts besides its bytes.
const EACH_BYTES: usize = 512;

/// A check-in that its machine is proved to have sent.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub checkin: Box<CheckIn>,
    pub body: Bytes,
    pub body_sha256: Sha256,
    /// The key that is in force.
    pub key: PublicKey,
    /// By the newest key; `None` if a session proves it.
    pub signature: Option<Signature>,
    pub now: UnixMillis,
    pub poll_seconds: u64,
    /// The newest entry of the audit log.
    pub log: Option<Checkpoint>,
    /// Whether what it says of a plan is signed by the key that the plan has of it.
    pub vouches: bool,
    /// What seals the bearer.
    pub seals: Arc<Seals>,
}

impl Arrived {
    pub fn received(&self) -> ReceivedCheckIn<'_> {
        let Self { checkin, body, key, signature, now, poll_seconds, log, vouches, .. } = self;
        let (body_sha256, signature, vouches) = (self.body_sha256, signature.as_ref(), *vouches);
        let (now, poll_seconds, log) = (*now, *poll_seconds, *log);
        ReceivedCheckIn { checkin, body, body_sha256, key, signature, now, poll_seconds, log, vouches }
    }

    pub fn asking(&self) -> Asking<'_> {
        Asking { machine: &self.checkin.machine, key: &self.key, seq: self.checkin.seq }
    }

    pub fn decide(&self, stored: Option<&checkin::Stored>) -> Decided<Taken> {
        let decided = checkin::check_in(stored, &self.received(), &self.seals);
        // Before the commit: whoever closes the connection at once cannot keep it from being logged.
        if let Err(CheckInRefusal::Sequence { machine, seq, raised: true, .. }) = &decided.answer {
            tracing::warn!(%machine, seq, "clone alarm: a check-in with a used number");
        }
        decided
    }
}

/// A check-in was taken, or refused. A refusal may have written as well: it can raise the clone alarm.
pub type Taken = Result<CheckInReply, CheckInRefusal>;

/// What the rows of a check-in are found by.
#[derive(Debug, Clone, Copy)]
pub struct Asking<'a> {
    pub machine: &'a MachineName,
    pub key: &'a PublicKey,
    pub seq: u64,
}

/// The check-ins that wait for the next transaction.
#[derive(Debug, Default)]
pub struct Queue(Mutex<Waiting>);

#[derive(Debug, Default)]
pub struct Waiting {
    waiting: VecDeque<Waits>,
    bytes: usize,
    /// Whether a task takes them.
    pub led: bool,
}

impl Waiting {
    /// One more waits; `false` if there is no room for it. Nobody waits for the answer of one whose client
    /// has hung up, and its machine sends the same again.
    pub fn push(&mut self, one: Waits) -> bool {
        if self.bytes + one.bytes() > MOST_BYTES {
            self.waiting.retain(|one| !one.answer.is_closed());
            self.bytes = self.waiting.iter().map(Waits::bytes).sum();
        }
        let fits = self.bytes + one.bytes() <= MOST_BYTES;
        if fits {
            self.bytes += one.bytes();
            self.waiting.push_back(one);
        }
        fits
    }

    fn pop(&mut self) -> Option<Waits> {
        loop {
            let one = self.waiting.pop_front()?;
            self.bytes -= one.bytes();
            if !one.answer.is_closed() {
                return Some(one);
            }
        }
    }
}

/// One that waits, and where its answer goes.
#[derive(Debug)]
pub struct Waits {
    pub arrived: Box<Arrived>,
    pub answer: oneshot::Sender<Result<Taken, StoreError>>,
    /// It is counted for as long as it is here, even if its client has hung up.
    pub _counted: Running,
}

impl Waits {
    fn bytes(&self) -> usize {
        self.arrived.body.len() + EACH_BYTES
    }
}

impl Queue {
    pub fn with<T>(&self, work: impl FnOnce(&mut Waiting) -> T) -> T {
        alone(&self.0, work)
    }

    /// The next ones: those that go together, and those that are decided alone. `None` at the end, and then
    /// nobody leads.
    pub fn next(&self) -> Option<(Vec<Waits>, Vec<Waits>)> {
        self.with(|queue| {
            let (mut together, mut alone, mut later) = (Vec::new(), Vec::new(), VecDeque::new());
            let mut machines = HashSet::new();
            while together.len() + alone.len() < MOST_TOGETHER
                && let Some(next) = queue.pop()
            {
                // Two of one machine are decided one after the other, by what the first has changed.
                if machines.contains(&next.arrived.checkin.machine) {
                    later.push_back(next);
                    continue;
                }
                machines.insert(next.arrived.checkin.machine.clone());
                let routine = next.arrived.received().new_key().is_none();
                if routine { together.push(next) } else { alone.push(next) }
            }
            queue.bytes += later.iter().map(Waits::bytes).sum::<usize>();
            later.append(&mut queue.waiting);
            queue.waiting = later;
            queue.led = !machines.is_empty();
            queue.led.then_some((together, alone))
        })
    }
}
