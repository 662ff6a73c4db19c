//! `muster sign`: one operator's signature on what another drafted, after looking at it.
//!
//! Nothing is believed because the draft or the controller says it: what is shown comes out of the very bytes that are
//! signed, the derivation is asked what it makes, and with `--flake` the whole is evaluated again.

mod known;
pub mod show;
mod told;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, anyhow};
use clap::Args;
use muster_protocol::api::{OPERATOR_DRAFTS, OPERATOR_MACHINES, OPERATOR_SESSION};
use muster_protocol::clock::{Clock as _, SystemClock};
use muster_protocol::draft::{Checked, Draft, DraftView, Drafted};
use muster_protocol::ids::Generation;
use muster_protocol::keys::PublicKey;
use muster_protocol::operator::{MachineView, Session};
use muster_protocol::policy::Policy;
use muster_protocol::target::Target;
use muster_protocol::tuf::repository::CheckedPublication;

use self::show::Current;
use super::api::Api;
use super::config::Config;
use super::error::{Hint, WithHint as _};
use super::flake::{tell_of, unsigned};
use super::roots::{self, Trusted};
use super::seen::{Jump, Seen, judge};
use super::signers::KeySource;
use super::{ask, drafts, keys, update};
use crate::flake::evaluate::{self, Flake, Lock};
use crate::flake::options::Options;
use crate::flake::push;

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
        known::require(&draft)?;
        if let Checked::Generations(generations) = &checked {
            self.require_near(&config, api.as_ref(), &trusted, generations).await?;
            self.look_into(api.as_ref(), generations).await?;
        }
        show::tell(&draft, &checked, &trusted, &current, self.flake.as_deref()).await?;
        if !ask::agreed(&question(&checked, &draft)?, self.yes)? {
            say!("Nothing was signed.");
            return Ok(ExitCode::FAILURE);
        }
        if let Checked::Generations(generations) = &checked {
            let targets = generations.iter().map(|checked| &checked.target);
            Seen::load(&config)?.keep(targets.map(|target| (target.machine.clone(), target.generation)));
        }
        let signed = draft.sign(signer.as_ref())?;
        say!("Signed draft {} as {}.", signed.id()?.short(), trusted.name(&signer.public()));
        self.go_on(&config, api.as_ref(), &mut trusted, signed).await
    }

    /// Refuses numbers that another operator, or whoever holds their computer, set far above what was seen signed.
    async fn require_near(
        &self,
        config: &Config,
        api: Option<&Api>,
        trusted: &Trusted,
        generations: &[CheckedPublication],
    ) -> Result<()> {
        let mut seen = Seen::load(config)?;
        let targets = || generations.iter().map(|checked| &checked.target);
        let Some(api) = api else {
            return targets().try_for_each(|target| {
                judge(&target.machine, target.generation, seen.of(&target.machine), self.jump_to)
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
        seen.require(api, trusted, &claims, self.jump_to).await
    }

    /// Publishes what enough have signed; hands on what more must sign.
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
            None => say!("It wants {} more.", ask::count(missing, "signature")),
            Some(api) => {
                let view: DraftView = api.post(OPERATOR_DRAFTS, &draft).await?;
                // The controller may hold signatures that this copy lacks.
                if view.missing == 0 {
                    let draft: Draft = api.get(&format!("{OPERATOR_DRAFTS}/{}", view.id)).await?;
                    drafts::publish(api, config, trusted, &draft).await?;
                    return Ok(ExitCode::SUCCESS);
                }
                say!(
                    "Draft {} waits for {} more: another holder runs `muster sign {0}`.",
                    view.id.short(),
                    ask::count(view.missing, "signature")
                );
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    /// Asks each derivation whether it makes what the draft says, and the flake whether it is what it describes.
    async fn look_into(&self, api: Option<&Api>, generations: &[CheckedPublication]) -> Result<()> {
        let targets: Vec<&Target> = generations.iter().map(|checked| &checked.target).collect();
        if let Some(reference) = &self.flake {
            compare_with_flake(reference, &self.options, &targets).await?;
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
        for target in targets {
            let held = evaluate::closure(&target.derivation).await.is_some();
            if let (false, Some(cache)) = (held, &cache) {
                let fetched = push::fetch(&target.derivation, cache).await;
                fetched.map_err(|error| {
                    let hint = error.hint();
                    anyhow!(error).context(Hint(hint.to_owned()))
                })?;
            }
            require_true(target).await?;
        }
        Ok(())
    }
}

/// The derivation's own words against the draft's.
async fn require_true(target: &Target) -> Result<()> {
    let machine = &target.machine;
    let described = evaluate::describe(&target.derivation)
        .await
        .with_context(|| format!("the derivation for {machine} cannot be looked into"))
        .hint("run this where the derivation can be had, or give --unseen if you know by other means what it does")?;
    if !described.outputs.iter().any(|output| output == target.output.as_str()) {
        return Err(anyhow!(
            "{} makes {}, and the draft for {machine} says {}",
            target.derivation,
            described.outputs.join(" "),
            target.output
        ))
        .hint("do not sign this draft; find out who made it");
    }
    if described.system != target.system {
        return Err(anyhow!(
            "{} is built on {}, and the draft for {machine} says {}",
            target.derivation,
            described.system,
            target.system
        ))
        .hint("do not sign this draft; find out who made it");
    }
    Ok(())
}

/// Evaluates again what was drafted; the smallest difference is named.
async fn compare_with_flake(reference: &str, options: &Options, targets: &[&Target]) -> Result<()> {
    let flake = Flake::open_with(reference, options, Lock::Keep).await.map_err(unsigned)?;
    for target in targets {
        told::require(&target.machine, &target.evaluation, flake.evaluation())?;
        let evaluated =
            flake.evaluate(&target.machine, target.class, &target.system).await.map_err(unsigned)?;
        let terms = update::terms_of(&flake, &target.machine)?;
        let mut differs = Vec::new();
        let mut compare = |what: &str, drafted: String, flake: String| {
            if drafted != flake {
                differs.push(format!("{what}: the draft says {drafted}, the flake {flake}"));
            }
        };
        compare("derivation", target.derivation.to_string(), evaluated.derivation.to_string());
        compare("output", target.output.to_string(), evaluated.output.to_string());
        compare("action", target.action.as_str().into(), terms.action.as_str().into());
        compare("deadline", target.deadline_seconds.to_string(), terms.deadline_seconds.to_string());
        compare("checks", format!("{:?}", target.checks), format!("{:?}", terms.checks));
        // --urgent is a word of the publication, not of the flake, and is shown above.
        let policy = Policy { urgent: target.policy.urgent || terms.policy.urgent, ..terms.policy };
        compare(
            "policy",
            format!("{:?}", show::settings(&target.policy)),
            format!("{:?}", show::settings(&policy)),
        );
        compare("trusted Nix keys", target.trusted_nix_keys.join(" "), terms.trusted_nix_keys.join(" "));
        if !differs.is_empty() {
            return Err(anyhow!(
                "the draft for {} is not what {reference} says: {}",
                target.machine,
                differs.join("; ")
            ))
            .hint("see that --flake names the commit that was drafted; if it does, do not sign");
        }
    }
    flake.require_unchanged().await.map_err(unsigned)?;
    tell_of(&flake);
    say!("The draft is what {reference} evaluates to.");
    Ok(())
}

fn require_holder(trusted: &Trusted, checked: &Checked, key: &PublicKey) -> Result<()> {
    match checked {
        Checked::Generations(_) => trusted.require_operator(key),
        Checked::Root(next) if keys::may_sign_root(trusted, next, key) => Ok(()),
        Checked::Root(_) => {
            Err(anyhow!("your key {} is no root key, neither before nor after", trusted.name(key)))
                .hint("sign a root with a root key: --key FILE, or --key ssh-agent:KEY")
        }
    }
}

fn question(checked: &Checked, draft: &Draft) -> Result<String> {
    let id = draft.id()?.short();
    Ok(match (checked, &draft.what) {
        (Checked::Generations(all), Drafted::Generations { .. }) => {
            format!(
                "Sign {} (draft {id})?",
                ask::count(u32::try_from(all.len()).unwrap_or(u32::MAX), "generation")
            )
        }
        (Checked::Root(root), _) => format!("Sign root {} (draft {id})?", root.version()),
        _ => format!("Sign draft {id}?"),
    })
}
