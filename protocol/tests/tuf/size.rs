//! The trust core stays small enough to read in an hour, and does nothing but decide.

use std::path::Path;

/// The signing side, which no machine runs, and what is compiled only for the conformance suite.
const NOT_THE_CORE: [&str; 4] = ["repository.rs", "p256.rs", "delegation.rs", "search.rs"];

/// The core's files with their lines of code: no tests, no comments, no blank lines.
fn core() -> Vec<(String, Vec<String>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tuf");
    let names = std::fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<_> = names.map(|name| name.into_string().unwrap()).collect();
    // Folders inside the core are for the conformance suite too.
    names.retain(|name| name.ends_with(".rs") && !NOT_THE_CORE.contains(&name.as_str()));
    names.push("../tuf.rs".to_owned());
    names.sort();
    let read = |name: String| {
        let text = std::fs::read_to_string(folder.join(&name)).unwrap();
        let shipped = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        let code = shipped.lines().filter(|line| !line.trim().is_empty() && !line.trim().starts_with("//"));
        let code = code.map(str::to_owned).collect();
        (name, code)
    };
    names.into_iter().map(read).collect()
}

#[test]
fn the_trust_core_has_fewer_than_900_lines_of_code() {
    let mut all = 0;
    for (name, code) in core() {
        println!("{:4} {name}", code.len());
        all += code.len();
    }
    println!("{all:4} lines of code");
    assert!(all < 900, "{all} lines of code in the trust core");
    assert!(all > 400, "{all} lines: the core is looked for in the wrong place");
}

#[test]
fn the_trust_core_does_no_input_or_output_and_has_no_clock_and_no_chance() {
    let forbidden = [
        "std::fs",
        "std::io",
        "std::net",
        "std::env",
        "std::process",
        "std::thread",
        "std::time",
        "SystemTime",
        "Instant",
        "now()",
        "Clock",
        "tokio",
        "reqwest",
        "print",
        "random",
        "unsafe",
        "static mut",
    ];
    for (name, code) in core() {
        for line in code {
            let found = forbidden.iter().find(|word| line.contains(**word));
            assert!(found.is_none(), "{name} has {}: {line}", found.unwrap());
        }
    }
}
