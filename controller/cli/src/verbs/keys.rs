//! `muster keys`: who may sign what. Every change is a new root, signed by a threshold of the previous root
//! keys and of its own.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use clap::{Args, Subcommand};
use muster_protocol::api::{OPERATOR_DRAFTS, OPERATOR_ROOT};
use muster_protocol::clock::Clock as _;
use muster_protocol::draft::{DRAFT_SECONDS, Draft, DraftView, Drafted};
use muster_protocol::keys::{PublicKey, SecretKey, Signer};
use muster_protocol::operator::{NewRoot, RootTaken};
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::draft_root;
use serde::Serialize;

use crate::api::client::Api;
use crate::config::Config;
use crate::keys::keyfile;
use crate::keys::signers::{self, KeySource};
use crate::release::drafts;
use crate::terminal::ask::confirm;
use crate::terminal::count::count;
use crate::terminal::error::{Hint, WithHint as _};
use crate::terminal::json::print_json;
use crate::terminal::table;
use crate::trust::change::publish;
use crate::trust::holders::{Change, Holders, Role};
use crate::trust::roots::{self, Trusted};
use crate::trust::understands;

const DAY: i64 = 86_400;

#[derive(Debug, Subcommand)]
pub enum Keys {
    /// List the keys that the fleet trusts, and what each may do
    List {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
    },
    /// Make a new key in a file, and print its public part
    Generate {
        file: PathBuf,
        /// Without a passphrase: for the controller's online key
        #[arg(long)]
        plain: bool,
        /// Read the new passphrase from this file instead of asking
        #[arg(long, value_name = "FILE", conflicts_with = "plain")]
        passphrase_file: Option<PathBuf>,
    },
    /// Print the public part of a key, for whoever adds it
    Public {
        /// A file, ssh-agent, or ssh-agent:KEY [default: operator_key in muster.toml]
        key: Option<KeySource>,
    },
    /// Let a key hold a role
    Add {
        role: Role,
        /// Its public part: 64 digits, a line of ssh-ed25519 or sk-ssh-ed25519, or a file with one
        key: String,
        /// What people call it
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        how: How,
    },
    /// End a key's role
    Remove {
        role: Role,
        /// Its name, or its first 8 digits or more
        key: String,
        #[command(flatten)]
        how: How,
    },
    /// Let a new key take the place of an old one, in one step
    Rotate {
        role: Role,
        /// The old key's name, or its first 8 digits or more
        old: String,
        /// The new key's public part
        new: String,
        /// What people call the new one [default: the old one's name]
        #[arg(long)]
        name: Option<String>,
        #[command(flatten)]
        how: How,
    },
    /// Say how many of a role's keys must sign
    Threshold {
        role: Role,
        number: u32,
        #[command(flatten)]
        how: How,
    },
    /// Sign the same root again, before it ends or after
    Renew {
        #[command(flatten)]
        how: How,
    },
    /// Let the numbers of all machines begin anew, where one was set too high or what was signed is to count
    /// no longer.
    ///
    /// Everything that was signed before is refused from then on, also by machines that sleep now, and what
    /// waits on machines is dropped. What they run goes on to run. Everything must be signed anew with
    /// `muster update`.
    NewEpoch {
        #[command(flatten)]
        how: How,
    },
    /// Hand a root that is signed by enough to the controller: a draft's file, or N.root.json
    Publish { file: PathBuf },
}

/// How a change of the root is signed.
#[derive(Debug, Args)]
pub struct How {
    /// A root key to sign with: a file, ssh-agent, or ssh-agent:KEY; may be repeated [default: keys/root.pem
    /// beside muster.toml, and what root-2.pem, … are there]
    #[arg(long = "root-key", value_name = "KEY")]
    root_keys: Vec<KeySource>,
    /// How many of the role's keys must sign from now on
    #[arg(long, value_name = "NUMBER")]
    threshold: Option<u32>,
    /// How long the new root is good, in days
    #[arg(long, default_value_t = 3650, value_parser = clap::value_parser!(u32).range(1..=36_500))]
    days: u32,
    /// Do not ask before signing
    #[arg(long, short)]
    yes: bool,
    /// Write what was signed to this file and send it nowhere
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

impl Keys {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        if let Self::Generate { file, plain, passphrase_file } = self {
            return generate(&file, plain, passphrase_file);
        }
        let config = Config::load(config)?;
        match self {
            Self::Generate { .. } => Ok(()),
            Self::Public { key } => {
                say!("{}", key.unwrap_or_else(|| config.operator_key()).open()?.public());
                Ok(())
            }
            Self::List { json } => list(&config, json).await,
            Self::Publish { file } => publish_file(&config, &file).await,
            Self::Add { role, key, name, how } => {
                let key = signers::public_key(&key)?;
                how.change(&config, |_| Ok(Change::Add { role, key, name })).await
            }
            Self::Remove { role, key, how } => {
                how.change(&config, |holders| Ok(Change::Remove { role, key: holders.find(role, &key)? }))
                    .await
            }
            Self::Rotate { role, old, new, name, how } => {
                let new = signers::public_key(&new)?;
                how.change(&config, |holders| {
                    Ok(Change::Rotate { role, old: holders.find(role, &old)?, new, name })
                })
                .await
            }
            Self::Threshold { role, number, how } => {
                how.change(&config, |_| Ok(Change::Threshold { role, number })).await
            }
            Self::NewEpoch { how } => how.change(&config, |_| Ok(Change::NewEpoch)).await,
            Self::Renew { how } => how.change(&config, |_| Ok(Change::Renew)).await,
        }
    }
}

