//! Which of a machine's generations it goes back to, and the new generation that it becomes. Pure.

use std::collections::BTreeMap;

use muster_protocol::ids::{Epoch, Generation, MachineName, Sha256, StorePath};
use muster_protocol::machine::can_take;
use muster_protocol::operator::{HistoryEntry, MachineView, Publication};
use muster_protocol::plan::FEATURE;
use muster_protocol::policy::Policy;
use muster_protocol::report::{Event, EventKind};
use muster_protocol::target::Target;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::metadata::Root;
use muster_protocol::tuf::repository::{CheckedPublication, check_draft, check_publication};

use crate::release::unread;
use crate::terminal::error::Hint;
use crate::terminal::list::listed;

/// The longest part of an older message that is repeated, in characters.
const MAX_MESSAGE: usize = 200;

/// Why there is nothing to go back to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoWay {
    #[error("nothing was published for {0} yet")]
    Nothing(MachineName),
    #[error("{machine} confirmed no other system before generation {now}; the controller holds {held}")]
    NoneConfirmed { machine: MachineName, now: Generation, held: String },
    #[error("generation {wanted} of {machine} is not held; the controller holds {held}")]
    NotHeld { machine: MachineName, wanted: Generation, held: String },
    #[error("{machine} was given the system of generation {wanted} last, as generation {now}")]
    Same { machine: MachineName, wanted: Generation, now: Generation },
    #[error("{machine} confirmed the same system before this rollout, as generation {was}")]
    NothingNew { machine: MachineName, was: Generation },
    #[error("generation {wanted} of {machine} is of an earlier epoch, whose signatures were disowned")]
    Disowned { machine: MachineName, wanted: Generation },
    #[error("generation {wanted} of {machine} is for another machine than there is now: {why}")]
    Other { machine: MachineName, wanted: Generation, why: String },
    #[error("generation {wanted} of {machine} says something under '{path}' that this muster does not know")]
    Unread { machine: MachineName, wanted: Generation, path: String },
    #[error("what the controller holds of generation {wanted} of {machine} does not fit together: {why}")]
    Damaged { machine: MachineName, wanted: Generation, why: String },
}

impl NoWay {
    /// The error, with what to do about it.
    pub fn with_hint(self) -> anyhow::Error {
        let hint = match &self {
            Self::Nothing(machine) => format!("publish something with `muster update {machine}`"),
            Self::NoneConfirmed { machine, now, held } if *held == now.to_string() => {
                format!("publish what it should run with `muster update {machine}`")
            }
            Self::NoneConfirmed { machine, .. } => format!(
                "name one with `muster rollback {machine} --to GENERATION`; `muster history {machine}` shows \
                 what became of them. Or publish what it should run with `muster update {machine}`"
            ),
            Self::NotHeld { machine, .. } | Self::Same { machine, .. } => format!(
                "see `muster history {machine}`, and name another with \
                 `muster rollback {machine} --to GENERATION`"
            ),
            Self::NothingNew { machine, .. } => {
                format!("it keeps it; `muster rollback {machine}` takes it back to the system before that")
            }
            Self::Disowned { machine, .. } | Self::Other { machine, .. } => {
                format!("publish what it should run with `muster update {machine}`")
            }
            Self::Unread { .. } => "use a muster as new as the one that signed it".to_owned(),
            Self::Damaged { .. } => {
                "sign nothing that the controller says before you know why; `muster audit` shows who did what"
                    .to_owned()
            }
        };
        anyhow::Error::new(self).context(Hint(hint))
    }
}

/// Which generation a machine is wanted back on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The newest one that the machine confirmed, and did not go back from later, and that is another system
    /// than the one that it was given last.
    OtherSystem,
    /// The same, unless the machine had that system before the rollout of this plan: then nothing is undone.
    Before(Sha256),
    Generation(Generation),
}

