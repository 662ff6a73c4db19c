//! When the trusted metadata is refreshed: when the controller hints at another generation, and now and then
//! without a hint.
//!
//! Hints are unauthenticated. One that led nowhere is followed again after a while, so a controller that hid
//! a generation, or received it later, need not hint at yet another.

use std::time::Duration;

use muster_protocol::ids::Generation;

/// After this much awake time the metadata is fetched even without a hint: that is how an expired operator
/// signature or a controller that withholds is noticed.
const INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// The pause before a fruitless hint is followed again; doubled each time.
const FIRST_PAUSE: Duration = Duration::from_secs(15);
pub const LONGEST_PAUSE: Duration = Duration::from_secs(600);

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Hints {
    /// The generation that the controller last hinted at.
    hint: Option<Generation>,
    /// The hint that was followed without success, when that was, and how often.
    followed: Option<(Generation, Duration, u32)>,
    refreshed: Option<Duration>,
    /// When something was last refused, and how often since the metadata was last good.
    refused: Option<(Duration, u32)>,
}

impl Hints {
    pub fn hint(&self) -> Option<Generation> {
        self.hint
    }

    pub fn heard(&mut self, hint: Option<Generation>) {
        self.hint = hint;
    }

    /// Whether the controller hints at a generation that is not held and was not requested recently.
    pub fn is_news(&self, held: Option<Generation>, now: Duration) -> bool {
        let Some(hint) = self.hint.filter(|hint| Some(*hint) != held) else { return false };
        match self.followed {
            Some((followed, at, times)) if followed == hint => now.saturating_sub(at) >= pause(times),
            _ => true,
        }
    }

    pub fn must_refresh(&self, held: Option<Generation>, now: Duration) -> bool {
        let old = self.refreshed.is_none_or(|at| now.saturating_sub(at) >= INTERVAL);
        let doubted = self.refused.is_some_and(|(at, times)| now.saturating_sub(at) >= pause(times));
        old || doubted || self.is_news(held, now)
    }

    /// Something from the controller was refused. The machine stays in that state until it receives good
    /// metadata, so it asks again after a while, with or without news.
    pub fn refused(&mut self, now: Duration) {
        let times = self.refused.map_or(0, |(_, times)| times.saturating_add(1));
        self.refused = Some((now, times));
    }

    /// The metadata was fetched and is good; `held` is the generation it names.
    pub fn refreshed(&mut self, held: Option<Generation>, now: Duration) {
        (self.refreshed, self.refused) = (Some(now), None);
        self.followed = self.hint.filter(|hint| Some(*hint) != held).map(|hint| {
            let before = self.followed.filter(|(followed, ..)| *followed == hint);
            (hint, now, before.map_or(0, |(_, _, times)| times.saturating_add(1)))
        });
    }
}

fn pause(times: u32) -> Duration {
    FIRST_PAUSE.saturating_mul(1 << times.min(10)).min(LONGEST_PAUSE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn generation(number: u64) -> Option<Generation> {
        Generation::new(number).ok()
    }
    fn seconds(number: u64) -> Duration {
        Duration::from_secs(number)
    }

    #[test]
    fn a_hint_is_followed_at_once_and_without_one_the_metadata_is_fetched_every_six_hours() {
        let mut hints = Hints::default();
        assert!(hints.must_refresh(None, seconds(0)), "it was never fetched");
        hints.refreshed(None, seconds(0));
        assert!(!hints.must_refresh(None, seconds(60)));
        hints.heard(generation(1));
        assert!(hints.must_refresh(None, seconds(60)));
        hints.refreshed(generation(1), seconds(60));
        assert!(!hints.must_refresh(generation(1), seconds(21_659)));
        assert!(hints.must_refresh(generation(1), seconds(21_660)));
    }

    #[test]
    fn after_a_refusal_the_metadata_is_fetched_again_soon_though_nobody_speaks_of_another_generation() {
        let mut hints = Hints::default();
        hints.heard(generation(1));
        hints.refreshed(generation(1), seconds(0));
        hints.refused(seconds(100));
        assert!(!hints.must_refresh(generation(1), seconds(114)));
        assert!(hints.must_refresh(generation(1), seconds(115)));
        hints.refused(seconds(115));
        assert!(!hints.must_refresh(generation(1), seconds(144)));
        assert!(hints.must_refresh(generation(1), seconds(145)));
        for _ in 0..100 {
            hints.refused(seconds(200));
        }
        assert!(hints.must_refresh(generation(1), seconds(800)), "ten minutes at the longest");
        hints.refreshed(generation(1), seconds(800));
        assert!(!hints.must_refresh(generation(1), seconds(2000)));
    }

    #[test]
    fn a_hint_that_brought_nothing_is_followed_again_within_ten_minutes_and_not_all_the_time() {
        let mut hints = Hints::default();
        hints.heard(generation(7));
        let (mut now, mut times) = (0, Vec::new());
        hints.refreshed(generation(3), seconds(0));
        while now < 7200 {
            now += 1;
            if hints.must_refresh(generation(3), seconds(now)) {
                times.push(now);
                hints.refreshed(generation(3), seconds(now));
            }
        }
        assert_eq!(times[..4], [15, 45, 105, 225]);
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] <= 600), "{times:?}");
        assert!(times.len() < 20, "{times:?}");
        // A different hint is news at once, and the same one again once it was held.
        hints.heard(generation(8));
        assert!(hints.is_news(generation(3), seconds(now)));
    }
}
