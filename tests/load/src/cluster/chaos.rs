//! Breaks one thing after the other, by a seed.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use tokio::time::Instant;

use super::controllers::Controllers;
use super::dice::Dice;
use super::garage::Garage;
use super::postgres::Postgres;
use super::relay::Relay;

/// How long a standby may take to follow.
const LIMIT: Duration = Duration::from_secs(60);

/// The database of a cluster: a primary, a standby, and the address where controllers find the primary.
pub struct Databases {
    folder: PathBuf,
    primary: Postgres,
    standby: Postgres,
    pub relay: Relay,
    made: usize,
}

impl Databases {
    pub async fn create(folder: PathBuf) -> Result<Self> {
        let primary = Postgres::create(&folder, "database0")?;
        primary.start()?;
        primary.sql("CREATE DATABASE muster")?;
        let standby = follow(&folder, "database1", &primary).await?;
        let relay = Relay::start(primary.address).await?;
        Ok(Self { folder, primary, standby, relay, made: 2 })
    }

    pub fn url(&self) -> String {
        format!("postgres://muster@{}/muster", self.relay.address)
    }

    /// The primary dies in the middle of its commits and the standby takes over; then a new standby follows.
    async fn fail_over(&mut self) -> Result<()> {
        self.relay.lead(None);
        self.primary.kill()?;
        self.standby.promote()?;
        self.relay.lead(Some(self.standby.address));
        let name = format!("database{}", self.made);
        self.made += 1;
        self.standby.wait_for(None)?;
        let next = follow(&self.folder, &name, &self.standby).await?;
        // What died is dropped with its folder's server.
        self.primary = std::mem::replace(&mut self.standby, next);
        Ok(())
    }

    /// The primary dies and comes back by itself.
    async fn crash(&self, down: Duration) -> Result<()> {
        self.primary.kill()?;
        tokio::time::sleep(down).await;
        self.primary.start()
    }

    /// Ends every session of the controllers, those that listen too.
    fn cut(&self) -> Result<()> {
        self.primary
            .sql("SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = 'muster'")
            .map(drop)
    }
}

/// A standby that the primary waits for from now on.
async fn follow(folder: &std::path::Path, name: &str, primary: &Postgres) -> Result<Postgres> {
    let standby = Postgres::following(folder, name, primary)?;
    standby.start()?;
    primary.wait_for(Some(name))?;
    let began = Instant::now();
    let state = format!("SELECT sync_state FROM pg_stat_replication WHERE application_name = '{name}'");
    while primary.sql(&state)? != "sync" {
        ensure!(began.elapsed() < LIMIT, "{name} does not follow its primary");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(standby)
}

/// How often each thing was broken.
#[derive(Debug, Default)]
pub struct Broken {
    pub killed: u32,
    pub restarted: u32,
    pub hung: u32,
    pub failed_over: u32,
    pub crashed: u32,
    pub cut: u32,
    pub store_crashed: u32,
}

/// What can be broken.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Kill,
    Restart,
    Hang,
    FailOver,
    Crash,
    Cut,
    Store,
}

/// Breaks things until the time is over, and then lets all of it come back.
pub async fn reign(
    controllers: Arc<Controllers>,
    (mut databases, mut store): (Option<Databases>, Option<Garage>),
    mut dice: Dice,
    lasts: Duration,
    broken: &mut Broken,
    tell: impl Fn(&str),
) -> Result<(Option<Databases>, Option<Garage>)> {
    let began = Instant::now();
    let mut kinds = vec![Kind::Kill, Kind::Kill, Kind::Restart, Kind::Hang];
    if databases.is_some() {
        kinds.extend([Kind::FailOver, Kind::Crash, Kind::Cut]);
    }
    if store.is_some() {
        kinds.push(Kind::Store);
    }
    while began.elapsed() < lasts {
        tokio::time::sleep(Duration::from_millis(500) + dice.up_to_ms(2000)).await;
        let (one, kind) = (dice.below(controllers.count()), kinds.get(dice.below(kinds.len())));
        match (kind, &mut databases, &mut store) {
            (Some(Kind::Kill), ..) => {
                tell(&format!("kill controller {one}"));
                controllers.kill(one, dice.up_to_ms(2000)).await.context("killing a controller")?;
                broken.killed += 1;
            }
            (Some(Kind::Restart), ..) => {
                tell(&format!("restart controller {one}"));
                controllers.restart(one).await.context("restarting a controller")?;
                broken.restarted += 1;
            }
            (Some(Kind::Hang), ..) => {
                tell(&format!("hang controller {one}"));
                controllers.hang(one, Duration::from_secs(1) + dice.up_to_ms(4000)).await?;
                broken.hung += 1;
            }
            (Some(Kind::FailOver), Some(databases), _) => {
                tell("fail the database over");
                databases.fail_over().await.context("failing over")?;
                broken.failed_over += 1;
            }
            (Some(Kind::Crash), Some(databases), _) => {
                tell("crash the database");
                databases.crash(dice.up_to_ms(2000)).await.context("crashing the database")?;
                broken.crashed += 1;
            }
            (Some(Kind::Store), _, Some(store)) => {
                tell("crash the store");
                store.crash(dice.up_to_ms(2000)).await.context("crashing the store")?;
                broken.store_crashed += 1;
            }
            (Some(Kind::Cut), Some(databases), _) => {
                tell("cut all sessions of the database");
                databases.cut()?;
                broken.cut += 1;
            }
            _ => {}
        }
    }
    controllers.all_answer().await?;
    if let Some(store) = &store {
        store.answers().await?;
    }
    Ok((databases, store))
}
