//! Which machines an update does not reach, and why: none is left out silently.

use std::collections::BTreeSet;

use anyhow::{Error, anyhow};
use muster_protocol::ids::MachineName;
use muster_protocol::operator::{MachineView, Standing};

use super::select::Selector;
use crate::flake::discover::Found;
use crate::terminal::count::count;
use crate::terminal::error::{Hint, causes};

/// Machines that were meant, by tag or by naming none, but cannot be updated.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// The flake has their systems, but the controller does not know them.
    pub unknown: Vec<String>,
    /// The controller knows them, but the flake has no system for them.
    pub undescribed: Vec<MachineName>,
}

/// Pure.
pub fn left_out(selectors: &[Selector], found: &[Found], machines: &[MachineView]) -> LeftOut {
    let tags: BTreeSet<&str> = selectors
        .iter()
        .filter_map(|selector| match selector {
            Selector::Tag(tag) => Some(tag.as_str()),
            Selector::Machine(_) => None,
        })
        .collect();
    let is_meant =
        |one: &Found| selectors.is_empty() || one.tags.iter().any(|tag| tags.contains(tag.as_str()));
    let known = |name: &str| machines.iter().any(|view| view.machine.as_str() == name);
    let has_system = |one: &Found| one.output().is_some();
    let described =
        |view: &MachineView| found.iter().any(|one| has_system(one) && one.machine == view.machine.as_str());
    LeftOut {
        unknown: found
            .iter()
            .filter(|one| has_system(one) && is_meant(one) && !known(&one.machine))
            .map(|one| one.machine.clone())
            .collect(),
        undescribed: machines
            .iter()
            .filter(|view| selectors.is_empty() && view.standing != Standing::Revoked && !described(view))
            .map(|view| view.machine.clone())
            .collect(),
    }
}

impl LeftOut {
    /// One line for each kind.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = Vec::new();
        if let Some(first) = self.unknown.first() {
            lines.push(format!(
                "left out, since the controller does not know them: {} (`muster machines add {}`)",
                self.unknown.join(", "),
                first
            ));
        }
        if !self.undescribed.is_empty() {
            let names: Vec<&str> = self.undescribed.iter().map(MachineName::as_str).collect();
            lines.push(format!("left out, since the flake has no system for them: {}", names.join(", ")));
        }
        lines
    }
}

/// A machine whose next generation cannot be made, and why.
pub struct Failed {
    pub machine: MachineName,
    pub error: Error,
}

/// Each failure with its cause; further lines are indented.
pub fn describe_failed(failed: &[Failed]) -> Vec<String> {
    let each = failed.iter().flat_map(|Failed { machine, error }| {
        let described = format!("{machine}: {}", causes(error));
        let lines: Vec<String> = described.lines().map(str::to_owned).collect();
        lines.into_iter().enumerate().map(|(at, line)| if at == 0 { line } else { format!("    {line}") })
    });
    each.collect()
}

/// The error of an update that cannot make everything asked for. A single failure keeps its own hint.
pub fn none_signed(mut failed: Vec<Failed>, chosen: usize) -> Error {
    if chosen == 1
        && failed.len() == 1
        && let Some(one) = failed.pop()
    {
        return one.error;
    }
    let count = count(failed.len(), "machine", "machines");
    anyhow!(
        "the systems of {count} of {chosen} cannot be made, and nothing was signed\n{}",
        describe_failed(&failed).join("\n")
    )
    .context(Hint("fix them in the flake, or continue with the others: --keep-going".into()))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::flake::discover::Source;
    use crate::release::select::tests::fleet;
    use crate::terminal::error::render;

    fn found(name: &str, tags: &[&str], known_from: &[Source]) -> Found {
        Found {
            machine: name.into(),
            class: None,
            system: None,
            tags: tags.iter().map(ToString::to_string).collect(),
            description: None,
            build_host: None,
            roles: BTreeMap::new(),
            known_from: known_from.to_vec(),
            notes: vec![],
        }
    }

    fn told(words: &[&str]) -> Vec<String> {
        let flake = [
            found("blackphos", &["all"], &[Source::Darwin]),
            found("tin", &["all", "lab"], &[Source::Nixos]),
            found("lead", &["all"], &[Source::Nixos, Source::Clan]),
            found("planned", &["all"], &[Source::Clan]),
        ];
        let selectors: Vec<Selector> = words.iter().map(|word| word.parse().unwrap()).collect();
        left_out(&selectors, &flake, &fleet()).lines()
    }

    #[test]
    fn machines_that_only_one_side_knows_are_named() {
        assert_eq!(
            told(&[]),
            [
                "left out, since the controller does not know them: tin, lead (`muster machines add tin`)",
                "left out, since the flake has no system for them: cinnabar, stibnite",
            ]
        );
    }

    #[test]
    fn only_those_are_named_that_were_meant() {
        assert_eq!(
            told(&["@lab"]),
            ["left out, since the controller does not know them: tin (`muster machines add tin`)"]
        );
        assert_eq!(told(&["blackphos"]), Vec::<String>::new());
    }

    #[test]
    fn every_machine_that_fails_is_named_with_its_cause() {
        let failed = |name: &str| Failed {
            machine: name.parse().unwrap(),
            error: anyhow!("undefined variable 'pkg'\nat /x:1").context(Hint("fix it".into())),
        };
        let said = render(&none_signed(vec![failed("tin"), failed("lead")], 3));
        assert_eq!(
            said,
            "error: the systems of 2 machines of 3 cannot be made, and nothing was signed\n\
             \x20 | tin: undefined variable 'pkg'\n  |     at /x:1\n\
             \x20 | lead: undefined variable 'pkg'\n  |     at /x:1\n\
             hint: fix them in the flake, or continue with the others: --keep-going"
        );
        let alone = render(&none_signed(vec![failed("tin")], 1));
        assert_eq!(alone, "error: undefined variable 'pkg'\n  | at /x:1\nhint: fix it");
    }
}
