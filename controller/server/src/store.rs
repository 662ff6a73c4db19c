//! What the controller remembers, behind one type: rows and changes of ours. Nothing outside `sqlite/` knows SQL.
//!
//! A command of the store (`commands`, `publication`, `drafts`, `roots`) reads the facts of a decision, lets
//! [`crate::core`] decide, and applies its changes, all in one transaction that may be repeated whole (`Store::decide`).
//! A check-in touches its own machine's rows alone.
//!
//! `interface` is all that a database has to do: another one is a folder beside `sqlite/` and a variant here.

mod answers;
pub mod blobs;
mod commands;
mod drafts;
mod error;
mod publication;
mod roots;
mod sqlite;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;

use muster_protocol::audit::Page;
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Epoch, Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{AttackView, Published};

use crate::core::change::{Change, Decided};
use crate::core::rows::{KnownMachine, Machine, Principal, StoredDraft};
use crate::core::{
    checkin, drafts as draft, enrolment, machines, publication as publishing, reports, requests,
};

pub use answers::{Applied, Committed, Cursor, File, News, Told};
pub use error::{Failed, StoreError};

/// The databases that there are, each with the same functions: those listed are all that the store asks of one.
macro_rules! interface {
    (reads: $($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        $($(#[$doc])*
        async fn $name(&self $(, $argument: $type)*) -> Result<$output, StoreError> {
            match self { Self::Sqlite(database) => database.$name($($argument),*).await }
        })*
    };
    (facts: $($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        $($(#[$doc])*
        async fn $name(&mut self $(, $argument: $type)*) -> Result<$output, StoreError> {
            match self { Self::Sqlite(transaction) => transaction.$name($($argument),*).await }
        })*
    };
}

/// A database.
#[derive(Debug, Clone)]
enum Database {
    Sqlite(sqlite::Sqlite),
}

impl Database {
    /// A transaction that writes.
    async fn begin(&self) -> Result<Transaction, StoreError> {
        match self {
            Self::Sqlite(database) => database.begin().await.map(Transaction::Sqlite),
        }
    }

    /// A transaction that only reads; it sees one state of the database and holds up nobody.
    async fn view(&self) -> Result<Transaction, StoreError> {
        match self {
            Self::Sqlite(database) => database.view().await.map(Transaction::Sqlite),
        }
    }

    async fn close(&self) {
        match self {
            Self::Sqlite(database) => database.close().await,
        }
    }

    interface! { reads:
        /// Where the fleet's changes stand.
        fn cursor() -> Cursor;
        fn machine(name: &MachineName) -> Option<Machine>;
        /// All of them, by name.
        fn machines() -> Vec<Machine>;
        fn machine_key(name: &MachineName) -> Option<KnownMachine>;
        fn news(name: &MachineName) -> News;
        /// Whose bearer this is the hash of, if it is good now.
        fn principal(bearer: &Sha256, now_s: i64) -> Option<Principal>;
        /// Remembers a nonce, in a transaction of its own; false if it was known.
        fn use_nonce(key: &PublicKey, nonce: &[u8; 16], expires: i64) -> bool;
        /// The attacks that a machine reported, the newest first.
        fn attacks(machine: &MachineName, limit: u32) -> Vec<AttackView>;
        /// The entries of the audit log after `after`, the oldest first.
        fn audit(after: u64, limit: u32) -> Page;
        /// The newest root that the log knows.
        fn logged_root() -> u64;
        fn file(machine: &MachineName, file: File) -> Option<Vec<u8>>;
        /// The newest generations of a machine, of those before one where it is given.
        fn generations(machine: &MachineName, before: Option<Generation>, limit: u32) -> Vec<Published>;
        /// The events of some generations of a machine: of all together no more than an answer holds.
        fn events(machine: &MachineName, generations: &[Generation]) -> BTreeMap<Generation, Told>;
        /// Every draft that waits, the oldest first.
        fn drafts(now_s: i64) -> Vec<StoredDraft>;
        /// The drafts whose IDs begin like this, two at most, each as a text of JSON.
        fn drafts_beginning(prefix: &str, now_s: i64) -> Vec<(Sha256, String)>;
    }
}

/// A transaction of one of them: the facts that decisions want, and their changes. Dropped, it leaves nothing behind.
enum Transaction {
    Sqlite(sqlite::Transaction),
}

impl Transaction {
    interface! { facts:
        /// For a check-in by this key, which may bring a new one.
        fn check_in(
            machine: &MachineName, key: &PublicKey, new_key: Option<&PublicKey>, now: UnixMillis
        ) -> Option<checkin::Stored>;
        /// For an enrolment of this key by this token.
        fn enrolment(token: &Sha256, key: &PublicKey) -> Option<enrolment::Stored>;
        /// For a batch of events by this key.
        fn report(batch: &reports::Batch<'_>, key: &PublicKey, now: UnixMillis) -> Option<reports::Stored>;
        fn known(machine: &MachineName) -> Option<machines::Stored>;
        fn token_taken(token: &Sha256) -> bool;
        /// For a request to a machine that is enrolled.
        fn asking(machine: &MachineName) -> Option<requests::Stored>;
        /// For a generation that is offered.
        fn publishing(machine: &MachineName, offered: Generation) -> Option<publishing::Stored>;
        /// None where nothing was published in this epoch.
        fn timestamp(machine: &MachineName, epoch: Epoch) -> Option<publishing::Current>;
        fn draft(id: &Sha256) -> draft::Stored;
        fn root_logged() -> u64;
        /// Applies changes in their order. What the log is told is chained to its newest entry.
        fn apply(changes: &[Change]) -> Applied;
    }

    async fn commit(self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(transaction) => transaction.commit().await,
        }
    }
}

/// How often a decision is tried whose transaction is undone in favour of another one.
const TRIES: u32 = 8;

#[derive(Debug, Clone)]
pub struct Store {
    database: Database,
}

impl Store {
    /// Opens `muster.db` in `folder`, makes it if need be, and brings it to the newest form.
    pub async fn open(folder: &Path, fleet: &Sha256) -> Result<Self, StoreError> {
        let sqlite = sqlite::Sqlite::open(&folder.join("muster.db"), fleet).await?;
        Ok(Self { database: Database::Sqlite(sqlite) })
    }

    pub async fn close(&self) {
        self.database.close().await;
    }

    /// Carries out a decision: reads its facts, decides and writes, all in one transaction. All of it is repeated where the
    /// database undid the transaction in favour of another one, so neither closure may have an effect.
    async fn decide<S, A, E, R>(
        &self,
        facts: impl Fn(Transaction) -> R,
        decision: impl Fn(&S) -> Result<Decided<A>, E>,
    ) -> Result<Committed<A>, Failed<E>>
    where
        R: Future<Output = Result<(Transaction, S), StoreError>>,
    {
        let mut tries = 1;
        loop {
            match self.attempt(&facts, &decision).await {
                Err(Failed::Store(StoreError::Conflict)) if tries < TRIES => tries += 1,
                done => return done,
            }
        }
    }

    async fn attempt<S, A, E, R>(
        &self,
        facts: &impl Fn(Transaction) -> R,
        decision: &impl Fn(&S) -> Result<Decided<A>, E>,
    ) -> Result<Committed<A>, Failed<E>>
    where
        R: Future<Output = Result<(Transaction, S), StoreError>>,
    {
        let (mut transaction, stored) = facts(self.database.begin().await?).await?;
        let Decided { changes, answer } = decision(&stored).map_err(Failed::Refused)?;
        if changes.is_empty() {
            return Ok(Committed { answer, applied: Applied::default() });
        }
        let applied = transaction.apply(&changes).await?;
        transaction.commit().await?;
        Ok(Committed { answer, applied })
    }

    /// The same for a decision that mostly changes nothing, or that anybody may cause: it is made on a view first, and again
    /// in a transaction that writes if there is something to write.
    async fn consider<S, A, E, R>(
        &self,
        facts: impl Fn(Transaction) -> R,
        decision: impl Fn(&S) -> Result<Decided<A>, E>,
    ) -> Result<Committed<A>, Failed<E>>
    where
        R: Future<Output = Result<(Transaction, S), StoreError>>,
    {
        let (view, stored) = facts(self.database.view().await?).await?;
        drop(view);
        let Decided { changes, answer } = decision(&stored).map_err(Failed::Refused)?;
        if changes.is_empty() {
            return Ok(Committed { answer, applied: Applied::default() });
        }
        self.decide(facts, decision).await
    }
}

/// For a decision that wants no facts.
async fn nothing(transaction: Transaction) -> Result<(Transaction, ()), StoreError> {
    Ok((transaction, ()))
}

#[cfg(test)]
mod tests;
