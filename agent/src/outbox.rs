//! Reports that wait on disk until the controller has stored them (I7).
//!
//! One file per event, named by its number. An event is acknowledged by renaming its file, which a full disk allows: the
//! newest stays as `N.done`, so that no number is ever used twice, and a few as `N.spare`, for the next ones to be written
//! over.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::report::{Batch, Event, EventKind, MAX_BATCH_BYTES, MAX_BATCH_EVENTS, MAX_LOG_TAIL};

use crate::durable;

/// The folder of the queue in the state folder.
pub const FOLDER: &str = "outbox";
/// As many files whose events the controller has are kept, for the next ones to be written over: an update tells about as
/// many, and nothing has to be made on the disk for them.
const SPARES: usize = 8;
/// From here on every event is logged with a warning. None is ever dropped: a report that is lost is worse than
/// 64 MiB, which are some hundred thousand events.
const WARN_BYTES: u64 = 64 * 1024 * 1024;
/// The largest file of one event.
const MAX_EVENT_BYTES: u64 = 64 * 1024;
/// The most names in a list of an event.
const MAX_NAMES: usize = 64;
/// The longest of them, in bytes.
const MAX_NAME: usize = 128;
/// What the batch needs beside its events.
const BATCH_OVERHEAD: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error("the reports in {} cannot be kept: {source}; {}", path.display(), crate::durable::remedy(source))]
    Disk { path: PathBuf, source: io::Error },
    #[error("an event cannot be written as JSON: {0}")]
    Encode(#[from] serde_json::Error),
}

/// The queue of events that the controller has not acknowledged.
pub struct Outbox {
    folder: PathBuf,
    /// Number and size of each event that waits.
    waiting: BTreeMap<u64, u64>,
    /// Numbers whose `N.done` lies in the folder.
    done: Vec<u64>,
    /// Numbers whose `N.spare` lies in the folder.
    spares: Vec<u64>,
    /// The highest number ever used; its file is there, waiting or done.
    last: u64,
}

enum Entry {
    Waiting(u64),
    Done(u64),
    Spare(u64),
    Foreign,
}

fn entry(name: &str) -> Entry {
    let number = |text: &str| text.parse::<u64>().ok().filter(|n| *n > 0);
    match name.split_once('.') {
        Some((digits, "json")) => number(digits).map_or(Entry::Foreign, Entry::Waiting),
        Some((digits, "done")) => number(digits).map_or(Entry::Foreign, Entry::Done),
        Some((digits, "spare")) => number(digits).map_or(Entry::Foreign, Entry::Spare),
        _ => Entry::Foreign,
    }
}

impl Outbox {
    /// Opens the queue in `folder`, which is made when missing, and finishes what a crash left half done.
    pub fn open(folder: &Path) -> Result<Self, OutboxError> {
        let disk = |source| OutboxError::Disk { path: folder.to_path_buf(), source };
        fs::create_dir_all(folder).map_err(disk)?;
        let mut outbox = Self {
            folder: folder.to_path_buf(),
            waiting: BTreeMap::new(),
            done: Vec::new(),
            spares: Vec::new(),
            last: 0,
        };
        for file in fs::read_dir(folder).map_err(disk)? {
            let file = file.map_err(disk)?;
            match entry(&file.file_name().to_string_lossy()) {
                Entry::Waiting(number) => {
                    outbox.waiting.insert(number, file.metadata().map_err(disk)?.len());
                }
                Entry::Done(number) => outbox.done.push(number),
                Entry::Spare(number) if outbox.spares.len() < SPARES => outbox.spares.push(number),
                // One spare file too many, or a temporary one that a crash left.
                Entry::Spare(_) | Entry::Foreign => drop(fs::remove_file(file.path())),
            }
        }
        let newest_done = outbox.done.iter().copied().max().unwrap_or(0);
        outbox.last = outbox.waiting.keys().copied().max().unwrap_or(0).max(newest_done);
        outbox.forget(newest_done)?;
        outbox.close_gaps()?;
        Ok(outbox)
    }

