//! What was tried, who refused it, and what was reported about it.

use std::fmt;

use muster_protocol::clock::{Clock as _, SystemClock};

/// The fewest attacks that a run must try.
const FEWEST: usize = 40;

/// Who refused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Agent,
    /// The machine's own Nix, reading from the cache.
    Nix,
    Controller,
    /// An operator's command line.
    Operator,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Agent => "agent",
            Self::Nix => "Nix",
            Self::Controller => "controller",
            Self::Operator => "operator",
        })
    }
}

struct Row {
    name: String,
    attempt: String,
    by: By,
    reported: String,
}

pub struct Book {
    rows: Vec<Row>,
    controls: Vec<String>,
    failures: Vec<String>,
    clock: SystemClock,
}

impl Default for Book {
    fn default() -> Self {
        Self { rows: Vec::new(), controls: Vec::new(), failures: Vec::new(), clock: SystemClock::new() }
    }
}

impl Book {
    /// An attack that was refused. `reported` says what can be seen of it afterwards.
    pub fn refused(&mut self, name: &str, attempt: &str, by: By, reported: impl Into<String>) {
        eprintln!("refused  {name}");
        let row = Row { name: name.into(), attempt: attempt.into(), by, reported: reported.into() };
        self.rows.push(row);
    }
    /// An honest update that succeeded afterwards.
    pub fn control(&mut self, what: &str) {
        eprintln!("control  {what}");
        self.controls.push(what.to_owned());
    }
    pub fn failed(&mut self, what: &str) {
        eprintln!("FAILED   {what}");
        self.failures.push(what.to_owned());
    }
    /// One attack: tried, and recorded as refused or failed; the others continue.
    pub fn attack(&mut self, name: &str, attempt: &str, by: By, tried: anyhow::Result<String>) {
        match tried {
            Ok(reported) => self.refused(name, attempt, by, reported),
            Err(error) => self.failed(&format!("{name}: {error:#}")),
        }
    }

    pub fn is_good(&self) -> bool {
        self.failures.is_empty() && self.rows.len() >= FEWEST && !self.controls.is_empty()
    }

    pub fn print(&self) {
        let wide =
            |of: fn(&Row) -> &str| self.rows.iter().map(|row| of(row).chars().count()).max().unwrap_or(0);
        let (name, attempt) = (wide(|row| &row.name), wide(|row| &row.attempt));
        println!(
            "{:>3}  {:name$}  {:attempt$}  {:10}  WHAT IS TOLD OF IT",
            "", "ATTACK", "WHAT WAS TRIED", "REFUSED BY"
        );
        for (number, row) in (1..).zip(&self.rows) {
            println!(
                "{number:>3}  {:name$}  {:attempt$}  {:10}  {}",
                row.name, row.attempt, row.by, row.reported
            );
        }
        println!();
        for control in &self.controls {
            println!("control: {control}");
        }
        for failure in &self.failures {
            println!("FAILED: {failure}");
        }
        println!(
            "\n{} attacks refused, {} controls came through, {} failures, {} s",
            self.rows.len(),
            self.controls.len(),
            self.failures.len(),
            self.clock.awake().as_secs()
        );
        if self.rows.len() < FEWEST {
            println!("fewer than {FEWEST} attacks were tried");
        }
    }
}
