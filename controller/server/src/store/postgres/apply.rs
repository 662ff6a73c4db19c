//! Every change that a decision may make, as SQL statements.

use std::collections::BTreeSet;

use muster_protocol::audit::Checkpoint;
use sqlx::PgConnection;

use super::connection::Transaction;
use super::locks::{self, Lock};
use super::{
    access, attacks, audit, checkins, drafts, enrolment, garbage, machines, notify, publication, reports, requests,
    retention,
};
use crate::core::change::{Change, CheckedIn};
use crate::store::answers::Applied;
use crate::store::error::StoreError;

impl Transaction {
    pub async fn apply(&mut self, changes: &[Change]) -> Result<Applied, StoreError> {
        let (mut checked_in, mut changed): (Vec<&CheckedIn>, BTreeSet<&str>) = Default::default();
        for change in changes {
            match change {
                Change::CheckedIn(one) => checked_in.push(one),
                Change::MachineChanged { machine } => drop(changed.insert(machine.as_str())),
                _ => {}
            }
        }
        checkins::keep(self.connection(), &checked_in).await?;
        // In one order, so that no two transactions wait for one another.
        let logs = changes.iter().any(|change| matches!(change, Change::Audited(_)));
        for (needed, lock) in [(logs, Lock::Log), (!changed.is_empty(), Lock::Changes)] {
            if needed {
                locks::take(self.connection(), lock).await?;
            }
        }
        let mut applying = Applying { sql: self.connection(), applied: Applied::default(), newest: None };
        for change in changes {
            applying.one(change).await?;
        }
        let (applied, instance) = (applying.applied, self.instance);
        machines::changed(self.connection(), &changed, instance).await?;
        notify::announce(self.connection(), changes).await?;
        Ok(applied)
    }
}

struct Applying<'a> {
    sql: &'a mut PgConnection,
    applied: Applied,
    /// The newest entry of the log, once it has been read.
    newest: Option<Checkpoint>,
}

impl Applying<'_> {
    async fn one(&mut self, change: &Change) -> Result<(), StoreError> {
        let sql = &mut *self.sql;
        match change {
            Change::MachineAdded { machine, at } => machines::add(sql, machine, *at).await,
            Change::MachineInvited(machine) => machines::invite(sql, machine).await,
            Change::TagsReplaced { machine, tags } => machines::replace_tags(sql, machine, tags).await,
            Change::MachineRevoked { machine, at } => machines::revoke(sql, machine, *at).await,
            Change::MachineSeen { machine, at } => machines::seen(sql, machine, *at).await,
            // Written with the others.
            Change::CheckedIn(_) | Change::MachineChanged { .. } => Ok(()),
            Change::TokenMade(token) => enrolment::make_token(sql, token).await,
            Change::TokenUsed { token, by, at } => enrolment::use_token(sql, token, by, *at).await,
            Change::TokensEnded { machine } => enrolment::end_tokens(sql, machine).await,
            Change::Enrolled(enrolled) => enrolment::enrol(sql, enrolled).await,
            Change::KeyReplaced { machine, key, at } => checkins::replace_key(sql, machine, key, *at).await,
            Change::CloneAlarm { machine, at } => checkins::alarm(sql, machine, Some(*at)).await,
            Change::CloneAlarmEnded { machine } => checkins::alarm(sql, machine, None).await,
            Change::BearersEnded { machine } => access::end(sql, machine).await,
            Change::BearerGranted(bearer) => access::grant(sql, bearer).await,
            Change::RequestKept { machine, request } => requests::keep(sql, machine, request).await,
            Change::RequestsDropped { machine, ids } => requests::end(sql, machine, ids).await,
            Change::RequestsHandedOn { machine } => requests::handed_on(sql, machine).await,
            Change::KeyRotationAsked { machine, at } => requests::rotation_asked(sql, machine, *at).await,
            Change::EventStored(event) => reports::store(sql, event).await,
            Change::ReportsThrough(count) => reports::through(sql, count).await,
            Change::EventsTrimmed { machine, bytes, wanted } => {
                retention::trim(sql, machine, *bytes, *wanted).await
            }
            Change::EventsForgotten { before, most } => {
                self.applied.forgotten += retention::forget(sql, *before, *most).await?;
                Ok(())
            }
            Change::AttackOpened(attack) => attacks::open(sql, attack).await,
            Change::AttacksTrimmed { machine, keep } => attacks::trim(sql, machine, *keep).await,
            Change::AttacksEnded { machine, at } => attacks::end(sql, machine, *at).await,
            Change::GenerationStored(generation) => publication::store(sql, generation).await,
            Change::Published { machine, generation } => publication::point(sql, machine, *generation).await,
            Change::TimestampStored { machine, timestamp } => {
                publication::keep_timestamp(sql, machine, timestamp).await
            }
            Change::DraftKept(draft) => drafts::keep(sql, draft).await,
            Change::DraftDropped { id } => drafts::end(sql, id).await,
            Change::RootInForce { version } => audit::root_in_force(sql, *version).await,
            Change::Audited(entry) => {
                let before = match self.newest {
                    Some(newest) => newest,
                    None => audit::newest(sql).await?,
                };
                let entry = entry.chained(&before);
                audit::insert(sql, &entry).await?;
                self.newest = Some(Checkpoint { id: entry.id, hash: entry.hash });
                self.applied.log = self.newest;
                Ok(())
            }
            Change::LogCut { through } => audit::cut(sql, through).await,
            Change::CutEntriesForgotten { most } => {
                self.applied.forgotten += retention::forget_cut_entries(sql, *most).await?;
                Ok(())
            }
            Change::EndedForgotten { now_s, most } => {
                self.applied.forgotten += retention::sweep(sql, *now_s, *most).await?;
                Ok(())
            }
            Change::TokensForgotten { before_s, most } => {
                self.applied.forgotten += retention::forget_tokens(sql, *before_s, *most).await?;
                Ok(())
            }
            Change::AttacksForgotten { before, most } => {
                self.applied.forgotten += retention::forget_attacks(sql, *before, *most).await?;
                Ok(())
            }
            Change::GenerationsForgotten { machine, generations } => {
                retention::forget_generations(sql, machine, generations).await
            }
            Change::CacheMarked { names, mark } => garbage::mark(sql, names, *mark).await,
        }
    }
}
