//! Everything that is said to the controller and heard from it. It survives whatever the controller does.

use std::pin::pin;
use std::time::Duration;

use muster_protocol::api::ProblemCode;
use muster_protocol::checkin::BEARER_SECONDS;
use muster_protocol::ids::Generation;
use muster_protocol::keys::SecretKey;
use muster_protocol::report::{Attack, EventKind};

use super::chance::number;
use super::error::ContactError;
use super::reporting::Reporting;
use super::requests::Requests;
use super::shared::Shared;
use super::unanswered::{Outgoing, Unanswered};
use crate::client::{Client, ClientError};
use crate::core::backoff::{Backoff, part};
use crate::core::hints::{Hints, LONGEST_PAUSE};
use crate::core::state::State;
use crate::identity;
use crate::trust::Trust;

/// The longest wait while a generation waits only for the controller to be reached.
const PROBING_PAUSE: Duration = Duration::from_secs(1);
/// How long a change waits for others to be told with.
const MOMENT: Duration = Duration::from_millis(250);
/// A poll that ends sooner than this and brings nothing new is hasty.
const TOO_SOON: Duration = Duration::from_millis(500);
/// As many hasty polls in a row are nothing: calls to check in that follow each other closely. One more counts as a failure,
/// so that nobody spins.
const HASTY: u32 = 3;

/// A check-in, the key that it brings, and the key before that signs it where the controller knows no other.
struct Sending {
    outgoing: Outgoing,
    next: Option<SecretKey>,
    by: Option<SecretKey>,
}

struct Contact<'a> {
    shared: &'a Shared,
    client: &'a Client,
    trust: Trust,
    /// When the bearer should be renewed, in time awake.
    bearer_until: Option<Duration>,
    hints: Hints,
    reporting: Reporting,
    unanswered: Unanswered,
    requests: Requests,
    /// Which of the keys before signs, while the controller does not know the newest one.
    older: Option<usize>,
    /// Why the metadata was refused, until it is good.
    unsound: Option<Attack>,
    /// When it was told last that what a check-in brought is sound again, in time awake.
    calmed: Option<Duration>,
    /// It was said that a new key was asked for by nobody's signature.
    unsigned: bool,
    /// How many polls in a row were hasty.
    hasty: u32,
    /// The round before ended with an answer to its poll, and not with a call to check in.
    heard: bool,
    poll_seconds: u64,
}

pub async fn run(shared: &Shared, client: &Client, trust: Trust, unanswered: Unanswered) {
    let mut contact = Contact {
        shared,
        client,
        trust,
        bearer_until: None,
        hints: Hints::default(),
        reporting: Reporting::default(),
        unanswered,
        requests: Requests::open(&shared.config.state_dir),
        older: None,
        unsound: None,
        calmed: None,
        unsigned: false,
        hasty: 0,
        heard: false,
        poll_seconds: shared.config.poll_seconds,
    };
    let mut backoff = Backoff::default();
    loop {
        match contact.round().await {
            Ok(()) => backoff.succeeded(),
            Err(error) => {
                let before = backoff;
                let wait = contact.failed(&error, &mut backoff);
                // Frequent tries before a confirmation are no sign that the controller is gone for longer.
                if contact.probing() && before.failures() > 0 {
                    backoff = before;
                }
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    // Nor is a try out of turn.
                    () = shared.wakes.contact() => if before.failures() > 0 { backoff = before },
                }
            }
        }
    }
}

