//! `muster-agent run`: two activities on one thread that never wait for one another.
//!
//! [`contact`] speaks to the controller: check-ins, reports, the long poll, the trusted metadata. [`work`] brings the
//! machine to what was verified. They share what is known in [`Shared`] and wake each other; between two polls nothing
//! wakes up at all.
//!
//! The agent never exits by itself, least of all while an activation runs: on a Mac `KeepAlive` would start the OLD
//! program in the middle of it. It does end at once when its supervisor asks, since launchd holds a whole activation up
//! for a job that does not end. Everything is durable, so the agent that is started next takes up what it finds: a
//! running activator is watched, a dead one is started again, a finished one is settled.

mod build;
mod commands;
mod contact;
#[cfg(test)]
mod hour;
mod ledger;
mod reporting;
mod requests;
mod rest;
mod roots;
mod rotation;
mod said;
mod switch;
mod work;

use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::checkin::{CheckIn, Health, Holds, Phase, Runs};
use muster_protocol::clock::{Clock, SystemClock, UnixMillis};
use muster_protocol::ids::{Generation, Sha256};
use muster_protocol::keys::{PublicKey, SecretKey};
use muster_protocol::random;
use muster_protocol::report::{Attack, EventKind, MAX_LOG_TAIL};
use muster_protocol::target::Target;
use muster_protocol::witness::AgeClaim;
use tokio::sync::{Notify, mpsc, oneshot};
use tracing::{Instrument as _, Span, info_span};

use crate::client::Client;
use crate::config::Config;
use crate::core::backoff::Backoff;
use crate::core::plan::{Controller, RebootNote};
use crate::core::records::Transaction;
use crate::core::state::State;
use crate::durable;
use crate::identity::{self, AgeClaims, Identity, IdentityError};
use crate::local::{Command, Status};
use crate::nix::{Nix, Store};
use crate::platform::{self, Platform};
use crate::status;
use crate::trust::Trust;
use ledger::Ledger;
use said::Kept;

/// The file of the check-in that waits for its answer, in the state folder.
pub const UNANSWERED: &str = said::FILE;
const AGENT: &str = env!("CARGO_PKG_VERSION");
const SEQUENCE: &str = "checkin-seq";
/// How many numbers of check-ins are reserved at once: an update has some ten.
const RESERVED_NUMBERS: u64 = 63;
/// How many failed units a check-in names.
const MAX_DEGRADED: usize = 32;

/// What the agent has around it.
struct Around {
    clock: Arc<dyn Clock>,
    platform: Arc<dyn Platform>,
    client: Client,
    nix: Box<dyn Store>,
}

impl Around {
    fn of(config: &Config, identity: &Identity) -> Result<Self, Boxed> {
        let client = Client::of(config, identity)?;
        let platform: Arc<dyn Platform> = Arc::from(platform::open(config, identity.class)?);
        let nix = Box::new(Nix::new(config, platform.layout()));
        Ok(Self { clock: Arc::new(SystemClock::new()), platform, client, nix })
    }
}

/// Runs until it is dropped. Whatever goes wrong is logged, told to the controller, and tried again.
pub async fn run(config: Config, identity: Identity, commands: mpsc::Receiver<Command>) {
    keep(&config, &identity, commands, || Around::of(&config, &identity)).await;
}

async fn keep(
    config: &Config,
    identity: &Identity,
    commands: mpsc::Receiver<Command>,
    around: impl Fn() -> Result<Around, Boxed>,
) {
    let mut backoff = Backoff::default();
    let (shared, trust, said, (client, nix)) = loop {
        match around().and_then(|around| prepare(config, identity, around)) {
            Ok(prepared) => break prepared,
            Err(error) => {
                tracing::error!("the agent cannot begin: {error}");
                tokio::time::sleep(backoff.failed(number(), None)).await;
            }
        }
    };
    tracing::info!(machine = %identity.machine, class = %identity.class, "muster-agent {AGENT} keeps this machine");
    crate::supervisor::status("keeps this machine");
    let machine = shared.machine_span();
    tokio::join!(
        contact::run(&shared, &client, trust, said).instrument(machine.clone()),
        work::run(&shared, &client, nix.as_ref()),
        commands::serve(&shared, commands).instrument(machine)
    );
}

