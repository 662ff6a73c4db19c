//! The command line.

use std::fs::File;
use std::io::{ErrorKind, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use clap::{Parser, Subcommand};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::terminal;
use rustix::fs::FlockOperation;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::config::Config;
use crate::core::backoff::Backoff;
use crate::identity::{self, Identity, Keys};
use crate::local::LocalError;
use crate::platform::Layout;
use crate::{
    activator, buildlog, doctor, durable, enrol, local, logs, paste, runner, secrets, status, supervisor,
    uninstall,
};

const LOCK: &str = "agent.lock";
/// How often an agent that is not enrolled checks whether it is.
const ENROLMENT_PAUSE: Duration = Duration::from_secs(5);
const IN_ARGUMENTS: &str = "a token is not accepted on the command line, where every user of this machine can read it: run \
     'muster-agent enrol -' and paste it, or 'muster-agent enrol - < FILE'. If it was a token, others may \
     have read it: \
     make a new one with 'muster machines add NAME --replace', which ends it";
/// How many local requests may queue for the runner.
const COMMANDS: usize = 16;

/// Keeps this machine on the system that its operators signed.
#[derive(Parser)]
#[command(name = "muster-agent", version, max_term_width = 100)]
struct Cli {
    /// Configuration file [default: /etc/muster/agent.toml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make this machine a member of a fleet, with a token from `muster machines add`
    #[command(alias = "enroll")]
    Enrol {
        /// The token is read from standard input, and without echo at a terminal: arguments can be read by
        /// every user
        #[arg(value_name = "-", hide = true)]
        token: Option<String>,
        /// Replace the enrolment that this machine has
        #[arg(long)]
        replace: bool,
    },
    /// Run the agent; systemd or launchd does this
    Run,
    /// Show what this machine runs and waits for
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Ask the controller now instead of at the next poll
    CheckNow,
    /// Begin nothing new for a while; what is under way is finished
    Pause {
        /// How long, for example 90m, 4h or 2d [default: until resume]
        #[arg(long = "for", value_name = "TIME", value_parser = length)]
        length: Option<Duration>,
    },
    /// End a pause
    Resume,
    /// Go back to the system that ran before this one
    Rollback,
    /// Try the newest generation again though it failed, and no longer hold its derivation back
    Retry,
    /// Take at the next boot the generation that waits, because NixOS does not switch to it for example
    AtBoot,
    /// Print what fetching, building and activating a generation said
    Logs {
        /// [default: the newest that has a log]
        generation: Option<Generation>,
    },
    /// Take a new key; the old one ends once the controller has it
    RotateKey,
    /// Make a new age key for this machine's secrets; the old one still reads what was encrypted before
    RenewAgeKey,
    /// Decrypt what a system needs before it is activated, as the agent does before a switch
    Secrets {
        /// [default: the running system]
        #[arg(long, value_name = "STORE-PATH")]
        system: Option<StorePath>,
    },
    /// Look for what may keep the agent from its work, and say what to do
    Doctor,
    /// Take the agent and its state off this machine; the system that runs stays as it is
    Uninstall {
        /// Do not ask
        #[arg(long)]
        yes: bool,
    },
    /// Switch to another system; the agent starts this as a process of its own
    #[command(hide = true)]
    Activate,
}

/// The whole program.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let code = start(&cli).unwrap_or_else(|error| {
        for line in terminal::sentence("muster-agent: ", &told_once(&error), None).lines() {
            tell!("{line}");
        }
        ExitCode::FAILURE
    });
    match terminal::finish() {
        Ok(()) => code,
        Err(error) => {
            tell!("muster-agent: the output cannot be written: {error}");
            ExitCode::FAILURE
        }
    }
}

