//! The numbers of check-ins: none is used twice, whatever happens to this process.

use std::cell::Cell;
use std::io;
use std::path::PathBuf;

use crate::durable;

/// How many numbers are reserved at once: an update needs about ten.
const RESERVED: u64 = 63;

pub struct Counted {
    file: PathBuf,
    last: Cell<u64>,
    /// The highest number reserved on disk.
    reserved: Cell<u64>,
}

impl Counted {
    /// Continues after the highest stored number, and after `said`.
    pub fn open(file: PathBuf, said: u64, unix_seconds: i64) -> io::Result<Self> {
        let reserved = stored(durable::read(&file, 64)?, unix_seconds).max(said);
        Ok(Self { file, last: Cell::new(reserved), reserved: Cell::new(reserved) })
    }

    /// Before this returns, it is durable that no number is used twice: the file holds the highest reserved
    /// number, and a new process continues after it.
    pub fn next(&self) -> io::Result<u64> {
        let number = self.last.get().saturating_add(1);
        if number > self.reserved.get() {
            let reserved = number.saturating_add(RESERVED);
            durable::write(&self.file, reserved.to_string().as_bytes(), 0o600)?;
            self.reserved.set(reserved);
        }
        self.last.set(number);
        Ok(number)
    }
}

/// A damaged file is replaced by the seconds since 1970, which no count has reached.
fn stored(bytes: Option<Vec<u8>>, unix_seconds: i64) -> u64 {
    let Some(bytes) = bytes else { return 0 };
    let number = String::from_utf8_lossy(&bytes).trim().parse().ok();
    number.unwrap_or_else(|| u64::try_from(unix_seconds).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn check_ins_are_counted_on_from_the_stored_number_and_never_from_a_damaged_one() {
        assert_eq!(stored(None, 1_800_000_000), 0);
        assert_eq!(stored(Some(b"41\n".to_vec()), 1_800_000_000), 41);
        for damaged in [&b""[..], b"x", b"-1", b"\xff"] {
            assert_eq!(stored(Some(damaged.to_vec()), 1_800_000_000), 1_800_000_000);
        }
        assert_eq!(stored(Some(Vec::new()), -5), 0);
    }
}