/// The generation to go back to. `history` has the newest first.
pub fn choose<'a>(
    machine: &MachineName,
    history: &'a [HistoryEntry],
    epoch: Epoch,
    to: Wanted,
) -> Result<&'a HistoryEntry, NoWay> {
    let machine = || machine.clone();
    let number = |entry: &HistoryEntry| entry.published.target.generation;
    let Some(now) = history.first() else { return Err(NoWay::Nothing(machine())) };
    let held = || listed(history.iter().map(|entry| number(entry).to_string()));
    let is_other = |entry: &&HistoryEntry| {
        let (own, last) = (&entry.published.target, &now.published.target);
        (&own.derivation, &own.output) != (&last.derivation, &last.output)
    };
    let Wanted::Generation(wanted) = to else {
        let confirmed = confirmed(history);
        let mut older = history.iter().skip(1).filter(|entry| {
            number(entry).epoch() == epoch
                && is_confirmed(&entry.events) == Some(true)
                && confirmed.get(&entry.published.target.derivation) == Some(&true)
        });
        let is_before = |entry: &HistoryEntry| match to {
            Wanted::Before(plan) => entry.published.target.rollout.is_none_or(|place| place.plan != plan),
            _ => false,
        };
        return match older.find(|entry| is_other(entry) || is_before(entry)) {
            Some(entry) if !is_other(&entry) => {
                Err(NoWay::NothingNew { machine: machine(), was: number(entry) })
            }
            Some(entry) => Ok(entry),
            None => Err(NoWay::NoneConfirmed { machine: machine(), now: number(now), held: held() }),
        };
    };
    if wanted.epoch() < epoch {
        return Err(NoWay::Disowned { machine: machine(), wanted });
    }
    let found = history.iter().find(|entry| number(entry) == wanted);
    let found = found.ok_or_else(|| NoWay::NotHeld { machine: machine(), wanted, held: held() })?;
    if !is_other(&found) {
        return Err(NoWay::Same { machine: machine(), wanted, now: number(now) });
    }
    Ok(found)
}

/// Whether the last word of these events on their generation is that it was confirmed; `None` if nothing was
/// decided.
fn is_confirmed(events: &[Event]) -> Option<bool> {
    events.iter().rev().find_map(|event| match event.kind {
        EventKind::Confirmed { .. } => Some(true),
        EventKind::RolledBack { .. } | EventKind::Failed { .. } | EventKind::NeedsHuman { .. } => Some(false),
        _ => None,
    })
}

/// The last word on each derivation, under whatever number.
fn confirmed(history: &[HistoryEntry]) -> BTreeMap<&StorePath, bool> {
    let mut known = BTreeMap::new();
    for entry in history {
        if let Some(good) = is_confirmed(&entry.events) {
            known.entry(&entry.published.target.derivation).or_insert(good);
        }
    }
    known
}

/// Whether the machine may have this derivation in quarantine, and refuse it.
pub fn is_doubtful(history: &[HistoryEntry], chosen: &HistoryEntry) -> bool {
    confirmed(history).get(&chosen.published.target.derivation) == Some(&false)
}

/// An older generation's documents, checked.
#[derive(Debug)]
pub struct Old {
    pub checked: CheckedPublication,
    /// Why machines would refuse them today, if they would. Their parts fit together all the same.
    pub unsigned: Option<TufError>,
}

/// Checks an older generation's documents: that they belong together and to this machine, that they are what
/// the history says, and whether today's operators signed them. That they have expired does not count.
pub fn check(
    root: &Root,
    view: &MachineView,
    entry: &HistoryEntry,
    publication: &Publication,
) -> Result<Old, NoWay> {
    let (machine, wanted) = (&view.machine, entry.published.target.generation);
    let damaged = |why: String| NoWay::Damaged { machine: machine.clone(), wanted, why };
    let target = &entry.published.target;
    let fits = can_take((view.class, &view.system), target.class, &target.system);
    fits.map_err(|why| NoWay::Other { machine: machine.clone(), wanted, why: why.to_string() })?;
    let (checked, unsigned) = match check_publication(root, machine, view.class, publication, 0) {
        Ok(checked) => (checked, None),
        Err(why) => match check_draft(root, machine, view.class, publication, 0) {
            Ok(checked) => (checked, Some(why)),
            Err(why) => return Err(damaged(why.to_string())),
        },
    };
    if checked.target != *target {
        return Err(damaged("the history says something else than what was signed".to_owned()));
    }
    let unread = unread::of_target(publication.target.as_bytes()).map_err(|why| damaged(why.to_string()))?;
    match unread {
        Some(path) => Err(NoWay::Unread { machine: machine.clone(), wanted, path }),
        None => Ok(Old { checked, unsigned }),
    }
}

/// The new generation: the older system with its checks and terms. Every field is named here, so that a new
/// one is thought of.
pub fn again(old: &Target, generation: Generation, message: Option<&str>, urgent: bool) -> Target {
    Target {
        machine: old.machine.clone(),
        class: old.class,
        generation,
        system: old.system.clone(),
        derivation: old.derivation.clone(),
        output: old.output.clone(),
        action: old.action,
        deadline_seconds: old.deadline_seconds,
        checks: old.checks.clone(),
        trusted_nix_keys: old.trusted_nix_keys.clone(),
        policy: Policy { urgent: urgent || old.policy.urgent, ..old.policy.clone() },
        // It goes to its machine alone, and at once: no plan's gate is asked.
        rollout: None,
        requires: old.requires.iter().filter(|word| *word != FEATURE).cloned().collect(),
        message: Some(words(old, message)),
        evaluation: old.evaluation.clone(),
    }
}