fn start(cli: &Cli) -> Result<ExitCode> {
    let config = Config::load(cli.config.as_deref())?;
    secrets::forbid_core_dumps();
    if let Verb::Activate = cli.verb {
        logs::start();
        return Ok(activator::main_for(&config));
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the agent's runtime cannot be started")?;
    let code = runtime.block_on(dispatch(cli, &config));
    // A reader of the local socket or of Nix may still wait; nobody needs its answer any more.
    runtime.shutdown_timeout(Duration::from_secs(1));
    code
}

async fn dispatch(cli: &Cli, config: &Config) -> Result<ExitCode> {
    match &cli.verb {
        Verb::Enrol { token, replace } => enrol_here(config, token.as_deref(), *replace).await?,
        Verb::Run => return run(config).await,
        Verb::Status { json } => show_status(config, *json).await?,
        Verb::CheckNow => say!("{}", running(config, local::check_now(config).await)?),
        Verb::Pause { length } => {
            let until = length.map(|length| {
                let length = i64::try_from(length.as_millis()).unwrap_or(i64::MAX);
                SystemClock::new().unix_ms().saturating_add(length)
            });
            say!("{}", running(config, local::pause(config, until).await)?);
        }
        Verb::Resume => say!("{}", running(config, local::resume(config).await)?),
        Verb::AtBoot => say!("{}", running(config, local::at_boot(config).await)?),
        Verb::Rollback => say!("{}", running(config, local::rollback(config).await)?),
        Verb::Retry => say!("{}", running(config, local::retry(config).await)?),
        Verb::Logs { generation } => show_log(config, *generation)?,
        Verb::Uninstall { yes } => {
            require_root(config)?;
            let _lock = match *yes || agreed()? {
                true => uninstall::stop(config).and_then(|()| lock(&config.state_dir))?,
                false => bail!("nothing was removed"),
            };
            uninstall::remove(config)?;
        }
        Verb::RotateKey => say!("{}", rotate_key(config).await?),
        Verb::RenewAgeKey => renew_age_key(config).await?,
        Verb::Secrets { system } => install_secrets(config, system.as_ref())?,
        Verb::Doctor => return Ok(doctor::run(config).await),
        Verb::Activate => {}
    }
    Ok(ExitCode::SUCCESS)
}

async fn enrol_here(config: &Config, token: Option<&str>, replace: bool) -> Result<()> {
    if token.is_some_and(|token| token != "-") {
        bail!(IN_ARGUMENTS);
    }
    require_root(config)?;
    logs::start();
    let token = paste::token()?;
    if token.trim().is_empty() {
        bail!(
            "no token was given: run 'muster-agent enrol -' at a terminal and paste it, or 'muster-agent \
             enrol - < FILE'"
        );
    }
    enrol::prepare_state(&config.state_dir)?;
    // A running agent would continue with the old identity.
    let lock = if replace { Some(lock(&config.state_dir)?) } else { None };
    let enrolled = enrol::enrol(config, &token, replace, SystemClock::new().unix_ms()).await?;
    drop(lock);
    say!("This machine is {} ({}) at {}.", enrolled.machine, enrolled.class, enrolled.url);
    say!("Secrets for it are encrypted to {}.", enrolled.age);
    say!("The agent does the rest: see it with 'muster-agent status'.");
    Ok(())
}

async fn renew_age_key(config: &Config) -> Result<()> {
    require_root(config)?;
    let identity =
        Identity::load(config)?.context("this machine is not enrolled: run muster-agent enrol -")?;
    let recipient = Keys::renew_age(&config.state_dir)?;
    say!("Secrets for {} are to be encrypted to {recipient} from now on.", identity.machine);
    say!("An operator runs 'muster machines accept {}' and publishes it.", identity.machine);
    // The next check-in reports it anyway.
    let _ = local::check_now(config).await;
    Ok(())
}

/// After a boot the agent has not activated the running system, and its memory is empty.
fn install_secrets(config: &Config, system: Option<&StorePath>) -> Result<()> {
    require_root(config)?;
    let Some(enrolment) = Identity::enrolment(&config.state_dir)? else {
        tell!("this machine is not enrolled, and has no key that could decrypt anything");
        return Ok(());
    };
    let layout = Layout::new(config, enrolment.class);
    let system = system.cloned().or_else(|| layout.running_itself()).context("no system runs here")?;
    Ok(secrets::install(&layout, &system)?)
}

async fn run(config: &Config) -> Result<ExitCode> {
    require_root(config)?;
    logs::start();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        result = work(config) => result.map(|()| ExitCode::SUCCESS),
        () = supervisor::watchdog() => Ok(ExitCode::SUCCESS),
        _ = terminate.recv() => Ok(ExitCode::SUCCESS),
        _ = interrupt.recv() => Ok(ExitCode::SUCCESS),
    }
}

