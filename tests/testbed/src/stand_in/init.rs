//! The first process of a machine in a folder: its launchd or systemd.
//!
//! It boots the machine (empties `/run`, sets a boot ID, loads the daemons found in their folder) and
//! executes the commands that arrive on its socket. On NixOS it makes `/run/current-system` from the boot
//! entry; a Mac's system brings a daemon for that, `activate-system`, so the link appears while other daemons
//! are already running, or never. Left out: users and sessions, dependencies and their order, timers,
//! sockets, resource limits, and activation of a system at boot beyond that one link and, on NixOS, its
//! units.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use rustix::fs::{FlockOperation, flock};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use super::job::{Job, Manager, Status};
use super::supervise::{Handle, Order, take_up};
use super::wire::{Refusal, Reply, Request, SOCKET};
use super::{plists, units};
use crate::root::{MARK, Root};

/// Where the process id of `init` is written.
pub const PID: &str = "/run/stand-in.pid";
/// The id of the boot.
pub const BOOT_ID: &str = "/proc-boot-id";
/// How long a client may take to send its command.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

struct Init {
    root: Root,
    jobs: Mutex<HashMap<String, Handle>>,
    off: mpsc::Sender<bool>,
}

/// Runs until the machine is turned off.
pub async fn run(root: Root) -> Result<()> {
    let mark = fs::File::open(root.at(MARK))?;
    flock(&mark, FlockOperation::NonBlockingLockExclusive).context("the machine is on already")?;
    boot(&root)?;
    let listener = UnixListener::bind(root.at(SOCKET)).context("the machine's socket cannot be made")?;
    fs::write(root.at(PID), format!("{}\n", std::process::id()))?;
    let (off, mut switch) = mpsc::channel(1);
    let init = Arc::new(Init { root, jobs: Mutex::default(), off });
    for job in boot_jobs(&init.root) {
        let name = job.name.clone();
        if let Err(refusal) = init.load(job) {
            eprintln!("{name} cannot be loaded: {refusal:?}");
        }
    }
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let power_failure = loop {
        tokio::select! {
            connection = listener.accept() => {
                if let Ok((stream, _)) = connection {
                    tokio::spawn(answer(Arc::clone(&init), stream));
                }
            }
            how = switch.recv() => break how.unwrap_or(false),
            _ = terminate.recv() => break false,
            _ = interrupt.recv() => break false,
        }
    };
    init.turn_off(power_failure).await;
    let _ = fs::remove_file(init.root.at(SOCKET));
    let _ = fs::remove_file(init.root.at(PID));
    Ok(())
}

async fn answer(init: Arc<Init>, stream: UnixStream) {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let read = tokio::time::timeout(REQUEST_LIMIT, BufReader::new(read).read_line(&mut line)).await;
    if !matches!(read, Ok(Ok(1..))) {
        return;
    }
    let reply = match serde_json::from_str(&line) {
        Ok(request) => init.obey(request).await,
        Err(error) => Err(Refusal::CannotRun(error.to_string())),
    };
    let mut bytes = serde_json::to_vec(&reply).unwrap_or_default();
    bytes.push(b'\n');
    let _ = write.write_all(&bytes).await;
}

impl Init {
    async fn obey(&self, request: Request) -> Reply {
        match request {
            Request::List => {
                let mut all: Vec<Status> =
                    self.with_jobs(|jobs| jobs.values().map(|job| job.status.borrow().clone()).collect());
                all.sort_by(|a, b| a.job.name.cmp(&b.job.name));
                Ok(all)
            }
            Request::Load(job) => self.load(*job).map(|status| vec![status]),
            Request::Unload(name) => {
                self.order(&name, Order::Unload).await?;
                self.with_jobs(|jobs| jobs.remove(&name));
                Ok(Vec::new())
            }
            Request::Start { name, kill } => self.order(&name, Order::Start { kill }).await,
            Request::Stop(name) => self.order(&name, Order::Stop).await,
            Request::Reset(name) => self.order(&name, Order::Reset).await,
            Request::Off { power_failure } => {
                let _ = self.off.send(power_failure).await;
                Ok(Vec::new())
            }
        }
    }

    fn with_jobs<T>(&self, work: impl FnOnce(&mut HashMap<String, Handle>) -> T) -> T {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        // A collected job takes its inbox with it.
        jobs.retain(|_, job| !job.orders.is_closed());
        work(&mut jobs)
    }

    fn load(&self, job: Job) -> Result<Status, Refusal> {
        self.with_jobs(|jobs| {
            if jobs.contains_key(&job.name) {
                return Err(Refusal::AlreadyLoaded);
            }
            let handle = take_up(&self.root, job.clone())?;
            let status = handle.status.borrow().clone();
            jobs.insert(job.name, handle);
            Ok(status)
        })
    }

