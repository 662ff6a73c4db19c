//! One party against the service: how the others fare while one attacker does its worst.
//!
//! `muster serve` runs as shipped. Twenty honest machines at addresses of their own check in about every
//! second, and each request is tried once. Beside them, first alone and then together, there are three
//! attackers, each a process of its own: an unauthenticated address, an enrolled machine, and a reader that
//! takes nothing.
//!
//! Unlike any other test, this one has time limits: how long others wait is exactly what is promised. So that
//! a busy host does not make it fail, a second controller that nobody attacks answers a few machines during
//! the same seconds on the same processors and disk. If those wait too, the limit is longer by as much.

mod enrolled;
mod honest;
mod service;
mod slow;
mod stage;
mod stranger;

use std::fmt::Write as _;
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::book::{Book, By};
use honest::{Machine, Measured, live};
use service::{Cost, Service};
use stage::{Attack, Party, Plan, Tallies};
pub use stage::{WORD, perform};

const HONEST: u8 = 20;
const WITNESSES: u8 = 4;
/// Of a hundred check-ins, each tried once.
const PROMISED: f64 = 99.0;
/// The longest wait.
const LONGEST: Duration = Duration::from_secs(1);
/// The same while all three attack: the tests' build is not optimised, and several times slower than what is
/// shipped.
const LONGEST_TOGETHER: Duration = Duration::from_secs(5);
/// A witness that waits longer shows that the host is busy with something else.
const QUIET: Duration = Duration::from_millis(100);
/// The most memory that the controller may use, and by how much its disk usage may grow in one attack, in
/// MiB.
const MOST_MEMORY: u64 = 768;
const MOST_DISK: u64 = 64;
/// How long each attack lasts, unless the environment says otherwise.
const SECONDS: u64 = 10;

struct Scene {
    attacked: Service,
    witness: Service,
    honest: Vec<Machine>,
    beside: Vec<Machine>,
    seconds: u64,
    /// How many attackers there have been: each has a new identity.
    attackers: u8,
}

/// The measurements of one interval.
struct Stretch {
    measured: Measured,
    witness: Measured,
    tallies: Vec<(Party, Tallies)>,
    before: Cost,
    after: Cost,
}

pub fn run(book: &mut Book) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let seconds = match std::env::var("MUSTER_ATTACK_SECONDS") {
        Ok(text) => text.parse()?,
        Err(_) => SECONDS,
    };
    use Party::{Enrolled, SlowReader, Stranger};
    let all: &[Party] = &[Stranger, Enrolled, SlowReader];
    let only = std::env::var("MUSTER_ATTACK_SCHEME").ok();
    for (scheme, together) in [("https", "all three at once"), ("http", "all three at once, without TLS")] {
        if only.as_ref().is_some_and(|only| only != scheme) {
            continue;
        }
        let mut scene = runtime.block_on(Scene::set(scheme, seconds))?;
        let quiet = scene.stretch(&runtime, &[])?;
        eprintln!("quiet    {scheme}: {}", quiet.describe());
        ensure!(quiet.measured.failures().next().is_none(), "without an attack: {}", quiet.describe());
        let alone: [(&str, &[Party]); 3] = [
            ("a stranger at its worst", &[Stranger]),
            ("a machine at its worst", &[Enrolled]),
            ("a reader at its worst", &[SlowReader]),
        ];
        let alone = if scheme == "https" { &alone[..] } else { &[] };
        for (name, parties) in alone.iter().copied().chain([(together, all)]) {
            let tried = scene.stretch(&runtime, parties).and_then(|stretch| {
                for (party, tallies) in &stretch.tallies {
                    eprint!("{}", listed(*party, tallies));
                }
                eprintln!("         {}", stretch.describe());
                stretch.judged()?;
                ensure!(scene.attacked.is_up(), "the controller ended: {}", scene.attacked.log());
                Ok(format!("{}; without an attack {}", stretch.describe(), quiet.waits()))
            });
            let attempt = format!("{seconds} s while {HONEST} others check in over {scheme}");
            book.attack(name, &attempt, By::Controller, tried);
        }
        // Nobody is locked out afterwards.
        let after = scene.stretch(&runtime, &[])?;
        ensure!(after.measured.failures().next().is_none(), "after the attacks: {}", after.describe());
        book.control(&format!("after the attacks over {scheme}: {}", after.describe()));
    }
    Ok(())
}

impl Scene {
    async fn set(scheme: &'static str, seconds: u64) -> Result<Self> {
        let (attacked, witness) = (Service::start(scheme).await?, Service::start(scheme).await?);
        let honest = honest::enrol(&attacked, 1, HONEST).await?;
        let beside = honest::enrol(&witness, 2, WITNESSES).await?;
        Ok(Self { attacked, witness, honest, beside, seconds, attackers: 0 })
    }