async fn work(config: &Config) -> Result<()> {
    let _lock = state_folder(config).await?;
    let identity = enrolled(config).await;
    let (sender, commands) = mpsc::channel(COMMANDS);
    // The machine is kept on its system even without the socket.
    let own = local::listen(config, sender.clone());
    // Not before: whoever started the agent may send a request at once. Nor later: looking up the group in a
    // directory may take a while, and an activator waits for this.
    supervisor::ready();
    let listeners = (own, local::listen_to_group(config, sender));
    for error in [listeners.0.as_ref().err(), listeners.1.as_ref().err()].into_iter().flatten() {
        tracing::error!("{error}; people at this machine cannot reach the agent that way");
    }
    // The agent does this itself where a boot does not.
    if !activator::is_alive(&config.state_dir) {
        let layout = Layout::new(config, identity.class);
        let installed = layout.running_itself().map(|system| secrets::install(&layout, &system));
        if let Some(Err(error)) = installed {
            tracing::error!("{error}");
        }
    }
    runner::run(config.clone(), identity, commands).await;
    drop(listeners);
    Ok(())
}

/// Waits until the state folder is usable: exiting would only make a supervisor restart the agent again and
/// again. Another agent using it is a different matter.
async fn state_folder(config: &Config) -> Result<File> {
    let (mut said, mut backoff) = (String::new(), Backoff::default());
    loop {
        let tried = enrol::prepare_state(&config.state_dir).map_err(anyhow::Error::from);
        let error = match tried.and_then(|()| lock(&config.state_dir)) {
            Ok(lock) => return Ok(lock),
            Err(error) if error.downcast_ref::<Occupied>().is_some() => return Err(error),
            Err(error) => told_once(&error),
        };
        if error != said {
            tracing::error!("a person is needed: {error}");
            supervisor::ready();
            supervisor::status(&format!("needs human: {error}"));
            said = error;
        }
        tokio::time::sleep(backoff.failed(0, None)).await;
    }
}

/// Another agent holds the state folder.
#[derive(Debug, thiserror::Error)]
#[error("another muster-agent is using {}: stop it first", .0.display())]
struct Occupied(PathBuf);

