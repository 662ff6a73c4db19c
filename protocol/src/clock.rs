//! The one source of time. Only [`SystemClock`] reads the system's clocks; `clippy.toml` keeps it so.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970-01-01T00:00:00Z. May be wrong by hours on a machine whose battery went flat.
pub type UnixMillis = i64;

/// Where a program gets the time from; tests pass one that they set.
pub trait Clock: Send + Sync {
    /// The wall clock.
    fn unix_ms(&self) -> UnixMillis;
    /// Time awake since a fixed point of this process; it does not advance while the machine sleeps
    /// (CLOCK_MONOTONIC on Linux, CLOCK_UPTIME_RAW on macOS).
    fn awake(&self) -> Duration;

    /// The wall clock in whole seconds.
    fn unix_seconds(&self) -> i64 {
        self.unix_ms().div_euclid(1000)
    }
}

/// The machine's own clocks.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Starts counting time awake from now.
    #[allow(clippy::disallowed_methods, clippy::new_without_default)]
    pub fn new() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for SystemClock {
    #[allow(clippy::disallowed_methods)]
    fn unix_ms(&self) -> UnixMillis {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => i64::try_from(since.as_millis()).unwrap_or(i64::MAX),
            Err(before) => -i64::try_from(before.duration().as_millis()).unwrap_or(i64::MAX),
        }
    }
    fn awake(&self) -> Duration {
        self.start.elapsed()
    }
}
