//! One function of many configurations, in as few Nix processes as their memory allows.
//!
//! A process evaluates its configurations in order and prints each value as soon as it has it. So one that
//! fails costs none of the values before it: it is evaluated by itself, with its own message, and the others
//! follow in the next process.

use std::time::Duration;

use futures_util::future::join_all;
use serde::Deserialize;
use serde_json::Value;

use super::evaluate::Flake;
use super::message::{self, MAX_WARNINGS};
use super::nix::{Ended, NixError, nix_to_end};
use super::text::nix_list;

/// How many configurations the first process evaluates; what they take decides about the next.
const FIRST: usize = 4;
/// How many bytes one process may allocate, as far as the last one predicts it. A NixOS system takes from
/// half a gigabyte to a few, of which the collector gives little back while others are evaluated.
const MOST_ALLOCATED: u64 = 4 * 1024 * 1024 * 1024;
/// How many configurations a process evaluates if Nix says nothing of its memory.
const WITHOUT_FIGURES: usize = 8;
/// The most bytes of names in one process: Linux takes at most 128 KiB in one argument.
const MOST_NAMES: usize = 64 * 1024;
/// In front of each value, beside `trace: ` by Nix.
const MARK: &str = "muster-evaluated ";

/// What is asked of each configuration.
pub struct Question<'a> {
    /// The output that has them.
    pub output: &'a str,
    /// A function of a configuration, in Nix. Its value becomes JSON.
    pub function: &'a str,
    /// The time limit of one process.
    pub limit: Duration,
}

impl Flake {
    /// The function's value of each configuration, in the order of `names`. `alone` asks for one by itself;
    /// its error is that configuration's. `told` hears how many more have been evaluated.
    pub(super) async fn eval_each<A>(
        &self,
        question: &Question<'_>,
        names: &[&str],
        jobs: usize,
        (alone, told): (impl Fn(String) -> A, impl Fn(usize)),
    ) -> Vec<Result<Value, NixError>>
    where
        A: Future<Output = Result<Value, NixError>>,
    {
        if names.is_empty() {
            return Vec::new();
        }
        let parts = names.chunks(names.len().div_ceil(jobs.max(1)));
        let each = parts.map(|part| self.eval_part(question, part, (&alone, &told)));
        join_all(each).await.into_iter().flatten().collect()
    }

    async fn eval_part<A>(
        &self,
        question: &Question<'_>,
        names: &[&str],
        (alone, told): (&impl Fn(String) -> A, &impl Fn(usize)),
    ) -> Vec<Result<Value, NixError>>
    where
        A: Future<Output = Result<Value, NixError>>,
    {
        let (mut pace, mut values) = (Pace::start(), Vec::with_capacity(names.len()));
        while values.len() < names.len() {
            let left = &names[values.len()..];
            let before = values.len();
            if let (1, [name, ..]) | (_, [name]) = (pace.next, left) {
                let value = alone((*name).to_owned()).await;
                pace.one(value.is_ok());
                values.push(value);
            } else {
                let some = fitting(left, pace.next);
                let ran = self.eval_some(question, some).await;
                pace.ran(some.len(), &ran);
                values.extend(ran.values.into_iter().map(Ok));
            }
            told(values.len() - before);
        }
        values
    }

    async fn eval_some(&self, question: &Question<'_>, names: &[&str]) -> Ran {
        let figures = tempfile::NamedTempFile::new().ok();
        let mut variables = Vec::new();
        if let Some(path) = figures.as_ref().and_then(|file| file.path().to_str()) {
            variables.push(("NIX_SHOW_STATS", "1".to_owned()));
            variables.push(("NIX_SHOW_STATS_PATH", path.to_owned()));
        }
        let arguments = self.eval_arguments(question.output, &expression(question.function, names));
        let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
        let ended = match nix_to_end(&arguments, &variables, question.limit).await {
            Ok(ended) => ended,
            Err(error) => {
                let too_long = matches!(error, NixError::TooLong { .. });
                return Ran { too_long, ..Ran::default() };
            }
        };
        let (values, said) = printed(&ended, names.len());
        self.note(message::warnings(&said, MAX_WARNINGS.saturating_mul(names.len())));
        let allocated = figures.and_then(|file| std::fs::read(file.path()).ok());
        Ran { values, allocated: allocated.and_then(|text| allocated_in(&text)), too_long: false }
    }
}

/// What one process made of its configurations.
#[derive(Default)]
struct Ran {
    /// The values of the first ones; all of them if it succeeded.
    values: Vec<Value>,
    /// How many bytes it allocated.
    allocated: Option<u64>,
    too_long: bool,
}

/// How many configurations the next process gets. Pure.
#[derive(Debug, PartialEq, Eq)]
struct Pace {
    next: usize,
    most: usize,
}

impl Pace {
    fn start() -> Self {
        Self { next: FIRST, most: WITHOUT_FIGURES }
    }

    fn ran(&mut self, asked: usize, ran: &Ran) {
        if ran.too_long {
            // Whatever hangs, or takes so long: each gets the time of one from here on.
            *self = Self { next: 1, most: 1 };
        } else if ran.values.len() < asked {
            self.next = 1;
        } else {
            self.most = ran.allocated.map_or(WITHOUT_FIGURES, |bytes| {
                let one = (bytes / u64::try_from(asked).unwrap_or(u64::MAX).max(1)).max(1);
                usize::try_from(MOST_ALLOCATED / one).unwrap_or(usize::MAX).max(1)
            });
            self.next = self.most;
        }
    }

