//! `muster rollback`: an older generation again, signed as a new one. It needs no flake: what was signed is
//! in the controller's history, and what machines build it from is in its cache.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use muster_protocol::api::{
    CACHE, OPERATOR_MACHINES, OPERATOR_SESSION, gated_name, gated_path, target_name, target_path, tuf_path,
};
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::narinfo::MAX_NARINFO_BYTES;
use muster_protocol::operator::{HistoryEntry, MachineView, Publication, Session};
use muster_protocol::target::{MAX_TARGET_BYTES, Target};
use serde_json::Value;

use crate::api::client::Api;
use crate::config::Config;
use crate::flake::derivations::{self, Derivations};
use crate::flake::facts::Muster;
use crate::fleet::{past, watch};
use crate::release::difference;
use crate::release::highest::HighestSigned;
use crate::release::numbers::Numbered;
use crate::release::plan::Planned;
use crate::release::push::push_closures;
use crate::release::rollback::{self, NoWay, Old};
use crate::release::select::{self, Selector};
use crate::release::sign::{self, Outcome};
use crate::terminal::ask::confirm;
use crate::terminal::count::count;
use crate::terminal::error::{self, WithHint as _};
use crate::terminal::table;
use crate::trust::roots::{self, Trusted};

/// How many of a machine's generations are looked at.
const MOST: usize = 1000;
/// The largest file of metadata.
const MAX_METADATA_BYTES: usize = 128 * 1024;

#[derive(Debug, Args)]
pub struct Rollback {
    /// Machines, or @TAG with a tag that the controller knows; @all, @nixos and @darwin exist by themselves
    #[arg(value_name = "MACHINE | @TAG", required = true)]
    machines: Vec<Selector>,
    /// The generation to go back to [default: of each machine the newest confirmed one with another system]
    #[arg(long, value_name = "GENERATION")]
    to: Option<Generation>,
    /// Say what would change, and sign nothing
    #[arg(long)]
    dry_run: bool,
    /// Do not ask before signing
    #[arg(long, short)]
    yes: bool,
    /// Take also what today's operators did not sign, without being asked about it
    #[arg(long)]
    unverified: bool,
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
    /// Words for the history [default: those of the older generation]
    #[arg(long, short, value_name = "TEXT")]
    message: Option<String>,
    /// Sign numbers up to this one, also where they are far above what was seen signed
    #[arg(long, value_name = "GENERATION")]
    jump_to: Option<Generation>,
}

/// One machine's way back.
struct Back {
    planned: Planned,
    from: Option<Target>,
    entry: HistoryEntry,
    old: Old,
    is_doubtful: bool,
}

impl Rollback {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let config = Config::load(config)?;
        let api = if self.dry_run { Api::to_read(&config)? } else { Api::open(&config)? };
        let trusted = roots::follow(&api, &config).await?;
        trusted.require_operator(&api.public()?)?;
        let machines: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        let chosen = select::select(&self.machines, &machines, &Muster::default(), |_| false)
            .map_err(select::SelectError::with_hint)?;
        let mut highest = HighestSigned::load(&config)?;
        let numbered = Numbered::of(&api, &trusted, &mut highest, &chosen, self.jump_to).await?;
        let session: Session = api.post(OPERATOR_SESSION, &()).await?;

        let (mut ways, mut refused) = (Vec::new(), Vec::new());
        for (view, next) in &numbered.counted {
            match self.way(&api, &session, &trusted, (view, *next)).await {
                Ok(way) => ways.push(way),
                Err(error) => refused.push(error),
            }
        }
        if ways.is_empty()
            && let Some(last) = refused.pop()
        {
            refused.iter().for_each(error::print);
            return Err(last);
        }
        ways.iter().for_each(|way| tell(way, &trusted));
        refused.iter().for_each(error::print);
        if self.dry_run {
            say!("Nothing was signed: this was a dry run.");
            return Ok(numbered.or(done(&refused)));
        }
        let code = self.publish(&config, &api, &trusted, &mut highest, &ways).await?;
        Ok(numbered.or(if refused.is_empty() { code } else { ExitCode::FAILURE }))
    }

    /// Where this machine goes back to, checked.
    async fn way(
        &self,
        api: &Api,
        session: &Session,
        trusted: &Trusted,
        (view, next): (&MachineView, Generation),
    ) -> Result<Back> {
        let machine = &view.machine;
        let history = past::entries(api, machine, None, MOST).await?;
        let chosen = rollback::choose(machine, &history, trusted.root.epoch(), self.to);
        let entry = chosen.map_err(NoWay::with_hint)?.clone();
        let old = entry.published.target.generation;
        let publication = documents(api, session, machine, old).await?;
        let old = rollback::check(&trusted.root, view, &entry, &publication).map_err(NoWay::with_hint)?;
        let target = rollback::again(&old.checked.target, next, self.message.as_deref(), self.urgent);
        let from = view.published.as_ref().map(|published| published.target.clone());
        let difference = difference::terms(from.as_ref(), &target);
        let planned = Planned { target, system: view.system.clone(), difference, renewal: None, place: None };
        let is_doubtful = rollback::is_doubtful(&history, &entry);
        Ok(Back { planned, from, entry, old, is_doubtful })
    }

    /// Asks, sees that machines can build it, signs, and follows it.
    async fn publish(
        &self,
        config: &Config,
        api: &Api,
        trusted: &Trusted,
        highest: &mut HighestSigned,
        ways: &[Back],
    ) -> Result<ExitCode> {
        let unsigned = ways.iter().filter(|way| way.old.unsigned.is_some()).count();
        if unsigned > 0 {
            let what = count(unsigned, "generation", "generations");
            let question =
                format!("Today's operators did not sign {what} of these; take the controller's word?");
            if !confirm(&question, self.unverified).hint("give --unverified to go on without being asked")? {
                say!("Nothing was signed.");
                return Ok(ExitCode::FAILURE);
            }
        }
        let (verb, threshold) = match trusted.operators().1 {
            1 => ("Sign and publish", String::new()),
            more => ("Sign", format!(" (the first signature of {more})")),
        };
        let what = count(ways.len(), "generation", "generations");
        if !confirm(&format!("{verb} {what}{threshold}?"), self.yes)? {
            say!("Nothing was signed.");
            return Ok(ExitCode::FAILURE);
        }
        let planned: Vec<&Planned> = ways.iter().map(|way| &way.planned).collect();
        bring_back(api, &planned).await?;
        let before = watch::cursor(api).await?;
        let signed = || planned.iter().map(|one| (one.target.machine.clone(), one.target.generation));
        highest.keep(signed());
        let outcome = sign::sign(config, api, trusted, &planned, self.draft_file.as_deref()).await?;
        match outcome {
            Outcome::Published if self.watch => {
                let followed: Vec<(MachineName, Generation)> = signed().collect();
                watch::follow(api, &followed, before, Duration::from_secs(self.watch_limit)).await
            }
            Outcome::Published => {
                say!("Follow with `muster status`.");
                Ok(ExitCode::SUCCESS)
            }
            Outcome::Drafted => Ok(ExitCode::SUCCESS),
        }
    }
}

