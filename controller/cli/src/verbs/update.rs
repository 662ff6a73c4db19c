//! `muster update`: evaluate, say what will change and in which waves, push, sign, publish or draft, follow.

mod waves;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use muster_protocol::api::OPERATOR_MACHINES;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::operator::MachineView;
use muster_protocol::target::Target;

use self::waves::Waves;
use crate::config::Config;
use crate::flake::derivations::Derivations;
use crate::flake::evaluate::{Flake, Lock};
use crate::flake::notes::{tell_of, unsigned};
use crate::flake::options::Options;
use crate::fleet::{rollouts, watch};
use crate::keys::touches;
use crate::release::difference::Difference;
use crate::release::gating::{Choice, Fleet};
use crate::release::highest::HighestSigned;
use crate::release::left_out;
use crate::release::numbers::Numbered;
use crate::release::plan::{Planned, Request};
use crate::release::push::push_closures;
use crate::release::select::{self, Selector};
use crate::release::sign::{self, Outcome};
use crate::release::signing::Signing;
use crate::terminal::spinner::spinner;
use crate::trust::{roots, understands};
use crate::vars::workspace;

#[derive(Debug, Args)]
pub struct Update {
    /// Machines, or @TAG; @all, @nixos and @darwin exist by themselves [default: every machine of the flake]
    #[arg(value_name = "MACHINE | @TAG")]
    machines: Vec<Selector>,
    /// The flake to publish [default: flake in muster.toml, or the current folder]
    #[arg(long, value_name = "REF")]
    flake: Option<String>,
    /// Publish also where nothing changed
    #[arg(long)]
    force: bool,
    /// Change nothing: sign anew only what the flake says unchanged, and whose signature ends soon or counts
    /// no more
    #[arg(long, conflicts_with = "force")]
    refresh: bool,
    /// How many days count as soon
    #[arg(long, default_value_t = 30, value_name = "DAYS")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=36_500))]
    refresh_days: u32,
    /// Words for the history
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// How many Nix processes evaluate at once, each as many machines as its memory allows
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=64))]
    jobs: u8,
    /// Go on with the others where a machine's system cannot be made; the exit code is 1 then, too
    #[arg(long)]
    keep_going: bool,
    #[command(flatten)]
    signing: Signing,
    #[command(flatten)]
    choice: Choice,
    #[command(flatten)]
    options: Options,
}

impl Update {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let config = Config::load(config)?;
        let reference =
            self.flake.clone().or_else(|| config.file.flake.clone()).unwrap_or_else(|| ".".into());
        workspace::refuse_pending(&reference)?;
        let api = self.signing.api(&config)?;
        let trusted = roots::follow(&api, &config).await?;
        trusted.require_operator(&api.public()?)?;
        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;

