//! How far the numbers of documents go.

/// The highest number of a generation, and of any other document of a repository. JSON readers that use
/// floating-point numbers represent it exactly, and adding to it never overflows.
pub const MAX_NUMBER: u64 = 1 << 48;
/// How far a number may be above the one held. Nobody publishes that many generations; an attacker who
/// wants a machine to accept nothing more would sign such a number.
pub const MAX_JUMP: u64 = 1 << 20;
/// The last epoch: up to it, a generation fits a signed 64-bit integer; see `Generation::packed`.
pub(crate) const MAX_EPOCH: u16 = (1 << 14) - 1;
