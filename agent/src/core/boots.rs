//! Whether a boot fell back from the system that it was to bring up: a function of what the boot loader's
//! entries and variables say (systemd's Automatic Boot Assessment).
//!
//! An entry with boot counting is `NAME+LEFT.conf` or `NAME+LEFT-DONE.conf`. The boot loader takes one from
//! LEFT before it tries the entry, and skips one that has none left; `systemd-bless-boot` removes the counter
//! once a boot of it is complete. Nothing here, or anywhere in the agent, blesses an entry or counts.

use muster_protocol::ids::StorePath;

/// The most characters of an entry's name that are repeated in a message.
const MAX_NAME: usize = 120;

/// One entry of the boot loader.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name of its file without the counter.
    pub name: String,
    /// The system it boots, where that can be told.
    pub system: Option<StorePath>,
    /// `None` for one that was blessed, or was never counted.
    pub tries: Option<Tries>,
}

/// The counter in an entry's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tries {
    pub left: u32,
    pub done: u32,
}

/// What was read about the last boot.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BootFacts {
    pub entries: Vec<Entry>,
    /// The entry that the boot loader booted, without its counter (`LoaderEntrySelected`).
    pub selected: Option<String>,
    /// Whether the boot loader counts: it said which file it counted in (`LoaderBootCountPath`).
    pub counts: bool,
    /// The generations of the system profile, by number.
    pub generations: Vec<(u64, StorePath)>,
}

/// What is known about a system that a boot did not bring up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Assessment {
    /// All its tries failed.
    Bad { entry: String, done: u32 },
    /// It was tried and never finished booting; another entry was booted next.
    Tried { entry: String, tries: Tries, selected: String },
    /// It was not tried: another entry was booted, and its counter was not touched.
    Untried { selected: String },
    /// Another entry was booted; whether this one boots is not counted.
    NotCounted { selected: String },
    /// It booted before: its entry was blessed.
    Blessed { selected: String },
    /// The boot loader says nothing about it.
    Unknown,
}

impl Entry {
    /// From the name of its file, with its ending.
    pub fn new(file: &str, system: Option<StorePath>) -> Self {
        let (name, tries) = counter(file);
        Self { name, system, tries }
    }
}

/// The name without its counter, and the counter: `a+3-1.conf` is `a.conf` with 3 left and 1 done.
pub fn counter(file: &str) -> (String, Option<Tries>) {
    let whole = || (file.to_owned(), None);
    let Some((stem, ending)) = file.rsplit_once('.') else { return whole() };
    let Some((name, count)) = stem.rsplit_once('+') else { return whole() };
    let (left, done) = count.split_once('-').unwrap_or((count, "0"));
    let number = |text: &str| -> Option<u32> {
        let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        digits.then(|| text.parse().unwrap_or(u32::MAX))
    };
    match (number(left), number(done)) {
        (Some(left), Some(done)) if !name.is_empty() => {
            (format!("{name}.{ending}"), Some(Tries { left, done }))
        }
        _ => whole(),
    }
}

/// What the boot loader says about `new`, which a boot was to bring up and did not.
pub fn assess(new: &StorePath, facts: &BootFacts) -> Assessment {
    let own: Vec<&Entry> = facts.entries.iter().filter(|entry| entry.system.as_ref() == Some(new)).collect();
    for entry in &own {
        if let Some(Tries { left: 0, done }) = entry.tries {
            return Assessment::Bad { entry: entry.name.clone(), done };
        }
    }
    let other = facts.selected.as_ref().filter(|selected| own.iter().all(|entry| entry.name != **selected));
    let Some(selected) = other.filter(|_| !own.is_empty()).cloned() else { return Assessment::Unknown };
    let counted = own.iter().filter_map(|entry| Some((entry, entry.tries?)));
    if let Some((entry, tries)) = counted.max_by_key(|(_, tries)| tries.done) {
        return match tries.done {
            0 => Assessment::Untried { selected },
            _ => Assessment::Tried { entry: entry.name.clone(), tries, selected },
        };
    }
    match facts.counts || facts.entries.iter().any(|entry| entry.tries.is_some()) {
        true => Assessment::Blessed { selected },
        false => Assessment::NotCounted { selected },
    }
}

