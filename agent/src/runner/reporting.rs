//! Reports are independent: whatever happens to them delays no check-in and no metadata.

use muster_protocol::api::ProblemCode;
use muster_protocol::report::{Accepted, Batch};

use super::error::ContactError;
use super::shared::Shared;
use crate::client::Client;
use crate::core::answers::{Numbers, numbers};

/// How many batches are sent before everything else gets a turn.
const BATCHES_AT_ONCE: u32 = 8;

/// What is known about how the controller counts.
#[derive(Debug, Default)]
pub(super) struct Reporting {
    /// It accepts numbers with gaps.
    gaps: bool,
    /// It was logged that it claims numbers that were never used.
    warned: bool,
}

impl Reporting {
    /// Records the numbers that the controller claims to have. Impossible ones are logged once.
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

    /// All waiting reports, but a limited number of batches in a row: slow answers must not delay check-ins
    /// and metadata.
    pub async fn send(&mut self, shared: &Shared, client: &Client) -> Result<(), ContactError> {
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
            // A controller of version 0.1 reports a missing number as a sequence error: it accepts what
            // begins after the gap.
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
