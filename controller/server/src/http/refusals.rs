//! Maps the refusals of the rest of the controller to problems: one status and one code each.

use axum::http::StatusCode;
use muster_protocol::api::ProblemCode;
use muster_protocol::report::Attack;
use muster_protocol::tuf::TufError;

use super::problem::{Refused, refuse};
use crate::core::checkin::CheckInRefusal;
use crate::core::drafts::DraftRefusal;
use crate::core::enrolment::EnrolRefusal;
use crate::core::garbage::GarbageRefusal;
use crate::core::log::CutRefusal;
use crate::core::machines::MachineRefusal;
use crate::core::publication::PublishRefusal;
use crate::core::publication::batch::BatchRefusal;
use crate::core::reports::ReportRefusal;
use crate::core::requests::AskRefusal;
use crate::core::rollouts::RolloutRefusal;
use crate::core::roots::RootRefusal;
use crate::roots::RootsError;
use crate::signer::NotNamed;
use crate::store::blobs::BlobError;
use crate::store::{Failed, StoreError};

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        // Where it is, is for the log, not for strangers; `reach` has written it there.
        if let StoreError::Unreachable { .. } = error {
            let message = "the controller's database cannot be reached: repeat in a moment";
            return refuse(StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy, message);
        }
        let (status, code) = match error {
            StoreError::Full => (StatusCode::INSUFFICIENT_STORAGE, ProblemCode::StorageFull),
            StoreError::Busy | StoreError::Conflict | StoreError::Unavailable(_) => {
                (StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy)
            }
            _ => (StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal),
        };
        refuse(status, code, error.to_string())
    }
}

impl<E> From<Failed<E>> for Refused
where
    Refused: From<E>,
{
    fn from(failed: Failed<E>) -> Self {
        match failed {
            Failed::Refused(refusal) => refusal.into(),
            Failed::Store(error) => error.into(),
        }
    }
}

impl From<EnrolRefusal> for Refused {
    fn from(error: EnrolRefusal) -> Self {
        let (status, code) = match error {
            EnrolRefusal::RootUnknown | EnrolRefusal::TokenUnknown => {
                (StatusCode::NOT_FOUND, ProblemCode::TokenUnknown)
            }
            EnrolRefusal::TokenUsed(_) => (StatusCode::GONE, ProblemCode::TokenUsed),
            EnrolRefusal::TokenExpired(_) => (StatusCode::GONE, ProblemCode::TokenExpired),
            EnrolRefusal::BadCode(_) => (StatusCode::FORBIDDEN, ProblemCode::BadSignature),
            EnrolRefusal::OtherMachine { .. } => (StatusCode::FORBIDDEN, ProblemCode::Unauthorised),
            EnrolRefusal::WrongClass { .. } => (StatusCode::FORBIDDEN, ProblemCode::WrongClass),
            EnrolRefusal::KeyTaken => (StatusCode::CONFLICT, ProblemCode::Conflict),
            EnrolRefusal::Revoked(_) => (StatusCode::FORBIDDEN, ProblemCode::Revoked),
        };
        refuse(status, code, error.to_string())
    }
}

impl From<CheckInRefusal> for Refused {
    fn from(error: CheckInRefusal) -> Self {
        let (status, code) = match error {
            CheckInRefusal::TooManyKeys { wait_seconds, .. } => {
                let refused = refuse(StatusCode::TOO_MANY_REQUESTS, ProblemCode::TooMany, error.to_string());
                return refused.again_in(wait_seconds);
            }
            CheckInRefusal::OtherFleet { .. } => (StatusCode::FORBIDDEN, ProblemCode::Unauthorised),
            CheckInRefusal::WrongClass { .. } => (StatusCode::FORBIDDEN, ProblemCode::WrongClass),
            CheckInRefusal::NotEnrolled(_) => (StatusCode::FORBIDDEN, ProblemCode::Revoked),
            CheckInRefusal::Sequence { .. } => (StatusCode::CONFLICT, ProblemCode::Sequence),
            CheckInRefusal::Repeated { .. } => (StatusCode::CONFLICT, ProblemCode::Repeated),
            CheckInRefusal::OutOfRange(_) => (StatusCode::BAD_REQUEST, ProblemCode::Malformed),
            CheckInRefusal::CachedReply => (StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal),
            CheckInRefusal::KeyTaken(_) => (StatusCode::CONFLICT, ProblemCode::Conflict),
        };
        refuse(status, code, error.to_string())
    }
}

