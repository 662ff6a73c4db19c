//! An hour with an impostor in the controller's place has no lasting effect: the real runner with all its
//! files, in virtual time, under any kind of answers, killed and restarted meanwhile. Afterwards an honest
//! controller brings the machine to the newest generation without manual help. The impostor has no key that
//! signs metadata: docs/security.md says what the online key alone can do.
//!
//! Only the machine's platform, its Nix and the network are simulated. `MUSTER_HOURS` sets the number of
//! hours. Two hours with the same number are not identical (tokio's `select!` makes its own random choices),
//! so the log of a failed one is kept, and its path printed.

// Prints statistics on request (--nocapture).
#![allow(clippy::print_stdout)]

mod dice;
mod honest;
mod liar;
mod line;
mod machine;
mod rollout;
mod weak;

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use muster_protocol::clock::Clock as _;
use muster_protocol::ids::Generation;
use muster_protocol::keys::PublicKey;
use muster_protocol::machine::Class;
use muster_protocol::report::{Attack, EventKind};
use muster_protocol::target::Target;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};

use self::dice::Dice;
use self::honest::Honest;
use self::line::Line;
use self::machine::{Cache, Machine};
use self::weak::Weak;
use super::chance::drawn;
use super::lifecycle::{Around, keep};
use crate::client::Client;
use crate::core::records::tests::{path, target};
use crate::core::sparing::{MOST_BYTES, MOST_EVENTS};
use crate::journal::Files;
use crate::outbox::{FOLDER, Outbox};

const MINUTE: Duration = Duration::from_secs(60);
const HOUR: Duration = Duration::from_secs(3600);
/// The longest time until a machine asks an honest controller again: as long as it was told to wait, of which
/// ten minutes and a tenth are honoured.
const ASKS_AGAIN: Duration = Duration::from_secs(11 * 60 + 30);
/// The longest time until an honest controller has put everything right. A generation that failed because of
/// a lie is tried again after an hour; nothing else waits longer than eleven minutes (a `Retry-After`,
/// honoured up to ten minutes).
const RIGHT_AGAIN: Duration = Duration::from_secs(90 * 60);
/// And for later publications.
const AS_EVER: Duration = Duration::from_secs(5 * 60);
const HOURS: u64 = 100;
/// And with a weak agent, until that is noticed.
const MOST_HOURS: u64 = 300;

/// What happens besides the lies.
#[derive(Debug, Clone, Copy)]
enum Happens {
    Publication,
    Restart,
    NewEpoch,
    Rotation,
}

struct Hour {
    machine: Rc<Machine>,
    line: Arc<Line>,
    weak: Option<Weak>,
    agent: JoinHandle<()>,
    newest: Target,
    first_key: PublicKey,
}

fn start(machine: &Rc<Machine>, line: &Arc<Line>, weak: Option<Weak>) -> JoinHandle<()> {
    let (machine, line) = (Rc::clone(machine), Arc::clone(line));
    tokio::task::spawn_local(async move {
        let identity = machine.identity();
        let around = || {
            Ok(Around {
                clock: machine.clock.clone(),
                platform: machine.platform.clone(),
                client: Client::new(&identity)?.over(line.clone()),
                nix: Box::new(Cache { weak }),
            })
        };
        let (_asks, commands) = mpsc::channel(1);
        keep(&machine.config, &identity, commands, around).await;
    })
}

/// The target with this number.
fn wanted(generation: Generation) -> Target {
    let (epoch, number) = (generation.epoch(), generation.get());
    Target {
        generation,
        derivation: path(&format!("system-{epoch}-{number}.drv")),
        output: path(&format!("system-{epoch}-{number}")),
        ..target(1, Class::Nixos)
    }
}

impl Hour {
    async fn begin(seed: u64, weak: Option<Weak>) -> Self {
        let mut number = seed;
        drawn::from(move || {
            number = Dice::new(number).number();
            number
        });
        let (machine, starts) = Machine::new();
        let machine = Rc::new(machine);
        let first_key = machine.keys().machine.public();
        let honest = Honest::new(machine.name.clone(), first_key);
        machine.enrol(&honest.root);
        let newest = wanted(Generation::FIRST);
        let line = Line::new(honest, Arc::clone(&machine.clock), &machine.config.state_dir, weak);
        line.publish(&newest);
        let activators = Rc::clone(&machine);
        tokio::task::spawn_local(async move { activators.activators(starts).await });
        let agent = start(&machine, &line, weak);
        Self { machine, line, weak, agent, newest, first_key }
    }

