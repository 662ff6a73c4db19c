//! Reports that wait on disk until the controller has stored them (I7).
//!
//! One file per event, named by its number. An event is acknowledged by renaming its file, which a full disk allows: the
//! newest stays as `N.done`, so that no number is ever used twice, and a few as `N.spare`, for the next ones to be written
//! over.
//!
//! Numbers are counted here alone: nothing that a controller says moves them. One that knows numbers that were never used is
//! given a new name of the count ([`Stream`]), and takes them as new ones.

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
/// As many files whose events the controller has are kept, for the next ones to be written over: an update tells about as
/// many, and nothing has to be made on the disk for them.
const SPARES: usize = 8;
/// The largest file of one event.
const MAX_EVENT_BYTES: u64 = 64 * 1024;
/// The name of the count, in a folder of its own: version 0.1 removes files here that it does not know.
const STREAM: &str = "stream/name";
/// What the batch needs beside its events.
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
    /// Number and size of each event that waits.
    waiting: BTreeMap<u64, u64>,
    /// Numbers whose `N.done` lies in the folder.
    done: Vec<u64>,
    /// Numbers whose `N.spare` lies in the folder.
    spares: Vec<u64>,
    /// The highest number ever used; its file is there, waiting or done.
    last: u64,
    stream: Stream,
    /// The highest number that this process has sent.
    sent: u64,
    /// The highest number that was found beyond all bounds.
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
    /// Opens the queue in `folder`, which is made when missing, and finishes what a crash left half done.
    ///
    /// Version 0.1 believed whatever number a controller said. One that no count reaches is left behind here: events get
    /// numbers after the others, or else after the seconds since 1970, which no count has reached either.
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
                // One spare file too many, or a temporary one that a crash left. A folder stays.
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

    /// The highest number beyond all bounds that was found and left behind.
    pub fn left_behind(&self) -> Option<u64> {
        self.beyond
    }

    /// Leaves numbers behind that no count reaches. Repeated after a crash it goes on where it was.
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

    /// Gives the count another name: a controller that has numbers of it which were never used takes them from now on.
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

    /// No count reaches the end of the numbers.
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
        // What a full disk refuses is not counted as used.
        durable::write_over(&spare, &path, &json, 0o600)
            .map_err(|source| OutboxError::Disk { path, source })?;
        self.last = seq;
        self.waiting.insert(seq, json.len() as u64);
        Ok(seq)
    }

    /// The oldest events that fit into one batch, or `None` where nothing waits. A controller of version 0.1 wants them one
    /// after the other: `gaps` says whether it takes what has holes.
    pub fn batch(&self, machine: &MachineName, gaps: bool) -> Option<Batch> {
        let oldest = *self.waiting.keys().next()?;
        let mut bytes = BATCH_OVERHEAD;
        let mut events: Vec<Event> = Vec::new();
        for (&seq, &size) in self.waiting.iter().take(MAX_BATCH_EVENTS) {
            // The number may be longer than the one in the file by a few digits.
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

    /// Forgets everything through this number: the controller has it. What was never sent it cannot have, whatever it says.
    pub fn accepted(&mut self, through: u64) -> Result<(), OutboxError> {
        let through = through.min(self.sent);
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

    /// What there is no room for, if there is anything. Every event is read for that, so it goes down by a quarter at once.
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

    /// Drops these events, whose loss was told by another one behind them.
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

/// The name of the count in `folder`. A damaged one is replaced: that costs nothing.
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