impl From<ReportRefusal> for Refused {
    fn from(error: ReportRefusal) -> Self {
        let (status, code) = match error {
            ReportRefusal::NotEnrolled(_) => (StatusCode::FORBIDDEN, ProblemCode::Revoked),
            ReportRefusal::Order { .. } => (StatusCode::BAD_REQUEST, ProblemCode::Malformed),
            ReportRefusal::OutOfRange { .. } => (StatusCode::CONFLICT, ProblemCode::EventNumbers),
        };
        refuse(status, code, error.to_string())
    }
}

impl From<MachineRefusal> for Refused {
    fn from(error: MachineRefusal) -> Self {
        let (status, code) = match error {
            MachineRefusal::WrongClass { .. } => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::WrongClass),
            MachineRefusal::Twice(_) | MachineRefusal::Count(_) | MachineRefusal::NotPlain(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed)
            }
            MachineRefusal::TokenExpired => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::TokenExpired),
            MachineRefusal::Unknown(_) => (StatusCode::NOT_FOUND, ProblemCode::UnknownMachine),
            MachineRefusal::NoAlarm(_) => (StatusCode::NOT_FOUND, ProblemCode::NotFound),
            MachineRefusal::Enrolled(_)
            | MachineRefusal::TokenTaken
            | MachineRefusal::KeyTaken(_)
            | MachineRefusal::OtherKey(_)
            | MachineRefusal::Revoked(_) => (StatusCode::CONFLICT, ProblemCode::Conflict),
        };
        refuse(status, code, error.to_string())
    }
}

impl From<RolloutRefusal> for Refused {
    fn from(error: RolloutRefusal) -> Self {
        let (status, code) = match error {
            RolloutRefusal::Plan(_) => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed),
            RolloutRefusal::Unknown(_) | RolloutRefusal::NotItsPlace { .. } => {
                (StatusCode::NOT_FOUND, ProblemCode::NotFound)
            }
            RolloutRefusal::Stopped(_) | RolloutRefusal::TooMany => {
                (StatusCode::CONFLICT, ProblemCode::Conflict)
            }
        };
        refuse(status, code, error.to_string())
    }
}

impl From<CutRefusal> for Refused {
    fn from(error: CutRefusal) -> Self {
        let (status, code) = match error {
            CutRefusal::Unknown { .. } => (StatusCode::NOT_FOUND, ProblemCode::NotFound),
            CutRefusal::NotHeld => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed),
            CutRefusal::Cut(_) | CutRefusal::Other(_) | CutRefusal::Young { .. } | CutRefusal::Damaged(_) => {
                (StatusCode::CONFLICT, ProblemCode::Conflict)
            }
        };
        refuse(status, code, error.to_string())
    }
}

impl From<AskRefusal> for Refused {
    fn from(error: AskRefusal) -> Self {
        let (status, code) = match error {
            AskRefusal::Unsound(_) => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::BadSignature),
            AskRefusal::NotEnrolled(_) => (StatusCode::NOT_FOUND, ProblemCode::UnknownMachine),
            AskRefusal::OtherKey(_) | AskRefusal::TooMany(_) => (StatusCode::CONFLICT, ProblemCode::Conflict),
        };
        refuse(status, code, error.to_string())
    }
}

impl From<DraftRefusal> for Refused {
    fn from(error: DraftRefusal) -> Self {
        let (status, code) = match error {
            DraftRefusal::Unknown(_) => (StatusCode::NOT_FOUND, ProblemCode::NotFound),
            DraftRefusal::TooMany | DraftRefusal::Void(_) => (StatusCode::CONFLICT, ProblemCode::Conflict),
            DraftRefusal::RootKeyAlone => (StatusCode::FORBIDDEN, ProblemCode::Unauthorised),
            DraftRefusal::Unsigned => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::BadSignature),
            DraftRefusal::Misplaced { .. } => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed),
            DraftRefusal::CannotTake { .. } => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::WrongClass),
            DraftRefusal::Draft(_) => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed),
        };
        refuse(status, code, error.to_string())
    }
}

impl From<PublishRefusal> for Refused {
    fn from(error: PublishRefusal) -> Self {
        let (status, code) = not_published(&error);
        refuse(status, code, error.to_string())
    }
}

