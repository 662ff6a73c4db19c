//! Who holds which role, and what a change does to that. Pure.

use std::collections::BTreeMap;
use std::fmt;

use clap::ValueEnum;
use muster_protocol::ids::{Epoch, IdError};
use muster_protocol::keys::PublicKey;
use muster_protocol::tuf::metadata::{Role as Tuf, Root};
use muster_protocol::tuf::repository::RootSpec;

use super::roots::named;
use crate::terminal::count::count;

/// The most keys for one role. Machines refuse roots with more than 256 in all.
const MOST_KEYS: usize = 64;
const LONGEST_NAME: usize = 64;

/// What a key may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Names the keys of every role
    Root,
    /// Signs what machines run
    Operator,
    /// Lies on the controller and says that what it serves is fresh
    Online,
}

impl Role {
    pub const ALL: [Self; 3] = [Self::Root, Self::Operator, Self::Online];
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Operator => "operator",
            Self::Online => "online",
        })
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holders {
    roles: [(Vec<PublicKey>, u32); 3],
    epoch: Epoch,
    pub names: BTreeMap<String, String>,
}

#[derive(Debug, Clone)]
pub enum Change {
    Add {
        role: Role,
        key: PublicKey,
        name: Option<String>,
    },
    Remove {
        role: Role,
        key: PublicKey,
    },
    Rotate {
        role: Role,
        old: PublicKey,
        new: PublicKey,
        name: Option<String>,
    },
    Threshold {
        role: Role,
        number: u32,
    },
    /// The same keys, valid for longer.
    Renew,
    /// All numbers start again, and earlier signatures no longer count.
    NewEpoch,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    #[error(
        "{key} holds the role {held} already: a key holds one role, so that one that is lost costs one role"
    )]
    Held { key: String, held: Role },
    #[error("no {role} key is called '{wanted}'; there are {known}")]
    Unknown { role: Role, wanted: String, known: String },
    #[error("'{0}' is more than one key: write more of its digits")]
    Ambiguous(String),
    #[error("{}", too_few(*role, *keys, *threshold))]
    Threshold { role: Role, keys: usize, threshold: u32 },
    #[error("{role} takes {threshold} of its keys already, so there is nothing to change")]
    SameThreshold { role: Role, threshold: u32 },
    #[error(
        "a threshold of 0 would let nobody's signature be enough: {role} takes 1 to {keys}, as many as it \
         has keys"
    )]
    NoThreshold { role: Role, keys: usize },
    #[error("any one online key is enough: there is no threshold for them")]
    OnlineThreshold,
    #[error(
        "{0} is a security key: the controller's key is a plain one, since nobody is there to touch it; make one \
         with `muster keys generate FILE --plain`"
    )]
    OnlineSecurityKey(String),
    #[error("{role} would have {0} keys; {MOST_KEYS} are the limit", .keys)]
    TooMany { role: Role, keys: usize },
    #[error(
        "--threshold goes with `muster keys add`, `remove` and `rotate`: change it by itself with `muster \
         keys threshold ROLE NUMBER`"
    )]
    NoRole,
    #[error(transparent)]
    Epoch(#[from] IdError),
    #[error("'{0}' is not a name for a key: 1 to {LONGEST_NAME} printable characters")]
    Name(String),
}

/// Refuses what cannot be printed in a line.
pub fn require_name(name: &str) -> Result<(), ChangeError> {
    let length = name.chars().count();
    match (1..=LONGEST_NAME).contains(&length) && !name.chars().any(char::is_control) {
        true => Ok(()),
        false => Err(ChangeError::Name(name.to_owned())),
    }
}

/// Fewer keys than must sign: a threshold can be lowered, but not below one.
fn too_few(role: Role, keys: usize, threshold: u32) -> String {
    let count = count(keys, "key", "keys");
    let remedy = match keys {
        0 => {
            "add another key first, with `muster keys add`, or put one in its place with `muster keys rotate`"
        }
        _ => "add a key first, or have fewer of them sign (--threshold, or `muster keys threshold`)",
    };
    format!("{role} would have {count}, and {threshold} must sign: {remedy}")
}

impl Holders {
    #[cfg(test)]
    pub fn new(roles: [(Vec<PublicKey>, u32); 3], epoch: Epoch, names: BTreeMap<String, String>) -> Self {
        Self { roles, epoch, names }
    }

