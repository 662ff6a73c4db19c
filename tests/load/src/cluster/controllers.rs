//! The controllers of a cluster, and how clients find one that answers.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::process::Signal;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::dice::Dice;
use crate::client::{Connection, Target};
use crate::server::{Program, Server, free_address};

/// The longest that a controller may take to answer again.
const LIMIT: Duration = Duration::from_secs(60);
/// How long a client waits for a connection before it tries another controller.
const CONNECT: Duration = Duration::from_secs(2);

pub struct Controllers {
    /// What runs and, for the second half of a run, what each is replaced with.
    programs: Vec<Program>,
    second: AtomicBool,
    all: Vec<Controller>,
}

struct Controller {
    config: PathBuf,
    target: Target,
    server: Mutex<Option<Server>>,
}

impl Controllers {
    /// Starts `count` of them; `write` writes the configuration of one that listens there.
    pub async fn start(
        programs: Vec<Program>,
        count: usize,
        write: impl Fn(&str, std::net::SocketAddr) -> Result<PathBuf>,
    ) -> Result<Self> {
        let program = programs.first().context("there is a program")?;
        let mut all = Vec::new();
        for number in 0..count {
            let listen = free_address()?;
            let config = write(&format!("controller{number}"), listen)?;
            let target = Target::plain(listen);
            let server = Server::start(program, &config, target.clone()).await?;
            all.push(Controller { config, target, server: Mutex::new(Some(server)) });
        }
        Ok(Self { programs, second: AtomicBool::new(false), all })
    }

    /// The program that the next start runs.
    fn program(&self) -> Result<&Program> {
        let second = self.programs.last().filter(|_| self.second.load(Ordering::Relaxed));
        second.or(self.programs.first()).context("there is a program")
    }

    /// Replaces the program of one after the other, while the rest goes on.
    pub async fn upgrade(&self) -> Result<()> {
        self.second.store(true, Ordering::Relaxed);
        for number in 0..self.count() {
            self.restart(number).await?;
            self.answers(number).await?;
        }
        Ok(())
    }

    pub fn count(&self) -> usize {
        self.all.len()
    }

    pub fn target(&self, number: usize) -> Result<&Target> {
        self.all.get(number).map(|one| &one.target).context("there is such a controller")
    }

    /// A connection to any of them, as a load balancer would give one; `None` if it does not answer.
    pub async fn connect(&self, dice: &mut Dice) -> Option<Connection> {
        let one = self.all.get(dice.below(self.all.len()))?;
        tokio::time::timeout(CONNECT, Connection::open(&one.target)).await.ok()?.ok()
    }

    /// Ends one at once and starts it again after a while.
    pub async fn kill(&self, number: usize, down: Duration) -> Result<()> {
        let one = self.all.get(number).context("there is such a controller")?;
        let mut server = one.server.lock().await;
        // Dropping it kills it.
        drop(server.take());
        tokio::time::sleep(down).await;
        *server = Some(Server::begin(self.program()?, &one.config, one.target.clone())?);
        Ok(())
    }

    /// Asks one to stop, as an upgrade does, and starts it again.
    pub async fn restart(&self, number: usize) -> Result<()> {
        let one = self.all.get(number).context("there is such a controller")?;
        let mut server = one.server.lock().await;
        if let Some(server) = server.take() {
            server.stop().await?;
        }
        *server = Some(Server::begin(self.program()?, &one.config, one.target.clone())?);
        Ok(())
    }

    /// Lets one hang for a while: it holds its connections and answers nothing.
    pub async fn hang(&self, number: usize, lasts: Duration) -> Result<()> {
        let one = self.all.get(number).context("there is such a controller")?;
        let server = one.server.lock().await;
        if let Some(server) = server.as_ref() {
            server.signal(Signal::STOP)?;
            tokio::time::sleep(lasts).await;
            server.signal(Signal::CONT)?;
        }
        Ok(())
    }

    /// Waits until all of them answer. One that ended by itself is an error: a controller never exits because
    /// of its database.
    pub async fn all_answer(&self) -> Result<()> {
        for number in 0..self.count() {
            self.answers(number).await?;
        }
        Ok(())
    }

    async fn answers(&self, number: usize) -> Result<()> {
        let began = Instant::now();
        let one = self.all.get(number).context("there is such a controller")?;
        let mut server = one.server.lock().await;
        let server = server.as_mut().context("every controller was started again")?;
        while server.answers().await.is_err() {
            server.require_running()?;
            ensure!(began.elapsed() < LIMIT, "{} does not answer", one.config.display());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}