fn generate(file: &Path, plain: bool, passphrase_file: Option<PathBuf>) -> Result<()> {
    let key = SecretKey::generate()?;
    let text = match plain {
        true => key.to_pem()?,
        false => key.to_encrypted_pem(&keyfile::new_passphrase(passphrase_file)?)?,
    };
    keyfile::write_private(file, &text)?;
    tell!("The private key is in {}; this is its public part:", file.display());
    say!("{}", key.public());
    Ok(())
}

#[derive(Serialize)]
struct Listed {
    role: String,
    key: PublicKey,
    name: Option<String>,
    /// How many keys of its role must sign.
    threshold: u32,
}

async fn list(config: &Config, json: bool) -> Result<()> {
    // Roots are public: an operator who has lost their key may look too.
    let api = Api::open_with(config, Arc::new(SecretKey::generate()?))?;
    let trusted = roots::follow(&api, config).await?;
    let holders = Holders::of(&trusted.root, trusted.names());
    let all = Role::ALL.into_iter().flat_map(|role| {
        let holders = &holders;
        holders.keys(role).iter().map(move |key| Listed {
            role: role.to_string(),
            key: *key,
            name: holders.names.get(&key.hex()).cloned(),
            threshold: holders.threshold(role),
        })
    });
    let all: Vec<Listed> = all.collect();
    if json {
        return print_json(&all);
    }
    let mut rows = table::table(["ROLE", "MUST SIGN", "NAME", "KEY"]);
    for role in Role::ALL {
        for (index, key) in holders.keys(role).iter().enumerate() {
            let of = format!("{} of {}", holders.threshold(role), holders.keys(role).len());
            let name = holders.names.get(&key.hex()).cloned().unwrap_or_default();
            let first = index == 0;
            rows.add_row([
                if first { role.to_string() } else { String::new() },
                if first { of } else { String::new() },
                name,
                key.to_string(),
            ]);
        }
    }
    rows.print();
    say!();
    let (version, ends) = (trusted.root.version(), trusted.root.expires());
    match roots::end_of(&trusted.root, api.clock.unix_seconds()) {
        Some(line) => say!("{line}"),
        None => say!("Root {version} is good until {}.", table::date(ends * 1000)),
    }
    Ok(())
}

