//! `muster update`: evaluate, say what will change, push, sign, publish, follow.

mod difference;
mod select;

use std::io::{IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use futures_util::{StreamExt as _, TryStreamExt as _};
use indicatif::{ProgressBar, ProgressStyle};
use muster_protocol::api::{OPERATOR_MACHINES, OPERATOR_SESSION, operator_machine};
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::machine::{System, can_take};
use muster_protocol::operator::{MachineView, Session};
use muster_protocol::packages;
use muster_protocol::policy::Policy;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::sign_generation;

use self::difference::Difference;
use self::select::{SelectError, Selector};
use super::api::Api;
use super::config::Config;
use super::error::WithHint as _;
use super::watch;
use crate::flake::evaluate::{self, Evaluated, Flake, FlakeError};
use crate::flake::push;

const DAY: i64 = 86_400;
const DEFAULT_DEADLINE: u32 = 300;

#[derive(Debug, Args)]
pub struct Update {
    /// Machines, or @TAG; @all, @nixos and @darwin exist by themselves [default: every machine of the flake]
    #[arg(value_name = "MACHINE | @TAG")]
    machines: Vec<Selector>,
    /// The flake to publish [default: flake in muster.toml, or the current folder]
    #[arg(long, value_name = "REF")]
    flake: Option<String>,
    /// Say what would change, and sign nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before signing
    #[arg(long, short)]
    yes: bool,
    /// Publish also where nothing changed
    #[arg(long)]
    force: bool,
    /// Follow until every machine has settled; machines that are offline join later and are not waited for
    #[arg(long)]
    watch: bool,
    /// The longest that --watch follows, in seconds
    #[arg(long, default_value_t = 3600, value_name = "SECONDS")]
    watch_limit: u64,
    /// Machines take it outside their windows and on battery, too; a pause at the machine still holds
    #[arg(long)]
    urgent: bool,
    /// Words for the history
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// How many machines are evaluated at once
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
}

/// One machine's next generation, not yet signed.
struct Planned {
    target: Target,
    /// What the machine builds, by the controller's record.
    system: System,
    difference: Difference,
}

impl Update {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let config = Config::load(config)?;
        let reference =
            self.flake.clone().or_else(|| config.file.flake.clone()).unwrap_or_else(|| ".".into());
        super::vars::fleet::refuse_pending(&reference)?;
        let api = Api::open(&config)?;
        api.fleet().await?;
        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;

        let progress = spinner();
        progress.set_message(format!("reading {reference}"));
        let flake = Flake::open(&reference).await.map_err(with_flake_hint)?;
        let chosen = select::select(&self.machines, &machines, &flake.muster, |name| flake.describes(name))
            .map_err(with_select_hint)?;
        let planned = self.plan(&flake, &chosen, &progress).await?;
        progress.finish_and_clear();

        for plan in &planned {
            tell(plan, self.force);
        }
        let wanted: Vec<&Planned> =
            planned.iter().filter(|plan| self.force || plan.difference != Difference::Same).collect();
        if wanted.is_empty() {
            println!("Nothing changed; nothing to sign.");
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run {
            println!("Nothing was signed: this was a dry run.");
            return Ok(ExitCode::SUCCESS);
        }
        if !self.yes && !agreed(wanted.len())? {
            println!("Nothing was signed.");
            return Ok(ExitCode::FAILURE);
        }

        let targets: Vec<&Target> = wanted.iter().map(|plan| &plan.target).collect();
        push_closures(&config, &api, &targets).await?;
        let before = watch::cursor(&api).await?;
        publish(&config, &api, &wanted).await?;
        if !self.watch {
            println!("Follow with `muster status`.");
            return Ok(ExitCode::SUCCESS);
        }
        let followed: Vec<(MachineName, Generation)> =
            targets.iter().map(|target| (target.machine.clone(), target.generation)).collect();
        watch::follow(&api, &followed, before, Duration::from_secs(self.watch_limit)).await
    }

    /// Evaluates every chosen machine and compares it with what was published last.
    async fn plan(
        &self,
        flake: &Flake,
        chosen: &[&MachineView],
        progress: &ProgressBar,
    ) -> Result<Vec<Planned>> {
        futures_util::stream::iter(chosen)
            .map(|view| async move {
                progress.set_message(format!("evaluating {}", view.machine));
                let evaluated =
                    flake.evaluate(&view.machine, view.class, &view.system).await.map_err(with_flake_hint)?;
                self.plan_one(flake, view, &evaluated).await
            })
            .buffered(usize::from(self.jobs))
            .try_collect()
            .await
    }

    async fn plan_one(&self, flake: &Flake, view: &MachineView, evaluated: &Evaluated) -> Result<Planned> {
        let facts = flake.muster.machines.get(&view.machine).cloned().unwrap_or_default();
        let last = view.published.as_ref().map(|published| &published.target);
        let target = Target {
            machine: view.machine.clone(),
            class: view.class,
            generation: view.next_generation(),
            system: evaluated.system.clone(),
            derivation: evaluated.derivation.clone(),
            output: evaluated.output.clone(),
            action: facts.action,
            deadline_seconds: facts.deadline_seconds.unwrap_or(DEFAULT_DEADLINE),
            checks: facts.health_checks(&view.machine)?,
            trusted_nix_keys: facts.trusted_nix_keys,
            policy: Policy { urgent: self.urgent || facts.policy.urgent, ..facts.policy },
            message: self.message.clone(),
        };
        target
            .check()
            .with_context(|| format!("muster.machines.{} of {}", view.machine, flake.reference))
            .hint("correct it in the flake and run the command again")?;
        let mut difference = difference::terms(last, &target);
        if let (Difference::System(packages), Some(last)) = (&mut difference, last) {
            let closures =
                tokio::join!(evaluate::closure(&last.derivation), evaluate::closure(&target.derivation));
            if let (Some(old), Some(new)) = closures {
                *packages = Some(packages::changes(&old, &new));
            }
        }
        Ok(Planned { target, system: view.system.clone(), difference })
    }
}

fn tell(plan: &Planned, force: bool) {
    let Planned { target, difference, .. } = plan;
    let what = match difference {
        Difference::First => "its first generation".to_owned(),
        Difference::Same if force => "unchanged, and signed anew".to_owned(),
        Difference::Same => "unchanged".to_owned(),
        Difference::Terms => "the same system, with other checks or terms".to_owned(),
        Difference::System(None) => {
            "a new system (the old one is not in this store, so its packages are not compared)".to_owned()
        }
        Difference::System(Some(changes)) if *changes == packages::Changes::default() => {
            "a new system with the same packages".to_owned()
        }
        Difference::System(Some(_)) => "a new system".to_owned(),
    };
    match difference {
        Difference::Same if !force => println!("{} ({}): {what}", target.machine, target.class),
        _ => println!(
            "{} ({}) generation {}: {what}\n    {}",
            target.machine, target.class, target.generation, target.output
        ),
    }
    if let Difference::System(Some(changes)) = difference {
        for line in difference::lines(changes) {
            println!("    {line}");
        }
    }
}

fn agreed(count: usize) -> Result<bool> {
    if !std::io::stdin().is_terminal() {
        return Err(anyhow!("nobody is here to agree to signing {count} generations"))
            .hint("give --yes to sign without being asked, or --dry-run to only look");
    }
    print!("Sign and publish {count} generations? [y/N] ");
    std::io::stdout().flush()?;
    let mut answer = String::new();
    std::io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

async fn push_closures(config: &Config, api: &Api, targets: &[&Target]) -> Result<()> {
    let progress = spinner();
    progress.set_message("pushing derivations to the controller's cache");
    let session: Session = api.post(OPERATOR_SESSION, &()).await?;
    let ca = config.file.tls_ca.as_ref().map(|path| config.path(path));
    let cache = push::Cache {
        url: config.file.url.trim_end_matches('/'),
        host: api.url().host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']'),
        bearer: &session.bearer,
        ca: ca.as_deref(),
    };
    let derivations: Vec<_> = targets.iter().map(|target| target.derivation.clone()).collect();
    push::push(&derivations, &cache)
        .await
        .context("nothing was signed")
        .hint("see that the controller runs and has room on its disk, then run the command again")?;
    progress.finish_and_clear();
    Ok(())
}

/// Signs and publishes one machine after the other; each is whole by itself.
async fn publish(config: &Config, api: &Api, planned: &[&Planned]) -> Result<()> {
    let expires = api.clock.unix_seconds() + i64::from(config.file.signature_days) * DAY;
    for (done, Planned { target, system, .. }) in planned.iter().enumerate() {
        // I6 once more, between the target as it is signed and the machine: what was planned is what was checked.
        can_take((target.class, system), target.class, &target.system)?;
        let publication = sign_generation(target, expires, &[api.key()])?;
        let path = format!("{}/generations", operator_machine(&target.machine));
        let published: Result<MachineView> = api.post(&path, &publication).await;
        published.with_context(|| {
            format!(
                "generation {} for {} was not published ({done} of {} were, before it)",
                target.generation,
                target.machine,
                planned.len()
            )
        })?;
        println!("signed and published generation {} for {}", target.generation, target.machine);
    }
    Ok(())
}

pub(super) fn spinner() -> ProgressBar {
    let spinner = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        spinner.set_style(style);
    }
    spinner.enable_steady_tick(Duration::from_millis(120));
    spinner
}

