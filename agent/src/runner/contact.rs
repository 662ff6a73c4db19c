//! Talks to the controller as [`Schedule`] says: performs its steps and reports the results to it.

use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::LocalBoxFuture;
use muster_protocol::api::ProblemCode;
use muster_protocol::checkin::{CheckIn, CheckInReply, Holds, PollReply};
use muster_protocol::keys::SecretKey;
use muster_protocol::report::{Attack, EventKind};

use super::chance::number;
use super::errands::Errands;
use super::error::ContactError;
use super::reporting::Reporting;
use super::requests::Requests;
use super::sessions::Sessions;
use super::shared::Shared;
use super::unanswered::{Outgoing, Unanswered};
use crate::client::{Client, ClientError};
use crate::core::hints::LONGEST_PAUSE;
use crate::core::schedule::{CheckedIn, Failure, Next, Observed, Schedule, Spinning};
use crate::core::state::State;
use crate::identity;
use crate::trust::{Sent, Trust};

/// A check-in, the key that it brings, and the previous key that signs it if the controller knows no other.
struct Sending {
    outgoing: Outgoing,
    next: Option<SecretKey>,
    by: Option<SecretKey>,
}

struct Contact<'a> {
    shared: &'a Shared,
    client: &'a Client,
    trust: Trust,
    schedule: Schedule,
    reporting: Reporting,
    unanswered: Unanswered,
    requests: Requests,
    errands: Errands,
    sessions: Sessions,
    poll: Option<Poll<'a>>,
    /// What was held when the poll was opened.
    polled_with: Holds,
    /// What came with the last poll's reply, until the next refresh.
    sent: Option<Sent>,
    /// Why the metadata was refused, until it is good.
    unsound: Option<Attack>,
    /// When a check-in's recovery from a refusal was last reported, in awake time.
    calmed: Option<Duration>,
    /// It was logged that a new key was requested without an operator's signature.
    unsigned: bool,
}

type Poll<'a> = LocalBoxFuture<'a, Result<PollReply, ClientError>>;

/// Runs until dropped. It survives whatever the controller does.
pub async fn run(shared: &Shared, client: &Client, trust: Trust, unanswered: Unanswered) {
    let mut contact = Contact {
        shared,
        client,
        trust,
        schedule: Schedule::new(shared.config.poll_seconds),
        reporting: Reporting::default(),
        unanswered,
        requests: Requests::open(&shared.config.state_dir),
        errands: Errands::default(),
        sessions: Sessions::default(),
        poll: None,
        polled_with: Holds::default(),
        sent: None,
        unsound: None,
        calmed: None,
        unsigned: false,
    };
    loop {
        let next = contact.schedule.next(&contact.observed());
        if let Err(error) = contact.perform(next).await {
            contact.failed(&error);
        }
    }
}

