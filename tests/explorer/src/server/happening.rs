//! Everything that can happen between machines, operators and controllers.

/// How a machine's request goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Answered,
    /// It is carried out, and the answer is lost: on its way, or with a controller that ended after it had
    /// committed.
    Unheard,
    /// A copy is still on its way when the machine gives up.
    Delayed,
    /// It is answered, and the machine ends before it has done what the answer asks for.
    Forgotten,
}

/// Machines are named by their place, and messages that are on their way too.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Enrols(u8, Way),
    ChecksIn(u8, Way),
    Reports(u8, Way),
    /// It takes the newest generation that is signed for it, and newer than its own.
    Updates(u8),
    /// Something happens on a machine, and it writes it into its outbox.
    Tells(u8),
    Arrives(u8),
    /// Like it, and whoever sent it does not hear of it, and sends it again.
    ArrivesUnheard(u8),
    /// A controller checks the signatures of a generation that came, and has not begun its transaction.
    IsChecked(u8),
    /// From here on: what need not happen.
    /// An operator signs the next generation for the first machine, and sends it.
    Signs,
    /// Root holders begin a new epoch.
    NewEpoch,
    /// An operator has the first machine enrolled again: another computer gets the token.
    Replaces,
    /// The same for a machine of the other class.
    Reclasses,
    Revokes,
    Asks,
    SignsDraft(u8),
    BacksUp,
    Restores,
    /// A machine's disk is copied to another computer, which runs as well.
    IsCloned,
    /// An operator ends the alarm.
    Acknowledges,
    IsKept,
    /// A machine's disk is brought back from its backup.
    IsBroughtBack,
    HourPasses,
    /// Somebody else writes what the controller has stored.
    IsTakenOver,
}

impl Action {
    pub fn all() -> Vec<Self> {
        use Action as A;
        let mut all = Vec::new();
        for n in 0..3 {
            for way in [Way::Answered, Way::Unheard, Way::Delayed] {
                all.extend([A::Enrols(n, way), A::ChecksIn(n, way), A::Reports(n, way)]);
            }
            all.push(A::ChecksIn(n, Way::Forgotten));
            all.extend([A::Updates(n), A::Tells(n), A::Arrives(n), A::ArrivesUnheard(n), A::IsChecked(n)]);
        }
        all.extend([A::Signs, A::NewEpoch, A::Replaces, A::Reclasses, A::Revokes, A::Asks]);
        all.extend([
            A::SignsDraft(0),
            A::SignsDraft(1),
            A::BacksUp,
            A::Restores,
            A::IsCloned,
            A::Acknowledges,
        ]);
        all.extend([A::IsKept, A::IsBroughtBack, A::HourPasses, A::IsTakenOver]);
        all
    }

    /// What comes about sooner or later.
    pub fn is_sure(self) -> bool {
        matches!(
            self,
            Self::Enrols(_, Way::Answered)
                | Self::ChecksIn(_, Way::Answered)
                | Self::Reports(_, Way::Answered)
                | Self::Updates(_)
                | Self::Arrives(_)
                | Self::IsChecked(_)
        )
    }
}
