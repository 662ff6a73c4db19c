//! Fair scheduling: only a few requests of each party are handled at once, and the next party gets its turn
//! however long another party's queue is. A request that waits for its client (for a body, for news) holds no
//! turn; one that waits for the database does, so that nobody holds a shared resource without a turn.

use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use tokio::sync::OwnedSemaphorePermit;
use tokio_util::sync::PollSemaphore;

use super::parties::Party;

/// Whose turns count, and whether the work waits for its client.
#[derive(Debug, Clone)]
pub struct Pace(Arc<State>);

#[derive(Debug)]
struct State {
    /// Keeps the party alive, so that its other requests share the same turns.
    party: Mutex<Arc<Party>>,
    away: AtomicBool,
}

impl Pace {
    pub fn new(party: Arc<Party>) -> Self {
        Self(Arc::new(State { party: Mutex::new(party), away: AtomicBool::new(false) }))
    }

    /// Switches to the turns of another party, once it has one. Hold nothing that others need while waiting.
    pub async fn change(&self, party: &Arc<Party>) {
        let changed = {
            let mut held = self.0.party.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = !Arc::ptr_eq(&held, party);
            *held = party.clone();
            changed
        };
        if changed {
            tokio::task::yield_now().await;
        }
    }

    /// Waits without holding a turn.
    pub async fn away<T>(&self, wait: impl Future<Output = T>) -> T {
        let _away = self.clone().leave();
        wait.await
    }

    /// Holds no turn until the value is dropped.
    pub fn leave(self) -> Away {
        self.0.away.store(true, Ordering::Relaxed);
        Away(self)
    }

    pub fn party(&self) -> Arc<Party> {
        self.0.party.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Work that waits for its client.
pub struct Away(Pace);

impl Drop for Away {
    fn drop(&mut self) {
        self.0.0.away.store(false, Ordering::Relaxed);
    }
}

pub struct Paced<F> {
    work: Pin<Box<F>>,
    pace: Pace,
    turn: Option<OwnedSemaphorePermit>,
    turns: PollSemaphore,
    of: Arc<Party>,
}

impl<F: Future> Paced<F> {
    pub fn new(work: F, pace: Pace) -> Self {
        let of = pace.party();
        Self { work: Box::pin(work), turns: PollSemaphore::new(of.requests.clone()), of, pace, turn: None }
    }
}

impl<F: Future> Future for Paced<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let of = self.pace.party();
        if !Arc::ptr_eq(&of, &self.of) {
            (self.turn, self.turns, self.of) = (None, PollSemaphore::new(of.requests.clone()), of);
        }
        if self.turn.is_none() {
            self.turn = ready!(self.turns.poll_acquire(cx));
        }
        let polled = self.work.as_mut().poll(cx);
        if polled.is_ready() || self.pace.0.away.load(Ordering::Relaxed) {
            self.turn = None;
        }
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_so_many_of_a_party_are_worked_on_and_who_waits_for_a_client_holds_no_turn() {
        let party = Arc::new(Party::new(1, 1));
        let waits = |away: bool| {
            let pace = Pace::new(party.clone());
            let inner = pace.clone();
            let news = std::future::pending::<()>();
            let work = async move { if away { inner.away(news).await } else { news.await } };
            tokio::spawn(Paced::new(work, pace))
        };
        let for_news = waits(true);
        // Waits while holding the turn, for the database for example.
        let for_the_database = waits(false);
        let next = tokio::spawn(Paced::new(async {}, Pace::new(party.clone())));
        while party.requests.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        assert!(!next.is_finished());
        for_the_database.abort();
        next.await.unwrap();
        for_news.abort();
    }

    #[tokio::test]
    async fn a_full_line_holds_up_its_own_alone_and_work_may_change_its_line() {
        let (full, free) = (Arc::new(Party::new(1, 1)), Arc::new(Party::new(1, 1)));
        let held = full.requests.clone().acquire_owned().await.unwrap();
        let pace = Pace::new(free.clone());
        let (changing, to) = (pace.clone(), full.clone());
        let work = tokio::spawn(Paced::new(async move { changing.change(&to).await }, pace));
        // It has left its first queue, so the next request there has its turn.
        Paced::new(async {}, Pace::new(free.clone())).await;
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(!work.is_finished());
        drop(held);
        work.await.unwrap();
    }
}
