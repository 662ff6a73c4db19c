//! What the rows of a list have in common is parsed once, and what nobody is shown is not parsed: a key is a
//! point of a curve, which takes 5 to 6 µs to read.

use std::collections::HashMap;

use muster_protocol::checkin::Holds;
use muster_protocol::keys::PublicKey;
use serde::Deserialize;

use super::error::StoreError;

/// A fleet has fewer operators; what is beyond is parsed for each row.
const MOST: usize = 64;

/// Whether machines' own keys are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keys {
    Parsed,
    /// They are shown to nobody.
    Left,
}

/// The keys of operators that were parsed for a list.
#[derive(Debug)]
pub struct Parsed {
    keys: Keys,
    publishers: HashMap<Vec<u8>, PublicKey>,
    signers: HashMap<String, Vec<PublicKey>>,
}

impl Parsed {
    pub fn new(keys: Keys) -> Self {
        Self { keys, publishers: HashMap::new(), signers: HashMap::new() }
    }

    /// A machine's own key.
    pub fn own(&self, key: Option<&[u8]>) -> Result<Option<PublicKey>, StoreError> {
        key.filter(|_| self.keys == Keys::Parsed).map(parsed).transpose()
    }

    /// The key of whoever published.
    pub fn publisher(&mut self, key: &[u8]) -> Result<PublicKey, StoreError> {
        if let Some(known) = self.publishers.get(key) {
            return Ok(*known);
        }
        let new = parsed(key)?;
        if self.publishers.len() < MOST {
            self.publishers.insert(key.to_owned(), new);
        }
        Ok(new)
    }

    /// The keys that signed, from a list in JSON. Version 0.1 stored none.
    pub fn signers(&mut self, text: &str) -> Vec<PublicKey> {
        if let Some(known) = self.signers.get(text) {
            return known.clone();
        }
        let new: Vec<PublicKey> = serde_json::from_str(text).unwrap_or_default();
        if self.signers.len() < MOST {
            self.signers.insert(text.to_owned(), new.clone());
        }
        new
    }
}

/// What a publication needs of a machine's last check-in, of which nothing else is parsed.
#[derive(Debug, Default, Deserialize)]
pub struct Told {
    #[serde(default)]
    pub holds: Holds,
    #[serde(default)]
    pub understands: Vec<String>,
}

/// What a machine holds and understands, according to its last check-in.
pub fn told(observed: &str) -> Told {
    serde_json::from_str(observed).unwrap_or_default()
}

fn parsed(bytes: &[u8]) -> Result<PublicKey, StoreError> {
    PublicKey::parse(bytes).map_err(|_| StoreError::Damaged("a key"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_machine_holds_is_read_whatever_else_it_said() {
        let held =
            told(r#"{"machine":"tin","phase":"of a later version","holds":{"root":2,"targets":7}}"#).holds;
        assert_eq!((held.root, held.targets, held.snapshot), (2, 7, 0));
        for nothing in ["", "{}", "[]", r#"{"holds":7}"#] {
            assert_eq!(told(nothing).holds, Holds::default());
        }
    }
}
