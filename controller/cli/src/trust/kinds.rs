//! Which machines could not verify what is to be signed, since their agents are older than a kind of key.
//! Pure.

use muster_protocol::ids::MachineName;
use muster_protocol::keys::{PublicKey, SECURITY_KEY};

use super::holders::{Holders, Role};
use crate::terminal::count::count;

/// The most machines that are named.
const MOST_NAMED: usize = 5;

/// A machine, and the words that its agent says it understands. `None` where it never checked in: it gets an
/// agent of today when it enrols.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reader {
    pub machine: MachineName,
    pub understands: Option<Vec<String>>,
}

impl Reader {
    fn knows_security_keys(&self) -> bool {
        self.understands.as_ref().is_none_or(|words| words.iter().any(|word| word == SECURITY_KEY))
    }
}

/// What security keys alone can sign, and who cannot verify that.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} without the signatures of security keys, and {} not know that kind yet: {}",
    count(machines.len(), "machine does", "machines do"),
    names(machines)
)]
pub struct Unverifiable {
    what: String,
    machines: Vec<MachineName>,
}

impl Unverifiable {
    /// What to do about it.
    pub const HINT: &str = "bring muster-agent up to date on them first, signed with plain keys, or have as many \
                            plain keys sign as must";
}

fn names(machines: &[MachineName]) -> String {
    let named: Vec<&str> = machines.iter().take(MOST_NAMED).map(MachineName::as_str).collect();
    match machines.len().saturating_sub(MOST_NAMED) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// Those of the keys that are plain ones.
pub fn plain(keys: &[PublicKey]) -> Vec<PublicKey> {
    keys.iter().copied().filter(|key| !key.is_security_key()).collect()
}

/// Refuses `what` if it counts only with security keys' signatures and somebody does not know those.
pub fn require_known(what: String, readers: &[Reader]) -> Result<(), Unverifiable> {
    let unable = readers.iter().filter(|reader| !reader.knows_security_keys());
    let machines: Vec<MachineName> = unable.map(|reader| reader.machine.clone()).collect();
    if machines.is_empty() { Ok(()) } else { Err(Unverifiable { what, machines }) }
}

/// The first role of a root that its plain keys cannot fill, and that in words; `None` if they can fill both.
pub fn needs_security_keys(next: &Holders) -> Option<(Role, String)> {
    let short = |role: &Role| plain(next.keys(*role)).len() < next.threshold(*role) as usize;
    let role = [Role::Root, Role::Operator].into_iter().find(short)?;
    Some((role, format!("{role} would not reach its threshold of {}", next.threshold(role))))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use muster_protocol::ids::Epoch;
    use muster_protocol::keys::{Kind, SecretKey};

    use super::*;

    fn keys(kinds: &[Kind]) -> Vec<PublicKey> {
        let key =
            |kind: &Kind| PublicKey::of(*kind, SecretKey::generate().unwrap().public().as_bytes()).unwrap();
        kinds.iter().map(key).collect()
    }
    fn holders(root: (&[Kind], u32), operators: (&[Kind], u32)) -> Holders {
        let roles = [(keys(root.0), root.1), (keys(operators.0), operators.1), (keys(&[Kind::Plain]), 1)];
        Holders::new(roles, Epoch::default(), BTreeMap::new())
    }
    fn reader(name: &str, understands: Option<&[&str]>) -> Reader {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        Reader { machine: name.parse().unwrap(), understands: understands.map(words) }
    }

    #[test]
    fn security_keys_are_needed_where_plain_ones_do_not_reach_a_threshold() {
        use Kind::{Plain as P, Security as S};
        for (root, operators, needs) in [
            ((&[P][..], 1), (&[P][..], 1), None),
            ((&[P, S], 1), (&[P, S], 1), None),
            ((&[P, P, S], 2), (&[P, S], 1), None),
            ((&[P, S], 2), (&[P], 1), Some("root would not reach its threshold of 2")),
            ((&[S], 1), (&[P], 1), Some("root would not reach its threshold of 1")),
            ((&[P], 1), (&[S], 1), Some("operator would not reach its threshold of 1")),
            ((&[P], 1), (&[P, S, S], 2), Some("operator would not reach its threshold of 2")),
        ] {
            let found = needs_security_keys(&holders(root, operators));
            let found = found.as_ref().map(|(_, words)| words.as_str());
            assert_eq!(found, needs, "{root:?} {operators:?}");
        }
    }

    #[test]
    fn machines_that_do_not_know_security_keys_are_named_five_at_most() {
        let knows = reader("new", Some(&["rollouts", "sk-ssh-ed25519"]));
        let never = reader("never", None);
        let what = || "root would not reach its threshold of 2".to_owned();
        assert_eq!(require_known(what(), &[knows.clone(), never.clone()]), Ok(()));
        let old = reader("old", Some(&["rollouts", "sk-ssh-ed25519x"]));
        let one = require_known(what(), &[knows, never, old]).unwrap_err().to_string();
        assert_eq!(
            one,
            "root would not reach its threshold of 2 without the signatures of security keys, and 1 machine does \
             not know that kind yet: old"
        );
        let many: Vec<Reader> = (0..7).map(|n| reader(&format!("m{n}"), Some(&[]))).collect();
        let many = require_known(what(), &many).unwrap_err().to_string();
        assert!(
            many.ends_with("7 machines do not know that kind yet: m0, m1, m2, m3, m4 and 2 more"),
            "{many}"
        );
    }
}