impl Contact<'_> {
    /// Says what there is to say, follows what was hinted at, and listens for one poll.
    async fn round(&mut self) -> Result<(), ContactError> {
        if !std::mem::take(&mut self.heard) {
            self.say().await?;
        } else if self.has_to_say() {
            // What a poll has brought comes first, and what there is to say with what follows from it.
            self.shared.wakes.wake_contact();
        }
        if self.must_refresh() {
            self.refresh().await?;
        }
        // The work looks whether somebody else changed the machine meanwhile.
        self.shared.wakes.wake_work();
        let asked = self.now();
        let have = self.hints.hint().or(self.shared.heard.wanted_generation());
        let client = self.client;
        let mut poll = pin!(client.poll(have, self.poll_wait()));
        loop {
            let again = self.reports_again();
            tokio::select! {
                reply = &mut poll => {
                    let reply = reply?;
                    self.hinted(reply.generation);
                    self.shared.answered();
                    // Hints that change all the time are no news either; what they bring is.
                    let soon = self.now().saturating_sub(asked) < TOO_SOON;
                    self.hasty = if soon { self.hasty.saturating_add(1) } else { 0 };
                    if reply.check_in {
                        self.shared.wakes.mark();
                    }
                    self.heard = !reply.check_in;
                    return if self.hasty > HASTY { Err(ContactError::Spinning) } else { Ok(()) };
                }
                () = self.shared.wakes.contact() => {
                    self.gather().await;
                    self.say().await?;
                    if self.must_refresh() {
                        self.refresh().await?;
                    }
                }
                () = tokio::time::sleep(again.unwrap_or_default()), if again.is_some() => self.report().await,
            }
        }
    }

    /// Waits a moment for what follows closely, unless somebody waits for what there is: the steps of a quick update are
    /// told by one check-in.
    async fn gather(&self) {
        let moment = tokio::time::sleep(MOMENT);
        tokio::pin!(moment);
        while !self.shared.wakes.take_hurry() {
            tokio::select! {
                () = &mut moment => return,
                () = self.shared.wakes.contact() => {}
            }
        }
    }

    fn bearer_due(&self) -> bool {
        self.bearer_until.is_none_or(|until| self.now() >= until)
    }

    fn has_to_say(&self) -> bool {
        self.bearer_due() || self.shared.wakes.has_to_tell() || !self.shared.ledger.borrow().outbox.is_empty()
    }

    /// A check-in if something changed or the bearer runs out, then all reports that wait.
    async fn say(&mut self) -> Result<(), ContactError> {
        // One that waited for its answer, and what is new since.
        for _ in 0..2 {
            if !self.shared.wakes.take_to_tell() && !self.bearer_due() {
                break;
            }
            let said = self.check_in().await;
            if said.is_err() {
                self.shared.wakes.mark();
            }
            said?;
        }
        self.report().await;
        Ok(())
    }

    async fn report(&mut self) {
        let (shared, client) = (self.shared, self.client);
        self.reporting.send(shared, client).await;
    }

    /// How long until reports that were refused are tried again.
    fn reports_again(&self) -> Option<Duration> {
        let waiting = !self.shared.ledger.borrow().outbox.is_empty();
        self.reporting.again().filter(|_| waiting).map(|at| at.saturating_sub(self.now()))
    }

    /// The check-in that waits for its answer, or the next one.
    fn sending(&mut self) -> Result<Sending, ContactError> {
        let in_force = self.client.key().map(|key| key.public());
        let by = match self.older {
            Some(older) => self.previous_keys()?.into_iter().nth(older),
            None => None,
        };
        if let Some(outgoing) = self.unanswered.take()
            && let Some(next) = self.signed_by(&outgoing)
            && (by.is_none() || outgoing.check_in.new_key == in_force)
        {
            return Ok(Sending { outgoing, next, by });
        }
        // A key before only ever brings the one in force.
        let brings = in_force.filter(|_| by.is_some());
        self.unanswered.keep(self.shared.next_check_in(brings)?)?;
        let outgoing = self.unanswered.take().ok_or(ContactError::NothingStored)?;
        let next = self.signed_by(&outgoing).flatten();
        Ok(Sending { outgoing, next, by })
    }

    fn previous_keys(&self) -> Result<Vec<SecretKey>, ContactError> {
        let now = self.shared.clock.unix_ms();
        Ok(identity::previous_keys(&self.shared.config.state_dir, now)?)
    }

    /// The key that a check-in brings and that signs it too; `None` for one whose key is gone.
    fn signed_by(&self, outgoing: &Outgoing) -> Option<Option<SecretKey>> {
        let Some(new) = outgoing.check_in.new_key else { return Some(None) };
        let next = self.shared.next_key.get().filter(|next| next.public() == new);
        next.or_else(|| self.client.key().filter(|key| key.public() == new)).map(Some)
    }

    /// A check-in was not answered with a success.
    fn not_taken(&mut self, error: &ClientError, sending: &Sending) -> Result<(), ContactError> {
        if error.ends_check_in() {
            self.unanswered.answered();
        }
        if error.needs_new_bearer() {
            // It may know a key before: it was brought back from a backup, or lied that it took the new one.
            let next = self.older.map_or(0, |older| older.saturating_add(1));
            self.older = (next < self.previous_keys()?.len()).then_some(next);
        }
        let waits = self.shared.next_key.public();
        if error.needs_new_bearer() && waits.is_some() && sending.outgoing.check_in.new_key != waits {
            // Or the next one, which it took and said otherwise.
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

    async fn check_in(&mut self) -> Result<(), ContactError> {
        let sending = self.sending()?;
        let sent = self.now();
        let bytes = sending.outgoing.bytes.clone();
        let answer = self.client.check_in(bytes, sending.next.as_ref(), sending.by.as_ref()).await;
        let reply = match answer {
            Ok(reply) => reply,
            Err(error) => {
                self.not_taken(&error, &sending)?;
                return Err(error.into());
            }
        };
        let Sending { outgoing, next, .. } = sending;
        self.older = None;
        let waits = self.shared.next_key.public();
        if let Some(next) = next.filter(|next| waits == Some(next.public())) {
            self.shared.rotated(self.client, &next)?;
        }
        self.unanswered.answered();
        if !outgoing.fresh {
            // What has changed since is said by the next one.
            self.shared.wakes.mark();
        }
        if reply.rotate_key && reply.requests.is_empty() && !std::mem::replace(&mut self.unsigned, true) {
            tracing::warn!("the controller asks for a new key without an operator's signature; not followed");
        }
        let good = Duration::from_secs(reply.bearer_expires_in.min(BEARER_SECONDS)) * 3 / 4;
        self.bearer_until = Some(sent.saturating_add(good));
        self.poll_seconds = reply.poll_seconds.min(self.shared.config.poll_seconds).max(1);
        self.hinted(reply.generation.or(self.hints.hint()));
        self.shared.heard.check_in_answered(sent);
        self.shared.asks.answer(&Ok("the controller answers; the agent takes what it has".to_owned()));
        self.shared.answered();
        self.reporting.reached();
        // Which count it is of it does not say: only the answer to a batch lets events go.
        self.reporting.claimed(reply.reports_through, self.shared);
        let operators = self.trust.operators();
        let refused = self.requests.heard(&reply.requests, &operators, self.shared, self.client)?;
        for refusal in refused {
            self.refuse(refusal.attack, &refusal.detail);
        }
        let refuses = self.refuses();
        if self.shared.heard.set_refused(refuses).is_some() && refuses.is_none() && self.may_calm() {
            self.shared.wakes.changed();
        }
        self.shared.wakes.wake_work();
        Ok(())
    }

    /// Takes note of what the controller speaks of; never trusted.
    fn hinted(&mut self, hint: Option<Generation>) {
        self.hints.heard(hint);
        self.shared
            .heard
            .set_speaks_of_news(self.hints.is_news(self.shared.heard.wanted_generation(), self.now()));
    }

    fn must_refresh(&self) -> bool {
        self.shared.asks.wants_refresh()
            || self.hints.must_refresh(self.shared.heard.wanted_generation(), self.now())
    }

    async fn refresh(&mut self) -> Result<(), ContactError> {
        let result = self.trust.refresh(self.client, self.shared.clock.unix_seconds()).await;
        self.note_holds();
        self.shared.asks.refreshed();
        self.shared.heard.set_speaks_of_news(false);
        let target = match result {
            Ok(target) => target,
            Err(error) => {
                if let Some(attack) = error.attack() {
                    self.unsound = Some(attack);
                    self.hints.refused(self.now());
                    self.refuse(attack, &error.to_string());
                }
                return Err(error.into());
            }
        };
        self.shared.answered();
        self.hints.refreshed(target.as_ref().map(|target| target.generation), self.now());
        self.unsound = None;
        let refuses = self.refuses();
        if self.shared.heard.set_refused(refuses) != refuses {
            self.shared.wakes.changed();
        }
        self.shared.heard.verified(target);
        self.shared.wakes.wake_work();
        Ok(())
    }

    /// What is held now, also where the refresh was refused half way: a new root counts from the moment that it is held, and
    /// what an earlier epoch wanted is wanted no longer.
    fn note_holds(&mut self) {
        let holds = self.trust.holds();
        let before = self.shared.heard.set_holds(holds);
        if before == holds {
            return;
        }
        self.shared.wakes.mark();
        // What operators and root holders signed is news; a controller makes timestamps by itself, as many as it likes.
        if (before.root, before.targets, before.epoch) != (holds.root, holds.targets, holds.epoch) {
            self.hasty = 0;
        }
        if self.shared.heard.disown_before(holds.epoch) {
            tracing::warn!("epoch {} has begun: what was signed before it is taken no longer", holds.epoch);
        }
        self.shared.wakes.wake_work();
    }

    /// Whether it is told at once that nothing is refused any more. A controller that hands something forged on now and then
    /// does not get a check-in for each: the next one tells it anyway.
    fn may_calm(&mut self) -> bool {
        let now = self.now();
        let may = self.calmed.is_none_or(|at| now.saturating_sub(at) >= LONGEST_PAUSE);
        if may {
            self.calmed = Some(now);
        }
        may
    }

    /// What the machine was given and refused, and was not given soundly since.
    fn refuses(&self) -> Option<Attack> {
        self.unsound.or(self.requests.has_forged().then_some(Attack::ForgedSignature))
    }

    /// Tells an attack once, until something is accepted again or it is another one.
    fn refuse(&self, attack: Attack, detail: &str) {
        if self.shared.heard.set_refused(Some(attack)) == Some(attack) {
            return;
        }
        tracing::error!("refused as {}: {detail}", attack.as_str());
        let event = EventKind::Refused { attack, detail: detail.to_owned() };
        let now = self.shared.clock.unix_ms();
        if let Err(error) = self.shared.ledger.borrow_mut().tell(self.hints.hint(), event, now) {
            tracing::error!(%error, "the refusal cannot be reported");
        }
        self.shared.wakes.changed();
    }

    /// Takes note of a failure and says how long to wait.
    fn failed(&mut self, error: &ContactError, backoff: &mut Backoff) -> Duration {
        let client = error.client();
        if client.is_some_and(ClientError::is_unreachable) {
            self.shared.heard.forget_answers();
        }
        if client.is_some_and(ClientError::needs_new_bearer) {
            self.bearer_until = None;
        }
        if client.and_then(ClientError::code) == Some(ProblemCode::Sequence) {
            self.refuse(Attack::Clone, &error.to_string());
        }
        match client.and_then(ClientError::code) {
            Some(ProblemCode::Revoked | ProblemCode::UnknownMachine) => {
                let words = format!("the controller takes nothing of this machine any more: {error}");
                self.shared.asks.answer(&Err(words.clone()));
                self.shared.heard.set_shut_out(words);
            }
            _ => {
                let words = format!("the agent asked the controller, in vain, and goes on asking: {error}");
                self.shared.asks.answer(&Ok(words));
            }
        }
        let wait = backoff.failed(number(), client.and_then(ClientError::retry_after));
        let wait = if self.probing() { wait.min(PROBING_PAUSE) } else { wait };
        // The first failure of a series is news, the others are not.
        if backoff.failures() == 1 {
            tracing::warn!("{error}");
        } else {
            tracing::debug!(wait_ms = wait.as_millis(), "{error}");
        }
        wait
    }

    /// Whether a generation waits to be confirmed.
    fn probing(&self) -> bool {
        self.shared.ledger.borrow().transaction().is_some_and(|open| open.state == State::Probing)
    }

    /// In seconds; machines that began together drift apart by up to a tenth.
    fn poll_wait(&self) -> u64 {
        let whole = Duration::from_secs(self.poll_seconds);
        (whole - part(whole / 10, number())).as_secs().max(1)
    }

    fn now(&self) -> Duration {
        self.shared.clock.awake()
    }
}