type Boxed = Box<dyn std::error::Error>;

/// The start of a text, as much as a check-in carries.
fn shortened(mut text: String) -> String {
    text.truncate(text.floor_char_boundary(MAX_LOG_TAIL));
    text
}

/// The key that waits to be taken. One that is damaged is in nobody's use yet: it is forgotten, and the machine goes on with
/// the key that it has.
fn next_key(state_dir: &Path) -> Result<Option<SecretKey>, Boxed> {
    match identity::next_key(state_dir) {
        Err(error @ IdentityError::Damaged { .. }) => {
            tracing::warn!(%error, "the next key cannot be read, and is forgotten");
            identity::forget_next_key(state_dir)?;
            Ok(None)
        }
        other => Ok(other?),
    }
}

type Prepared = (Shared, Trust, Kept, (Client, Box<dyn Store>));

fn prepare(config: &Config, identity: &Identity, around: Around) -> Result<Prepared, Boxed> {
    let Around { clock, platform, client, nix } = around;
    let trust = Trust::open(config, identity)?;
    let boot = platform.boot_id()?;
    let running = platform.layout().running();
    let held = trust.held();
    let now = clock.unix_ms();
    let sequence_file = config.state(SEQUENCE);
    let said = Kept::open(&config.state_dir, &identity.fleet, &identity.machine)?;
    let reserved = sequence(durable::read(&sequence_file, 64)?, clock.unix_seconds()).max(said.number());
    let mut ledger = Ledger::open(&config.state_dir, held.as_ref(), running.as_ref(), now)?;
    ledger.tell(None, EventKind::AgentStarted { agent: AGENT.to_owned(), boot_id: boot.clone() }, now)?;
    let shared = Shared {
        config: config.clone(),
        identity: identity.clone(),
        platform,
        clock,
        boot,
        ledger: RefCell::new(ledger),
        wanted: RefCell::new(held),
        holds: Cell::new(trust.holds()),
        refused: Cell::new(None),
        altered: Cell::new(None),
        age: AgeClaims::default(),
        next_key: RefCell::new(next_key(&config.state_dir)?),
        next_key_from: Cell::new(None),
        followed: RefCell::new(Vec::new()),
        problem: RefCell::new(None),
        progress: RefCell::new(None),
        degraded: RefCell::new(None),
        reboot: RefCell::new(None),
        answers: Cell::new(false),
        hinted: Cell::new(false),
        reached: Cell::new(None),
        probing_since: Cell::new(None),
        last_contact: Cell::new(None),
        rollback_asked: Cell::new(false),
        at_boot: RefCell::new(None),
        check_now: Cell::new(false),
        waiting: RefCell::new(Vec::new()),
        shut_out: RefCell::new(None),
        asked: Cell::new(false),
        sequence: Cell::new(reserved),
        reserved: Cell::new(reserved),
        sequence_file,
        to_say: Cell::new(true),
        hurry: Cell::new(true),
        say: Notify::new(),
        work: Notify::new(),
    };
    Ok((shared, trust, said, (client, nix)))
}

/// The number of the last check-in. A damaged file is replaced by the seconds since 1970, which no count has reached.
fn sequence(stored: Option<Vec<u8>>, unix_seconds: i64) -> u64 {
    let Some(bytes) = stored else { return 0 };
    let number = String::from_utf8_lossy(&bytes).trim().parse().ok();
    number.unwrap_or_else(|| u64::try_from(unix_seconds).unwrap_or(0))
}

/// A number that another machine does not draw. Without random bytes all machines wait alike, which is no reason to stop.
fn number() -> u64 {
    #[cfg(test)]
    if let Some(number) = hour::drawn() {
        return number;
    }
    random::bytes().map(u64::from_le_bytes).unwrap_or(u64::MAX / 2)
}

