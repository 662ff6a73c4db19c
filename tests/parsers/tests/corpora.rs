//! Every committed input of every fuzz target, with a plain compiler: a fixed crash must stay fixed.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use muster_fuzz::TARGETS;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files
}

/// `ok-…` are documents as they are sent, and must be accepted for ever; others must not crash a parser.
#[test]
fn every_input_is_survived_and_real_documents_are_accepted() {
    for target in &TARGETS {
        let inputs = files(&fuzz().join("corpus").join(target.name));
        let mut accepted = 0;
        for path in inputs {
            let bytes = std::fs::read(&path).unwrap();
            // A small stack reveals a parser that recurses without a limit.
            let run = target.run;
            let running = std::thread::Builder::new().stack_size(1 << 20).spawn(move || run(&bytes)).unwrap();
            let good = running.join().unwrap_or_else(|_| panic!("{} breaks {}", path.display(), target.name));
            if path.file_name().unwrap().to_string_lossy().starts_with("ok-") {
                assert!(good, "{} is refused", path.display());
                accepted += 1;
            }
        }
        assert!(accepted > 0, "{} has no document that it must accept", target.name);
    }
}

#[test]
fn a_key_file_that_would_take_all_memory_or_time_is_refused_before_it_does() {
    use muster_protocol::keys::{KeyError, SecretKey};
    let folder = fuzz().join("corpus/key_files");
    for name in [
        "scrypt-of-a-petabyte",
        "scrypt-of-half-a-gigabyte",
        "scrypt-of-142-megabytes",
        "scrypt-without-end",
        "pbkdf2-without-end",
    ] {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let opened = SecretKey::from_encrypted_pem(&text, "a good one");
        assert!(matches!(opened, Err(KeyError::Costly)), "{name}: {opened:?}");
    }
}

#[test]
fn nothing_and_noise_are_survived_and_not_accepted() {
    let noise: Vec<u8> = (0..4096u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
    for target in TARGETS.iter().filter(|target| target.name != "tuf_refresh") {
        for bytes in [&[][..], b"\0", b"\xff\xfe", &noise, &vec![b'['; 100_000], &vec![b'('; 100_000]] {
            assert!(!(target.run)(bytes), "{} takes {} bytes of noise", target.name, bytes.len());
        }
    }
}

#[test]
fn each_target_has_a_program_and_a_corpus_and_none_is_left_over() {
    let named: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    let stems = |folder: &str| -> BTreeSet<String> {
        let stem = |path: &PathBuf| path.file_stem().unwrap().to_string_lossy().into_owned();
        files(&fuzz().join(folder)).iter().map(stem).collect()
    };
    assert_eq!(stems("corpus"), named);
    assert_eq!(stems("fuzz_targets"), named);
    let manifest = std::fs::read_to_string(fuzz().join("Cargo.toml")).unwrap();
    for name in &named {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name} is not in fuzz/Cargo.toml");
    }
}
