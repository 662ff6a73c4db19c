//! Every attack by name, tried against a running controller and running agents: real Nix, real signatures,
//! real HTTP.
//!
//! The attacks of a group share a fleet, so that the whole run takes minutes. After each attack both machines
//! are checked: what they run, what they will boot, and the generation that they hold must be unchanged. Each
//! group ends with a control: an honest update succeeds, so nothing was refused merely because nothing works.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod book;
mod cache;
mod controller;
mod flood;
mod hardware;
mod identity;
mod metadata;
mod party;
mod rollouts;
mod siege;
mod signers;

use std::process::ExitCode;

use book::Book;

fn main() -> ExitCode {
    if std::env::args().nth(1).is_some_and(|word| word == party::WORD) {
        return match party::perform() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:#}");
                ExitCode::FAILURE
            }
        };
    }
    let mut book = Book::default();
    type Group = fn(&mut Book) -> anyhow::Result<()>;
    let groups: [(&str, Group); 5] = [
        ("one party against the service", party::run),
        ("one fleet, besieged", siege::run),
        ("two operators", signers::run),
        ("a security key", hardware::run),
        ("a rollout whose controller was stolen", rollouts::run),
    ];
    // For work on a single group: words in its name.
    let only: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    for (name, group) in groups {
        if !only.iter().all(|word| name.contains(word.as_str())) {
            continue;
        }
        if let Err(error) = group(&mut book) {
            book.failed(&format!("{name}: {error:#}"));
        }
    }
    book.print();
    if book.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