    /// Runs for some seconds with these attackers.
    fn stretch(&mut self, runtime: &tokio::runtime::Runtime, parties: &[Party]) -> Result<Stretch> {
        let mut attacks = Vec::new();
        let plans: Vec<Plan> =
            parties.iter().map(|party| runtime.block_on(self.plan(*party))).collect::<Result<_>>()?;
        self.attacked.forget_peak()?;
        let disk = self.attacked.cost()?;
        for plan in &plans {
            attacks.push(Attack::begin(plan)?);
        }
        // Measurements are taken while all attacks are running.
        attacks.iter_mut().try_for_each(Attack::wait)?;
        let before = Cost { disk_bytes: disk.disk_bytes, ..self.attacked.cost()? };
        let how_long = Duration::from_secs(if parties.is_empty() { 5 } else { self.seconds });
        let (honest, beside) = (std::mem::take(&mut self.honest), std::mem::take(&mut self.beside));
        let honest = live(honest, self.attacked.url(""), how_long);
        let beside = live(beside, self.witness.url(""), how_long);
        let join = |thread: std::thread::JoinHandle<Result<(Vec<Machine>, Measured)>>| {
            thread.join().map_err(|_| anyhow::anyhow!("the honest machines ended"))?
        };
        let ((honest, measured), (beside, witness)) = (join(honest)?, join(beside)?);
        (self.honest, self.beside) = (honest, beside);
        let after = self.attacked.cost()?;
        let mut tallies = Vec::new();
        for attack in attacks {
            tallies.push((attack.party, attack.end()?));
        }
        Ok(Stretch { measured, witness, tallies, before, after })
    }

    async fn plan(&mut self, party: Party) -> Result<Plan> {
        self.attackers += 1;
        let machine = match party {
            Party::Stranger => None,
            _ => {
                let machine = self.attacked.enrol(&format!("attacker-{}", self.attackers)).await?;
                Some((machine.name, machine.key.to_pem()?.to_string()))
            }
        };
        Ok(Plan {
            party,
            address: self.attacked.address,
            ca: self.attacked.ca.clone(),
            from: [127, 0, 3, self.attackers].into(),
            fleet: self.attacked.fleet,
            victims: vec!["honest-1-0".parse()?],
            archive: self.attacked.archive.clone(),
            machine,
            operator: match party {
                Party::SlowReader => Some(self.attacked.operator.to_pem()?.to_string()),
                _ => None,
            },
        })
    }
}

impl Stretch {
    fn waits(&self) -> String {
        let ms = |wait: Duration| wait.as_millis();
        let served = &self.measured.check_ins;
        format!(
            "median {} ms, 99 % {} ms, slowest {} ms",
            ms(served.within(50)),
            ms(served.within(99)),
            ms(served.slowest())
        )
    }

    fn describe(&self) -> String {
        let Measured { check_ins, reports, polls } = &self.measured;
        format!(
            "{} of {} check-ins, {}; {} of {} reports, slowest {} ms; {} of {} polls, slowest {} ms; \
             beside it slowest {} ms; {} MiB at most, {} KiB more on disk, {} ms of CPU",
            check_ins.waits.len(),
            check_ins.all(),
            self.waits(),
            reports.waits.len(),
            reports.all(),
            reports.slowest().as_millis(),
            polls.waits.len(),
            polls.all(),
            polls.slowest().as_millis(),
            self.witness.check_ins.slowest().as_millis(),
            self.after.peak_kib / 1024,
            self.after.disk_bytes.saturating_sub(self.before.disk_bytes) / 1024,
            self.after.cpu_ms - self.before.cpu_ms
        )
    }

    /// The longest acceptable wait: longer if the controller that nobody attacks is slow as well.
    fn longest(&self) -> Duration {
        let beside = self.witness.check_ins.slowest().max(self.witness.polls.slowest());
        let longest = if self.tallies.len() > 1 { LONGEST_TOGETHER } else { LONGEST };
        longest.mul_f64((beside.as_secs_f64() / QUIET.as_secs_f64()).max(1.0))
    }

    fn judged(&self) -> Result<()> {
        let Measured { check_ins, reports, polls } = &self.measured;
        for (what, served) in [("check-ins", check_ins), ("reports", reports), ("polls", polls)] {
            ensure!(
                served.share() >= PROMISED,
                "{:.1} % of {} {what} succeeded: {}; {}",
                served.share(),
                served.all(),
                served.failures.first().map(String::as_str).unwrap_or_default(),
                self.describe()
            );
            ensure!(
                served.slowest() <= self.longest(),
                "one of the {what} waited {} ms, and {} ms are allowed: {}",
                served.slowest().as_millis(),
                self.longest().as_millis(),
                self.describe()
            );
        }
        let grown = self.after.disk_bytes.saturating_sub(self.before.disk_bytes);
        ensure!(self.after.peak_kib < MOST_MEMORY * 1024, "too much memory: {}", self.describe());
        ensure!(grown < MOST_DISK * 1024 * 1024, "too much on disk: {}", self.describe());
        Ok(())
    }
}

/// What an attacker did, one line per method.
fn listed(party: Party, tallies: &Tallies) -> String {
    let mut text = String::new();
    for (trick, tally) in tallies {
        let answers: Vec<String> =
            tally.answers.iter().map(|(status, count)| format!("{count} x {status}")).collect();
        let _ = writeln!(
            text,
            "         {party:?}: {trick}: {} connections, {} ended, {} requests, {} KiB; {}",
            tally.connections,
            tally.ended,
            tally.sent,
            tally.bytes / 1024,
            answers.join(", ")
        );
    }
    text
}
