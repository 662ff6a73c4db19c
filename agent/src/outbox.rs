//! Reports queued on disk until the controller has stored them (I7).
//!
//! One file per event, named by its number. An event is acknowledged by renaming its file, which works on a
//! full disk: the newest stays as `N.done`, so that no number is ever reused, and a few stay as `N.spare`, to
//! be overwritten by later events.
//!
//! Only this module counts the numbers: nothing that a controller says changes them. A controller that knows
//! numbers that were never used is given a new [`Stream`] name, and accepts them as new.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName};
use muster_protocol::random::RandomError;
use muster_protocol::report::{
    Batch, Event, EventKind, MAX_BATCH_BYTES, MAX_BATCH_EVENTS, MAX_EVENT_NUMBER, Stream,
};

use crate::core::sparing::{Excess, Item, MOST_BYTES, MOST_EVENTS, Weight, excess};
use crate::durable;
use short::shortened;

/// The folder of the queue in the state folder.
pub const FOLDER: &str = "outbox";
/// How many files of acknowledged events are kept, to be overwritten: about as many as an update reports, so
/// that nothing has to be created on disk for them.
const SPARES: usize = 8;
/// The largest file of one event.
const MAX_EVENT_BYTES: u64 = 64 * 1024;
/// The stream's name, in a folder of its own: version 0.1 removes unknown files here.
const STREAM: &str = "stream/name";
/// The size of a batch without its events.
const BATCH_OVERHEAD: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum OutboxError {
    #[error("the reports in {} cannot be kept: {source}; {}", path.display(), crate::durable::remedy(source))]
    Disk { path: PathBuf, source: io::Error },
    #[error("an event cannot be written as JSON: {0}")]
    Encode(#[from] serde_json::Error),
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// The queue of events that the controller has not acknowledged.
pub struct Outbox {
    folder: PathBuf,
    /// Number and size of each queued event.
    waiting: BTreeMap<u64, u64>,
    /// Numbers whose `N.done` is in the folder.
    done: Vec<u64>,
    /// Numbers whose `N.spare` is in the folder.
    spares: Vec<u64>,
    /// The highest number ever used; its file exists, queued or done.
    last: u64,
    stream: Stream,
    /// The highest number sent by this process.
    sent: u64,
    /// The highest number found beyond the limit.
    beyond: Option<u64>,
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
    /// Opens the queue in `folder`, which is created if missing, and finishes what a crash interrupted.
    ///
    /// Version 0.1 trusted any number from a controller. One beyond the limit is abandoned here: events get
    /// the numbers after the other ones, or else after the seconds since 1970, which no count has reached
    /// either.
    pub fn open(folder: &Path, now: UnixMillis) -> Result<Self, OutboxError> {
        let disk = |source| OutboxError::Disk { path: folder.to_path_buf(), source };
        fs::create_dir_all(folder).map_err(disk)?;
        let known = stored_stream(folder)?;
        let mut outbox = Self {
            folder: folder.to_path_buf(),
            waiting: BTreeMap::new(),
            done: Vec::new(),
            spares: Vec::new(),
            last: 0,
            stream: known.map_or_else(Stream::generate, Ok)?,
            sent: 0,
            beyond: None,
        };
        if known.is_none() {
            outbox.store_stream()?;
        }
        for file in fs::read_dir(folder).map_err(disk)? {
            let file = file.map_err(disk)?;
            match entry(&file.file_name().to_string_lossy()) {
                Entry::Waiting(number) => {
                    outbox.waiting.insert(number, file.metadata().map_err(disk)?.len());
                }
                Entry::Done(number) => outbox.done.push(number),
                Entry::Spare(number) if outbox.spares.len() < SPARES => outbox.spares.push(number),
                // A surplus spare file, or a temporary one from a crash. A folder stays.
                Entry::Spare(_) | Entry::Foreign => drop(fs::remove_file(file.path())),
            }
        }
        let numbers = outbox.waiting.keys().chain(&outbox.done).copied();
        outbox.beyond = numbers.clone().filter(|number| *number > MAX_EVENT_NUMBER).max();
        outbox.last = numbers.filter(|number| *number <= MAX_EVENT_NUMBER).max().unwrap_or(0);
        if outbox.beyond.is_some() {
            outbox.come_back(now)?;
        }
        let newest_done = outbox.done.iter().copied().max().unwrap_or(0);
        outbox.forget(newest_done)?;
        Ok(outbox)
    }

    /// The highest number beyond the limit that was found and abandoned.
    pub fn left_behind(&self) -> Option<u64> {
        self.beyond
    }

    /// Abandons numbers beyond the limit. Repeated after a crash it continues where it was.
    fn come_back(&mut self, now: UnixMillis) -> Result<(), OutboxError> {
        tracing::warn!(beyond = self.beyond, "reports had numbers that no count reaches; they get new ones");
        self.begin_stream()?;
        if self.last == 0 {
            self.last = u64::try_from(now / 1000).unwrap_or(0).clamp(1, MAX_EVENT_NUMBER / 2);
            let path = self.path(self.last, "done");
            durable::write(&path, b"", 0o600).map_err(|source| OutboxError::Disk { path, source })?;
            self.done.push(self.last);
        }
        let lost: Vec<(u64, u64)> =
            self.waiting.range(MAX_EVENT_NUMBER + 1..).map(|(number, size)| (*number, *size)).collect();
        for (number, size) in lost {
            let next = self.next();
            let (old, new) = (self.path(number, "json"), self.path(next, "json"));
            durable::replace(&old, &new).map_err(|source| OutboxError::Disk { path: old, source })?;
            self.waiting.remove(&number);
            self.waiting.insert(next, size);
            self.last = next;
        }
        for number in self.done.iter().filter(|number| **number > MAX_EVENT_NUMBER) {
            let path = self.path(*number, "done");
            durable::remove(&path).map_err(|source| OutboxError::Disk { path, source })?;
        }
        self.done.retain(|number| *number <= MAX_EVENT_NUMBER);
        Ok(())
    }

    /// Renames the stream: a controller that has never-used numbers of it accepts them from now on.
    pub fn begin_stream(&mut self) -> Result<(), OutboxError> {
        self.stream = Stream::generate()?;
        self.sent = 0;
        self.store_stream()
    }

    fn store_stream(&self) -> Result<(), OutboxError> {
        let path = self.folder.join(STREAM);
        let folder = path.parent().unwrap_or(&self.folder);
        fs::create_dir_all(folder)
            .and_then(|()| durable::write(&path, self.stream.to_string().as_bytes(), 0o600))
            .map_err(|source| OutboxError::Disk { path, source })
    }

    pub fn stream(&self) -> Stream {
        self.stream
    }

    /// No count reaches the last number.
    fn next(&self) -> u64 {
        self.last.saturating_add(1)
    }

    /// Stores an event durably and returns its number.
    pub fn push(
        &mut self,
        at: UnixMillis,
        generation: Option<Generation>,
        kind: EventKind,
    ) -> Result<u64, OutboxError> {
        let seq = self.next();
        let event = Event { seq, at, generation, kind: shortened(kind) };
        let json = serde_json::to_vec(&event)?;
        let path = self.path(seq, "json");
        let spare = self.spares.pop().unwrap_or(seq);
        let spare = self.path(spare, "spare");
        // A number that a full disk refused does not count as used.
        durable::write_over(&spare, &path, &json, 0o600)
            .map_err(|source| OutboxError::Disk { path, source })?;
        self.last = seq;
        self.waiting.insert(seq, json.len() as u64);
        Ok(seq)
    }

    /// The oldest events that fit into one batch, or `None` if the queue is empty. A controller of version
    /// 0.1 requires consecutive numbers: `gaps` says whether it accepts gaps.
    pub fn batch(&self, machine: &MachineName, gaps: bool) -> Option<Batch> {
        let oldest = *self.waiting.keys().next()?;
        let mut bytes = BATCH_OVERHEAD;
        let mut events: Vec<Event> = Vec::new();
        for (&seq, &size) in self.waiting.iter().take(MAX_BATCH_EVENTS) {
            // The number may have a few digits more than the one in the file.
            bytes = bytes.saturating_add(usize::try_from(size).unwrap_or(MAX_BATCH_BYTES)).saturating_add(32);
            let hole = events.last().is_some_and(|last| last.seq.saturating_add(1) != seq);
            if (bytes > MAX_BATCH_BYTES && !events.is_empty()) || (hole && !gaps) {
                break;
            }
            events.push(self.read(seq));
        }
        Some(Batch { machine: machine.clone(), stream: Some(self.stream), oldest, events })
    }

    /// Everything through this number is about to be sent.
    pub fn sending(&mut self, through: u64) {
        self.sent = self.sent.max(through.min(self.last));
    }

    /// Forgets everything through this number: the controller has it. It cannot have what was never sent,
    /// whatever it says.
    pub fn accepted(&mut self, through: u64) -> Result<(), OutboxError> {
        let through = through.min(self.sent);
        let Some(&newest) = self.waiting.range(..=through).next_back().map(|(n, _)| n) else { return Ok(()) };
        if newest == self.last {
            // Made durable with the next event at the latest: the controller recognises a repeated event by
            // its number.
            let (json, done) = (self.path(newest, "json"), self.path(newest, "done"));
            fs::rename(&json, done).map_err(|source| OutboxError::Disk { path: json, source })?;
            self.done.push(newest);
        }
        self.forget(newest)
    }

    /// The number of queued events in `folder`, without opening it as the agent does.
    pub fn count(folder: &Path) -> usize {
        let files = fs::read_dir(folder).into_iter().flatten().flatten();
        files.filter(|file| matches!(entry(&file.file_name().to_string_lossy()), Entry::Waiting(_))).count()
    }

    /// The number of queued events.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }
    /// Their size in bytes.
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

    /// An event that the disk lost keeps its number, so that later ones are not held up.
    fn read(&self, seq: u64) -> Event {
        let lost = Event { seq, at: 0, generation: None, kind: EventKind::Unknown };
        let bytes = durable::read(&self.path(seq, "json"), MAX_EVENT_BYTES).ok().flatten();
        let event = bytes.and_then(|bytes| serde_json::from_slice::<Event>(&bytes).ok());
        event.map_or(lost, |event| Event { seq, ..event })
    }

    /// Removes the events through this number, and markers that a higher number supersedes.
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

    /// What exceeds the room, if anything. That requires reading every event, so a quarter is dropped at
    /// once.
    pub fn excess(&self) -> Option<Excess> {
        if self.len() <= MOST_EVENTS && self.bytes() <= MOST_BYTES {
            return None;
        }
        let items: Vec<Item> = self
            .waiting
            .iter()
            .map(|(&seq, &bytes)| {
                let event = self.read(seq);
                let weight = Weight::of(&event.kind);
                Item { seq, bytes, at: event.at, generation: event.generation, weight }
            })
            .collect();
        excess(&items, MOST_EVENTS, MOST_BYTES)
    }

    /// Drops these events; a later event reports the loss.
    pub fn discard(&mut self, numbers: &[u64]) -> Result<(), OutboxError> {
        for number in numbers.iter().filter(|number| **number < self.last) {
            let path = self.path(*number, "json");
            match fs::remove_file(&path) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(OutboxError::Disk { path, source });
                }
                _ => drop(self.waiting.remove(number)),
            }
        }
        Ok(())
    }
}

/// The stream's name in `folder`. A damaged one is replaced, at no cost.
fn stored_stream(folder: &Path) -> Result<Option<Stream>, OutboxError> {
    let path = folder.join(STREAM);
    match durable::read(&path, 64) {
        Ok(bytes) => Ok(bytes.and_then(|bytes| String::from_utf8_lossy(&bytes).trim().parse().ok())),
        Err(error) if error.kind() == io::ErrorKind::Other => Ok(None),
        Err(source) => Err(OutboxError::Disk { path, source }),
    }
}

mod short;
#[cfg(test)]
mod tests;
