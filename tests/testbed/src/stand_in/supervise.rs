//! The life of one job: start, end, restart.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use rustix::process::Signal;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{sleep, timeout};

use super::job::{Job, Manager, Restart, State, Status, Together};
use super::processes::{self, INVOCATION};
use super::wire::Refusal;
use crate::root::Root;

/// A command of `init` to a job, with a channel for its completion.
#[derive(Debug)]
pub enum Order {
    Start { kill: bool },
    Stop,
    Reset,
    Unload,
    PowerFailure,
}

pub struct Handle {
    pub orders: mpsc::Sender<(Order, oneshot::Sender<()>)>,
    pub status: watch::Receiver<Status>,
}

/// Starts supervising a job, which runs at once if it is set to.
pub fn take_up(root: &Root, job: Job) -> Result<Handle, Refusal> {
    let program = program(root, &job)?;
    let (orders, inbox) = mpsc::channel(16);
    let (tell, status) = watch::channel(Status::new(job.clone()));
    let life =
        Life { root: root.clone(), job, program, tell, clock: SystemClock::new(), started: None, asks: None };
    tokio::spawn(life.run(inbox));
    Ok(Handle { orders, status })
}

/// The program's file, which must exist: launchd and systemd refuse a job whose program is missing.
fn program(root: &Root, job: &Job) -> Result<PathBuf, Refusal> {
    let cannot = |why: &str| Refusal::CannotRun(format!("{}: {why}", job.name));
    let word = job.arguments.first().ok_or_else(|| cannot("it names no program"))?;
    let found = if word.contains('/') {
        root.resolve(Path::new(word)).map_err(|error| cannot(&error.to_string()))?
    } else {
        let path = environment(root, job).remove("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .map(|folder| folder.join(word))
            .find(|file| file.is_file())
            .ok_or_else(|| cannot(&format!("no {word} in {path}")))?
    };
    if found.is_file() { Ok(found) } else { Err(cannot(&format!("there is no {}", found.display()))) }
}

/// Exactly what the job sets, and the manager's own path with the machine's stand-ins first.
fn environment(root: &Root, job: &Job) -> std::collections::BTreeMap<String, String> {
    let mut environment = job.environment.clone();
    let path = environment.remove("PATH").unwrap_or_else(|| job.manager.path().to_owned());
    environment.insert("PATH".into(), format!("{}:{path}", root.at("/bin").display()));
    environment
}

struct Life {
    root: Root,
    job: Job,
    program: PathBuf,
    tell: watch::Sender<Status>,
    clock: SystemClock,
    /// When it was last started, in time awake.
    started: Option<Duration>,
    /// Who asked for the next start, and hears when it is over.
    asks: Option<oneshot::Sender<()>>,
}

struct Running {
    child: Child,
    pid: i32,
    invocation: String,
}

type Inbox = mpsc::Receiver<(Order, oneshot::Sender<()>)>;

impl Life {
    async fn run(mut self, mut inbox: Inbox) {
        let mut wanted = self.job.start;
        loop {
            if wanted {
                wanted = match self.start() {
                    Ok(running) => match self.while_running(running, &mut inbox).await {
                        Next::Ended(again) => again,
                        Next::Gone => return,
                    },
                    Err(error) => {
                        eprintln!("{}: {error}", self.job.name);
                        self.ended(127);
                        self.job.restart == Restart::Always
                    }
                };
                if self.job.collect && !wanted {
                    return;
                }
                if wanted && !self.pause(&mut inbox).await {
                    return;
                }
            } else {
                let Some((order, done)) = inbox.recv().await else { return };
                match order {
                    Order::Start { .. } => {
                        (wanted, self.asks) = (true, Some(done));
                        continue;
                    }
                    Order::Stop => {}
                    Order::Reset => self.set(|status| status.state = State::Waiting),
                    Order::Unload | Order::PowerFailure => {
                        let _ = done.send(());
                        return;
                    }
                }
                let _ = done.send(());
            }
        }
    }

    /// Waits for the next start; returns whether the job is still loaded.
    async fn pause(&mut self, inbox: &mut Inbox) -> bool {
        let pause = Duration::from_millis(self.job.pause_ms);
        let rest = match (self.job.manager, self.started) {
            (Manager::Launchd, Some(started)) => {
                pause.saturating_sub(self.clock.awake().saturating_sub(started))
            }
            _ => pause,
        };
        let until = tokio::time::Instant::now() + rest;
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(until) => return true,
                order = inbox.recv() => {
                    let Some((order, done)) = order else { return false };
                    if matches!(order, Order::Start { .. }) {
                        self.asks = Some(done);
                        return true;
                    }
                    let _ = done.send(());
                    match order {
                        Order::Start { .. } | Order::Reset => {}
                        // A stopped unit waits for its next start; nothing of it runs now.
                        Order::Stop => loop {
                            let Some((order, done)) = inbox.recv().await else { return false };
                            if matches!(order, Order::Start { .. }) {
                                self.asks = Some(done);
                                return true;
                            }
                            let _ = done.send(());
                            match order {
                                Order::Unload | Order::PowerFailure => return false,
                                Order::Start { .. } | Order::Stop | Order::Reset => {}
                            }
                        },
                        Order::Unload | Order::PowerFailure => return false,
                    }
                }
            }
        }
    }

    /// Nobody sees it wait for its start once it is being started, least of all what is started.
    fn start(&mut self) -> anyhow::Result<Running> {
        self.set(|status| status.state = State::Running);
        let started = self.spawn();
        if started.is_err() {
            self.set(|status| status.state = State::Waiting);
        }
        if let Some(asks) = self.asks.take() {
            let _ = asks.send(());
        }
        started
    }

    fn spawn(&mut self) -> anyhow::Result<Running> {
        let invocation =
            muster_protocol::ids::to_hex(&muster_protocol::random::bytes::<16>().unwrap_or_default());
        let file = |path: &Option<PathBuf>| match path {
            None => Ok(Stdio::null()),
            Some(path) => {
                let path = self.root.at(path);
                if let Some(folder) = path.parent() {
                    std::fs::create_dir_all(folder)?;
                }
                OpenOptions::new().create(true).append(true).open(path).map(Stdio::from)
            }
        };
        if let Some(folder) = self.runtime_directory() {
            std::fs::create_dir_all(folder)?;
        }
        let mut command = Command::new(self.root.at("/bin/own-session"));
        command
            .arg(&self.program)
            .args(&self.job.arguments[1..])
            .env_clear()
            .envs(environment(&self.root, &self.job))
            .current_dir(self.job.folder.as_deref().unwrap_or(Path::new("/")))
            .stdin(Stdio::null())
            .stdout(file(&self.job.stdout)?)
            .stderr(file(&self.job.stderr)?);
        if self.job.manager == Manager::Systemd {
            command.env(INVOCATION, &invocation);
        }
        let child = command.spawn()?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).unwrap_or_default();
        self.started = Some(self.clock.awake());
        self.set(|status| {
            status.pid = Some(pid);
            status.runs += 1;
        });
        Ok(Running { child, pid, invocation })
    }

    async fn while_running(&mut self, mut running: Running, inbox: &mut Inbox) -> Next {
        loop {
            tokio::select! {
                exit = running.child.wait() => {
                    let code = code(&exit);
                    self.end_the_rest(&running, Signal::TERM).await;
                    self.ended(code);
                    return Next::Ended(match self.job.restart {
                        Restart::Never => false,
                        Restart::Always => true,
                        Restart::OnFailure => code != 0,
                        Restart::OnCrash => code < 0,
                    });
                }
                order = inbox.recv() => {
                    let Some((order, done)) = order else { return Next::Gone };
                    let next = match order {
                        Order::Start { kill: false } | Order::Reset => None,
                        Order::Start { kill: true } => {
                            self.end(&mut running).await;
                            Some(Next::Ended(true))
                        }
                        Order::Stop => {
                            self.end(&mut running).await;
                            self.set(|status| status.state = State::Waiting);
                            Some(Next::Ended(false))
                        }
                        Order::Unload => {
                            self.end(&mut running).await;
                            Some(Next::Gone)
                        }
                        Order::PowerFailure => {
                            for pid in processes::members(running.pid, Some(&running.invocation)) {
                                processes::signal(pid, Signal::KILL);
                            }
                            processes::signal_group(running.pid, Signal::KILL);
                            let _ = running.child.wait().await;
                            Some(Next::Gone)
                        }
                    };
                    let restart = matches!(next, Some(Next::Ended(true)));
                    if restart {
                        // `kickstart -k` and `restart` do not wait for the pause.
                        self.started = None;
                        match self.start() {
                            Ok(again) => {
                                running = again;
                                let _ = done.send(());
                                continue;
                            }
                            Err(error) => eprintln!("{}: {error}", self.job.name),
                        }
                    }
                    let _ = done.send(());
                    if let Some(next) = next {
                        return next;
                    }
                }
            }
        }
    }

    /// Asks the job to end, and kills it after its timeout.
    async fn end(&mut self, running: &mut Running) {
        processes::signal(running.pid, Signal::TERM);
        if self.job.together == Together::Everything {
            self.signal_everything(running, Signal::TERM);
        }
        let patience = Duration::from_millis(self.job.patience_ms);
        let exit = match timeout(patience, running.child.wait()).await {
            Ok(exit) => exit,
            Err(_) => {
                processes::signal(running.pid, Signal::KILL);
                running.child.wait().await
            }
        };
        self.end_the_rest(running, Signal::TERM).await;
        self.ended(code(&exit));
    }

    /// Ends what the first process left behind.
    async fn end_the_rest(&self, running: &Running, signal: Signal) {
        match self.job.together {
            Together::Nothing => {}
            // launchd sends SIGTERM to the group and does nothing else.
            Together::Group => processes::signal_group(running.pid, signal),
            Together::Everything => {
                self.signal_everything(running, signal);
                let patience = Duration::from_millis(self.job.patience_ms);
                let gone = async {
                    while !processes::members(running.pid, Some(&running.invocation)).is_empty() {
                        sleep(Duration::from_millis(10)).await;
                    }
                };
                if timeout(patience, gone).await.is_err() {
                    self.signal_everything(running, Signal::KILL);
                }
            }
        }
    }

    fn signal_everything(&self, running: &Running, signal: Signal) {
        processes::signal_group(running.pid, signal);
        for pid in processes::members(running.pid, Some(&running.invocation)) {
            processes::signal(pid, signal);
        }
    }

    fn runtime_directory(&self) -> Option<PathBuf> {
        self.job.runtime_directory.as_ref().map(|name| self.root.at("/run").join(name))
    }

    fn ended(&self, code: i32) {
        if let Some(folder) = self.runtime_directory() {
            let _ = std::fs::remove_dir_all(folder);
        }
        let restarts = match self.job.restart {
            Restart::Never => false,
            Restart::Always => true,
            Restart::OnFailure => code != 0,
            Restart::OnCrash => code < 0,
        };
        let failed = self.job.manager == Manager::Systemd && code != 0 && code != -15 && !restarts;
        self.set(|status| {
            status.state = if failed { State::Failed } else { State::Waiting };
            status.pid = None;
            status.last_exit = Some(code);
        });
    }

    fn set(&self, change: impl FnOnce(&mut Status)) {
        self.tell.send_modify(change);
    }
}