/// `rollback to 9: …`, with the operator's words, or else the older generation's.
fn words(old: &Target, message: Option<&str>) -> String {
    let what = format!("rollback to {}", old.generation);
    match message.or(old.message.as_deref()) {
        Some(message) => format!("{what}: {}", message.chars().take(MAX_MESSAGE).collect::<String>()),
        None => what,
    }
}

#[cfg(test)]
mod tests {
    use muster_protocol::keys::SecretKey;
    use muster_protocol::plan::Place;
    use muster_protocol::tuf::repository::{RootSpec, sign_generation, sign_root};

    use super::*;
    use crate::release::select::tests::fleet;

    const HASH: &str = "0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kp";

    fn number(number: u64) -> Generation {
        Generation::new(number).unwrap()
    }
    fn tin() -> MachineName {
        "cinnabar".parse().unwrap()
    }

    /// A generation with the system of this letter, and what became of it.
    fn entry(generation: u64, system: char, told: &[&str]) -> HistoryEntry {
        let by = SecretKey::generate().unwrap().public();
        let events = told.iter().map(|kind| {
            serde_json::json!({ "seq": 1, "at": 1, "kind": kind, "ms": 1, "reason": "did-not-boot",
                "running": format!("/nix/store/{HASH}{system}-s"), "quarantined": true, "detail": "" })
        });
        let entry = serde_json::json!({ "events": events.collect::<Vec<_>>(), "published": {
            "at": 0, "by": by, "expires": 0, "target": {
                "machine": "cinnabar", "class": "nixos", "generation": generation,
                "system": "x86_64-linux", "message": "new kernel",
                "derivation": format!("/nix/store/{HASH}{system}-s.drv"),
                "output": format!("/nix/store/{HASH}{system}-s") } } });
        serde_json::from_value(entry).unwrap()
    }

    fn chosen(history: &[HistoryEntry], to: Option<u64>) -> Result<u64, NoWay> {
        let wanted = to.map_or(Wanted::OtherSystem, |to| Wanted::Generation(number(to)));
        choose(&tin(), history, Epoch::default(), wanted).map(|entry| entry.published.target.generation.get())
    }

    #[test]
    fn the_newest_other_system_that_was_confirmed_and_kept_is_chosen() {
        let history = [
            entry(12, 'd', &["confirmed"]),
            entry(11, 'd', &["confirmed"]),
            entry(10, 'c', &["confirmed", "rolled-back"]),
            entry(9, 'b', &["rolled-back", "confirmed"]),
            entry(8, 'a', &["confirmed"]),
            entry(7, 'z', &[]),
        ];
        assert_eq!(chosen(&history, None), Ok(9), "11 is the same, and 10 did not boot");
        assert_eq!(chosen(&history, Some(8)), Ok(8));
        assert_eq!(chosen(&history, Some(10)), Ok(10), "whoever names it gets it");
        assert!(is_doubtful(&history, &history[2]) && !is_doubtful(&history, &history[3]));
        // What failed under a later number is not good for what it was before.
        let again = [entry(12, 'd', &[]), entry(11, 'b', &["rolled-back"]), entry(9, 'b', &["confirmed"])];
        assert!(matches!(chosen(&again, None), Err(NoWay::NoneConfirmed { .. })));
    }

    #[test]
    fn what_cannot_be_gone_back_to_is_refused_with_what_is_held() {
        let history = [entry(12, 'd', &["confirmed"]), entry(11, 'd', &["confirmed"]), entry(4, 'a', &[])];
        let refused = |to| chosen(&history, to).unwrap_err();
        assert!(refused(None).to_string().contains("the controller holds 12, 11, 4"), "{}", refused(None));
        assert!(matches!(refused(Some(9)), NoWay::NotHeld { wanted, .. } if wanted == number(9)));
        assert!(matches!(refused(Some(11)), NoWay::Same { .. }));
        assert_eq!(chosen(&[], None), Err(NoWay::Nothing(tin())));
        let later = Wanted::Generation("1.4".parse().unwrap());
        let later = choose(&tin(), &history, Epoch::default(), later);
        assert!(matches!(later, Err(NoWay::NotHeld { .. })), "no such epoch has begun: {later:?}");
        let hint = |why: NoWay| crate::terminal::error::render(&why.with_hint());
        assert!(hint(refused(None)).contains("muster rollback cinnabar --to"));
        let only = chosen(&history[..1], None).unwrap_err();
        assert!(!hint(only.clone()).contains("--to") && hint(only).contains("muster update cinnabar"));
        let disowned = choose(&tin(), &history, Epoch::new(1).unwrap(), Wanted::Generation(number(4)));
        assert!(matches!(disowned, Err(NoWay::Disowned { .. })));
        let disowned = choose(&tin(), &history, Epoch::new(1).unwrap(), Wanted::OtherSystem);
        assert!(matches!(disowned, Err(NoWay::NoneConfirmed { .. })));
    }