    async fn order(&self, name: &str, order: Order) -> Reply {
        let (done, wait) = oneshot::channel();
        let orders =
            self.with_jobs(|jobs| jobs.get(name).map(|job| job.orders.clone())).ok_or(Refusal::NotLoaded)?;
        orders.send((order, done)).await.map_err(|_| Refusal::NotLoaded)?;
        // A job that ends while it is being told to end has done as asked.
        let _ = wait.await;
        Ok(self.with_jobs(|jobs| jobs.get(name).map(|job| job.status.borrow().clone())).into_iter().collect())
    }

    /// All at once: nothing waits for anything else.
    async fn turn_off(&self, power_failure: bool) {
        let jobs: Vec<Handle> = self.with_jobs(|jobs| jobs.drain().map(|(_, job)| job).collect());
        let mut waits = Vec::new();
        for job in &jobs {
            let (done, wait) = oneshot::channel();
            let order = if power_failure { Order::PowerFailure } else { Order::Unload };
            if job.orders.send((order, done)).await.is_ok() {
                waits.push(wait);
            }
        }
        for wait in waits {
            let _ = wait.await;
        }
    }
}

/// The state after a reboot, before anything runs.
fn boot(root: &Root) -> Result<()> {
    let run = root.at("/run");
    match fs::remove_dir_all(&run) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(&run)?,
    }
    // What the agent reads from /proc or sysctl on a real machine.
    let random = muster_protocol::ids::to_hex(&muster_protocol::random::bytes::<16>()?);
    let parts = [&random[..8], &random[8..12], &random[12..16], &random[16..20], &random[20..]];
    fs::write(root.at(BOOT_ID), format!("{}\n", parts.join("-")))?;
    if manager(root) == Manager::Systemd
        && let Some(system) = boot_system(root)
    {
        symlink(&system, root.at("/run/current-system"))?;
        symlink(&system, root.at("/run/booted-system"))?;
        units_of(root, &system)?;
    }
    Ok(())
}

/// NixOS has the units of the system that it boots, whatever a switch left in `/etc`.
fn units_of(root: &Root, system: &Path) -> Result<()> {
    let folder = root.resolve(&system.join("etc/systemd/system"))?;
    for unit in fs::read_dir(folder).into_iter().flatten().flatten() {
        let place = root.at("/etc/systemd/system").join(unit.file_name());
        let _ = fs::remove_file(&place);
        fs::write(place, fs::read(unit.path())?)?;
    }
    Ok(())
}

/// NixOS boots its boot loader's entry, or its profile if there is none.
fn boot_system(root: &Root) -> Option<PathBuf> {
    if let Ok(entry) = fs::read_to_string(root.at("/boot/entry")) {
        return entry.trim().strip_prefix("default ").map(PathBuf::from);
    }
    let mut place = root.at("/nix/var/nix/profiles/system");
    while let Ok(link) = fs::read_link(&place) {
        if link.is_absolute() && link.starts_with("/nix/store") {
            return Some(link);
        }
        place = place.parent().unwrap_or(Path::new("/")).join(link);
    }
    None
}

/// A machine with a Mac's folder is a Mac.
pub fn manager(root: &Root) -> Manager {
    if root.at("/Library/LaunchDaemons").is_dir() { Manager::Launchd } else { Manager::Systemd }
}

/// The machine's daemons, from their folder.
fn boot_jobs(root: &Root) -> Vec<Job> {
    let (folders, ending) = match manager(root) {
        Manager::Launchd => (vec![root.at("/Library/LaunchDaemons")], "plist"),
        // Units created at run time by programs, and those of the system.
        Manager::Systemd => {
            (vec![root.at("/etc/systemd/system.control"), root.at("/etc/systemd/system")], "service")
        }
    };
    let mut files: Vec<PathBuf> = folders
        .into_iter()
        .flat_map(|folder| fs::read_dir(folder).into_iter().flatten().flatten().map(|file| file.path()))
        .collect();
    files.sort();
    files
        .into_iter()
        .filter(|file| file.extension().is_some_and(|found| found == ending))
        .filter_map(|file| {
            let job = match manager(root) {
                Manager::Launchd => plists::read(&file).map(|plist| plist.job),
                Manager::Systemd => units::read(&file)
                    .map(|unit| Job { start: unit.wanted && unit.job.is_wanted_now(root), ..unit.job }),
            };
            job.inspect_err(|error| eprintln!("{}: {error:#}", file.display())).ok()
        })
        .collect()
}
