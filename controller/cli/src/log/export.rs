//! A log in a file: one JSON document a line. The first names the fleet and what the entries follow, then
//! comes each entry, and the last is a checkpoint at the last entry, signed by an operator.

use std::io::{BufRead, BufReader, Read as _, Write};
use std::path::Path;

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::audit::{AuditError, Checkpoint, Entry, Note, origin, verify};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::PublicKey;
use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::terminal::error::WithHint as _;

/// The longest line that is read, in bytes.
const MAX_LINE: u64 = 1024 * 1024;
/// The version of the format.
const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct Head {
    #[serde(rename = "muster-audit-export")]
    format: u32,
    fleet: Sha256,
    /// What the first entry is chained to.
    after: Checkpoint,
}

#[derive(Debug, Serialize, Deserialize)]
struct Tail {
    /// A [`Note`], as text.
    checkpoint: String,
}

/// Writes an export, entry by entry.
pub struct Writer<W: Write> {
    to: W,
    at: Checkpoint,
}

impl<W: Write> Writer<W> {
    pub fn begin(to: W, fleet: Sha256, after: Checkpoint) -> Result<Self> {
        let mut writer = Self { to, at: after };
        writer.line(&Head { format: FORMAT, fleet, after })?;
        Ok(writer)
    }

    pub fn entry(&mut self, entry: &Entry) -> Result<()> {
        self.at = Checkpoint { id: entry.id, hash: entry.hash };
        self.line(entry)
    }

    /// Where the export ends now.
    pub fn at(&self) -> Checkpoint {
        self.at
    }

    /// Ends it with a signed checkpoint at its last entry.
    pub fn end(mut self, signed: &Note) -> Result<W> {
        self.line(&Tail { checkpoint: signed.to_string() })?;
        self.to.flush()?;
        Ok(self.to)
    }

    fn line(&mut self, document: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(document)?;
        line.push(b'\n');
        Ok(self.to.write_all(&line)?)
    }
}

/// A verified export.
#[derive(Debug, Clone)]
pub struct Export {
    pub after: Checkpoint,
    pub last: Checkpoint,
    /// The operators who signed it.
    pub signers: Vec<PublicKey>,
    /// SHA-256 of the file.
    pub sha256: Sha256,
}

/// Reads an export, and verifies that its chain is whole and that nobody altered the signed end. Whose of
/// `operators` it is may be nobody's: operators come and go.
pub fn read(
    path: &Path,
    fleet: &Sha256,
    operators: &[PublicKey],
    each: &mut dyn FnMut(&Entry),
) -> Result<Export> {
    let file = std::fs::File::open(path)
        .with_context(|| format!("cannot read {}", path.display()))
        .hint("name a file that `muster audit export` wrote")?;
    let lines = Lines { from: BufReader::new(file), hash: sha2::Sha256::new() };
    verified(lines, fleet, operators, each)
        .with_context(|| format!("{} is not a whole export of this fleet's audit log", path.display()))
        .hint("make another with `muster audit export FILE`, or get one from another operator")
}

struct Lines<R> {
    from: R,
    hash: sha2::Sha256,
}

impl<R: BufRead> Lines<R> {
    /// The next line, if there is one.
    fn next(&mut self) -> Result<Option<Vec<u8>>> {
        let mut line = Vec::new();
        (&mut self.from).take(MAX_LINE).read_until(b'\n', &mut line)?;
        if line.len() as u64 == MAX_LINE {
            return Err(anyhow!("a line has more than {MAX_LINE} bytes"));
        }
        self.hash.update(&line);
        Ok((!line.is_empty()).then_some(line))
    }
}

/// A line after the first.
#[derive(Deserialize)]
#[serde(untagged)]
enum Line {
    Tail(Tail),
    Entry(Box<Entry>),
}

