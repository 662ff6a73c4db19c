//! Requests of people at this machine, over the local socket.

use muster_protocol::clock::UnixMillis;
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::Class;
use muster_protocol::report::Asker;
use tokio::sync::{mpsc, oneshot};

use super::checkin::AGENT;
use super::shared::Shared;
use crate::client::Client;
use crate::core::policy::Pause;
use crate::core::records::Transaction;
use crate::local::{Command, InRollout, Status};
use crate::status;

/// Answers requests on the local socket.
pub(super) async fn serve(shared: &Shared, client: &Client, mut commands: mpsc::Receiver<Command>) {
    // The requester may be gone: that is no error.
    fn reply<T>(to: oneshot::Sender<T>, with: T) {
        let _ = to.send(with);
    }
    while let Some(command) = commands.recv().await {
        match command {
            Command::Status(to) => reply(to, shared.status(client.key().map(|key| key.public()))),
            Command::CheckNow(to) => {
                shared.asks.for_check(to);
                shared.look_again();
            }
            Command::Rollback(to) => reply(to, shared.ask_rollback()),
            Command::AtBoot(to) => reply(to, shared.ask_at_boot()),
            Command::Pause { until, by, to } => reply(to, shared.pause(until, by)),
            Command::Resume { by, to } => reply(to, shared.resume(by)),
            Command::Retry { by, to } => reply(to, shared.retry(Asker::Local { user: by })),
            Command::RotateKey(to) => reply(to, shared.ask_rotation()),
        }
    }
}

impl Shared {
    /// `key` is the one that it signs with now.
    fn status(&self, key: Option<PublicKey>) -> Status {
        let (phase, phase_generation, note) = self.standing();
        Status {
            agent_running: true,
            agent: AGENT.to_owned(),
            machine: self.identity.machine.clone(),
            class: self.identity.class,
            system: self.identity.system.clone(),
            controller: self.identity.url.clone(),
            fleet: self.identity.fleet,
            phase,
            phase_generation,
            note,
            verified: self.heard.wanted_generation(),
            runs: self.runs(),
            holds: self.heard.holds(),
            refused: self.heard.refused().or(self.doing.altered()),
            health: self.health(),
            next: self.next(),
            last_contact: self.heard.last_contact(),
            reports_waiting: self.ledger.borrow().outbox.len(),
            shut_out: self.heard.shut_out(),
            age: self.age_claim().map(|claim| claim.recipient),
            key,
            log: self.log.shown(),
            rollout: self.in_rollout(),
            vouches: self.ledger.borrow().journal().followed.as_ref().map(status::vouches),
        }
    }

    fn in_rollout(&self) -> Option<InRollout> {
        let ledger = self.ledger.borrow();
        let wanted = self.heard.wanted();
        let plan = wanted.as_ref().and_then(|wanted| self.turns.plan(&wanted.rollout?.plan));
        status::in_rollout(ledger.transaction(), wanted.as_ref(), plan.as_deref())
    }

    /// What comes next, in one sentence.
    fn next(&self) -> String {
        let ledger = self.ledger.borrow();
        let wanted = self.heard.wanted();
        status::next(
            ledger.transaction().map(Transaction::generation),
            ledger.transaction().map(|open| &open.state),
            wanted.as_ref().map(|target| target.generation),
            ledger.journal(),
        )
    }

    fn pause(&self, until: Option<UnixMillis>, by: Option<u32>) -> Result<String, String> {
        let since = self.clock.unix_ms();
        let done = self.ledger.borrow_mut().pause(Some(Pause { until, since, by }));
        done.map_err(|error| format!("updates are not paused: {error}"))?;
        tracing::warn!(until, by, "somebody at this machine paused updates");
        self.look_again();
        let underway =
            self.ledger.borrow().transaction().is_some_and(|open| !open.state.is_before_activation());
        let rest = if underway { "; the switch under way is finished first" } else { "" };
        let until = until.map_or_else(|| "until 'muster-agent resume'".to_owned(), status::until);
        Ok(format!("updates are paused {until}{rest}"))
    }

    fn resume(&self, by: Option<u32>) -> Result<String, String> {
        let paused = self.ledger.borrow().journal().pause.is_some();
        if !paused {
            return Ok("updates were not paused".to_owned());
        }
        let done = self.ledger.borrow_mut().pause(None);
        done.map_err(|error| format!("updates are still paused: {error}"))?;
        tracing::warn!(by, "somebody at this machine resumed updates");
        self.look_again();
        Ok("updates resumed".to_owned())
    }

    /// Tries the newest verified generation again although it failed; every request for that ends here.
    pub(super) fn retry(&self, by: Asker) -> Result<String, String> {
        let wanted = self.heard.wanted().clone();
        let Some(wanted) = wanted else {
            return Err(
                "this machine has verified no generation yet: there is nothing to try again".to_owned()
            );
        };
        let running = self.platform.layout().running();
        let now = self.clock.unix_ms();
        let lifted = self.ledger.borrow_mut().lift(&wanted, by, running.as_ref(), now);
        lifted.map_err(|error| error.to_string())?;
        tracing::warn!(?by, "trying generation {} again, as requested", wanted.generation);
        self.asks.for_another_try();
        self.look_again();
        let generation = wanted.generation;
        Ok(format!("generation {generation} is tried again; follow it with 'muster-agent status'"))
    }

    fn ask_rollback(&self) -> Result<String, String> {
        let ledger = self.ledger.borrow();
        if let Some(open) = ledger.transaction() {
            let (generation, state) = (open.generation(), open.state.name());
            if !open.state.is_before_activation() {
                return Err(format!("generation {generation} is {state}: try again when that is over"));
            }
        }
        match &ledger.journal().previous {
            Some(previous) => {
                self.asks.for_rollback();
                self.wakes.wake_work();
                Ok(format!("going back to {previous}; follow it with 'muster-agent status'"))
            }
            None => Err("this machine knows no system before the one it runs: publish an older one with \
                         'muster update'"
                .to_owned()),
        }
    }

    /// Somebody at the machine wants the generation under way to be installed at the next boot, for example
    /// one that NixOS cannot switch a running system to.
    fn ask_at_boot(&self) -> Result<String, String> {
        if self.identity.class == Class::Darwin {
            return Err("a Mac is only switched while it runs".to_owned());
        }
        let ledger = self.ledger.borrow();
        let Some(open) = ledger.transaction().filter(|open| open.state.is_before_activation()) else {
            return Err("nothing waits here for a reboot: see muster-agent status".to_owned());
        };
        self.asks.for_boot(open.id.clone());
        self.wakes.wake_work();
        Ok(format!("generation {} is made what the next boot brings", open.generation()))
    }

    pub(super) fn is_asked_for_at_boot(&self) -> bool {
        let ledger = self.ledger.borrow();
        ledger.transaction().is_some_and(|open| self.asks.wants_at_boot(&open.id))
    }
}
