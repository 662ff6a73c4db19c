//! `muster audit`: who did what and when, and whether the log is the one seen before.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use clap::Args;
use muster_protocol::api::OPERATOR_AUDIT;
use muster_protocol::audit::{AuditError, Checkpoint, Entry, MAX_PAGE, Page, origin, verify};
use muster_protocol::ids::MachineName;

use crate::api::client::Api;
use crate::config::Config;
use crate::terminal::count::count;
use crate::terminal::error::WithHint as _;
use crate::terminal::json::print_json;
use crate::terminal::table;
use crate::trust::roots;

/// The last entry that was verified, stored beside muster.toml.
const SEEN: &str = "audit-seen.json";

#[derive(Debug, Args)]
pub struct Audit {
    /// How many entries, the newest
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u64).range(1..))]
    limit: u64,
    /// Only what was done to this machine, or by it
    #[arg(long, value_name = "MACHINE")]
    machine: Option<MachineName>,
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub async fn run(self, config: Option<PathBuf>) -> Result<()> {
        let config = Config::load(config)?;
        let api = Api::to_read(&config)?;
        let trusted = roots::follow(&api, &config).await?;
        let path = config.path(Path::new(SEEN));
        let before = seen(&path)?;
        let entries = fetch(&api).await?;
        let last = check(origin(&config.file.fleet), before, &entries)
            .hint("somebody changed the controller's database: keep a copy of it, and find out who could")?;
        if let Some(last) = last.filter(|last| Some(*last) != before) {
            keep(&path, last)?;
        }
        let wanted: Vec<&Entry> =
            entries.iter().filter(|entry| self.machine.is_none() || entry.machine == self.machine).collect();
        let shown = &wanted[wanted.len().saturating_sub(usize::try_from(self.limit).unwrap_or(usize::MAX))..];
        if self.json {
            return print_json(&shown);
        }
        let mut rows = table::table(["NUMBER", "WHEN", "WHO", "WHAT", "MACHINE", "DETAIL"]);
        for entry in shown {
            rows.add_row([
                entry.id.to_string(),
                table::date(entry.at),
                entry.by.map_or_else(|| "-".to_owned(), |key| trusted.name(&key)),
                entry.action.replace('-', " "),
                entry.machine.as_ref().map(ToString::to_string).unwrap_or_default(),
                entry.detail.clone(),
            ]);
        }
        match (shown.is_empty(), &self.machine) {
            (true, Some(machine)) => {
                say!("No entry is about {machine}; `muster machines list --all` shows who is known.");
            }
            _ => rows.print(),
        }
        say!();
        say!(
            "{}, each fits the one before it{}.",
            count(entries.len(), "entry", "entries"),
            match before {
                Some(seen) => format!(", and entry {} is the one that was seen before", seen.id),
                None => String::new(),
            }
        );
        Ok(())
    }
}

/// The whole log: only then can it be checked.
async fn fetch(api: &Api) -> Result<Vec<Entry>> {
    let mut entries: Vec<Entry> = Vec::new();
    loop {
        let after = entries.last().map_or(0, |entry| entry.id);
        let page: Page = api.get(&format!("{OPERATOR_AUDIT}?after={after}&limit={MAX_PAGE}")).await?;
        // A controller that repeats itself would be asked for ever.
        let new = page.entries.first().is_some_and(|entry| entry.id > after);
        entries.extend(page.entries.into_iter().filter(|_| new));
        if !new || entries.last().is_none_or(|entry| entry.id >= page.last) {
            return Ok(entries);
        }
    }
}

/// Checks the whole chain, and that the entry seen before is still there.
fn check(
    origin: Checkpoint,
    before: Option<Checkpoint>,
    entries: &[Entry],
) -> Result<Option<Checkpoint>, AuditError> {
    let last = verify(origin, entries)?;
    if let Some(seen) = before {
        match entries.iter().find(|entry| entry.id == seen.id) {
            None => return Err(AuditError::Shortened { seen: seen.id, last: last.id }),
            Some(entry) if entry.hash != seen.hash => return Err(AuditError::Rewritten(seen.id)),
            Some(_) => {}
        }
    }
    Ok((last.id > 0).then_some(last))
}

fn seen(path: &Path) -> Result<Option<Checkpoint>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map(Some)
            .with_context(|| format!("{} is not what `muster audit` wrote", path.display()))
            .hint("remove it if you know why; the log is then believed from its beginning on"),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

fn keep(path: &Path, last: Checkpoint) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let file = tempfile::NamedTempFile::new_in(folder)
        .with_context(|| format!("cannot write {}", path.display()))?;
    serde_json::to_writer(&file, &last)?;
    file.persist(path).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use muster_protocol::audit::hash;
    use muster_protocol::ids::Sha256;

    use super::*;

    fn log(details: &[&str]) -> (Checkpoint, Vec<Entry>) {
        let origin = origin(&Sha256::of(b"fleet"));
        let mut before = origin;
        let mut entries = Vec::new();
        for (id, detail) in (1..).zip(details) {
            let mut entry = Entry {
                id,
                at: 0,
                by: None,
                action: "x".into(),
                machine: None,
                detail: (*detail).to_owned(),
                hash: origin.hash,
            };
            entry.hash = hash(&before.hash, &entry);
            before = Checkpoint { id, hash: entry.hash };
            entries.push(entry);
        }
        (origin, entries)
    }

    #[test]
    fn a_log_that_was_written_anew_or_cut_shows_by_what_was_seen_before() {
        let (origin, entries) = log(&["a", "b", "c"]);
        let seen = check(origin, None, &entries).unwrap();
        assert_eq!(seen.unwrap().id, 3);
        let (_, longer) = log(&["a", "b", "c", "d"]);
        assert_eq!(check(origin, seen, &longer).unwrap().unwrap().id, 4);
        // A chain that is consistent, but another one.
        let (_, other) = log(&["a", "B", "c", "d"]);
        assert_eq!(check(origin, seen, &other), Err(AuditError::Rewritten(3)));
        assert_eq!(check(origin, seen, &entries[..2]), Err(AuditError::Shortened { seen: 3, last: 2 }));
        assert_eq!(check(origin, seen, &[]), Err(AuditError::Shortened { seen: 3, last: 0 }));
        assert_eq!(check(origin, None, &[]), Ok(None));
    }
}