fn verified<R: BufRead>(
    mut lines: Lines<R>,
    fleet: &Sha256,
    operators: &[PublicKey],
    each: &mut dyn FnMut(&Entry),
) -> Result<Export> {
    let head = lines.next()?.unwrap_or_default();
    let head: Head = serde_json::from_slice(&head).context("its first line is not that of an export")?;
    if head.format != FORMAT {
        return Err(anyhow!("it is of a later version of muster ({})", head.format));
    }
    if head.fleet != *fleet {
        return Err(anyhow!("it is of another fleet ({})", head.fleet.short()));
    }
    if head.after.id == 0 && head.after != origin(fleet) {
        return Err(AuditError::Rewritten(0).into());
    }
    let mut at = head.after;
    loop {
        let line = lines.next()?.ok_or_else(|| anyhow!("it ends before its signed checkpoint"))?;
        match serde_json::from_slice(&line).with_context(|| format!("the line after entry {}", at.id))? {
            Line::Entry(entry) => {
                at = verify(at, std::slice::from_ref(&entry))?;
                each(&entry);
            }
            Line::Tail(Tail { checkpoint }) => {
                let note: Note = checkpoint.parse()?;
                if note.fleet != *fleet || note.at != at {
                    return Err(anyhow!("its signed checkpoint is not at its last entry"));
                }
                let signers = note.signers(operators).context("its checkpoint was altered")?;
                if lines.next()?.is_some() {
                    return Err(anyhow!("it goes on after its signed checkpoint"));
                }
                let sha256 = Sha256::from_bytes(lines.hash.finalize().into());
                return Ok(Export { after: head.after, last: at, signers, sha256 });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::SecretKey;

    use super::super::follow::tests::log;
    use super::*;

    fn exported(entries: &[Entry], after: Checkpoint, by: &SecretKey) -> Vec<u8> {
        let fleet = Sha256::of(b"fleet");
        let mut writer = Writer::begin(Vec::new(), fleet, after).unwrap();
        entries.iter().for_each(|entry| writer.entry(entry).unwrap());
        let mut note = Note::new(fleet, writer.at(), 5);
        note.sign(by).unwrap();
        writer.end(&note).unwrap()
    }

    fn read(bytes: &[u8], operators: &[PublicKey]) -> Result<(Export, usize)> {
        let lines = Lines { from: bytes, hash: sha2::Sha256::new() };
        let mut count = 0;
        let export = verified(lines, &Sha256::of(b"fleet"), operators, &mut |_| count += 1)?;
        Ok((export, count))
    }

    #[test]
    fn an_export_is_verified_without_a_controller() {
        let alice = SecretKey::generate().unwrap();
        let (origin, entries) = log(&["a", "b", "c", "d"]);
        let file = exported(&entries, origin, &alice);
        let (export, count) = read(&file, &[alice.public()]).unwrap();
        assert_eq!((export.last.id, count, export.sha256), (4, 4, Sha256::of(&file)));
        assert_eq!(export.signers, [alice.public()]);
        assert!(read(&file, &[]).unwrap().0.signers.is_empty(), "its signer has left");
        let after = Checkpoint { id: 2, hash: entries[1].hash };
        let (export, count) = read(&exported(&entries[2..], after, &alice), &[]).unwrap();
        assert_eq!((export.after, export.last.id, count), (after, 4, 2));
        assert_eq!(read(&exported(&[], origin, &alice), &[]).unwrap().1, 0);
    }

    #[test]
    fn an_export_that_was_altered_or_cut_short_is_none() {
        let (alice, mallory) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let (origin, entries) = log(&["a", "b", "c", "d"]);
        let file = exported(&entries, origin, &alice);
        let text = String::from_utf8(file).unwrap();
        let lines: Vec<&str> = text.split_inclusive('\n').collect();
        let refused = |text: &str| assert!(read(text.as_bytes(), &[alice.public()]).is_err(), "{text}");
        refused(&text.replace("\"detail\":\"b\"", "\"detail\":\"B\""));
        refused(&lines[..lines.len() - 1].concat());
        refused(&[&lines[..2], &lines[3..]].concat().concat());
        refused(&[&text, lines[4]].concat());
        refused(&text.replace(&Sha256::of(b"fleet").to_string(), &Sha256::of(b"other").to_string()));
        refused("");
        refused("{}");
        refused(&"x".repeat(2_000_000));
        // The chain of another history is whole as well; its end is not signed by alice.
        let (_, other) = log(&["a", "B", "c", "d"]);
        let forged = String::from_utf8(exported(&other, origin, &mallory)).unwrap();
        assert!(read(forged.as_bytes(), &[alice.public()]).unwrap().0.signers.is_empty());
        let theirs = forged.split_inclusive('\n').next_back().unwrap();
        refused(&text.replace(lines[5], theirs));
        let begins = Checkpoint { id: 0, hash: Sha256::of(b"x") };
        assert!(read(&exported(&[], begins, &alice), &[]).is_err());
    }
}
