//! The verbs, one file each; none uses another. A new one is a file here, its `mod`, and a line each in
//! `Command` and `Command::run`.

mod audit;
mod backup;
mod brake;
mod cache;
mod database;
mod drafts;
mod history;
mod init;
mod keys;
mod machines;
mod rollback;
mod rollout;
mod serve;
mod sign;
mod sign_out;
mod simulate;
mod status;
mod update;
mod vars;
mod why;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// Signed updates for fleets of Macs and NixOS hosts, pulled by the machines.
#[derive(Debug, Parser)]
#[command(name = "muster", version, max_term_width = 100)]
pub struct Arguments {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
struct Common {
    /// The operator's configuration, as `muster init` made it; for `serve`, `backup` and `restore` the
    /// controller's, controller.toml [default: muster/muster.toml, or muster/controller/controller.toml, in
    /// $XDG_CONFIG_HOME]
    #[arg(long, global = true, env = "MUSTER_CONFIG", value_name = "FILE")]
    config: Option<PathBuf>,
}

/// The same with `serve` alone. To know the options of all verbs takes memory, which would stay with a
/// server.
#[derive(Debug, Parser)]
#[command(name = "muster", version)]
struct Serving {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Serve,
}

#[derive(Debug, Subcommand)]
enum Serve {
    Serve(serve::Serve),
}

impl Serving {
    /// `None` if it is another verb, or not well put: [`Arguments`] then says why.
    fn of(arguments: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let matches = with_negatives(Self::command()).try_get_matches_from(arguments).ok()?;
        Self::from_arg_matches(&matches).ok()
    }
}

impl From<Serving> for Arguments {
    fn from(Serving { common, command: Serve::Serve(serve) }: Serving) -> Self {
        Self { common, command: Command::Serve(serve) }
    }
}

impl Arguments {
    /// The program's arguments; ends the program if they are wrong.
    pub fn of_program() -> Self {
        if let Some(serving) = Serving::of(std::env::args_os()) {
            return serving.into();
        }
        let mut command = with_negatives(Self::command());
        let matches = command.get_matches_mut();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.format(&mut command).exit())
    }
}

/// `-1` after an option is its value, which it refuses in its own words, and no option that does not exist.
fn with_negatives(command: clap::Command) -> clap::Command {
    let with = |arg: clap::Arg| match arg.get_action().takes_values() && !arg.is_positional() {
        true => arg.allow_negative_numbers(true),
        false => arg,
    };
    command.mut_args(with).mut_subcommands(with_negatives)
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make the keys, the first root and the configuration of a new fleet
    Init(init::Init),
    /// Run the controller
    Serve(serve::Serve),
    /// Copy the controller's database, roots and settings into a folder, also while it runs
    Backup(backup::Backup),
    /// Bring such a copy back, where no database is
    Restore(backup::Restore),
    /// Move the controller to another database
    #[command(subcommand)]
    Database(database::Database),
    /// Add, list, show and revoke machines
    #[command(subcommand)]
    Machines(machines::Machines),
    /// Variables and secrets: make, read, encrypt, check
    #[command(subcommand)]
    Vars(vars::Vars),
    /// Sign and publish the flake's systems to machines
    Update(update::Update),
    /// Sign again what machines ran before, without the flake
    Rollback(rollback::Rollback),
    /// Add your signature to what another operator drafted, after looking at it
    Sign(sign::Sign),
    /// Forget here the key that was signed in: reading asks for the operator's key again
    SignOut(sign_out::SignOut),
    /// List, show, export, publish and drop what waits for signatures
    #[command(subcommand)]
    Drafts(drafts::Drafts),
    /// List, add, remove and rotate the keys that the fleet trusts
    #[command(subcommand)]
    Keys(keys::Keys),
    /// Remove from the controller's cache what nothing needs
    #[command(subcommand)]
    Cache(cache::Cache),
    /// Try in simulated time how a publication would go through a fleet
    Simulate(simulate::Simulate),
    /// Updates in waves: how they fare, and holding, ending and loosening them
    #[command(subcommand)]
    Rollout(rollout::Rollout),
    /// Hold every rollout at once, or release them again
    Brake(brake::Brake),
    /// Show how the fleet fares
    Status(status::Status),
    /// Show what a machine waits for, and what would change that
    Why(why::Why),
    /// Show a machine's generations and what became of them
    History(history::History),
    /// Show who did what and when, and check that nobody changed it since
    Audit(audit::Audit),
}

