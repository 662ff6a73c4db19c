//! `STATE/logs/N.log`: the output of fetching, building and activating generation N, for `muster-agent logs`.
//!
//! It stays on the machine: a log may hold private data; only its end is sent, with the report of a failure.
//! It is only for people, so a full disk costs the log and nothing else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, LineWriter, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use muster_protocol::ids::Generation;
use muster_protocol::shown;

/// The folder of the logs in the state folder.
pub const FOLDER: &str = "logs";
/// A log that grows beyond this is started over; the previous one is kept.
const MAX_BYTES: u64 = 4 * 1024 * 1024;
/// How many generations keep their logs.
const KEPT: usize = 10;

/// The log of one generation. Creates no file until there is something to write.
pub struct BuildLog {
    path: PathBuf,
    generation: Generation,
    place: Place,
}

enum Place {
    /// Before the first line.
    Unopened,
    /// With its size in bytes.
    Open(LineWriter<File>, u64),
    /// The disk refused it.
    Refused,
}

impl BuildLog {
    /// The log of a generation; new lines are appended.
    pub fn new(state_dir: &Path, generation: Generation) -> Self {
        let path = state_dir.join(FOLDER).join(format!("{generation}.log"));
        Self { path, generation, place: Place::Unopened }
    }

    pub fn line(&mut self, line: &str) {
        if let Err(error) = self.write(line) {
            tracing::warn!(%error, "no longer writing {}", self.path.display());
            self.place = Place::Refused;
        }
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        if matches!(self.place, Place::Unopened) {
            self.open()?;
        }
        let Place::Open(file, bytes) = &mut self.place else { return Ok(()) };
        file.write_all(line.as_bytes())?;
        file.write_all(b"\n")?;
        *bytes += line.len() as u64 + 1;
        if *bytes <= MAX_BYTES {
            return Ok(());
        }
        fs::rename(&self.path, earlier(&self.path))?;
        self.place = Place::Open(LineWriter::new(append(&self.path)?), 0);
        Ok(())
    }

    fn open(&mut self) -> io::Result<()> {
        if let Some(folder) = self.path.parent() {
            fs::create_dir_all(folder)?;
            forget(folder, self.generation);
        }
        let file = append(&self.path)?;
        let bytes = file.metadata()?.len();
        self.place = Place::Open(LineWriter::new(file), bytes);
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn earlier(path: &Path) -> PathBuf {
    path.with_extension("log.1")
}

/// Removes the logs of all but the newest generations.
fn forget(folder: &Path, newest: Generation) {
    let mut numbers = held(folder);
    numbers.retain(|number| *number != newest);
    let over = numbers.len().saturating_sub(KEPT - 1);
    for number in &numbers[..over] {
        let path = folder.join(format!("{number}.log"));
        let _ = fs::remove_file(earlier(&path));
        let _ = fs::remove_file(path);
    }
}

fn held(folder: &Path) -> Vec<Generation> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let number = |entry: fs::DirEntry| {
        let name = entry.file_name().into_string().ok()?;
        name.strip_suffix(".log")?.parse().ok()
    };
    let mut numbers: Vec<Generation> = entries.filter_map(number).collect();
    numbers.sort_unstable();
    numbers
}

/// The generations with a log, oldest first.
pub fn kept(state_dir: &Path) -> Vec<Generation> {
    held(&state_dir.join(FOLDER))
}

/// Passes everything kept of a generation's log to `to`, line by line; false if there is none.
pub fn copy(state_dir: &Path, generation: Generation, mut to: impl FnMut(&str)) -> io::Result<bool> {
    let path = state_dir.join(FOLDER).join(format!("{generation}.log"));
    let mut found = false;
    for file in [earlier(&path), path] {
        match File::open(&file) {
            Ok(file) => {
                for line in BufReader::new(file.take(2 * MAX_BYTES)).split(b'\n') {
                    shown::lines(&String::from_utf8_lossy(&line?)).for_each(|line| to(&line));
                }
                found = true;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(n: u64) -> Generation {
        Generation::new(n).unwrap()
    }
    fn read(folder: &Path, n: u64) -> Option<String> {
        let mut text = String::new();
        let found = copy(folder, number(n), |line| text.extend([line, "\n"])).unwrap();
        found.then_some(text)
    }

    #[test]
    fn all_that_was_said_of_a_generation_is_kept_across_restarts() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(read(folder.path(), 3), None);
        for line in ["one", "two"] {
            BuildLog::new(folder.path(), number(3)).line(line);
        }
        assert_eq!(read(folder.path(), 3).unwrap(), "one\ntwo\n");
    }

    #[test]
    fn what_a_build_prints_is_shown_and_not_obeyed() {
        let folder = tempfile::tempdir().unwrap();
        BuildLog::new(folder.path(), number(1)).line("cc\tmain.c \u{1b}[2J\u{202e}");
        assert_eq!(read(folder.path(), 1).unwrap(), "cc    main.c \\u{1b}[2J\\u{202e}\n");
    }

    #[test]
    fn a_log_without_an_end_keeps_its_newest_part_in_bounds() {
        let folder = tempfile::tempdir().unwrap();
        let mut log = BuildLog::new(folder.path(), number(1));
        for n in 0..30_000 {
            log.line(&format!("{n} {}", "x".repeat(400)));
        }
        drop(log);
        let text = read(folder.path(), 1).unwrap();
        assert!(text.len() as u64 <= 2 * MAX_BYTES + 1000 && text.trim_end().contains("\n29999 "));
    }

    #[test]
    fn only_the_newest_generations_keep_theirs() {
        let folder = tempfile::tempdir().unwrap();
        for n in 1..=15 {
            BuildLog::new(folder.path(), number(n)).line("x");
        }
        let numbers: Vec<u64> = kept(folder.path()).into_iter().map(Generation::get).collect();
        assert_eq!(numbers, (6..=15).collect::<Vec<u64>>());
    }

    #[test]
    fn a_disk_that_refuses_it_takes_the_log_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(FOLDER), "no folder").unwrap();
        BuildLog::new(folder.path(), number(1)).line("x");
    }
}
