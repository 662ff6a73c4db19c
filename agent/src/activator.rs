//! The activator: `muster-agent activate`, a process of its own that switches, waits for confirmation, and
//! goes back by itself if none comes. It needs no network, no agent and no controller.
//!
//! `transaction.json` tells it what to do; `activation.json` is its own record, written before each step, and
//! `confirmation.json` is the agent's verdict. [`crate::core::resume`] says how it continues after a kill or
//! a reboot.

mod error;
mod run;

use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::machine::Class;
use rustix::fs::FlockOperation;

use crate::config::Config;
use crate::core::records::{Activation, ActivationPhase as Phase, Transaction};
use crate::core::state::State;
use crate::journal::Files;
use crate::nix::Nix;
use crate::platform::{self, Layout, Platform};
pub use error::ActivatorError;
use run::Activator;

const LOCK: &str = "activator.lock";
/// How long to try for the lock: readers hold it only for a moment.
const LOCK_LIMIT: Duration = Duration::from_secs(2);
const LOCK_PAUSE: Duration = Duration::from_millis(5);

/// The activator's whole life. An exit code other than 0 is for people: the agent reads the record.
pub fn main_for(config: &Config) -> ExitCode {
    match activate(config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("the activation stops here: {error}");
            ExitCode::FAILURE
        }
    }
}

fn activate(config: &Config) -> Result<(), ActivatorError> {
    let Some(_lock) = lock(&config.state_dir)? else {
        tracing::debug!("another activator is already running");
        return Ok(());
    };
    // In a session of its own everything that the activation starts can be found, and killed when it hangs.
    let _ = rustix::process::setsid();
    let files = Files::new(&config.state_dir);
    let transaction = files.transaction()?.whole();
    let record = files.activation()?.whole();
    let Some(class) =
        record.as_ref().map(|record| record.class).or(transaction.as_ref().map(Transaction::class))
    else {
        tracing::info!("there is nothing to activate");
        return Ok(());
    };
    let platform = platform::open(config, class)?;
    let done = work(config, files, platform, record, transaction);
    // It is over only when the record says so; one that waits for a reboot must be started after it.
    let record = Files::new(&config.state_dir).activation()?.whole();
    if done.is_ok() && record.is_none_or(|record| record.phase.is_final()) {
        platform::open(config, class)?.activator_ends();
    }
    done
}

fn work(
    config: &Config,
    files: Files,
    platform: Box<dyn Platform>,
    record: Option<Activation>,
    transaction: Option<Transaction>,
) -> Result<(), ActivatorError> {
    let nix = Nix::new(config, platform.layout());
    // What the boot is still doing would be mistaken for the activation's work.
    platform.wait_for_boot();
    let boot = platform.boot_id()?;
    let about = transaction.as_ref().map(|open| {
        let machine = open.target().map(|target| target.machine.to_string());
        (machine, open.generation().get())
    });
    let (record, fresh) = match (record, transaction) {
        // An unfinished record comes first, whatever the transaction says by now.
        (Some(record), _) if !record.phase.is_final() => (record, false),
        (Some(record), Some(transaction)) if record.transaction == transaction.id => (record, false),
        (_, Some(transaction)) => match from_transaction(&transaction, platform.layout(), &boot) {
            Some((mut record, fresh)) => {
                record.leftovers =
                    files.journal()?.whole().map(|journal| journal.leftovers).unwrap_or_default();
                (record, fresh)
            }
            None => {
                tracing::info!("the transaction is {}: nothing to activate", transaction.state.name());
                return Ok(());
            }
        },
        (Some(_), None) | (None, None) => return Ok(()),
    };
    // The journal finds the lines of agent and activator by the same fields.
    let span = tracing::info_span!(
        "activator",
        machine = tracing::field::Empty,
        generation = tracing::field::Empty,
        transaction = record.transaction
    );
    if let Some((machine, generation)) = about {
        span.record("machine", machine.as_deref().unwrap_or_default());
        span.record("generation", generation);
    }
    let _entered = span.entered();
    platform.activator_begins();
    let activator = Activator { files, platform, nix, clock: SystemClock::new(), boot };
    if fresh { activator.begin(record) } else { activator.resume(record) }
}

/// The first record of a transaction, and whether nothing was done yet. If the record was lost in the middle,
/// it is reconstructed from the transaction and the machine.
fn from_transaction(transaction: &Transaction, layout: &Layout, boot: &str) -> Option<(Activation, bool)> {
    let new_runs = layout.running().as_ref() == Some(transaction.output());
    // A Mac's boot may have started what is set as the profile.
    let new_set = transaction.class() == Class::Darwin
        && layout.profile_target().as_ref() == Some(transaction.output());
    let mut record = Activation::new(transaction, boot);
    match &transaction.state {
        // NEW runs, but whether its activation ended is unknown.
        State::Activating if new_runs && record.old.running != layout.running() => {
            record.phase = Phase::Activating;
        }
        State::Activating if new_set && record.old.profile != layout.profile_target() => {
            record.phase = Phase::Activating;
        }
        State::Activating => {}
        State::Probing => record.phase = Phase::Activated,
        State::AwaitingReboot if new_runs => record.phase = Phase::Activated,
        State::AwaitingReboot => record.phase = Phase::AwaitingReboot,
        State::RollingBack { reason, detail } => {
            record.phase = Phase::Undoing;
            (record.reason, record.detail) = (Some(*reason), detail.clone());
        }
        _ => return None,
    }
    let fresh = record.phase == Phase::Recorded;
    Some((record, fresh))
}

/// Whether an activator holds its lock.
pub fn is_alive(state_dir: &Path) -> bool {
    let Ok(file) = File::open(state_dir.join(LOCK)) else { return false };
    // A shared lock, so that two readers do not see each other; it is released with the file.
    matches!(
        rustix::fs::flock(&file, FlockOperation::NonBlockingLockShared),
        Err(rustix::io::Errno::WOULDBLOCK)
    )
}

fn lock(state_dir: &Path) -> Result<Option<File>, ActivatorError> {
    let path = state_dir.join(LOCK);
    let failed = |source| ActivatorError::Lock { path: path.clone(), source };
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    let clock = SystemClock::new();
    loop {
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => return Ok(Some(file)),
            Err(rustix::io::Errno::WOULDBLOCK) if clock.awake() >= LOCK_LIMIT => return Ok(None),
            Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(LOCK_PAUSE),
            Err(error) => return Err(failed(error.into())),
        }
    }
}
