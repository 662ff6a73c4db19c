//! Reads what systemd-boot has left about the last boot: its entries, with their counters, and its variables.
//! Nothing is ever written there: blessing an entry is `systemd-bless-boot`'s work.
//!
//! NixOS names an entry's file by its content or by its generation, and writes `init=SYSTEM/init` into it; a
//! unified kernel image has its generation in its name, or in the `version` of the entry that points to it.

use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use muster_protocol::ids::StorePath;

use super::super::layout::Layout;
use crate::core::boots::{BootFacts, Entry, counter};
use crate::durable;

/// Where the EFI system partition, or the partition of the boot loader's entries, is mounted.
const PARTITIONS: [&str; 3] = ["/boot", "/efi", "/boot/efi"];
const ENTRIES: &str = "loader/entries";
const IMAGES: &str = "EFI/Linux";
/// Variables of the boot loader; the number is systemd's own.
const VARIABLES: &str = "/sys/firmware/efi/efivars";
const VENDOR: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";

/// Limits on what is read.
const MAX_FILES: usize = 1024;
const MAX_ENTRY_BYTES: u64 = 64 * 1024;
const MAX_VARIABLE_BYTES: u64 = 4096;
/// The partition may be one that is only mounted now.
const LIMIT: Duration = Duration::from_secs(20);

/// What is known, or `None` on a machine without systemd-boot or where it cannot be read in time.
pub fn facts(layout: &Layout) -> Option<BootFacts> {
    let (sender, answer) = mpsc::channel();
    let layout = layout.clone();
    let reads = std::thread::Builder::new().name("boot-entries".to_owned()).spawn(move || {
        let _ = sender.send(read(&layout));
    });
    if let Err(error) = reads {
        tracing::warn!(%error, "the boot loader's entries cannot be read");
        return None;
    }
    answer.recv_timeout(LIMIT).ok().flatten()
}

fn read(layout: &Layout) -> Option<BootFacts> {
    let generations = layout.generations();
    let mut entries = Vec::new();
    for partition in PARTITIONS {
        let partition = layout.system(partition);
        for file in files(&partition.join(ENTRIES), ".conf") {
            let text = durable::read(&partition.join(ENTRIES).join(&file), MAX_ENTRY_BYTES).ok().flatten();
            let text = text.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
            let system = system(&file, &text, &generations);
            entries.push(Entry::new(&file, system));
        }
        for file in files(&partition.join(IMAGES), ".efi") {
            let system = named(&file).and_then(|number| find(number, &generations));
            entries.push(Entry::new(&file, system));
        }
    }
    let selected = variable(layout, "LoaderEntrySelected").map(|name| counter(&name).0);
    let counts = variable(layout, "LoaderBootCountPath").is_some();
    let any = !entries.is_empty() || selected.is_some();
    any.then_some(BootFacts { entries, selected, counts, generations })
}

/// The names of the files with this ending.
fn files(folder: &Path, ending: &str) -> Vec<String> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_FILES);
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(ending)).collect();
    names.sort_unstable();
    names
}

/// The system of an entry. A specialisation has an `init` of its own, and counts as none of these systems.
fn system(file: &str, text: &str, generations: &[(u64, StorePath)]) -> Option<StorePath> {
    let line = |key: &str| text.lines().find_map(|line| Some(line.strip_prefix(key)?.trim_start()));
    if let Some(options) = line("options ") {
        let init = options.split_whitespace().find_map(|word| word.strip_prefix("init="))?;
        return init.strip_suffix("/init")?.parse().ok();
    }
    // Another profile's, or a specialisation's, says so in its title.
    if line("title ").is_some_and(|title| title.contains(['[', '('])) {
        return None;
    }
    let number = line("version Generation ").and_then(number).or_else(|| named(file))?;
    find(number, generations)
}

fn find(number: u64, generations: &[(u64, StorePath)]) -> Option<StorePath> {
    generations.iter().find(|(known, _)| *known == number).map(|(_, system)| system.clone())
}

/// The generation in a file's name, unless it is a specialisation's.
fn named(file: &str) -> Option<u64> {
    let rest = file.strip_prefix("nixos-generation-")?;
    if rest.contains("-specialisation-") { None } else { number(rest) }
}

fn number(text: &str) -> Option<u64> {
    let end = text.find(|letter: char| !letter.is_ascii_digit()).unwrap_or(text.len());
    text[..end].parse().ok()
}

