//! The last entry that this computer verified, stored beside muster.toml.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::audit::{AuditError, Checkpoint};
use muster_protocol::clock::UnixMillis;
use serde::{Deserialize, Serialize};

use super::beginning::{Cut, Proven};
use super::follow::{CHANGED, Followed};
use crate::config::Config;
use crate::terminal::error::WithHint as _;
use crate::terminal::table;

/// Its file.
pub const SEEN: &str = "audit-seen.json";
/// How many former checkpoints are kept beside the one that counts.
const MOST_FORMER: usize = 16;

/// What the file holds. Versions before read the number and the hash alone.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Seen {
    #[serde(flatten)]
    pub at: Checkpoint,
    /// When the entry was made, by the controller's clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<UnixMillis>,
    /// Where the log was cut, if that was proven or accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cut: Option<Proven>,
    /// What was seen before another log was accepted; the newest is the last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub former: Vec<Former>,
}

/// A checkpoint that counts no more, as somebody accepted a log without it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Former {
    #[serde(flatten)]
    pub at: Checkpoint,
    pub accepted_at: UnixMillis,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl Seen {
    pub fn of(at: Checkpoint) -> Self {
        Self { at, made: None, cut: None, former: Vec::new() }
    }

    /// What is to be kept after a log was found that extends it; `None` if that is nothing new.
    fn after(before: Option<&Self>, found: &Followed) -> Option<Self> {
        let head = found.head.filter(|head| head.id > before.map_or(0, |before| before.at.id));
        let mut next = match (before, head) {
            (Some(before), _) => before.clone(),
            (None, Some(head)) => Self::of(head),
            (None, None) => return None,
        };
        if let Some(head) = head {
            (next.at, next.made) = (head, found.made);
        }
        if let Cut::Proven(cut) = &found.cut {
            next.cut = Some(Proven::clone(cut));
        }
        (before != Some(&next)).then_some(next)
    }

    /// What is to be kept after somebody accepted this log in place of what was seen.
    pub fn accepting(
        before: Option<Self>,
        head: Checkpoint,
        found: &Followed,
        at: UnixMillis,
        reason: Option<String>,
    ) -> Self {
        let mut former = Vec::new();
        if let Some(before) = before {
            former = before.former;
            former.push(Former { at: before.at, accepted_at: at, reason });
        }
        former.drain(..former.len().saturating_sub(MOST_FORMER));
        let cut = match &found.cut {
            Cut::Whole | Cut::File => None,
            Cut::Proven(cut) => Some(Proven::clone(cut)),
            Cut::Unproven(_) => Some(Proven { at_entry: found.anchor, by: None, at }),
        };
        Self { at: head, made: found.made, cut, former }
    }
}

fn path(config: &Config) -> PathBuf {
    config.path(Path::new(SEEN))
}

/// `None` if no log was seen yet.
pub fn seen(config: &Config) -> Result<Option<Seen>> {
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

/// Remembers the newest entry, unless a newer one is remembered, and who cut the log.
pub fn keep(config: &Config, before: Option<&Seen>, found: &Followed) -> Result<()> {
    Seen::after(before, found).map_or(Ok(()), |seen| write(config, &seen))
}

/// Replaces what is remembered.
pub fn write(config: &Config, seen: &Seen) -> Result<()> {
    let path = path(config);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write {}", path.display()))?;
    serde_json::to_writer(&file, seen)?;
    file.persist(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

/// Refuses a log that does not extend what was seen before, which the walk must have asked for, and one that
/// nobody cut where it begins.
pub fn require(seen: Option<&Seen>, found: &Followed) -> Result<()> {
    if let Cut::Unproven(why) = &found.cut {
        return Err(anyhow!(
            "the controller says that the audit log was cut at entry {}, and {why}",
            found.anchor.id
        ))
        .hint(format!("what came before is hidden: {CHANGED}; `muster audit accept` goes on without it"));
    }
    let Some(seen) = seen else { return Ok(()) };
    match difference(seen.at, found) {
        Ok(()) => Ok(()),
        Err(Differs::Cut(anchor)) => Err(anyhow!(
            "the audit log was cut at entry {anchor}, and the last entry that was seen here is {}",
            seen.at.id
        ))
        .hint(
            "get the export from whoever cut it (the newest entries say who), and check it with `muster audit \
             verify --export FILE`",
        ),
        Err(Differs::Log(error)) => Err(anyhow!("{error}{}", restored(found))).hint(format!(
            "if the controller was restored from an older backup, or its database failed over to one that was \
             behind, `muster audit accept` shows both logs and goes on; if not, {CHANGED}"
        )),
    }
}

/// What the log itself says about it.
pub fn restored(found: &Followed) -> String {
    match &found.restored {
        Some(entry) => format!(
            "; entry {} says that the controller was restored from a backup on {}",
            entry.id,
            table::date(entry.at)
        ),
        None => String::new(),
    }
}

/// Whether the log extends what was seen.
pub fn extends(seen: Checkpoint, found: &Followed) -> bool {
    difference(seen, found).is_ok()
}

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

    #[test]
    fn a_cut_without_a_signature_is_refused_whatever_was_seen() {
        let (_, entries) = log(&["a", "b", "c"]);
        let anchor = Checkpoint { id: 2, hash: entries[1].hash };
        for seen in
            [None, Some(Seen::of(anchor)), Some(Seen::of(Checkpoint { id: 3, hash: entries[2].hash }))]
        {
            let wanted: Vec<u64> = seen.iter().map(|seen| seen.at.id).collect();
            let mut found = walked(&entries, Some(anchor), 0, &wanted).unwrap().0;
            let refused = require(seen.as_ref(), &found).unwrap_err();
            assert!(format!("{refused:#}").contains("no entry after it holds"), "{refused:#}");
            found.cut = Cut::Proven(Box::new(Proven { at_entry: anchor, by: None, at: 5 }));
            require(seen.as_ref(), &found).unwrap();
        }
    }

    #[test]
    fn the_file_of_earlier_versions_is_read_and_says_more_from_then_on() {
        let (_, entries) = log(&["a", "b", "c"]);
        let at = Checkpoint { id: 2, hash: entries[1].hash };
        let old: Seen = serde_json::from_str(&serde_json::to_string(&at).unwrap()).unwrap();
        assert_eq!(old, Seen::of(at));
        let found = walked(&entries, None, 2, &[2]).unwrap().0;
        let new = Seen::after(Some(&old), &found).unwrap();
        assert_eq!((new.at.id, new.made), (3, Some(0)));
        assert_eq!(Seen::after(Some(&new), &found), None);
        let text = serde_json::to_string(&new).unwrap();
        assert_eq!(serde_json::from_str::<Seen>(&text).unwrap(), new);
        assert_eq!(serde_json::from_str::<Checkpoint>(&text).unwrap(), new.at, "earlier versions read it");
        let found = walked(&entries[..2], None, 0, &[]).unwrap().0;
        let accepted = Seen::accepting(Some(new.clone()), at, &found, 7, Some("restored".into()));
        assert_eq!((accepted.at, accepted.former[0].at), (at, new.at));
        assert_eq!(accepted.former[0].reason.as_deref(), Some("restored"));
        let text = serde_json::to_string(&accepted).unwrap();
        assert_eq!(serde_json::from_str::<Seen>(&text).unwrap(), accepted);
    }
}
