//! What one exploration of the controller's half is about, and how much may happen in it.

use std::rc::Rc;

use super::cast::Cast;
use super::controller::Break;

/// How often each thing may happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Budget {
    /// Lost, slow and repeated messages, all together; a crash between commit and answer is a lost answer.
    pub faults: u8,
    pub events: u8,
    pub publications: u8,
    pub epochs: u8,
    pub replacements: u8,
    pub reclasses: u8,
    pub revocations: u8,
    pub requests: u8,
    pub drafts: u8,
    pub backups: u8,
    pub clones: u8,
    pub alarms: u8,
    pub disks: u8,
    pub hours: u8,
    pub takeovers: u8,
}

pub struct Scene {
    pub name: &'static str,
    pub cast: Rc<Cast>,
    /// How many check-ins a computer makes.
    pub check_ins: u64,
    /// Two computers begin with the same token.
    pub thief: bool,
    pub may: Budget,
    pub broken: Option<Break>,
}
