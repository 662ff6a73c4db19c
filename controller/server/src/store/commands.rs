//! The commands of machines and operators, each in one transaction, and plain reads.

use std::convert::Infallible;

use muster_protocol::clock::UnixMillis;
use muster_protocol::enrol::EnrolRequest;
use muster_protocol::ids::{MachineName, Sha256, to_hex};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{AddMachine, AttackView, Readmit};
use muster_protocol::random;
use muster_protocol::request::{MachineRequest, SignedRequest};

use super::{Failed, Keys, News, Store, StoreError, nothing};
use crate::core::audit::AuditContext;
use crate::core::change::Decided;
use crate::core::enrolment::EnrolRefusal;
use crate::core::machines::MachineRefusal;
use crate::core::reports::{Batch, ReportRefusal};
use crate::core::requests::AskRefusal;
use crate::core::restored::Restored;
use crate::core::rows::{KnownMachine, Machine, Principal};
use crate::core::{access, enrolment, machines, reports, requests, restored};

impl Store {
    /// Gives a machine its new key and marks its token as used. Strangers can send this, so most refusals
    /// happen without a write transaction.
    pub async fn enrol(&self, request: &EnrolRequest, now: UnixMillis) -> Result<(), Failed<EnrolRefusal>> {
        let decided = self.consider(
            |mut transaction| async move {
                let stored = transaction.enrolment(&request.token, &request.key).await?;
                Ok((transaction, stored))
            },
            |stored| enrolment::enrol(stored.as_ref(), request, now),
        );
        decided.await.map(drop)
    }

    /// Takes a batch of events. Returns the number up to which they are stored.
    pub async fn report(
        &self,
        batch: &Batch<'_>,
        key: &PublicKey,
        keep: u64,
        now: UnixMillis,
    ) -> Result<u64, Failed<ReportRefusal>> {
        reports::require_range(batch).map_err(Failed::Refused)?;
        let decided = self.decide(
            |mut transaction| async move {
                let stored = transaction.report(batch, key, now).await?;
                Ok((transaction, stored))
            },
            |stored| reports::report(stored.as_ref(), batch, keep, now),
        );
        decided.await.map(|committed| committed.answer)
    }

    /// Records that a machine is online; mostly that is known already, and nothing is read.
    pub async fn seen(&self, machine: &MachineName, now: UnixMillis) -> Result<(), StoreError> {
        if self.known.get(machine).is_some_and(|known| !machines::is_stale(known.seen_at, now)) {
            return Ok(());
        }
        let decided = self.decide(
            |mut transaction| async move {
                let stored = transaction.known(machine).await?;
                Ok((transaction, stored))
            },
            |stored| Ok::<_, Infallible>(machines::seen(stored.as_ref(), machine, now)),
        );
        decided.await.map(drop).map_err(Failed::into_store)
    }

