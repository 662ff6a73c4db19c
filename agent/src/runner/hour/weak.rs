//! Agents that believe one thing too much, made out of the real one by what comes and goes at its edges.

/// What an agent would do that it must not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Weak {
    /// Forgets every report through the number that the reply to a check-in claims.
    BelievesReportsThrough,
    /// Is silent for as long as it is asked to be.
    HonoursRetryAfter,
    /// Says nothing any more once it was told that it was revoked.
    TakesRevokedAsFinal,
    /// Never tries a derivation again that the cache did not give as it should be.
    HoldsLiesAgainstDerivations,
    /// Says a check-in that was not answered again in other words, under the same number.
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
