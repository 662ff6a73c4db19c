//! Which machines an update selects: names, tags, or everything that the flake describes. Pure.

use std::collections::BTreeSet;
use std::str::FromStr;

use muster_protocol::ids::{IdError, MachineName, Tag};
use muster_protocol::operator::{MachineView, Standing};

use crate::flake::facts::Muster;
use crate::terminal::error::Hint;
use crate::terminal::list::listed;

/// `MACHINE` or `@TAG`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    Machine(MachineName),
    Tag(Tag),
}

impl FromStr for Selector {
    type Err = IdError;
    fn from_str(text: &str) -> Result<Self, IdError> {
        match text.strip_prefix('@') {
            Some(tag) => tag.parse().map(Self::Tag),
            None => text.parse().map(Self::Machine),
        }
    }
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    #[error("the controller knows no machine {machine}; it knows {known}")]
    UnknownMachine { machine: MachineName, known: String },
    #[error("no machine has the tag {tag}; there are {known}")]
    UnknownTag { tag: Tag, known: String },
    #[error("{0} is revoked")]
    Revoked(MachineName),
    #[error("the controller knows no machine that the flake describes")]
    Nothing,
}

impl SelectError {
    /// The error, with what to do about it.
    pub fn with_hint(self) -> anyhow::Error {
        let hint = match &self {
            Self::UnknownMachine { machine, .. } => {
                format!("check the spelling, or add it with `muster machines add {machine} --class …`")
            }
            Self::UnknownTag { .. } => {
                "check the spelling, or give it in the flake under muster.machines".to_owned()
            }
            Self::Revoked(machine) => {
                format!("enrol it anew with `muster machines add {machine} --class … --replace`")
            }
            Self::Nothing => {
                "add machines by the flake's names with `muster machines add`, or name another flake with \
                 --flake"
                    .to_owned()
            }
        };
        anyhow::Error::new(self).context(Hint(hint))
    }
}

/// The selected machines, in the controller's order, each once. A revoked machine is refused by name and
/// skipped by tag. Without selectors, every machine for which `describes` returns true.
pub fn select<'a>(
    selectors: &[Selector],
    machines: &'a [MachineView],
    muster: &Muster,
    describes: impl Fn(&MachineName) -> bool,
) -> Result<Vec<&'a MachineView>, SelectError> {
    let standing = |view: &&MachineView| view.standing != Standing::Revoked;
    let mut chosen: BTreeSet<&MachineName> = BTreeSet::new();
    for selector in selectors {
        match selector {
            Selector::Machine(name) => {
                let view = machines.iter().find(|view| &view.machine == name).ok_or_else(|| {
                    SelectError::UnknownMachine {
                        machine: name.clone(),
                        known: listed(machines.iter().map(|view| view.machine.as_str())),
                    }
                })?;
                if !standing(&view) {
                    return Err(SelectError::Revoked(name.clone()));
                }
                chosen.insert(&view.machine);
            }
            Selector::Tag(tag) => {
                let mut tagged = machines.iter().filter(|view| has_tag(view, tag, muster)).peekable();
                if tagged.peek().is_none() {
                    let all: BTreeSet<String> = machines.iter().flat_map(|view| tags(view, muster)).collect();
                    return Err(SelectError::UnknownTag {
                        tag: tag.clone(),
                        known: listed(all.iter().map(String::as_str)),
                    });
                }
                chosen.extend(tagged.filter(standing).map(|view| &view.machine));
            }
        }
    }
    if selectors.is_empty() {
        chosen.extend(
            machines.iter().filter(standing).map(|view| &view.machine).filter(|name| describes(name)),
        );
    }
    if chosen.is_empty() {
        return Err(SelectError::Nothing);
    }
    Ok(machines.iter().filter(|view| chosen.contains(&view.machine)).collect())
}

/// A machine's tags: the controller's and those of [`flake_tags`].
pub fn tags(view: &MachineView, muster: &Muster) -> BTreeSet<String> {
    let of_flake = flake_tags(view, muster);
    view.tags.iter().map(ToString::to_string).chain(of_flake).collect()
}

