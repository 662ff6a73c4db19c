//! One attacker: a process of its own, with one thread, at one address. Its requests are prepared in advance
//! wherever possible, so that they cost the attacker less than the controller.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::{MachineName, Sha256};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpSocket;
use tokio_rustls::TlsConnector;

/// The argument that makes this program an attacker.
pub const WORD: &str = "--party";
/// The nice value of attackers: real ones would not use this host's processors.
const NICE: &str = "10";
/// How long to wait for a response.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long it takes to open all connections of one kind.
const ALL_BEGIN: Duration = Duration::from_secs(3);
/// Bodies below this size are kept.
const SMALL: usize = 64 * 1024;
/// The longest head of a response.
const MAX_HEAD: usize = 16 * 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Party {
    Stranger,
    Enrolled,
    SlowReader,
}

impl Party {
    /// How many methods of attack each has.
    fn ways(self) -> usize {
        match self {
            Self::Stranger => 19,
            Self::Enrolled => 14,
            Self::SlowReader => 7,
        }
    }
}

/// The attacker's instructions, in JSON on the first line of its standard input.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Plan {
    pub party: Party,
    pub address: SocketAddr,
    pub ca: Option<PathBuf>,
    pub from: Ipv4Addr,
    pub fleet: Sha256,
    /// Honest machines, whose names are not secret.
    pub victims: Vec<MachineName>,
    pub archive: String,
    /// The machine that the attacker is, and its key in PEM.
    pub machine: Option<(MachineName, String)>,
    /// An operator's key in PEM, for the reader that is one.
    pub operator: Option<String>,
}

/// What one method of attack did.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    pub connections: u64,
    /// Connections that were refused, or closed by the controller.
    pub ended: u64,
    pub sent: u64,
    pub bytes: u64,
    /// Responses by status.
    pub answers: BTreeMap<u16, u64>,
}

pub type Tallies = BTreeMap<String, Tally>;

pub struct Stage {
    pub plan: Plan,
    tls: Option<Arc<rustls::ClientConfig>>,
    tallies: RefCell<Tallies>,
}

pub trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A connection to the controller.
pub struct Wire {
    stream: Box<dyn Stream>,
    stage: Rc<Stage>,
    trick: &'static str,
    read: Vec<u8>,
    /// The body of the last response, if it is small.
    pub body: Vec<u8>,
}

impl Stage {
    /// The methods of attack that have not been tried yet.
    fn missing(&self) -> Vec<String> {
        let tallies = self.tallies.borrow();
        let known =
            tallies.iter().filter(|(_, tally)| tally.connections == 0).map(|(trick, _)| trick.clone());
        let fewer = self.plan.party.ways().saturating_sub(tallies.len());
        known.chain((fewer > 0).then(|| format!("{fewer} more"))).collect()
    }

    pub fn note(&self, trick: &'static str, change: impl FnOnce(&mut Tally)) {
        change(self.tallies.borrow_mut().entry(trick.to_owned()).or_default());
    }

