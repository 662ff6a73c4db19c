//! `muster update`: evaluate, say what will change, push, sign, publish or draft, follow.

pub mod difference;
mod left_out;
mod numbers;
mod renewal;
mod select;
mod signing;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::Args;
use futures_util::StreamExt as _;
use muster_protocol::api::{OPERATOR_MACHINES, OPERATOR_SESSION};
use muster_protocol::clock::Clock as _;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::machine::System;
use muster_protocol::operator::{MachineView, Session};
use muster_protocol::policy::Policy;
use muster_protocol::target::{Action, HealthCheck, Target};

use self::difference::Difference;
use self::left_out::Failed;
use self::numbers::Numbered;
use self::renewal::Renewal;
use self::select::{SelectError, Selector};
use self::signing::Signed;
use super::api::Api;
use super::config::Config;
use super::error::{Hint, WithHint as _};
use super::flake::{tell_of, unsigned};
use super::roots::{self, Trusted};
use super::seen::Seen;
use super::spinner::{Spinner, spinner};
use super::{ask, watch};
use crate::flake::evaluate::{Evaluated, Flake, Lock};
use crate::flake::options::Options;
use crate::flake::push;

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
    /// Change nothing: sign anew only what the flake says unchanged, and whose signature ends soon or counts no more
    #[arg(long, conflicts_with = "force")]
    refresh: bool,
    /// How many days count as soon
    #[arg(long, default_value_t = 30, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=36_500))]
    refresh_days: u32,
    /// Where more than one operator must sign: write the draft to this file too
    #[arg(long, value_name = "FILE")]
    draft_file: Option<PathBuf>,
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
    /// Sign numbers up to this one, also where they are far above what was seen signed
    #[arg(long, value_name = "GENERATION")]
    jump_to: Option<Generation>,
    /// How many machines are evaluated at once
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Go on with the others where a machine's system cannot be made; the exit code is 1 then, too
    #[arg(long)]
    keep_going: bool,
    #[command(flatten)]
    options: Options,
}

/// One machine's next generation, not yet signed.
struct Planned {
    target: Target,
    /// What the machine builds, by the controller's record.
    system: System,
    difference: Difference,
    /// Why it wants to be signed anew though nothing changed.
    renewal: Option<Renewal>,
}

/// What the flake says of a machine beside its system.
pub struct Terms {
    pub action: Action,
    pub deadline_seconds: u32,
    pub checks: Vec<HealthCheck>,
    pub trusted_nix_keys: Vec<String>,
    pub policy: Policy,
}

pub fn terms_of(flake: &Flake, machine: &MachineName) -> Result<Terms> {
    let facts = flake.muster.machines.get(machine).cloned().unwrap_or_default();
    Ok(Terms {
        action: facts.action,
        deadline_seconds: facts.deadline_seconds.unwrap_or(DEFAULT_DEADLINE),
        checks: facts.health_checks(machine)?,
        trusted_nix_keys: facts.trusted_nix_keys,
        policy: facts.policy,
    })
}

impl Update {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let config = Config::load(config)?;
        let reference =
            self.flake.clone().or_else(|| config.file.flake.clone()).unwrap_or_else(|| ".".into());
        super::vars::fleet::refuse_pending(&reference)?;
        let api = if self.dry_run { Api::to_read(&config)? } else { Api::open(&config)? };
        let trusted = roots::follow(&api, &config).await?;
        trusted.require_operator(&api.public()?)?;
        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;

        let progress = spinner();
        progress.set_message(format!("reading {reference}"));
        let write = if self.dry_run { Lock::Keep } else { Lock::Write };
        let flake = Flake::open_with(&reference, &self.options, write).await.map_err(unsigned)?;
        let left_out = left_out::left_out(&self.machines, &flake.found, &machines);
        let chosen = select::select(&self.machines, &machines, &flake.muster, |name| flake.describes(name));
        let chosen = chosen.map_err(|error| {
            progress.finish_and_clear();
            tell_each(&left_out.lines());
            with_select_hint(error)
        })?;
        let mut seen = Seen::load(&config)?;
        // It may ask for the key.
        progress.finish_and_clear();
        let numbered = Numbered::of(&api, &trusted, &mut seen, &chosen, self.jump_to).await?;
        let progress = spinner();
        let (planned, failed) = self.plan(&flake, &numbered.counted, &trusted, &progress).await;
        flake.require_unchanged().await.map_err(unsigned)?;
        progress.finish_and_clear();

