//! Walking along a log from some entry on. Every entry is verified; only what was asked for is kept.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use muster_protocol::api::OPERATOR_AUDIT;
use muster_protocol::audit::{
    AuditError, Checkpoint, Entry, LOG_CUT, MAX_ENTRY, MAX_PAGE, Page, origin, verify,
};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::Sha256;
use muster_protocol::signed_cut::SignedCut;

use super::beginning::{Cut, Why};
use crate::api::client::Api;
use crate::terminal::error::WithHint as _;

/// What to do if a log does not fit.
pub const CHANGED: &str =
    "somebody changed the controller's database: keep a copy of it, and find out who could";
/// The action of the entry that a restored controller begins with.
const RESTORED: &str = "controller-restored";

/// What a walk found.
#[derive(Debug, Clone)]
pub struct Followed {
    /// What the log's first entry is chained to: its origin, or the entry that it was cut at.
    pub anchor: Checkpoint,
    /// The number of the newest entry.
    pub last: u64,
    /// The newest entry; `None` if the log ends before the walk began.
    pub head: Option<Checkpoint>,
    /// When that entry was made, by the controller's clock, if this walk verified it.
    pub made: Option<UnixMillis>,
    /// The hashes of the entries that were asked for.
    pub known: BTreeMap<u64, Sha256>,
    /// Whether an operator cut the log at its anchor.
    pub cut: Cut,
    /// The first entry that says so.
    pub told: Option<Entry>,
    /// The newest entry that says that the controller was restored from a backup.
    pub restored: Option<Entry>,
}

/// The walk itself: told of pages, it says what to fetch next.
pub struct Walk<'a> {
    origin: Checkpoint,
    from: u64,
    wanted: &'a BTreeSet<u64>,
    at: Option<Checkpoint>,
    /// Where the log ended when the walk began; what is added meanwhile is for the next walk.
    end: Option<u64>,
    found: Followed,
}

impl<'a> Walk<'a> {
    /// From this entry on. The entry itself is taken as it is, unless the log begins with it; those after
    /// it are verified.
    pub fn new(origin: Checkpoint, from: u64, wanted: &'a BTreeSet<u64>) -> Self {
        let found = Followed {
            anchor: origin,
            last: 0,
            head: None,
            made: None,
            known: BTreeMap::new(),
            cut: Cut::Whole,
            told: None,
            restored: None,
        };
        Self { origin, from, wanted, at: None, end: None, found }
    }

    /// The entries after this number come next.
    pub fn after(&self) -> u64 {
        self.at.map_or(self.from.saturating_sub(1), |at| at.id)
    }

    /// Takes the next page; returns whether more is needed.
    pub fn take(&mut self, page: &Page, each: &mut dyn FnMut(&Entry)) -> Result<bool, AuditError> {
        let end = *self.end.get_or_insert(page.last);
        let mut entries = page.entries.as_slice();
        let before = match (self.at, entries.split_first()) {
            (Some(at), _) => at,
            (None, first) => {
                self.found.anchor = page.anchor.unwrap_or(self.origin);
                self.found.last = end;
                let anchor = self.found.anchor;
                if anchor != self.origin {
                    self.found.cut = Cut::Unproven(Why::Untold);
                }
                self.note(anchor);
                match first {
                    _ if self.from <= anchor.id.saturating_add(1) => anchor,
                    Some((first, rest)) if first.id == self.from => {
                        entries = rest;
                        Checkpoint { id: first.id, hash: first.hash }
                    }
                    Some((first, _)) => return Err(AuditError::Gap { wanted: self.from, found: first.id }),
                    None => return Ok(false),
                }
            }
        };
        self.note(before);
        let at = verify(before, entries)?;
        for entry in entries {
            self.note(Checkpoint { id: entry.id, hash: entry.hash });
            self.found.made = Some(entry.at);
            match entry.action.as_str() {
                RESTORED => self.found.restored = Some(entry.clone()),
                LOG_CUT if self.found.told.is_none() => {
                    let here = SignedCut::of(entry).filter(|cut| cut.asked.through == self.found.anchor);
                    self.found.told = here.map(|_| entry.clone());
                }
                _ => (),
            }
            each(entry);
        }
        self.at = Some(at);
        self.found.head = Some(at);
        self.found.last = at.id.max(end);
        match (at.id < end, page.entries.is_empty()) {
            (true, true) => Err(AuditError::Gap { wanted: at.id.saturating_add(1), found: end }),
            (more, _) => Ok(more),
        }
    }

    pub fn found(self) -> Followed {
        self.found
    }

    fn note(&mut self, at: Checkpoint) {
        if self.wanted.contains(&at.id) {
            self.found.known.insert(at.id, at.hash);
        }
    }
}

/// Walks along the controller's log, from the entry `from` on (0: from where it begins).
pub async fn walk(
    api: &Api,
    fleet: &Sha256,
    from: u64,
    wanted: &BTreeSet<u64>,
    each: &mut dyn FnMut(&Entry),
) -> Result<Followed> {
    let mut walk = Walk::new(origin(fleet), from, wanted);
    loop {
        let page: Page =
            api.get(&format!("{OPERATOR_AUDIT}?after={}&limit={MAX_PAGE}", walk.after())).await?;
        if !walk.take(&page, each).hint(CHANGED)? {
            return Ok(walk.found());
        }
    }
}

