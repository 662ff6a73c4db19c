//! What the maker of a draft told Nix beside the flake, against what its second reader tells it.
//!
//! A draft's options are never used by themselves: some make Nix run programs. Whoever compares gives them anew.

use anyhow::{Result, anyhow};
use muster_protocol::evaluation::Evaluation;
use muster_protocol::ids::MachineName;

use crate::cli::error::WithHint as _;

/// The same words to Nix, on both computers.
pub fn require(machine: &MachineName, drafted: &Evaluation, given: &Evaluation) -> Result<()> {
    if same(drafted, given) {
        return Ok(());
    }
    let words = |evaluation: &Evaluation| match evaluation.describe() {
        words if words.is_empty() => "nothing beside the flake".to_owned(),
        words => words.join(" "),
    };
    Err(anyhow!(
        "the draft for {machine} was evaluated with {}, and you gave {}",
        words(drafted),
        words(given)
    ))
    .hint(
        "read what each option does; if you want it too, give the same ones beside --flake, else do not sign",
    )
}

/// Where an input was taken from may be called differently on two computers; its tree is the same.
fn same(drafted: &Evaluation, given: &Evaluation) -> bool {
    let overrides = |evaluation: &Evaluation| -> Vec<(String, String)> {
        let each = evaluation.overrides.iter();
        each.map(|one| (one.input.clone(), one.hash.clone().unwrap_or_else(|| one.reference.clone())))
            .collect()
    };
    drafted.impure == given.impure
        && drafted.options == given.options
        && overrides(drafted) == overrides(given)
}

#[cfg(test)]
mod tests {
    use muster_protocol::evaluation::Override;

    use super::*;

    fn told(impure: bool, overrides: &[(&str, &str, Option<&str>)], options: &[(&str, &str)]) -> Evaluation {
        let one = |(input, reference, hash): &(&str, &str, Option<&str>)| Override {
            input: (*input).into(),
            reference: (*reference).into(),
            hash: hash.map(Into::into),
        };
        Evaluation {
            impure,
            overrides: overrides.iter().map(one).collect(),
            options: options.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect(),
        }
    }

    #[test]
    fn the_second_reader_tells_nix_the_same_or_does_not_sign() {
        let machine = "tin".parse().unwrap();
        let mine = told(true, &[("a", "../a", Some("sha256-a"))], &[("cores", "2")]);
        let theirs = told(true, &[("a", "/home/b/a", Some("sha256-a"))], &[("cores", "2")]);
        assert!(require(&machine, &mine, &theirs).is_ok());
        for other in [
            told(false, &[("a", "../a", Some("sha256-a"))], &[("cores", "2")]),
            told(true, &[("a", "../a", Some("sha256-b"))], &[("cores", "2")]),
            told(true, &[("b", "../a", Some("sha256-a"))], &[("cores", "2")]),
            told(true, &[("a", "../a", Some("sha256-a"))], &[]),
            Evaluation::default(),
        ] {
            let refused = require(&machine, &mine, &other).unwrap_err();
            assert!(format!("{refused:#}").contains("--override-input a ../a (sha256-a)"), "{refused:#}");
        }
    }
}
