//! Checks a draft against the derivations and the flake that it names.
//!
//! A draft's options for Nix are never used as they are: some make Nix run programs. The second signer gives
//! them again.

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::evaluation::Evaluation;
use muster_protocol::ids::{MachineName, StorePath};
use muster_protocol::policy::Policy;
use muster_protocol::target::Target;

use super::inspect::settings;
use super::terms::terms_of;
use crate::flake::derivations::{Derivations, Described};
use crate::flake::evaluate::{Flake, Lock};
use crate::flake::machines::Wanted;
use crate::flake::notes::{tell_of, unsigned};
use crate::flake::options::Options;
use crate::terminal::error::WithHint as _;

/// How many Nix processes evaluate at once.
const JOBS: usize = 2;

/// Compares the derivations themselves with the draft.
pub async fn against_derivations(targets: &[&Target]) -> Result<()> {
    let paths: Vec<StorePath> = targets.iter().map(|target| target.derivation.clone()).collect();
    let described = Derivations::default().described(&paths).await;
    targets.iter().zip(described).try_for_each(|(target, described)| {
        let described = described
            .with_context(|| format!("the derivation for {} cannot be looked into", target.machine))
            .hint(
                "run this where the derivation can be had, or give --unseen if you know by other means what \
                 it does",
            )?;
        against_derivation(target, &described)
    })
}

fn against_derivation(target: &Target, described: &Described) -> Result<()> {
    let machine = &target.machine;
    if !described.outputs.iter().any(|output| output == target.output.as_str()) {
        return Err(anyhow!(
            "{} makes {}, and the draft for {machine} says {}",
            target.derivation,
            described.outputs.join(" "),
            target.output
        ))
        .hint("do not sign this draft; find out who made it");
    }
    if described.system != target.system {
        return Err(anyhow!(
            "{} is built on {}, and the draft for {machine} says {}",
            target.derivation,
            described.system,
            target.system
        ))
        .hint("do not sign this draft; find out who made it");
    }
    Ok(())
}

/// Evaluates the draft's machines again; any difference is reported.
pub async fn against_flake(reference: &str, options: &Options, targets: &[&Target]) -> Result<()> {
    let flake = Flake::open_with(reference, options, Lock::Keep).await.map_err(unsigned)?;
    for target in targets {
        require_same_options(&target.machine, &target.evaluation, flake.evaluation())?;
    }
    let wanted = targets.iter().copied().map(|target| Wanted {
        machine: &target.machine,
        class: target.class,
        system: &target.system,
    });
    let wanted: Vec<Wanted<'_>> = wanted.collect();
    let evaluated = flake.evaluate(&wanted, &mut Derivations::default(), JOBS, |_| {}).await;
    for (target, evaluated) in targets.iter().zip(evaluated) {
        let evaluated = evaluated.map_err(unsigned)?;
        let terms = terms_of(&flake, &target.machine)?;
        let mut differs = Vec::new();
        let mut compare = |what: &str, drafted: String, flake: String| {
            if drafted != flake {
                differs.push(format!("{what}: the draft says {drafted}, the flake {flake}"));
            }
        };
        compare("derivation", target.derivation.to_string(), evaluated.derivation.to_string());
        compare("output", target.output.to_string(), evaluated.output.to_string());
        compare("action", target.action.as_str().into(), terms.action.as_str().into());
        compare("deadline", target.deadline_seconds.to_string(), terms.deadline_seconds.to_string());
        compare("checks", format!("{:?}", target.checks), format!("{:?}", terms.checks));
        // --urgent belongs to the publication, not to the flake, and is shown above.
        let policy = Policy { urgent: target.policy.urgent || terms.policy.urgent, ..terms.policy };
        compare("policy", format!("{:?}", settings(&target.policy)), format!("{:?}", settings(&policy)));
        compare("trusted Nix keys", target.trusted_nix_keys.join(" "), terms.trusted_nix_keys.join(" "));
        if !differs.is_empty() {
            return Err(anyhow!(
                "the draft for {} is not what {reference} says: {}",
                target.machine,
                differs.join("; ")
            ))
            .hint("see that --flake names the commit that was drafted; if it does, do not sign");
        }
    }
    flake.require_unchanged().await.map_err(unsigned)?;
    tell_of(&flake);
    say!("The draft is what {reference} evaluates to.");
    Ok(())
}

/// Requires the same options for Nix on both computers.
fn require_same_options(machine: &MachineName, drafted: &Evaluation, given: &Evaluation) -> Result<()> {
    if same(drafted, given) {
        return Ok(());
    }
    let described = |evaluation: &Evaluation| match evaluation.describe() {
        options if options.is_empty() => "nothing beside the flake".to_owned(),
        options => options.join(" "),
    };
    Err(anyhow!(
        "the draft for {machine} was evaluated with {}, and you gave {}",
        described(drafted),
        described(given)
    ))
    .hint(
        "read what each option does; if you want it too, give the same ones beside --flake, else do not sign",
    )
}

/// The same input may have different references on two computers; its tree is the same.
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
        assert!(require_same_options(&machine, &mine, &theirs).is_ok());
        for other in [
            told(false, &[("a", "../a", Some("sha256-a"))], &[("cores", "2")]),
            told(true, &[("a", "../a", Some("sha256-b"))], &[("cores", "2")]),
            told(true, &[("b", "../a", Some("sha256-a"))], &[("cores", "2")]),
            told(true, &[("a", "../a", Some("sha256-a"))], &[]),
            Evaluation::default(),
        ] {
            let refused = require_same_options(&machine, &mine, &other).unwrap_err();
            assert!(format!("{refused:#}").contains("--override-input a ../a (sha256-a)"), "{refused:#}");
        }
    }
}
