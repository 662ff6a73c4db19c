//! Makes machines in folders, and is every stand-in on them, depending on the name it was started as.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};
use clap::{Parser, Subcommand};
use muster_protocol::ids::StorePath;
use muster_protocol::machine::{Class, System};
use muster_testbed::machine::{Machine, Plan};
use muster_testbed::programs;
use muster_testbed::root::Root;
use muster_testbed::stand_in::{init, launchctl, systemctl, systemd_run};

#[derive(Parser)]
#[command(about = "Machines in folders, for Muster's demo and tests")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Make a machine in a new folder
    New {
        folder: PathBuf,
        #[arg(long)]
        class: Class,
        #[arg(long)]
        system: System,
        /// The agent's program; the one beside this program if absent
        #[arg(long)]
        agent: Option<PathBuf>,
        /// Use the host's Nix store instead of one in the folder
        #[arg(long)]
        host_store: bool,
        #[arg(long, default_value_t = 20)]
        poll_seconds: u64,
        /// RUST_LOG of the agent
        #[arg(long, default_value = "info")]
        log: String,
    },
    /// Give it its first system, copied from a Nix store
    Install {
        folder: PathBuf,
        derivation: StorePath,
        #[arg(long)]
        from: String,
    },
    /// Print a port of loopback that is free
    FreePort,
    /// Say by the exit code whether machines can have Nix stores of their own here
    CanSandbox,
    /// Print what each activator of it spent on a CPU itself, in nanoseconds, until this is ended
    Activators { folder: PathBuf },
    /// Turn it on
    Start { folder: PathBuf },
    /// Turn it off, and end everything that runs out of its folder
    Stop {
        folder: PathBuf,
        /// As a power failure does: nothing is asked to end, everything is killed
        #[arg(long)]
        power_failure: bool,
    },
}

fn main() -> ExitCode {
    let own = std::env::current_exe().ok();
    let role = own.as_deref().and_then(|path| path.file_name()?.to_str()).unwrap_or_default();
    let words: Vec<String> =
        std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let done = match role {
        "init" => start_init(),
        "own-session" => own_session(&words),
        "in-machine" => in_machine(&words),
        "launchctl" => Root::of_this_program().and_then(|root| launchctl::run(&root, &words)),
        "systemctl" => Root::of_this_program().and_then(|root| systemctl::run(&root, &words)),
        "systemd-run" => Root::of_this_program().and_then(|root| systemd_run::run(&root, &words)),
        _ => make(Arguments::parse()),
    };
    match done {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{role}: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start_init() -> Result<u8> {
    let root = Root::of_this_program()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(init::run(root))?;
    Ok(0)
}

/// Executes the given program, as the leader of a new session.
fn own_session(words: &[String]) -> Result<u8> {
    let (program, arguments) = words.split_first().context("no program is given")?;
    rustix::process::setsid().context("no session of its own can be had")?;
    Err(Command::new(program).args(arguments).exec()).with_context(|| format!("{program} cannot be run"))
}

/// Executes a program of the machine, found in the machine's view of paths.
fn in_machine(words: &[String]) -> Result<u8> {
    let root = Root::of_this_program()?;
    let (program, arguments) = words.split_first().context("no program is given")?;
    let file = root.resolve(program.as_ref())?;
    Err(Command::new(&file).args(arguments).exec())
        .with_context(|| format!("{} cannot be run", file.display()))
}

fn make(arguments: Arguments) -> Result<u8> {
    match arguments.verb {
        Verb::New { folder, class, system, agent, host_store, poll_seconds, log } => {
            let agent = match agent {
                Some(agent) => std::path::absolute(agent)?,
                None => programs::find("muster-agent")?,
            };
            let mut plan = Plan { poll_seconds, log, ..Plan::new(class, system, agent) };
            plan.own_store &= !host_store;
            Machine::make(&folder, &plan)?;
        }
        Verb::Install { folder, derivation, from } => {
            println!("{}", Machine::open(&folder)?.install(&derivation, &from)?);
        }
        Verb::Activators { folder } => activators(&Machine::open(&folder)?),
        Verb::CanSandbox => return Ok(u8::from(!programs::can_sandbox())),
        Verb::FreePort => println!("{}", muster_testbed::fleet::free_port()?),
        Verb::Start { folder } => Machine::open(&folder)?.start()?,
        Verb::Stop { folder, power_failure } => Machine::open(&folder)?.stop(power_failure)?,
    }
    Ok(0)
}

/// Samples each activator until it is gone; what it spends in its last moment is missed.
fn activators(machine: &Machine) -> ! {
    use std::collections::BTreeMap;
    let config = machine.configuration().display().to_string();
    let mut known: BTreeMap<i32, u64> = BTreeMap::new();
    loop {
        for pid in muster_testbed::fleet::pids_with(machine, &[&config, "activate"]) {
            known.entry(pid).or_default();
        }
        for _ in 0..10 {
            known.retain(|pid, spent| {
                let threads = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
                let now: u64 = threads
                    .filter_map(|thread| std::fs::read_to_string(thread.path().join("schedstat")).ok())
                    .filter_map(|text| text.split(' ').next()?.parse::<u64>().ok())
                    .sum();
                if now == 0 {
                    println!("{spent}");
                    return false;
                }
                *spent = now.max(*spent);
                true
            });
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }
}
