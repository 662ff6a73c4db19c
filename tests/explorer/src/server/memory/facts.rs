//! What decisions are told of the store, and what is shown of it.

use std::collections::BTreeSet;

use muster_protocol::checkin::CheckIn;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Epoch, Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{AttackView, Published};
use muster_server::core::checkin::{DAY_MS, KEY_ROTATED, KEYS_A_DAY, Rotation};
use muster_server::core::reports::{ATTACK_REFUSED, Batch, LOGGED_APART_MS, QUARANTINE_LIFTED, RETRIED};
#[cfg(test)]
use muster_server::core::rows::Principal;
use muster_server::core::rows::{KnownMachine, Machine, Request, StoredAttack, Token};
use muster_server::core::{checkin, drafts, enrolment, machines, publication, reports, requests};

use super::{Memory, Row};

impl Memory {
    pub fn another_has(&self, machine: &MachineName, key: &PublicKey) -> bool {
        self.machines.iter().any(|(name, row)| name != machine && row.key == Some(*key))
    }

    /// Whether any machine has this key, or this one enrolled with it before.
    fn had(&self, machine: &MachineName, key: &PublicKey) -> bool {
        let used = |token: &Token| token.used.as_ref().is_some_and(|used| used.by == *key);
        self.machines.values().any(|row| row.key == Some(*key))
            || self.tokens.values().any(|token| token.machine == *machine && used(token))
    }

    /// The machine, if it is enrolled with this key.
    fn enrolled(&self, machine: &MachineName, key: &PublicKey) -> Option<&Row> {
        let row = self.machines.get(machine)?;
        (row.key == Some(*key) && row.revoked_at.is_none()).then_some(row)
    }

    fn requests_of(&self, machine: &MachineName) -> Vec<Request> {
        let of_it = self.requests.iter().filter(|((of, _), _)| of == machine);
        let mut of_it: Vec<Request> = of_it.map(|(_, request)| request.clone()).collect();
        of_it.sort_by_key(|request| request.ends);
        of_it
    }

    pub fn facts_of_check_in(
        &self,
        machine: &MachineName,
        key: &PublicKey,
        new_key: Option<&PublicKey>,
        now: UnixMillis,
    ) -> Option<checkin::Stored> {
        let row = self.enrolled(machine, key)?;
        let attacks = self.attacks.values();
        Some(checkin::Stored {
            enrolment: row.enrolment,
            counter: row.bearer_counter,
            attack_open: attacks.filter(|of| of.machine == *machine).any(|of| of.ended_at.is_none()),
            seq: row.seq,
            last: row.last.clone(),
            earlier: row.earlier.clone(),
            reports_through: row.reports_through,
            published: row.published,
            key_rotation_asked: row.key_rotation_asked_at.is_some(),
            clone_alarm: row.clone_alarm_at.is_some(),
            requests: self.requests_of(machine),
            rotation: new_key.map(|new| self.rotation(machine, new, now)).unwrap_or_default(),
            turn: row.turn.clone().map(Box::new),
            vouched: row.vouched,
        })
    }

    fn rotation(&self, machine: &MachineName, new: &PublicKey, now: UnixMillis) -> Rotation {
        let logged = self.log.entries.iter().rev().filter(|entry| {
            entry.machine.as_ref() == Some(machine)
                && entry.action == KEY_ROTATED
                && entry.at > now.saturating_sub(DAY_MS)
                && entry.at <= now
        });
        let today = logged.map(|entry| entry.at).take(KEYS_A_DAY).collect();
        Rotation { taken: self.another_has(machine, new), today }
    }

    pub fn facts_of_enrolment(&self, token: &Sha256, key: &PublicKey) -> Option<enrolment::Stored> {
        let token = self.tokens.get(token)?;
        let row = self.machines.get(&token.machine)?;
        Some(enrolment::Stored {
            token: token.clone(),
            key: row.key,
            revoked: row.revoked_at.is_some(),
            taken: self.had(&token.machine, key),
        })
    }

    pub fn facts_of_report(
        &self,
        batch: &Batch<'_>,
        key: &PublicKey,
        now: UnixMillis,
    ) -> Option<reports::Stored> {
        let row = self.enrolled(batch.machine, key)?;
        let logged = |apart| {
            let of_it = self.log.entries.iter().filter(|entry| entry.machine.as_ref() == Some(batch.machine));
            of_it.filter(move |entry| entry.at > now.saturating_sub(apart))
        };
        let newest = self
            .events
            .keys()
            .filter(|(of, enrolment, _)| of == batch.machine && *enrolment == row.enrolment);
        let attacks = batch.tells_of_attacks();
        let attacks_logged: BTreeSet<String> = logged(LOGGED_APART_MS)
            .filter(|entry| attacks && entry.action == ATTACK_REFUSED)
            .map(|entry| entry.detail.clone())
            .collect();
        let retries = logged(reports::DAY_MS)
            .filter(|entry| [QUARANTINE_LIFTED, RETRIED].contains(&entry.action.as_str()));
        Some(reports::Stored {
            enrolment: row.enrolment,
            through: row.reports_through,
            stream: row.report_stream.clone(),
            outcome: row.outcome.clone(),
            refuses: attacks && observed(row).is_some_and(|checkin| checkin.refused.is_some()),
            events_bytes: row.events_bytes,
            newest: newest.map(|(.., seq)| *seq).max().unwrap_or(0),
            attacks_logged,
            retries_logged: if batch.tells_of_retries() { retries.count() as u64 } else { 0 },
        })
    }