    pub fn url(&self, path: &str) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{path}", self.plan.address)
    }

    /// For what precedes the attack.
    pub fn client(&self) -> Result<reqwest::Client> {
        super::service::client(self.plan.ca.as_deref(), self.plan.from.octets(), true)
    }

    /// A bare connection; with a small receive buffer for readers that take nothing.
    pub async fn tcp(&self, small: bool) -> Result<tokio::net::TcpStream> {
        let socket = TcpSocket::new_v4()?;
        if small {
            socket.set_recv_buffer_size(2048)?;
        }
        socket.bind((self.plan.from, 0).into())?;
        Ok(socket.connect(self.plan.address).await?)
    }

    async fn connect(self: &Rc<Self>, trick: &'static str, small: bool) -> Result<Wire> {
        let tcp = self.tcp(small).await?;
        tcp.set_nodelay(true)?;
        let stream: Box<dyn Stream> = match &self.tls {
            None => Box::new(tcp),
            Some(tls) => {
                let name = self.plan.address.ip().into();
                Box::new(TlsConnector::from(tls.clone()).connect(name, tcp).await?)
            }
        };
        Ok(Wire { stream, stage: self.clone(), trick, read: Vec::new(), body: Vec::new() })
    }

    /// Attacks in one way over this many connections at once; one that ends is replaced.
    pub fn each<F>(self: &Rc<Self>, trick: &'static str, connections: usize, act: F)
    where
        F: AsyncFn(&mut Wire) -> Result<()> + 'static,
    {
        self.each_with(trick, connections, false, act);
    }

    pub fn each_with<F>(self: &Rc<Self>, trick: &'static str, connections: usize, small: bool, act: F)
    where
        F: AsyncFn(&mut Wire) -> Result<()> + 'static,
    {
        self.note(trick, |_| {});
        let act = Rc::new(act);
        for number in 0..connections {
            let (stage, act) = (self.clone(), act.clone());
            tokio::task::spawn_local(async move {
                tokio::time::sleep(begins(number, connections)).await;
                loop {
                    match stage.connect(trick, small).await {
                        Ok(mut wire) => {
                            stage.note(trick, |tally| tally.connections += 1);
                            if act(&mut wire).await.is_err() {
                                stage.note(trick, |tally| tally.ended += 1);
                            }
                        }
                        Err(_) => {
                            stage.note(trick, |tally| tally.ended += 1);
                            tokio::time::sleep(Duration::from_millis(20)).await;
                        }
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
    }

    /// Bare connections, for what precedes HTTP.
    pub fn each_bare<F>(self: &Rc<Self>, trick: &'static str, connections: usize, act: F)
    where
        F: AsyncFn(&mut tokio::net::TcpStream) -> Result<()> + 'static,
    {
        self.note(trick, |_| {});
        let act = Rc::new(act);
        for number in 0..connections {
            let (stage, act) = (self.clone(), act.clone());
            tokio::task::spawn_local(async move {
                tokio::time::sleep(begins(number, connections)).await;
                loop {
                    let outcome = match stage.tcp(false).await {
                        Ok(mut tcp) => {
                            stage.note(trick, |tally| tally.connections += 1);
                            act(&mut tcp).await
                        }
                        Err(error) => {
                            tokio::time::sleep(Duration::from_millis(20)).await;
                            Err(error)
                        }
                    };
                    if outcome.is_err() {
                        stage.note(trick, |tally| tally.ended += 1);
                    }
                    tokio::task::yield_now().await;
                }
            });
        }
    }
}

impl Wire {
    pub async fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.more(bytes).await?;
        self.stage.note(self.trick, |tally| tally.sent += 1);
        Ok(())
    }

    /// Records more bytes sent.
    pub async fn more(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await?;
        self.stage.note(self.trick, |tally| tally.bytes += bytes.len() as u64);
        Ok(())
    }

    /// Reads the next response and drops its body.
    pub async fn answer(&mut self) -> Result<u16> {
        tokio::time::timeout(PATIENCE, self.read_answer()).await.context("no answer came")?
    }

    async fn read_answer(&mut self) -> Result<u16> {
        let end = loop {
            if let Some(end) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break end + 4;
            }
            ensure!(self.read.len() < MAX_HEAD, "the head is too long");
            self.fill().await?;
        };
        let head = String::from_utf8_lossy(&self.read[..end]).to_lowercase();
        let status = head.get(9..12).and_then(|text| text.parse().ok()).context("no status")?;
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        let length = length.map_or(Ok(0), |text| text.trim().parse::<usize>())?;
        self.read.drain(..end);
        let mut left = length;
        self.body.clear();
        loop {
            let taken = left.min(self.read.len());
            if length < SMALL {
                self.body.extend_from_slice(&self.read[..taken]);
            }
            self.read.drain(..taken);
            left -= taken;
            if left == 0 {
                break;
            }
            self.fill().await?;
        }
        self.stage.note(self.trick, |tally| *tally.answers.entry(status).or_default() += 1);
        if head.contains("connection: close") {
            bail!("it closes the connection");
        }
        Ok(status)
    }

    async fn fill(&mut self) -> Result<()> {
        self.read.reserve(16 * 1024);
        ensure!(self.stream.read_buf(&mut self.read).await? > 0, "the controller closed the connection");
        Ok(())
    }

    /// Sends and waits for the response, forever.
    pub async fn ask_without_end(&mut self, request: impl Fn() -> Vec<u8>) -> Result<()> {
        loop {
            self.send(&request()).await?;
            self.answer().await?;
        }
    }

    /// Reads one byte a second, until the controller gives up.
    pub async fn sip(&mut self) -> Result<()> {
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            self.stream.read_u8().await?;
        }
    }
}

/// They start one after the other, so that the attacker itself keeps up.
fn begins(number: usize, of: usize) -> Duration {
    ALL_BEGIN.mul_f64(number as f64 / of as f64)
}

/// A request as sent over the wire.
pub fn request(method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Vec<u8> {
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\n");
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    if method != "GET" {
        head += &format!("content-length: {}\r\n", body.len());
    }
    [head.as_bytes(), b"\r\n", body].concat()
}

/// An attack that runs until [`Attack::end`], which returns what was done.
pub struct Attack {
    pub party: Party,
    child: Child,
    said: BufReader<ChildStdout>,
}

impl Attack {
    pub fn begin(plan: &Plan) -> Result<Self> {
        let child = Command::new("nice")
            .args(["-n", NICE])
            .arg(std::env::current_exe()?)
            .arg(WORD)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("nice cannot be run")?;
        let mut child = child;
        let said = BufReader::new(child.stdout.take().context("no standard output")?);
        let stdin = child.stdin.as_mut().context("no standard input")?;
        writeln!(stdin, "{}", serde_json::to_string(plan)?)?;
        Ok(Self { party: plan.party, child, said })
    }

    /// Waits until every method of attack was tried.
    pub fn wait(&mut self) -> Result<()> {
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        let missing: Vec<String> = serde_json::from_str(&line).context("the attacker ended")?;
        ensure!(missing.is_empty(), "{:?} did not come to: {}", self.party, missing.join(", "));
        Ok(())
    }

    pub fn end(mut self) -> Result<Tallies> {
        drop(self.child.stdin.take());
        let mut line = String::new();
        self.said.read_line(&mut line)?;
        let tallies = serde_json::from_str(&line).context("the attacker said nothing of what it did")?;
        ensure!(self.child.wait()?.success(), "the attacker failed");
        Ok(tallies)
    }
}

impl Drop for Attack {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The attacker's main loop: it does its worst until its standard input ends, and reports what it did.
pub fn perform() -> Result<()> {
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    let plan: Plan = serde_json::from_str(&line)?;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let held = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let most = rustix::process::Rlimit { current: held.maximum, maximum: held.maximum };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, most)?;
    let tls = plan.ca.as_deref().map(super::service::tls).transpose()?.map(Arc::new);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let local = tokio::task::LocalSet::new();
    let stage = Rc::new(Stage { plan, tls, tallies: RefCell::default() });
    let over = Arc::new(tokio::sync::Notify::new());
    let ends = over.clone();
    std::thread::spawn(move || {
        let _ = std::io::stdin().read_line(&mut String::new());
        ends.notify_one();
    });
    runtime.block_on(local.run_until(async {
        match stage.plan.party {
            Party::Stranger => super::stranger::attack(&stage)?,
            Party::Enrolled => super::enrolled::attack(&stage)?,
            Party::SlowReader => super::slow::attack(&stage)?,
        }
        let clock = SystemClock::new();
        while !stage.missing().is_empty() && clock.awake() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        say(&stage.missing())?;
        over.notified().await;
        Ok::<_, anyhow::Error>(())
    }))?;
    say(&*stage.tallies.borrow())?;
    // Whatever is still waiting is dropped with the process.
    std::process::exit(0)
}

fn say(what: &impl Serialize) -> Result<()> {
    muster_protocol::say!("{}", serde_json::to_string(what)?);
    Ok(muster_protocol::terminal::finish()?)
}