        tell_of(&flake);
        for plan in &planned {
            self.tell(plan);
        }
        tell_each(&left_out.lines());
        if !failed.is_empty() && (planned.is_empty() || !self.keep_going) {
            return Err(left_out::none_signed(failed, chosen.len()));
        }
        if !failed.is_empty() {
            tell!("left out, since their systems cannot be made:");
            tell_each(&left_out::tell_failed(&failed));
        }
        let done = numbered.or(self.publish(&config, &api, &trusted, &mut seen, &planned).await?);
        Ok(if failed.is_empty() { done } else { ExitCode::FAILURE })
    }

    /// Asks, signs what is to be signed, and follows it.
    async fn publish(
        &self,
        config: &Config,
        api: &Api,
        trusted: &Trusted,
        seen: &mut Seen,
        planned: &[Planned],
    ) -> Result<ExitCode> {
        let wanted: Vec<&Planned> = planned.iter().filter(|plan| self.wants(plan)).collect();
        if wanted.is_empty() {
            say!("Nothing changed; nothing to sign.");
            return Ok(ExitCode::SUCCESS);
        }
        if self.dry_run {
            say!("Nothing was signed: this was a dry run.");
            return Ok(ExitCode::SUCCESS);
        }
        let count = ask::count(u32::try_from(wanted.len()).unwrap_or(u32::MAX), "generation");
        let (verb, threshold) = match trusted.operators().1 {
            1 => ("Sign and publish", String::new()),
            more => ("Sign", format!(" (the first signature of {more})")),
        };
        if !ask::agreed(&format!("{verb} {count}{threshold}?"), self.yes)? {
            say!("Nothing was signed.");
            return Ok(ExitCode::FAILURE);
        }

        let targets: Vec<&Target> = wanted.iter().map(|plan| &plan.target).collect();
        push_closures(api, &targets).await?;
        let before = watch::cursor(api).await?;
        seen.keep(targets.iter().map(|target| (target.machine.clone(), target.generation)));
        if let Signed::Drafted =
            signing::sign(config, api, trusted, &wanted, self.draft_file.as_deref()).await?
        {
            if self.watch {
                say!("There is nothing to follow until it is published: `muster status` shows it then.");
            }
            return Ok(ExitCode::SUCCESS);
        }
        if !self.watch {
            say!("Follow with `muster status`.");
            return Ok(ExitCode::SUCCESS);
        }
        let followed: Vec<(MachineName, Generation)> =
            targets.iter().map(|target| (target.machine.clone(), target.generation)).collect();
        watch::follow(api, &followed, before, Duration::from_secs(self.watch_limit)).await
    }

    /// Whether a generation is to be signed.
    fn wants(&self, plan: &Planned) -> bool {
        let renewed = plan.renewal.as_ref().is_some_and(|why| self.refresh || why.must_be());
        match plan.difference {
            Difference::Same => self.force || renewed,
            _ => !self.refresh,
        }
    }

    fn tell(&self, plan: &Planned) {
        let Planned { target, difference, renewal, .. } = plan;
        let (words, lines) = difference.words();
        if !self.wants(plan) {
            let why = match (difference, renewal) {
                (Difference::Same, Some(why)) => format!("; {}: renew it with --refresh", why.words()),
                (Difference::Same, None) => String::new(),
                _ => ": left alone, since --refresh changes nothing".to_owned(),
            };
            say!("{} ({}): {words}{why}", target.machine, target.class);
            return;
        }
        let anew = match (difference, renewal) {
            (Difference::Same, Some(why)) => format!(", and signed anew: {}", why.words()),
            (Difference::Same, None) => ", and signed anew".to_owned(),
            _ => String::new(),
        };
        say!("{} ({}) generation {}: {words}{anew}", target.machine, target.class, target.generation);
        say!("    {}", target.output);
        for line in lines {
            say!("    {line}");
        }
        for word in target.evaluation.describe() {
            say!("    evaluated with {word}");
        }
    }

    /// Evaluates every chosen machine and compares it with what was published last.
    async fn plan(
        &self,
        flake: &Flake,
        counted: &[(&MachineView, Generation)],
        trusted: &Trusted,
        progress: &Spinner,
    ) -> (Vec<Planned>, Vec<Failed>) {
        let each = counted.iter().map(|&(view, generation)| async move {
            progress.set_message(format!("evaluating {}", view.machine));
            let planned = async {
                let evaluated =
                    flake.evaluate(&view.machine, view.class, &view.system).await.map_err(unsigned)?;
                self.plan_one(flake, (view, generation), &evaluated, trusted).await
            };
            planned.await.map_err(|error| Failed { machine: view.machine.clone(), error })
        });
        let made: Vec<Result<Planned, Failed>> =
            futures_util::stream::iter(each).buffered(usize::from(self.jobs)).collect().await;
        let (mut planned, mut failed) = (Vec::new(), Vec::new());
        for one in made {
            match one {
                Ok(plan) => planned.push(plan),
                Err(error) => failed.push(error),
            }
        }
        (planned, failed)
    }

    async fn plan_one(
        &self,
        flake: &Flake,
        (view, generation): (&MachineView, Generation),
        evaluated: &Evaluated,
        trusted: &Trusted,
    ) -> Result<Planned> {
        let terms = terms_of(flake, &view.machine)?;
        let last = view.published.as_ref();
        let target = Target {
            machine: view.machine.clone(),
            class: view.class,
            generation,
            system: evaluated.system.clone(),
            derivation: evaluated.derivation.clone(),
            output: evaluated.output.clone(),
            action: terms.action,
            deadline_seconds: terms.deadline_seconds,
            checks: terms.checks,
            trusted_nix_keys: terms.trusted_nix_keys,
            policy: Policy { urgent: self.urgent || terms.policy.urgent, ..terms.policy },
            requires: Vec::new(),
            message: self.message.clone(),
            evaluation: flake.evaluation().clone(),
        };
        target
            .check()
            .with_context(|| format!("muster.machines.{} of {}", view.machine, flake.reference))
            .hint("correct it in the flake and run the command again")?;
        let difference = difference::between(last.map(|last| &last.target), &target).await;
        let now = muster_protocol::clock::SystemClock::new().unix_seconds();
        let renewal = last.and_then(|last| renewal::wanted(last, &trusted.root, now, self.refresh_days));
        Ok(Planned { target, system: view.system.clone(), difference, renewal })
    }
}

