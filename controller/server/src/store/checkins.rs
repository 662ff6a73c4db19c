//! Check-ins. Those that wait at the same time are taken in one transaction: what is stored of them is in
//! memory, or one statement reads it; one statement writes what they bring, and one commit makes them durable
//! before any of them is answered.

use std::convert::Infallible;
use std::time::Duration;

use muster_protocol::ids::MachineName;
use tokio::sync::oneshot;

use super::facts::Fact;
use super::known::Effects;
use super::queue::{Arrived, Asking, Taken, Waiting, Waits};
use super::{Failed, Store, StoreError, Transaction};
use crate::core::change::Change;
use crate::core::checkin::{self, Stored};
use crate::metrics::{COUNTED, Call};

/// How long a check-in may wait for its commit: longer than a transaction may take, so that most hear why.
const WAIT: Duration = Duration::from_secs(30);

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
        loop {
            // Whoever is about to ask goes along.
            tokio::task::yield_now().await;
            let Some((together, alone)) = self.store.queue.next() else { break };
            self.store.take_together(together).await;
            Box::pin(self.store.take_each(alone, None)).await;
        }
        self.ended = true;
    }
}

/// What a check-in that changed nothing else leaves behind.
fn left_behind(arrived: &Arrived, stored: Stored, changes: &[Change]) -> Option<(MachineName, Fact)> {
    let [Change::CheckedIn(checked_in), Change::MachineChanged { .. }] = changes else { return None };
    Some((checked_in.machine.clone(), Fact::of(&arrived.key, stored.after(checked_in))?))
}

impl Store {
    /// Takes a check-in; it is durable once this returns.
    pub async fn check_in(&self, arrived: Box<Arrived>) -> Result<Taken, StoreError> {
        // Before waiting for the one connection that writes.
        if let Err(refusal) = checkin::require_range(arrived.checkin.seq) {
            return Ok(Err(refusal));
        }
        let (answer, answered) = oneshot::channel();
        let one = Waits { arrived, answer, _counted: COUNTED.writer_queue.running() };
        let led = self.queue.with(|queue| queue.push(one).then(|| std::mem::replace(&mut queue.led, true)));
        let Some(led) = led else { return Err(StoreError::Busy) };
        if !led {
            // A task of its own: a client that hangs up ends its own request, and not everybody's.
            tokio::spawn(Leader { store: self.clone(), ended: false }.lead());
        }
        // Whoever gives up sends the same again, which has the same answer if it was taken after all.
        let answered = tokio::time::timeout(WAIT, answered).await;
        answered.ok().and_then(Result::ok).unwrap_or(Err(StoreError::Busy))
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
            Err(error) => Box::pin(self.take_each(together, error.for_all())).await,
        }
    }

    /// Takes one after the other, until there is an error that all others would meet too.
    async fn take_each(&self, each: Vec<Waits>, mut error: Option<StoreError>) {
        for one in each {
            let taken = match error.as_ref().and_then(StoreError::for_all) {
                Some(error) => Err(error),
                None if one.answer.is_closed() => continue,
                None => self.commit_alone(&one.arrived).await,
            };
            error = error.or(taken.as_ref().err().and_then(StoreError::for_all));
            let _ = one.answer.send(taken);
        }
    }

    /// All of them in one transaction: each is committed and has its answer, or none of them is.
    async fn commit_together(
        &self,
        together: &[Waits],
    ) -> Result<Vec<Result<Taken, StoreError>>, StoreError> {
        let asked: Vec<Asking<'_>> = together.iter().map(|one| one.arrived.asking()).collect();
        let mut transaction = self.database.begin().await?;
        let stored = self.stored(&mut transaction, &asked).await?;
        let mut changes = Vec::with_capacity(together.len() * 2);
        let (mut answers, mut left) =
            (Vec::with_capacity(together.len()), Vec::with_capacity(together.len()));
        for (one, stored) in together.iter().zip(stored) {
            answers.push(stored.map(|stored| {
                let decided = one.arrived.decide(stored.as_ref());
                left.extend(stored.and_then(|stored| left_behind(&one.arrived, stored, &decided.changes)));
                changes.extend(decided.changes);
                decided.answer
            }));
        }
        if !changes.is_empty() {
            let applied = transaction.apply(&changes).await?;
            let before = self.facts.as_ref().map(|facts| (facts, facts.before_commit(&changes)));
            self.commit(transaction, Effects::of(&changes), &applied).await?;
            if let Some((facts, before)) = before {
                facts.keep(before, left);
            }
            COUNTED.groups.add(together.len() as u64);
        }
        Ok(answers)
    }

    /// What is stored of the machines of these check-ins, in their order: from memory where it is there.
    async fn stored(
        &self,
        transaction: &mut Transaction,
        asked: &[Asking<'_>],
    ) -> Result<Vec<Result<Option<Stored>, StoreError>>, StoreError> {
        let Some(facts) = &self.facts else { return transaction.check_ins(asked).await };
        let known = facts.take(asked);
        let unknown: Vec<Asking<'_>> = asked
            .iter()
            .zip(&known)
            .filter(|(_, known)| known.is_none())
            .map(|(asking, _)| *asking)
            .collect();
        let read = if unknown.is_empty() { Vec::new() } else { transaction.check_ins(&unknown).await? };
        let mut read = read.into_iter();
        let found = known.into_iter().map(|known| match known {
            Some(stored) => Ok(Some(stored)),
            None => read.next().unwrap_or(Ok(None)),
        });
        Ok(found.collect())
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
