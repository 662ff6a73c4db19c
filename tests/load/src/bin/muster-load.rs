//! Puts the load of a fleet on a controller, and prints what it does per second, how long it takes and what
//! memory it needs. `tests/bench controller` builds both and calls this.
//!
//! The load signs for real and verifies what it is handed. The controller runs on one processor, the load on
//! another; both are on this computer and talk over loopback.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Parser, ValueEnum};
use muster_protocol::clock::Clock as _;
use serde::Serialize;

use muster_load::agents::{self, Agent};
use muster_load::client::Target;
use muster_load::fleet::Fleet;
use muster_load::server::{Program, Server, free_address};
use muster_load::{checkins, filled, followers, herd, publish, waiting};

#[derive(Debug, Parser)]
#[command(name = "muster-load", about = "Measures a controller under the load of a whole fleet")]
struct Cli {
    /// The program `muster`
    #[arg(long)]
    muster: PathBuf,
    /// What to measure; all of it if nothing is named
    #[arg(value_enum)]
    what: Vec<What>,
    /// The sizes of the fleets that check in
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000, 10_000])]
    machines: Vec<usize>,
    /// How many events the machines reported before they check in; 0 for an empty table
    #[arg(long, default_value_t = 0)]
    events: u64,
    /// How many agents wait when their memory is measured
    #[arg(long, default_value_t = 19_500)]
    waiting: usize,
    /// How many come back at once
    #[arg(long, default_value_t = 10_000)]
    herd: usize,
    /// The sizes of the fleets that a generation is published to
    #[arg(long, value_delimiter = ',', default_values_t = [1_000, 10_000])]
    publish: Vec<usize>,
    /// The size of the fleet that operators follow, and how many of them do
    #[arg(long, default_value_t = 10_000)]
    followed: usize,
    #[arg(long, default_value_t = 4)]
    followers: usize,
    /// How long each rate is measured, in seconds
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// The processor of the controller
    #[arg(long, default_value_t = 0)]
    server_core: usize,
    /// Where to write the figures as JSON
    #[arg(long)]
    json: Option<PathBuf>,
    /// Lines to add to controller.toml, before its tables
    #[arg(long, default_value = "")]
    configure: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    Checkins,
    Followers,
    Waiting,
    Publish,
    Herd,
}

#[derive(Debug, Default, Serialize)]
struct Figures {
    /// How many events were stored before the machines checked in.
    events: u64,
    checkins: Vec<checkins::Rate>,
    followers: Option<followers::Followed>,
    waiting: Vec<waiting::Waiting>,
    publish: Vec<publish::Wake>,
    herd: Option<herd::Herd>,
    /// From a start with that many machines until it answers, in milliseconds.
    ready_ms: Option<f64>,
}