impl Assessment {
    /// In words, for the report.
    pub fn words(&self) -> String {
        let short = |name: &str| name.chars().take(MAX_NAME).collect::<String>();
        match self {
            Self::Bad { entry, done } => {
                format!("its boot entry {} has no tries left after {done}", short(entry))
            }
            Self::Tried { entry, tries, selected } => format!(
                "its boot entry {} was tried without success ({} done, {} left), and {} was booted",
                short(entry),
                tries.done,
                tries.left,
                short(selected)
            ),
            Self::Untried { selected } => {
                format!("its boot entry was not tried: somebody chose another one, {}", short(selected))
            }
            Self::NotCounted { selected } => format!(
                "another boot entry was booted, {}: somebody chose it, or the boot loader did",
                short(selected)
            ),
            Self::Blessed { selected } => {
                format!("its boot entry booted well before: somebody chose another one, {}", short(selected))
            }
            Self::Unknown => "the boot loader does not say why".to_owned(),
        }
    }
}

/// A machine that came up on another system than the confirmed one, as observed.
#[derive(Debug, Clone, Copy)]
pub struct CameUp<'a> {
    /// The confirmed system.
    pub confirmed: &'a StorePath,
    /// The boot in which it was last seen running, and the present one.
    pub seen_in: Option<&'a str>,
    pub boot: &'a str,
    /// Whether a boot has brought it up before.
    pub booted: bool,
    pub running: &'a StorePath,
    pub profile: Option<&'a StorePath>,
}

impl CameUp<'_> {
    /// Whether it is worth asking the boot loader: this is another boot, and it was to bring the confirmed
    /// system.
    pub fn is_strange(&self) -> bool {
        self.running != self.confirmed
            && self.profile == Some(self.confirmed)
            && self.seen_in.is_some_and(|seen| seen != self.boot)
    }

    /// Why the confirmed system is taken for one that did not boot, or `None` where nothing proves it: then
    /// it is drift, as if somebody had switched the machine.
    pub fn judge(&self, facts: &BootFacts) -> Option<String> {
        if !self.is_strange() || !self.is_earlier(facts) {
            return None;
        }
        let found = assess(self.confirmed, facts);
        let proves = match found {
            Assessment::Bad { .. } | Assessment::Tried { .. } => true,
            // Whoever chooses another entry of a system that boots has not shown that it does not.
            Assessment::NotCounted { .. } => !self.booted,
            Assessment::Untried { .. } | Assessment::Blessed { .. } | Assessment::Unknown => false,
        };
        proves.then(|| format!("it was confirmed, and a boot did not bring it up: {}", found.words()))
    }

    /// Whether what runs is an earlier generation of the profile than the confirmed system.
    fn is_earlier(&self, facts: &BootFacts) -> bool {
        let of = |system: &StorePath| -> Vec<u64> {
            let same = facts.generations.iter().filter(|(_, known)| known == system);
            same.map(|(number, _)| *number).collect()
        };
        let (first, last) = (of(self.running).into_iter().min(), of(self.confirmed).into_iter().max());
        first.is_some_and(|first| last.is_some_and(|last| first < last))
    }
}

#[cfg(test)]
mod tests {
    use super::super::records::tests::path;
    use super::*;

    fn entry(file: &str, system: &str) -> Entry {
        Entry::new(file, Some(path(system)))
    }

    fn facts(new: &str, selected: &str) -> BootFacts {
        BootFacts {
            entries: vec![entry("nixos-a.conf", "old"), entry(new, "new")],
            selected: Some(selected.to_owned()),
            counts: false,
            generations: vec![(4, path("old")), (5, path("new"))],
        }
    }