    /// Stores an event durably and returns its number.
    pub fn push(
        &mut self,
        at: UnixMillis,
        generation: Option<Generation>,
        kind: EventKind,
    ) -> Result<u64, OutboxError> {
        let seq = self.last + 1;
        let event = Event { seq, at, generation, kind: shortened(kind) };
        let json = serde_json::to_vec(&event)?;
        let path = self.path(seq, "json");
        let spare = self.spares.pop().unwrap_or(seq);
        let spare = self.path(spare, "spare");
        // What a full disk refuses is not counted as used.
        durable::write_over(&spare, &path, &json, 0o600)
            .map_err(|source| OutboxError::Disk { path, source })?;
        self.last = seq;
        self.waiting.insert(seq, json.len() as u64);
        let bytes = self.bytes();
        if bytes > WARN_BYTES {
            tracing::warn!(bytes, events = self.len(), "reports pile up: the controller takes none");
        }
        Ok(seq)
    }

    /// The oldest events that fit into one batch, or `None` where nothing waits.
    pub fn batch(&self, machine: &MachineName) -> Option<Batch> {
        let oldest = *self.waiting.keys().next()?;
        let mut bytes = BATCH_OVERHEAD;
        let mut events = Vec::new();
        for (&seq, &size) in self.waiting.iter().take(MAX_BATCH_EVENTS) {
            // The number may be longer than the one in the file by a few digits.
            bytes += usize::try_from(size).unwrap_or(MAX_BATCH_BYTES) + 32;
            if bytes > MAX_BATCH_BYTES && !events.is_empty() {
                break;
            }
            events.push(self.read(seq));
        }
        Some(Batch { machine: machine.clone(), oldest, events })
    }

    /// Forgets everything through this number: the controller has it.
    ///
    /// A controller that has more than was ever sent knows an earlier life of this machine; the count goes on after it.
    pub fn accepted(&mut self, through: u64) -> Result<(), OutboxError> {
        if through > self.last {
            return self.continue_after(through);
        }
        let Some(&newest) = self.waiting.range(..=through).next_back().map(|(n, _)| n) else { return Ok(()) };
        if newest == self.last {
            // Saved with the next event at the latest: one that is told again is one that the controller knows by its number.
            let (json, done) = (self.path(newest, "json"), self.path(newest, "done"));
            fs::rename(&json, done).map_err(|source| OutboxError::Disk { path: json, source })?;
            self.done.push(newest);
        }
        self.forget(newest)
    }

    /// How many events wait in `folder`, without opening it as the agent does.
    pub fn count(folder: &Path) -> usize {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.filter(|file| matches!(entry(&file.file_name().to_string_lossy()), Entry::Waiting(_))).count()
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
    /// How many bytes they take.
    pub fn bytes(&self) -> u64 {
        self.waiting.values().sum()
    }
    /// The highest number ever used.
    pub fn last(&self) -> u64 {
        self.last
    }

    fn path(&self, seq: u64, kind: &str) -> PathBuf {
        self.folder.join(format!("{seq}.{kind}"))
    }

    /// An event that the disk lost keeps its number, so that the ones behind it are not held up.
    fn read(&self, seq: u64) -> Event {
        let lost = Event { seq, at: 0, generation: None, kind: EventKind::Unknown };
        let bytes = durable::read(&self.path(seq, "json"), MAX_EVENT_BYTES).ok().flatten();
        let event = bytes.and_then(|bytes| serde_json::from_slice::<Event>(&bytes).ok());
        event.map_or(lost, |event| Event { seq, ..event })
    }

    /// Removes the events through this number, and the markers that a higher number has made needless.
    fn forget(&mut self, through: u64) -> Result<(), OutboxError> {
        let gone: Vec<(u64, &str)> = self.waiting.range(..=through).map(|(n, _)| (*n, "json")).collect();
        let old = self.done.iter().filter(|n| **n < self.last).map(|n| (*n, "done"));
        for (number, kind) in gone.into_iter().chain(old) {
            let path = self.path(number, kind);
            let keep = self.spares.len() < SPARES;
            let gone =
                if keep { fs::rename(&path, self.path(number, "spare")) } else { fs::remove_file(&path) };
            match gone {
                Ok(()) if keep => self.spares.push(number),
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(OutboxError::Disk { path, source });
                }
                _ => {}
            }
        }
        self.waiting.retain(|number, _| *number > through);
        let last = self.last;
        self.done.retain(|number| *number >= last);
        Ok(())
    }

