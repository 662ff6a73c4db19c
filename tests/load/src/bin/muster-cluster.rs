//! `tests/cluster`: several controllers, agents as real HTTP clients, and things killed at random by a seed.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use muster_load::agents::enrol;
use muster_load::cluster::agent::{Agent, Run};
use muster_load::cluster::chaos::{Broken, Databases, reign};
use muster_load::cluster::controllers::Controllers;
use muster_load::cluster::dice::Dice;
use muster_load::cluster::garage::Garage;
use muster_load::cluster::{operator, verdict};
use muster_load::fleet::Fleet;
use muster_load::server::Program;
use muster_protocol::random;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// The longest that agents may need in the end.
const SETTLE: Duration = Duration::from_secs(60);

#[derive(Debug, Parser)]
#[command(name = "muster-cluster", about = "Several controllers, and things killed at random")]
struct Cli {
    /// The program `muster`
    #[arg(long)]
    muster: PathBuf,
    /// Another version of it: in the middle of the time it replaces the first, one controller after the other
    #[arg(long)]
    then: Option<PathBuf>,
    /// The program `garage`: archives are in its S3 store, which crashes too; otherwise in a folder
    #[arg(long)]
    garage: Option<PathBuf>,
    /// For how many seconds nothing is broken, and everything timed
    #[arg(long, default_value_t = 10)]
    calm: u64,
    /// SQLite: one controller. PostgreSQL: three, over a primary and a standby
    #[arg(long, default_value = "postgres", value_parser = ["sqlite", "postgres"])]
    database: String,
    /// How many seconds things are broken
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    #[arg(long, default_value_t = 40)]
    machines: usize,
    /// Repeats the choices of an earlier run
    #[arg(long)]
    seed: Option<u64>,
    /// Further lines of every controller.toml
    #[arg(long, default_value = "")]
    configure: String,
}

#[tokio::main]
async fn main() -> Result<()> {
    // An error means that one is set already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let cli = Cli::parse();
    let seed = match cli.seed {
        Some(seed) => seed,
        None => u64::from_be_bytes(random::bytes()?),
    };
    println!("seed {seed}");
    run(&cli, seed).await.with_context(|| format!("with --seed {seed}"))
}

async fn run(cli: &Cli, seed: u64) -> Result<()> {
    let mut dice = Dice::new(seed);
    let folder = tempfile::Builder::new().prefix("muster-cluster.").tempdir()?;
    // PostgreSQL runs as somebody else.
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let databases = match cli.database.as_str() {
        "sqlite" => None,
        _ => Some(Databases::create(folder.path().to_owned()).await?),
    };
    let fleet = Arc::new(Fleet::make(folder.path())?);
    let (store, s3) = match &cli.garage {
        Some(program) => {
            let (garage, table) = Garage::create(program, folder.path()).await?;
            (Some(garage), table)
        }
        None => (None, String::new()),
    };
    let blobs = if store.is_some() { Garage::blobs() } else { "blobs = \"blobs\"\n".into() };
    let database = databases.as_ref().map_or_else(String::new, |databases| {
        format!("database = \"{}\"\nbearer_keys = \"bearer-keys.json\"\n", databases.url())
    });
    let settings = format!("{database}{blobs}{}\n{s3}", cli.configure);
    let count = if databases.is_some() { 3 } else { 1 };
    let programs = std::iter::once(&cli.muster).chain(&cli.then);
    let programs = programs.map(|muster| Program { muster: muster.clone(), core: None }).collect();
    let controllers =
        Controllers::start(programs, count, |name, listen| fleet.controller(name, listen, false, &settings))
            .await?;
    let controllers = Arc::new(controllers);
    let enrolled = enrol(&fleet, controllers.target(0)?, 0..cli.machines).await?;
    let names = enrolled.iter().map(|agent| agent.machine.name.clone()).collect();

    let run = Arc::new(Run::default());
    let mut agents = JoinSet::new();
    for agent in enrolled {
        let agent = Agent::new(agent.machine, &fleet)?;
        agents.spawn(agent.live(fleet.clone(), controllers.clone(), run.clone(), dice.fork()));
    }
    let publishes =
        tokio::spawn(operator::publish(fleet.clone(), controllers.clone(), names, run.clone(), dice.fork()));
    let began = Instant::now();
    let tell = move |what: &str| println!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
    let lasts = Duration::from_secs(cli.seconds);
    tokio::time::sleep(Duration::from_secs(cli.calm)).await;
    for line in run.speed.end() {
        tell(&line);
    }
    let mut broken = Broken::default();
    let mut parts = (databases, store);
    let halves = if cli.then.is_some() { 2 } else { 1 };
    for half in 0..halves {
        if half > 0 {
            tell("replace the program of each controller");
            controllers.upgrade().await?;
        }
        let lasts = lasts / halves;
        parts = reign(controllers.clone(), parts, dice.fork(), lasts, &mut broken, tell).await?;
    }
    tell("all is well again");

    run.ends.store(true, Ordering::Relaxed);
    let published = publishes.await??;
    let settles = Instant::now();
    run.goal.set(published.clone()).ok().context("the goal is set once")?;
    let mut lived = Vec::new();
    let quiet = async {
        while let Some(agent) = agents.join_next().await {
            lived.push(agent??);
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(SETTLE, quiet)
        .await
        .context("some agents do not get what was published, or cannot report")??;
    tell(&format!("the agents are quiet after {:.1} s", settles.elapsed().as_secs_f64()));
    let seen = verdict::check(&fleet, &controllers, &lived, &published).await?;
    ensure!(seen.generations > 0 && seen.events > 0, "nothing happened in this run, so it shows nothing");
    let sum = |of: fn(&Agent) -> u64| lived.iter().map(of).sum::<u64>();
    println!(
        "{} machines, {count} controllers on {}: {} check-ins, {} reports, {} polls, {} archives, {} times \
         tried again; {} generations and {} events are there once, in order, with archives of {} KiB in {}; \
         {} entries of the audit log in one chain",
        lived.len(),
        cli.database,
        sum(|agent| agent.told.check_ins),
        sum(|agent| agent.told.reports),
        sum(|agent| agent.told.polls),
        sum(|agent| agent.told.archives),
        sum(|agent| agent.told.tried_again),
        seen.generations,
        seen.events,
        seen.bytes / 1024,
        if cli.garage.is_some() { "garage" } else { "a folder" },
        seen.entries
    );
    println!("{broken:?}");
    drop(parts);
    Ok(())
}
