//! One function for each parser that reads what came over the network, or that a stranger may have written.
//!
//! A function takes any bytes, panics where an invariant is broken, and says whether the bytes were accepted
//! as what they claim to be. `fuzz/fuzz_targets` gives them to libFuzzer; `tests/corpora.rs` runs them over
//! the committed inputs with a plain compiler, so that a crash that was mended stays mended.
//!
//! For a new parser: a function here, a line in [`TARGETS`], a program in `fuzz/`, and a document in
//! `examples/seeds.rs`, which writes the corpus (`cargo run -p muster-fuzz --example seeds`). A test says
//! what is missing.
// A broken invariant must be seen by libFuzzer, which sees panics.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

pub mod keys;
pub mod machines;
pub mod metadata;
pub mod nix;
pub mod operators;
pub mod oracle;
pub mod refresh;
pub mod replies;
pub mod world;

/// A fuzz target: its name is that of its corpus and of its program.
pub struct Target {
    pub name: &'static str,
    pub run: fn(&[u8]) -> bool,
}

pub const TARGETS: [Target; 19] = [
    Target { name: "tuf_root", run: metadata::root },
    Target { name: "tuf_timestamp", run: metadata::timestamp },
    Target { name: "tuf_snapshot", run: metadata::snapshot },
    Target { name: "tuf_targets", run: metadata::targets },
    Target { name: "tuf_refresh", run: refresh::run },
    Target { name: "canonical_json", run: metadata::canonical_json },
    Target { name: "target", run: metadata::target },
    Target { name: "enrolment", run: machines::enrolment },
    Target { name: "check_in", run: machines::check_in },
    Target { name: "reports", run: machines::reports },
    Target { name: "replies", run: replies::replies },
    Target { name: "signed_requests", run: replies::signed },
    Target { name: "operator", run: operators::requests },
    Target { name: "drafts", run: operators::drafts },
    Target { name: "headers", run: operators::headers },
    Target { name: "narinfo", run: nix::narinfo },
    Target { name: "derivation", run: nix::derivation },
    Target { name: "nix_json", run: nix::printed },
    Target { name: "key_files", run: keys::files },
];

/// The text form, if it is text at all.
fn text(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok()
}

/// Whether these bytes are a `T` in JSON. What was read and is written again must be read as the same.
fn json<T>(bytes: &[u8]) -> bool
where
    T: serde::de::DeserializeOwned + serde::Serialize + PartialEq + std::fmt::Debug,
{
    let Ok(read) = serde_json::from_slice::<T>(bytes) else { return false };
    let written = serde_json::to_vec(&read).expect("what was read can be written");
    let again: T = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(again, read);
    true
}