    fn publish(&mut self, generation: Generation) {
        self.newest = wanted(generation);
        self.line.publish(&self.newest);
    }

    async fn happens(&mut self, what: Happens) {
        match what {
            Happens::Publication => self.publish(self.newest.generation.next().unwrap()),
            Happens::NewEpoch => {
                let epoch = self.line.with(|honest| honest.epoch.next()).unwrap();
                self.line.with(|honest| honest.new_root(epoch));
                self.publish(Generation::first_of(epoch));
            }
            Happens::Rotation => self.line.ask_rotation(),
            Happens::Restart => {
                // Like a power cut: at any await point.
                self.agent.abort();
                let _ = (&mut self.agent).await;
                self.agent = start(&self.machine, &self.line, self.weak);
            }
        }
    }

    /// Waits in virtual time.
    async fn until(&self, what: &str, limit: Duration, come: impl Fn() -> bool) -> Result<Duration, String> {
        let began = self.machine.clock.awake();
        loop {
            let waited = self.machine.clock.awake() - began;
            if come() {
                return Ok(waited);
            }
            self.sound()?;
            if waited > limit {
                return Err(format!(
                    "{what} did not come within {} min; {}",
                    limit.as_secs() / 60,
                    self.stands()
                ));
            }
            tokio::time::sleep(Duration::from_secs(5)).await;
        }
    }

    fn stands(&self) -> String {
        let files = Files::new(&self.machine.config.state_dir);
        let journal = files.journal().ok().and_then(|found| found.whole());
        let open = files.transaction().ok().and_then(|found| found.whole()).map(|open| open.state);
        let last = self.line.with(|honest| honest.last.clone());
        format!("wanted {}; open {open:?}; {journal:?}; said last {last:?}", self.newest.output)
    }

    /// Invariants that hold at each moment.
    fn sound(&self) -> Result<(), String> {
        if self.agent.is_finished() {
            return Err("the agent has ended".to_owned());
        }
        let folder = self.machine.config.state(FOLDER);
        let files = std::fs::read_dir(&folder).into_iter().flatten().flatten();
        let bytes: u64 = files.filter_map(|file| Some(file.metadata().ok()?.len())).sum();
        if Outbox::count(&folder) > MOST_EVENTS || bytes > 2 * MOST_BYTES {
            return Err(format!("the outbox has {bytes} bytes"));
        }
        let files = Files::new(&self.machine.config.state_dir);
        let journal = files.journal().map_err(|error| error.to_string())?.whole().unwrap_or_default();
        match journal.quarantine.first() {
            Some(entry) => Err(format!("{} is in quarantine: {}", entry.derivation, entry.detail)),
            None => self.line.with(|honest| honest.broken.first().cloned().map_or(Ok(()), Err)),
        }
    }

    fn runs_newest(&self) -> bool {
        let output = Some(&self.newest.output);
        let layout = &self.machine.layout;
        layout.running().as_ref() == output && layout.profile_target().as_ref() == output
    }

    /// The machine runs the latest publication, has reported that, and no trace of the lies is left.
    fn is_right(&self) -> bool {
        let reported = self.line.with(|honest| {
            let last = honest.last.as_ref();
            let runs = last.and_then(|last| last.runs.as_ref()?.generation);
            let calm = last.is_some_and(|last| last.refused.is_none() && last.new_key.is_none());
            runs == Some(self.newest.generation) && calm && !honest.waits_for_a_key()
        });
        self.runs_newest() && reported && Outbox::count(&self.machine.config.state(FOLDER)) == 0
    }