/// What both activities know. Nothing is borrowed across an await.
struct Shared {
    config: Config,
    identity: Identity,
    platform: Arc<dyn Platform>,
    clock: Arc<dyn Clock>,
    boot: String,
    ledger: RefCell<Ledger>,
    /// The newest verified target.
    wanted: RefCell<Option<Target>>,
    holds: Cell<Holds>,
    /// The last answer that was refused, until one is accepted.
    refused: Cell<Option<Attack>>,
    /// The same for what Nix fetches and builds, until it gets what was signed.
    altered: Cell<Option<Attack>>,
    age: AgeClaims,
    /// The key that waits to take the place of this machine's.
    next_key: RefCell<Option<SecretKey>>,
    /// Before this time awake it is not shown.
    next_key_from: Cell<Option<Duration>>,
    /// The operators' requests that were followed, and that the controller still hands on.
    followed: RefCell<Vec<Sha256>>,
    /// What keeps the work from going on, in one sentence.
    problem: RefCell<Option<String>>,
    /// How far the step is that is being taken, in words.
    progress: RefCell<Option<String>>,
    /// Units that have failed, as they were last looked at, if they were.
    degraded: RefCell<Option<Vec<String>>>,
    reboot: RefCell<Option<RebootNote>>,
    answers: Cell<bool>,
    /// The controller speaks of a generation that was not asked for yet: what was undone waits for that.
    hinted: Cell<bool>,
    /// When the last check-in that was answered was sent, in time awake.
    reached: Cell<Option<Duration>>,
    /// When the new system was seen to run, in time awake.
    probing_since: Cell<Option<Duration>>,
    last_contact: Cell<Option<UnixMillis>>,
    rollback_asked: Cell<bool>,
    /// The transaction that somebody at the machine wants to have at the next boot.
    at_boot: RefCell<Option<String>>,
    /// A person asked: the contact asks the controller, the work tries again what it put off.
    check_now: Cell<bool>,
    /// Those who wait to hear what the controller said.
    waiting: RefCell<Vec<oneshot::Sender<Result<String, String>>>>,
    /// Why the controller takes nothing of this machine any more, until it does again.
    shut_out: RefCell<Option<String>>,
    asked: Cell<bool>,
    /// The number of the last check-in, and up to which numbers are reserved on disk.
    sequence: Cell<u64>,
    reserved: Cell<u64>,
    sequence_file: PathBuf,
    /// Whether something has changed that the controller does not know.
    to_say: Cell<bool>,
    /// Whether that is told without waiting for more of it.
    hurry: Cell<bool>,
    /// Wakes the contact.
    say: Notify,
    /// Wakes the work.
    work: Notify,
}

impl Shared {
    /// Something that a check-in tells has changed. It is told with what else changes within a moment.
    fn changed(&self) {
        self.to_say.set(true);
        self.say.notify_one();
    }

    /// The same, and somebody waits for it to be told.
    fn changed_now(&self) {
        self.hurry.set(true);
        self.changed();
    }

    /// Tells those who asked for it what the controller said.
    fn answer_waiting(&self, answer: &Result<String, String>) {
        for to in self.waiting.borrow_mut().drain(..) {
            // Whoever asked may have gone away: that is no error.
            let _ = to.send(answer.clone());
        }
    }

    fn set_problem(&self, problem: Option<String>) {
        if *self.problem.borrow() != problem {
            *self.problem.borrow_mut() = problem;
            self.changed();
        }
    }

    fn controller(&self) -> Controller {
        let reached_since_activation = matches!((self.reached.get(), self.probing_since.get()), (Some(sent), Some(since)) if sent >= since);
        Controller { answers: self.answers.get() && !self.hinted.get(), reached_since_activation }
    }

    /// Every line of the log says which machine it is of.
    fn machine_span(&self) -> Span {
        info_span!("agent", machine = %self.identity.machine)
    }

    /// And lines about a switch, of which generation and which attempt.
    fn span(&self) -> Span {
        let ledger = self.ledger.borrow();
        let machine = &self.identity.machine;
        match ledger.transaction() {
            Some(open) => {
                info_span!("switch", %machine, generation = %open.generation(), transaction = open.id)
            }
            None => info_span!("agent", %machine),
        }
    }

