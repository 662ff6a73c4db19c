//! When rejected reports are sent again.

use std::time::Duration;

use super::backoff::Backoff;

/// The longest wait after rejected reports, unless the controller asks for more.
const LONGEST: Duration = Duration::from_secs(60);

/// How the last reports went.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Pace {
    backoff: Backoff,
    /// None is sent before this awake time.
    not_before: Option<Duration>,
    /// The controller itself rejected them; one that was unreachable may be back by now.
    refused: bool,
}

impl Pace {
    /// When the waiting reports are retried, in awake time.
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

    /// They were accepted; `more` are still waiting.
    pub fn sent(&mut self, more: bool, now: Duration) {
        self.backoff.succeeded();
        (self.not_before, self.refused) = (more.then_some(now), false);
    }

    /// They were not accepted; `asked` is what the controller asked for (`Retry-After`). Returns how long
    /// they wait, and whether this is the first failure in a row.
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
