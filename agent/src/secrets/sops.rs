//! Runs the system's sops: the key by its file's name, the value through a pipe into memory.

use std::io::{self, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use muster_protocol::clock::{Clock as _, SystemClock};
use zeroize::{Zeroize as _, Zeroizing};

use super::error::SecretsError;
use crate::core::backoff::look;
use crate::identity::AGE_KEY;
use crate::platform::Layout;

/// The longest that decrypting one file may take.
const LIMIT: Duration = Duration::from_secs(60);
const LONGEST_PAUSE: Duration = Duration::from_millis(50);
/// The largest value, in bytes; `muster vars` accepts none larger.
const MAX_VALUE: usize = 4 * 1024 * 1024;
const MAX_WORDS: usize = 16 * 1024;
/// sops' exit codes if no key decrypts the file (`cmd/sops/codes`).
const NO_KEY: [i32; 2] = [128, 111];

pub fn decrypt(
    layout: &Layout,
    program: &Path,
    file: &Path,
    name: &str,
) -> Result<Zeroizing<Vec<u8>>, SecretsError> {
    let failed = |source| SecretsError::Run { program: program.to_owned(), source };
    let mut command = Command::new(program);
    command
        .args(["--disable-version-check", "decrypt", "--input-type", "binary", "--output-type", "binary"])
        .arg(file)
        // It gets nothing of the agent's environment, and only the machine's key.
        .env_clear()
        .env("HOME", "/var/empty")
        .env("PATH", layout.search_path())
        .env("SOPS_AGE_KEY_FILE", layout.state(AGE_KEY))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
        return Err(failed(io::Error::other("it has no pipes")));
    };
    let value = thread::spawn(move || read(stdout, MAX_VALUE));
    let words = thread::spawn(move || read(stderr, MAX_WORDS));
    let clock = SystemClock::new();
    let began = clock.awake();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(failed)? {
            break Some(status);
        }
        let passed = clock.awake().saturating_sub(began);
        if passed > LIMIT {
            let _ = child.kill();
            let _ = child.wait();
            break None;
        }
        thread::sleep(look(passed, LONGEST_PAUSE));
    };
    let value = value.join().map_err(|_| failed(io::Error::other("its output cannot be read")))?;
    let words = words.join().ok().and_then(Result::ok).unwrap_or_default();
    // sops prints keys and file names, never values: the format is binary, so it parses none.
    let words = String::from_utf8_lossy(&words);
    let words = words.lines().map(str::trim).find(|line| !line.is_empty()).unwrap_or("it said nothing");
    let words: String = words.chars().filter(|c| !c.is_control()).take(200).collect();
    let name = name.to_owned();
    match status.map(|status| status.code()) {
        Some(Some(0)) => value.map_err(failed),
        Some(Some(code)) if NO_KEY.contains(&code) => Err(SecretsError::NoKey { name, words }),
        Some(Some(code)) => Err(SecretsError::Decrypt { name, how: format!("ended with {code}"), words }),
        Some(None) => Err(SecretsError::Decrypt { name, how: "was ended by a signal".to_owned(), words }),
        None => Err(failed(io::Error::other(format!("it did not end within {} s", LIMIT.as_secs())))),
    }
}

/// Reads to the end; leaves no copy behind when the buffer grows.
fn read(mut stream: impl Read, limit: usize) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut bytes = Zeroizing::new(Vec::with_capacity(4096));
    let mut chunk = Zeroizing::new([0_u8; 4096]);
    loop {
        let count = stream.read(&mut chunk[..])?;
        if count == 0 {
            return Ok(bytes);
        }
        let needed = bytes.len() + count;
        if needed > limit {
            return Err(io::Error::other(format!("it has more than {limit} bytes")));
        }
        if needed > bytes.capacity() {
            let mut larger = Vec::with_capacity(needed.max(bytes.capacity() * 2));
            larger.extend_from_slice(&bytes);
            bytes.zeroize();
            *bytes = larger;
        }
        bytes.extend_from_slice(&chunk[..count]);
    }
}
