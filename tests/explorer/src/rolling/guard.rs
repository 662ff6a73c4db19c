//! What is taken out of gate, agent or engine, one at a time, to see that the properties notice.

/// A guard of a rollout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub enum Break {
    /// Ask the wave before alone, and not the first one.
    SkipFirstWave,
    /// Ask the first wave alone, and not the one before.
    SkipWaveBefore,
    /// Take it for soaked that a machine has confirmed.
    SkipSoak,
    /// Ask nobody that comes first.
    SkipPredecessors,
    /// Take what was said of another plan.
    TakeOtherPlans,
    /// Take a word that is signed by any machine's key, or by nobody's.
    TakeAnyKey,
    /// Count one machine's word as often as it is there.
    CountTwice,
    /// Switch on the controller's word.
    BeginWithoutGate,
    /// Switch when the gate is proven, without leave.
    BeginWithoutLeave,
    /// Take leave in another plan for leave in this one.
    TakeAnyLeave,
    /// Keep leave in the next process.
    KeepLeave,
    /// Use leave more than once.
    UseLeaveTwice,
    /// Take a reply to a check-in from before the last start.
    TakeStaleReply,
    /// Let leave end by time awake alone.
    CountLeaveAwake,
    /// Go on with a soak after somebody else changed the system.
    SoakThroughDrift,
    /// Let a soak go on while the machine sleeps.
    SoakAsleep,
    /// Ask no checks after the soak.
    SkipLastChecks,
    /// Stand by what was said after the system was changed.
    NeverWithdraw,
    /// Let as many of a wave switch at once as want to.
    IgnoreMaxInFlight,
    /// Forget whose leave has not been used yet.
    ForgetGiven,
    /// Go on whatever has failed.
    IgnoreBudget,
    /// Go on after a stop or a pause.
    ForgetWish,
    /// Go on while the brake is on.
    IgnoreBrake,
    /// Let leave stand that there was before a stop.
    NeverTakeBack,
    /// Take a machine that is away for one that is well.
    CountAway,
    /// Count a word that was withdrawn.
    IgnoreWithdrawn,
    /// Let nobody who failed begin again.
    ForgetRetries,
    /// Never give leave again that was not used.
    GiveOnce,
}
