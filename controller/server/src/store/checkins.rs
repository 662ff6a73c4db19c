//! Check-ins. Those that wait at the same time are taken in one transaction: one statement reads what is
//! stored of all of them, one writes what they bring, and one commit makes them durable before any of them is
//! answered.

use std::collections::{HashSet, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use muster_protocol::checkin::{CheckIn, CheckInReply};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{MachineName, Sha256};
use muster_protocol::keys::{PublicKey, Signature};
use tokio::sync::oneshot;

use super::known::Effects;
use super::{Failed, Store, StoreError};
use crate::core::change::Decided;
use crate::core::checkin::{self, CheckInRefusal, ReceivedCheckIn};
use crate::core::seals::Seals;
use crate::metrics::{COUNTED, Call};

/// How many check-ins one transaction takes.
pub const MOST_TOGETHER: usize = 256;

/// A check-in that its machine is proved to have sent.
#[derive(Debug, Clone)]
pub struct Arrived {
    pub checkin: CheckIn,
    pub body: Bytes,
    pub body_sha256: Sha256,
    /// The key that is in force.
    pub key: PublicKey,
    /// By the newest key; `None` if a session proves it.
    pub signature: Option<Signature>,
    pub now: UnixMillis,
    pub poll_seconds: u64,
    /// What seals the bearer.
    pub seals: Arc<Seals>,
}

impl Arrived {
    fn received(&self) -> ReceivedCheckIn<'_> {
        let Self { checkin, body, body_sha256, key, signature, now, poll_seconds, seals: _ } = self;
        let (body_sha256, signature) = (*body_sha256, signature.as_ref());
        let (now, poll_seconds) = (*now, *poll_seconds);
        ReceivedCheckIn { checkin, body, body_sha256, key, signature, now, poll_seconds }
    }

    fn asking(&self) -> Asking<'_> {
        Asking { machine: &self.checkin.machine, key: &self.key, seq: self.checkin.seq }
    }

    fn decide(&self, stored: Option<&checkin::Stored>) -> Decided<Taken> {
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
struct Waiting {
    waiting: VecDeque<Waits>,
    /// Whether a task takes them.
    led: bool,
}

#[derive(Debug)]
struct Waits {
    arrived: Arrived,
    answer: oneshot::Sender<Result<Taken, StoreError>>,
}

impl Queue {
    fn with<T>(&self, work: impl FnOnce(&mut Waiting) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The next ones: those that go together, and those that are decided alone. `None` at the end, and then
    /// nobody leads.
    fn next(&self) -> Option<(Vec<Waits>, Vec<Waits>)> {
        self.with(|queue| {
            let (mut together, mut alone, mut later) = (Vec::new(), Vec::new(), VecDeque::new());
            let mut machines = HashSet::new();
            while together.len() + alone.len() < MOST_TOGETHER
                && let Some(next) = queue.waiting.pop_front()
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
            later.append(&mut queue.waiting);
            queue.waiting = later;
            queue.led = !machines.is_empty();
            queue.led.then_some((together, alone))
        })
    }
}

/// Whoever takes the check-ins that wait. Where it ends early, those that wait are told to come again.
struct Leader {
    store: Store,
    /// Nobody waited any more, and another one may lead by now.
    ended: bool,
}

impl Drop for Leader {
    fn drop(&mut self) {
        if !self.ended {
            self.store.queue.with(|queue| *queue = Waiting::default());
        }
    }
}

impl Leader {
    async fn lead(mut self) {
        while let Some((together, alone)) = self.store.queue.next() {
            self.store.take_together(together).await;
            for one in alone {
                self.store.take_alone(one).await;
            }
        }
        self.ended = true;
    }
}

impl Store {
    /// Takes a check-in; it is durable once this returns.
    pub async fn check_in(&self, arrived: Arrived) -> Result<Taken, StoreError> {
        // Before waiting for the one connection that writes.
        if let Err(refusal) = checkin::require_range(arrived.checkin.seq) {
            return Ok(Err(refusal));
        }
        let _queued = COUNTED.writer_queue.running();
        let (answer, answered) = oneshot::channel();
        let led = self.queue.with(|queue| {
            queue.waiting.push_back(Waits { arrived, answer });
            std::mem::replace(&mut queue.led, true)
        });
        if !led {
            // A task of its own: a client that hangs up ends its own request, and not everybody's.
            tokio::spawn(Leader { store: self.clone(), ended: false }.lead());
        }
        answered.await.unwrap_or(Err(StoreError::Busy))
    }

    async fn take_together(&self, together: Vec<Waits>) {
        if together.is_empty() {
            return;
        }
        match COUNTED.call(Call::Write, self.commit_together(&together)).await {
            Ok(taken) => {
                for (one, taken) in together.into_iter().zip(taken) {
                    let _ = one.answer.send(taken);
                }
            }
            // The next ones would meet the same disk.
            Err(StoreError::Full) => {
                for one in together {
                    let _ = one.answer.send(Err(StoreError::Full));
                }
            }
            Err(_) => {
                for one in together {
                    self.take_alone(one).await;
                }
            }
        }
    }

    /// All of them in one transaction: each is committed and has its answer, or none of them is.
    async fn commit_together(
        &self,
        together: &[Waits],
    ) -> Result<Vec<Result<Taken, StoreError>>, StoreError> {
        let asked: Vec<Asking<'_>> = together.iter().map(|one| one.arrived.asking()).collect();
        let mut transaction = self.database.begin().await?;
        let stored = transaction.check_ins(&asked).await?;
        let mut changes = Vec::with_capacity(together.len() * 2);
        let mut answers = Vec::with_capacity(together.len());
        for (one, stored) in together.iter().zip(stored) {
            answers.push(stored.map(|stored| {
                let decided = one.arrived.decide(stored.as_ref());
                changes.extend(decided.changes);
                decided.answer
            }));
        }
        if !changes.is_empty() {
            transaction.apply(&changes).await?;
            self.commit(transaction, Effects::of(&changes)).await?;
            COUNTED.groups.add(together.len() as u64);
        }
        Ok(answers)
    }

    async fn take_alone(&self, one: Waits) {
        let Waits { arrived, answer } = one;
        let _ = answer.send(self.commit_alone(&arrived).await);
    }

    async fn commit_alone(&self, arrived: &Arrived) -> Result<Taken, StoreError> {
        let received = arrived.received();
        let asking = arrived.asking();
        let decided = self.decide(
            |mut transaction| async move {
                let stored = transaction.check_in(&asking, received.new_key(), received.now).await?;
                Ok((transaction, stored))
            },
            |stored| Ok::<_, Infallible>(arrived.decide(stored.as_ref())),
        );
        decided.await.map(|committed| committed.answer).map_err(Failed::into_store)
    }
}
