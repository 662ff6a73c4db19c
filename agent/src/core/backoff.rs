//! How long to wait after a failure: twice as long each time, within bounds, and different on every machine.

use std::time::Duration;

use muster_protocol::api::MAX_RETRY_AFTER_SECONDS;

/// The bounds of a wait, before [`Backoff::failed`] subtracts up to half of it.
const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(300);
/// The longest `Retry-After` that is honoured: a controller may slow a machine down, not silence it.
const LONGEST_ASKED: Duration = Duration::from_secs(MAX_RETRY_AFTER_SECONDS);

/// Counts failures in a row.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    /// How long to wait after one more failure. `random` spreads machines that failed at the same moment;
    /// `asked` is what the other side asked for (`Retry-After`).
    pub fn failed(&mut self, random: u64, asked: Option<Duration>) -> Duration {
        let doubled = FIRST.saturating_mul(1 << self.failures.min(20)).min(LONGEST);
        self.failures = self.failures.saturating_add(1);
        match asked {
            // Up to a tenth later than asked, never earlier.
            Some(asked) => {
                let asked = asked.min(LONGEST_ASKED).max(doubled / 2);
                asked + part(asked / 10, random)
            }
            None => doubled / 2 + part(doubled / 2, random),
        }
    }

    pub fn succeeded(&mut self) {
        self.failures = 0;
    }

    pub fn failures(&self) -> u32 {
        self.failures
    }
}

/// The pause before the next look at something awaited since `waited`: a sixth of the time waited so far, so
/// that quick results are seen at once and slow ones cost nothing.
pub fn look(waited: Duration, longest: Duration) -> Duration {
    (waited / 6).clamp(Duration::from_millis(3).min(longest), longest)
}

/// A fraction of `whole`, by the low 16 bits of `random`.
pub fn part(whole: Duration, random: u64) -> Duration {
    let share = u32::try_from(random & 0xffff).unwrap_or(0);
    whole.saturating_mul(share) / 0xffff
}

#[cfg(test)]
mod tests {
    use super::*;

    const RANDOMS: [u64; 4] = [0, 1, 0x7fff, u64::MAX];

    #[test]
    fn a_wait_doubles_up_to_five_minutes_and_stays_within_its_bounds() {
        for random in RANDOMS {
            let mut backoff = Backoff::default();
            let mut full = FIRST;
            for _ in 0..80 {
                let wait = backoff.failed(random, None);
                assert!(wait >= full / 2 && wait <= full, "{wait:?} of {full:?}");
                full = (full * 2).min(LONGEST);
            }
        }
    }

    #[test]
    fn a_success_begins_anew() {
        let mut backoff = Backoff::default();
        for _ in 0..10 {
            backoff.failed(u64::MAX, None);
        }
        backoff.succeeded();
        assert_eq!(backoff.failed(u64::MAX, None), FIRST);
    }

    #[test]
    fn failure_mode_22_retry_after_is_honoured_but_cannot_silence_a_machine() {
        for random in RANDOMS {
            let asked = Duration::from_secs(120);
            let wait = Backoff::default().failed(random, Some(asked));
            assert!(wait >= asked && wait <= asked + asked / 10);
            let wait = Backoff::default().failed(random, Some(Duration::from_secs(1_000_000)));
            assert!(wait <= LONGEST_ASKED + LONGEST_ASKED / 10);
        }
        // Asking for no wait does not turn it off.
        assert!(Backoff::default().failed(0, Some(Duration::ZERO)) >= FIRST / 2);
    }

    #[test]
    fn a_look_is_never_late_by_more_than_an_eighth() {
        let longest = Duration::from_millis(200);
        assert_eq!(look(Duration::ZERO, longest), Duration::from_millis(3));
        assert_eq!(look(Duration::from_millis(150), longest), Duration::from_millis(25));
        assert_eq!(look(Duration::from_secs(60), longest), longest);
    }

    #[test]
    fn machines_that_fail_together_do_not_come_back_together() {
        let wait = |random| Backoff::default().failed(random, None);
        assert_ne!(wait(1), wait(40_000));
    }
}
