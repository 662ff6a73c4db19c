//! What signatures are for.

/// What a signature is for. The context is signed in front of the message, so that no signature serves a
/// second purpose. TUF metadata is signed without one, as its specification requires; it always begins with
/// `{`, and no context does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Context {
    /// A machine's [`crate::enrol::EnrolRequest`].
    Enrolment,
    /// A machine's [`crate::checkin::CheckIn`].
    CheckIn,
    /// A machine's [`crate::report::Batch`].
    Reports,
    /// An operator's HTTP request ([`crate::operator::RequestSignature`]).
    OperatorRequest,
    /// A check-in, signed a second time by the key that replaces the machine's.
    KeyRotation,
    /// What an operator asks of one machine ([`crate::request`]).
    MachineRequest,
    /// What a machine sends before a body ([`crate::announce`]).
    Announcement,
    /// That another key may read on an operator's behalf ([`crate::signin`]).
    SignIn,
    /// An HTTP request signed by such a key.
    SessionRequest,
    /// What a machine was shown of the audit log ([`crate::audit::ShownLog`]).
    ShownLog,
    /// What a machine says about its part of a rollout ([`crate::plan::Claim`]).
    Attestation,
}

impl Context {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Enrolment => b"muster-enrolment-v1\0",
            Self::CheckIn => b"muster-check-in-v1\0",
            Self::Reports => b"muster-reports-v1\0",
            Self::OperatorRequest => b"muster-operator-request-v1\0",
            Self::KeyRotation => b"muster-key-rotation-v1\0",
            Self::MachineRequest => b"muster-machine-request-v1\0",
            Self::Announcement => b"muster-announcement-v1\0",
            Self::SignIn => b"muster-sign-in-v1\0",
            Self::SessionRequest => b"muster-session-request-v1\0",
            Self::ShownLog => b"muster-shown-log-v1\0",
            Self::Attestation => b"muster-attestation-v1\0",
        }
    }
    pub(super) fn message(self, body: &[u8]) -> Vec<u8> {
        [self.prefix(), body].concat()
    }
}