        let progress = spinner();
        progress.set_message(format!("reading {reference}"));
        let write = if self.signing.dry_run { Lock::Keep } else { Lock::Write };
        let flake = Flake::open_with(&reference, &self.options, write).await.map_err(unsigned)?;
        let left_out = left_out::left_out(&self.machines, &flake.found, &machines);
        let chosen = select::select(&self.machines, &machines, &flake.muster, |name| flake.describes(name));
        let chosen = chosen.map_err(|error| {
            progress.finish_and_clear();
            tell_each(&left_out.lines());
            error.with_hint()
        })?;
        let mut highest = HighestSigned::load(&config)?;
        // It may prompt for the key.
        progress.finish_and_clear();
        // Before minutes of evaluation: a rollout is often written wrong.
        let chosen_rollout = self.choice.chosen(&config, &flake)?;
        let numbered = Numbered::of(&api, &trusted, &mut highest, &chosen, self.signing.jump_to).await?;
        let request = Request {
            urgent: self.signing.urgent,
            message: self.message.as_deref(),
            refresh_days: self.refresh_days,
            jobs: self.jobs,
        };
        let progress = spinner();
        let mut files = Derivations::default();
        let planned = request.plan((&flake, &mut files), &numbered.counted, &trusted, &progress);
        let (planned, failed) = planned.await;
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
            tell_each(&left_out::describe_failed(&failed));
        }
        let waves = Waves {
            api: &api,
            fleet: Fleet { config: &config, trusted: &trusted, flake: &flake, views: &machines },
            choice: &self.choice,
            chosen: chosen_rollout,
            force: self.force,
        };
        let done = numbered.or(self.publish(&waves, &mut highest, (planned, &mut files)).await?);
        Ok(if failed.is_empty() { done } else { ExitCode::FAILURE })
    }

    /// Asks, signs what should be signed, and follows it.
    async fn publish(
        &self,
        waves: &Waves<'_>,
        highest: &mut HighestSigned,
        (planned, files): (Vec<Planned>, &mut Derivations),
    ) -> Result<ExitCode> {
        let (api, Fleet { config, trusted, .. }) = (waves.api, &waves.fleet);
        let mut wanted: Vec<Planned> = planned.into_iter().filter(|plan| self.wants(plan)).collect();
        if wanted.is_empty() {
            say!("Nothing changed; nothing to sign.");
            return Ok(ExitCode::SUCCESS);
        }
        let in_place = waves.look(&wanted, highest, self.signing.dry_run).await?;
        let sealed = waves.put(&mut wanted, &in_place, self.signing.dry_run).await?;
        if self.signing.dry_run {
            say!("Nothing was signed: this was a dry run.");
            return Ok(ExitCode::SUCCESS);
        }
        let key = api.public()?;
        let concerned = |view: &&MachineView| wanted.iter().any(|plan| plan.target.machine == view.machine);
        if trusted.operators().1 == 1 {
            understands::require_signer(&key, "this signature", waves.fleet.views.iter().filter(concerned))?;
        }
        if let Some(line) = touches::announced(&key, wanted.len() * touches::OF_A_GENERATION) {
            say!("{line}");
        }
        if !waves.may_leave((&wanted, &in_place), sealed.as_ref(), self.signing.yes).await?
            || !self.signing.confirm(trusted, wanted.len())?
        {
            say!("Nothing was signed.");
            return Ok(ExitCode::FAILURE);
        }

        let targets: Vec<&Target> = wanted.iter().map(|plan| &plan.target).collect();
        push_closures(api, &targets, files).await?;
        if let Some(sealed) = &sealed {
            sealed.send(api).await?;
        }
        let before = watch::cursor(api).await?;
        let numbers: Vec<(MachineName, Generation)> =
            targets.iter().map(|target| (target.machine.clone(), target.generation)).collect();
        highest.keep(numbers.iter().cloned());
        let signed: Vec<&Planned> = wanted.iter().collect();
        let file = self.signing.draft_file.as_deref();
        let outcome = sign::sign(config, api, trusted, &signed, file).await?;
        match (&outcome, &sealed, file) {
            (Outcome::Drafted, Some(sealed), Some(file)) => waves::write_beside(file, sealed)?,
            (Outcome::Published, Some(sealed), _) if self.signing.watch => {
                return rollouts::follow(api, &sealed.hash, self.signing.limit()).await;
            }
            (Outcome::Published, Some(sealed), _) => {
                say!("Follow with `muster rollout watch {}`.", sealed.hash.short());
                return Ok(ExitCode::SUCCESS);
            }
            _ => {}
        }
        self.signing.after(api, outcome, &numbers, before).await
    }

    /// Whether a generation should be signed.
    fn wants(&self, plan: &Planned) -> bool {
        let renewed = plan.renewal.as_ref().is_some_and(|why| self.refresh || why.must_be());
        match plan.difference {
            Difference::Same => self.force || renewed,
            _ => !self.refresh,
        }
    }

    fn tell(&self, plan: &Planned) {
        let Planned { target, difference, renewal, .. } = plan;
        let (summary, lines) = difference.describe();
        if !self.wants(plan) {
            let why = match (difference, renewal) {
                (Difference::Same, Some(why)) => format!("; {}: renew it with --refresh", why.describe()),
                (Difference::Same, None) => String::new(),
                _ => ": left alone, since --refresh changes nothing".to_owned(),
            };
            say!("{} ({}): {summary}{why}", target.machine, target.class);
            return;
        }
        let anew = match (difference, renewal) {
            (Difference::Same, Some(why)) => format!(", and signed anew: {}", why.describe()),
            (Difference::Same, None) => ", and signed anew".to_owned(),
            _ => String::new(),
        };
        say!("{} ({}) generation {}: {summary}{anew}", target.machine, target.class, target.generation);
        say!("    {}", target.output);
        for line in lines {
            say!("    {line}");
        }
        for word in target.evaluation.describe() {
            say!("    evaluated with {word}");
        }
    }
}

fn tell_each(lines: &[String]) {
    for line in lines {
        tell!("{line}");
    }
}
