//! `muster vars keygen`: makes the operator's own key once on this computer, and registers its public half in
//! `sops/users`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::Args;

use crate::config::FlakeArgument;
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;
use crate::vars::age::Places;
use crate::vars::flake::root_of;
use crate::vars::keys::Recipients;
use crate::vars::members::{Joining, register};
use crate::vars::names::MemberName;
use crate::vars::repository::Snapshot;
use crate::vars::transaction::Folder;
use crate::vars::workspace::{login, show, tell_of_git};

#[derive(Debug, Args)]
pub struct Keygen {
    /// Your name among the operators [default: your login]
    #[arg(long, value_name = "NAME")]
    user: Option<MemberName>,
    /// The group that you join
    #[arg(long, value_name = "GROUP")]
    group: Option<MemberName>,
    /// You have another key already, on another computer: keep both
    #[arg(long, conflicts_with = "replace")]
    add: bool,
    /// You have another key already: this one takes its place
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    flake: FlakeArgument,
}

impl Keygen {
    pub async fn run(self, config: Option<PathBuf>) -> Result<ExitCode> {
        let name = match self.user {
            Some(name) => name,
            None => login()
                .ok_or_else(|| anyhow!("your login is not known"))
                .and_then(|login| Ok(login.parse::<MemberName>()?))
                .hint("say who you are with --user NAME")?,
        };
        let folder = Folder::take(&root_of(&self.flake.reference(config)?).await?)?;
        let snapshot = Snapshot::read(folder.root())?;
        let places = Places::of_environment();
        let known = places.recipients()?;
        let joining = match (self.add, self.replace) {
            (true, _) => Joining::Add,
            (_, true) => Joining::Replace,
            _ => Joining::New,
        };
        // A name that is taken is reported before a key is made for it.
        let probe = if known.is_empty() { Recipients::from([placeholder()?]) } else { known.clone() };
        register(&snapshot, &name, &probe, joining, self.group.as_ref())?;
        let keys = match known.is_empty() {
            false => known,
            true => {
                let (key, path) = places.make()?;
                say!(
                    "Your new key is in {}. Keep a copy of that file in a safe place: without it you cannot \
                     read the fleet's secrets.",
                    path.display()
                );
                Recipients::from([key])
            }
        };
        let draft = register(&snapshot, &name, &keys, joining, self.group.as_ref())?;
        if draft.is_empty() {
            say!("{name} is registered with your key ({}) already.", listed(&keys));
            return Ok(ExitCode::SUCCESS);
        }
        folder.commit(&draft.changes)?;
        say!("{name} is registered with {}:", listed(&keys));
        show(&draft);
        if !snapshot.secrets.is_empty() {
            say!(
                "Secrets that are there follow when an operator who reads them has this and runs `muster \
                 vars fix{}`.",
                if self.group.is_some() { String::new() } else { format!(" --add-user {name}") }
            );
        }
        tell_of_git(&folder);
        Ok(ExitCode::SUCCESS)
    }
}

/// Stands for a key that is not made yet.
fn placeholder() -> Result<crate::vars::keys::Recipient> {
    let key = format!("age1{}", "q".repeat(58));
    crate::vars::keys::Recipient::age(&key).ok_or_else(|| anyhow!("a key cannot be made"))
}
