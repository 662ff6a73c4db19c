//! `muster sign`: adds an operator's signature to what another one drafted, after checking it.
//!
//! Neither the draft nor the controller is trusted: what is shown comes from the very bytes that are signed,
//! the derivation is asked what it makes, and `--flake` evaluates everything again.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;
use muster_protocol::api::{OPERATOR_DRAFTS, OPERATOR_MACHINES, OPERATOR_SESSION};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::draft::{Checked, Draft, DraftView, Drafted};
use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{MachineView, Session};
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::CheckedPublication;

use crate::api::client::Api;
use crate::config::Config;
use crate::flake::derivations;
use crate::flake::evaluate::{Flake, Lock};
use crate::flake::notes::unsigned;
use crate::flake::options::Options;
use crate::flake::push;
use crate::fleet::proven::{self, ProvenKeys};
use crate::keys::signers::KeySource;
use crate::keys::touches;
use crate::release::gating::Fleet;
use crate::release::highest::{HighestSigned, Jump, judge};
use crate::release::in_place;
use crate::release::inspect::{self, Current};
use crate::release::{drafts, publish, second, unread, verify};
use crate::terminal::ask::confirm;
use crate::terminal::count::count;
use crate::terminal::error::{Hint, WithHint as _};
use crate::trust::change::may_sign_root;
use crate::trust::holders::Holders;
use crate::trust::roots::{self, Trusted};
use crate::trust::understands;

#[derive(Debug, Args)]
pub struct Sign {
    /// A draft's id, as `muster drafts list` shows it, or a file
    draft: String,
    /// The key to sign with: a file, ssh-agent, or ssh-agent:KEY [default: operator_key in muster.toml]
    #[arg(long, value_name = "KEY")]
    key: Option<KeySource>,
    /// Evaluate this flake, and sign only if the draft is what it says, with the same options for Nix
    #[arg(long, value_name = "REF")]
    flake: Option<String>,
    #[command(flatten)]
    options: Options,
    /// Do not ask before signing
    #[arg(long, short)]
    yes: bool,
    /// Sign a file and speak to nobody; the file is written back
    #[arg(long)]
    offline: bool,
    /// Where to write it instead
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Sign numbers up to this one, also where they are far above what was seen signed
    #[arg(long, value_name = "GENERATION")]
    jump_to: Option<Generation>,
    /// Sign also where a derivation cannot be looked into
    #[arg(long)]
    unseen: bool,
    /// With --yes: sign also what takes machines out of a rollout, or does without the default one
    #[arg(long)]
    at_once: bool,
    /// The plan of the draft's rollout, from a file; needed with --offline [default: the controller's]
    #[arg(long, value_name = "FILE")]
    plan: Option<PathBuf>,
}

impl Sign {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let config = Config::load(config)?;
        let signer = match &self.key {
            Some(key) => key.open()?,
            None => config.operator_key().open()?,
        };
        let clock = SystemClock::new();
        let api = match self.offline {
            true => None,
            false => Some(Api::open_with(&config, signer.clone())?),
        };
        let mut trusted = match &api {
            Some(api) => roots::follow(api, &config).await?,
            None => Trusted::load(&config)?,
        };
        let draft = match &api {
            Some(api) => drafts::get(api, &self.draft).await?,
            None => drafts::from_file(Path::new(&self.draft))?,
        };
        let checked = drafts::check(&draft, &config, &trusted, clock.unix_seconds())?;
        require_holder(&trusted, &checked, &signer.public())?;
        let progress = draft.progress(&trusted.root)?;
        if progress.signed.contains(&signer.public()) {
            say!("You have signed draft {} already.", draft.id()?.short());
            return self.go_on(&config, api.as_ref(), &mut trusted, draft).await;
        }