fn main() -> Result<()> {
    // An error means that the tests' own provider is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    raise_file_limit();
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let figures = runtime.block_on(measure(&cli))?;
    if let Some(file) = &cli.json {
        std::fs::write(file, serde_json::to_vec_pretty(&figures)?)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

async fn measure(cli: &Cli) -> Result<Figures> {
    let wanted = |what| cli.what.is_empty() || cli.what.contains(&what);
    let mut figures = Figures::default();
    if wanted(What::Checkins) || wanted(What::Herd) {
        plain(cli, &mut figures, &wanted).await?;
    }
    if wanted(What::Followers) {
        figures.followers = Some(followed(cli).await?);
    }
    if wanted(What::Publish) {
        for &count in &cli.publish {
            let bench = Bench::start(cli, false).await?;
            let agents = bench.enrol(0..count).await?;
            let wake = publish::wake(&bench.fleet, &bench.server, agents, 1).await?;
            println!(
                "a generation for {} waiting machines: signed in {:.0} ms, stored in {:.0} ms by {} \
                 requests; held by each {:.0} ms (median) and {:.0} ms (99 %) after its request was sent, \
                 {:.0} and {:.0} ms after that was answered, {:.0} and {:.0} ms after the first request was \
                 sent; {:.0} us of CPU for each; {} got it with the reply to their poll",
                wake.machines,
                wake.sign_ms,
                wake.store_ms,
                wake.requests,
                wake.sent_p50_ms,
                wake.sent_p99_ms,
                wake.answered_p50_ms,
                wake.answered_p99_ms,
                wake.first_p50_ms,
                wake.first_p99_ms,
                wake.cpu_us,
                wake.along
            );
            figures.publish.push(wake);
            bench.server.stop().await?;
        }
    }
    if wanted(What::Waiting) {
        for tls in [false, true] {
            let bench = Bench::start(cli, tls).await?;
            let agents = bench.enrol(0..cli.waiting).await?;
            // What enrolling left behind in memory is not the waiting agents'.
            let bench = bench.restart(cli).await?;
            let (waiting, polls) = waiting::wait(&bench.server, agents, tls).await?;
            println!(
                "memory of a waiting agent, {}, {} of them: {:.1} KiB each ({} -> {} KiB)",
                if tls { "TLS" } else { "plain" },
                waiting.agents,
                waiting.kib_each,
                waiting.rss_before_kib,
                waiting.rss_kib
            );
            figures.waiting.push(waiting);
            drop(polls);
            bench.server.stop().await?;
        }
    }
    Ok(figures)
}

async fn plain(cli: &Cli, figures: &mut Figures, wanted: &impl Fn(What) -> bool) -> Result<()> {
    let mut bench = Bench::start(cli, false).await?;
    let mut agents: Vec<Agent> = Vec::new();
    if wanted(What::Checkins) {
        for &count in &cli.machines {
            agents.extend(bench.enrol(agents.len()..count).await?);
            if cli.events > 0 && figures.events == 0 {
                bench = bench.filled(cli).await?;
                figures.events = cli.events;
                println!("{} events of {count} machines are stored", cli.events);
            }
            for in_session in [false, true] {
                agents.iter_mut().for_each(|agent| agent.machine.in_session = in_session);
                let connected = agents::connect(agents, &bench.server.target).await?;
                let (rate, used) =
                    checkins::rate(&bench.server, connected, Duration::from_secs(cli.seconds)).await?;
                agents = used;
                println!(
                    "check-ins of {} machines, {}: {:.0} a second, median {:.1} ms, 99 % {:.1} ms, {:.1} us of CPU \
                     each",
                    rate.machines,
                    if in_session { "in sessions" } else { "each signed" },
                    rate.per_second,
                    rate.median_ms,
                    rate.p99_ms,
                    rate.cpu_us
                );
                figures.checkins.push(rate);
            }
        }
    }
    if wanted(What::Herd) {
        if agents.len() < cli.herd {
            agents.extend(bench.enrol(agents.len()..cli.herd).await?);
        }
        agents.truncate(cli.herd);
        agents.iter_mut().for_each(|agent| agent.connection = None);
        bench = bench.restart(cli).await?;
        let ready = bench.server.ready_after.as_secs_f64() * 1e3;
        println!("ready {ready:.0} ms after its start, with {} machines", agents.len());
        figures.ready_ms = Some(ready);
        let (herd, _) = herd::herd(&bench.server, agents).await?;
        println!(
            "{} at once from one address: {} closed without an answer, {} asked to come later, all in after \
             {:.0} ms",
            herd.machines, herd.closed, herd.put_off, herd.all_in_ms
        );
        figures.herd = Some(herd);
    }
    bench.server.stop().await?;
    Ok(())
}

async fn followed(cli: &Cli) -> Result<followers::Followed> {
    let bench = Bench::start(cli, false).await?;
    let mut agents = bench.enrol(0..cli.followed).await?;
    agents.iter_mut().for_each(|agent| agent.machine.in_session = true);
    // A follower of many machines lists all of them every 15 seconds.
    let lasts = Duration::from_secs(3 * cli.seconds);
    let followed = followers::followed(&bench.fleet, &bench.server, agents, cli.followers, lasts).await?;
    println!(
        "check-ins of {} machines at work: {:.0} a second, and {:.0} while {} operators follow them, which is \
         {:.2} of it; {:.1} and {:.1} us of CPU each",
        followed.machines,
        followed.alone_per_second,
        followed.followed_per_second,
        followed.followers,
        followed.ratio,
        followed.alone_cpu_us,
        followed.followed_cpu_us
    );
    bench.server.stop().await?;
    Ok(followed)
}

/// A fleet with its controller.
struct Bench {
    _folder: tempfile::TempDir,
    fleet: Arc<Fleet>,
    config: PathBuf,
    target: Target,
    server: Server,
}

impl Bench {
    async fn start(cli: &Cli, tls: bool) -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("muster-load.").tempdir()?;
        let listen = free_address()?;
        let fleet = Arc::new(Fleet::make(folder.path())?);
        let config = fleet.controller("data", listen, tls, &cli.configure)?;
        let target =
            if tls { Target::tls(listen, fleet.certificate.clone())? } else { Target::plain(listen) };
        let server = Server::start(&program(cli), &config, target.clone()).await?;
        Ok(Self { _folder: folder, fleet, config, target, server })
    }

    async fn enrol(&self, names: std::ops::Range<usize>) -> Result<Vec<Agent>> {
        agents::enrol(&self.fleet, &self.target, names).await
    }

    /// The same fleet with events in its database, and the controller started anew.
    async fn filled(self, cli: &Cli) -> Result<Self> {
        self.server.stop().await?;
        let database = self.fleet.folder.join("data/muster.db");
        filled::fill(&database, cli.events, self.fleet.clock.unix_ms()).await?;
        let server = Server::start(&program(cli), &self.config, self.target.clone()).await?;
        Ok(Self { server, ..self })
    }

    async fn restart(self, cli: &Cli) -> Result<Self> {
        self.server.stop().await?;
        let server = Server::start(&program(cli), &self.config, self.target.clone()).await?;
        Ok(Self { server, ..self })
    }
}

fn program(cli: &Cli) -> Program {
    Program { muster: cli.muster.clone(), core: Some(cli.server_core) }
}

/// Each machine has a connection.
fn raise_file_limit() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let held = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: held.maximum, maximum: held.maximum };
    // Where it cannot be raised, opening a connection says so.
    let _ = setrlimit(Resource::Nofile, raised);
}
