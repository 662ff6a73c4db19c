//! CPU-heavy work: it must not block the other tasks of its thread, and may use every processor.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Work on fewer bytes than this runs inline.
const SMALL: usize = 32 * 1024;
/// With fewer items than this for each thread, starting threads costs more than they save.
const FEWEST: usize = 32;

/// Runs work on this many bytes; if it may take long, the thread's other tasks move to other threads first.
pub fn on<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    let threads = Handle::try_current().is_ok_and(|at| at.runtime_flavor() == RuntimeFlavor::MultiThread);
    if bytes > SMALL && threads { tokio::task::block_in_place(work) } else { work() }
}

/// What `each` makes of every item, in their order, on as many threads as there are processors.
pub fn for_all<'a, T: Sync, R: Send>(items: &'a [T], each: impl Fn(&'a T) -> R + Sync) -> Vec<R> {
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let share = items.len().div_ceil(processors).max(FEWEST);
    let each = &each;
    std::thread::scope(|scope| {
        let mut shares = items.chunks(share);
        let first = shares.next().unwrap_or_default();
        let others: Vec<_> =
            shares.map(|share| scope.spawn(move || share.iter().map(each).collect::<Vec<_>>())).collect();
        let mut made: Vec<R> = first.iter().map(each).collect();
        for other in others {
            made.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        made
    })
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn what_waits_at_a_thread_goes_on_while_long_work_is_done_there() {
        let (went, goes) = mpsc::channel();
        let long = tokio::spawn(async move {
            tokio::spawn(async move { went.send(()).unwrap() });
            // Only another thread can run the task spawned here.
            on(1 << 20, || goes.recv().unwrap());
        });
        long.await.unwrap();
    }

    #[tokio::test]
    async fn it_is_done_at_once_where_there_is_one_thread() {
        assert_eq!(on(1 << 20, || 7), 7);
    }

    #[test]
    fn whatever_the_threads_the_order_is_that_of_the_items() {
        for count in [0, 1, FEWEST, 10 * FEWEST + 1] {
            let items: Vec<usize> = (0..count).collect();
            assert_eq!(for_all(&items, |n| n * 2), items.iter().map(|n| n * 2).collect::<Vec<_>>());
        }
    }
}