    /// Adds a machine, or a new token for one.
    pub async fn add_machine(
        &self,
        new: &AddMachine,
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<MachineRefusal>> {
        let decided = self.decide(
            |mut transaction| async move {
                let taken = transaction.token_taken(&new.token).await?;
                let known = transaction.known(&new.machine).await?;
                Ok((transaction, (known, taken)))
            },
            |(known, taken)| machines::add(known.as_ref(), *taken, new, context),
        );
        decided.await.map(drop)
    }

    /// Adds many machines in one transaction, or none of them.
    pub async fn add_machines(
        &self,
        new: &[AddMachine],
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<MachineRefusal>> {
        let decided = self.decide(
            |mut transaction| async move {
                // Rows of machines are locked by name, so that no two requests wait for each other.
                let mut by_name: Vec<(usize, &AddMachine)> = new.iter().enumerate().collect();
                by_name.sort_by(|(_, one), (_, other)| one.machine.cmp(&other.machine));
                let mut stored = Vec::with_capacity(new.len());
                for (place, one) in by_name {
                    let taken = transaction.token_taken(&one.token).await?;
                    stored.push((place, (transaction.known(&one.machine).await?, taken)));
                }
                stored.sort_by_key(|(place, _)| *place);
                Ok((transaction, stored.into_iter().map(|(_, found)| found).collect()))
            },
            |stored: &Vec<machines::StoredOfNew>| machines::add_all(stored, new, context),
        );
        decided.await.map(drop)
    }

    /// Admits a machine by the key that it has.
    pub async fn readmit(
        &self,
        machine: &MachineName,
        known: &Readmit,
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<MachineRefusal>> {
        let decided = self.decide(
            |mut transaction| async move {
                let stored = transaction.known(machine).await?;
                let taken = transaction.key_taken(machine, &known.key).await?;
                Ok((transaction, (stored, taken)))
            },
            |(stored, taken)| machines::readmit(stored.as_ref(), *taken, machine, known, context),
        );
        decided.await.map(drop)
    }

    /// Revokes a machine.
    pub async fn revoke(
        &self,
        machine: &MachineName,
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<MachineRefusal>> {
        self.decide_known(machine, |stored| machines::revoke(stored, machine, context)).await
    }

    /// Acknowledges a machine's clone alarm.
    pub async fn acknowledge(
        &self,
        machine: &MachineName,
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<MachineRefusal>> {
        self.decide_known(machine, |stored| machines::acknowledge(stored, machine, context)).await
    }

    /// Stores a request to a machine.
    pub async fn ask(
        &self,
        signed: &SignedRequest,
        request: &MachineRequest,
        context: &AuditContext<'_>,
    ) -> Result<(), Failed<AskRefusal>> {
        let decided = self.decide(
            |mut transaction| async move {
                let stored = transaction.asking(&request.machine).await?;
                Ok((transaction, stored))
            },
            |stored| requests::ask(stored.as_ref(), signed, request, context),
        );
        decided.await.map(drop)
    }

    /// A bearer for an operator's `nix copy`.
    pub async fn open_session(&self, context: &AuditContext<'_>) -> Result<String, StoreError> {
        let bearer = to_hex(&random::bytes::<32>()?);
        let decided = self.decide(nothing, |()| Ok::<_, Infallible>(access::open_session(&bearer, context)));
        decided.await.map_err(Failed::into_store)?;
        Ok(bearer)
    }

    /// This database comes from a backup, and no controller has used it since.
    pub async fn restored(&self, backup: &Restored<'_>) -> Result<(), Failed<MachineRefusal>> {
        let decided = self.decide(
            |mut transaction| async move {
                let mut stored = Vec::with_capacity(backup.revoked.len());
                for machine in backup.revoked {
                    stored.push(transaction.known(machine).await?);
                }
                Ok((transaction, stored))
            },
            |stored: &Vec<Option<machines::Stored>>| restored::restored(stored, backup),
        );
        decided.await.map(drop)
    }

    /// Decides from what is known about one machine.
    async fn decide_known<E>(
        &self,
        machine: &MachineName,
        decision: impl Fn(Option<&machines::Stored>) -> Result<Decided<()>, E>,
    ) -> Result<(), Failed<E>> {
        let decided = self.decide(
            |mut transaction| async move {
                let stored = transaction.known(machine).await?;
                Ok((transaction, stored))
            },
            |stored: &Option<machines::Stored>| decision(stored.as_ref()),
        );
        decided.await.map(drop)
    }
}

/// Reads without a transaction.
impl Store {
    pub async fn machine(&self, name: &MachineName) -> Result<Option<Machine>, StoreError> {
        self.database.machine(name).await
    }
    /// All machines, by name.
    pub async fn machines(&self, keys: Keys) -> Result<Vec<Machine>, StoreError> {
        self.database.machines(keys).await
    }
    /// Those of these machines that exist, by name.
    pub async fn machines_named(
        &self,
        names: &[MachineName],
        keys: Keys,
    ) -> Result<Vec<Machine>, StoreError> {
        self.database.machines_named(names, keys).await
    }
    /// The key that a machine signs with, and what else its requests are checked against.
    pub async fn machine_key(&self, name: &MachineName) -> Result<Option<KnownMachine>, StoreError> {
        if let Some(known) = self.known.get(name) {
            return Ok(Some(known));
        }
        let before = self.known.before();
        // Its own box: every request of a machine keeps room for this, and few come here.
        let known = Box::pin(self.database.machine_key(name)).await?;
        if let Some(known) = known {
            self.known.fill(name, known, before);
        }
        Ok(known)
    }
    /// What is waiting for the machine's next check-in.
    pub async fn news(&self, name: &MachineName) -> Result<News, StoreError> {
        self.database.news(name).await
    }
    /// The principal of this bearer, if it is valid now.
    pub async fn principal(&self, bearer: &str, now_s: i64) -> Result<Option<Principal>, StoreError> {
        self.database.principal(&Sha256::of(bearer.as_bytes()), now_s).await
    }
    /// Records a nonce until `expires`, in Unix seconds; false if it is already known.
    pub async fn use_nonce(
        &self,
        key: &PublicKey,
        nonce: &[u8; 16],
        expires: i64,
    ) -> Result<bool, StoreError> {
        self.database.use_nonce(key, nonce, expires).await
    }
    /// The attacks that a machine reported, newest first.
    pub async fn attacks(&self, machine: &MachineName, limit: u32) -> Result<Vec<AttackView>, StoreError> {
        self.database.attacks(machine, limit).await
    }
}