/// What to do about a push that failed, by what Nix says of it.
fn push_hint(words: &str) -> &'static str {
    match words {
        words if words.contains("HTTP error 413") => {
            "a file of it is larger than what stands at that address takes: raise nar_bytes under [limits] in \
             controller.toml, or the limit of the proxy before it (client_max_body_size of nginx), then run the command again"
        }
        words if words.contains("HTTP error 507") => {
            "make room on the controller's disk, then run the command again"
        }
        _ => "see that the controller runs and what it logs, then run the command again",
    }
}

async fn push_closures(api: &Api, targets: &[&Target]) -> Result<()> {
    let progress = spinner();
    progress.set_message("pushing derivations to the controller's cache");
    let session: Session = api.post(OPERATOR_SESSION, &()).await?;
    let derivations: Vec<_> = targets.iter().map(|target| target.derivation.clone()).collect();
    push::push(&derivations, &api.cache(session.bearer)).await.context("nothing was signed").map_err(
        |error| {
            let hint = push_hint(&format!("{error:#}"));
            error.context(Hint(hint.to_owned()))
        },
    )?;
    progress.finish_and_clear();
    Ok(())
}

fn tell_each(lines: &[String]) {
    for line in lines {
        tell!("{line}");
    }
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

#[cfg(test)]
mod tests {
    use super::push_hint;

    #[test]
    fn a_file_that_is_too_large_is_not_called_a_full_disk() {
        let large = push_hint("unable to upload: HTTP error 413 (Payload Too Large)");
        assert!(large.contains("nar_bytes") && !large.contains("room"), "{large}");
        assert!(push_hint("HTTP error 507").contains("room on the controller's disk"));
        assert!(push_hint("connection refused at 10.0.4.13").contains("controller runs"));
    }
}