/// How long the program waits at its end for files that are being written.
const LAST_WRITES: Duration = Duration::from_secs(5);

/// Runs one command; the exit code is its verdict, an error means that there is none.
pub fn run(arguments: Arguments) -> Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(muster_server::server::workers())
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let done = match arguments.command {
        // Alone: what the commands of operators may need together would stay in the server's memory.
        Command::Serve(serve) => runtime.block_on(serve.run(arguments.common.config)),
        command => runtime.block_on(command.run(arguments.common.config)),
    };
    // What still writes may finish; a thread that waits for a file that hangs keeps nobody here.
    runtime.shutdown_timeout(LAST_WRITES);
    done
}

impl Command {
    async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        match self {
            Self::Init(init) => init.run().map(done),
            Self::Serve(serve) => serve.run(config).await,
            Self::Backup(backup) => backup.run(config).await.map(done),
            Self::Restore(restore) => restore.run(config).await.map(done),
            Self::Database(database) => database.run().await.map(done),
            Self::Machines(machines) => machines.run(config).await,
            Self::Vars(vars) => vars.run(config).await,
            Self::Update(update) => update.run(config).await,
            Self::Rollback(rollback) => rollback.run(config).await,
            Self::Sign(sign) => sign.run(config).await,
            Self::SignOut(sign_out) => sign_out.run(config).map(done),
            Self::Drafts(drafts) => drafts.run(config).await.map(done),
            Self::Keys(keys) => keys.run(config).await.map(done),
            Self::Cache(cache) => cache.run(config).await.map(done),
            Self::Simulate(simulate) => simulate.run().map(done),
            Self::Rollout(rollout) => rollout.run(config).await,
            Self::Brake(brake) => brake.run(config).await,
            Self::Status(status) => status.run(config).await.map(done),
            Self::Why(why) => why.run(config).await.map(done),
            Self::History(history) => history.run(config).await.map(done),
            Self::Audit(audit) => audit.run(config).await,
        }
    }
}

fn done((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_that_is_too_small_is_refused_as_one() {
        for (line, told) in [
            (&["cache", "gc", "--keep-days", "-1"][..], "-1 is not in 0..="),
            (&["update", "--jobs", "-2"], "-2 is not in 1..=64"),
            (&["audit", "--limit", "0"], "a whole number from 1 on"),
            (&["audit", "--limit", "-1"], "a whole number from 1 on"),
            (&["audit", "cut", "--export", "x", "--at", "0"], "a whole number from 1 on"),
        ] {
            let line = ["muster"].iter().chain(line);
            let refused = with_negatives(Arguments::command()).try_get_matches_from(line).unwrap_err();
            assert!(refused.to_string().contains(told), "{refused}");
        }
    }

    #[test]
    fn serve_is_read_without_the_other_verbs_and_means_the_same() {
        for line in [
            &["serve"][..],
            &["serve", "--config", "f"],
            &["--config", "f", "serve", "--next-bearer-key"],
            &["--config=f", "serve"],
        ] {
            let line = ["muster"].iter().chain(line);
            let whole = Arguments::try_parse_from(line.clone()).unwrap();
            let alone = Serving::of(line.map(OsString::from)).map(Arguments::from).unwrap();
            assert_eq!(format!("{alone:?}"), format!("{whole:?}"));
        }
        // What is said of these is said by the whole parser.
        for line in [&[][..], &["serve", "--odd"], &["serve", "--help"], &["--version"], &["status"]] {
            assert!(Serving::of(["muster"].iter().chain(line).map(OsString::from)).is_none(), "{line:?}");
        }
    }
}
