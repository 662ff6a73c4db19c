//! What a check-in reports about this machine; people at it see the same.

use muster_protocol::checkin::{CheckIn, Health, Phase, Runs, UNDERSTANDS};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Generation;
use muster_protocol::keys::{PublicKey, SecretKey};
use muster_protocol::plan::Vouch;
use muster_protocol::report::{Attack, MAX_LOG_TAIL};
use muster_protocol::witness::{AgeClaim, KeyClaim};

use super::shared::Shared;
use crate::core::state::State;
use crate::identity;

/// The version of this agent.
pub const AGENT: &str = env!("CARGO_PKG_VERSION");
/// How many failed units a check-in lists.
const MAX_DEGRADED: usize = 32;

impl Shared {
    /// A check-in with the next number, which is never used again.
    ///
    /// `new_key` is the key that it brings: the next key, unless a previous key signs. `in_force` is the key
    /// that the machine signs with.
    pub fn next_check_in(
        &self,
        new_key: Option<PublicKey>,
        in_force: Option<&SecretKey>,
    ) -> std::io::Result<CheckIn> {
        let seq = self.numbers.next()?;
        let (phase, phase_generation, note) = self.standing();
        let mut health = self.health();
        // Whatever a check or a user's program printed: an oversized check-in would be sent again and again,
        // and never accepted.
        let note = note.map(shortened);
        health.reboot_waits = health.reboot_waits.map(shortened);
        let new_key = new_key.or_else(|| self.next_key.to_show(self.clock.awake()));
        // By the key that this check-in leaves in force.
        let next = self.next_key.get().filter(|next| new_key == Some(next.public()));
        let key = next.as_ref().or(in_force);
        let shown = key.and_then(|key| self.log.statement(key, &self.identity.machine));
        Ok(CheckIn {
            understands: UNDERSTANDS.map(str::to_owned).to_vec(),
            signing: key.and_then(|key| self.key_claim(key.public())),
            vouch: self.vouch(in_force),
            awaits: self.turns.awaits(),
            audience: self.identity.fleet,
            machine: self.identity.machine.clone(),
            class: self.identity.class,
            system: self.identity.system.clone(),
            boot_id: self.boot.clone(),
            seq,
            clock: self.clock.unix_ms(),
            agent: AGENT.to_owned(),
            runs: self.runs(),
            holds: self.heard.holds(),
            phase,
            phase_generation,
            note,
            refused: self.heard.refused().or(self.doing.altered()).map(Attack::in_check_in),
            health,
            new_key,
            age: self.age_claim(),
            followed: self.heard.followed(),
            shown,
            session: None,
        })
    }

    /// Phase, its generation, and a sentence.
    pub fn standing(&self) -> (Phase, Option<Generation>, Option<String>) {
        let ledger = self.ledger.borrow();
        let problem = self.heard.shut_out().or_else(|| self.doing.problem());
        match (ledger.transaction(), &ledger.journal().last) {
            (Some(open), _) => {
                let note = || open.state.note().map(str::to_owned);
                let note = problem.or_else(|| self.doing.progress()).or_else(note);
                (open.state.phase(), Some(open.generation()), note)
            }
            (None, Some(last)) => {
                let remark = ledger.journal().remark(self.platform.layout().specialisation().as_deref());
                let words: Vec<String> = last.note.iter().cloned().chain(remark).collect();
                let note = Some(words.join("; ")).filter(|words| !words.is_empty());
                (last.phase, Some(last.generation), problem.or(note))
            }
            (None, None) => (Phase::Idle, None, problem),
        }
    }

    pub fn health(&self) -> Health {
        let ledger = self.ledger.borrow();
        let reboot = self.doing.reboot();
        let waits_until = ledger.transaction().and_then(|open| match &open.state {
            State::Deferred { deferral, .. } => deferral.until,
            _ => None,
        });
        let now = self.clock.unix_ms();
        let pause = ledger.journal().pause.as_ref().filter(|pause| pause.holds(now));
        Health {
            degraded: self
                .doing
                .degraded()
                .as_ref()
                .map(|units| units.iter().take(MAX_DEGRADED).cloned().collect()),
            reboot: reboot.as_ref().map(|note| note.what.clone()).unwrap_or_default(),
            reboot_waits: reboot.as_ref().map(|note| note.waits.clone()),
            waits_until,
            paused_until: pause.map(|pause| pause.until.unwrap_or(UnixMillis::MAX)),
        }
    }

    pub fn runs(&self) -> Option<Runs> {
        let layout = self.platform.layout();
        let running = layout.running()?;
        let ledger = self.ledger.borrow();
        let confirmed = ledger.journal().confirmed.as_ref().filter(|known| known.output == running);
        Some(Runs {
            profile: layout.profile_target(),
            generation: confirmed.map(|known| known.generation),
            running,
        })
    }

    /// The claim that this machine signs with `key`; none where it was enrolled without a witness.
    fn key_claim(&self, key: PublicKey) -> Option<KeyClaim> {
        let witness = identity::witness(&self.config.state_dir);
        let witness = witness.inspect_err(|error| tracing::warn!("{error}")).ok()??;
        Some(witness.claim(&self.identity.fleet, &self.identity.machine, key))
    }

    /// What the machine says in its rollout, by the key that the plan has of it: the one in force, or one
    /// that it signed with before.
    fn vouch(&self, in_force: Option<&SecretKey>) -> Option<Vouch> {
        let followed = self.ledger.borrow().journal().followed.clone()?;
        let key = in_force.filter(|key| key.public() == followed.key).cloned().or_else(|| {
            let previous = identity::previous_keys(&self.config.state_dir, self.clock.unix_ms());
            let previous = previous.inspect_err(|error| tracing::warn!("{error}")).ok()?;
            previous.into_iter().find(|key| key.public() == followed.key)
        })?;
        followed.vouch(&self.identity.fleet, &self.identity.machine, &key)
    }

    /// A machine whose age key cannot be read omits it; everything else continues.
    pub fn age_claim(&self) -> Option<AgeClaim> {
        let identity = &self.identity;
        let claim = self.age.get(&self.config.state_dir, &identity.fleet, &identity.machine);
        claim.inspect_err(|error| tracing::warn!("{error}")).ok()
    }
}

/// The start of a text, as much as a check-in holds.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_LOG_TAIL));
    text
}
