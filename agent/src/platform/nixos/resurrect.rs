//! A unit that starts the activator at the next boot. A transient unit is gone then, and the new system's agent may be the
//! very thing that does not work.
//!
//! `/etc/systemd/system.control` is the place for units that programs make and that stay (systemd.unit(5)); NixOS manages
//! `/etc/systemd/system` and leaves this one alone.

use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::durable;
use crate::platform::Layout;

const FOLDER: &str = "/etc/systemd/system.control";
const UNIT: &str = "muster-activator.service";
const WANTS: &str = "multi-user.target.wants";

/// Has the next boot start `activator`, a program and its arguments.
pub fn at_boot(layout: &Layout, activator: &[String]) -> io::Result<()> {
    let (unit, link) = places(layout);
    let words: Vec<String> = activator.iter().map(|word| quoted(word)).collect();
    let text = format!(
        "# Written by muster-agent while a switch is under way, and removed at its end.\n[Unit]\n\
         Description=Muster's activator, after a reboot in mid-switch\n\n[Service]\nType=exec\nExecStart={}\n\
         Restart=on-failure\nRestartSec=5\n\n[Install]\nWantedBy=multi-user.target\n",
        words.join(" ")
    );
    if durable::read(&unit, 64 * 1024).ok().flatten().as_deref() != Some(text.as_bytes()) {
        std::fs::create_dir_all(layout.system(FOLDER).join(WANTS))?;
        durable::write(&unit, text.as_bytes(), 0o644)?;
    }
    match symlink(format!("../{UNIT}"), &link) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => std::fs::File::open(layout.system(FOLDER).join(WANTS))?.sync_all(),
    }
}

/// The switch is over.
pub fn no_more(layout: &Layout) -> io::Result<()> {
    let (unit, link) = places(layout);
    durable::remove(&link)?;
    durable::remove(&unit)
}

fn places(layout: &Layout) -> (PathBuf, PathBuf) {
    let folder = layout.system(FOLDER);
    (folder.join(UNIT), folder.join(WANTS).join(UNIT))
}

/// As systemd reads a word of a command line: quotes keep blanks, and `%` and `$` stand for themselves when doubled.
fn quoted(word: &str) -> String {
    let word = word.replace('\\', "\\\\").replace('"', "\\\"").replace('%', "%%").replace('$', "$$");
    format!("\"{word}\"")
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;

    use super::*;
    use crate::platform::tests::layout;

    #[test]
    fn i4_a_boot_in_mid_switch_starts_the_activator_until_the_switch_is_over() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        let activator = ["/nix/store/x/bin/muster-agent", "--config", "/a b/100%.toml", "activate"];
        let activator = activator.map(str::to_owned);
        for _ in 0..2 {
            at_boot(&layout, &activator).unwrap();
        }
        let (unit, link) = places(&layout);
        let text = std::fs::read_to_string(&link).unwrap();
        let line = r#"ExecStart="/nix/store/x/bin/muster-agent" "--config" "/a b/100%%.toml" "activate""#;
        assert!(text.lines().any(|found| found == line), "{text}");
        no_more(&layout).unwrap();
        no_more(&layout).unwrap();
        assert!(!unit.exists() && link.symlink_metadata().is_err());
    }
}
