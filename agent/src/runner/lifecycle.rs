//! Starts the agent, repeatedly until it succeeds, and then runs its tasks concurrently.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;

use muster_protocol::clock::{Clock, SystemClock};
use muster_protocol::keys::SecretKey;
use muster_protocol::report::EventKind;
use tokio::sync::mpsc;
use tracing::Instrument as _;

use super::asks::Asks;
use super::chance::number;
use super::checkin::AGENT;
use super::counted::Counted;
use super::doing::Doing;
use super::heard::Heard;
use super::ledger::Ledger;
use super::next_key::NextKey;
use super::shared::Shared;
use super::turns::Turns;
use super::unanswered::Unanswered;
use super::wakes::Wakes;
use super::{commands, contact, soaking, work};
use crate::client::Client;
use crate::config::Config;
use crate::core::backoff::Backoff;
use crate::identity::{self, AgeClaims, Identity, IdentityError};
use crate::local::Command;
use crate::log_shown::LogWitness;
use crate::nix::{Nix, Store};
use crate::platform::{self, Platform};
use crate::trust::Trust;

/// The file of the highest reserved check-in number, in the state folder.
const NUMBERS: &str = "checkin-seq";

/// The agent's dependencies.
pub struct Around {
    pub clock: Arc<dyn Clock>,
    pub platform: Arc<dyn Platform>,
    pub client: Client,
    pub nix: Box<dyn Store>,
}

impl Around {
    fn of(config: &Config, identity: &Identity) -> Result<Self, Boxed> {
        let client = Client::of(config, identity)?;
        let platform: Arc<dyn Platform> = Arc::from(platform::open(config, identity.class)?);
        let nix = Box::new(Nix::new(config, platform.layout()));
        Ok(Self { clock: Arc::new(SystemClock::new()), platform, client, nix })
    }
}

/// Runs until dropped. Whatever goes wrong is logged, reported to the controller, and retried.
pub async fn run(config: Config, identity: Identity, commands: mpsc::Receiver<Command>) {
    keep(&config, &identity, commands, || Around::of(&config, &identity)).await;
}

pub async fn keep(
    config: &Config,
    identity: &Identity,
    commands: mpsc::Receiver<Command>,
    around: impl Fn() -> Result<Around, Boxed>,
) {
    let mut backoff = Backoff::default();
    let (shared, trust, unanswered, (client, nix)) = loop {
        match around().and_then(|around| prepare(config, identity, around)) {
            Ok(prepared) => break prepared,
            Err(error) => {
                tracing::error!("the agent cannot start: {error}");
                tokio::time::sleep(backoff.failed(number(), None)).await;
            }
        }
    };
    tracing::info!(machine = %identity.machine, class = %identity.class, "muster-agent {AGENT} keeps this \
        machine");
    crate::supervisor::status("keeps this machine");
    let machine = shared.machine_span();
    tokio::join!(
        contact::run(&shared, &client, trust, unanswered).instrument(machine.clone()),
        work::run(&shared, &client, nix.as_ref()),
        soaking::run(&shared).instrument(machine.clone()),
        commands::serve(&shared, &client, commands).instrument(machine)
    );
}

type Boxed = Box<dyn std::error::Error>;

/// The next key. A damaged one is not in use anywhere yet: it is dropped, and the machine keeps its current
/// key.
fn next_key(state_dir: &Path) -> Result<Option<SecretKey>, Boxed> {
    match identity::next_key(state_dir) {
        Err(error @ IdentityError::Damaged { .. }) => {
            tracing::warn!(%error, "the next key cannot be read; dropping it");
            identity::forget_next_key(state_dir)?;
            Ok(None)
        }
        other => Ok(other?),
    }
}

type Prepared = (Shared, Trust, Unanswered, (Client, Box<dyn Store>));

fn prepare(config: &Config, identity: &Identity, around: Around) -> Result<Prepared, Boxed> {
    let Around { clock, platform, client, nix } = around;
    let trust = Trust::open(config, identity)?;
    let boot = platform.boot_id()?;
    let running = platform.layout().running();
    let held = trust.held();
    let now = clock.unix_ms();
    let unanswered = Unanswered::open(&config.state_dir, &identity.fleet, &identity.machine)?;
    let numbers = Counted::open(config.state(NUMBERS), unanswered.number(), clock.unix_seconds())?;
    let mut ledger = Ledger::open(&config.state_dir, held.as_ref(), running.as_ref(), now)?;
    ledger.tell(None, EventKind::AgentStarted { agent: AGENT.to_owned(), boot_id: boot.clone() }, now)?;
    let shared = Shared {
        config: config.clone(),
        identity: identity.clone(),
        platform,
        clock,
        boot,
        ledger: RefCell::new(ledger),
        heard: Heard::new(held, trust.holds()),
        turns: Turns::new(&identity.machine, &trust),
        doing: Doing::default(),
        asks: Asks::default(),
        next_key: NextKey::new(next_key(&config.state_dir)?),
        wakes: Wakes::new(),
        numbers,
        age: AgeClaims::default(),
        log: LogWitness::open(&config.state_dir, &identity.fleet),
    };
    Ok((shared, trust, unanswered, (client, nix)))
}
