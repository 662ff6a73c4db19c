//! What the verbs work with: the flake and its folder, opened to be read or locked to be changed, and the
//! operator.

use std::future::Future;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow};

use super::age::Places;
use super::change::{Change, Draft};
use super::flake::{VarsFlake, VarsFlakeError, root_of};
use super::generators::Generators;
use super::keys::Recipients;
use super::layout;
use super::repository::Snapshot;
use super::sops::Sops;
use super::transaction::{self, Folder};
use crate::flake::notes::{tell_warnings, with_hint};
use crate::terminal::error::WithHint as _;
use crate::terminal::list::listed;
use crate::terminal::spinner::spinner;

fn advised(error: VarsFlakeError) -> anyhow::Error {
    match error {
        VarsFlakeError::Flake(error) => with_hint(error),
        other => other.into(),
    }
}

/// A flake whose folder is only read.
pub struct Looked {
    pub flake: VarsFlake,
    pub generators: Generators,
    pub snapshot: Snapshot,
}

impl Looked {
    pub async fn at(reference: &str) -> Result<Self> {
        let progress = spinner();
        progress.set_message(format!("reading {reference}"));
        let flake = VarsFlake::open(reference).await.map_err(advised)?;
        progress.set_message("evaluating the generators of all machines");
        let generators = flake.generators().await?;
        progress.finish_and_clear();
        tell_warnings(flake.flake());
        let snapshot = Snapshot::read(&flake.root)?;
        Ok(Self { flake, generators, snapshot })
    }

    /// Reports an interrupted change before anything that it may have left half done.
    pub fn tell_of_pending(&self) -> bool {
        let pending = transaction::is_pending(&self.flake.root);
        if pending {
            tell!("An interrupted run has left its work half done: `muster vars fix` finishes it.");
        }
        pending
    }
}

/// A flake whose folder is locked for writing.
pub struct Held {
    pub flake: VarsFlake,
    pub generators: Generators,
    pub folder: Folder,
    pub snapshot: Snapshot,
}

impl Held {
    pub async fn at(reference: &str) -> Result<Self> {
        let progress = spinner();
        progress.set_message(format!("reading {reference}"));
        let mut flake = VarsFlake::open(reference).await.map_err(advised)?;
        let folder = Folder::take(&flake.root)?;
        if folder.finished {
            tell!("Finished what an interrupted run had begun.");
            // Nix has seen the folder as it was before.
            flake = VarsFlake::open(reference).await.map_err(advised)?;
        }
        progress.set_message("evaluating the generators of all machines");
        let generators = flake.generators().await?;
        progress.finish_and_clear();
        tell_warnings(flake.flake());
        let snapshot = Snapshot::read(folder.root())?;
        Ok(Self { flake, generators, folder, snapshot })
    }

    /// Runs sops for what is only drafted, then makes all changes at once.
    pub async fn make(&self, sops: &Sops, draft: Draft) -> Result<()> {
        let changes = rekeyed(&self.folder, sops, draft).await?;
        Ok(self.folder.commit(&changes)?)
    }
}

/// A flake's folder, locked for writing, and its contents. Evaluates no machine.
pub async fn taken(reference: &str) -> Result<(Folder, Snapshot)> {
    let progress = spinner();
    progress.set_message(format!("reading {reference}"));
    let found = root_of(reference).await;
    progress.finish_and_clear();
    let folder = Folder::take(&found.map_err(advised)?)?;
    if folder.finished {
        tell!("Finished what an interrupted run had begun.");
    }
    let snapshot = Snapshot::read(folder.root())?;
    Ok((folder, snapshot))
}

/// The draft's changes, with every secret encrypted again.
pub async fn rekeyed(folder: &Folder, sops: &Sops, draft: Draft) -> Result<Vec<Change>> {
    let mut changes = draft.changes;
    let count = draft.rekeys.len();
    let progress = spinner();
    for (done, rekey) in draft.rekeys.into_iter().enumerate() {
        progress.set_message(format!("encrypting secrets to other keys ({done} of {count})"));
        let path = rekey.secret.join(layout::SECRET);
        let file = folder.root().join(&path);
        let contents = sops.rekey(&file, &rekey.recipients, &layout::shown(&rekey.secret)).await?;
        changes.push(Change::Write { path, contents });
    }
    progress.finish_and_clear();
    Ok(changes)
}

/// Refuses to publish while a change to secrets is half done. Looks only at the flake's own folder, without
/// asking Nix.
pub fn refuse_pending(reference: &str) -> Result<()> {
    let path = reference.split(['?', '#']).next().unwrap_or(reference);
    let path = path.trim_start_matches("git+file://").trim_start_matches("path:");
    match transaction::is_pending(path.as_ref()) {
        true => Err(anyhow!("a change to the secrets in {path} was interrupted, and is half done"))
            .hint("finish it with `muster vars fix`, then publish"),
        false => Ok(()),
    }
}

/// The operator who runs this: their keys, and their name in `sops/users`.
pub struct Operator {
    pub name: String,
    pub keys: Recipients,
}

impl Operator {
    /// The operator whose key is on this computer. If a key has several names, the login name, otherwise the
    /// first.
    pub fn find(snapshot: &Snapshot) -> Result<Self> {
        let keys = Places::of_environment().required()?;
        let names: Vec<&str> = snapshot.members.operators_with(&keys).collect();
        let login = login();
        let name = names.iter().find(|name| Some(**name) == login.as_deref()).or(names.first());
        let Some(name) = name else {
            let known = listed(&keys);
            return Err(anyhow!("no operator in sops/users has your key ({known})"))
                .hint("register it with `muster vars keygen`");
        };
        Ok(Self { name: (*name).to_owned(), keys })
    }
}

/// The login name of the current user.
pub fn login() -> Option<String> {
    ["LOGNAME", "USER"].into_iter().find_map(|name| std::env::var(name).ok()).filter(|name| !name.is_empty())
}

/// Prints the changes.
pub fn show(draft: &Draft) {
    for line in draft.lines() {
        say!("  {}", line);
    }
}

/// What remains to be done in git: in a git repository Nix sees only what git knows.
pub fn tell_of_git(folder: &Folder) {
    let root = folder.root();
    if root.ancestors().any(|folder| folder.join(".git").exists()) {
        let here: PathBuf = std::env::current_dir().unwrap_or_default();
        let at = if here == root { String::new() } else { format!("-C {} ", root.display()) };
        say!("Nix reads what git knows: `git {at}add {} {}`, then commit it.", layout::VARS, layout::SOPS);
    }
}

/// Ends the work on Ctrl-C, so that what is in memory is removed. Nothing may prompt inside: from here on the
/// signal no longer ends a prompt.
pub async fn or_interrupted<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::select! {
        done = work => done,
        interrupted = tokio::signal::ctrl_c() => {
            interrupted.context("signals cannot be waited for")?;
            Err(anyhow!("interrupted; nothing was changed"))
        }
    }
}

/// Whoever had a key still has what it opened: only a new value is secret again.
pub fn tell_to_renew(secrets: &[PathBuf]) {
    if secrets.is_empty() {
        return;
    }
    say!("Whoever has the old key, and the old files from git, reads these. Give them new values:");
    for secret in secrets {
        say!("  {}", layout::shown(secret));
    }
    say!("with `muster vars generate --regenerate GENERATOR`, or `muster vars set`.");
}
