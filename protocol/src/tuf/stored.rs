//! The metadata that a client holds.

use super::metadata::{Body, Signed, Snapshot, Targets, Timestamp};
use crate::ids::Epoch;

/// The metadata held, as the bytes that were received.
#[derive(Debug, Clone, Default)]
pub struct Stored {
    /// The trusted root; the only one that is required.
    pub root: Vec<u8>,
    /// The newest accepted timestamp.
    pub timestamp: Option<Vec<u8>>,
    /// The newest accepted snapshot.
    pub snapshot: Option<Vec<u8>>,
    /// The newest accepted targets.
    pub targets: Option<Vec<u8>>,
}

impl Stored {
    /// Drops what was signed in an earlier epoch.
    pub fn leave_epochs_before(&mut self, epoch: Epoch) {
        fn is_left<B: Body>(bytes: &[u8], epoch: Epoch) -> bool {
            Signed::<B>::unverified(bytes).is_ok_and(|signed| signed.epoch < epoch)
        }
        self.timestamp.take_if(|bytes| is_left::<Timestamp>(bytes, epoch));
        self.snapshot.take_if(|bytes| is_left::<Snapshot>(bytes, epoch));
        self.targets.take_if(|bytes| is_left::<Targets>(bytes, epoch));
    }
}
