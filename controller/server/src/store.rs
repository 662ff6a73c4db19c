//! The controller's storage behind one type, in terms of our own rows and changes. Nothing outside `sqlite/`
//! and `postgres/` knows SQL.
//!
//! A command of the store (`commands`, `publication`, `drafts`, `roots`) reads the facts of a decision, lets
//! [`crate::core`] decide, and applies its changes, all in one transaction that may be repeated as a whole
//! (`Store::decide`). A check-in touches only its own machine's rows.
//!
//! `interface` lists everything a database must provide: another one is a folder beside those two and
//! a variant here.

mod alone;
mod answers;
mod backup;
pub mod blobs;
mod checkins;
mod commands;
pub mod copy;
mod drafts;
mod earlier;
mod error;
mod facts;
mod garbage;
mod known;
mod log;
mod moved;
mod parsed;
mod postgres;
mod publication;
mod queue;
mod retention;
mod rollouts;
mod roots;
pub mod shared;
mod sqlite;
mod stir;

use std::collections::BTreeMap;
use std::future::Future;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use muster_protocol::audit::{Checkpoint, Page};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Epoch, Generation, MachineName, Sha256};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{AttackView, BrakeView, Published};
use muster_protocol::random;

use crate::config::DatabaseSettings;
use crate::core::change::{Change, Decided};
use crate::core::garbage::Marks;
use crate::core::rollouts::facts::{Facts as RolloutFacts, Recorded};
use crate::core::rollouts::{Known as KnownPlan, StoredRollout};
use crate::core::rows::{KnownMachine, Machine, Outcome, Principal, StoredDraft};
use crate::core::{
    checkin, drafts as draft, enrolment, log as auditing, machines, publication as publishing, reports,
    requests, retention as keeping,
};

use facts::Facts;
use known::{Effects, Known};
use queue::{Asking, Queue};
use stir::Stir;

use crate::metrics::{COUNTED, Call};
use crate::notify::Notify;

pub use answers::{
    Applied, Committed, EventsByGeneration, File, GenerationEvents, Heard, Latest, NeededPage, News,
};
pub use error::{Failed, StoreError};
pub use parsed::Keys;
pub use queue::{Arrived, MOST_TOGETHER, Taken};
pub use stir::Stirred;

