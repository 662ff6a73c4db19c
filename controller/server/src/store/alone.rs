//! The locks of what the store keeps in memory: facts, what is known, the queue. None is taken while another
//! is held, so there is no order in which they could be taken wrongly.

use std::sync::{Mutex, PoisonError};

/// Works on what a lock protects. `work` must not wait, nor come here again; builds for tests notice.
pub fn alone<I, T>(lock: &Mutex<I>, work: impl FnOnce(&mut I) -> T) -> T {
    #[cfg(debug_assertions)]
    let _held = noticed::Held::new();
    work(&mut lock.lock().unwrap_or_else(PoisonError::into_inner))
}

#[cfg(debug_assertions)]
mod noticed {
    use std::cell::Cell;

    thread_local! {
        static HELD: Cell<bool> = const { Cell::new(false) };
    }

    /// This thread holds a lock.
    pub struct Held;

    impl Held {
        pub fn new() -> Self {
            assert!(!HELD.replace(true), "a lock of the store is taken while another is held");
            Self
        }
    }

    impl Drop for Held {
        fn drop(&mut self) {
            HELD.set(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_after_the_other_is_well_and_one_inside_another_is_noticed_whichever_they_are() {
        let (one, other) = (Mutex::new(1), Mutex::new(2));
        assert_eq!((alone(&one, |held| *held), alone(&other, |held| *held)), (1, 2));
        let inside = std::panic::catch_unwind(|| alone(&one, |_| alone(&other, |_| ())));
        assert!(inside.is_err());
        assert_eq!(alone(&other, |held| *held), 2, "it is over after that");
    }
}