fn not_published(error: &PublishRefusal) -> (StatusCode, ProblemCode) {
    match error {
        PublishRefusal::Unknown(_) => (StatusCode::NOT_FOUND, ProblemCode::UnknownMachine),
        PublishRefusal::Revoked(_) => (StatusCode::FORBIDDEN, ProblemCode::Revoked),
        PublishRefusal::NotNext { .. } | PublishRefusal::NoNext { .. } | PublishRefusal::Changed(_) => {
            (StatusCode::CONFLICT, ProblemCode::Conflict)
        }
        PublishRefusal::Unsound(error) => (StatusCode::UNPROCESSABLE_ENTITY, unsound(error)),
        PublishRefusal::Misplaced { .. } => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed),
        PublishRefusal::OldAgent(_) => (StatusCode::CONFLICT, ProblemCode::Conflict),
        PublishRefusal::CannotTake { .. } => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::WrongClass),
        PublishRefusal::Sign(_) => (StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal),
    }
}

impl From<BatchRefusal> for Refused {
    /// With the status and the code of the first machine's refusal, whose name comes first in the message. An
    /// unknown machine is a conflict here: 404 would say that there is nothing at this address.
    fn from(error: BatchRefusal) -> Self {
        let (status, code) = match &error {
            BatchRefusal::Empty | BatchRefusal::Twice(_) => (StatusCode::BAD_REQUEST, ProblemCode::Malformed),
            BatchRefusal::NewRoot => (StatusCode::CONFLICT, ProblemCode::Conflict),
            BatchRefusal::Refused { refused, .. } => match refused.first().map(|(_, why)| not_published(why))
            {
                Some((StatusCode::NOT_FOUND, code)) => (StatusCode::CONFLICT, code),
                Some(first) => first,
                None => (StatusCode::CONFLICT, ProblemCode::Conflict),
            },
        };
        refuse(status, code, error.to_string())
    }
}

/// The code for a publication that no machine would accept.
fn unsound(error: &TufError) -> ProblemCode {
    match error.attack() {
        Some(Attack::ForgedSignature) => ProblemCode::BadSignature,
        Some(Attack::WrongClass) => ProblemCode::WrongClass,
        Some(Attack::EndlessData) => ProblemCode::TooLarge,
        _ => ProblemCode::Malformed,
    }
}

impl From<BlobError> for Refused {
    fn from(error: BlobError) -> Self {
        let (status, code) = match error {
            BlobError::Full => (StatusCode::INSUFFICIENT_STORAGE, ProblemCode::StorageFull),
            BlobError::Unreachable | BlobError::Denied | BlobError::NoBucket(_) | BlobError::Crowded => {
                (StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy)
            }
            BlobError::Other(_) | BlobError::Open(..) | BlobError::Settings(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal)
            }
        };
        refuse(status, code, error.to_string())
    }
}

impl From<GarbageRefusal> for Refused {
    fn from(error: GarbageRefusal) -> Self {
        Self::busy(&error.to_string())
    }
}

impl From<RootsError> for Refused {
    fn from(error: RootsError) -> Self {
        let (status, code) = match error {
            RootsError::Refused(refusal) => return refusal.into(),
            RootsError::TooStrong(refusal) => return RootRefusal::from(refusal).into(),
            RootsError::Write(..) | RootsError::Read(..) | RootsError::Empty(_) => {
                (StatusCode::INTERNAL_SERVER_ERROR, ProblemCode::Internal)
            }
            RootsError::TooLarge(_) => (StatusCode::PAYLOAD_TOO_LARGE, ProblemCode::TooLarge),
            RootsError::Bad(_, ref error) => (StatusCode::UNPROCESSABLE_ENTITY, bad_root(error)),
            RootsError::OnlineKey(_) | RootsError::Other(_) => {
                (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed)
            }
        };
        refuse(status, code, error.to_string())
    }
}

impl From<RootRefusal> for Refused {
    fn from(error: RootRefusal) -> Self {
        let (status, code) = match error {
            RootRefusal::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, ProblemCode::TooLarge),
            RootRefusal::NotNext { .. } => (StatusCode::CONFLICT, ProblemCode::Conflict),
            RootRefusal::Unreadable(ref error) | RootRefusal::Unsound(ref error) => {
                (StatusCode::UNPROCESSABLE_ENTITY, bad_root(error))
            }
            RootRefusal::OnlineKey(_) => (StatusCode::UNPROCESSABLE_ENTITY, ProblemCode::Malformed),
            RootRefusal::Stranger => (StatusCode::FORBIDDEN, ProblemCode::Unauthorised),
        };
        refuse(status, code, error.to_string())
    }
}

fn bad_root(error: &TufError) -> ProblemCode {
    match error.attack() {
        Some(Attack::ForgedSignature) => ProblemCode::BadSignature,
        _ => ProblemCode::Malformed,
    }
}

impl From<NotNamed> for Refused {
    fn from(error: NotNamed) -> Self {
        refuse(StatusCode::SERVICE_UNAVAILABLE, ProblemCode::Busy, error.to_string())
    }
}
