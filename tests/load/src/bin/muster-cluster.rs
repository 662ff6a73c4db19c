//! `tests/cluster`: several controllers, agents as real HTTP clients, and things killed at random by a seed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use muster_load::cluster::agent::Agent;
use muster_load::cluster::chaos::{Broken, Databases, reign};
use muster_load::cluster::dice::Dice;
use muster_load::cluster::garage::Garage;
use muster_load::cluster::life::{Life, Lived};
use muster_load::cluster::speed::{Figures, table};
use muster_load::cluster::verdict;
use muster_load::fleet::Fleet;
use muster_protocol::random;
use serde_json::json;
use tokio::time::Instant;

/// The setting for archives in a folder.
const FOLDER: &str = "blobs = \"blobs\"\n";

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
    /// For how many seconds nothing is broken, and everything timed, beside a fleet over SQLite
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
    /// Writes what was timed to this file
    #[arg(long)]
    json: Option<PathBuf>,
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
    let began = Instant::now();
    let tell = move |what: &str| println!("{:6.1} s  {what}", began.elapsed().as_secs_f64());
    let calm = Duration::from_secs(cli.calm);
    let (sqlite, s3) = (cli.database == "sqlite", cli.garage.is_some());
    let databases = match sqlite {
        true => None,
        false => Some(Databases::create(folder.path().to_owned()).await?),
    };
    let fleet = Fleet::make(folder.path())?;
    let (store, s3_table) = match &cli.garage {
        Some(program) => {
            let (garage, table) = Garage::create(program, folder.path()).await?;
            (Some(garage), table)
        }
        None => (None, String::new()),
    };
    let blobs = if s3 { Garage::blobs() } else { FOLDER.into() };
    let database = databases.as_ref().map_or_else(String::new, |databases| {
        format!("database = \"{}\"\nbearer_keys = \"bearer-keys.json\"\n", databases.url())
    });
    let settings = format!("{database}{blobs}{}\n{s3_table}", cli.configure);
    let count = if sqlite { 1 } else { 3 };
    let programs: Vec<PathBuf> = std::iter::once(&cli.muster).chain(&cli.then).cloned().collect();
    let life = Life::begin(fleet, &programs, count, &settings, cli.machines, &mut dice).await?;
    let (fleet, controllers) = (life.fleet.clone(), life.controllers.clone());
    // Both at once: whatever else this machine does meanwhile, it does to both.
    let beside = match (!sqlite || s3) && !calm.is_zero() {
        true => Some(beside(cli, &folder.path().join("beside"), &mut dice).await?),
        false => None,
    };
    let mut figures = Vec::new();
    let times = match &beside {
        Some(beside) => {
            let (usual, times) = tokio::join!(beside.calm(calm), life.calm(calm));
            figures.push(Figures { database: "SQLite", blobs: "folder", controllers: 1, times: usual });
            times
        }
        None => life.calm(calm).await,
    };
    let (database, blobs) = (if sqlite { "SQLite" } else { "PostgreSQL" }, if s3 { "S3" } else { "folder" });
    figures.push(Figures { database, blobs, controllers: count, times });
    if let Some(beside) = beside {
        beside.end().await?;
    }
    tell("what things take was measured; now they are broken");
    let lasts = Duration::from_secs(cli.seconds);
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

    let settles = Instant::now();
    let Lived { agents, published } = life.end().await?;
    tell(&format!("the agents are quiet after {:.1} s", settles.elapsed().as_secs_f64()));
    let seen = verdict::check(&fleet, &controllers, &agents, &published).await?;
    ensure!(seen.generations > 0 && seen.events > 0, "nothing happened in this run, so it shows nothing");
    let sum = |of: fn(&Agent) -> u64| agents.iter().map(of).sum::<u64>();
    println!(
        "{} machines, {count} controllers on {}: {} check-ins, {} reports, {} polls, {} archives, {} times \
         tried again; {} generations and {} events are there once, in order, with archives of {} KiB in {}; \
         {} entries of the audit log in one chain",
        agents.len(),
        cli.database,
        sum(|agent| agent.told.check_ins),
        sum(|agent| agent.told.reports),
        sum(|agent| agent.told.polls),
        sum(|agent| agent.told.archives),
        sum(|agent| agent.told.tried_again),
        seen.generations,
        seen.events,
        seen.bytes / 1024,
        if s3 { "garage" } else { "a folder" },
        seen.entries
    );
    println!("{broken:?}");
    println!("{}", table(&figures));
    if let Some(file) = &cli.json {
        let measured = json!({ "seed": seed, "machines": cli.machines, "figures": figures });
        std::fs::write(file, serde_json::to_vec_pretty(&measured)?)?;
    }
    drop(parts);
    Ok(())
}

/// As many machines with one controller over SQLite and a folder, until nothing is timed any more.
async fn beside(cli: &Cli, folder: &Path, dice: &mut Dice) -> Result<Life> {
    let (programs, settings) = ([cli.muster.clone()], format!("{FOLDER}{}\n", cli.configure));
    Life::begin(Fleet::make(folder)?, &programs, 1, &settings, cli.machines, dice).await
}