enum Next {
    /// It ended; whether to restart it.
    Ended(bool),
    /// It is no longer loaded.
    Gone,
}

fn code(exit: &std::io::Result<ExitStatus>) -> i32 {
    use std::os::unix::process::ExitStatusExt as _;
    match exit {
        Ok(exit) => exit.code().unwrap_or_else(|| -exit.signal().unwrap_or_default()),
        Err(_) => 127,
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::process::Command;

    use super::super::units;
    use super::*;

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_start_is_answered_when_the_service_runs_and_meanwhile_nobody_sees_it_wait() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(crate::root::MARK), "").unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        symlink("/usr/bin/env", folder.path().join("bin/own-session")).unwrap();
        let unit = folder.path().join("steady.service");
        let text = "[Service]\nExecStart=/bin/false\nRestart=always\nRestartSec=1000\n";
        std::fs::write(&unit, text).unwrap();
        let root = Root::open(folder.path()).unwrap();
        let job = Job { start: true, ..units::read(&unit).unwrap().job };
        let handle = take_up(&root, job).unwrap();
        let mut status = handle.status.clone();
        status.wait_for(|status| status.last_exit == Some(1)).await.unwrap();
        assert_eq!(status.borrow().state, State::Waiting);

        // Its start takes as long as nobody reads its log.
        let log = root.at("/var/log/journal/steady.service.log");
        std::fs::remove_file(&log).unwrap();
        assert!(Command::new("mkfifo").arg(&log).status().unwrap().success());
        let (done, answer) = oneshot::channel();
        handle.orders.send((Order::Start { kill: false }, done)).await.unwrap();
        let mut answer = std::pin::pin!(answer);
        let was_started = tokio::select! {
            _ = &mut answer => false,
            () = sleep(Duration::from_secs(20)) => false,
            running = status.wait_for(|status| status.state == State::Running) => {
                // The second has not begun.
                running.unwrap().runs == 1
            }
        };
        let _log = std::fs::File::open(&log).unwrap();
        assert!(was_started, "its start was answered before it was started");
        answer.await.unwrap();
        assert_eq!(handle.status.borrow().runs, 2);
    }
}
