//! Counts how long the machine has run the generation of a plan well, for what it says of it in check-ins.

use std::sync::Arc;
use std::time::Duration;

use muster_protocol::ids::{Sha256, StorePath};
use muster_protocol::plan::Said;

use super::shared::Shared;
use super::work::WorkError;
use crate::core::rollout::{Counted, Followed, Seen};
use crate::platform::PlatformError;
use crate::probes;

/// The pause after the machine could not be asked.
const LATER: Duration = Duration::from_secs(60);

/// Runs until dropped.
pub async fn run(shared: &Shared) {
    let mut soak = Soak { shared, about: None, counted: None, told: None };
    loop {
        let wait = soak.turn().await.unwrap_or_else(|error| {
            tracing::warn!("the soak of this generation cannot be counted: {error}");
            Some(LATER)
        });
        soak.tell();
        let changed = shared.wakes.soak();
        match wait {
            Some(wait) => drop(tokio::time::timeout(wait, changed).await),
            None => changed.await,
        }
    }
}

struct Soak<'a> {
    shared: &'a Shared,
    /// The plan and the system that are counted.
    about: Option<(Sha256, StorePath)>,
    /// Up to which awake time they are, while the machine runs it.
    counted: Option<Duration>,
    /// What the controller was last told, or is about to be.
    told: Option<(Sha256, Said)>,
}

impl Soak<'_> {
    /// Returns how long to wait for the next look, if there is one.
    async fn turn(&mut self) -> Result<Option<Duration>, WorkError> {
        loop {
            let Some((followed, seen)) = self.look() else { return Ok(None) };
            match followed.count(seen) {
                Counted::Nothing => return Ok(followed.again(seen).map(Duration::from_millis)),
                Counted::Changed(changed) => self.store(*changed)?,
                Counted::Over => {
                    let (checks_pass, failed) = self.examine().await?;
                    // Whatever happened meanwhile is looked at first.
                    let still = self.look().filter(|(now, seen)| *now == followed && seen.runs);
                    if still.is_some_and(|(_, seen)| !seen.drifted) {
                        let examined = followed.examined(checks_pass, &failed);
                        let soaked = examined.said == Said::Soaked;
                        tracing::info!(soaked, "the soak of generation {} is over", followed.generation);
                        self.store(examined)?;
                    }
                }
            }
        }
    }

    /// What is followed, and how the machine is.
    fn look(&mut self) -> Option<(Followed, Seen)> {
        let now = self.shared.clock.awake();
        let ledger = self.shared.ledger.borrow();
        let journal = ledger.journal();
        let followed = journal.followed.clone()?;
        let switches = ledger.transaction().is_some_and(|open| !open.state.is_before_activation());
        let confirmed =
            journal.confirmed.as_ref().is_some_and(|known| known.generation == followed.generation);
        let on_it = self.shared.platform.layout().running().as_ref() == Some(&followed.output);
        let runs = confirmed && on_it && !switches;
        let about = (followed.plan, followed.output.clone());
        // Between two looks one generation may have taken the place of another: its time begins now.
        let is_new = self.about.as_ref() != Some(&about);
        self.about = Some(about);
        if is_new || !runs {
            self.counted = None;
        }
        if runs {
            self.counted.get_or_insert(now);
        }
        let passed = self.counted.map_or(Duration::ZERO, |counted| now.saturating_sub(counted));
        let passed_ms = u64::try_from(passed.as_millis()).unwrap_or(u64::MAX);
        // Drift from a newer generation says nothing about this one.
        let drifted = confirmed && !switches && journal.drift.is_some();
        Some((followed, Seen { runs, drifted, passed_ms }))
    }

    fn store(&mut self, followed: Followed) -> Result<(), WorkError> {
        self.shared.ledger.borrow_mut().follow(followed)?;
        self.counted = self.counted.map(|_| self.shared.clock.awake());
        Ok(())
    }

    /// Asks the confirmed generation's checks once more, and which units have failed.
    async fn examine(&self) -> Result<(bool, Vec<String>), WorkError> {
        let known = self.shared.ledger.borrow().journal().confirmed.clone();
        let signed = known.and_then(|known| known.target).map(|target| target.checks).unwrap_or_default();
        let checks: Vec<_> = signed.into_iter().chain(self.shared.config.checks.iter().cloned()).collect();
        let platform = Arc::clone(&self.shared.platform);
        let units = tokio::task::spawn_blocking(move || platform.failed_units());
        let (checks, units) = tokio::join!(probes::run(&checks, &self.shared.platform), units);
        let failed: Result<Vec<String>, PlatformError> = units.map_err(|_| WorkError::Thread)?;
        Ok((checks.iter().all(|check| check.outcome.is_ok()), failed?))
    }

    /// A change of what is said is told at once; check-ins repeat it.
    fn tell(&mut self) {
        let says = self.shared.ledger.borrow().journal().followed.as_ref().map(|it| (it.plan, it.said));
        if says.is_some() && says != self.told {
            self.shared.wakes.changed_now();
        }
        self.told = says;
    }
}
