//! The bearer on disk, for Nix, which reads the file anew at each transfer.
//!
//! Each check-in brings a bearer; the last sixteen of a machine are good, each for an hour. A file is therefore not written
//! for each of them: one that is a few minutes old serves as well, and an update has many check-ins.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use muster_protocol::clock::{Clock as _, SystemClock};

use crate::durable;

/// A bearer stays in the file for as many newer ones, well below those that the controller keeps.
const NEWER: u32 = 8;
/// And for as many seconds, well below its hour.
const FRESH_SECONDS: u64 = 300;

/// The file, and how old what stands in it is.
pub struct Netrc {
    path: PathBuf,
    /// What the machine's own netrc says.
    own: Box<dyn Fn() -> Vec<u8> + Send + Sync>,
    written: Mutex<Option<Written>>,
}

#[derive(Clone, Copy)]
struct Written {
    /// In Unix seconds.
    at: i64,
    /// How many bearers came since.
    newer: u32,
}

impl Written {
    fn is_fresh(self, now: i64) -> bool {
        self.newer < NEWER && now.abs_diff(self.at) < FRESH_SECONDS
    }
}

impl Netrc {
    pub fn new(path: PathBuf) -> Self {
        Self::beside(path, Vec::new)
    }

    /// The same, for a machine that has a netrc of its own: each write repeats what it says then.
    pub fn beside(path: PathBuf, own: impl Fn() -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { path, own: Box::new(own), written: Mutex::default() }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the line of a new bearer, and writes it where the one in the file will soon be too old.
    pub fn renew(&self, line: &str) -> io::Result<()> {
        self.renew_at(line, SystemClock::new().unix_seconds())
    }

    fn renew_at(&self, line: &str, now: i64) -> io::Result<()> {
        let mut written = self.written.lock().unwrap_or_else(PoisonError::into_inner);
        *written = match *written {
            Some(held) if held.is_fresh(now) => Some(Written { newer: held.newer + 1, ..held }),
            _ => {
                // Ours comes first: the first entry of a host is the one that counts.
                let whole = [line.as_bytes(), &(self.own)()].concat();
                durable::write(&self.path, &whole, 0o600)?;
                Some(Written { at: now, newer: 0 })
            }
        };
        Ok(())
    }

    /// What stands in the file may be good no longer: the next bearer is written whatever its age.
    pub fn distrust(&self) {
        *self.written.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_written_before_what_it_holds_is_too_old_and_no_oftener() {
        let folder = tempfile::tempdir().unwrap();
        let netrc = Netrc::new(folder.path().join("netrc"));
        let held = || std::fs::read_to_string(netrc.path()).unwrap();
        for (line, now, stands) in [
            ("1", 0, "1"),
            ("2", 1, "1"),
            ("3", 2, "1"),
            ("4", 3, "1"),
            ("5", 4, "1"),
            ("6", 4, "1"),
            ("7", 4, "1"),
            ("8", 4, "1"),
            ("9", 4, "1"),
            // Eight newer ones are out.
            ("10", 5, "10"),
            ("11", 304, "10"),
            ("12", 305, "12"),
            // A clock that was set back says nothing of its age.
            ("13", -100_000, "13"),
        ] {
            netrc.renew_at(line, now).unwrap();
            assert_eq!(held(), stands, "after {line}");
        }
        netrc.distrust();
        netrc.renew_at("14", -100_000).unwrap();
        assert_eq!(held(), "14");
    }

    #[test]
    fn a_write_that_fails_is_tried_again_with_the_next_bearer() {
        let folder = tempfile::tempdir().unwrap();
        let netrc = Netrc::new(folder.path().join("missing/netrc"));
        netrc.renew_at("1", 0).unwrap_err();
        std::fs::create_dir(folder.path().join("missing")).unwrap();
        netrc.renew_at("2", 0).unwrap();
        assert_eq!(std::fs::read_to_string(netrc.path()).unwrap(), "2");
    }
}
