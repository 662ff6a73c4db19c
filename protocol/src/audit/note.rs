//! A checkpoint of the log as a text that can be kept anywhere: a signed note (C2SP signed-note) whose lines
//! are those of a checkpoint (C2SP tlog-checkpoint): origin, number, hash in base64, and then the time.
//!
//! The hash is the chain's, not that of a Merkle tree: tools for signed notes verify the signatures, but only
//! Muster can say whether a log extends it.

use std::fmt;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::Digest as _;

use super::chain::{Checkpoint, MAX_ENTRY};
use crate::clock::UnixMillis;
use crate::ids::Sha256;
use crate::keys::{KeyError, PublicKey, Signature, Signer};

/// The longest note that is read, in bytes.
pub const MAX_NOTE_BYTES: usize = 16 * 1024;
/// The most signatures of one note.
const MAX_SIGNATURES: usize = 32;
/// How the first line begins; the fleet follows. No signature of anything else is over such a text: TUF's
/// documents begin with `{`, and contexts with `muster-`.
const ORIGIN: &str = "muster/audit/";
/// What the specification gives Ed25519.
const ED25519: &[u8] = &[1];
/// What it gives kinds of its users' own: a byte, and a name of theirs.
const SECURITY_KEY: &[u8] = b"\xffmuster-sk-ssh-ed25519";
/// An em dash and a space.
const SIGNATURE: &str = "\u{2014} ";

/// Why a text is not a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not a checkpoint of `muster audit checkpoint`: {0}")]
pub struct NotANote(&'static str);

/// A checkpoint of a fleet's log, with signatures that may or may not be there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// SHA-256 of `1.root.json`.
    pub fleet: Sha256,
    /// The entry it was made at.
    pub at: Checkpoint,
    /// When it was made, in Unix milliseconds of the operator's clock.
    pub made_at: UnixMillis,
    signatures: Vec<NoteSignature>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct NoteSignature {
    name: String,
    id: [u8; 4],
    signature: Signature,
}

impl Note {
    /// An unsigned one.
    pub fn new(fleet: Sha256, at: Checkpoint, made_at: UnixMillis) -> Self {
        Self { fleet, at, made_at, signatures: Vec::new() }
    }

    /// Adds an operator's signature.
    pub fn sign(&mut self, signer: &dyn Signer) -> Result<(), KeyError> {
        let key = signer.public();
        let signature = signer.sign_raw(self.text().as_bytes())?;
        key.verify_raw(self.text().as_bytes(), &signature)?;
        self.signatures.push(NoteSignature { name: name(&key), id: id(&key), signature });
        Ok(())
    }

    /// Whether anybody signed it, whoever that was.
    pub fn is_signed(&self) -> bool {
        !self.signatures.is_empty()
    }

    /// Which of `keys` signed it. A signature under the name of one of them that is not by it is an error.
    pub fn signers(&self, keys: &[PublicKey]) -> Result<Vec<PublicKey>, KeyError> {
        let text = self.text();
        let mut signers = Vec::new();
        for made in &self.signatures {
            let named = |key: &&PublicKey| made.id == id(key) && made.name == name(key);
            if let Some(key) = keys.iter().find(named) {
                key.verify_raw(text.as_bytes(), &made.signature)?;
                signers.push(*key);
            }
        }
        Ok(signers)
    }

    /// What is signed.
    fn text(&self) -> String {
        format!(
            "{ORIGIN}{}\n{}\n{}\ntime {}\n",
            self.fleet,
            self.at.id,
            STANDARD.encode(self.at.hash.as_bytes()),
            self.made_at
        )
    }
}

/// The key's name in a note. Programs for signed notes want a name beside each key.
fn name(key: &PublicKey) -> String {
    format!("muster-operator-{}", key.short())
}

fn kind(key: &PublicKey) -> &'static [u8] {
    if key.is_security_key() { SECURITY_KEY } else { ED25519 }
}

fn id(key: &PublicKey) -> [u8; 4] {
    let mut hash = sha2::Sha256::new();
    hash.update(name(key));
    hash.update(b"\n");
    hash.update(kind(key));
    hash.update(key.as_bytes());
    let hash: [u8; 32] = hash.finalize().into();
    let [a, b, c, d, ..] = hash;
    [a, b, c, d]
}

/// The key as programs for signed notes take it: name, ID and key in one text.
pub fn verifier_key(key: &PublicKey) -> String {
    let bytes = [kind(key), key.as_bytes()].concat();
    format!("{}+{}+{}", name(key), crate::ids::to_hex(&id(key)), STANDARD.encode(bytes))
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text())?;
        if !self.signatures.is_empty() {
            writeln!(f)?;
        }
        for made in &self.signatures {
            let bytes = [&made.id[..], &made.signature.to_bytes()].concat();
            writeln!(f, "{SIGNATURE}{} {}", made.name, STANDARD.encode(bytes))?;
        }
        Ok(())
    }
}

impl FromStr for Note {
    type Err = NotANote;

