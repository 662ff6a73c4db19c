//! When reports are sent again that were not taken.

use std::time::Duration;

use super::backoff::Backoff;

/// How long reports that were refused wait at the longest, where the controller does not ask for more.
const LONGEST: Duration = Duration::from_secs(60);

/// How the last reports went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Pace {
    backoff: Backoff,
    /// None is sent before this time awake.
    not_before: Option<Duration>,
    /// The controller itself refused them; one that could not be reached may be by now.
    refused: bool,
}

impl Pace {
    /// When the reports that wait are tried again, in time awake.
    pub fn again(&self) -> Option<Duration> {
        self.not_before
    }

    pub fn may(&self, now: Duration) -> bool {
        self.not_before.is_none_or(|at| now >= at)
    }

    /// The controller answered a check-in.
    pub fn reached(&mut self) {
        if !self.refused {
            self.not_before = None;
        }
    }

    /// They were taken; `more` wait still.
    pub fn sent(&mut self, more: bool, now: Duration) {
        self.backoff.succeeded();
        (self.not_before, self.refused) = (more.then_some(now), false);
    }

    /// They were not taken; `asked` is what the controller asked for (`Retry-After`). Gives how long they wait, and whether this
    /// is the first failure of a series.
    pub fn failed(
        &mut self,
        random: u64,
        asked: Option<Duration>,
        refused: bool,
        now: Duration,
    ) -> (Duration, bool) {
        self.refused = refused;
        let wait = self.backoff.failed(random, asked);
        let wait = if asked.is_none() { wait.min(LONGEST) } else { wait };
        self.not_before = Some(now.saturating_add(wait));
        (wait, self.backoff.failures() == 1)
    }
}
