//! What was saved survives a power cut: checks the order of system calls.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use muster_agent::durable;

const FOLDER: &str = "MUSTER_TEST_DURABLE_FOLDER";

/// Also run under strace by the test below, which names the folder.
#[test]
fn a_file_is_written_replaced_and_removed() {
    goes_round(durable::write, durable::remove);
}
#[test]
fn a_file_is_rewritten_and_removed() {
    goes_round(durable::rewrite, durable::retire);
}

type Write = fn(&Path, &[u8], u32) -> std::io::Result<()>;

fn goes_round(write: Write, remove: fn(&Path) -> std::io::Result<()>) {
    let own = tempfile::tempdir().unwrap();
    let folder = std::env::var_os(FOLDER).map_or_else(|| own.path().to_owned(), Into::into);
    let path = folder.join("state.json");
    for contents in [b"one".as_slice(), b"two"] {
        write(&path, contents, 0o600).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), contents);
    }
    remove(&path).unwrap();
    assert!(!path.exists());
}

/// A traced process's system calls about the folder, in order and shortened.
#[cfg(target_os = "linux")]
fn asked(folder: &Path, test: &str) -> Vec<String> {
    let trace = folder.join("trace");
    let calls = "trace=write,fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat";
    let status = std::process::Command::new("strace")
        .args(["-f", "-y", "-e", calls, "-e", "signal=none", "-o"])
        .arg(&trace)
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(FOLDER, folder)
        .stdout(std::process::Stdio::null())
        .status()
        .expect("strace is needed: apt-get install strace");
    assert!(status.success());
    let text = std::fs::read_to_string(&trace).unwrap();
    let folder = folder.to_string_lossy();
    let about = text
        .lines()
        .filter(|line| line.contains(&*folder) && !line.ends_with("ENOENT (No such file or directory)"));
    let short = about.map(|line| {
        let call = line.split_ascii_whitespace().nth(1).unwrap_or_default().split('(').next().unwrap();
        let call = call.trim_end_matches("at2").trim_end_matches("at");
        let call = if call == "fdatasync" { "fsync" } else { call };
        let of = if line.contains("state.json.new") {
            "new file"
        } else if line.contains("state.json") {
            "file"
        } else {
            "folder"
        };
        format!("{call} {of}")
    });
    short.collect()
}

#[test]
#[cfg(target_os = "linux")]
fn a_power_cut_loses_nothing_that_was_saved_and_names_nothing_that_was_not() {
    let once = ["write new file", "fsync new file", "rename new file", "fsync folder"];
    for (test, removed) in [
        ("a_file_is_written_replaced_and_removed", ["unlink file", "fsync folder"]),
        ("a_file_is_rewritten_and_removed", ["rename new file", "fsync folder"]),
    ] {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(asked(folder.path(), test), [&once[..], &once, &removed].concat(), "{test}");
    }
}
