//! Numbers that many threads raise at once.

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};

/// A number that only rises.
#[derive(Debug)]
pub struct Counter(AtomicU64);

impl Counter {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many there are now.
#[derive(Debug)]
pub struct Gauge(AtomicU64);

impl Gauge {
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }
    /// One more, until the guard is dropped.
    pub fn running(&'static self) -> Running {
        self.0.fetch_add(1, Ordering::Relaxed);
        Running(self)
    }
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Something that counts while it lives.
#[derive(Debug)]
pub struct Running(&'static Gauge);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// How many bounds a histogram has.
pub const BOUNDS: usize = 14;

/// How often values up to each bound came. Durations are in nanoseconds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64; BOUNDS],
    /// One more than the bounds: the last is for all above.
    counts: [Counter; BOUNDS + 1],
    sum: Counter,
}

impl Histogram {
    pub const fn new(bounds: &'static [u64; BOUNDS]) -> Self {
        Self { bounds, counts: [const { Counter::new() }; BOUNDS + 1], sum: Counter::new() }
    }

    pub fn add(&self, value: u64) {
        self.counts[self.bounds.partition_point(|bound| *bound < value)].add(1);
        self.sum.add(value);
    }

    pub fn took(&self, time: Duration) {
        self.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
    }

    pub async fn time<T>(&self, what: impl Future<Output = T>) -> T {
        let clock = SystemClock::new();
        let done = what.await;
        self.took(clock.awake());
        done
    }

    /// Each bound, with the number of values up to it.
    pub fn up_to(&self) -> impl Iterator<Item = (u64, u64)> {
        self.bounds.iter().zip(&self.counts).scan(0, |sum, (bound, count)| {
            *sum += count.value();
            Some((*bound, *sum))
        })
    }
    pub fn count(&self) -> u64 {
        self.counts.iter().map(Counter::value).sum()
    }
    pub fn sum(&self) -> u64 {
        self.sum.value()
    }
}