/// Waits until this machine is enrolled, so that a supervisor need not restart the agent until then.
async fn enrolled(config: &Config) -> Identity {
    let mut said = String::new();
    loop {
        let now = match enrol::finish(config) {
            Ok(()) => match Identity::load(config) {
                Ok(Some(identity)) => return identity,
                Ok(None) => "this machine is not enrolled yet: run muster-agent enrol -".to_owned(),
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        if now != said {
            tracing::warn!("{now}");
            supervisor::ready();
            supervisor::status(&now);
            said = now;
        }
        tokio::time::sleep(ENROLMENT_PAUSE).await;
    }
}

async fn show_status(config: &Config, json: bool) -> Result<()> {
    let status = match local::status(config).await {
        Ok(status) => status,
        Err(LocalError::NotRunning | LocalError::NotListening(_)) => status::from_files(config)?,
        Err(error) => return Err(error.into()),
    };
    if json {
        terminal::json(&status)?;
    } else {
        for line in status::lines(&status, SystemClock::new().unix_ms()) {
            say!("{line}");
        }
    }
    Ok(())
}

fn show_log(config: &Config, generation: Option<Generation>) -> Result<()> {
    // If the folder cannot be read there may still be logs.
    if let Err(error) = std::fs::metadata(config.state(buildlog::FOLDER))
        && error.kind() != ErrorKind::NotFound
    {
        bail!("the logs cannot be read: {error}; {}", durable::read_remedy(&error));
    }
    let kept = buildlog::kept(&config.state_dir);
    let generation = match generation {
        Some(generation) => generation,
        None => *kept.last().context("no generation has a log on this machine yet")?,
    };
    // Indented, unlike our own lines: build output cannot pose as the agent.
    let copied = buildlog::copy(&config.state_dir, generation, |line| say!("  {line}"));
    match copied {
        Ok(true) => Ok(()),
        Err(error) => bail!("the log cannot be read: {error}; {}", durable::read_remedy(&error)),
        Ok(false) if kept.is_empty() => bail!("no generation has a log on this machine yet"),
        Ok(false) => {
            let kept: Vec<String> = kept.iter().map(ToString::to_string).collect();
            bail!("generation {generation} has no log on this machine; there are {}", kept.join(", "))
        }
    }
}

/// `90m`, `4h`, `2d`: minutes, hours or days, up to a year.
fn length(text: &str) -> Result<Duration, String> {
    const DAY: u64 = 24 * 60 * 60;
    let wrong = || format!("'{text}' is not a length of time: write one such as 90m, 4h or 2d");
    let unit = match text.chars().last() {
        Some('m') => 60,
        Some('h') => 60 * 60,
        Some('d') => DAY,
        _ => return Err(wrong()),
    };
    let number: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(unit).filter(|seconds| (1..=366 * DAY).contains(seconds));
    seconds.map(Duration::from_secs).ok_or_else(wrong)
}

fn agreed() -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        bail!("there is no terminal to confirm at: use --yes to uninstall without being asked");
    }
    terminal::question(format_args!("Remove the agent, its keys and its state from this machine? [y/N]"));
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

/// Through the running agent, or for the next one that starts.
async fn rotate_key(config: &Config) -> Result<String> {
    require_root(config)?;
    match local::rotate_key(config).await {
        Err(LocalError::NotRunning) => {}
        answer => return Ok(answer?),
    }
    if Identity::load(config)?.is_none() {
        bail!("this machine is not enrolled: run muster-agent enrol -");
    }
    let _lock = lock(&config.state_dir)?;
    let key = identity::make_next_key(&config.state_dir)?;
    Ok(format!(
        "the agent is not running: the new key {} is made, and the agent shows it to the controller when it \
         starts",
        key.public().short()
    ))
}

/// How to start the agent.
fn running(config: &Config, answer: Result<String, LocalError>) -> Result<String> {
    let start = match std::env::consts::OS {
        "macos" => "sudo launchctl kickstart system/org.muster.agent",
        _ => "systemctl start muster-agent",
    };
    match answer {
        // The agent opens its socket only once it knows its identity.
        Err(LocalError::NotRunning) if Identity::load(config)?.is_none() => {
            bail!("this machine is not enrolled: run muster-agent enrol -")
        }
        Err(error @ LocalError::NotRunning) => bail!("{error}: start it with '{start}'"),
        answer => Ok(answer?),
    }
}

fn require_root(config: &Config) -> Result<()> {
    if config.stand_in.is_none() && !rustix::process::geteuid().is_root() {
        bail!("only root may do this: run it with sudo");
    }
    Ok(())
}

/// Holds the state folder for one agent while the file is open.
fn lock(state_dir: &Path) -> Result<File> {
    let path = state_dir.join(LOCK);
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| {
        anyhow::anyhow!("{} cannot be opened: {error}; {}", path.display(), durable::remedy(&error))
    })?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(Occupied(state_dir.to_path_buf()).into()),
        Err(error) => Err(error).with_context(|| format!("{} cannot be locked", path.display())),
    }
}

/// The chain of causes, without those that an error above them already includes.
fn told_once(error: &anyhow::Error) -> String {
    let mut causes: Vec<String> = Vec::new();
    for cause in error.chain().map(ToString::to_string) {
        if !causes.iter().any(|earlier| earlier.contains(&cause)) {
            causes.push(cause);
        }
    }
    causes.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_of_time_are_read_as_they_are_spoken() {
        assert_eq!(length("90m"), Ok(Duration::from_secs(5400)));
        assert_eq!(length("4h"), Ok(Duration::from_secs(14_400)));
        assert_eq!(length("2d"), Ok(Duration::from_secs(172_800)));
        for wrong in ["", "4", "h", "0h", "-1h", "4 h", "1.5h", "400d", "99999999999999999999h", "4ä"] {
            assert!(length(wrong).unwrap_err().contains("such as 90m"), "{wrong}");
        }
    }

    #[test]
    fn a_cause_that_its_error_tells_is_not_told_again() {
        let full = std::io::Error::from_raw_os_error(28);
        let words = format!("state cannot be written: {full}; free some space");
        let error = anyhow::Error::new(full).context(words.clone()).context("not enrolled");
        assert_eq!(told_once(&error), format!("not enrolled: {words}"));
    }
}