impl How {
    /// Changes the root: shows the changes, asks, signs, and publishes it, or leaves it as a draft for the
    /// other holders.
    async fn change(self, config: &Config, change: impl FnOnce(&Holders) -> Result<Change>) -> Result<()> {
        let signers = self.signers(config)?;
        let first = signers.first().context("no root key was given")?;
        let api = Api::open_with(config, first.clone())?;
        let mut trusted = match &self.out {
            Some(_) => Trusted::load(config)?,
            None => roots::follow(&api, config).await?,
        };
        let now = api.clock.unix_seconds();
        let holders = Holders::of(&trusted.root, trusted.names());
        let next = holders
            .after(&change(&holders)?, self.threshold)
            .hint("`muster keys list` shows who holds what")?;
        let (version, expires) = (trusted.root.version() + 1, now + i64::from(self.days) * DAY);
        for signer in &signers {
            let key = signer.public();
            if !holders.keys(Role::Root).contains(&key) && !next.keys(Role::Root).contains(&key) {
                return Err(anyhow!(
                    "the key {} is not a root key, neither before nor after",
                    trusted.name(&key)
                ))
                .hint("name root keys with --root-key; `muster keys list` shows them");
            }
        }
        // Without a network it is checked when it is published.
        if self.out.is_none() {
            understands::require_next(&api, config, &next).await?;
        }
        say!("Root {version}, good until {}:", table::date(expires * 1000));
        for line in holders.differences(&next) {
            say!("  {line}");
        }
        if !confirm(&format!("Sign root {version}?"), self.yes)? {
            return Err(anyhow!("nothing was signed"));
        }
        let mut draft = Draft {
            fleet: config.file.fleet,
            made_at: api.clock.unix_ms(),
            made_by: first.public(),
            ends: now + DRAFT_SECONDS,
            what: Drafted::Root { root: draft_root(&next.spec(version, expires), &next.names)? },
        };
        for signer in &signers {
            draft = draft.sign(signer.as_ref())?;
        }
        if let Some(out) = &self.out {
            return tell_file(&draft, &trusted, out);
        }
        let progress = draft.progress(&trusted.root)?;
        if !progress.is_complete() {
            let view: DraftView = api.post(OPERATOR_DRAFTS, &draft).await?;
            say!(
                "Draft {} waits for {}: another root holder runs `muster sign {0} --key KEY`.",
                view.id.short(),
                count(progress.missing, "signature", "signatures"),
            );
            return Ok(());
        }
        let Drafted::Root { root } = draft.what else { return Ok(()) };
        publish(&api, config, &mut trusted, root).await?;
        // The message about the new epoch says so already, and more.
        if !holders.begins_an_epoch(&next) && holders.weakens_old_signatures(&next) {
            say!(
                "Generations that too few of today's operators have signed count no longer: machines refuse \
                 them until they are signed anew. Do so with `muster update --refresh`."
            );
        }
        Ok(())
    }

    fn signers(&self, config: &Config) -> Result<Vec<Arc<dyn Signer>>> {
        if !self.root_keys.is_empty() {
            return self.root_keys.iter().map(KeySource::open).collect();
        }
        // `muster init` makes several where several people hold the root; each takes theirs away.
        let usual = config.path(Path::new("keys/root.pem"));
        let others = (2..=16).map(|number| config.path(Path::new(&format!("keys/root-{number}.pem"))));
        let here: Vec<_> =
            std::iter::once(usual.clone()).chain(others).filter(|file| file.exists()).collect();
        if here.is_empty() {
            return Err(anyhow!("there is no {}", usual.display()))
                .hint("name the root key with --root-key: a file, ssh-agent, or ssh-agent:KEY");
        }
        here.into_iter().map(|file| KeySource::File(file).open()).collect()
    }
}

/// Says what a draft in a file still needs.
fn tell_file(draft: &Draft, trusted: &Trusted, out: &Path) -> Result<()> {
    drafts::write(draft, out)?;
    let missing = draft.progress(&trusted.root)?.missing;
    match missing {
        0 => say!("{} is signed by enough. Hand it over with `muster keys publish {0}`.", out.display()),
        _ => say!(
            "{} wants {} more: another holder runs `muster sign {0} --key KEY`.",
            out.display(),
            count(missing, "signature", "signatures")
        ),
    }
    Ok(())
}

async fn publish_file(config: &Config, file: &Path) -> Result<()> {
    let bytes = drafts::read_file(file)?;
    let no_root = "name a draft of a root, as `muster keys renew --out FILE` writes one, or an N.root.json";
    let root = match Draft::parse(&bytes) {
        Ok(Draft { what: Drafted::Root { root }, .. }) => root,
        Ok(_) => {
            return Err(anyhow!("{} holds generations, and no root", file.display()))
                .hint("publish it with `muster drafts publish`");
        }
        Err(_) => String::from_utf8(bytes)
            .with_context(|| format!("{} is not text", file.display()))
            .hint(no_root)?,
    };
    let next = Root::parse_self_signed(root.as_bytes()).map_err(|error| {
        let (what, hint) = match error {
            TufError::Signatures { .. } => (
                "is not signed by enough",
                format!("another root holder runs `muster sign {} --key KEY`", file.display()),
            ),
            _ => ("holds no root", no_root.to_owned()),
        };
        anyhow!(error).context(format!("{} {what}", file.display())).context(Hint(hint))
    })?;
    let api = Api::open(config)?;
    let mut trusted = Trusted::load(config)?;
    // It is the trusted root itself: a controller restored from a backup may lack it.
    if trusted.bytes == root.as_bytes() {
        if api.fleet().await?.root_version >= next.version() {
            say!("The controller has root {} already: nothing was changed.", next.version());
            return Ok(());
        }
        let taken: RootTaken = api.post(OPERATOR_ROOT, &NewRoot { root }).await?;
        say!("The controller has root {} again.", taken.version);
        return Ok(());
    }
    publish(&api, config, &mut trusted, root).await
}