impl Contact<'_> {
    fn observed(&self) -> Observed {
        Observed {
            now: self.now(),
            held: self.shared.heard.wanted_generation(),
            to_tell: self.shared.wakes.has_to_tell(),
            reports: !self.shared.ledger.borrow().outbox.is_empty(),
            refresh: self.shared.asks.wants_refresh(),
        }
    }

    async fn perform(&mut self, next: Next) -> Result<(), ContactError> {
        let wakes = &self.shared.wakes;
        match next {
            Next::CheckIn => self.say().await,
            Next::Report => {
                self.report().await;
                Ok(())
            }
            Next::Refresh => self.refresh().await,
            Next::Remind => {
                wakes.wake_contact();
                Ok(())
            }
            Next::Poll => {
                self.open_poll();
                Ok(())
            }
            Next::Listen { until } => self.listen(until).await,
            Next::Gather { until } => {
                let late = tokio::time::sleep(self.left(until));
                if wakes.take_hurry() {
                    self.schedule.gathered();
                } else {
                    tokio::select! {
                        () = late => self.schedule.gathered(),
                        () = wakes.contact() => {}
                    }
                }
                Ok(())
            }
            Next::Pause { until } => {
                let over = tokio::time::sleep(self.left(until));
                tokio::select! {
                    () = over => {}
                    () = wakes.contact() => self.schedule.woken(self.now()),
                }
                Ok(())
            }
        }
    }

    fn open_poll(&mut self) {
        // The work checks whether somebody else changed the machine meanwhile.
        self.shared.wakes.wake_work();
        let have = self.schedule.hint().or(self.shared.heard.wanted_generation());
        let (client, wait) = (self.client, self.schedule.poll_wait(number()));
        self.polled_with = self.trust.holds();
        self.sent = None;
        self.poll = Some(client.poll(have, wait, self.polled_with.root).boxed_local());
        self.schedule.polling(self.now());
    }

    async fn listen(&mut self, until: Option<Duration>) -> Result<(), ContactError> {
        let due = tokio::time::sleep(until.map(|until| self.left(until)).unwrap_or_default());
        let again = self.errands.again();
        let errand = tokio::time::sleep(again.map(|again| self.left(again)).unwrap_or_default());
        let answer = async {
            match &mut self.poll {
                Some(poll) => poll.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            reply = answer => {
                self.poll = None;
                let reply = reply?;
                let root = self.polled_with.root;
                self.sent = reply.files.map(|files| Sent { files: *files, root });
                let polled = self.schedule.polled(reply.generation, reply.check_in, self.now());
                self.note_news();
                self.shared.answered();
                if reply.check_in {
                    self.shared.wakes.mark();
                }
                polled.map_err(|Spinning| ContactError::Spinning)
            }
            () = self.shared.wakes.contact() => {
                self.schedule.woken(self.now());
                Ok(())
            }
            () = errand, if again.is_some() => {
                self.run_errands().await;
                Ok(())
            }
            () = due, if until.is_some() => {
                self.schedule.reports_due();
                Ok(())
            }
        }
    }

    /// Marks it as reported beforehand: later changes belong to the next check-in.
    async fn say(&mut self) -> Result<(), ContactError> {
        self.shared.wakes.take_to_tell();
        let said = self.check_in().await;
        if said.is_err() {
            self.shared.wakes.mark();
        }
        said
    }

    async fn report(&mut self) {
        let (shared, client) = (self.shared, self.client);
        match self.reporting.send(shared, client).await {
            Ok(()) => {
                let more = !shared.ledger.borrow().outbox.is_empty();
                self.schedule.reported(more, self.now());
            }
            Err(error) => {
                let answer = error.client();
                let refused = matches!(answer, Some(ClientError::Refused { status: 400..=499, .. }));
                let failure = self.failure(&error);
                let (wait, first) = self.schedule.not_reported(&failure, refused, self.now());
                if first {
                    tracing::warn!("reports wait: {error}");
                } else {
                    tracing::debug!(wait_ms = wait.as_millis(), "reports wait: {error}");
                }
            }
        }
    }

    /// The unanswered check-in, or the next one.
    fn sending(&mut self) -> Result<Sending, ContactError> {
        let key = self.client.key();
        let in_force = key.as_ref().map(SecretKey::public);
        let by = match self.schedule.older_key() {
            Some(older) => self.previous_keys()?.into_iter().nth(older),
            None => None,
        };
        if let Some(outgoing) = self.unanswered.take()
            && let Some(next) = self.signed_by(&outgoing)
            && (by.is_none() || outgoing.check_in.new_key == in_force)
        {
            return Ok(Sending { outgoing, next, by });
        }
        // A previous key only ever brings the one in force.
        let brings = in_force.filter(|_| by.is_some());
        let next = self.shared.next_check_in(brings, key.as_ref())?;
        let session = self.sessions.ask(next.new_key.is_some(), self.now());
        self.unanswered.keep(CheckIn { session, ..next })?;
        let outgoing = self.unanswered.take().ok_or(ContactError::NothingStored)?;
        let next = self.signed_by(&outgoing).flatten();
        Ok(Sending { outgoing, next, by })
    }

    fn previous_keys(&self) -> Result<Vec<SecretKey>, ContactError> {
        let now = self.shared.clock.unix_ms();
        Ok(identity::previous_keys(&self.shared.config.state_dir, now)?)
    }

    /// The key that a check-in brings and that also signs it; `None` if that key is gone.
    fn signed_by(&self, outgoing: &Outgoing) -> Option<Option<SecretKey>> {
        let Some(new) = outgoing.check_in.new_key else { return Some(None) };
        let next = self.shared.next_key.get().filter(|next| next.public() == new);
        next.or_else(|| self.client.key().filter(|key| key.public() == new)).map(Some)
    }

    /// A check-in failed.
    fn not_taken(&mut self, error: &ClientError, sending: &Sending) -> Result<(), ContactError> {
        if error.ends_check_in() {
            self.unanswered.answered();
        }
        if error.needs_new_bearer() {
            let previous = self.previous_keys()?.len();
            self.schedule.key_not_known(previous);
        }
        let waits = self.shared.next_key.public();
        if error.needs_new_bearer() && waits.is_some() && sending.outgoing.check_in.new_key != waits {
            // Or the next key, which the controller accepted while claiming otherwise.
            self.shared.next_key.show();
            self.unanswered.answered();
        }
        if error.code() == Some(ProblemCode::Conflict)
            && waits.is_some()
            && sending.outgoing.check_in.new_key == waits
        {
            self.shared.next_key_is_doubted();
        }
        Ok(())
    }

    /// Sends a check-in in its session if there is one. Whatever refuses that as a proof, the same bytes are
    /// signed at once: they have the same answer, and raise no alarm.
    async fn send(&mut self, sending: &Sending, now: Duration) -> Result<CheckInReply, ClientError> {
        let Sending { outgoing, next, by } = sending;
        let bytes = outgoing.bytes.clone();
        if by.is_none()
            && let Some(session) = self.sessions.of(&outgoing.check_in, now)
        {
            match self.client.check_in_by_session(bytes.clone(), session).await {
                Err(error) if error.needs_new_bearer() => {
                    tracing::debug!("the session has ended: {error}");
                    self.sessions.ended();
                }
                answered => return answered,
            }
        }
        self.client.check_in(bytes, next.as_ref(), by.as_ref()).await
    }

    async fn check_in(&mut self) -> Result<(), ContactError> {
        let sending = self.sending()?;
        let (sent, sent_at) = (self.now(), self.shared.clock.unix_ms());
        let reply = match self.send(&sending, sent).await {
            Ok(reply) => reply,
            Err(error) => {
                self.not_taken(&error, &sending)?;
                return Err(error.into());
            }
        };
        let Sending { outgoing, next, .. } = sending;
        self.sessions.offered(&outgoing.check_in, reply.session.as_ref(), sent);
        // Before the key is replaced, which may fail half-way: then the same bytes are sent again.
        self.schedule.key_known();
        let waits = self.shared.next_key.public();
        if let Some(next) = next.filter(|next| waits == Some(next.public())) {
            self.shared.rotated(self.client, &next)?;
        }
        self.unanswered.answered();
        if !outgoing.fresh {
            // Later changes belong to the next one.
            self.shared.wakes.mark();
        }
        if reply.rotate_key && reply.requests.is_empty() && !std::mem::replace(&mut self.unsigned, true) {
            tracing::warn!("the controller asks for a new key without an operator's signature; ignored");
        }
        self.schedule.checked_in(&CheckedIn {
            sent,
            bearer_seconds: reply.bearer_expires_in,
            poll_seconds: reply.poll_seconds,
            hint: reply.generation,
        });
        self.note_news();
        self.shared.heard.check_in_answered(sent);
        self.shared.log.heard(reply.log, self.shared.clock.unix_ms(), self.now());
        self.shared.asks.answer(&Ok("the controller answers; the agent fetches what it has".to_owned()));
        self.shared.answered();
        // It does not say which stream it refers to: only the answer to a batch acknowledges events.
        self.reporting.claimed(reply.reports_through, self.shared);
        let operators = self.trust.operators();
        let refused = self.requests.heard(&reply.requests, &operators, self.shared, self.client)?;
        for refusal in refused {
            self.refuse(refusal.attack, &refusal.detail);
        }
        // The answer to bytes that were sent before counts from then, which nobody noted.
        let leave = reply.rollout.filter(|_| outgoing.fresh);
        self.shared.turns.answered(leave, sent, sent_at);
        self.errands.heard();
        self.run_errands().await;
        let refuses = self.refuses();
        if self.shared.heard.set_refused(refuses).is_some() && refuses.is_none() && self.may_calm() {
            self.shared.wakes.changed();
        }
        self.shared.wakes.wake_work();
        Ok(())
    }

    /// Fetches what a rollout needs, if anything.
    async fn run_errands(&mut self) {
        let refused = self.errands.run(&mut self.trust, self.shared, self.client).await;
        if let Some((attack, detail)) = refused {
            self.refuse(attack, &detail);
        }
    }

    /// Records the controller's hints; never trusted.
    fn note_news(&self) {
        let news = self.schedule.is_news(self.shared.heard.wanted_generation(), self.now());
        self.shared.heard.set_speaks_of_news(news);
    }

    async fn refresh(&mut self) -> Result<(), ContactError> {
        // What was fetched since the poll was opened may be newer than what came with its reply, which would
        // look like an attack.
        let sent = self.sent.take().filter(|_| self.trust.holds() == self.polled_with);
        let result = self.trust.refresh_from(self.client, sent, self.shared.clock.unix_seconds()).await;
        if let Some(bent) = self.trust.take_bent()
            && let Some(attack) = bent.attack()
        {
            self.refuse(attack, &format!("{bent} (sent along with news)"));
        }
        self.note_holds();
        self.shared.asks.refreshed();
        self.shared.heard.set_speaks_of_news(false);
        let target = match result {
            Ok(target) => target,
            Err(error) => {
                if let Some(attack) = error.attack() {
                    self.unsound = Some(attack);
                    self.schedule.refused(self.now());
                    self.refuse(attack, &error.to_string());
                }
                return Err(error.into());
            }
        };
        self.shared.answered();
        self.schedule.refreshed(target.as_ref().map(|target| target.generation), self.now());
        self.unsound = None;
        let refuses = self.refuses();
        if self.shared.heard.set_refused(refuses) != refuses {
            self.shared.wakes.changed();
        }
        self.shared.heard.verified(target);
        self.shared.wakes.wake_work();
        self.run_errands().await;
        Ok(())
    }

    /// Updates what is held, also after a partly refused refresh: a new root counts from the moment it is
    /// held, and targets of an earlier epoch are no longer wanted.
    fn note_holds(&mut self) {
        let holds = self.trust.holds();
        self.shared.turns.hold(&self.trust);
        let before = self.shared.heard.set_holds(holds);
        if before == holds {
            return;
        }
        self.shared.wakes.mark();
        if (before.root, before.targets, before.epoch) != (holds.root, holds.targets, holds.epoch) {
            self.schedule.signed_news();
        }
        if self.shared.heard.disown_before(holds.epoch) {
            tracing::warn!(
                "epoch {} has begun: what was signed before it is no longer accepted",
                holds.epoch
            );
        }
        self.shared.wakes.wake_work();
    }

    /// Whether to report at once that nothing is refused any more. A controller that sends a forgery now and
    /// then does not trigger a check-in for each: the next one reports it anyway.
    fn may_calm(&mut self) -> bool {
        let now = self.now();
        let may = self.calmed.is_none_or(|at| now.saturating_sub(at) >= LONGEST_PAUSE);
        if may {
            self.calmed = Some(now);
        }
        may
    }

    /// What was delivered and refused, and not delivered correctly since.
    fn refuses(&self) -> Option<Attack> {
        let forged = self.requests.has_forged().then_some(Attack::ForgedSignature);
        self.unsound.or(forged).or(self.errands.refused())
    }

    /// Reports an attack once, until something is accepted again or the attack changes.
    fn refuse(&self, attack: Attack, detail: &str) {
        if self.shared.heard.set_refused(Some(attack)) == Some(attack) {
            return;
        }
        tracing::error!("refused as {}: {detail}", attack.as_str());
        let event = EventKind::Refused { attack, detail: detail.to_owned() };
        let now = self.shared.clock.unix_ms();
        if let Err(error) = self.shared.ledger.borrow_mut().tell(self.schedule.hint(), event, now) {
            tracing::error!(%error, "the refusal cannot be reported");
        }
        self.shared.wakes.changed();
    }

    fn failure(&self, error: &ContactError) -> Failure {
        let client = error.client();
        Failure {
            unauthorised: client.is_some_and(ClientError::needs_new_bearer),
            retry_after: client.and_then(ClientError::retry_after),
            probing: self.probing(),
            random: number(),
        }
    }

    /// Records a failure.
    fn failed(&mut self, error: &ContactError) {
        self.poll = None;
        let client = error.client();
        if client.is_some_and(ClientError::is_unreachable) {
            self.shared.heard.forget_answers();
        }
        if client.and_then(ClientError::code) == Some(ProblemCode::Sequence) {
            self.refuse(Attack::Clone, &error.to_string());
        }
        match client.and_then(ClientError::code) {
            Some(ProblemCode::Revoked | ProblemCode::UnknownMachine) => {
                let words = format!("the controller no longer accepts this machine: {error}");
                self.shared.asks.answer(&Err(words.clone()));
                self.shared.heard.set_shut_out(words);
            }
            _ => {
                let words = format!("asking the controller failed; the agent keeps trying: {error}");
                self.shared.asks.answer(&Ok(words));
            }
        }
        let failure = self.failure(error);
        let (wait, first) = self.schedule.failed(&failure, self.now());
        // Only the first failure in a row is news.
        if first {
            tracing::warn!("{error}");
        } else {
            tracing::debug!(wait_ms = wait.as_millis(), "{error}");
        }
    }

    /// Whether a generation waits for confirmation.
    fn probing(&self) -> bool {
        self.shared.ledger.borrow().transaction().is_some_and(|open| open.state == State::Probing)
    }

    fn left(&self, until: Duration) -> Duration {
        until.saturating_sub(self.now())
    }

    fn now(&self) -> Duration {
        self.shared.clock.awake()
    }
}
