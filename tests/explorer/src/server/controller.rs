//! What a controller does with a request: reads the facts, lets the core decide, and applies the changes,
//! all at once.

use muster_protocol::checkin::CheckInReply;
use muster_protocol::clock::UnixMillis;
use muster_protocol::draft::Draft;
use muster_protocol::enrol::EnrolRequest;
use muster_protocol::ids::{Epoch, Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::AddMachine;
use muster_protocol::request::{MachineRequest, SignedRequest};
use muster_protocol::tuf::metadata::Root;
use muster_server::core::audit::AuditContext;
use muster_server::core::change::Decided;
use muster_server::core::checkin::{CheckInRefusal, ReceivedCheckIn};
use muster_server::core::drafts::DraftRefusal;
use muster_server::core::enrolment::EnrolRefusal;
use muster_server::core::machines::MachineRefusal;
use muster_server::core::publication::{NewGeneration, PublishRefusal, timestamp_version};
use muster_server::core::reports::{Batch, ReportRefusal};
use muster_server::core::requests::AskRefusal;
use muster_server::core::rows::{StoredDraft, Timestamp};
use muster_server::core::seals::Seals;
use muster_server::core::{checkin, drafts, enrolment, machines, publication, reports, requests};

use super::cast::TIMESTAMP_SECONDS;
use super::memory::Memory;

/// A guard of the controller that is taken out, to see that the properties notice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Break {
    /// Take a check-in of the last one's number, whatever it says.
    TakeAnyBody,
    /// Keep no reply for a check-in that comes again.
    ForgetReply,
    /// Take a check-in that was slow for a second machine's.
    AlarmOnDelay,
    /// Remember the checks of earlier lives: keep the sequence of the key before.
    ForgetSequence,
    /// Store events without looking at what is stored.
    StoreTwice,
    /// Go on counting where a machine began anew.
    ForgetRename,
    /// Believe that everything below the highest number is stored.
    SkipEvents,
    /// Take a token again that was used.
    TakeUsedToken,
    /// Leave a token alone whose machine is revoked.
    KeepTokens,
    /// Leave bearers alone whose key is replaced.
    KeepBearers,
    /// Publish whatever number is offered.
    PublishAnyNumber,
    /// Publish for what the machine was when the generation was checked.
    PublishForOldClass,
    /// Decide by what was stored when the request came.
    DecideOnOldFacts,
    /// Number timestamps by the clock alone.
    TimestampByClock,
    /// Number timestamps one after the other.
    TimestampByCount,
    /// Drop a request once it was handed on.
    DropHandedOn,
    /// Keep the last copy of a draft alone.
    KeepLastDraft,
    /// Chain entries of the log to nothing.
    LogUnchained,
    /// Tell nobody that a machine changed.
    ForgetCursor,
    /// Let machines run whatever the store names.
    TrustStore,
}

/// A decision as an answer or a refusal; a refusal changes nothing.
fn settled<A, E>(decided: Result<Decided<A>, E>) -> Decided<Result<A, E>> {
    match decided {
        Ok(Decided { changes, answer }) => Decided { changes, answer: Ok(answer) },
        Err(refusal) => Decided::unchanged(Err(refusal)),
    }
}

/// The decisions of the controller over what is stored.
#[derive(Clone, Copy)]
pub struct Controller<'a> {
    pub stored: &'a Memory,
    /// Its own key, which signs timestamps alone.
    pub online: PublicKey,
    pub broken: Option<Break>,
}

