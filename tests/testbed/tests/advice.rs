//! Every command that a message, a help text, a comment or a page recommends is one that the programs have.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use muster_testbed::programs;

/// The files below a folder that have one of these suffixes.
fn files(folder: &Path, endings: &[&str], found: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            files(&path, endings, found);
        } else if endings.iter().any(|ending| path.extension().is_some_and(|it| it == *ending)) {
            found.push((path.display().to_string(), fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The text with strings, comments and paragraphs joined where they are broken over lines.
fn joined(text: &str) -> String {
    let mut whole = String::new();
    for line in text.lines() {
        let line = line.trim_start().trim_start_matches(['/', '!', '#']).trim_start();
        whole.push_str(line.trim_end_matches('\\'));
        // A continued string has its space before the backslash.
        if !line.ends_with('\\') {
            whole.push(' ');
        }
    }
    whole
}

/// Quoted text that starts with one of our programs.
fn quoted(text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for (mark, begin) in
        ["`muster ", "`muster-agent ", "'muster ", "'muster-agent "].map(|begin| (&begin[..1], begin))
    {
        for (at, _) in text.match_indices(begin) {
            let rest = &text[at + 1..];
            if let Some((command, _)) = rest.split_once(mark) {
                found.insert(command.to_owned());
            }
        }
    }
    found
}

/// A value in place of a placeholder; `before` is the preceding word.
fn filled(before: &str, word: &str) -> Option<String> {
    let word = word.trim_matches(['[', ']', ',']).trim_end_matches([':', ';']);
    match before {
        "--class" => return Some("nixos".into()),
        "--system" => return Some("x86_64-linux".into()),
        _ => {}
    }
    let first = word.split('|').next().unwrap_or_default();
    let is_name =
        |word: &str| !word.is_empty() && word.chars().all(|c| c.is_ascii_uppercase() || c == '-' || c == '_');
    Some(match first {
        "" | "…" | "..." => return None,
        "N" | "NUMBER" | "GENERATION" => "3".into(),
        "TIME" => "4h".into(),
        "ROLE" => "operator".into(),
        // A public key of RFC 8032, 7.1.
        "KEY" => "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a".into(),
        "GENERATOR/FILE" => "a/b".into(),
        "@TAG" => "@desk".into(),
        "-" => "-".into(),
        word if is_name(word.trim_end_matches('…')) => "tin".into(),
        word if word.contains('{') => {
            let (before, rest) = word.split_once('{')?;
            // What directly follows a word is an option, or nothing.
            let name = if before.ends_with(|c: char| c.is_ascii_alphanumeric()) { "" } else { "tin" };
            format!("{before}{name}{}", rest.rsplit_once('}').map(|(_, after)| after).unwrap_or_default())
        }
        word => word.to_owned(),
    })
}

/// A command as it would be typed, or `None` if it is only mentioned.
fn typed(command: &str) -> Vec<String> {
    let ends =
        |word: &&str| !["|", "<", ">", "&&", ";", "<<<", "2>", "||"].contains(word) && !word.starts_with('#');
    let words: Vec<&str> = command.split_whitespace().take_while(ends).collect();
    let before = std::iter::once("").chain(words.iter().copied());
    before.zip(&words).filter_map(|(before, word)| filled(before, word)).collect()
}

#[test]
fn every_command_that_somebody_is_told_to_run_exists() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut all = Vec::new();
    for folder in ["protocol/src", "controller/cli/src", "controller/server/src", "agent/src"] {
        files(&repository.join(folder), &["rs"], &mut all);
    }
    for folder in ["docs", "nix", "examples", "packaging"] {
        files(&repository.join(folder), &["md", "nix"], &mut all);
    }
    all.push(("README.md".into(), fs::read_to_string(repository.join("README.md")).unwrap()));

    let mut commands: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (path, text) in &all {
        for command in quoted(&joined(text)) {
            commands.entry(command).or_default().insert(path.clone());
        }
    }
    assert!(commands.len() > 100, "{commands:?}");
    let mut wrong = Vec::new();
    for (command, places) in &commands {
        let words = typed(command);
        let Some((program, arguments)) = words.split_first() else { continue };
        let output = Command::new(programs::find(program).unwrap())
            .args(arguments)
            .arg("--help")
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr).lines().next().unwrap_or_default().to_owned();
        // An option that is only mentioned by name has no value.
        let is_named = command.rsplit(' ').next().is_some_and(|last| {
            last.starts_with("--")
                && said.contains("a value is required")
                && said.contains(&format!("'{last}"))
        });
        if !output.status.success() && !is_named {
            wrong.push(format!("`{command}` ({said}) in {places:?}"));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), commands.len(), wrong.join("\n"));
}
