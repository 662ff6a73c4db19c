//! The layout on disk, compared with fleets that Clan's own tools wrote: what we would write is what is
//! there. `MUSTER_CLAN_FLEETS` has the fleets' folders, separated by colons. `tests/secrets --fleet FOLDER`
//! runs this.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use muster::vars::keys::{key_file, parse_key_file};
use muster::vars::layout::{self, Kind};
use muster::vars::recipients::Links;
use muster::vars::repository::Snapshot;

fn fleets() -> Vec<PathBuf> {
    let named = std::env::var_os("MUSTER_CLAN_FLEETS").unwrap_or_default();
    let fleets: Vec<PathBuf> =
        std::env::split_paths(&named).filter(|path| !path.as_os_str().is_empty()).collect();
    assert!(!fleets.is_empty(), "name fleets in MUSTER_CLAN_FLEETS");
    fleets
}

/// Everything below a folder; links are not followed.
fn below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut left = vec![folder.to_owned()];
    while let Some(folder) = left.pop() {
        for entry in fs::read_dir(folder).into_iter().flatten() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    found
}

#[test]
#[ignore = "needs fleets of Clan's in MUSTER_CLAN_FLEETS"]
fn links_are_those_that_clan_wrote() {
    for fleet in fleets() {
        let snapshot = Snapshot::read(&fleet).unwrap();
        assert!(
            !snapshot.secrets.is_empty() || !snapshot.values.is_empty(),
            "{} has no variables",
            fleet.display()
        );
        let mut links = 0;
        for (folder, secret) in &snapshot.secrets {
            for ((kind, name), target) in &secret.links {
                assert_eq!(*target, layout::link_target(folder, *kind, name), "{}", folder.display());
                links += 1;
            }
        }
        for group in snapshot.members.groups.keys() {
            let folder = layout::member(Kind::Group, group);
            for kind in [Kind::Machine, Kind::User] {
                for path in below(&fleet.join(&folder).join(kind.folder())) {
                    let name = path.file_name().unwrap().to_str().unwrap();
                    assert_eq!(fs::read_link(&path).unwrap(), layout::link_target(&folder, kind, name));
                    links += 1;
                }
            }
        }
        println!("{}: {} secrets, {links} links", fleet.display(), snapshot.secrets.len());
    }
}

#[test]
#[ignore = "needs fleets of Clan's in MUSTER_CLAN_FLEETS"]
fn key_files_are_read_and_would_be_written_as_they_are() {
    for fleet in fleets() {
        for path in below(&fleet.join("sops")).iter().filter(|path| path.ends_with("key.json")) {
            let text = fs::read_to_string(path).unwrap();
            let keys =
                parse_key_file(text.as_bytes()).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            // Until 2024 Clan wrote a key without a list around it; some editors add a newline.
            if text.starts_with('[') {
                assert_eq!(key_file(&keys), text.trim_end(), "{}", path.display());
            }
        }
    }
}

#[test]
#[ignore = "needs fleets of Clan's in MUSTER_CLAN_FLEETS"]
fn files_are_encrypted_to_whom_the_links_name() {
    for fleet in fleets() {
        let snapshot = Snapshot::read(&fleet).unwrap();
        let (mut same, mut other) = (0, BTreeSet::new());
        for (folder, secret) in &snapshot.secrets {
            let found =
                secret.recipients.as_ref().unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
            let links: Links = secret.living_links(&snapshot.members);
            if snapshot.members.recipients(&links).unwrap() == *found {
                same += 1;
            } else {
                other.insert(folder);
            }
        }
        println!("{}: {same} as the links say, {} not", fleet.display(), other.len());
        // A fleet may have some that wait for `clan vars fix`; most are settled.
        assert!(same >= other.len() * 4, "{other:?}");
    }
}

#[test]
#[ignore = "needs fleets of Clan's in MUSTER_CLAN_FLEETS"]
fn hashes_are_bare() {
    for fleet in fleets() {
        for path in below(&fleet.join("vars")).iter().filter(|path| path.ends_with(layout::VALIDATION_HASH)) {
            let text = fs::read_to_string(path).unwrap();
            assert!(
                text.len() == 64 && text.bytes().all(|b| b.is_ascii_hexdigit()),
                "{}: {text:?}",
                path.display()
            );
        }
    }
}
