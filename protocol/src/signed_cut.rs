//! A cut of the audit log as its entry proves it.

use crate::api::OPERATOR_AUDIT_CUT;
use crate::audit::{Checkpoint, CutLog, Entry, LOG_CUT};
use crate::ids::{Sha256, from_hex};
use crate::operator::{Request, RequestSignature};

/// What separates an entry's text for people from the request that the operator signed.
const REQUEST: &str = "; request ";

/// An operator's request to cut a log, with their signature: the entry about the cut keeps both, so a reader
/// of the log need not believe the controller that an operator asked for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedCut {
    /// What was asked for.
    pub asked: CutLog,
    /// The signature of that request.
    pub signature: RequestSignature,
}

impl SignedCut {
    /// The text of the entry about the cut.
    pub fn detail(&self) -> String {
        let (CutLog { through, holds, export }, signature) = (&self.asked, &self.signature);
        format!(
            "through entry {} {}, export {export}{REQUEST}{holds} {} {} {}",
            through.id,
            through.hash,
            signature.at,
            signature.nonce,
            signature.signature.hex()
        )
    }

    /// The same without what is only for programs.
    pub fn for_people(detail: &str) -> &str {
        detail.split_once(REQUEST).map_or(detail, |(text, _)| text)
    }

    /// What an entry about a cut says; `None` if it is about something else, or keeps no request.
    pub fn of(entry: &Entry) -> Option<Self> {
        let key = entry.by.filter(|_| entry.action == LOG_CUT)?;
        let (text, request) = entry.detail.split_once(REQUEST)?;
        let (through, export) = text.strip_prefix("through entry ")?.split_once(", export ")?;
        let (id, hash) = through.split_once(' ')?;
        let through = Checkpoint { id: id.parse().ok()?, hash: hash.parse().ok()? };
        let mut words = request.split(' ');
        let holds = words.next()?.parse().ok()?;
        let at = words.next()?.parse().ok()?;
        let nonce = words.next().filter(|nonce| from_hex::<16>(nonce).is_some())?.to_owned();
        let signature = words.next()?.parse().ok()?;
        if words.next().is_some() {
            return None;
        }
        let asked = CutLog { through, holds, export: export.parse().ok()? };
        Some(Self { asked, signature: RequestSignature { key, at, nonce, signature, body: None } })
    }

    /// Whether its key signed exactly this request, written as this version writes it, for this fleet. Whose
    /// key it is is up to the caller.
    pub fn is_signed(&self, fleet: &Sha256) -> bool {
        let Ok(body) = serde_json::to_vec(&self.asked) else { return false };
        let request = Request { audience: fleet, method: "POST", path: OPERATOR_AUDIT_CUT, body: &body };
        self.signature.verify(request).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::keys::SecretKey;

    #[test]
    fn the_entry_about_a_cut_keeps_what_its_operator_signed() {
        let (alice, fleet) = (SecretKey::generate().unwrap(), Sha256::of(b"fleet"));
        let through = Checkpoint { id: 7, hash: Sha256::of(b"seven") };
        let asked = CutLog { through, holds: Sha256::of(b"held"), export: Sha256::of(b"file") };
        let body = serde_json::to_vec(&asked).unwrap();
        let request = Request { audience: &fleet, method: "POST", path: OPERATOR_AUDIT_CUT, body: &body };
        let signature = RequestSignature::make(&alice, request, 1_700_000_000, [7; 16]);
        let cut = SignedCut { asked, signature };
        let (by, action, detail) = (Some(alice.public()), LOG_CUT.to_owned(), cut.detail());
        let entry = Entry { id: 9, at: 5, by, action, machine: None, detail, hash: through.hash };
        let kept = SignedCut::of(&entry).unwrap();
        assert_eq!(kept, cut);
        assert!(kept.is_signed(&fleet) && !kept.is_signed(&Sha256::of(b"other")));
        let people = format!("through entry 7 {}, export {}", through.hash, asked.export);
        assert_eq!(SignedCut::for_people(&entry.detail), people);
        assert_eq!(SignedCut::for_people(&people), people);

        // Whoever moves the cut, or says that another operator made it, has no signature for it.
        let moved = Entry { detail: entry.detail.replace("entry 7", "entry 8"), ..entry.clone() };
        assert!(!SignedCut::of(&moved).unwrap().is_signed(&fleet));
        let bob = Some(SecretKey::generate().unwrap().public());
        assert!(!SignedCut::of(&Entry { by: bob, ..entry.clone() }).unwrap().is_signed(&fleet));
        for none in [
            Entry { by: None, ..entry.clone() },
            Entry { action: "enrolled".into(), ..entry.clone() },
            Entry { detail: people, ..entry.clone() },
            Entry { detail: format!("{} x", entry.detail), ..entry.clone() },
            Entry { detail: String::new(), ..entry },
        ] {
            assert_eq!(SignedCut::of(&none), None, "{none:?}");
        }
    }
}