    pub fn of(root: &Root, names: &BTreeMap<String, String>) -> Self {
        let role = |role| (root.keys_of(role), root.threshold(role));
        let roles = [role(Tuf::Root), role(Tuf::Targets), role(Tuf::Timestamp)];
        Self { roles, epoch: root.epoch(), names: names.clone() }
    }

    pub fn keys(&self, role: Role) -> &[PublicKey] {
        &self.roles[role as usize].0
    }
    pub fn threshold(&self, role: Role) -> u32 {
        self.roles[role as usize].1
    }

    pub fn spec(&self, version: u64, expires: i64) -> RootSpec {
        let [root, operators, (online, _)] = self.roles.clone();
        RootSpec { version, epoch: self.epoch, expires, root, operators, online }
    }

    /// The key of a role with this name, or whose digits begin like this.
    pub fn find(&self, role: Role, wanted: &str) -> Result<PublicKey, ChangeError> {
        let by_name = |key: &&PublicKey| self.names.get(&key.hex()).is_some_and(|name| name == wanted);
        let by_digits = |key: &&PublicKey| {
            key.to_string() == wanted || (wanted.len() >= 8 && key.hex().starts_with(wanted))
        };
        let keys = self.keys(role);
        let found: Vec<&PublicKey> = keys.iter().filter(|key| by_name(key) || by_digits(key)).collect();
        match found.as_slice() {
            [one] => Ok(**one),
            [] => {
                let known: Vec<String> = keys.iter().map(|key| named(&self.names, key)).collect();
                Err(ChangeError::Unknown { role, wanted: wanted.to_owned(), known: known.join(", ") })
            }
            _ => Err(ChangeError::Ambiguous(wanted.to_owned())),
        }
    }

    /// Applies a change, with a new threshold for its role if one is given.
    pub fn after(&self, change: &Change, threshold: Option<u32>) -> Result<Self, ChangeError> {
        let mut next = self.clone();
        let role = match change {
            Change::Add { role, key, name } => {
                next.require_free(key)?;
                next.roles[*role as usize].0.push(*key);
                next.call(key, name.as_deref())?;
                *role
            }
            Change::Remove { role, key } => {
                next.roles[*role as usize].0.retain(|held| held != key);
                next.names.remove(&key.hex());
                *role
            }
            Change::Rotate { role, old, new, name } => {
                next.require_free(new)?;
                for held in next.roles[*role as usize].0.iter_mut().filter(|held| *held == old) {
                    *held = *new;
                }
                let inherited = next.names.remove(&old.hex());
                next.call(new, name.as_deref().or(inherited.as_deref()))?;
                *role
            }
            // An additional --threshold would override it.
            Change::Threshold { .. } if threshold.is_some() => return Err(ChangeError::NoRole),
            Change::Threshold { role, number } if self.threshold(*role) == *number => {
                return Err(ChangeError::SameThreshold { role: *role, threshold: *number });
            }
            Change::Threshold { role, number } => {
                next.roles[*role as usize].1 = *number;
                *role
            }
            Change::Renew if threshold.is_some() => return Err(ChangeError::NoRole),
            Change::NewEpoch if threshold.is_some() => return Err(ChangeError::NoRole),
            Change::Renew => return Ok(next),
            Change::NewEpoch => {
                next.epoch = self.epoch.next()?;
                return Ok(next);
            }
        };
        if let Some(number) = threshold {
            next.roles[role as usize].1 = number;
        }
        next.check(role)?;
        Ok(next)
    }

    fn require_free(&self, key: &PublicKey) -> Result<(), ChangeError> {
        let holds = |role: &Role| self.keys(*role).iter().any(|held| held.is_same_signer(key));
        match Role::ALL.into_iter().find(holds) {
            Some(held) => Err(ChangeError::Held { key: named(&self.names, key), held }),
            None => Ok(()),
        }
    }

    fn call(&mut self, key: &PublicKey, name: Option<&str>) -> Result<(), ChangeError> {
        let Some(name) = name else { return Ok(()) };
        require_name(name)?;
        self.names.insert(key.hex(), name.to_owned());
        Ok(())
    }

