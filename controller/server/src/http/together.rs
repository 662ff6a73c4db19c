//! What costs much and must not be of before it was asked for: those who ask while it is being found for
//! somebody else share the next one.

use std::future::Future;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Mutex;

#[derive(Debug)]
pub struct Together<T> {
    /// How often finding began.
    begun: AtomicU64,
    /// How many ask.
    asking: AtomicUsize,
    /// What was found last, and as the how manieth, while somebody may still share it.
    last: Mutex<Option<(u64, T)>>,
}

impl<T> Default for Together<T> {
    fn default() -> Self {
        Self { begun: AtomicU64::new(0), asking: AtomicUsize::new(0), last: Mutex::new(None) }
    }
}

/// Somebody asks. The last one leaves nothing behind, even if it gives up.
struct Asks<'a, T>(&'a Together<T>);

impl<'a, T> Asks<'a, T> {
    fn new(together: &'a Together<T>) -> Self {
        together.asking.fetch_add(1, Ordering::SeqCst);
        Self(together)
    }
}

impl<T> Drop for Asks<'_, T> {
    fn drop(&mut self) {
        if self.0.asking.fetch_sub(1, Ordering::SeqCst) == 1
            && let Ok(mut last) = self.0.last.try_lock()
        {
            *last = None;
        }
    }
}

impl<T: Clone> Together<T> {
    /// What `find` finds, or what another one found that began after this was called. An error is shared too:
    /// else each would wait anew for a database that does not answer.
    pub async fn get(&self, find: impl Future<Output = T>) -> T {
        let begun = self.begun.load(Ordering::SeqCst);
        let _asks = Asks::new(self);
        let mut last = self.last.lock().await;
        let found = match last.take() {
            Some((number, value)) if number > begun => (number, value),
            _ => {
                let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
                (number, find.await)
            }
        };
        let value = found.1.clone();
        *last = (self.asking.load(Ordering::SeqCst) > 1).then_some(found);
        value
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use futures_util::{FutureExt as _, join};

    use super::*;

    #[tokio::test]
    async fn those_who_ask_meanwhile_share_one_that_began_after_they_asked() {
        for good in [true, false] {
            let (together, found) = (Together::default(), Cell::new(0));
            let find = || async {
                found.set(found.get() + 1);
                let number = found.get();
                tokio::task::yield_now().await;
                if good { Ok(number) } else { Err(number) }
            };
            let is = |number| if good { Ok(number) } else { Err(number) };
            let (first, second, third, fourth) =
                join!(together.get(find()), together.get(find()), together.get(find()), together.get(find()));
            // All but the first one asked after the first had begun.
            assert_eq!([first, second, third, fourth], [is(1), is(2), is(2), is(2)]);
            assert!(together.last.lock().await.is_none(), "nothing is kept for nobody");
            assert_eq!(together.get(find()).await, is(3), "nor for those who ask later");
        }
    }

    #[tokio::test]
    async fn what_was_given_up_is_found_anew() {
        let together = Together::default();
        let gives_up = async {
            let never = together.get(std::future::pending::<u8>());
            assert!(Box::pin(never).now_or_never().is_none());
        };
        let ((), found) = join!(gives_up, together.get(async { 7 }));
        assert_eq!(found, 7);
        assert_eq!(together.asking.load(Ordering::SeqCst), 0);
        assert!(together.last.lock().await.is_none());
    }
}
