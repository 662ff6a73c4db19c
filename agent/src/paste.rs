//! The token, from standard input. At a terminal without echo, and byte by byte: a terminal in line mode
//! accepts only 1,024 bytes per line on a Mac.

use std::io::{IsTerminal as _, Read, Stdin};

use anyhow::{Context as _, Result, bail};
use muster_protocol::terminal;
use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

/// A token has a few hundred bytes; with a certificate, a few thousand.
const MAX_TOKEN_BYTES: usize = 64 * 1024;
const INTERRUPT: u8 = 3;
const END: u8 = 4;
const BACKSPACE: u8 = 8;
const DELETE: u8 = 127;

/// The first line that is not empty.
pub fn token() -> Result<Zeroizing<String>> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return line(&mut stdin.lock());
    }
    let before = tcgetattr(&stdin).context("the terminal's settings cannot be read")?;
    let mut quiet = before.clone();
    // Ctrl-C arrives as a byte, so that the echo is restored first.
    quiet.local_modes.remove(LocalModes::ECHO | LocalModes::ECHONL | LocalModes::ICANON | LocalModes::ISIG);
    quiet.special_codes[SpecialCodeIndex::VMIN] = 1;
    quiet.special_codes[SpecialCodeIndex::VTIME] = 0;
    tcsetattr(&stdin, OptionalActions::Now, &quiet).context("the terminal's echo cannot be turned off")?;
    let restore = Restore { terminal: &stdin, before };
    terminal::question(format_args!("Paste the token (it is not shown), then press Enter:"));
    let token = line(&mut stdin.lock());
    drop(restore);
    tell!("");
    token
}

struct Restore<'a> {
    terminal: &'a Stdin,
    before: Termios,
}
impl Drop for Restore<'_> {
    fn drop(&mut self) {
        let _ = tcsetattr(self.terminal, OptionalActions::Now, &self.before);
    }
}

fn line(from: &mut impl Read) -> Result<Zeroizing<String>> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_TOKEN_BYTES));
    let mut key = Zeroizing::new([0_u8]);
    loop {
        let ended = from.read(&mut key[..]).context("the token cannot be read")? == 0;
        match key[0] {
            _ if ended => break,
            INTERRUPT => bail!("interrupted; this machine is as it was"),
            END => break,
            b'\r' | b'\n' if line.iter().all(u8::is_ascii_whitespace) => line.clear(),
            b'\r' | b'\n' => break,
            BACKSPACE | DELETE => drop(line.pop()),
            byte if line.len() < MAX_TOKEN_BYTES => line.push(byte),
            _ => bail!("this is longer than any token"),
        }
    }
    let text = std::str::from_utf8(&line).context("this is not a token: it is not text")?;
    Ok(Zeroizing::new(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &[u8]) -> Result<String> {
        line(&mut &text[..]).map(|token| token.to_string())
    }

    #[test]
    fn a_token_ends_with_its_line() {
        assert_eq!(read(b"muster2.abc\nmore").unwrap(), "muster2.abc");
        assert_eq!(read(b"\r\n  muster2.abc \r").unwrap(), "muster2.abc");
        assert_eq!(read(b"muster2.abcc\x7f\x04").unwrap(), "muster2.abc");
        assert_eq!(read(b"muster2.abc").unwrap(), "muster2.abc");
        assert_eq!(read(b"").unwrap(), "");
        assert!(read(b"must\x03er2.abc\n").unwrap_err().to_string().contains("interrupted"));
        assert!(read(&[b'x'; MAX_TOKEN_BYTES + 1]).is_err());
    }
}