    #[test]
    fn counters_are_read_as_systemd_writes_them_and_nothing_else_is_one() {
        let tries = |left, done| Some(Tries { left, done });
        for (file, name, expected) in [
            ("nixos-a+3.conf", "nixos-a.conf", tries(3, 0)),
            ("nixos-a+2-1.conf", "nixos-a.conf", tries(2, 1)),
            ("nixos-generation-7+0-3.efi", "nixos-generation-7.efi", tries(0, 3)),
            ("nixos-a.conf", "nixos-a.conf", None),
            ("a+b+1-2.conf", "a+b.conf", tries(1, 2)),
            ("a+99999999999.conf", "a.conf", tries(u32::MAX, 0)),
            ("a+.conf", "a+.conf", None),
            ("a+x-1.conf", "a+x-1.conf", None),
            ("a+1-.conf", "a+1-.conf", None),
            ("+3.conf", "+3.conf", None),
            ("a+-1.conf", "a+-1.conf", None),
            ("no ending", "no ending", None),
        ] {
            assert_eq!(counter(file), (name.to_owned(), expected), "{file}");
        }
    }

    #[test]
    fn what_the_boot_loader_says_is_told_apart() {
        let said = |new: &str, selected: &str| assess(&path("new"), &facts(new, selected));
        assert!(matches!(said("nixos-b+0-3.conf", "nixos-a.conf"), Assessment::Bad { done: 3, .. }));
        assert!(matches!(said("nixos-b+2-1.conf", "nixos-a.conf"), Assessment::Tried { .. }));
        assert!(matches!(said("nixos-b+3.conf", "nixos-a.conf"), Assessment::Untried { .. }));
        assert!(matches!(said("nixos-b.conf", "nixos-a.conf"), Assessment::NotCounted { .. }));
        assert_eq!(said("nixos-b.conf", "nixos-b.conf"), Assessment::Unknown);
        let counted = BootFacts { counts: true, ..facts("nixos-b.conf", "nixos-a.conf") };
        assert!(matches!(assess(&path("new"), &counted), Assessment::Blessed { .. }));
        assert_eq!(assess(&path("elsewhere"), &counted), Assessment::Unknown);
        assert_eq!(assess(&path("new"), &BootFacts::default()), Assessment::Unknown);
        let words = said("nixos-b+0-3.conf", "nixos-a.conf").words();
        assert!(words.contains("nixos-b.conf has no tries left after 3"), "{words}");
    }

    #[test]
    fn a_confirmed_system_did_not_boot_only_where_the_boot_loader_shows_it() {
        let (new, old, other) = (path("new"), path("old"), path("other"));
        let came_up = CameUp {
            confirmed: &new,
            seen_in: Some("b1"),
            boot: "b2",
            booted: false,
            running: &old,
            profile: Some(&new),
        };
        let bad = facts("nixos-b+0-3.conf", "nixos-a.conf");
        let why = came_up.judge(&bad).unwrap();
        assert!(why.contains("did not bring it up") && why.contains("no tries left"), "{why}");
        let booted = CameUp { booted: true, ..came_up };
        let same_boot = CameUp { boot: "b1", ..came_up };
        let unseen = CameUp { seen_in: None, ..came_up };
        let set_elsewhere = CameUp { profile: Some(&old), ..came_up };
        let unknown_system = CameUp { running: &other, ..came_up };
        let as_it_should = CameUp { running: &new, ..came_up };
        for (came_up, facts, proves) in [
            (booted, &bad, true),
            (came_up, &facts("nixos-b+2-1.conf", "nixos-a.conf"), true),
            (came_up, &facts("nixos-b.conf", "nixos-a.conf"), true),
            (booted, &facts("nixos-b.conf", "nixos-a.conf"), false),
            (came_up, &facts("nixos-b+3.conf", "nixos-a.conf"), false),
            (came_up, &BootFacts { counts: true, ..facts("nixos-b.conf", "nixos-a.conf") }, false),
            (came_up, &facts("nixos-b.conf", "nixos-b.conf"), false),
            (same_boot, &bad, false),
            (unseen, &bad, false),
            (set_elsewhere, &bad, false),
            (unknown_system, &bad, false),
            (as_it_should, &bad, false),
        ] {
            assert_eq!(came_up.judge(facts).is_some(), proves, "{came_up:?} {facts:?}");
        }
        // A later generation that somebody else made is not one that the boot loader fell back to.
        let later = BootFacts { generations: vec![(5, path("new")), (6, path("old"))], ..bad };
        assert_eq!(came_up.judge(&later), None);
    }
}
