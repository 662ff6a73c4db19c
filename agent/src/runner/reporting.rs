//! Reports go their own way: whatever becomes of them keeps no check-in and no metadata from going theirs.

use muster_protocol::api::ProblemCode;
use muster_protocol::report::{Accepted, Batch};

use super::error::ContactError;
use super::shared::Shared;
use crate::client::Client;
use crate::core::answers::{Numbers, numbers};

/// How many batches are sent before there is a look at everything else.
const BATCHES_AT_ONCE: u32 = 8;

/// What is known of how the controller counts.
#[derive(Debug, Default)]
pub(super) struct Reporting {
    /// It takes numbers that are not one after the other.
    gaps: bool,
    /// It was said that it claims numbers that were never used.
    warned: bool,
}

impl Reporting {
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

    /// All that waits, but only so many batches in one go: a slow answer to each must not keep check-ins and metadata waiting.
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