    fn rename(&self, from: u64, kind: &str, to: u64, new_kind: &str) -> Result<(), OutboxError> {
        let (old, new) = (self.path(from, kind), self.path(to, new_kind));
        durable::replace(&old, &new).map_err(|source| OutboxError::Disk { path: old, source })
    }

    fn continue_after(&mut self, through: u64) -> Result<(), OutboxError> {
        tracing::warn!(
            through,
            last = self.last,
            "the controller has later reports of this machine; counting on"
        );
        if self.waiting.is_empty() {
            let path = self.path(through, "done");
            durable::write(&path, b"", 0o600).map_err(|source| OutboxError::Disk { path, source })?;
            self.done.push(through);
            self.last = through;
            return self.forget(0);
        }
        let all: Vec<u64> = self.waiting.keys().copied().collect();
        self.move_behind(through, &all)
    }

    /// A crash while numbers were moved leaves the first of them behind the others: the rest follows.
    fn close_gaps(&mut self) -> Result<(), OutboxError> {
        let mut first = self.last;
        while first > 1 && self.waiting.contains_key(&(first - 1)) {
            first -= 1;
        }
        let below: Vec<u64> = self.waiting.range(..first).map(|(n, _)| *n).collect();
        self.move_behind(self.last, &below)
    }

    fn move_behind(&mut self, last: u64, numbers: &[u64]) -> Result<(), OutboxError> {
        self.last = self.last.max(last);
        for &number in numbers {
            let next = self.last + 1;
            self.rename(number, "json", next, "json")?;
            let size = self.waiting.remove(&number).unwrap_or(0);
            self.waiting.insert(next, size);
            self.last = next;
        }
        self.forget(0)
    }
}

/// The same event with its texts cut to what a report carries: the end of an output, the first of many names.
fn shortened(kind: EventKind) -> EventKind {
    use EventKind as K;
    match kind {
        K::Failed { step, detail, quarantined } => K::Failed { step, detail: tail(detail), quarantined },
        K::NeedsHuman { detail } => K::NeedsHuman { detail: tail(detail) },
        K::Refused { attack, detail } => K::Refused { attack, detail: tail(detail) },
        K::Deferred { why, until } => K::Deferred { why: tail(why), until },
        K::HookFailed { hook, detail } => K::HookFailed { hook: tail(hook), detail: tail(detail) },
        K::Rebooting { why } => K::Rebooting { why: tail(why) },
        K::Progress(mut progress) => {
            progress.current = progress.current.map(tail);
            K::Progress(progress)
        }
        K::Summary(mut summary) => {
            if let Some(closure) = &mut summary.closure {
                for names in [&mut closure.changed, &mut closure.added, &mut closure.removed] {
                    cut(names);
                }
            }
            K::Summary(summary)
        }
        K::RolledBack { running, reason, detail, quarantined } => {
            K::RolledBack { running, reason, detail: tail(detail), quarantined }
        }
        K::Confirmed { running, ms, mut degraded } => {
            cut(&mut degraded);
            K::Confirmed { running, ms, degraded }
        }
        K::Enrolled { .. }
        | K::AgentStarted { .. }
        | K::Verified
        | K::Fetched { .. }
        | K::Built { .. }
        | K::Activating { .. }
        | K::Activated { .. }
        | K::Drift { .. }
        | K::Retried { .. }
        | K::KeyRotated { .. }
        | K::Unknown => kind,
    }
}

fn cut(names: &mut Vec<String>) {
    names.truncate(MAX_NAMES);
    names.iter_mut().for_each(|name| name.truncate(name.floor_char_boundary(MAX_NAME)));
}

/// The last [`MAX_LOG_TAIL`] bytes.
fn tail(text: String) -> String {
    match text.len().checked_sub(MAX_LOG_TAIL) {
        Some(over) if over > 0 => text[text.ceil_char_boundary(over)..].to_owned(),
        _ => text,
    }
}

#[cfg(test)]
mod tests;
