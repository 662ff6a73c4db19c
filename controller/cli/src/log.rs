//! The controller's audit log as this operator sees it: followed page by page, each entry verified against
//! the one before it, and compared with what was seen before, by this computer, by others, and by machines.

pub mod beginning;
pub mod cut;
pub mod export;
pub mod follow;
pub mod seen;
pub mod verdict;