/// A machine's tags without the controller's: the flake's, its class, and `all`.
pub fn flake_tags(view: &MachineView, muster: &Muster) -> BTreeSet<String> {
    let of_flake = muster.machines.get(&view.machine).map(|machine| &machine.tags);
    let named = of_flake.into_iter().flatten().map(ToString::to_string);
    named.chain([view.class.to_string(), "all".to_owned()]).collect()
}

fn has_tag(view: &MachineView, tag: &Tag, muster: &Muster) -> bool {
    tags(view, muster).contains(tag.as_str())
}

#[cfg(test)]
pub(super) mod tests {
    use muster_protocol::machine::Class;
    use muster_protocol::operator::Condition;

    use super::*;

    fn view(name: &str, class: Class, tags: &[&str]) -> MachineView {
        MachineView {
            machine: name.parse().unwrap(),
            class,
            system: if class == Class::Darwin { "aarch64-darwin" } else { "x86_64-linux" }.parse().unwrap(),
            tags: tags.iter().map(|tag| tag.parse().unwrap()).collect(),
            standing: Standing::Enrolled,
            condition: Condition::UpToDate,
            published: None,
            runs: None,
            phase: None,
            phase_generation: None,
            note: None,
            refused: None,
            attack: None,
            clone_alarm: false,
            clone_alarm_at: None,
            holds: Default::default(),
            health: muster_protocol::checkin::Health::default(),
            agent: None,
            age: None,
            age_proof: None,
            signing: None,
            understands: vec![],
            key: None,
            key_rotated_at: None,
            key_rotation_asked: false,
            enrolled_at: None,
            last_seen: None,
            clock_skew_ms: None,
            shown: None,
            generations_forgotten: 0,
            awaits: None,
            rollout: None,
        }
    }

    pub fn fleet() -> Vec<MachineView> {
        let mut gone = view("gone", Class::Darwin, &["lab"]);
        gone.standing = Standing::Revoked;
        vec![
            view("blackphos", Class::Darwin, &[]),
            view("cinnabar", Class::Nixos, &["lab"]),
            gone,
            view("stibnite", Class::Darwin, &["lab"]),
        ]
    }

    fn chosen(words: &[&str]) -> Result<Vec<String>, SelectError> {
        let fleet = fleet();
        let selectors: Vec<Selector> = words.iter().map(|word| word.parse().unwrap()).collect();
        let muster: Muster =
            serde_json::from_str(r#"{"machines":{"blackphos":{"tags":["studio"]}}}"#).unwrap();
        let described = |name: &MachineName| name.as_str() != "stibnite";
        select(&selectors, &fleet, &muster, described)
            .map(|views| views.iter().map(|view| view.machine.to_string()).collect())
    }

    #[test]
    fn names_and_tags_are_joined_and_each_machine_comes_once() {
        assert_eq!(chosen(&["stibnite", "@lab"]).unwrap(), ["cinnabar", "stibnite"]);
        assert_eq!(chosen(&["@darwin"]).unwrap(), ["blackphos", "stibnite"]);
        assert_eq!(chosen(&["@all"]).unwrap(), ["blackphos", "cinnabar", "stibnite"]);
        assert_eq!(chosen(&["@studio"]).unwrap(), ["blackphos"]);
    }

    #[test]
    fn without_selectors_the_flake_decides() {
        assert_eq!(chosen(&[]).unwrap(), ["blackphos", "cinnabar"]);
    }

    #[test]
    fn what_is_unknown_is_named_beside_what_is_known() {
        assert_eq!(
            chosen(&["tin"]).unwrap_err().to_string(),
            "the controller knows no machine tin; it knows blackphos, cinnabar, gone, stibnite"
        );
        assert_eq!(
            chosen(&["@tin"]).unwrap_err().to_string(),
            "no machine has the tag tin; there are all, darwin, lab, nixos, studio"
        );
        assert_eq!(chosen(&["gone"]).unwrap_err(), SelectError::Revoked("gone".parse().unwrap()));
    }
}