/// A text variable: four bytes of attributes, then UTF-16 with a zero at its end.
fn variable(layout: &Layout, name: &str) -> Option<String> {
    let file = layout.system(VARIABLES).join(format!("{name}-{VENDOR}"));
    let bytes = durable::read(&file, MAX_VARIABLE_BYTES).ok().flatten()?;
    let units: Vec<u16> =
        bytes.get(4..)?.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]])).collect();
    let end = units.iter().position(|unit| *unit == 0).unwrap_or(units.len());
    String::from_utf16(&units[..end]).ok().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use muster_protocol::machine::Class;

    use super::super::super::testing::layout;
    use super::*;
    use crate::core::boots::{Assessment, Tries, assess};
    use crate::core::records::tests::path;

    /// A machine with three generations, whose EFI partition is at `partition`.
    fn machine(partition: &str) -> (tempfile::TempDir, Layout) {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        let profiles = layout.profile().parent().unwrap().to_path_buf();
        std::fs::create_dir_all(&profiles).unwrap();
        for (number, name) in [(4, "old"), (5, "new"), (12, "later")] {
            symlink(path(name).as_str(), profiles.join(format!("system-{number}-link"))).unwrap();
        }
        symlink("system-5-link", layout.profile()).unwrap();
        for inside in [ENTRIES, IMAGES] {
            std::fs::create_dir_all(layout.system(partition).join(inside)).unwrap();
        }
        (folder, layout)
    }

    fn says(layout: &Layout, name: &str, text: &str) {
        let folder = layout.system(VARIABLES);
        std::fs::create_dir_all(&folder).unwrap();
        let mut bytes = vec![6, 0, 0, 0];
        text.encode_utf16().chain([0]).for_each(|unit| bytes.extend(unit.to_le_bytes()));
        std::fs::write(folder.join(format!("{name}-{VENDOR}")), bytes).unwrap();
    }

    #[test]
    fn a_machine_without_systemd_boot_has_nothing_to_say() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(facts(&layout(folder.path(), Class::Nixos)), None);
    }

    #[test]
    fn entries_are_matched_with_systems_by_what_they_boot_however_they_are_named() {
        for partition in PARTITIONS {
            let (_folder, layout) = machine(partition);
            let entries = layout.system(partition).join(ENTRIES);
            let boots = |name: &str| {
                format!("title NixOS\nversion Generation 9 x\noptions init={}/init quiet\n", path(name))
            };
            let image =
                "title NixOS\nversion Generation 12 26.11, built on 2026-11-01\nuki /EFI/nixos/x.efi\n";
            for (file, text) in [
                ("nixos-0f3a+2-1.conf", boots("new")),
                ("nixos-77aa.conf", boots("old")),
                ("nixos-9b.conf", image.to_owned()),
                ("nixos-9c.conf", image.replace("NixOS", "NixOS (gaming)")),
                ("memtest.conf", "title Memtest\nefi /x\n".to_owned()),
                ("nixos-long.conf", "x".repeat(100_000)),
            ] {
                std::fs::write(entries.join(file), text).unwrap();
            }
            for file in ["nixos-generation-4-abc+0-3.efi", "nixos-generation-5-specialisation-x.efi"] {
                std::fs::write(layout.system(partition).join(IMAGES).join(file), "PE").unwrap();
            }
            says(&layout, "LoaderEntrySelected", "nixos-77aa.conf");
            let facts = facts(&layout).unwrap();
            let found: Vec<_> =
                facts.entries.iter().map(|e| (e.name.as_str(), e.system.clone(), e.tries)).collect();
            assert_eq!(
                found,
                [
                    ("memtest.conf", None, None),
                    ("nixos-0f3a.conf", Some(path("new")), Some(Tries { left: 2, done: 1 })),
                    ("nixos-77aa.conf", Some(path("old")), None),
                    ("nixos-9b.conf", Some(path("later")), None),
                    ("nixos-9c.conf", None, None),
                    ("nixos-long.conf", None, None),
                    ("nixos-generation-4-abc.efi", Some(path("old")), Some(Tries { left: 0, done: 3 })),
                    ("nixos-generation-5-specialisation-x.efi", None, None),
                ]
            );
            assert_eq!((facts.selected.as_deref(), facts.counts), (Some("nixos-77aa.conf"), false));
            assert_eq!(facts.generations.len(), 3);
            assert!(matches!(assess(&path("new"), &facts), Assessment::Tried { .. }));
        }
    }

    #[test]
    fn variables_are_read_as_efivarfs_shows_them_and_damaged_ones_are_none() {
        let (_folder, layout) = machine("/boot");
        says(&layout, "LoaderEntrySelected", "nixos-a+2-1.conf");
        says(&layout, "LoaderBootCountPath", "\\loader\\entries\\nixos-a+2-1.conf");
        let read = facts(&layout).unwrap();
        assert_eq!((read.selected.as_deref(), read.counts), (Some("nixos-a.conf"), true));
        let file = layout.system(VARIABLES).join(format!("LoaderEntrySelected-{VENDOR}"));
        for bytes in [&b""[..], b"abc", &[6, 0, 0, 0], &[6, 0, 0, 0, 0x00, 0xd8, 0, 0], &[7; 10_000]] {
            std::fs::write(&file, bytes).unwrap();
            assert_eq!(variable(&layout, "LoaderEntrySelected"), None, "{bytes:?}");
        }
    }
}
