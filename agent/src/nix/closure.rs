//! What a system consists of.

use std::collections::{BTreeMap, BTreeSet};

use muster_protocol::ids::StorePath;
use muster_protocol::packages;
use muster_protocol::report::ClosureChange;

use super::error::{NixError, message};
use super::program::{MOST_MEMORY, Nix, SHORT_LIMIT};
use crate::process;

/// The most names of each kind that are reported.
const MAX_NAMED: usize = 64;

impl Nix {
    /// What the closure of `new` has that the one of `old` lacks, and vice versa.
    pub async fn closure_change(&self, old: &StorePath, new: &StorePath) -> Result<ClosureChange, NixError> {
        let (before, after) = (self.closure(old).await?, self.closure(new).await?);
        let only = |these: &Closure, those: &Closure| -> (BTreeSet<String>, i64) {
            let paths = || these.iter().filter(|(path, _)| !those.contains_key(path));
            (paths().map(|(path, _)| path.name().to_owned()).collect(), paths().map(|(_, size)| size).sum())
        };
        let ((gone, smaller), (come, larger)) = (only(&before, &after), only(&after, &before));
        let mut changes = packages::changes(&gone, &come);
        let mut more = 0;
        for names in [&mut changes.changed, &mut changes.added, &mut changes.removed] {
            more += names.len().saturating_sub(MAX_NAMED) as u64;
            names.truncate(MAX_NAMED);
        }
        let packages::Changes { changed, added, removed } = changes;
        Ok(ClosureChange { changed, added, removed, more, bytes: larger - smaller })
    }

    async fn closure(&self, system: &StorePath) -> Result<Closure, NixError> {
        let mut command = self.command("nix")?;
        command.args(["--extra-experimental-features", "nix-command"]);
        command.args(["path-info", "--recursive", "--size", system.as_str()]);
        let mut paths = Closure::new();
        let add = |line: &str| paths.extend(path_and_size(line));
        let finished =
            process::lines(command, "asking Nix for a closure", SHORT_LIMIT, MOST_MEMORY, add).await?;
        if !finished.status.success() {
            let what = format!("Nix does not list what {system} consists of");
            return Err(NixError::Failed { what, message: message(&finished.stderr, finished.status) });
        }
        Ok(paths)
    }
}

/// Paths, and the size of each in the store, in bytes.
type Closure = BTreeMap<StorePath, i64>;

/// A line of `nix path-info --size`.
fn path_and_size(line: &str) -> Option<(StorePath, i64)> {
    let mut words = line.split_whitespace();
    Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_path_and_its_size_in_bytes() {
        const PATH: &str = "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-bash-5.2";
        let read = path_and_size(&format!("{PATH}     \t     1654976")).unwrap();
        assert_eq!((read.0.as_str(), read.1), (PATH, 1_654_976));
        for line in ["", PATH, "warning: something 12", &format!("{PATH} many")] {
            assert_eq!(path_and_size(line), None, "{line}");
        }
    }
}
