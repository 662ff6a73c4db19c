//! The launchd jobs that a system leaves behind. nix-darwin removes the jobs of what `/run/current-system`
//! points at; if a boot, or an activation that changes `activate-system`, moved that link first, or if an
//! activation was cut short before it, the other system's jobs stay forever. Nor does it load what it had
//! installed before it was cut short.

use std::collections::BTreeSet;
use std::path::Path;

use muster_protocol::ids::StorePath;

use super::super::layout::Layout;
use super::super::programs::run;
use super::session;
use crate::durable;

const DAEMONS: &str = "Library/LaunchDaemons";
const FOLDERS: [&str; 2] = [DAEMONS, "Library/LaunchAgents"];
const USERS: &str = "user/Library/LaunchAgents";
const MAX_PLIST_BYTES: u64 = 1024 * 1024;

/// Removes the jobs of `from` that `to` does not have. A file that somebody changed no longer belongs to
/// `from`, and stays.
pub fn tidy(layout: &Layout, from: &StorePath, to: &StorePath) {
    for folder in FOLDERS {
        for name in left(layout, folder, from, to) {
            let installed = layout.system(folder).join(&name);
            if !same(&installed, &layout.physical(from).join(folder).join(&name)) {
                continue;
            }
            tracing::info!("removing {}, which {to} does not have", installed.display());
            let _ = run(layout, "launchctl", &["unload", &installed.to_string_lossy()]);
            if let Err(error) = std::fs::remove_file(&installed) {
                tracing::warn!(%error, "{} cannot be removed", installed.display());
            }
        }
    }
    load_missing(layout, to);
    let users = left(layout, USERS, from, to);
    if let Some(user) = (!users.is_empty()).then(|| session::primary_user_of(layout, from)).flatten() {
        for name in users {
            let plist = layout.physical(from).join(USERS).join(&name);
            as_user(layout, &user, &plist.to_string_lossy(), &name);
        }
    }
}

/// Loads what `to` installed and launchd does not have: after an activation that was cut short between the
/// two, the next one finds the file in place and never loads it.
fn load_missing(layout: &Layout, to: &StorePath) {
    let of_the_system = layout.physical(to).join(DAEMONS);
    let entries = std::fs::read_dir(&of_the_system).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| name.ends_with(".plist")).collect();
    names.sort();
    if names.is_empty() {
        return;
    }
    let Ok(listed) = run(layout, "launchctl", &["list"]) else { return };
    let loaded: BTreeSet<&str> = listed.said.lines().filter_map(|line| line.split('\t').nth(2)).collect();
    // No Mac has none: an empty answer is a failed query.
    if listed.exit != 0 || loaded.len() < 2 {
        return;
    }
    for name in names.iter().filter(|name| !loaded.contains(name.trim_end_matches(".plist"))) {
        let installed = layout.system(DAEMONS).join(name);
        if same(&installed, &of_the_system.join(name)) {
            tracing::info!("loading {}, which launchd does not have", installed.display());
            let _ = run(layout, "launchctl", &["load", "-w", &installed.to_string_lossy()]);
        }
    }
}

/// The user's own folder is accessed only with the user's rights.
fn as_user(layout: &Layout, user: &str, plist: &str, name: &str) {
    let script = "f=$HOME/Library/LaunchAgents/$2; cmp -s \"$1\" \"$f\" || exit 0; \
                  launchctl unload \"$f\" 2> /dev/null; rm -f \"$f\"";
    let words = ["--user", user, "--set-home", "--", "/bin/sh", "-c", script, "sh", plist, name];
    match run(layout, "sudo", &words) {
        Ok(finished) if finished.exit == 0 => {}
        Ok(finished) => tracing::warn!("{user}'s {name} cannot be removed: {}", finished.output.trim()),
        Err(error) => tracing::warn!("{user}'s {name} cannot be removed: {error}"),
    }
}

fn left(layout: &Layout, folder: &str, from: &StorePath, to: &StorePath) -> Vec<String> {
    let kept = layout.physical(to).join(folder);
    let entries = std::fs::read_dir(layout.physical(from).join(folder)).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<String> = names.filter(|name| kept.join(name).symlink_metadata().is_err()).collect();
    names.sort();
    names
}

fn same(installed: &Path, of_the_system: &Path) -> bool {
    let read = |path: &Path| durable::read(path, MAX_PLIST_BYTES).ok().flatten();
    installed.symlink_metadata().is_ok_and(|facts| facts.is_file())
        && read(installed).is_some_and(|bytes| read(of_the_system) == Some(bytes))
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;

    use super::super::super::testing::{layout, script};
    use super::*;
    use crate::core::records::tests::path;

    #[test]
    fn the_jobs_that_a_system_leaves_behind_are_removed_and_nobody_elses() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Darwin);
        let write = |place: std::path::PathBuf, text: &str| {
            std::fs::create_dir_all(place.parent().unwrap()).unwrap();
            std::fs::write(place, text).unwrap();
        };
        let daemons = "Library/LaunchDaemons";
        for (system, name) in [
            ("from", "gone"),
            ("from", "kept"),
            ("from", "changed"),
            ("from", "absent"),
            ("to", "kept"),
            ("to", "cut-short"),
            ("to", "taken"),
        ] {
            write(layout.physical(&path(system)).join(daemons).join(format!("{name}.plist")), name);
        }
        for (name, text) in [
            ("gone", "gone"),
            ("kept", "kept"),
            ("changed", "by somebody"),
            ("foreign", "foreign"),
            ("cut-short", "cut-short"),
            ("taken", "by somebody"),
        ] {
            write(layout.system(daemons).join(format!("{name}.plist")), text);
        }
        write(layout.physical(&path("from")).join(USERS).join("own.plist"), "own");
        let activate = "launchctl asuser \"$(id -u -- alice)\" sudo --user=alice -- launchctl load -w x";
        write(layout.physical(&path("from")).join("activate"), activate);
        for program in ["launchctl", "sudo"] {
            let text = "echo \"$@\" >> $0.asked; [ \"$1\" != list ] || printf \
                'PID\\tStatus\\tLabel\\n-\\t0\\tkept\\n'";
            script(&folder.path().join("programs").join(program), text);
        }
        tidy(&layout, &path("from"), &path("to"));
        let left = std::fs::read_dir(layout.system(daemons)).unwrap().flatten();
        let mut left: Vec<String> = left.map(|entry| entry.file_name().into_string().unwrap()).collect();
        left.sort();
        assert_eq!(left, ["changed.plist", "cut-short.plist", "foreign.plist", "kept.plist", "taken.plist"]);
        let asked = |name: &str| {
            std::fs::read_to_string(folder.path().join(format!("programs/{name}.asked"))).unwrap()
        };
        let installed = |name: &str| layout.system(daemons).join(name).display().to_string();
        let (gone, cut_short) = (installed("gone.plist"), installed("cut-short.plist"));
        assert_eq!(asked("launchctl").trim(), format!("unload {gone}\nlist\nload -w {cut_short}"));
        assert!(asked("sudo").starts_with("--user alice --set-home -- /bin/sh -c "));
        assert!(asked("sudo").trim().ends_with("own.plist"));
    }
}
