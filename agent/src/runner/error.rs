//! Why contacting the controller failed for now.

use super::ledger::LedgerError;
use crate::client::ClientError;
use crate::identity::IdentityError;
use crate::trust::TrustError;

#[derive(Debug, thiserror::Error)]
pub enum ContactError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("this machine's keys cannot be changed: {0}")]
    Keys(#[from] IdentityError),
    #[error("the check-in state cannot be written: {source}; {}", crate::durable::remedy(source))]
    Sequence {
        #[from]
        source: std::io::Error,
    },
    #[error("the controller accepts reports without storing them: check its log")]
    NothingStored,
    #[error("the controller's numbers of this machine's reports are not its own; they are counted anew")]
    Renamed,
    #[error("the controller answers polls at once and has nothing new: check its log")]
    Spinning,
}

impl ContactError {
    pub fn client(&self) -> Option<&ClientError> {
        match self {
            Self::Client(error) | Self::Trust(TrustError::Client(error)) => Some(error),
            _ => None,
        }
    }
}
