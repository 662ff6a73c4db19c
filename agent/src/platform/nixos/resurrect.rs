//! A unit that starts the activator at the next boot. A transient unit is gone then, and the new system's
//! agent may be the very thing that does not work.
//!
//! `/etc/systemd/system.control` is the place for persistent units made by programs (systemd.unit(5)); NixOS
//! manages `/etc/systemd/system` and leaves this one alone. Between switches the unit and its link are in the
//! state folder, if that is on the same file system: nothing has to be created on disk for the next switch.
//!
//! A switch starts whatever the active targets want, including this unit. It has nothing to do while the
//! transient one runs, whose runtime directory is its condition: after a boot that does not exist.
//!
//! If `/etc` is read-only (`system.etc.overlay.mutable = false`), the unit of this name in the NixOS module
//! takes its place; each boot would start it, so its condition is a link in the state folder to the program
//! to run.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use super::super::layout::Layout;
use crate::durable;

const FOLDER: &str = "/etc/systemd/system.control";
const UNIT: &str = "muster-activator.service";
const WANTS: &str = "multi-user.target.wants";
/// The link's name between switches.
const LINK: &str = "wanted";
/// In the folder of parked units: the program that the NixOS module's unit starts.
const PROGRAM: &str = "activator";
/// The runtime directory of the activator started by the agent, below `/run`.
pub const STARTED: &str = "muster-activator";

/// Makes the next boot start `activator`, a program and its arguments. `parked` is the folder for unit and
/// link between switches.
pub fn at_boot(layout: &Layout, parked: &Path, activator: &[String]) -> io::Result<()> {
    match in_control(layout, parked, activator) {
        Ok(()) => {
            forget_program(parked);
            Ok(())
        }
        Err(error) => match by_module(layout, parked, activator)? {
            true => Ok(()),
            false => Err(error),
        },
    }
}

/// For the NixOS module's unit; returns whether there is one.
fn by_module(layout: &Layout, parked: &Path, activator: &[String]) -> io::Result<bool> {
    let Some(program) = activator.first() else { return Ok(false) };
    fs::create_dir_all(parked)?;
    let (link, new) = (parked.join(PROGRAM), parked.join("activator.new"));
    durable::remove(&new)?;
    symlink(program, &new)?;
    fs::rename(&new, &link)?;
    durable::sync_folder(parked)?;
    Ok(layout.system("/etc/systemd/system").join(UNIT).exists())
}

fn in_control(layout: &Layout, parked: &Path, activator: &[String]) -> io::Result<()> {
    let (unit, link) = places(layout);
    let words: Vec<String> = activator.iter().map(|word| quoted(word)).collect();
    let text = format!(
        "# Written by muster-agent while a switch is under way, and removed at its end.\n[Unit]\n\
         Description=Muster's activator, after a reboot in mid-switch\n\
         ConditionPathExists=!/run/{STARTED}\n\n[Service]\nType=exec\nExecStart={}\n\
         Restart=on-failure\nRestartSec=5\n\n[Install]\nWantedBy=multi-user.target\n",
        words.join(" ")
    );
    if !says(&unit, &text) {
        fs::create_dir_all(layout.system(FOLDER).join(WANTS))?;
        let parked = parked.join(UNIT);
        if !says(&parked, &text) || durable::replace(&parked, &unit).is_err() {
            durable::write(&unit, text.as_bytes(), 0o644)?;
        }
    }
    if !link.is_symlink() && fs::rename(parked.join(LINK), &link).is_err() {
        symlink(format!("../{UNIT}"), &link)?;
    }
    durable::sync_folder(&layout.system(FOLDER).join(WANTS))
}

/// The switch is over. Without its link the unit does not start; so the link goes first.
pub fn no_more(layout: &Layout, parked: &Path) -> io::Result<()> {
    let (unit, link) = places(layout);
    let _ = fs::create_dir_all(parked);
    forget_program(parked);
    park(&link, &parked.join(LINK))?;
    park(&unit, &parked.join(UNIT))
}

/// A leftover unit starts an activator that has nothing to do.
fn forget_program(parked: &Path) {
    let _ = durable::remove(&parked.join(PROGRAM));
}