impl Controller<'_> {
    fn breaks(&self, guard: Break) -> bool {
        self.broken == Some(guard)
    }

    pub fn check_in(
        &self,
        received: &ReceivedCheckIn<'_>,
        seals: &Seals,
    ) -> Decided<Result<CheckInReply, CheckInRefusal>> {
        let (machine, seq) = (&received.checkin.machine, received.checkin.seq);
        let mut stored =
            self.stored.facts_of_check_in(machine, received.key, received.new_key(), received.now);
        if let Some(stored) = &mut stored {
            let body = Sha256::of(received.body);
            let is_last = stored.last.as_ref().is_some_and(|last| last.body == body);
            if self.breaks(Break::TakeAnyBody) && seq == stored.seq && !is_last {
                stored.seq -= 1;
            }
            if self.breaks(Break::ForgetReply) {
                stored.last = None;
            }
            if self.breaks(Break::AlarmOnDelay) {
                stored.earlier.clear();
            }
            if self.breaks(Break::ForgetSequence) && !is_last {
                stored.seq = 0;
            }
        }
        checkin::check_in(stored.as_ref(), received, seals)
    }

    pub fn enrol(&self, request: &EnrolRequest, now: UnixMillis) -> Decided<Result<(), EnrolRefusal>> {
        let mut stored = self.stored.facts_of_enrolment(&request.token, &request.key);
        if let Some(stored) = &mut stored
            && self.breaks(Break::TakeUsedToken)
        {
            stored.token.used = None;
        }
        settled(enrolment::enrol(stored.as_ref(), request, now))
    }

    pub fn report(
        &self,
        batch: &Batch<'_>,
        key: &PublicKey,
        keep: u64,
        now: UnixMillis,
    ) -> Decided<Result<u64, ReportRefusal>> {
        let mut stored = self.stored.facts_of_report(batch, key, now);
        if let Some(stored) = &mut stored {
            if self.breaks(Break::StoreTwice) {
                stored.through = 0;
            }
            if self.breaks(Break::ForgetRename) && stored.stream.is_some() {
                stored.stream = batch.stream.map(|stream| stream.to_string());
            }
            if self.breaks(Break::SkipEvents) {
                stored.through = stored.through.max(batch.oldest);
            }
        }
        settled(reports::report(stored.as_ref(), batch, keep, now))
    }

    pub fn add(&self, new: &AddMachine, context: &AuditContext<'_>) -> Decided<Result<(), MachineRefusal>> {
        let known = self.stored.facts_of_machine(&new.machine);
        let taken = self.stored.tokens.contains_key(&new.token);
        settled(machines::add(known.as_ref(), taken, new, context))
    }

    pub fn revoke(
        &self,
        machine: &MachineName,
        context: &AuditContext<'_>,
    ) -> Decided<Result<(), MachineRefusal>> {
        let known = self.stored.facts_of_machine(machine);
        settled(machines::revoke(known.as_ref(), machine, context))
    }

    pub fn acknowledge(
        &self,
        machine: &MachineName,
        context: &AuditContext<'_>,
    ) -> Decided<Result<(), MachineRefusal>> {
        let known = self.stored.facts_of_machine(machine);
        settled(machines::acknowledge(known.as_ref(), machine, context))
    }

    pub fn ask(
        &self,
        signed: &SignedRequest,
        request: &MachineRequest,
        context: &AuditContext<'_>,
    ) -> Decided<Result<(), AskRefusal>> {
        let stored = self.stored.facts_of_request(&request.machine);
        settled(requests::ask(stored.as_ref(), signed, request, context))
    }

    /// `at_check` is what was stored when its signatures were checked.
    pub fn publish(
        &self,
        new: &NewGeneration<'_>,
        at_check: &Memory,
        context: &AuditContext<'_>,
    ) -> Decided<Result<Option<Timestamp>, PublishRefusal>> {
        let from = if self.breaks(Break::DecideOnOldFacts) { at_check } else { self.stored };
        let offered = new.publication.generation;
        let mut stored = from.facts_of_publication(new.machine, offered);
        if let Some(stored) = &mut stored {
            if self.breaks(Break::PublishAnyNumber) {
                stored.published = Generation::of(offered.epoch(), offered.get() - 1).ok();
                stored.holds = Default::default();
            }
            if self.breaks(Break::PublishForOldClass) {
                (stored.class, stored.system) = (new.class, new.system.clone());
            }
        }
        let sign = |last, snapshot: &[u8]| Ok(self.sign(last, snapshot, context.at));
        settled(publication::publish(stored.as_ref(), new, context, sign))
    }

    pub fn timestamp(
        &self,
        machine: &MachineName,
        epoch: Epoch,
        now: UnixMillis,
    ) -> Decided<Result<Option<Timestamp>, PublishRefusal>> {
        let current = self.stored.facts_of_timestamp(machine, epoch);
        let good = |held: &Timestamp| held.expires.saturating_mul(1000) > now;
        let sign = |last, snapshot: &[u8]| Ok(self.sign(last, snapshot, now));
        settled(publication::timestamp(current.as_ref(), machine, good, sign))
    }

    /// A timestamp names the snapshot; its signature is left out, since the online key signs whatever the
    /// store has.
    fn sign(&self, last: u64, snapshot: &[u8], now: UnixMillis) -> Timestamp {
        let now_s = now.div_euclid(1000);
        let version = match self.broken {
            Some(Break::TimestampByClock) => u64::try_from(now_s).unwrap_or(0),
            Some(Break::TimestampByCount) => last + 1,
            _ => timestamp_version(last, now_s),
        };
        let expires = now_s + TIMESTAMP_SECONDS;
        Timestamp { bytes: snapshot.to_vec(), version, expires, key: self.online }
    }

    pub fn keep_draft(
        &self,
        draft: &Draft,
        root: &Root,
        context: &AuditContext<'_>,
    ) -> Decided<Result<StoredDraft, DraftRefusal>> {
        let id = match draft.id() {
            Ok(id) => id,
            Err(error) => return Decided::unchanged(Err(error.into())),
        };
        let mut stored = self.stored.facts_of_draft(&id);
        if self.breaks(Break::KeepLastDraft) {
            stored.held = None;
        }
        settled(drafts::keep(&stored, draft, root, context))
    }
}
