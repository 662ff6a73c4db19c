//! Whether a log extends a checkpoint that somebody kept, in one sentence and one exit code.

use muster_protocol::audit::{Checkpoint, NotANote, Note};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::PublicKey;

use super::beginning::Cut;
use super::follow::Followed;
use crate::terminal::count::count;

/// How a checkpoint and a log are related.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// The log holds the checkpoint's entry, and this many after it.
    Extends(u64),
    /// The log ends before the checkpoint.
    Older(u64),
    /// The log has another entry of this number.
    Contradicts,
    OtherFleet(Sha256),
    NotACheckpoint(NotANote),
    WrongSignature,
    /// The entry was forgotten: the log begins after this one.
    Cut(u64),
    /// The same, but nobody is known to have cut the log there.
    Hidden(u64),
}

impl Verdict {
    /// Compares a checkpoint, whose number the walk must have asked for, with a log.
    pub fn of(checkpoint: &Checkpoint, found: &Followed) -> Self {
        match found.known.get(&checkpoint.id) {
            Some(hash) if *hash == checkpoint.hash => Self::Extends(found.last.saturating_sub(checkpoint.id)),
            Some(_) => Self::Contradicts,
            None if checkpoint.id < found.anchor.id => match found.cut {
                Cut::Unproven(_) => Self::Hidden(found.anchor.id),
                _ => Self::Cut(found.anchor.id),
            },
            None => Self::Older(found.last),
        }
    }

    /// The same for a text that was kept, whose fleet and signatures count as well.
    pub fn of_note(note: &Note, fleet: &Sha256, operators: &[PublicKey], found: &Followed) -> Self {
        if note.fleet != *fleet {
            return Self::OtherFleet(note.fleet);
        }
        match note.signers(operators) {
            Ok(_) => Self::of(&note.at, found),
            Err(_) => Self::WrongSignature,
        }
    }

    /// The exit code.
    pub fn code(&self) -> u8 {
        match self {
            Self::Extends(_) => 0,
            Self::Older(_) => 3,
            Self::Contradicts | Self::Hidden(_) => 4,
            Self::OtherFleet(_) => 5,
            Self::NotACheckpoint(_) => 6,
            Self::WrongSignature => 7,
            Self::Cut(_) => 8,
        }
    }

    /// For programs.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Extends(_) => "extends",
            Self::Older(_) => "older",
            Self::Contradicts => "contradicts",
            Self::OtherFleet(_) => "another-fleet",
            Self::NotACheckpoint(_) => "not-a-checkpoint",
            Self::WrongSignature => "wrong-signature",
            Self::Cut(_) => "cut",
            Self::Hidden(_) => "hidden",
        }
    }

    /// One sentence about a checkpoint at this entry.
    pub fn sentence(&self, id: u64) -> String {
        match self {
            Self::Extends(0) => format!("entry {id} is the log's newest"),
            Self::Extends(more) => {
                format!("the log extends entry {id} by {}", count(*more, "entry", "entries"))
            }
            Self::Older(last) => format!(
                "the log ends with entry {last}, before entry {id}: the controller was restored from an older \
                 backup, or hides entries"
            ),
            Self::Contradicts => format!(
                "the log has another entry {id}: it was rewritten, or somebody shows two histories; keep both, \
                 and find out who could"
            ),
            Self::OtherFleet(fleet) => format!("it is of another fleet ({})", fleet.short()),
            Self::NotACheckpoint(error) => error.to_string(),
            Self::WrongSignature => {
                "a signature is not by the operator that it names: somebody altered it".to_owned()
            }
            Self::Cut(anchor) => format!(
                "entry {id} was exported and forgotten, as the log was cut at entry {anchor}: compare it with \
                 the export, by --export FILE"
            ),
            Self::Hidden(anchor) => format!(
                "the log begins after entry {anchor} without proof that an operator cut it there, so entry {id} \
                 is hidden: find out who could"
            ),
        }
    }
}

/// The code that says most: contradictions first, then what cannot be believed, then what is missing.
pub fn worst(codes: impl IntoIterator<Item = u8>) -> u8 {
    const ORDER: [u8; 8] = [4, 7, 6, 5, 3, 8, 1, 0];
    let codes: Vec<u8> = codes.into_iter().collect();
    ORDER.into_iter().find(|code| codes.contains(code)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::SecretKey;

    use super::super::follow::tests::{log, walked};
    use super::*;

    #[test]
    fn each_outcome_has_its_sentence_and_its_code() {
        let (_, entries) = log(&["a", "b", "c", "d"]);
        let (_, other) = log(&["a", "B", "c", "d"]);
        let at = |entries: &[muster_protocol::audit::Entry], id: usize| Checkpoint {
            id: id as u64,
            hash: entries[id - 1].hash,
        };
        let of = |checkpoint: Checkpoint, shown: &[_], anchor| {
            let mut found = walked(shown, anchor, checkpoint.id, &[checkpoint.id]).unwrap().0;
            let lied = Verdict::of(&checkpoint, &found);
            if anchor.is_some() {
                found.cut = Cut::File;
            }
            (Verdict::of(&checkpoint, &found), lied)
        };
        let of = |checkpoint, shown: &[_], anchor| {
            let (verdict, lied) = of(checkpoint, shown, anchor);
            match verdict {
                // Only a proven cut explains that an entry is gone.
                Verdict::Cut(at) => assert_eq!(lied, Verdict::Hidden(at)),
                _ => assert_eq!(lied, verdict),
            }
            verdict
        };
        assert_eq!(of(at(&entries, 2), &entries, None), Verdict::Extends(2));
        assert_eq!(of(at(&entries, 4), &entries, None), Verdict::Extends(0));
        assert_eq!(of(at(&entries, 4), &entries[..3], None), Verdict::Older(3));
        assert_eq!(of(at(&other, 3), &entries, None), Verdict::Contradicts);
        assert_eq!(of(at(&other, 1), &entries, None), Verdict::Extends(3), "before they part");
        let cut = Some(at(&entries, 3));
        assert_eq!(of(at(&entries, 3), &entries, cut), Verdict::Extends(1));
        assert_eq!(of(at(&entries, 2), &entries, cut), Verdict::Cut(3));
        let (alice, mallory) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let (fleet, wanted) = (Sha256::of(b"fleet"), at(&entries, 2));
        let found = walked(&entries, None, 2, &[2, 3]).unwrap().0;
        let of_note = |note: &Note| Verdict::of_note(note, &fleet, &[alice.public()], &found);
        let mut note = Note::new(fleet, wanted, 5);
        assert_eq!(of_note(&note), Verdict::Extends(2));
        note.sign(&mallory).unwrap();
        assert_eq!(of_note(&note), Verdict::Extends(2), "a stranger's signature says nothing");
        note.sign(&alice).unwrap();
        assert_eq!(of_note(&note), Verdict::Extends(2));
        let bent: Note = note.to_string().replace("time 5", "time 6").parse().unwrap();
        assert_eq!(of_note(&bent), Verdict::WrongSignature);
        let foreign = Note::new(Sha256::of(b"other"), wanted, 5);
        assert_eq!(of_note(&foreign), Verdict::OtherFleet(Sha256::of(b"other")));
        assert_eq!(worst([0, 3, 8]), 3);
        assert_eq!(worst([7, 4, 0]), 4);
        assert_eq!(worst([]), 0);
    }
}
