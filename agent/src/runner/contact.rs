//! Everything that is said to the controller and heard from it. It survives whatever the controller does.

use std::pin::pin;
use std::time::Duration;

use muster_protocol::api::ProblemCode;
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::Generation;
use muster_protocol::report::{Attack, EventKind};

use super::ledger::LedgerError;
use super::{Shared, number};
use crate::client::{Client, ClientError};
use crate::core::backoff::{Backoff, part};
use crate::core::state::State;
use crate::identity::IdentityError;
use crate::trust::{Trust, TrustError};

/// After this long awake the metadata is refreshed though nothing new was hinted at: that is how an operator's signature
/// that ran out, or a controller that withholds, is noticed.
const REFRESH_INTERVAL: Duration = Duration::from_secs(6 * 3600);
/// The longest wait while a generation waits only for the controller to be reached.
const PROBING_PAUSE: Duration = Duration::from_secs(1);
/// How long a change waits for others to be told with.
const MOMENT: Duration = Duration::from_millis(250);
/// A poll that ends sooner than this and brings nothing new is hasty.
const TOO_SOON: Duration = Duration::from_millis(500);
/// As many hasty polls in a row are nothing: calls to check in that follow each other closely. One more counts as a failure,
/// so that nobody spins.
const HASTY: u32 = 3;

#[derive(Debug, thiserror::Error)]
enum ContactError {
    #[error(transparent)]
    Client(#[from] ClientError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    #[error("the new key is the controller's already, and cannot be put in force here: {0}")]
    Rotation(#[from] IdentityError),
    #[error("the number of the next check-in cannot be kept: {source}; {}", crate::durable::remedy(source))]
    Sequence {
        #[from]
        source: std::io::Error,
    },
    #[error("the controller takes reports without storing them: look at its log")]
    NothingStored,
    #[error("the controller answers polls at once and has nothing new: look at its log")]
    Spinning,
}

impl ContactError {
    fn client(&self) -> Option<&ClientError> {
        match self {
            Self::Client(error) | Self::Trust(TrustError::Client(error)) => Some(error),
            _ => None,
        }
    }
}

struct Contact<'a> {
    shared: &'a Shared,
    client: &'a Client,
    trust: Trust,
    /// When the bearer should be renewed, in time awake.
    bearer_until: Option<Duration>,
    /// The generation that the controller last spoke of; never trusted.
    hint: Option<Generation>,
    /// The hint that the last refresh followed.
    followed: Option<Generation>,
    refreshed: Option<Duration>,
    /// How many polls in a row were hasty.
    hasty: u32,
    /// The round before ended with an answer to its poll, and not with a call to check in.
    heard: bool,
    poll_seconds: u64,
}

pub async fn run(shared: &Shared, client: &Client, trust: Trust) {
    let mut contact = Contact {
        shared,
        client,
        trust,
        bearer_until: None,
        hint: None,
        followed: None,
        refreshed: None,
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
                    () = shared.say.notified() => if before.failures() > 0 { backoff = before },
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
            self.shared.say.notify_one();
        }
        if self.must_refresh() {
            self.refresh().await?;
        }
        // The work looks whether somebody else changed the machine meanwhile.
        self.shared.work.notify_one();
        let asked = self.now();
        let have = self.hint.or(self.shared.holds_generation());
        let client = self.client;
        let mut poll = pin!(client.poll(have, self.poll_wait()));
        loop {
            tokio::select! {
                reply = &mut poll => {
                    let reply = reply?;
                    let new = reply.generation != have;
                    self.hinted(reply.generation);
                    self.answered();
                    let soon = self.now().saturating_sub(asked) < TOO_SOON;
                    self.hasty = if soon && !new { self.hasty.saturating_add(1) } else { 0 };
                    if reply.check_in {
                        self.shared.to_say.set(true);
                    }
                    self.heard = !reply.check_in;
                    return if self.hasty > HASTY { Err(ContactError::Spinning) } else { Ok(()) };
                }
                () = self.shared.say.notified() => {
                    self.gather().await;
                    self.say().await?;
                    if self.must_refresh() {
                        self.refresh().await?;
                    }
                }
            }
        }
    }

    /// Waits a moment for what follows closely, unless somebody waits for what there is: the steps of a quick update are
    /// told by one check-in.
    async fn gather(&self) {
        let moment = tokio::time::sleep(MOMENT);
        tokio::pin!(moment);
        while !self.shared.hurry.replace(false) {
            tokio::select! {
                () = &mut moment => return,
                () = self.shared.say.notified() => {}
            }
        }
    }

    fn bearer_due(&self) -> bool {
        self.bearer_until.is_none_or(|until| self.now() >= until)
    }

    fn has_to_say(&self) -> bool {
        self.bearer_due() || self.shared.to_say.get() || !self.shared.ledger.borrow().outbox.is_empty()
    }

