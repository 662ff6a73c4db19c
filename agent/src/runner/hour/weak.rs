//! Agents that trust one thing too much, made from the real one by changing its inputs and outputs.

/// What an agent must not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weak {
    /// Forgets every report through the number claimed in the reply to a check-in.
    BelievesReportsThrough,
    /// Stays silent for as long as it is asked to.
    HonoursRetryAfter,
    /// Falls silent after being told that it was revoked.
    TakesRevokedAsFinal,
    /// Never retries a derivation that the cache delivered incorrectly.
    HoldsLiesAgainstDerivations,
    /// Resends an unanswered check-in with different contents, under the same number.
    RepeatsInOtherWords,
    /// Knows no key but the one in force.
    ForgetsItsKeys,
}

impl Weak {
    pub const ALL: [Self; 6] = [
        Self::BelievesReportsThrough,
        Self::HonoursRetryAfter,
        Self::TakesRevokedAsFinal,
        Self::HoldsLiesAgainstDerivations,
        Self::RepeatsInOtherWords,
        Self::ForgetsItsKeys,
    ];
}
