//! A generation that was confirmed.

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::target::Target;
use serde::{Deserialize, Serialize};

/// A confirmed generation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Known {
    pub generation: Generation,
    pub output: StorePath,
    #[serde(default)]
    pub derivation: Option<StorePath>,
    pub at: UnixMillis,
    /// What was signed, to activate it again.
    #[serde(default)]
    pub target: Option<Box<Target>>,
}