    /// A check-in if something changed or the bearer runs out, then all reports that wait.
    async fn say(&mut self) -> Result<(), ContactError> {
        if self.shared.to_say.replace(false) || self.bearer_due() {
            let said = self.check_in().await;
            if said.is_err() {
                self.shared.to_say.set(true);
            }
            said?;
        }
        loop {
            let batch = self.shared.ledger.borrow().outbox.batch(&self.shared.identity.machine);
            let Some(batch) = batch else { return Ok(()) };
            let accepted = self.client.report(&batch).await?;
            self.answered();
            if accepted.through < batch.oldest {
                return Err(ContactError::NothingStored);
            }
            self.shared.ledger.borrow_mut().accepted(accepted.through)?;
        }
    }

    async fn check_in(&mut self) -> Result<(), ContactError> {
        let check_in = self.shared.check_in()?;
        let sent = self.now();
        let next =
            self.shared.next_key.borrow().clone().filter(|next| check_in.new_key == Some(next.public()));
        let reply = match &next {
            None => self.client.check_in(&check_in).await?,
            Some(next) => {
                let reply = self.client.check_in_with(&check_in, next).await?;
                self.shared.rotated(self.client, next)?;
                reply
            }
        };
        if reply.rotate_key {
            self.shared.rotation_wanted();
        }
        self.bearer_until = Some(sent + Duration::from_secs(reply.bearer_expires_in) * 3 / 4);
        self.poll_seconds = reply.poll_seconds.min(self.shared.config.poll_seconds).max(1);
        self.hinted(reply.generation.or(self.hint));
        self.shared.reached.set(Some(sent));
        self.shared.shut_out.borrow_mut().take();
        self.shared.answer_waiting(&Ok("the controller answers; the agent takes what it has".to_owned()));
        if self.shared.refused.get() == Some(Attack::Clone) {
            self.shared.refused.set(None);
        }
        self.answered();
        self.shared.ledger.borrow_mut().accepted(reply.reports_through)?;
        self.shared.work.notify_one();
        Ok(())
    }

    /// Takes note of what the controller speaks of.
    fn hinted(&mut self, hint: Option<Generation>) {
        self.hint = hint;
        self.shared.hinted.set(self.is_news());
    }

    fn is_news(&self) -> bool {
        self.hint.is_some() && self.hint != self.shared.holds_generation() && self.hint != self.followed
    }

    fn must_refresh(&self) -> bool {
        let old = self.refreshed.is_none_or(|at| self.now().saturating_sub(at) >= REFRESH_INTERVAL);
        self.is_news() || old || self.shared.check_now.get()
    }

    async fn refresh(&mut self) -> Result<(), ContactError> {
        let hint = self.hint;
        let result = self.trust.refresh(self.client, self.shared.clock.unix_seconds()).await;
        self.note_holds();
        self.shared.check_now.set(false);
        self.shared.hinted.set(false);
        let target = match result {
            Ok(target) => target,
            Err(error) => {
                if let Some(attack) = error.attack() {
                    self.refuse(attack, &error.to_string());
                }
                return Err(error.into());
            }
        };
        self.answered();
        self.refreshed = Some(self.now());
        self.followed = hint;
        if self.shared.refused.replace(None).is_some() {
            self.shared.changed();
        }
        if *self.shared.wanted.borrow() != target {
            *self.shared.wanted.borrow_mut() = target;
        }
        self.shared.work.notify_one();
        Ok(())
    }

    /// What is held now, also where the refresh was refused half way: a new root counts from the moment that it is held, and
    /// what an earlier epoch wanted is wanted no longer.
    fn note_holds(&self) {
        let holds = self.trust.holds();
        if self.shared.holds.replace(holds) == holds {
            return;
        }
        self.shared.to_say.set(true);
        let mut wanted = self.shared.wanted.borrow_mut();
        if wanted.take_if(|target| target.generation.epoch() < holds.epoch).is_some() {
            tracing::warn!("epoch {} has begun: what was signed before it is taken no longer", holds.epoch);
        }
        self.shared.work.notify_one();
    }

    /// Tells an attack once, until something is accepted again or it is another one.
    fn refuse(&self, attack: Attack, detail: &str) {
        if self.shared.refused.replace(Some(attack)) == Some(attack) {
            return;
        }
        tracing::error!("refused as {}: {detail}", attack.as_str());
        let event = EventKind::Refused { attack, detail: detail.to_owned() };
        let now = self.shared.clock.unix_ms();
        if let Err(error) = self.shared.ledger.borrow_mut().tell(self.hint, event, now) {
            tracing::error!(%error, "the refusal cannot be reported");
        }
        self.shared.changed();
    }

    /// Takes note of a failure and says how long to wait.
    fn failed(&mut self, error: &ContactError, backoff: &mut Backoff) -> Duration {
        let client = error.client();
        if client.is_some_and(ClientError::is_unreachable) {
            self.shared.answers.set(false);
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
                self.shared.answer_waiting(&Err(words.clone()));
                *self.shared.shut_out.borrow_mut() = Some(words);
            }
            _ => {
                let words = format!("the agent asked the controller, in vain, and goes on asking: {error}");
                self.shared.answer_waiting(&Ok(words));
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

    fn answered(&self) {
        self.shared.last_contact.set(Some(self.shared.clock.unix_ms()));
        if !self.shared.answers.replace(true) {
            self.shared.work.notify_one();
        }
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

impl Shared {
    fn holds_generation(&self) -> Option<Generation> {
        self.wanted.borrow().as_ref().map(|target| target.generation)
    }
}
