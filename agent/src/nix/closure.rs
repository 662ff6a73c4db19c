//! What a system is made of.

use std::collections::BTreeSet;

use muster_protocol::ids::StorePath;
use muster_protocol::packages;
use muster_protocol::report::ClosureChange;

use super::error::message;
use super::process::{self, Finished};
use super::{Nix, NixError, SHORT_LIMIT};

/// The most names of each kind that are told.
const MAX_NAMED: usize = 64;
/// How many paths one question names: some 100 KiB of arguments.
const AT_ONCE: usize = 1000;

impl Nix {
    /// What the closure of `new` has that the one of `old` has not, and the other way round.
    pub async fn closure_change(&self, old: &StorePath, new: &StorePath) -> Result<ClosureChange, NixError> {
        let (before, after) = (self.closure(old).await?, self.closure(new).await?);
        let gone: Vec<&StorePath> = before.difference(&after).collect();
        let come: Vec<&StorePath> = after.difference(&before).collect();
        let names = |paths: &[&StorePath]| -> BTreeSet<String> {
            paths.iter().map(|path| path.name().to_owned()).collect()
        };
        let mut changes = packages::changes(&names(&gone), &names(&come));
        let mut more = 0;
        for names in [&mut changes.changed, &mut changes.added, &mut changes.removed] {
            more += names.len().saturating_sub(MAX_NAMED) as u64;
            names.truncate(MAX_NAMED);
        }
        let bytes = self.size(&come).await? - self.size(&gone).await?;
        let packages::Changes { changed, added, removed } = changes;
        Ok(ClosureChange { changed, added, removed, more, bytes })
    }

    async fn closure(&self, system: &StorePath) -> Result<BTreeSet<StorePath>, NixError> {
        let mut command = self.command("nix-store")?;
        command.args(["--query", "--requisites", system.as_str()]);
        let mut paths = BTreeSet::new();
        let what = "asking Nix for a closure";
        let finished = process::lines(command, what, SHORT_LIMIT, |line| paths.extend(line.parse())).await?;
        well(&finished, system)?;
        Ok(paths)
    }

    /// The bytes of all these paths as they are in the store.
    async fn size(&self, paths: &[&StorePath]) -> Result<i64, NixError> {
        let mut all = 0;
        for some in paths.chunks(AT_ONCE) {
            let mut command = self.command("nix-store")?;
            command.args(["--query", "--size"]).args(some.iter().map(|path| path.as_str()));
            let add = |line: &str| all += line.trim().parse::<i64>().unwrap_or(0);
            let finished = process::lines(command, "asking Nix for sizes", SHORT_LIMIT, add).await?;
            well(&finished, some[0])?;
        }
        Ok(all)
    }
}

fn well(finished: &Finished, of: &StorePath) -> Result<(), NixError> {
    if finished.status.success() {
        return Ok(());
    }
    let what = format!("Nix does not say what {of} is made of");
    Err(NixError::Failed { what, message: message(&finished.stderr, finished.status) })
}