    fn from_str(text: &str) -> Result<Self, NotANote> {
        if text.len() > MAX_NOTE_BYTES {
            return Err(NotANote("it is longer than any"));
        }
        let (body, signed) = text.split_once("\n\n").unwrap_or((text.trim_end_matches('\n'), ""));
        let mut lines = body.lines();
        let mut line = || lines.next().unwrap_or_default();
        let fleet = match line() {
            "" => return Err(NotANote("its first line is empty")),
            first => {
                first.strip_prefix(ORIGIN).ok_or(NotANote("its first line names no fleet's audit log"))?
            }
        };
        let fleet = fleet.parse().map_err(|_| NotANote("its first line names no fleet"))?;
        let id: u64 = line().parse().map_err(|_| NotANote("its second line is not a number"))?;
        if id > MAX_ENTRY {
            return Err(NotANote("its number is higher than any log's"));
        }
        let hash = STANDARD.decode(line()).ok().and_then(|bytes| <[u8; 32]>::try_from(bytes).ok());
        let hash = Sha256::from_bytes(hash.ok_or(NotANote("its third line is not a hash"))?);
        let made_at = line().strip_prefix("time ").and_then(|time| time.parse().ok());
        let made_at = made_at.ok_or(NotANote("its fourth line is not a time"))?;
        let signatures = signed.lines().map(signature).collect::<Option<Vec<_>>>();
        let signatures = signatures.ok_or(NotANote("a signature is not one"))?;
        if signatures.len() > MAX_SIGNATURES {
            return Err(NotANote("it has more signatures than any"));
        }
        let read = Self { fleet, at: Checkpoint { id, hash }, made_at, signatures };
        // One text for each, so that a signature is over what is read.
        if body.len() + 1 != read.text().len() || !read.text().starts_with(body) {
            return Err(NotANote("it is not in the one form that is written"));
        }
        Ok(read)
    }
}

fn signature(line: &str) -> Option<NoteSignature> {
    let (name, bytes) = line.strip_prefix(SIGNATURE)?.split_once(' ')?;
    let bytes = STANDARD.decode(bytes).ok()?;
    let (id, signature) = bytes.split_first_chunk::<4>()?;
    let signature = Signature::parse(signature).ok()?;
    (!name.is_empty() && !name.contains('+')).then(|| NoteSignature {
        name: name.to_owned(),
        id: *id,
        signature,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SecretKey;
    use crate::keys::soft::Soft;

    fn note() -> Note {
        let at = Checkpoint { id: 120, hash: Sha256::of(b"entry") };
        Note::new(Sha256::of(b"fleet"), at, 1_800_000_000_000)
    }

    #[test]
    fn a_checkpoint_is_a_text_that_survives_any_place_and_names_who_signed_it() {
        let [alice, bob, carol] = [(); 3].map(|()| SecretKey::generate().unwrap());
        let all = [alice.public(), bob.public(), carol.public()];
        let mut note = note();
        assert_eq!(note.to_string().parse::<Note>().unwrap(), note);
        assert!(!note.is_signed() && note.signers(&all).unwrap().is_empty());
        note.sign(&alice).unwrap();
        note.sign(&carol).unwrap();
        let text = note.to_string();
        let read: Note = text.parse().unwrap();
        assert_eq!(read, note);
        assert_eq!(read.signers(&all).unwrap(), [alice.public(), carol.public()]);
        assert_eq!(read.signers(&[bob.public()]).unwrap(), [], "others' signatures are of no account");
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], format!("muster/audit/{}", Sha256::of(b"fleet")));
        assert_eq!((lines[1], lines[3], lines[4]), ("120", "time 1800000000000", ""));
        assert!(lines[5].starts_with(&format!("\u{2014} muster-operator-{} ", alice.public().short())));
    }

    #[test]
    fn a_security_key_signs_a_note_under_a_kind_of_its_own() {
        let (security, plain) = (Soft::generate(), SecretKey::generate().unwrap());
        let twin = PublicKey::from_bytes(security.public().as_bytes()).unwrap();
        let mut note = note();
        note.sign(&security).unwrap();
        note.sign(&plain).unwrap();
        let read: Note = note.to_string().parse().unwrap();
        assert_eq!(read, note);
        let signers = [security.public(), plain.public()];
        assert_eq!(read.signers(&signers).unwrap(), signers);
        assert_eq!(read.signers(&[twin]).unwrap(), [], "the same point as a plain key has another ID");
        let key = verifier_key(&security.public());
        let bytes = STANDARD.decode(key.splitn(3, '+').last().unwrap()).unwrap();
        assert!(bytes.starts_with(b"\xffmuster-sk-ssh-ed25519"), "{key}");
    }

    #[test]
    fn a_signature_of_another_text_is_an_error_and_no_signature_is_not() {
        let alice = SecretKey::generate().unwrap();
        let mut signed = note();
        signed.sign(&alice).unwrap();
        let later = signed.to_string().replace("\n120\n", "\n121\n").parse::<Note>().unwrap();
        assert!(later.signers(&[alice.public()]).is_err());
        let time = signed.to_string().replace("time 18", "time 17").parse::<Note>().unwrap();
        assert!(time.signers(&[alice.public()]).is_err());
    }

    #[test]
    fn what_is_not_a_checkpoint_is_told_so() {
        let good = note().to_string();
        for (from, to) in [
            ("muster/audit/", "example.com/log/"),
            ("muster/audit/", "muster/audit/x"),
            ("\n120\n", "\n0120\n"),
            ("\n120\n", "\n-1\n"),
            ("\n120\n", "\n+120\n"),
            ("\n120\n", "\n99999999999999999999\n"),
            ("\n120\n", "\n9223372036854775808\n"),
            ("time ", "at "),
            ("time 1800000000000", "time 01800000000000"),
            ("time 1800000000000", "time 1800000000000\nmore"),
            ("=", ""),
        ] {
            assert!(good.replacen(from, to, 1).parse::<Note>().is_err(), "{from} {to}");
        }
        for text in ["", "\n", "\n\n", "x", &format!("{good}\n- x y\n"), &format!("{good}\n\u{2014} a b\n")] {
            assert!(text.parse::<Note>().is_err(), "{text}");
        }
        assert!("x".repeat(MAX_NOTE_BYTES + 1).parse::<Note>().is_err());
    }
}