    fn check(&self, role: Role) -> Result<(), ChangeError> {
        let (keys, threshold) = (self.keys(role).len(), self.threshold(role));
        if threshold == 0 && role != Role::Online {
            return Err(ChangeError::NoThreshold { role, keys });
        }
        if role == Role::Online && threshold != 1 {
            return Err(ChangeError::OnlineThreshold);
        }
        if let (Role::Online, Some(key)) = (role, self.keys(role).iter().find(|key| key.is_security_key())) {
            return Err(ChangeError::OnlineSecurityKey(named(&self.names, key)));
        }
        if keys > MOST_KEYS {
            return Err(ChangeError::TooMany { role, keys });
        }
        if (threshold as usize) > keys {
            return Err(ChangeError::Threshold { role, keys, threshold });
        }
        Ok(())
    }

    /// The differences to another set of holders, one per line.
    pub fn differences(&self, next: &Self) -> Vec<String> {
        let mut lines = Vec::new();
        if self.begins_an_epoch(next) {
            lines.push(format!("+ epoch {} (before: {})", next.epoch, self.epoch));
            lines.push(
                "    numbers begin at 1 again, however high they were, also on machines that sleep"
                    .to_owned(),
            );
            lines.push(
                "    what was signed before is refused from then on, and waits nowhere any longer".to_owned(),
            );
            lines.push("    what machines run goes on to run; everything must be signed anew".to_owned());
        }
        for role in Role::ALL {
            let (old, new) = (self.keys(role), next.keys(role));
            for key in new.iter().filter(|key| !old.contains(key)) {
                lines.push(format!("+ {role} {}  {key}", named(&next.names, key)));
            }
            for key in old.iter().filter(|key| !new.contains(key)) {
                lines.push(format!("- {role} {}  {key}", named(&self.names, key)));
            }
            if self.threshold(role) != next.threshold(role) {
                lines.push(format!(
                    "  {role}: {} of {} must sign (before: {} of {})",
                    next.threshold(role),
                    new.len(),
                    self.threshold(role),
                    old.len()
                ));
            }
        }
        for (key, name) in &next.names {
            if self.names.get(key).is_some_and(|old| old != name) {
                lines.push(format!(
                    "  the key {} is called {name} (before: {})",
                    &key[..12],
                    self.names[key]
                ));
            }
        }
        lines
    }

    pub fn begins_an_epoch(&self, next: &Self) -> bool {
        next.epoch != self.epoch
    }

