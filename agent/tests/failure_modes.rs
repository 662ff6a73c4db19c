//! Every failure mode of a machine in docs/failure-modes.md has a test, and every test named there exists.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Those that affect a machine, NixOS or Mac.
const ON_MACHINES: [u32; 32] = [
    1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 29, 33,
    36, 37, 39, 40,
];

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").canonicalize().unwrap()
}

/// The names of all tests: `fn NAME` in Rust, `NAME()` in the scripts of the hosts.
fn tests(folder: &Path, found: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                tests(&path, found);
            }
        } else if name.ends_with(".rs") || folder.ends_with("nspawn.d") {
            let text = std::fs::read_to_string(&path).unwrap_or_default();
            for line in text.lines().map(str::trim) {
                let line = line.strip_prefix("async ").unwrap_or(line);
                let name = line.strip_prefix("fn ").unwrap_or(line).split('(').next().unwrap_or_default();
                if name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_') {
                    found.insert(name.to_owned());
                }
            }
        }
    }
}

#[test]
fn every_failure_mode_of_a_machine_is_shown_by_tests_that_there_are() {
    let page = std::fs::read_to_string(repository().join("docs/failure-modes.md")).unwrap();
    let mut there = BTreeSet::new();
    tests(&repository(), &mut there);
    let rows: Vec<(u32, &str)> = page
        .lines()
        .filter_map(|line| {
            let (number, rest) = line.strip_prefix("| ")?.split_once(" | ")?;
            Some((number.parse().ok()?, rest))
        })
        .collect();
    for number in ON_MACHINES {
        let (_, row) = rows.iter().find(|(of, _)| *of == number).unwrap_or_else(|| panic!("mode {number}"));
        let own = format!("failure_mode_{number}_");
        let both = format!("_and_{number}_");
        assert!(row.contains(&own) || row.contains(&both), "mode {number} has no test of its name");
    }
    let named = page.split('`').skip(1).step_by(2).filter(|word| word.matches('_').count() >= 3);
    let named: Vec<&str> = named.filter(|word| !word.contains('/') && !word.contains(' ')).collect();
    assert!(named.len() > 40);
    for name in named {
        assert!(there.contains(name) || name == "CLOCK_UPTIME_RAW", "there is no test {name}");
    }
}