/// The number of the newest entry, and where the log begins if it was cut.
pub async fn ends(api: &Api) -> Result<(u64, Option<Checkpoint>)> {
    let page: Page = api.get(&format!("{OPERATOR_AUDIT}?after={MAX_ENTRY}&limit=1")).await?;
    Ok((page.last, page.anchor))
}

#[cfg(test)]
pub mod tests {
    use muster_protocol::audit::hash;

    use super::*;

    /// A log of this fleet with one entry for each detail.
    pub fn log(details: &[&str]) -> (Checkpoint, Vec<Entry>) {
        let origin = origin(&Sha256::of(b"fleet"));
        let (mut before, mut entries) = (origin, Vec::new());
        for (id, detail) in (1..).zip(details) {
            let (by, machine, action) = (None, None, "x".to_owned());
            let detail = (*detail).to_owned();
            let mut entry = Entry { id, at: 0, by, action, machine, detail, hash: origin.hash };
            entry.hash = hash(&before.hash, &entry);
            before = Checkpoint { id, hash: entry.hash };
            entries.push(entry);
        }
        (origin, entries)
    }

    /// A controller with these entries, which were cut at `anchor`, in pages of two.
    pub fn walked(
        entries: &[Entry],
        anchor: Option<Checkpoint>,
        from: u64,
        wanted: &[u64],
    ) -> Result<(Followed, Vec<u64>), AuditError> {
        let wanted = wanted.iter().copied().collect();
        let mut walk = Walk::new(origin(&Sha256::of(b"fleet")), from, &wanted);
        let (mut seen, last) = (Vec::new(), entries.last().map_or(0, |entry| entry.id));
        loop {
            let after = walk.after().max(anchor.map_or(0, |anchor| anchor.id));
            let entries = entries.iter().filter(|entry| entry.id > after).take(2).cloned().collect();
            if !walk.take(&Page { entries, last, anchor }, &mut |entry| seen.push(entry.id))? {
                return Ok((walk.found(), seen));
            }
        }
    }

    #[test]
    fn a_log_is_followed_from_any_entry_on_and_only_what_was_asked_for_is_kept() {
        let (origin, entries) = log(&["a", "b", "c", "d", "e"]);
        let at = |id: usize| entries[id - 1].hash;
        let (found, seen) = walked(&entries, None, 0, &[0, 3, 9]).unwrap();
        assert_eq!((found.anchor, found.last, seen), (origin, 5, vec![1, 2, 3, 4, 5]));
        assert_eq!(found.known, BTreeMap::from([(0, origin.hash), (3, at(3))]));
        let (found, seen) = walked(&entries, None, 3, &[2, 3, 5]).unwrap();
        assert_eq!((found.head, seen), (Some(Checkpoint { id: 5, hash: at(5) }), vec![4, 5]));
        assert_eq!(found.known, BTreeMap::from([(3, at(3)), (5, at(5))]));
        let (found, seen) = walked(&entries, None, 9, &[9]).unwrap();
        assert_eq!((found.head, found.last, seen), (None, 5, vec![]));
        let (found, _) = walked(&[], None, 0, &[]).unwrap();
        assert_eq!((found.head, found.last), (Some(origin), 0));
    }

    #[test]
    fn a_log_that_was_cut_begins_at_its_anchor() {
        let (_, entries) = log(&["a", "b", "c", "d", "e"]);
        let anchor = Checkpoint { id: 2, hash: entries[1].hash };
        for from in [0, 1, 2, 3] {
            let (found, seen) = walked(&entries, Some(anchor), from, &[2]).unwrap();
            assert_eq!((found.anchor, seen), (anchor, vec![3, 4, 5]), "{from}");
            assert_eq!(found.known, BTreeMap::from([(2, anchor.hash)]));
        }
        assert_eq!(walked(&entries, Some(anchor), 0, &[]).unwrap().0.cut, Cut::Unproven(Why::Untold));
        let forged = Checkpoint { id: 2, hash: Sha256::of(b"x") };
        assert_eq!(walked(&entries, Some(forged), 0, &[]).unwrap_err(), AuditError::Changed(3));
    }

    #[test]
    fn entries_that_were_left_out_or_changed_end_the_walk() {
        let (_, mut entries) = log(&["a", "b", "c", "d", "e"]);
        let without: Vec<Entry> = entries.iter().filter(|entry| entry.id != 3).cloned().collect();
        assert_eq!(walked(&without, None, 0, &[]).unwrap_err(), AuditError::Gap { wanted: 3, found: 4 });
        assert_eq!(walked(&without, None, 3, &[]).unwrap_err(), AuditError::Gap { wanted: 3, found: 4 });
        let wanted = BTreeSet::new();
        let mut walk = Walk::new(origin(&Sha256::of(b"fleet")), 0, &wanted);
        let page = Page { entries: vec![], last: 5, anchor: None };
        assert_eq!(walk.take(&page, &mut |_| ()), Err(AuditError::Gap { wanted: 1, found: 5 }));
        entries[3].detail = "D".into();
        assert_eq!(walked(&entries, None, 2, &[]).unwrap_err(), AuditError::Changed(4));
    }
}