        let current = match &api {
            Some(api) => Current::ask(api).await?,
            None => Current::unknown(),
        };
        unread::require(&draft)?;
        if let Checked::Generations(generations) = &checked {
            self.require_near(&config, api.as_ref(), &trusted, generations).await?;
            self.look_into(api.as_ref(), generations).await?;
        }
        if let (Checked::Root(next), Some(api)) = (&checked, &api) {
            understands::require_next(api, &config, &Holders::of(next, &Default::default())).await?;
        }
        inspect::tell(&draft, &checked, &trusted, &current, self.flake.as_deref()).await?;
        if let Checked::Generations(generations) = &checked {
            self.look_at_plans(&config, api.as_ref(), &trusted, generations).await?;
        }
        if let Some(line) = touches::announced(&signer.public(), signatures(&checked)) {
            say!("{line}");
        }
        if !confirm(&question(&checked, &draft)?, self.yes)? {
            say!("Nothing was signed.");
            return Ok(ExitCode::FAILURE);
        }
        if let Checked::Generations(generations) = &checked {
            let targets = generations.iter().map(|checked| &checked.target);
            HighestSigned::load(&config)?
                .keep(targets.map(|target| (target.machine.clone(), target.generation)));
        }
        let signed = draft.sign(signer.as_ref())?;
        say!("Signed draft {} as {}.", signed.id()?.short(), trusted.name(&signer.public()));
        self.go_on(&config, api.as_ref(), &mut trusted, signed).await
    }

    /// Refuses numbers far above what was seen signed, set by another operator or whoever holds their
    /// computer.
    async fn require_near(
        &self,
        config: &Config,
        api: Option<&Api>,
        trusted: &Trusted,
        generations: &[CheckedPublication],
    ) -> Result<()> {
        let mut highest = HighestSigned::load(config)?;
        let targets = || generations.iter().map(|checked| &checked.target);
        let Some(api) = api else {
            return targets().try_for_each(|target| {
                judge(&target.machine, target.generation, highest.of(&target.machine), self.jump_to)
                    .map_err(Jump::into_error)
            });
        };
        let views: Vec<MachineView> = api.get(OPERATOR_MACHINES).await?;
        let of = |target: &Target| views.iter().find(|view| view.machine == target.machine);
        let claims: Vec<_> = targets().filter_map(|target| Some((of(target)?, target.generation))).collect();
        if claims.len() < generations.len() {
            return Err(anyhow!("the draft is for machines that the controller does not know"))
                .hint("`muster machines list` shows those that there are; have the draft made anew");
        }
        highest.require(api, trusted, &claims, self.jump_to).await
    }

    /// Publishes if enough have signed; otherwise passes the draft on.
    async fn go_on(
        &self,
        config: &Config,
        api: Option<&Api>,
        trusted: &mut Trusted,
        draft: Draft,
    ) -> Result<ExitCode> {
        let of_file = Path::new(&self.draft).is_file().then(|| PathBuf::from(&self.draft));
        if let Some(file) = self.out.clone().or(of_file) {
            drafts::write(&draft, &file)?;
            say!("It is in {}.", file.display());
        }
        let missing = draft.progress(&trusted.root)?.missing;
        match api {
            None if missing == 0 => {
                say!("Enough have signed. Publish it with `muster drafts publish FILE`.");
            }
            None => say!("It wants {} more.", count(missing, "signature", "signatures")),
            Some(api) => {
                let view: DraftView = api.post(OPERATOR_DRAFTS, &draft).await?;
                // The controller may hold signatures that this copy lacks.
                if view.missing == 0 {
                    let draft: Draft = api.get(&format!("{OPERATOR_DRAFTS}/{}", view.id)).await?;
                    publish::draft(api, config, trusted, &draft).await?;
                    return Ok(ExitCode::SUCCESS);
                }
                say!(
                    "Draft {} waits for {} more: another holder runs `muster sign {0}`.",
                    view.id.short(),
                    count(view.missing, "signature", "signatures")
                );
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Shows the rollouts that the draft is for, or what does without one, and works them out again where the
    /// flake has them.
    async fn look_at_plans(
        &self,
        config: &Config,
        api: Option<&Api>,
        trusted: &Trusted,
        generations: &[CheckedPublication],
    ) -> Result<()> {
        let targets: Vec<&Target> = generations.iter().map(|checked| &checked.target).collect();
        let plans = second::plans(api, self.plan.as_deref(), (config, trusted), &targets).await?;
        let views: Vec<MachineView> = match api {
            Some(api) => api.get(OPERATOR_MACHINES).await?,
            None => Vec::new(),
        };
        let flake = match &self.flake {
            Some(reference) => {
                Some(Flake::open_with(reference, &self.options, Lock::Keep).await.map_err(unsigned)?)
            }
            None => None,
        };
        self.look_at_ungated((config, api, trusted), &targets, &views, flake.as_ref()).await?;
        if plans.is_empty() {
            return Ok(());
        }
        let reference = self.flake.as_ref().or(config.file.flake.as_ref()).map_or(".", String::as_str);
        // Its keys are worth a look also where the flake cannot be read.
        let folder = match proven::folder(config, reference).await {
            Ok(folder) => folder,
            Err(_) if self.flake.is_none() => config.path(Path::new("")),
            Err(error) => return Err(error),
        };
        let mut keys = ProvenKeys::load(&folder)?;
        for sealed in &plans {
            second::tell(sealed, &targets, SystemClock::new().unix_ms());
            let mut doubts = match api {
                Some(_) => second::unknown_keys(&sealed.plan, config, &views, &mut keys)?,
                None => vec!["the keys of its machines were not compared: this is offline".to_owned()],
            };
            if let Some(flake) = &flake {
                let fleet = Fleet { config, trusted, flake, views: &views };
                match second::against_flake(&fleet, sealed, &targets, &mut keys)? {
                    Some(differences) if differences.is_empty() => {
                        say!("The rollout is what {} says.", flake.reference);
                    }
                    Some(differences) => doubts.extend(differences),
                    None => {
                        let (flake, name) = (&flake.reference, &sealed.plan.name);
                        doubts.push(format!("the flake {flake} has no rollout {name}: nothing was compared"));
                    }
                }
            }
            for doubt in &doubts {
                say!("  {doubt}");
            }
            if !doubts.is_empty() && self.yes && !self.unseen {
                return Err(anyhow!("the rollout {} is not what is known here", sealed.plan.name))
                    .hint("read the lines above, and sign without --yes if you know why");
            }
        }
        Ok(())
    }

    /// Says which machines would switch at once though they may wait, or though there is a default.
    async fn look_at_ungated(
        &self,
        (config, api, trusted): (&Config, Option<&Api>, &Trusted),
        targets: &[&Target],
        views: &[MachineView],
        flake: Option<&Flake>,
    ) -> Result<()> {
        let mut highest = HighestSigned::load(config)?;
        let without = targets.iter().filter(|target| target.rollout.is_none());
        let in_place = match api {
            Some(api) => {
                let next = |target: &&Target| {
                    let view = views.iter().find(|view| view.machine == target.machine)?;
                    Some((view, target.generation))
                };
                let next: Vec<_> = without.filter_map(next).collect();
                in_place::look(api, trusted, &mut highest, &next).await?
            }
            None => {
                let of = |target: &&Target| {
                    let machine = &target.machine;
                    (machine.clone(), in_place::by_memory(&highest, machine, target.generation))
                };
                without.map(of).collect()
            }
        };
        let default = config.file.rollout.as_ref();
        let uses_rollouts = default.is_some() || flake.is_some_and(|flake| !flake.muster.rollouts.is_empty());
        let found = second::ungated(targets, &in_place, default, uses_rollouts);
        for line in found.doubts.iter().chain(&found.notes) {
            say!("  {line}");
        }
        if !found.doubts.is_empty() && self.yes && !self.at_once {
            return Err(anyhow!("machines of this draft would switch at once, without a rollout"))
                .hint("read the lines above; if that is meant, sign without --yes, or give --at-once");
        }
        Ok(())
    }

    /// Checks that each derivation makes what the draft says, and that the flake evaluates to it.
    async fn look_into(&self, api: Option<&Api>, generations: &[CheckedPublication]) -> Result<()> {
        let targets: Vec<&Target> = generations.iter().map(|checked| &checked.target).collect();
        if let Some(reference) = &self.flake {
            verify::against_flake(reference, &self.options, &targets).await?;
        }
        if self.unseen {
            say!("The derivations were not looked into, as you wished.");
            return Ok(());
        }
        let cache = match api {
            Some(api) => {
                let session: Session = api.post(OPERATOR_SESSION, &()).await?;
                Some(api.cache(session.bearer))
            }
            None => None,
        };
        let wanted: Vec<StorePath> = targets.iter().map(|target| target.derivation.clone()).collect();
        let held = derivations::valid(&wanted).await.unwrap_or_default();
        for derivation in wanted.iter().filter(|derivation| !held.contains(derivation)) {
            let Some(cache) = &cache else { break };
            push::fetch(derivation, cache).await.map_err(|error| {
                let hint = error.hint();
                anyhow!(error).context(Hint(hint.to_owned()))
            })?;
        }
        verify::against_derivations(&targets).await
    }
}

fn require_holder(trusted: &Trusted, checked: &Checked, key: &PublicKey) -> Result<()> {
    match checked {
        Checked::Generations(_) => trusted.require_operator(key),
        Checked::Root(next) if may_sign_root(trusted, next, key) => Ok(()),
        Checked::Root(_) => {
            Err(anyhow!("your key {} is not a root key, neither before nor after", trusted.name(key)))
                .hint("sign a root with a root key: --key FILE, or --key ssh-agent:KEY")
        }
    }
}

/// How many signatures a draft takes of each of its signers.
fn signatures(checked: &Checked) -> usize {
    match checked {
        Checked::Generations(all) => all.len() * touches::OF_A_GENERATION,
        Checked::Root(_) => 1,
    }
}

fn question(checked: &Checked, draft: &Draft) -> Result<String> {
    let id = draft.id()?.short();
    Ok(match (checked, &draft.what) {
        (Checked::Generations(all), Drafted::Generations { .. }) => {
            format!("Sign {} (draft {id})?", count(all.len(), "generation", "generations"))
        }
        (Checked::Root(root), _) => format!("Sign root {} (draft {id})?", root.version()),
        _ => format!("Sign draft {id}?"),
    })
}
