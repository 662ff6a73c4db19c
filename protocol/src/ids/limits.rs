//! How far the numbers of documents go.

/// The highest number of a generation, and of any other document of a repository. It is far below what JSON readers with
/// floating-point numbers can tell apart, so that no number is ever the last one before an overflow.
pub const MAX_NUMBER: u64 = 1 << 48;
/// How far a number may be above the one that is held. Nobody publishes as many; somebody who wants a machine to take
/// nothing more would.
pub const MAX_JUMP: u64 = 1 << 20;
/// The last epoch. With it a generation fits a signed integer of 64 bits: see `Generation::packed`.
pub(super) const MAX_EPOCH: u16 = (1 << 14) - 1;
