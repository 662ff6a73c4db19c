//! Reports go their own way: whatever becomes of them keeps no check-in and no metadata from going theirs.

use std::time::Duration;

use muster_protocol::api::ProblemCode;
use muster_protocol::report::{Accepted, Batch};

use super::chance::number;
use super::error::ContactError;
use super::shared::Shared;
use crate::client::{Client, ClientError};
use crate::core::answers::{Numbers, numbers};
use crate::core::backoff::Backoff;

/// How many batches are sent before there is a look at everything else.
const BATCHES_AT_ONCE: u32 = 8;
/// How long reports that were refused wait at the longest, where the controller does not ask for more.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// How the last reports went.
#[derive(Debug, Default)]
pub(super) struct Reporting {
    backoff: Backoff,
    /// None is sent before this time awake.
    not_before: Option<Duration>,
    /// The controller itself refused them; one that could not be reached may be by now.
    refused: bool,
    /// It takes numbers that are not one after the other.
    gaps: bool,
    /// It was said that it claims numbers that were never used.
    warned: bool,
}

impl Reporting {
    /// When the reports that wait are tried again, in time awake.
    pub fn again(&self) -> Option<Duration> {
        self.not_before
    }

    /// The controller answered a check-in.
    pub fn reached(&mut self) {
        if !self.refused {
            self.not_before = None;
        }
    }

    /// Takes note of what the controller says that it has. It is told once what it cannot have.
    pub fn claimed(&mut self, through: u64, shared: &Shared) {
        let last = shared.ledger.borrow().outbox.last();
        if through > last && !std::mem::replace(&mut self.warned, true) {
            tracing::warn!(
                through,
                last,
                "the controller claims reports that this machine never sent; not believed"
            );
        }
    }

    /// Sends all reports that wait, unless they were refused a moment ago. Gives the first error of a series.
    pub async fn send(&mut self, shared: &Shared, client: &Client) {
        let now = shared.clock.awake();
        if self.not_before.is_some_and(|at| now < at) {
            return;
        }
        match self.send_some(shared, client).await {
            Ok(()) => {
                self.backoff.succeeded();
                let more = !shared.ledger.borrow().outbox.is_empty();
                (self.not_before, self.refused) = (more.then(|| shared.clock.awake()), false);
            }
            Err(error) => {
                let answer = error.client();
                self.refused = matches!(answer, Some(ClientError::Refused { status: 400..=499, .. }));
                let asked = answer.and_then(ClientError::retry_after);
                let wait = self.backoff.failed(number(), asked);
                let wait = if asked.is_none() { wait.min(LONGEST_PAUSE) } else { wait };
                self.not_before = Some(shared.clock.awake().saturating_add(wait));
                if self.backoff.failures() == 1 {
                    tracing::warn!("reports wait: {error}");
                } else {
                    tracing::debug!(wait_ms = wait.as_millis(), "reports wait: {error}");
                }
            }
        }
    }

    /// All that waits, but only so many batches in one go: a slow answer to each must not keep check-ins and metadata waiting.
    async fn send_some(&mut self, shared: &Shared, client: &Client) -> Result<(), ContactError> {
        for _ in 0..BATCHES_AT_ONCE {
            let batch = self.batch(shared);
            let Some(batch) = batch else { return Ok(()) };
            let answer = client.report(&batch).await;
            let (through, code) = match &answer {
                Ok(accepted) => (Some(accepted.through), None),
                Err(error) => (None, error.code()),
            };
            let mut ledger = shared.ledger.borrow_mut();
            if numbers(through, code, ledger.outbox.last()) == Numbers::Renamed {
                ledger.outbox.begin_stream().map_err(super::ledger::LedgerError::from)?;
                return Err(ContactError::Renamed);
            }
            // A controller of version 0.1 misses a number, and calls it a sequence: it takes what begins behind the hole.
            if code == Some(ProblemCode::Sequence) && std::mem::replace(&mut self.gaps, false) {
                continue;
            }
            let Accepted { through, stream } = answer?;
            if stream.is_some_and(|stream| stream != ledger.outbox.stream()) || through < batch.oldest {
                return Err(ContactError::NothingStored);
            }
            self.gaps = stream.is_some();
            ledger.accepted(through)?;
            drop(ledger);
            shared.answered();
        }
        Ok(())
    }

    fn batch(&self, shared: &Shared) -> Option<Batch> {
        let mut ledger = shared.ledger.borrow_mut();
        let batch = ledger.outbox.batch(&shared.identity.machine, self.gaps)?;
        let last = batch.events.last().map_or(batch.oldest, |event| event.seq);
        ledger.outbox.sending(last);
        Some(batch)
    }
}
