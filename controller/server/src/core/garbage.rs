//! Which files of the cache may be removed, and when.
//!
//! A file that no signed generation needs is *condemned* first: from then on operators are told that the
//! cache does not have it, so that nobody publishes what relies on it; whoever needs it uploads it again,
//! which spares it. It is removed a grace period later, by when whoever was told of it before has published,
//! if nothing needs it then. So no answer that a running `nix copy` got becomes untrue under it, however
//! many controllers answer.

use muster_protocol::cache::GRACE_SECONDS;
use muster_protocol::clock::UnixMillis;

use super::audit::{AuditContext, NewEntry};
use super::change::{Change, Decided};
pub use super::rows::{Mark, Marks};

/// After this time, in milliseconds, no controller is in the middle of removing the file any more: one that
/// was has ended.
const REMOVED_BY: i64 = 3_600_000;

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum GarbageRefusal {
    #[error("{0} is being removed from the cache, which nothing needed: repeat in a moment")]
    Removing(String),
}

/// The earliest time at which a file may have come, or have been condemned, and still be kept.
pub fn grace(now: UnixMillis) -> UnixMillis {
    now.saturating_sub(GRACE_SECONDS * 1000)
}

fn marked(names: Vec<String>, mark: Option<Mark>) -> Vec<Change> {
    if names.is_empty() { vec![] } else { vec![Change::CacheMarked { names, mark }] }
}

/// An operator uploads these files, or one that relies on them.
pub fn upload(marks: &Marks, now: UnixMillis) -> Result<Decided<()>, GarbageRefusal> {
    let removing = |mark: &Mark| mark.removing && mark.at > now.saturating_sub(REMOVED_BY);
    if let Some((name, _)) = marks.iter().find(|(_, mark)| removing(mark)) {
        return Err(GarbageRefusal::Removing(name.clone()));
    }
    Ok(Decided { changes: marked(marks.keys().cloned().collect(), None), answer: () })
}

/// Something needs these files after all.
pub fn spare(marks: &Marks) -> Decided<()> {
    let names = marks.iter().filter(|(_, mark)| !mark.removing).map(|(name, _)| name.clone()).collect();
    Decided { changes: marked(names, None), answer: () }
}

/// What becomes of files that nothing needs and that are older than the grace period.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Sentence {
    /// Condemned now.
    pub condemned: Vec<String>,
    /// To be removed by the caller, now.
    pub removed: Vec<String>,
    /// Condemned before, and not long enough ago.
    pub waiting: Vec<String>,
}

pub fn sentence(names: &[String], marks: &Marks, now: UnixMillis) -> Decided<Sentence> {
    let mut sentence = Sentence::default();
    for name in names {
        let list = match marks.get(name) {
            None => &mut sentence.condemned,
            Some(mark) if mark.removing && mark.at <= now.saturating_sub(REMOVED_BY) => &mut sentence.removed,
            Some(mark) if !mark.removing && mark.at <= grace(now) => &mut sentence.removed,
            Some(_) => &mut sentence.waiting,
        };
        list.push(name.clone());
    }
    let mut changes = marked(sentence.condemned.clone(), Some(Mark { at: now, removing: false }));
    changes.extend(marked(sentence.removed.clone(), Some(Mark { at: now, removing: true })));
    Decided { changes, answer: sentence }
}

/// These files are gone.
pub fn removed(names: &[String]) -> Decided<()> {
    Decided { changes: marked(names.to_vec(), None), answer: () }
}

/// The entry of a finished run.
pub fn collected(detail: &str, context: &AuditContext<'_>) -> Decided<()> {
    let entry = NewEntry::by(context, "cache-collected", detail);
    Decided { changes: vec![Change::Audited(entry)], answer: () }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = 1_800_000_000_000;
    const DAY: i64 = GRACE_SECONDS * 1000;

    fn marks(of: &[(&str, i64, bool)]) -> Marks {
        of.iter()
            .map(|(name, at, removing)| ((*name).to_owned(), Mark { at: *at, removing: *removing }))
            .collect()
    }
    fn names(of: &[&str]) -> Vec<String> {
        of.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn a_file_is_condemned_first_and_removed_a_grace_period_later() {
        let stored = marks(&[
            ("old", NOW - DAY, false),
            ("fresh", NOW - DAY + 1, false),
            ("going", NOW - 1, true),
            ("stuck", NOW - REMOVED_BY, true),
        ]);
        let all = names(&["new", "old", "fresh", "going", "stuck"]);
        let Decided { changes, answer } = sentence(&all, &stored, NOW);
        assert_eq!(answer.condemned, ["new"]);
        assert_eq!(answer.removed, ["old", "stuck"]);
        assert_eq!(answer.waiting, ["fresh", "going"]);
        let mark = |removing| Some(Mark { at: NOW, removing });
        assert_eq!(
            changes,
            [
                Change::CacheMarked { names: names(&["new"]), mark: mark(false) },
                Change::CacheMarked { names: names(&["old", "stuck"]), mark: mark(true) },
            ]
        );
    }

    #[test]
    fn an_upload_spares_a_condemned_file_and_waits_for_one_that_is_being_removed() {
        let spared =
            upload(&marks(&[("a", NOW - 2 * DAY, false), ("b", NOW - REMOVED_BY, true)]), NOW).unwrap();
        assert_eq!(spared.changes, [Change::CacheMarked { names: names(&["a", "b"]), mark: None }]);
        assert_eq!(upload(&Marks::new(), NOW).unwrap().changes, []);
        let removing = upload(&marks(&[("a", NOW - 1, true)]), NOW);
        assert_eq!(removing, Err(GarbageRefusal::Removing("a".into())));
        assert_eq!(spare(&marks(&[("a", NOW - 1, true)])).changes, []);
    }
}
