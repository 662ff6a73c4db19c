//! What will change, shown before anything is signed.

use muster_protocol::packages::{self, Changes};
use muster_protocol::target::Target;

use crate::flake::derivations::Derivations;

const SHOWN: usize = 12;

/// How a new target differs from the last one.
#[derive(Debug, PartialEq, Eq)]
pub enum Difference {
    /// Nothing was published for this machine before.
    First,
    /// The same system, checks and all: nothing to sign.
    Same,
    /// The same system, with another action, deadline, checks or keys.
    Terms,
    System(Packages),
}

/// Derivations that were added, removed, or have another version. `None` if the old closure is not in this
/// store.
pub type Packages = Option<Changes>;

impl Difference {
    /// One sentence, and the lines that belong under it.
    pub fn describe(&self) -> (&'static str, Vec<String>) {
        match self {
            Self::First => ("its first generation", vec![]),
            Self::Same => ("unchanged", vec![]),
            Self::Terms => ("the same system, with other checks or terms", vec![]),
            Self::System(None) => {
                ("a new system (the old one is not in this store, so its packages are not compared)", vec![])
            }
            Self::System(Some(changes)) if *changes == Changes::default() => {
                ("a new system with the same packages", vec![])
            }
            Self::System(Some(changes)) => ("a new system", lines(changes)),
        }
    }
}

/// Compares each new target with the last, including packages if both closures are in this store.
pub async fn between(pairs: &[(Option<&Target>, &Target)], derivations: &mut Derivations) -> Vec<Difference> {
    let terms: Vec<Difference> = pairs.iter().map(|(old, new)| terms(*old, new)).collect();
    let changed = terms.iter().zip(pairs).filter_map(|(difference, (old, new))| match (difference, old) {
        (Difference::System(_), Some(old)) => Some([&old.derivation, &new.derivation]),
        _ => None,
    });
    let changed: Vec<_> = changed.flatten().collect();
    derivations.prepare(&changed).await;
    let each = terms.into_iter().zip(pairs).map(|(difference, (old, new))| match (difference, old) {
        (Difference::System(_), Some(old)) => {
            let old = derivations.names(&old.derivation);
            let new = derivations.names(&new.derivation);
            Difference::System(old.zip(new).map(|(old, new)| packages::changes(&old, &new)))
        }
        (other, _) => other,
    });
    each.collect()
}

/// Compares the terms only; [`packages`] compares packages.
pub fn terms(old: Option<&Target>, new: &Target) -> Difference {
    let Some(old) = old else { return Difference::First };
    if old.derivation != new.derivation || old.output != new.output {
        return Difference::System(None);
    }
    // The number, the message, the options of the evaluation and a rollout do not change what the machine
    // runs.
    let same = Target {
        generation: old.generation,
        requires: old.requires.clone(),
        rollout: old.rollout,
        message: old.message.clone(),
        evaluation: old.evaluation.clone(),
        ..new.clone()
    } == *old;
    if same { Difference::Same } else { Difference::Terms }
}

/// One line for each kind of change.
fn lines(changes: &Changes) -> Vec<String> {
    let line = |word: &str, names: &[String]| {
        let more = names.len().saturating_sub(SHOWN);
        let tail = if more > 0 { format!(" and {more} more") } else { String::new() };
        format!("{word}: {}{tail}", names[..names.len() - more].join(", "))
    };
    [("changed", &changes.changed), ("added", &changes.added), ("removed", &changes.removed)]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(word, names)| line(word, names))
        .collect()
}

#[cfg(test)]
mod tests {
    use muster_protocol::ids::{Generation, Sha256};
    use muster_protocol::machine::Class;
    use muster_protocol::plan::{FEATURE, Place};
    use muster_protocol::target::Action;

    use super::*;

    fn target() -> Target {
        Target {
            rollout: None,
            machine: "cinnabar".parse().unwrap(),
            class: Class::Nixos,
            generation: Generation::FIRST,
            system: "x86_64-linux".parse().unwrap(),
            derivation: "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system.drv".parse().unwrap(),
            output: "/nix/store/1c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system".parse().unwrap(),
            action: Action::Switch,
            deadline_seconds: 300,
            checks: vec![],
            trusted_nix_keys: vec![],
            policy: muster_protocol::policy::Policy::default(),
            requires: vec![],
            message: None,
            evaluation: Default::default(),
        }
    }

    #[test]
    fn a_new_number_or_message_alone_is_no_change() {
        let next =
            Target { generation: Generation::FIRST.next().unwrap(), message: Some("x".into()), ..target() };
        assert_eq!(terms(Some(&target()), &next), Difference::Same);
        let place = Place { plan: Sha256::of(b"plan"), wave: 1 };
        let gated = Target { rollout: Some(place), requires: vec![FEATURE.into()], ..target() };
        assert_eq!(terms(Some(&gated), &next), Difference::Same);
        assert_eq!(terms(None, &next), Difference::First);
        assert_eq!(terms(Some(&target()), &Target { deadline_seconds: 60, ..next }), Difference::Terms);
    }

    #[test]
    fn each_kind_of_change_is_one_line_of_bounded_length() {
        let many = (0..20).map(|n| format!("p{n}")).collect();
        let changes = Changes { changed: vec!["bash 5.1 -> 5.2".into()], added: many, removed: vec![] };
        let lines = lines(&changes);
        assert_eq!(lines[0], "changed: bash 5.1 -> 5.2");
        assert!(lines[1].ends_with("p11 and 8 more") && lines.len() == 2, "{lines:?}");
    }
}