    #[test]
    fn undoing_a_rollout_leaves_a_machine_the_system_that_it_had_before_it() {
        let plan = Sha256::of(b"plan");
        let of = |plan, mut entry: HistoryEntry| {
            entry.published.target.rollout = Some(Place { plan, wave: 0 });
            entry
        };
        let chosen = |history: &[HistoryEntry]| {
            choose(&tin(), history, Epoch::default(), Wanted::Before(plan))
                .map(|entry| entry.published.target.generation.get())
        };
        let old = entry(7, 'a', &["confirmed"]);
        let new = |number| of(plan, entry(number, 'b', &["confirmed"]));
        assert_eq!(chosen(&[new(9), new(8), old.clone()]), Ok(7), "8 was signed anew as 9");
        // It was given what it ran: of that rollout nothing is left to undo.
        let same = [new(9), entry(8, 'b', &["confirmed"]), old.clone()];
        assert_eq!(chosen(&same), Err(NoWay::NothingNew { machine: tin(), was: number(8) }));
        let other = Sha256::of(b"other");
        let same = [new(9), of(other, entry(8, 'b', &["confirmed"])), old.clone()];
        assert!(matches!(chosen(&same), Err(NoWay::NothingNew { .. })));
        // What it had never confirmed it never had.
        assert_eq!(chosen(&[new(9), entry(8, 'b', &[]), old]), Ok(7));
    }

    #[test]
    fn the_new_generation_keeps_the_terms_and_says_where_it_comes_from() {
        let old = entry(9, 'b', &[]).published.target;
        let new = again(&old, number(13), None, false);
        assert_eq!(new.message.as_deref(), Some("rollback to 9: new kernel"));
        assert_eq!(Target { generation: old.generation, message: old.message.clone(), ..new }, old);
        let urgent = again(&old, number(13), Some("the new one is slow"), true);
        assert!(urgent.policy.urgent);
        assert_eq!(urgent.message.as_deref(), Some("rollback to 9: the new one is slow"));
        let long = again(&old, number(13), Some(&"x".repeat(10_000)), false);
        assert!(long.message.unwrap().len() < 300);
    }

    #[test]
    fn documents_are_believed_as_far_as_todays_operators_signed_them_and_never_if_they_do_not_fit() {
        let [root, alice, bob, online] = [(); 4].map(|()| SecretKey::generate().unwrap());
        let spec = |operator: &SecretKey| RootSpec {
            version: 1,
            epoch: Epoch::default(),
            expires: 4_000_000_000,
            root: (vec![root.public()], 1),
            operators: (vec![operator.public()], 1),
            online: vec![online.public()],
        };
        let root_of = |operator: &SecretKey| {
            Root::parse_self_signed(&sign_root(&spec(operator), &[&root]).unwrap()).unwrap()
        };
        let (today, before) = (root_of(&alice), root_of(&bob));
        let entry = entry(9, 'b', &["confirmed"]);
        // Its signature ended long ago.
        let signed = sign_generation(&entry.published.target, 1_000, &[&alice]).unwrap();
        let machines = fleet();
        let view = machines.iter().find(|view| view.machine == tin()).unwrap();
        let good = check(&today, view, &entry, &signed).unwrap();
        assert!(good.unsigned.is_none() && good.checked.target == entry.published.target);
        assert!(check(&before, view, &entry, &signed).unwrap().unsigned.is_some());
        let other = self::entry(9, 'c', &[]);
        let lies = check(&today, view, &other, &signed);
        assert!(matches!(lies, Err(NoWay::Damaged { .. })), "{lies:?}");
        let target = signed.target.replace("new kernel", "old kernel");
        let altered = check(&before, view, &entry, &Publication { target, ..signed.clone() });
        assert!(matches!(altered, Err(NoWay::Damaged { .. })), "{altered:?}");
        let mac = machines.iter().find(|view| view.class != entry.published.target.class).unwrap();
        assert!(matches!(check(&today, mac, &entry, &signed), Err(NoWay::Other { .. })));
    }
}
