//! Random numbers that differ between machines.

use muster_protocol::random;

/// Without random bytes all machines wait alike, which is no reason to stop.
pub fn number() -> u64 {
    #[cfg(test)]
    if let Some(number) = drawn::next() {
        return number;
    }
    random::bytes().map(u64::from_le_bytes).unwrap_or(u64::MAX / 2)
}

/// Replaces random numbers if a test needs the same ones each time.
#[cfg(test)]
pub mod drawn {
    use std::cell::RefCell;

    type Draw = Box<dyn FnMut() -> u64>;

    thread_local! {
        static DRAW: RefCell<Option<Draw>> = const { RefCell::new(None) };
    }

    pub fn from(draw: impl FnMut() -> u64 + 'static) {
        DRAW.set(Some(Box::new(draw)));
    }

    /// The default outside of tests.
    pub fn at_random() {
        DRAW.set(None);
    }

    pub fn next() -> Option<u64> {
        DRAW.with_borrow_mut(|draw| draw.as_mut().map(|draw| draw()))
    }
}