    /// Phase, the generation that it speaks of, and a sentence.
    fn standing(&self) -> (Phase, Option<Generation>, Option<String>) {
        let ledger = self.ledger.borrow();
        let problem = self.shut_out.borrow().clone().or_else(|| self.problem.borrow().clone());
        match (ledger.transaction(), &ledger.journal().last) {
            (Some(open), _) => {
                let note = || open.state.note().map(str::to_owned);
                let note = problem.or_else(|| self.progress.borrow().clone()).or_else(note);
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

    fn health(&self) -> Health {
        let ledger = self.ledger.borrow();
        let reboot = self.reboot.borrow();
        let waits_until = ledger.transaction().and_then(|open| match &open.state {
            State::Deferred { deferral, .. } => deferral.until,
            _ => None,
        });
        let now = self.clock.unix_ms();
        let pause = ledger.journal().pause.as_ref().filter(|pause| pause.holds(now));
        Health {
            degraded: self
                .degraded
                .borrow()
                .as_ref()
                .map(|units| units.iter().take(MAX_DEGRADED).cloned().collect()),
            reboot: reboot.as_ref().map(|note| note.what.clone()).unwrap_or_default(),
            reboot_waits: reboot.as_ref().map(|note| note.waits.clone()),
            waits_until,
            paused_until: pause.map(|pause| pause.until.unwrap_or(UnixMillis::MAX)),
        }
    }

    fn runs(&self) -> Option<Runs> {
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

    /// A check-in under the next number. That no number is used twice is durable before this returns: the file holds the
    /// highest that is reserved, and a new process goes on behind it.
    ///
    /// `new_key` is what it brings: the key that waits to take this one's place, unless a key before signs it.
    fn next_check_in(&self, new_key: Option<PublicKey>) -> std::io::Result<CheckIn> {
        let seq = self.sequence.get().saturating_add(1);
        if seq > self.reserved.get() {
            let reserved = seq.saturating_add(RESERVED_NUMBERS);
            durable::write(&self.sequence_file, reserved.to_string().as_bytes(), 0o600)?;
            self.reserved.set(reserved);
        }
        self.sequence.set(seq);
        let (phase, phase_generation, note) = self.standing();
        let mut health = self.health();
        // Whatever a check or a user's program said: a check-in that is too long would be said again and again, and never taken.
        let note = note.map(shortened);
        health.reboot_waits = health.reboot_waits.map(shortened);
        let new_key = new_key.or_else(|| self.next_key_to_show());
        Ok(CheckIn {
            audience: self.identity.fleet,
            machine: self.identity.machine.clone(),
            class: self.identity.class,
            system: self.identity.system.clone(),
            boot_id: self.boot.clone(),
            seq,
            clock: self.clock.unix_ms(),
            agent: AGENT.to_owned(),
            runs: self.runs(),
            holds: self.holds.get(),
            phase,
            phase_generation,
            note,
            refused: self.refused.get().or(self.altered.get()).map(Attack::in_check_in),
            health,
            new_key,
            age: self.age_claim(),
            followed: self.followed.borrow().clone(),
        })
    }

    /// A machine whose age key cannot be read says nothing of it; everything else goes on.
    fn age_claim(&self) -> Option<AgeClaim> {
        let identity = &self.identity;
        let claim = self.age.get(&self.config.state_dir, &identity.fleet, &identity.machine);
        claim.inspect_err(|error| tracing::warn!("{error}")).ok()
    }

    fn status(&self) -> Status {
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
            verified: self.wanted.borrow().as_ref().map(|target| target.generation),
            runs: self.runs(),
            holds: self.holds.get(),
            refused: self.refused.get().or(self.altered.get()),
            health: self.health(),
            next: self.next(),
            last_contact: self.last_contact.get(),
            reports_waiting: self.ledger.borrow().outbox.len(),
            shut_out: self.shut_out.borrow().clone(),
            age: self.age_claim().map(|claim| claim.recipient),
        }
    }

    /// What comes next, in one sentence.
    fn next(&self) -> String {
        let ledger = self.ledger.borrow();
        let wanted = self.wanted.borrow();
        status::next(
            ledger.transaction().map(Transaction::generation),
            ledger.transaction().map(|open| &open.state),
            wanted.as_ref().map(|target| target.generation),
            ledger.journal(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_ins_are_counted_on_from_the_stored_number_and_never_from_a_damaged_one() {
        assert_eq!(sequence(None, 1_800_000_000), 0);
        assert_eq!(sequence(Some(b"41\n".to_vec()), 1_800_000_000), 41);
        for damaged in [&b""[..], b"x", b"-1", b"\xff"] {
            assert_eq!(sequence(Some(damaged.to_vec()), 1_800_000_000), 1_800_000_000);
        }
        assert_eq!(sequence(Some(Vec::new()), -5), 0);
    }
}
