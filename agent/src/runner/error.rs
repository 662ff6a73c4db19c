//! Why the contact comes to nothing, for now.

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
    #[error("this machine's keys cannot be changed as they should: {0}")]
    Keys(#[from] IdentityError),
    #[error("what belongs to check-ins cannot be kept: {source}; {}", crate::durable::remedy(source))]
    Sequence {
        #[from]
        source: std::io::Error,
    },
    #[error("the controller takes reports without storing them: look at its log")]
    NothingStored,
    #[error("the controller's numbers of this machine's reports are not its own; they are counted anew")]
    Renamed,
    #[error("the controller answers polls at once and has nothing new: look at its log")]
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
