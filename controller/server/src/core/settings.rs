//! What controllers on one database must have the same. Each tells the others a number for each of these
//! settings, which says whether theirs differ, and nothing else.

use std::collections::BTreeMap;

/// A setting that all have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    BearerKeys,
    Blobs,
    Limits,
}

impl Setting {
    pub const ALL: [Self; 3] = [Self::BearerKeys, Self::Blobs, Self::Limits];

    /// Its name in controller.toml.
    pub fn name(self) -> &'static str {
        match self {
            Self::BearerKeys => "bearer_keys",
            Self::Blobs => "blobs",
            Self::Limits => "limits",
        }
    }

    /// What is wrong if it differs, and what to do.
    pub fn complaint(self) -> &'static str {
        match self {
            Self::BearerKeys => {
                "bearer_keys is not that of another controller on this database, so a machine that moves \
                 between them has to check in anew each time: copy the file of one to all others, and \
                 restart those"
            }
            Self::Blobs => {
                "blobs is not that of another controller on this database, so files of the cache that one \
                 has are missing at the other: name the same bucket in each controller.toml"
            }
            Self::Limits => {
                "[limits] are not those of another controller on this database, so together they allow \
                 something else than each says: write the same rates, what is kept, and the number of \
                 controllers in each controller.toml"
            }
        }
    }
}

/// What one controller tells; `None` for what is its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prints(BTreeMap<Setting, i32>);

impl Prints {
    pub fn new(of: impl Fn(Setting) -> Option<i32>) -> Self {
        Self(Setting::ALL.into_iter().filter_map(|setting| Some((setting, of(setting)?))).collect())
    }

    pub fn get(&self, setting: Setting) -> Option<i32> {
        self.0.get(&setting).copied()
    }
}

/// What a controller on the database has told, perhaps this one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub setting: Setting,
    pub print: i32,
    /// Where it connects from.
    pub place: String,
}

/// The settings that differ, and at whose controllers. `accepts` says whether the bearers of whoever told
/// this number are accepted here: while a key is replaced, two controllers may seal with different ones.
pub fn apart(own: &Prints, accepts: impl Fn(i32) -> bool, told: &[Told]) -> BTreeMap<Setting, Vec<String>> {
    let mut apart: BTreeMap<Setting, Vec<String>> = BTreeMap::new();
    for Told { setting, print, place } in told {
        let Some(ours) = own.get(*setting) else { continue };
        let same = match setting {
            Setting::BearerKeys => accepts(*print),
            Setting::Blobs | Setting::Limits => ours == *print,
        };
        if !same {
            apart.entry(*setting).or_default().push(place.clone());
        }
    }
    apart
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(setting: Setting, print: i32) -> Told {
        Told { setting, print, place: format!("10.0.0.{print}") }
    }

    #[test]
    fn what_another_controller_has_otherwise_is_named_with_its_place() {
        let own = Prints::new(|setting| (setting != Setting::Blobs).then_some(1));
        let others = [
            told(Setting::BearerKeys, 1),
            told(Setting::BearerKeys, 2),
            told(Setting::BearerKeys, 3),
            told(Setting::Blobs, 4),
            told(Setting::Limits, 1),
        ];
        let found = apart(&own, |print| print < 3, &others);
        assert_eq!(found, BTreeMap::from([(Setting::BearerKeys, vec!["10.0.0.3".to_owned()])]));
        let found = apart(&own, |_| true, &[told(Setting::Limits, 7)]);
        assert_eq!(found, BTreeMap::from([(Setting::Limits, vec!["10.0.0.7".to_owned()])]));
    }
}
