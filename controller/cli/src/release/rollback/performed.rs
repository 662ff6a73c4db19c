//! Several machines go back: shown, asked about, signed, published, followed.

use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::{CACHE, OPERATOR_SESSION};
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::narinfo::MAX_NARINFO_BYTES;
use muster_protocol::operator::{MachineView, Session};

use super::choice::Wanted;
use super::way::{Search, Way};
use crate::api::client::Api;
use crate::config::Config;
use crate::flake::derivations::{self, Derivations};
use crate::fleet::watch;
use crate::release::highest::HighestSigned;
use crate::release::numbers::Numbered;
use crate::release::plan::Planned;
use crate::release::push::push_closures;
use crate::release::sign;
use crate::release::signed;
use crate::release::signing::Signing;
use crate::terminal::ask::confirm;
use crate::terminal::count::count;
use crate::terminal::error::{self, WithHint as _};
use crate::trust::roots::Trusted;

/// How it goes back, for every verb that does.
#[derive(Debug, Args)]
pub struct Terms {
    /// Take also what today's operators did not sign, without being asked about it
    #[arg(long)]
    unverified: bool,
    /// Words for the history [default: those of the older generation]
    #[arg(long, short, value_name = "TEXT")]
    pub message: Option<String>,
    #[command(flatten)]
    pub signing: Signing,
}

/// What came of it.
pub struct Performed {
    pub code: ExitCode,
    /// Whether anything was signed.
    pub is_signed: bool,
}

/// Takes these machines back, those that can. An error if none can.
pub async fn perform(
    config: &Config,
    api: &Api,
    trusted: &Trusted,
    (chosen, wanted): (&[&MachineView], Wanted),
    terms: &Terms,
) -> Result<Performed> {
    let Signing { dry_run, urgent, jump_to, .. } = terms.signing;
    let mut highest = HighestSigned::load(config)?;
    let numbered = Numbered::of(api, trusted, &mut highest, chosen, jump_to).await?;
    let session: Session = api.post(OPERATOR_SESSION, &()).await?;
    let search =
        Search { api, session: &session, trusted, wanted, message: terms.message.as_deref(), urgent };

    let (mut ways, mut refused) = (Vec::new(), Vec::new());
    for (view, next) in &numbered.counted {
        let shown = view.published.as_ref().map(|published| published.target.generation);
        let seen = highest.published(&view.machine);
        // An older one may lead back further than the operator sees.
        let is_newest = shown.map_or(Ok(()), |shown| signed::require_newest(&view.machine, shown, seen));
        let way = match is_newest {
            Ok(()) => search.way(view, *next).await,
            Err(error) => Err(error),
        };
        match way {
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
    ways.iter().for_each(|way| way.tell(trusted));
    refused.iter().for_each(error::print);
    let is_whole = refused.is_empty();
    let code = |code| numbered.or(if is_whole { code } else { ExitCode::FAILURE });
    if dry_run {
        say!("Nothing was signed: this was a dry run.");
        return Ok(Performed { code: code(ExitCode::SUCCESS), is_signed: false });
    }
    if !may_sign(&ways, trusted, terms)? {
        say!("Nothing was signed.");
        return Ok(Performed { code: ExitCode::FAILURE, is_signed: false });
    }
    let done = publish(config, api, trusted, (&mut highest, &ways), &terms.signing).await?;
    Ok(Performed { code: code(done), is_signed: true })
}

/// Asks.
fn may_sign(ways: &[Way], trusted: &Trusted, terms: &Terms) -> Result<bool> {
    let unsigned = ways.iter().filter(|way| way.old.unsigned.is_some()).count();
    if unsigned > 0 {
        let what = count(unsigned, "generation", "generations");
        let question = format!("Today's operators did not sign {what} of these; take the controller's word?");
        if !confirm(&question, terms.unverified).hint("give --unverified to go on without being asked")? {
            return Ok(false);
        }
    }
    terms.signing.confirm(trusted, ways.len())
}

/// Sees that machines can build it, signs, and follows it.
async fn publish(
    config: &Config,
    api: &Api,
    trusted: &Trusted,
    (highest, ways): (&mut HighestSigned, &[Way]),
    signing: &Signing,
) -> Result<ExitCode> {
    let planned: Vec<&Planned> = ways.iter().map(|way| &way.planned).collect();
    bring_back(api, &planned).await?;
    let before = watch::cursor(api).await?;
    let signed: Vec<(MachineName, Generation)> =
        planned.iter().map(|one| (one.target.machine.clone(), one.target.generation)).collect();
    highest.keep(signed.iter().cloned());
    let outcome = sign::sign(config, api, trusted, &planned, signing.draft_file.as_deref()).await?;
    signing.after(api, outcome, &signed, before).await
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
