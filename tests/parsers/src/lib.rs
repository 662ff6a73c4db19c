//! One function for each parser that reads what came over the network, or that a stranger may have written.
//!
//! A function takes any bytes, panics where an invariant is broken, and says whether the bytes were accepted
//! as what they claim to be. `fuzz/fuzz_targets` gives them to libFuzzer; `tests/corpora.rs` runs them over
//! the committed inputs with a plain compiler, so that a fixed crash stays fixed.
//!
//! The parsers are in `metadata`, `refresh`, `machines`, `replies`, `operators`, `plans`, `nix` and `keys`,
//! which do not use one another. Below them are `oracle` (what must hold of saved metadata), `world` (a
//! fleet with fixed keys and times) and `input` (bytes as text and as JSON).
//!
//! For a new parser: a function here, a line in [`TARGETS`], a program in `fuzz/`, and a document in
//! `examples/seeds.rs`, which writes the corpus (`cargo run -p muster-fuzz --example seeds`). A test says
//! what is missing.
// libFuzzer sees a broken invariant as a panic.
#![allow(clippy::panic, clippy::expect_used, clippy::unwrap_used)]

mod input;
pub mod keys;
pub mod machines;
pub mod metadata;
pub mod nix;
pub mod operators;
pub mod oracle;
pub mod plans;
pub mod refresh;
pub mod replies;
pub mod world;

/// A fuzz target.
pub struct Target {
    /// The name of its corpus and of its program.
    pub name: &'static str,
    /// Whether the bytes are accepted.
    pub run: fn(&[u8]) -> bool,
}

/// Every fuzz target.
pub const TARGETS: [Target; 21] = [
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
    Target { name: "plans", run: plans::documents },
    Target { name: "gates", run: plans::gates },
    Target { name: "headers", run: operators::headers },
    Target { name: "narinfo", run: nix::narinfo },
    Target { name: "derivation", run: nix::derivation },
    Target { name: "nix_json", run: nix::printed },
    Target { name: "key_files", run: keys::files },
];