    /// What must hold once all is well again; `from` is when the lies ended, in Unix milliseconds.
    fn look_back(&self, from: i64) -> Result<(), String> {
        self.sound()?;
        let swallowed = self.line.swallowed();
        let (own, last) = (self.machine.keys().machine.public(), self.line.newest_report());
        self.line.with(|honest| {
            if honest.alarm {
                return Err("taken for a second machine with the same key".to_owned());
            }
            if honest.key != own || (!honest.rotation_was_asked && own != self.first_key) {
                return Err("its key is another one".to_owned());
            }
            if honest.rotation_was_asked && own == self.first_key {
                return Err("its key was to be replaced".to_owned());
            }
            let mut times: BTreeMap<u64, u32> = BTreeMap::new();
            let mut within = BTreeSet::new();
            for (stream, event) in &honest.stored {
                if event.kind == EventKind::Unknown || matches!(event.kind, EventKind::Dropped { .. }) {
                    return Err(format!("report {} was lost by the machine", event.seq));
                }
                if !within.insert((stream.map(|stream| stream.to_string()), event.seq)) {
                    return Err(format!("report {} was stored twice", event.seq));
                }
                *times.entry(event.seq).or_default() += 1;
                if event.at >= from && times[&event.seq] > 1 {
                    return Err(format!("report {} came twice, after the lies", event.seq));
                }
            }
            match (1..=last).find(|seq| !times.contains_key(seq) && !swallowed.contains(seq)) {
                Some(seq) => Err(format!("report {seq} of {last} never came")),
                None => Ok(()),
            }
        })
    }
}

/// One hour of lies and its consequences: how long recovery took.
async fn live_through(seed: u64, weak: Option<Weak>) -> Result<Duration, String> {
    let mut dice = Dice::new(seed ^ 0x5eed);
    let mut hour = Hour::begin(seed, weak).await;
    hour.until("the first generation", 10 * MINUTE, || hour.is_right()).await?;
    let clock = Arc::clone(&hour.machine.clock);
    let begins = clock.awake();
    hour.line.lie(seed);
    let mut happens: Vec<(u64, Happens)> = Vec::new();
    let mut some = |what: Happens, most: u64| {
        for _ in 0..dice.below(most + 1) {
            happens.push((dice.below(3600), what));
        }
    };
    some(Happens::Publication, 3);
    some(Happens::Restart, 5);
    some(Happens::NewEpoch, 1);
    some(Happens::Rotation, 1);
    let late = dice.one_in(2);
    happens.sort_by_key(|(at, _)| *at);
    for (at, what) in happens {
        let left = (begins + Duration::from_secs(at)).saturating_sub(clock.awake());
        tokio::time::sleep(left).await;
        hour.sound()?;
        hour.happens(what).await;
    }
    tokio::time::sleep((begins + HOUR).saturating_sub(clock.awake())).await;
    hour.sound()?;
    hour.line.behave();
    let from = clock.unix_ms();
    let heard = hour.line.with(|honest| honest.heard);
    hour.until("a question", ASKS_AGAIN, || hour.line.with(|honest| honest.heard) > heard).await?;
    if late {
        hour.happens(Happens::Publication).await;
    }
    let answered = hour.line.with(|honest| honest.answered);
    let is_right = || hour.line.with(|honest| honest.answered) > answered && hour.is_right();
    let took = hour.until("the newest generation", RIGHT_AGAIN, is_right).await?;
    hour.look_back(from)?;
    // From here on it is a machine like any other.
    hour.happens(Happens::Publication).await;
    hour.until("the generation after that", AS_EVER, || hour.is_right()).await?;
    hour.look_back(from)?;
    if hour.line.with(|honest| honest.in_sessions) == 0 {
        return Err("no session proved any of its check-ins".to_owned());
    }
    Ok(took)
}

/// The controller accepts the requested new key and claims that it did not.
async fn deny_the_key() -> Result<Duration, String> {
    let mut hour = Hour::begin(0, None).await;
    hour.until("the first generation", 10 * MINUTE, || hour.is_right()).await?;
    hour.line.deny_keys();
    hour.happens(Happens::Rotation).await;
    let taken = || hour.line.with(|honest| honest.key != hour.first_key);
    hour.until("a new key", 10 * MINUTE, taken).await?;
    tokio::time::sleep(HOUR).await;
    hour.happens(Happens::Restart).await;
    tokio::time::sleep(10 * MINUTE).await;
    hour.line.behave();
    let from = hour.machine.clock.unix_ms();
    hour.happens(Happens::Publication).await;
    let took = hour.until("the newest generation", RIGHT_AGAIN, || hour.is_right()).await?;
    hour.look_back(from).map(|()| took)
}

