//! Check-ins. Those that wait at the same time are taken in one transaction: one statement reads what is
//! stored of all of them, one writes what they bring, and one commit makes them durable before any of them is
//! answered.

use std::convert::Infallible;

use tokio::sync::oneshot;

use super::known::Effects;
use super::queue::{Arrived, Asking, Taken, Waiting, Waits};
use super::{Failed, Store, StoreError};
use crate::core::checkin;
use crate::metrics::{COUNTED, Call};

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
            let applied = transaction.apply(&changes).await?;
            self.commit(transaction, Effects::of(&changes), &applied).await?;
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