    pub fn facts_of_machine(&self, machine: &MachineName) -> Option<machines::Stored> {
        self.machines.get(machine).map(|row| machines::Stored {
            has_key: row.key.is_some(),
            revoked_at: row.revoked_at,
            clone_alarm_at: row.clone_alarm_at,
            seen_at: row.seen_at,
        })
    }

    pub fn facts_of_request(&self, machine: &MachineName) -> Option<requests::Stored> {
        let row = self.machines.get(machine).filter(|row| row.revoked_at.is_none())?;
        Some(requests::Stored {
            key: row.key?,
            key_rotation_asked: row.key_rotation_asked_at.is_some(),
            requests: self.requests_of(machine),
        })
    }

    pub fn facts_of_publication(
        &self,
        machine: &MachineName,
        offered: Generation,
    ) -> Option<publication::Stored> {
        let row = self.machines.get(machine)?;
        let latest = self.generations.get(&(machine.clone(), offered));
        Some(publication::Stored {
            class: row.class,
            system: row.system.clone(),
            revoked: row.revoked_at.is_some(),
            published: row.published,
            timestamp_version: row.timestamp_version,
            holds: observed(row).map(|checkin| checkin.holds).unwrap_or_default(),
            understands: observed(row).map(|checkin| checkin.understands),
            latest: latest.filter(|_| row.published == Some(offered)).map(|stored| stored.files.clone()),
        })
    }

    pub fn facts_of_timestamp(&self, machine: &MachineName, epoch: Epoch) -> Option<publication::Current> {
        let row = self.machines.get(machine)?;
        let published = row.published.filter(|published| *published >= Generation::first_of(epoch))?;
        let stored = self.generations.get(&(machine.clone(), published))?;
        Some(publication::Current {
            timestamp: row.timestamp.clone(),
            version: row.timestamp_version,
            snapshot: stored.files.snapshot.clone(),
        })
    }

    pub fn facts_of_draft(&self, id: &Sha256) -> drafts::Stored {
        let held = self.drafts.get(id).and_then(|kept| serde_json::to_string(&kept.draft).ok());
        drafts::Stored { held, waiting: self.drafts.len() as u64 }
    }

    /// Which operator's bearer this is the hash of, if it is good now.
    #[cfg(test)]
    pub fn principal(&self, bearer: &Sha256, now_s: i64) -> Option<Principal> {
        let bearer = self.bearers.get(bearer).filter(|bearer| bearer.expires > now_s)?;
        Some(Principal::Operator(bearer.of))
    }

    /// What a machine's requests are checked against.
    pub fn known_machine(&self, machine: &MachineName) -> Option<KnownMachine> {
        let row = self.machines.get(machine)?;
        Some(KnownMachine {
            key: row.key?,
            class: row.class,
            revoked: row.revoked_at.is_some(),
            enrolment: row.enrolment,
            counter: row.bearer_counter,
            seq: row.seq,
            seen_at: row.seen_at.unwrap_or(0),
        })
    }

    pub fn machine(&self, name: &MachineName) -> Option<Machine> {
        let row = self.machines.get(name)?;
        let mut attacks = self.attacks.values().rev();
        let attack = attacks.find(|attack| attack.machine == *name && attack.ended_at.is_none());
        Some(Machine {
            name: name.clone(),
            class: row.class,
            system: row.system.clone(),
            tags: row.tags.clone(),
            has_key: row.key.is_some(),
            key: row.key,
            age: row.age.clone(),
            agent: row.agent.clone(),
            enrolled_at: row.enrolled_at,
            revoked_at: row.revoked_at,
            seen_at: row.seen_at,
            clock_skew_ms: row.clock_skew_ms,
            clone_alarm_at: row.clone_alarm_at,
            key_rotated_at: row.key_rotated_at,
            key_rotation_asked_at: row.key_rotation_asked_at,
            observed: observed(row),
            outcome: row.outcome.clone(),
            published: row.published.and_then(|generation| self.published(name, generation)),
            attack: attack.map(view),
            generations_forgotten: row.generations_forgotten,
            turn: row.turn.clone(),
        })
    }

    pub fn published(&self, machine: &MachineName, generation: Generation) -> Option<Published> {
        let stored = self.generations.get(&(machine.clone(), generation))?;
        Some(Published {
            target: serde_json::from_slice(&stored.files.target).ok()?,
            at: stored.published_at,
            by: stored.published_by,
            expires: stored.expires,
            signers: stored.signers.clone(),
        })
    }
}

pub fn observed(row: &Row) -> Option<CheckIn> {
    row.observed.as_deref().and_then(|text| serde_json::from_str(text).ok())
}

pub fn view(attack: &StoredAttack) -> AttackView {
    AttackView {
        attack: attack.attack,
        detail: attack.detail.clone(),
        generation: attack.generation,
        at: attack.at,
        received_at: attack.received_at,
        ended_at: attack.ended_at,
    }
}
