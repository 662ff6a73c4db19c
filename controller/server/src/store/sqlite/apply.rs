//! Every change that a decision may make, as SQL statements.

use std::collections::BTreeSet;
use std::mem::discriminant;

use muster_protocol::audit::Checkpoint;
use sqlx::SqliteConnection;

use super::connection::Transaction;
use super::{
    access, attacks, audit, checkins, drafts, enrolment, garbage, machines, publication, reports, requests,
    retention, rollouts,
};
use crate::core::change::{Change, CheckedIn};
use crate::core::rollouts::NewTurn;
use crate::core::rollouts::facts::Void;
use crate::store::answers::Applied;
use crate::store::error::StoreError;

impl Transaction {
    pub async fn apply(&mut self, changes: &[Change]) -> Result<Applied, StoreError> {
        let checked_in: Vec<&CheckedIn> = changes
            .iter()
            .filter_map(|change| match change {
                Change::CheckedIn(checked_in) => Some(&**checked_in),
                _ => None,
            })
            .collect();
        checkins::keep(self.connection(), &checked_in).await?;
        let turns: Vec<&NewTurn> = changes
            .iter()
            .filter_map(|change| match change {
                Change::TurnChanged(turn) => Some(&**turn),
                _ => None,
            })
            .collect();
        rollouts::turn(self.connection(), &turns).await?;
        let mut applying = Applying { sql: self.connection(), applied: Applied::default(), newest: None };
        for run in changes.chunk_by(|one, next| discriminant(one) == discriminant(next)) {
            if !applying.together(run).await? {
                for change in run {
                    applying.one(change).await?;
                }
            }
        }
        Ok(applying.applied)
    }
}

struct Applying<'a> {
    sql: &'a mut SqliteConnection,
    applied: Applied,
    /// The newest entry of the log, once it has been read.
    newest: Option<Checkpoint>,
}

/// What these changes hold, if all of them are of this kind and no machine is named twice.
macro_rules! all_of {
    ($run:expr, $kind:pat => ($machine:expr, $held:expr)) => {{
        let mut machines = BTreeSet::new();
        let held = $run.iter().map(|change| match change {
            $kind => machines.insert($machine).then_some($held),
            _ => None,
        });
        held.collect::<Option<Vec<_>>>()
    }};
}

impl Applying<'_> {
    /// Writes many changes of one kind with few statements. Returns false, with nothing written, if they are
    /// of a kind that comes one by one.
    async fn together(&mut self, run: &[Change]) -> Result<bool, StoreError> {
        let sql = &mut *self.sql;
        if let Some(new) = all_of!(run, Change::GenerationStored(new) => (&new.machine, &**new)) {
            publication::store(sql, &new).await?;
        } else if let Some(published) = all_of!(run, Change::Published { machine, generation, turn }
                => (machine, (machine, *generation, turn.as_deref())))
        {
            publication::point(sql, &published).await?;
        } else if let Some(timestamps) =
            all_of!(run, Change::TimestampStored { machine, timestamp } => (machine, (machine, timestamp)))
        {
            publication::keep_timestamps(sql, &timestamps).await?;
        } else if run.iter().all(|change| matches!(change, Change::Audited(_))) {
            self.audit(run).await?;
        } else {
            return Ok(false);
        }
        Ok(true)
    }

    /// Chains the entries of these changes to the log.
    async fn audit(&mut self, run: &[Change]) -> Result<(), StoreError> {
        let mut before = match self.newest {
            Some(newest) => newest,
            None => audit::newest(self.sql).await?,
        };
        let mut entries = Vec::with_capacity(run.len());
        for change in run {
            if let Change::Audited(new) = change {
                let entry = new.chained(&before);
                before = Checkpoint { id: entry.id, hash: entry.hash };
                entries.push(entry);
            }
        }
        audit::insert(self.sql, &entries).await?;
        self.newest = Some(before);
        self.applied.log = self.newest;
        Ok(())
    }

    async fn one(&mut self, change: &Change) -> Result<(), StoreError> {
        let sql = &mut *self.sql;
        match change {
            Change::MachineAdded { machine, at } => machines::add(sql, machine, *at).await,
            Change::MachineInvited(invited) => machines::invite(sql, invited).await,
            Change::TagsReplaced { machine, tags } => machines::replace_tags(sql, machine, tags).await,
            Change::MachineRevoked { machine, at } => {
                machines::revoke(sql, machine, *at).await?;
                rollouts::void(sql, machine, Void::Revoked).await
            }
            Change::MachineSeen { machine, at } => machines::seen(sql, machine, *at).await,
            // Written with the others, and kept in memory.
            Change::CheckedIn(_) | Change::MachineChanged { .. } | Change::TurnChanged(_) => Ok(()),
            Change::TokenMade(token) => enrolment::make_token(sql, token).await,
            Change::TokenUsed { token, by, at } => enrolment::use_token(sql, token, by, *at).await,
            Change::TokensEnded { machine } => enrolment::end_tokens(sql, machine).await,
            Change::Enrolled(enrolled) => {
                enrolment::enrol(sql, enrolled).await?;
                rollouts::void(sql, &enrolled.machine, Void::Replaced).await
            }
            Change::KeyReplaced { machine, key, at } => checkins::replace_key(sql, machine, key, *at).await,
            Change::CloneAlarm { machine, at } => checkins::alarm(sql, machine, Some(*at)).await,
            Change::CloneAlarmEnded { machine } => checkins::alarm(sql, machine, None).await,
            Change::BearersEnded { machine } => access::end(sql, machine).await,
            Change::BearerGranted(bearer) => access::grant(sql, bearer).await,
            Change::CounterRaised { machine, to } => access::raise(sql, machine.as_ref(), *to).await,
            Change::AccessEnded => access::end_all(sql).await,
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
            Change::GenerationStored(generation) => publication::store(sql, &[generation]).await,
            Change::Published { machine, generation, turn } => {
                publication::point(sql, &[(machine, *generation, turn.as_deref())]).await
            }
            Change::TimestampStored { machine, timestamp } => {
                publication::keep_timestamps(sql, &[(machine, timestamp)]).await
            }
            Change::DraftKept(draft) => drafts::keep(sql, draft).await,
            Change::DraftDropped { id } => drafts::end(sql, id).await,
            Change::RootInForce { version } => audit::root_in_force(sql, *version).await,
            Change::Audited(_) => self.audit(std::slice::from_ref(change)).await,
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
            Change::PlanStored(new) => rollouts::store(sql, new).await,
            Change::RolloutAsked { plan, asked } => rollouts::ask(sql, plan, asked).await,
            Change::RolloutDecided { plan, verdict } => rollouts::decided(sql, plan, verdict).await,
            Change::MemberFailed { plan, failed } => rollouts::failed(sql, plan, failed).await,
            Change::MembersForgiven { plan, machines } => rollouts::forgive(sql, plan, machines).await,
            Change::MemberTriesAgain { plan, machine } => rollouts::tries_again(sql, plan, machine).await,
            Change::Said(said) => rollouts::said(sql, said).await,
            Change::BrakeSet { brake } => rollouts::set_brake(sql, brake.as_ref()).await,
            Change::PlansForgotten { before, most } => {
                self.applied.forgotten += rollouts::forget(sql, *before, *most).await?;
                Ok(())
            }
            Change::CacheMarked { names, mark } => garbage::mark(sql, names, *mark).await,
        }
    }
}