fn park(file: &Path, parked: &Path) -> io::Result<()> {
    match fs::rename(file, parked) {
        // On a read-only file system, removing a missing file is an error too.
        Err(_) if file.symlink_metadata().is_err() => Ok(()),
        // The state folder is on another file system.
        Err(_) => durable::remove(file),
        Ok(()) => file.parent().map_or(Ok(()), durable::sync_folder),
    }
}

fn says(unit: &Path, text: &str) -> bool {
    durable::read(unit, 64 * 1024).ok().flatten().as_deref() == Some(text.as_bytes())
}

fn places(layout: &Layout) -> (PathBuf, PathBuf) {
    let folder = layout.system(FOLDER);
    (folder.join(UNIT), folder.join(WANTS).join(UNIT))
}

/// Quotes a word as systemd reads it in a command line: quotes keep blanks, doubled `%` and `$` stand for
/// themselves.
fn quoted(word: &str) -> String {
    let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{word}\"")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use muster_protocol::machine::Class;

    use super::*;
    use crate::platform::testing::layout;

    #[test]
    fn i4_a_boot_in_mid_switch_starts_the_activator_until_the_switch_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        let activator = ["/nix/store/x/bin/muster-agent", "--config", "/a b/100%.toml", "activate"];
        let activator = activator.map(str::to_owned);
        let parked = folder.path().join("state/at-boot");
        let (unit, link) = places(&layout);
        let mut inodes = Vec::new();
        for _ in 0..3 {
            for _ in 0..2 {
                at_boot(&layout, &parked, &activator).unwrap();
            }
            let text = fs::read_to_string(&link).unwrap();
            let line = r#"ExecStart="/nix/store/x/bin/muster-agent" "--config" "/a b/100%%.toml" "activate""#;
            assert!(text.lines().any(|found| found == line), "{text}");
            assert!(
                text.lines().any(|found| found == "ConditionPathExists=!/run/muster-activator"),
                "{text}"
            );
            inodes.push((fs::metadata(&unit).unwrap().ino(), link.symlink_metadata().unwrap().ino()));
            no_more(&layout, &parked).unwrap();
            no_more(&layout, &parked).unwrap();
            assert!(!unit.exists() && link.symlink_metadata().is_err());
        }
        assert!(inodes.iter().all(|inode| *inode == inodes[0]), "they are moved: {inodes:?}");
        // Another program, and a folder that cannot be created.
        at_boot(&layout, &parked, &activator[1..]).unwrap();
        assert!(fs::read_to_string(&link).unwrap().contains("ExecStart=\"--config\""));
        fs::remove_dir_all(&parked).unwrap();
        fs::write(&parked, "no folder").unwrap();
        no_more(&layout, &parked).unwrap();
        assert!(!unit.exists() && link.symlink_metadata().is_err());
    }

    #[test]
    fn i4_where_etc_cannot_be_written_the_modules_own_unit_starts_the_activator_of_old() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        let activator = ["/nix/store/x/bin/muster-agent", "activate"].map(str::to_owned);
        let parked = folder.path().join("state/at-boot");
        let program = parked.join(PROGRAM);
        fs::create_dir_all(layout.system("/etc/systemd/system")).unwrap();
        fs::write(layout.system(FOLDER), "no folder can be made here").unwrap();
        // Without such a unit nothing starts it, and that is reported.
        assert!(at_boot(&layout, &parked, &activator).is_err());
        fs::write(layout.system("/etc/systemd/system").join(UNIT), "[Service]").unwrap();
        for _ in 0..2 {
            at_boot(&layout, &parked, &activator).unwrap();
            assert_eq!(fs::read_link(&program).unwrap(), Path::new("/nix/store/x/bin/muster-agent"));
        }
        // Once it is writable, one unit is enough.
        fs::remove_file(layout.system(FOLDER)).unwrap();
        at_boot(&layout, &parked, &activator).unwrap();
        assert!(program.symlink_metadata().is_err() && places(&layout).1.is_symlink());
        no_more(&layout, &parked).unwrap();
        assert!(!places(&layout).0.exists());
    }
}
