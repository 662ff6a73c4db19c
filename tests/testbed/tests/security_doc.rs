//! docs/security.md names the evidence for each of its lines: all of it exists.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// The text between two of the same marks, within one line.
fn between(text: &str, mark: char) -> Vec<&str> {
    text.lines().flat_map(|line| line.split(mark).skip(1).step_by(2)).collect()
}

fn sources(folder: &Path, found: &mut String) {
    for entry in fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn every_test_and_every_attack_that_the_page_names_exists() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = fs::read_to_string(repository.join("docs/security.md")).unwrap();
    let mut code = String::new();
    for room in [
        "protocol/src",
        "protocol/tests",
        "agent/src",
        "agent/tests",
        "controller/cli/src",
        "controller/server/src",
        "controller/cli/tests",
        "controller/server/tests",
        "tests/testbed/tests",
    ] {
        sources(&repository.join(room), &mut code);
    }
    let tests: BTreeSet<&str> =
        between(&page, '`').into_iter().filter(|word| word.matches('_').count() >= 3).collect();
    assert!(tests.len() >= 40, "{tests:?}");
    for test in tests {
        assert!(code.contains(&format!("fn {test}(")), "there is no test {test}");
    }

    let mut suite = String::new();
    sources(&repository.join("tests/testbed/tests/attacks"), &mut suite);
    // Text between marks that are not those of bold text.
    let plain = page.replace("**", "").replace('`', "");
    let attacks: BTreeSet<&str> = between(&plain, '*').into_iter().collect();
    assert!(attacks.len() >= 60, "{attacks:?}");
    for attack in attacks {
        assert!(suite.contains(&format!("{attack:?}")), "there is no attack '{attack}'");
    }
}