fn done(refused: &[anyhow::Error]) -> ExitCode {
    if refused.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn tell(way: &Back, trusted: &Trusted) {
    let Back { planned: Planned { target, .. }, from, entry, old, is_doubtful } = way;
    let (published, was) = (&entry.published, &old.checked.target);
    let from = from.as_ref().map_or_else(
        || "from nothing".to_owned(),
        |from| format!("from generation {} ({})", from.generation, from.output),
    );
    say!("{} ({}) generation {}: {from}", target.machine, target.class, target.generation);
    say!(
        "    to what generation {} was ({}), published {} by {}",
        was.generation,
        was.output,
        table::date(published.at),
        trusted.name(&published.by)
    );
    if let Some(message) = &was.message {
        say!("    message: {message}");
    }
    match &old.unsigned {
        None => {
            let signers: Vec<String> = old.checked.signers.iter().map(|key| trusted.name(key)).collect();
            say!("    signed by {}", signers.join(", "));
        }
        Some(why) => say!("    not signed by enough of today's operators: {why}"),
    }
    if target.policy.urgent {
        say!("    urgent: outside windows and on battery, too");
    }
    if *is_doubtful {
        say!(
            "    the machine went back from it before: it takes it only after `muster machines retry {}`",
            target.machine
        );
    }
}

/// The documents of a generation, from the machine's repository.
async fn documents(
    api: &Api,
    session: &Session,
    machine: &MachineName,
    generation: Generation,
) -> Result<Publication> {
    let get = async |path: String, max: usize| -> Result<String> {
        let bytes = api.file(&path, max, Some(&session.bearer)).await?;
        let bytes = bytes
            .ok_or_else(|| anyhow!("the controller holds generation {generation} of {machine} no longer"))
            .hint(format!("see `muster history {machine}`, and name another with --to"))?;
        String::from_utf8(bytes).with_context(|| format!("{path} is not text"))
    };
    let of = |role: &str| format!("{}/{}.{role}.json", tuf_path(machine), generation.get());
    let (targets, snapshot) =
        (get(of("targets"), MAX_METADATA_BYTES).await?, get(of("snapshot"), MAX_METADATA_BYTES).await?);
    // Only where to find it: what is found is checked.
    let listed: Value = serde_json::from_str(&targets).context("the metadata of targets is not JSON")?;
    let of_name = |name: String| -> Option<Sha256> {
        listed["signed"]["targets"][name]["hashes"]["sha256"].as_str()?.parse().ok()
    };
    // A generation of a rollout is listed under a name of its own.
    let plain = of_name(target_name(machine)).map(|hash| target_path(machine, &hash));
    let path = plain
        .or_else(|| of_name(gated_name(machine)).map(|hash| gated_path(machine, &hash)))
        .with_context(|| format!("the metadata of generation {generation} of {machine} lists no target"))?;
    let max = usize::try_from(MAX_TARGET_BYTES).unwrap_or(usize::MAX);
    let target = get(path, max).await?;
    Ok(Publication { generation, targets, snapshot, target })
}

/// Sees that the cache has what machines build from, and pushes what it lacks if it is in this store.
async fn bring_back(api: &Api, planned: &[&Planned]) -> Result<()> {
    let session: Session = api.post(OPERATOR_SESSION, &()).await?;
    let mut lacking = Vec::new();
    for one in planned {
        let path = format!("{CACHE}/{}.narinfo", one.target.derivation.hash_part());
        if api.file(&path, MAX_NARINFO_BYTES, Some(&session.bearer)).await?.is_none() {
            lacking.push(&one.target);
        }
    }
    if lacking.is_empty() {
        return Ok(());
    }
    let wanted: Vec<_> = lacking.iter().map(|target| target.derivation.clone()).collect();
    let here = derivations::valid(&wanted).await.unwrap_or_default();
    if let Some(target) = lacking.iter().find(|target| !here.contains(&target.derivation)) {
        return Err(anyhow!(
            "the cache no longer has {}, of which {} builds it, and neither has this store",
            target.derivation,
            target.machine
        ))
        .hint("check out what was published then, and use `muster update`; nothing was signed");
    }
    push_closures(api, &lacking, &mut Derivations::default()).await
}
