//! What Nix prints and its caches serve.

use std::os::unix::process::ExitStatusExt as _;
use std::process::ExitStatus;

use muster::flake::derivations::described_in;
use muster::flake::evaluate::Metadata;
use muster::flake::facts::Muster;
use muster::flake::machines::Facts;
use muster::flake::nix::shorten;
use muster_agent::core::progress::{Tracker, describe};
use muster_agent::nix::{message, tail};
use muster_protocol::derivation::Derivation;
use muster_protocol::ids::{StorePath, nix_base32};
use muster_protocol::machine::System;
use muster_protocol::narinfo::{NarFile, Narinfo};
use muster_protocol::report::{MAX_LOG_TAIL, UpdateStep};

use crate::input;

/// A narinfo, and the name of an archive.
pub fn narinfo(data: &[u8]) -> bool {
    let file = input::text(data).and_then(NarFile::parse);
    if let Some(file) = &file {
        assert!(file.key().starts_with("nar/") && file.key().matches('/').count() == 1, "{}", file.key());
        assert!(!file.key().contains("..") && file.hash().len() == 52);
    }
    let Ok(info) = Narinfo::parse(data) else { return file.is_some() };
    assert!(info.same_content(&info));
    let text = info.text();
    assert_eq!(Narinfo::parse(text.as_bytes()).as_ref(), Ok(&info), "what is handed on says the same");
    assert!(text.lines().any(|line| line.starts_with("URL: nar/")), "{text}");
    assert!(info.file_size > 0 && info.nar_size > 0);
    assert_eq!(info.path.hash_part().len(), 32);
    assert!(!info.path.name().contains('/'));
    true
}

pub fn derivation(data: &[u8]) -> bool {
    let Ok(derivation) = Derivation::parse(&String::from_utf8_lossy(data)) else { return false };
    let _ = derivation.platform.parse::<System>();
    let _ = derivation.outputs.iter().filter_map(|path| path.parse::<StorePath>().ok()).count();
    true
}

/// Whatever Nix prints: JSON of flakes and derivations, messages, logs, progress.
pub fn printed(data: &[u8]) -> bool {
    let text = String::from_utf8_lossy(data);
    let mut tracker = Tracker::new(UpdateStep::Build);
    let idle = tracker.progress().clone();
    for line in text.lines() {
        assert!(
            tracker.line(line).is_none_or(|kept| kept.len() <= 2 * line.len()),
            "more is kept than was said"
        );
    }
    let far = *tracker.progress() != idle;
    assert!(describe(tracker.progress()).len() <= 200 + data.len());
    let _ = shorten(&text);
    assert!(message(&text, ExitStatus::from_raw(256)).len() < 2048);
    assert!(tail(&text).len() <= MAX_LOG_TAIL);
    let _ = nix_base32(&muster_protocol::ids::Sha256::of(data));
    let muster = serde_json::from_slice::<Muster>(data);
    if let Ok(muster) = &muster {
        for (name, machine) in &muster.machines {
            let _ = machine.health_checks(name).map_err(|error| error.to_string());
        }
    }
    let value = serde_json::from_slice::<serde_json::Value>(data).unwrap_or_default();
    let system = described_in(&value).iter().any(|(_, system, _)| system.parse::<System>().is_ok());
    let facts = serde_json::from_slice::<Facts>(data)
        .is_ok_and(|facts| facts.drv.parse::<StorePath>().is_ok() && facts.out.parse::<StorePath>().is_ok());
    far | system | facts | muster.is_ok() | serde_json::from_slice::<Metadata>(data).is_ok()
}
