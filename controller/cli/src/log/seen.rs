//! The last entry that this computer verified, stored beside muster.toml.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::audit::{AuditError, Checkpoint};

use super::follow::{CHANGED, Followed};
use crate::config::Config;
use crate::terminal::error::WithHint as _;

/// Its file.
pub const SEEN: &str = "audit-seen.json";

fn path(config: &Config) -> PathBuf {
    config.path(Path::new(SEEN))
}

/// `None` if no log was seen yet.
pub fn seen(config: &Config) -> Result<Option<Checkpoint>> {
    let path = path(config);
    match std::fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is not what `muster audit` wrote", path.display()))
            .hint("remove it if you know why; the log is then believed from its beginning on"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Remembers the newest entry, unless a newer one is remembered.
pub fn keep(config: &Config, before: Option<Checkpoint>, last: Option<Checkpoint>) -> Result<()> {
    let Some(last) = last.filter(|last| last.id > before.map_or(0, |before| before.id)) else {
        return Ok(());
    };
    let path = path(config);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write {}", path.display()))?;
    serde_json::to_writer(&file, &last)?;
    file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Refuses a log that does not extend what was seen before, which the walk must have asked for.
pub fn require(seen: Option<Checkpoint>, found: &Followed) -> Result<()> {
    let Some(seen) = seen else { return Ok(()) };
    match difference(seen, found) {
        Ok(()) => Ok(()),
        Err(Differs::Cut(anchor)) => Err(anyhow!(
            "the audit log was cut at entry {anchor}, and the last entry that was seen here is {}",
            seen.id
        ))
        .hint(
            "get the export from whoever cut it (the newest entries say who), and check it with `muster audit \
             verify --export FILE`",
        ),
        Err(Differs::Log(error @ AuditError::Shortened { .. })) => Err(error).hint(SHORTER),
        Err(Differs::Log(error)) => Err(error).hint(CHANGED),
    }
}

/// A log that ends too early has an innocent cause as well, and an operator must be able to go on after it.
const SHORTER: &str = "if the controller was restored from an older backup, remove audit-seen.json beside muster.toml \
     and run this again; if nobody restored it, keep a copy of its database, and find out who could change it";

#[derive(Debug, PartialEq, Eq)]
enum Differs {
    Cut(u64),
    Log(AuditError),
}

fn difference(seen: Checkpoint, found: &Followed) -> Result<(), Differs> {
    let Checkpoint { id, hash } = seen;
    match found.known.get(&id) {
        Some(now) if *now == hash => Ok(()),
        Some(_) => Err(Differs::Log(AuditError::Rewritten(id))),
        None if id < found.anchor.id => Err(Differs::Cut(found.anchor.id)),
        None => Err(Differs::Log(AuditError::Shortened { seen: id, last: found.last })),
    }
}

#[cfg(test)]
mod tests {
    use super::super::follow::tests::{log, walked};
    use super::*;

    #[test]
    fn a_log_that_was_written_anew_or_cut_shows_by_what_was_seen_before() {
        let (_, entries) = log(&["a", "b", "c"]);
        let seen = Checkpoint { id: 3, hash: entries[2].hash };
        let compared = |entries: &[_], anchor| {
            difference(seen, &walked(entries, anchor, seen.id, &[seen.id]).unwrap().0)
        };
        assert_eq!(compared(&entries, None), Ok(()));
        let (_, longer) = log(&["a", "b", "c", "d"]);
        assert_eq!(compared(&longer, None), Ok(()));
        // A chain that is consistent, but another one.
        let (_, other) = log(&["a", "B", "c", "d"]);
        assert_eq!(compared(&other, None), Err(Differs::Log(AuditError::Rewritten(3))));
        let shortened = |last| Err(Differs::Log(AuditError::Shortened { seen: 3, last }));
        assert_eq!(compared(&entries[..2], None), shortened(2));
        assert_eq!(compared(&[], None), shortened(0));
        let (_, long) = log(&["a", "b", "c", "d", "e"]);
        let cut_at = |id: usize| Some(Checkpoint { id: id as u64, hash: long[id - 1].hash });
        assert_eq!(compared(&long, cut_at(3)), Ok(()), "the anchor is the entry that was seen");
        assert_eq!(compared(&long, cut_at(2)), Ok(()));
        assert_eq!(compared(&long, cut_at(4)), Err(Differs::Cut(4)));
    }
}