    /// Whether previously signed generations may no longer count.
    pub fn weakens_old_signatures(&self, next: &Self) -> bool {
        let gone = self.keys(Role::Operator).iter().any(|key| !next.keys(Role::Operator).contains(key));
        gone || next.threshold(Role::Operator) > self.threshold(Role::Operator)
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::{Kind, SecretKey};

    use super::*;

    fn key() -> PublicKey {
        SecretKey::generate().unwrap().public()
    }
    fn holders() -> (Holders, PublicKey, PublicKey, PublicKey) {
        let (root, operator, online) = (key(), key(), key());
        let roles = [(vec![root], 1), (vec![operator], 1), (vec![online], 1)];
        (Holders { roles, epoch: Epoch::default(), names: BTreeMap::new() }, root, operator, online)
    }
    fn add(role: Role, key: PublicKey, name: &str) -> Change {
        Change::Add { role, key, name: Some(name.to_owned()) }
    }

    #[test]
    fn a_key_is_added_named_found_rotated_and_removed() {
        let (first, _, operator, _) = holders();
        let alice = key();
        let two = first.after(&add(Role::Operator, alice, "alice"), Some(2)).unwrap();
        assert_eq!((two.keys(Role::Operator), two.threshold(Role::Operator)), (&[operator, alice][..], 2));
        assert_eq!(two.find(Role::Operator, "alice").unwrap(), alice);
        assert_eq!(two.find(Role::Operator, &alice.hex()[..10]).unwrap(), alice);
        let new = key();
        let rotate = Change::Rotate { role: Role::Operator, old: alice, new, name: None };
        let rotated = two.after(&rotate, None).unwrap();
        assert_eq!(rotated.find(Role::Operator, "alice").unwrap(), new, "the name goes with the person");
        let removed = rotated.after(&Change::Remove { role: Role::Operator, key: new }, Some(1)).unwrap();
        assert_eq!(removed.keys(Role::Operator), [operator]);
        assert!(removed.names.is_empty());
        let lines = first.differences(&two).join("\n");
        assert!(
            lines.contains("+ operator alice") && lines.contains("2 of 2 must sign (before: 1 of 1)"),
            "{lines}"
        );
        assert!(two.weakens_old_signatures(&removed) && first.weakens_old_signatures(&two));
        assert!(!first.weakens_old_signatures(&first.after(&add(Role::Online, key(), "x"), None).unwrap()));
    }

    #[test]
    fn a_new_epoch_changes_no_key_and_says_what_follows() {
        let (first, ..) = holders();
        let second = first.after(&Change::NewEpoch, None).unwrap();
        assert_eq!(second.spec(2, 0).epoch, Epoch::new(1).unwrap());
        assert!(first.begins_an_epoch(&second) && !second.begins_an_epoch(&second.clone()));
        assert_eq!(Holders { epoch: Epoch::default(), ..second.clone() }, first);
        let lines = first.differences(&second).join("\n");
        assert!(lines.contains("+ epoch 1 (before: 0)") && lines.contains("signed anew"), "{lines}");
        let renewed = second.after(&Change::Renew, None).unwrap();
        assert_eq!(renewed, second, "an epoch stays until the next one");
        assert_eq!(first.after(&Change::NewEpoch, Some(2)), Err(ChangeError::NoRole));
        let last = Holders { epoch: Epoch::MAX, ..first };
        assert!(matches!(last.after(&Change::NewEpoch, None), Err(ChangeError::Epoch(_))));
    }

    #[test]
    fn what_would_lock_the_fleet_up_or_arm_the_controller_is_refused() {
        let (holders, root, operator, online) = holders();
        let refused = |change: Change, threshold| holders.after(&change, threshold).unwrap_err();
        let none = refused(Change::Threshold { role: Role::Operator, number: 0 }, None);
        assert!(matches!(none, ChangeError::NoThreshold { .. }), "{none}");
        assert!(!none.to_string().contains("add a key"), "{none}");
        let remove = |role, key| Change::Remove { role, key };
        assert!(matches!(
            refused(remove(Role::Operator, operator), None),
            ChangeError::Threshold { keys: 0, .. }
        ));
        assert!(matches!(refused(remove(Role::Online, online), None), ChangeError::Threshold { .. }));
        assert!(matches!(refused(remove(Role::Root, root), None), ChangeError::Threshold { .. }));
        for held in [root, operator, online] {
            for role in Role::ALL {
                assert!(matches!(refused(add(role, held, "x"), None), ChangeError::Held { .. }));
            }
        }
        let twin = PublicKey::of(Kind::Security, operator.as_bytes()).unwrap();
        for role in Role::ALL {
            let held = refused(add(role, twin, "x"), None);
            assert!(matches!(held, ChangeError::Held { .. }), "one point under two kinds: {held}");
        }
        let security = PublicKey::of(Kind::Security, key().as_bytes()).unwrap();
        assert!(matches!(refused(add(Role::Online, security, "x"), None), ChangeError::OnlineSecurityKey(_)));
        assert!(holders.after(&add(Role::Operator, security, "x"), Some(2)).is_ok());
        let threshold = |number| Change::Threshold { role: Role::Root, number };
        assert!(matches!(refused(threshold(0), None), ChangeError::NoThreshold { .. }));
        assert!(matches!(refused(threshold(2), None), ChangeError::Threshold { .. }));
        assert_eq!(
            refused(Change::Threshold { role: Role::Online, number: 2 }, None),
            ChangeError::OnlineThreshold
        );
        for name in ["", "a\u{1b}b", &"x".repeat(65)] {
            assert!(
                matches!(refused(add(Role::Operator, key(), name), None), ChangeError::Name(_)),
                "{name:?}"
            );
        }
        let unknown = holders.find(Role::Operator, "bob").unwrap_err().to_string();
        assert!(unknown.contains(&operator.short()), "{unknown}");
        assert!(holders.find(Role::Operator, &operator.hex()[..7]).is_err(), "seven digits are too few");
        let mut many = holders.clone();
        for _ in 1..MOST_KEYS {
            many = many.after(&Change::Add { role: Role::Operator, key: key(), name: None }, None).unwrap();
        }
        let one_more = Change::Add { role: Role::Operator, key: key(), name: None };
        assert!(matches!(many.after(&one_more, None), Err(ChangeError::TooMany { keys: 65, .. })));
    }
}