/// The supported databases, each with the same functions: those listed are all that the store needs.
///
/// Each call has a box of its own. A future keeps room for the largest that it may wait for, of either
/// database, and thousands of requests are under way of which few ask the database at a time.
macro_rules! interface {
    (reads: $($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        $($(#[$doc])*
        async fn $name(&self $(, $argument: $type)*) -> Result<$output, StoreError> {
            COUNTED.call(Call::Read, async {
                match self {
                    Self::Sqlite(database) => Box::pin(database.$name($($argument),*)).await,
                    Self::Postgres(database) => Box::pin(within(database.$name($($argument),*))).await,
                }
            }).await
        })*
    };
    (facts: $($(#[$doc:meta])* fn $name:ident($($argument:ident: $type:ty),*) -> $output:ty;)*) => {
        $($(#[$doc])*
        async fn $name(&mut self $(, $argument: $type)*) -> Result<$output, StoreError> {
            match self {
                Self::Sqlite(transaction) => Box::pin(transaction.$name($($argument),*)).await,
                Self::Postgres(transaction) => Box::pin(within(transaction.$name($($argument),*))).await,
            }
        })*
    };
}

/// A database.
#[derive(Debug, Clone)]
enum Database {
    Sqlite(sqlite::Sqlite),
    Postgres(postgres::Postgres),
}

impl Database {
    /// A transaction that writes.
    async fn begin(&self) -> Result<Transaction, StoreError> {
        let begun = async {
            match self {
                Self::Sqlite(database) => Box::pin(database.begin()).await.map(Transaction::Sqlite),
                Self::Postgres(database) => Box::pin(database.begin()).await.map(Transaction::Postgres),
            }
        };
        COUNTED.call(Call::Begin, begun).await
    }

    /// A read-only transaction; it sees one snapshot of the database and blocks nobody.
    async fn view(&self) -> Result<Transaction, StoreError> {
        match self {
            Self::Sqlite(database) => Box::pin(database.view()).await.map(Transaction::Sqlite),
            Self::Postgres(database) => Box::pin(database.view()).await.map(Transaction::Postgres),
        }
    }

    async fn close(&self) {
        match self {
            Self::Sqlite(database) => database.close().await,
            Self::Postgres(database) => database.close().await,
        }
    }

    interface! { reads:
        fn machine(name: &MachineName) -> Option<Machine>;
        /// All machines, by name.
        fn machines(keys: Keys) -> Vec<Machine>;
        /// Those of these machines that exist, by name.
        fn machines_named(names: &[MachineName], keys: Keys) -> Vec<Machine>;
        fn machine_key(name: &MachineName) -> Option<KnownMachine>;
        fn news(name: &MachineName) -> News;
        /// The principal of the bearer with this hash, if it is valid now.
        fn principal(bearer: &Sha256, now_s: i64) -> Option<Principal>;
        /// Records a nonce, in a transaction of its own; false if it is already known.
        fn use_nonce(key: &PublicKey, nonce: &[u8; 16], expires: i64) -> bool;
        /// The attacks that a machine reported, newest first.
        fn attacks(machine: &MachineName, limit: u32) -> Vec<AttackView>;
        /// The entries of the audit log after `after`, oldest first.
        fn audit(after: u64, limit: u32) -> Page;
        /// The newest entry of the log, or what its first entry is chained to.
        fn newest_entry() -> Checkpoint;
        /// The newest root in the log.
        fn logged_root() -> u64;
        /// The next machines by name, `most` of them, each with whether it has generations to forget.
        fn machines_after(
            name: Option<&MachineName>, most: u32, kept: keeping::Kept
        ) -> Vec<(MachineName, bool)>;
        /// What a machine reported of its generations, the newest first.
        fn decisions(machine: &MachineName) -> Vec<Outcome>;
        /// The signed text of a generation that is kept.
        fn target_of(machine: &MachineName, generation: Generation) -> Option<Vec<u8>>;
        fn file(machine: &MachineName, file: File) -> Option<Vec<u8>>;
        /// The latest generation of a machine with its timestamp; `None` if nothing was published in this
        /// epoch.
        fn latest(machine: &MachineName, epoch: Epoch) -> Option<Latest>;
        /// The newest generations of a machine, only those before `before` if it is given.
        fn generations(machine: &MachineName, before: Option<Generation>, limit: u32) -> Vec<Published>;
        /// The events of some generations of a machine, together no more than fit in one response.
        fn events(machine: &MachineName, generations: &[Generation]) -> EventsByGeneration;
        /// Every waiting draft, oldest first.
        fn drafts(now_s: i64) -> Vec<StoredDraft>;
        /// Whether this file of the cache has a mark.
        fn cache_marked(name: &str) -> bool;
        /// The marked files after this name, by name.
        fn cache_marked_after(after: &str, limit: u32) -> Vec<String>;
        /// Targets of the newest published generation of each machine and of those published since, after
        /// this machine and generation.
        fn needed(since: UnixMillis, after_machine: &str, after_generation: i64) -> NeededPage;
        /// The drafts whose IDs have this prefix, two at most, each as JSON text.
        fn drafts_beginning(prefix: &str, now_s: i64) -> Vec<(Sha256, String)>;
        /// The bytes of a plan.
        fn plan(plan: &Sha256) -> Option<Vec<u8>>;
        /// Rollouts, the newest first.
        fn rollouts(limit: u32) -> Vec<StoredRollout>;
        /// The plans of those that are under way.
        fn open_rollouts() -> Vec<Sha256>;
        fn brake() -> Option<BrakeView>;
        /// What is recorded of these machines in a rollout.
        fn recorded(plan: &Sha256, machines: &[&MachineName]) -> BTreeMap<MachineName, Recorded>;
    }
}

/// A transaction of one of them: the facts that decisions need, and their changes. Dropped, it is rolled
/// back.
enum Transaction {
    Sqlite(sqlite::Transaction),
    Postgres(postgres::Transaction),
}

impl Transaction {
    interface! { facts:
        /// For a check-in with this key, which may bring a new one.
        fn check_in(
            asked: &Asking<'_>, new_key: Option<&PublicKey>, now: UnixMillis
        ) -> Option<checkin::Stored>;
        /// For check-ins that bring no new key, of as many machines: what is stored of each, in their order.
        /// What cannot be read of one machine is that one's error.
        fn check_ins(asked: &[Asking<'_>]) -> Vec<Result<Option<checkin::Stored>, StoreError>>;
        /// For an enrolment of this key with this token.
        fn enrolment(token: &Sha256, key: &PublicKey) -> Option<enrolment::Stored>;
        /// For a batch of events signed with this key.
        fn report(batch: &reports::Batch<'_>, key: &PublicKey, now: UnixMillis) -> Option<reports::Stored>;
        fn known(machine: &MachineName) -> Option<machines::Stored>;
        fn token_taken(token: &Sha256) -> bool;
        /// Whether another machine has this key.
        fn key_taken(machine: &MachineName, key: &PublicKey) -> bool;
        /// For a request to an enrolled machine.
        fn asking(machine: &MachineName) -> Option<requests::Stored>;
        /// For an offered generation.
        fn publishing(machine: &MachineName, offered: Generation) -> Option<publishing::Stored>;
        /// The same for many machines; unknown ones are left out.
        fn publishing_all(
            offered: &[(&MachineName, Generation)]
        ) -> BTreeMap<MachineName, publishing::Stored>;
        /// `None` if nothing was published in this epoch.
        fn timestamp(machine: &MachineName, epoch: Epoch) -> Option<publishing::Current>;
        fn draft(id: &Sha256) -> draft::Stored;
        fn root_logged() -> u64;
        /// Writes something that changes nothing.
        fn touch() -> ();
        /// For a cut of the log at this entry.
        fn log(through: u64) -> auditing::Stored;
        /// `None` if the machine has no generations to forget.
        fn old_generations(machine: &MachineName, kept: keeping::Kept) -> Option<keeping::Old>;
        /// The marks of these files of the cache.
        fn cache_marks(names: &[String]) -> Marks;
        fn known_plan(plan: &Sha256) -> KnownPlan;
        fn braked() -> Option<BrakeView>;
        /// A rollout and these machines of it. Whoever writes keeps others from deciding about any rollout.
        fn rollout(plan: &Sha256, machines: &[&MachineName]) -> Option<RolloutFacts>;
        /// Applies changes, those of each machine in order. Audit entries are chained to the newest entry of
        /// the log. Of several [`Change::CheckedIn`], each of another machine, all are written at once.
        fn apply(changes: &[Change]) -> Applied;
    }

    async fn commit(self) -> Result<(), StoreError> {
        let committed = async {
            match self {
                Self::Sqlite(transaction) => Box::pin(transaction.commit()).await,
                Self::Postgres(transaction) => Box::pin(transaction.commit()).await,
            }
        };
        COUNTED.call(Call::Commit, committed).await
    }
}

/// A call of PostgreSQL, which ends even if the network swallows the answer.
async fn within<T>(call: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    tokio::time::timeout(postgres::LONGEST, call).await.unwrap_or_else(|_| Err(postgres::silent()))
}

/// Lets those go ahead that a decision conflicted with: longer each time, and not equally long for two that
/// conflicted with each other.
async fn pause(tries: u32) -> Result<(), StoreError> {
    let [random, ..] = random::bytes::<2>()?;
    let most = 1_u64 << tries.min(7);
    tokio::time::sleep(Duration::from_micros(most * 1000 * u64::from(random) / 256)).await;
    Ok(())
}

/// How often a decision is tried when its transaction conflicts with another.
const TRIES: u32 = 8;

#[derive(Debug, Clone)]
pub struct Store {
    database: Database,
    known: Arc<Known>,
    queue: Arc<Queue>,
    /// `None` where other processes write to the same database.
    facts: Option<Arc<Facts>>,
    notify: Notify,
    stir: Arc<Stir>,
    /// The newest entry of the log that this process knows to be committed.
    newest: Arc<Mutex<Checkpoint>>,
}

impl Store {
    /// Opens `muster.db` in `folder`, creates it if needed, and migrates it to the newest schema.
    pub async fn open(folder: &Path, fleet: &Sha256) -> Result<Self, StoreError> {
        let sqlite = sqlite::Sqlite::open(&folder.join("muster.db"), fleet).await?;
        let database = Database::Sqlite(sqlite);
        let newest = Arc::new(Mutex::new(database.newest_entry().await?));
        // Nobody else writes to this database, so what is known of it needs no lease.
        let (known, queue) = (Arc::new(Known::new(None)), Arc::default());
        let (notify, stir) = (Notify::new()?, Arc::default());
        Ok(Self { database, known, queue, facts: Some(Arc::default()), notify, stir, newest })
    }

    /// Where committed changes are announced.
    pub fn notify(&self) -> &Notify {
        &self.notify
    }

    /// The same for PostgreSQL, if the settings say so.
    pub async fn open_in(
        database: &DatabaseSettings,
        folder: &Path,
        fleet: &Sha256,
    ) -> Result<Self, StoreError> {
        let DatabaseSettings::Postgres(settings) = database else {
            return Self::open(folder, fleet).await;
        };
        let database = Database::Postgres(postgres::Postgres::open(settings, fleet).await?);
        let newest = Arc::new(Mutex::new(database.newest_entry().await?));
        // Others write to it, and what they revoke counts at once: what was read is never believed again.
        let (known, queue) = (Arc::new(Known::new(Some(Duration::ZERO))), Arc::default());
        let (notify, stir) = (Notify::new()?, Arc::default());
        Ok(Self { database, known, queue, facts: None, notify, stir, newest })
    }

    pub async fn close(&self) {
        self.database.close().await;
    }

    /// Carries out a decision: reads its facts, decides and writes, all in one transaction. All of it is
    /// repeated if the transaction conflicts with another, so neither closure may have side effects.
    async fn decide<S, A, E, R>(
        &self,
        facts: impl Fn(Transaction) -> R,
        decision: impl Fn(&S) -> Result<Decided<A>, E>,
    ) -> Result<Committed<A>, Failed<E>>
    where
        R: Future<Output = Result<(Transaction, S), StoreError>>,
    {
        let _queued = COUNTED.writer_queue.running();
        let decided = async {
            let mut tries = 1;
            loop {
                // Its own box: what applies changes is large, and many things wait for a decision.
                match Box::pin(self.attempt(&facts, &decision)).await {
                    Err(Failed::Store(StoreError::Conflict)) if tries < TRIES => {
                        tries += 1;
                        pause(tries).await?;
                    }
                    done => return done,
                }
            }
        };
        COUNTED.call(Call::Write, decided).await
    }

    /// Writes and reads, durably: whether the database answers.
    pub async fn probe(&self) -> Result<(), StoreError> {
        let mut transaction = self.database.begin().await?;
        transaction.touch().await?;
        transaction.commit().await?;
        self.database.logged_root().await.map(drop)
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
            return Ok(Committed { answer, changed: false, applied: Applied::default() });
        }
        let applied = transaction.apply(&changes).await?;
        if let Some(facts) = &self.facts {
            facts.before_commit(&changes);
        }
        let (store, effects) = (self.clone(), Effects::of(&changes));
        // A task of its own: were it dropped halfway, by a client that hangs up, the database might commit
        // what memory contradicts from then on.
        let committed = tokio::spawn(async move { store.commit(transaction, effects, &applied).await });
        committed.await.map_err(|error| StoreError::Database(error.to_string()))??;
        COUNTED.groups.add(1);
        Ok(Committed { answer, changed: true, applied })
    }

    /// Commits changes, and then brings what is kept in memory in line. Not to be dropped halfway.
    async fn commit(
        &self,
        transaction: Transaction,
        effects: Effects,
        applied: &Applied,
    ) -> Result<(), StoreError> {
        if let Err(error) = transaction.commit().await {
            // It may have been committed all the same.
            self.known.doubt(&effects);
            self.stir.committed(&effects.moved);
            return Err(error);
        }
        self.stir.committed(&effects.moved);
        self.logged(applied);
        self.notify.changed(self.known.committed(effects));
        Ok(())
    }

    /// The same for a decision that rarely changes anything, or that anybody can cause: it is made on a
    /// read-only view first, and again in a write transaction if there is something to write.
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
            return Ok(Committed { answer, changed: false, applied: Applied::default() });
        }
        self.decide(facts, decision).await
    }
}

/// For a decision that needs no facts.
async fn nothing(transaction: Transaction) -> Result<(Transaction, ()), StoreError> {
    Ok((transaction, ()))
}

#[cfg(test)]
mod tests;