/// The controller keeps passing on a request with an operator's forged signature, and is otherwise honest.
async fn forge() -> Result<Duration, String> {
    let mut hour = Hour::begin(0, None).await;
    hour.until("the first generation", 10 * MINUTE, || hour.is_right()).await?;
    hour.line.forge();
    hour.happens(Happens::Publication).await;
    let line = Arc::clone(&hour.line);
    let refuses = || line.with(|honest| honest.last.as_ref().and_then(|last| last.refused));
    let forged = || refuses() == Some(Attack::ForgedSignature);
    hour.until("its refusal", 10 * MINUTE, forged).await?;
    // Although its metadata is good, and refreshed for each generation.
    for _ in 0..3 {
        hour.happens(Happens::Publication).await;
        hour.until("the generation", 10 * MINUTE, || hour.runs_newest()).await?;
        tokio::time::sleep(HOUR).await;
        if !forged() {
            return Err(format!("it says {:?}", refuses()));
        }
    }
    let heard = hour.line.with(|honest| honest.heard);
    tokio::time::sleep(HOUR).await;
    let more = hour.line.with(|honest| honest.heard) - heard;
    if more > 200 {
        return Err(format!("{more} questions in an hour"));
    }
    hour.line.behave();
    let from = hour.machine.clock.unix_ms();
    let took = hour.until("an end of it", HOUR, || hour.is_right()).await?;
    hour.look_back(from).map(|()| took)
}

fn hour(seed: u64, weak: Option<Weak>) -> Result<Duration, String> {
    logged(seed, weak, live_through(seed, weak))
}

fn logged(
    seed: u64,
    weak: Option<Weak>,
    lives: impl Future<Output = Result<Duration, String>>,
) -> Result<Duration, String> {
    let log = Log::default();
    let into = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .without_time()
        .with_writer(move || into.clone());
    let end = tracing::subscriber::with_default(subscriber.finish(), || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build();
        let local = LocalSet::new();
        local.block_on(&runtime.unwrap(), lives)
    });
    drawn::at_random();
    end.map_err(|error| {
        // For a weak agent this is the expected outcome.
        if weak.is_some() {
            return format!("hour {seed}: {error}");
        }
        let place = std::env::temp_dir().join(format!("muster-hour-{seed}-{weak:?}.log"));
        let text = [log.0.lock().unwrap().as_slice(), error.as_bytes()].concat();
        let kept = std::fs::write(&place, text).map(|()| place);
        let start: String = error.chars().take(200).collect();
        format!("hour {seed}: {start} (its log: {kept:?})")
    })
}

/// The log of one hour.
#[derive(Clone, Default)]
struct Log(Arc<std::sync::Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn number_in(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

#[test]
fn after_any_hour_of_lies_an_honest_controller_brings_the_machine_to_the_newest_generation() {
    let ends = |seed| hour(seed, None);
    let results: Vec<Result<Duration, String>> =
        (0..number_in("MUSTER_HOURS").unwrap_or(HOURS)).map(ends).collect();
    let failed: Vec<&String> = results.iter().filter_map(|result| result.as_ref().err()).collect();
    let longest = results.iter().flatten().max().copied().unwrap_or_default();
    println!("{} hours of lies; right again after {longest:?} at the latest", results.len());
    assert!(
        failed.is_empty(),
        "{} of {} hours left something behind: {failed:#?}",
        failed.len(),
        results.len()
    );
}

#[test]
fn a_new_key_that_the_controller_took_and_denies_is_never_thrown_away() {
    logged(u64::MAX, None, deny_the_key()).unwrap();
}

#[test]
fn a_forged_request_shows_for_as_long_as_it_is_handed_on() {
    logged(u64::MAX, None, forge()).unwrap();
}

#[test]
fn an_agent_that_believes_too_much_is_noticed() {
    for weak in Weak::ALL {
        // What the real agent does not survive either says nothing about a weak one.
        let noticed = (0..MOST_HOURS).find_map(|seed| {
            let noticed = hour(seed, Some(weak)).err()?;
            hour(seed, None).is_ok().then_some(noticed)
        });
        println!("{weak:?}: {noticed:?}");
        assert!(noticed.is_some(), "{weak:?} goes unnoticed");
    }
}