    /// After one alone. Where several fail in a row, each takes one process.
    fn one(&mut self, good: bool) {
        self.next = if good { self.most } else { 1 };
    }
}

/// The first `most` names, or as many as fit in one argument.
fn fitting<'a, 'n>(names: &'a [&'n str], most: usize) -> &'a [&'n str] {
    let mut bytes = 0;
    let fit = names.iter().take(most).take_while(|name| {
        bytes += name.len() + 3;
        bytes <= MOST_NAMES
    });
    &names[..fit.count().max(1)]
}

/// A value is printed once it is whole, since JSON needs all of it, and before the next one is begun.
fn expression(function: &str, names: &[&str]) -> String {
    let names = nix_list(names.iter().copied());
    format!(
        "all:
let
  function = ({function});
  values = map (name: function all.${{name}}) {names};
  text = value: builtins.unsafeDiscardStringContext (builtins.toJSON value);
  print = at: value: builtins.trace \"{MARK}${{toString at}} ${{text value}}\" (at + 1);
in
builtins.seq (builtins.foldl' print 0 values) values"
    )
}

/// The values that a process printed, and its messages without them.
fn printed(ended: &Ended, asked: usize) -> (Vec<Value>, String) {
    let (mut values, mut said) = (Vec::new(), String::with_capacity(ended.stderr.len()));
    for line in ended.stderr.lines() {
        match line.strip_prefix("trace: ").and_then(|line| line.strip_prefix(MARK)) {
            None => said.push_str(line),
            Some(marked) => {
                let next = values.len().to_string();
                let text = marked.strip_prefix(&next).and_then(|rest| rest.strip_prefix(' '));
                values.extend(text.and_then(|text| serde_json::from_str::<Value>(text).ok()));
            }
        }
        said.push('\n');
    }
    // The whole result counts, where there is one.
    if ended.success
        && let Ok(all) = serde_json::from_slice::<Vec<Value>>(&ended.stdout)
        && all.len() == asked
    {
        values = all;
    }
    values.truncate(if ended.success { asked } else { asked.saturating_sub(1) });
    (values, said)
}

fn allocated_in(figures: &[u8]) -> Option<u64> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Gc {
        total_bytes: u64,
    }
    #[derive(Deserialize)]
    struct Figures {
        gc: Gc,
    }
    serde_json::from_slice::<Figures>(figures).ok().map(|figures| figures.gc.total_bytes)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const GIB: u64 = 1024 * 1024 * 1024;

    fn ran(values: usize, allocated: Option<u64>) -> Ran {
        Ran { values: vec![Value::Null; values], allocated, too_long: false }
    }

    #[test]
    fn what_the_first_take_decides_how_many_come_next() {
        for (allocated, next) in
            [(Some(400_000), 42_949), (Some(4 * GIB), 4), (Some(30 * GIB), 1), (None, WITHOUT_FIGURES)]
        {
            let mut pace = Pace::start();
            pace.ran(FIRST, &ran(FIRST, allocated));
            assert_eq!(pace.next, next, "{allocated:?}");
        }
    }

    #[test]
    fn one_that_fails_is_asked_alone_and_the_others_together_again() {
        let mut pace = Pace::start();
        pace.ran(FIRST, &ran(FIRST, Some(4 * 1024 * 1024)));
        assert_eq!(pace.next, 4096);
        pace.ran(4096, &ran(17, Some(GIB)));
        assert_eq!(pace.next, 1);
        pace.one(false);
        assert_eq!(pace.next, 1, "its neighbour may fail as well");
        pace.one(true);
        assert_eq!(pace.next, 4096);
        pace.ran(4096, &Ran { too_long: true, ..Ran::default() });
        pace.one(true);
        assert_eq!(pace.next, 1, "nothing that takes too long takes it twice");
    }

    #[test]
    fn what_was_evaluated_before_a_failure_counts_and_the_rest_is_what_nix_said() {
        let stderr = "warning: a\ntrace: muster-evaluated 0 {\"drv\":\"x\"}\ntrace: warning: b\n\
                      trace: muster-evaluated 1 null\ntrace: muster-evaluated 7 1\nerror: no\n";
        let ended = |success, stdout: &str| Ended {
            success,
            stdout: stdout.as_bytes().to_vec(),
            stderr: stderr.to_owned(),
        };
        let (values, said) = printed(&ended(false, ""), 4);
        assert_eq!(values, [json!({ "drv": "x" }), Value::Null]);
        assert_eq!(said, "warning: a\n\ntrace: warning: b\n\n\nerror: no\n");
        assert_eq!(message::warnings(&said, 9), ["warning: a", "warning: b"]);
        assert_eq!(printed(&ended(false, ""), 2).0.len(), 1, "a process that fails has not done all");
        assert_eq!(printed(&ended(true, "[1,2,3]"), 3).0, [json!(1), json!(2), json!(3)]);
    }

    #[test]
    fn names_fit_in_one_argument() {
        let names: Vec<String> = (0..10_000).map(|n| format!("machine-of-the-fleet-{n}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let some = fitting(&names, usize::MAX);
        assert!(some.len() > 1000 && expression("x: x", some).len() < 128 * 1024, "{}", some.len());
        assert_eq!(fitting(&names, 4).len(), 4);
    }
}
