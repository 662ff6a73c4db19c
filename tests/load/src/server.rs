//! The controller under load: the program itself, on a processor of its own.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use muster_protocol::api;
use rustix::process::{Pid, Signal};
use tokio::time::Instant;

use crate::client::{Connection, Target};

/// The longest that it may take to start or to stop.
const LIMIT: Duration = Duration::from_secs(60);
/// Between two tries to reach it while it starts.
const TRY: Duration = Duration::from_millis(1);

pub struct Program {
    /// The path of `muster`.
    pub muster: PathBuf,
    /// The processor that it gets for itself, if it gets one.
    pub core: Option<usize>,
}

/// A running controller. Dropped, it is killed.
pub struct Server {
    child: Child,
    log: PathBuf,
    pub target: Target,
    /// From its start until it answered a request.
    pub ready_after: Duration,
}

/// An address that was free a moment ago.
pub fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}

impl Server {
    /// Starts it and waits until it answers.
    pub async fn start(program: &Program, config: &Path, target: Target) -> Result<Self> {
        let began = Instant::now();
        let mut server = Self::begin(program, config, target)?;
        while let Err(error) = server.answers().await {
            server.require_running()?;
            ensure!(began.elapsed() < LIMIT, "the controller does not answer: {error:#}");
            tokio::time::sleep(TRY).await;
        }
        server.ready_after = began.elapsed();
        Ok(server)
    }

    /// Starts it; what it prints is added to a file beside its configuration.
    pub fn begin(program: &Program, config: &Path, target: Target) -> Result<Self> {
        let log = config.with_extension("log");
        let output = std::fs::File::options().create(true).append(true).open(&log)?;
        let mut command = match program.core {
            None => Command::new(&program.muster),
            Some(core) => {
                let mut pinned = Command::new("taskset");
                pinned.args(["-c", &core.to_string()]).arg(&program.muster);
                pinned
            }
        };
        let child = command
            .args(["serve", "--config"])
            .arg(config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(output)
            .spawn()
            .context("the controller, or taskset (package util-linux), does not start")?;
        Ok(Self { child, log, target, ready_after: Duration::ZERO })
    }

    /// An error if it has ended.
    pub fn require_running(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("the controller ended with {status}; see {}", self.log.display()),
            None => Ok(()),
        }
    }

    /// Whether it answers a request now.
    pub async fn answers(&self) -> Result<()> {
        let mut connection = Connection::open(&self.target).await?;
        let request = hyper::Request::get(api::FLEET).header("host", "localhost").body(Default::default())?;
        connection.send(request).await?.good::<serde_json::Value>().map(drop)
    }

    /// Resident memory in KiB.
    pub fn rss_kib(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// CPU time of all its threads so far.
    pub fn cpu(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        // The name in parentheses may hold spaces; utime and stime are the 12th and 13th field after it.
        let (_, fields) = stat.rsplit_once(')').context("an odd /proc/PID/stat")?;
        let ticks: u64 =
            fields.split_whitespace().skip(11).take(2).filter_map(|f| f.parse::<u64>().ok()).sum();
        Ok(Duration::from_secs_f64(ticks as f64 / rustix::param::clock_ticks_per_second() as f64))
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid =
            i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("a process has an ID")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Asks it to stop, and waits until it has.
    pub async fn stop(mut self) -> Result<Duration> {
        let began = Instant::now();
        self.signal(Signal::TERM)?;
        while self.child.try_wait()?.is_none() {
            ensure!(began.elapsed() < LIMIT, "the controller does not stop");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(began.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Both fail once it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