fn with_flake_hint(error: FlakeError) -> anyhow::Error {
    let hint = match &error {
        FlakeError::Lock { .. } => {
            "see that --flake names a flake, and that `nix flake metadata` reads it".to_owned()
        }
        FlakeError::Evaluate { attribute, .. } => {
            format!("mend the flake until `nix eval` of {attribute} succeeds; nothing was signed")
        }
        FlakeError::Shape { .. } => "correct it in the flake; nothing was signed".to_owned(),
        FlakeError::NotInFlake { machine, output, .. } => {
            format!("add {output}.{machine} to the flake, or name other machines; nothing was signed")
        }
        FlakeError::OtherClass { machine, .. } => format!(
            "correct the flake, or enrol the machine anew with `muster machines add {machine} --class … --replace`; \
             nothing was signed"
        ),
        FlakeError::CannotTake { machine, .. } => format!(
            "correct the system in the flake, or the machine's with `muster machines add {machine} --system … \
             --replace`; nothing was signed"
        ),
    };
    anyhow::Error::new(error).context(super::error::Hint(hint))
}

fn with_select_hint(error: SelectError) -> anyhow::Error {
    let hint = match &error {
        SelectError::UnknownMachine { machine, .. } => {
            format!("check the spelling, or add it with `muster machines add {machine} --class …`")
        }
        SelectError::UnknownTag { .. } => {
            "check the spelling, or give it in the flake under muster.machines".to_owned()
        }
        SelectError::Revoked(machine) => {
            format!("enrol it anew with `muster machines add {machine} --class … --replace`")
        }
        SelectError::Nothing => {
            "add machines by the flake's names with `muster machines add`, or name another flake with --flake"
                .to_owned()
        }
    };
    anyhow::Error::new(error).context(super::error::Hint(hint))
}
