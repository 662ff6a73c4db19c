//! Who is logged in at a Mac, and whether a system can be activated without them.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use muster_protocol::ids::StorePath;

use super::super::layout::Layout;
use super::super::programs::run;

/// Where a system keeps its primary user's launch agents.
const AGENTS: &str = "user/Library/LaunchAgents";

/// The owner of the console, unless that is root: then nobody is logged in.
pub fn console(layout: &Layout) -> Option<u32> {
    let owner = std::fs::metadata(layout.system("/dev/console")).ok()?.uid();
    (owner != 0).then_some(owner)
}

/// Who must be logged in before `new` can be activated, and is not: nix-darwin loads each changed launch
/// agent into the primary user's session, and stops halfway if there is none (nix-darwin#1758).
pub fn absent(layout: &Layout, new: &StorePath) -> Option<String> {
    let script = std::fs::read_to_string(layout.physical(new).join("activate")).unwrap_or_default();
    let primary = primary_user(&script);
    let at_screen = console(layout);
    let present = match primary.and_then(|name| user_id(layout, name)) {
        // With fast user switching there may be a session in the background.
        Some(user) => at_screen == Some(user) || has_session(layout, user),
        None => at_screen.is_some(),
    };
    if present {
        return None;
    }
    let agents = layout.physical(new).join(AGENTS);
    let old = layout.running().map(|running| layout.physical(&running).join(AGENTS));
    let changed = std::fs::read_dir(agents).ok()?.flatten().any(|entry| {
        let before = old.as_ref().map(|old| old.join(entry.file_name()));
        before.is_none_or(|before| differ(&entry.path(), &before))
    });
    changed.then(|| primary.unwrap_or("its user").to_owned())
}

fn user_id(layout: &Layout, name: &str) -> Option<u32> {
    let asked = run(layout, "id", &["-u", "--", name]).ok()?;
    asked.output.trim().parse().ok().filter(|_| asked.exit == 0)
}

fn has_session(layout: &Layout, user: u32) -> bool {
    run(layout, "launchctl", &["print", &format!("gui/{user}")]).is_ok_and(|printed| printed.exit == 0)
}

fn differ(one: &Path, other: &Path) -> bool {
    match (std::fs::read(one), std::fs::read(other)) {
        (Ok(one), Ok(other)) => one != other,
        _ => true,
    }
}

/// The user whose launch agents a system brings.
pub fn primary_user_of(layout: &Layout, system: &StorePath) -> Option<String> {
    let script = std::fs::read_to_string(layout.physical(system).join("activate")).ok()?;
    primary_user(&script).map(str::to_owned)
}

/// `launchctl asuser "$(id -u -- NAME)" …`, as in nix-darwin's script.
fn primary_user(script: &str) -> Option<&str> {
    let rest = &script[script.find("launchctl asuser \"$(id -u -- ")?..];
    let name = rest.split("id -u -- ").nth(1)?.split(')').next()?;
    let name = name.trim_matches('\'');
    (!name.is_empty() && name.len() < 64).then_some(name)
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;

    use super::super::super::testing::{layout, script};
    use super::*;
    use crate::core::records::tests::path;

    fn agent(layout: &Layout, system: &str, text: &str) {
        let folder = layout.physical(&path(system)).join(AGENTS);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("org.example.plist"), text).unwrap();
    }

    #[test]
    fn failure_mode_8_only_a_changed_agent_of_a_user_who_is_away_holds_an_activation_up() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Darwin);
        agent(&layout, "old", "one");
        agent(&layout, "same", "one");
        agent(&layout, "new", "two");
        std::fs::create_dir_all(layout.physical(&path("without"))).unwrap();
        let text = "launchctl asuser \"$(id -u -- alice)\" sudo --user=alice -- launchctl load -w x";
        std::fs::write(layout.physical(&path("new")).join("activate"), text).unwrap();
        std::fs::create_dir_all(layout.system("/run")).unwrap();
        std::os::unix::fs::symlink(path("old").as_str(), layout.current_system()).unwrap();
        assert_eq!(absent(&layout, &path("new")).as_deref(), Some("alice"));
        assert_eq!(absent(&layout, &path("same")), None);
        assert_eq!(absent(&layout, &path("without")), None);
        std::fs::create_dir_all(layout.system("/dev")).unwrap();
        std::fs::write(layout.system("/dev/console"), "").unwrap();
        let sits = |user| std::os::unix::fs::chown(layout.system("/dev/console"), Some(user), None).unwrap();
        sits(501);
        assert_eq!(console(&layout), Some(501));
        assert_eq!(absent(&layout, &path("new")), None, "nobody knows a user alice here");
        // Somebody else at the screen is not the user whose agent is loaded.
        let programs = folder.path().join("programs");
        script(&programs.join("id"), "test $3 = alice && echo 502");
        script(&programs.join("launchctl"), "test -e $0.gui");
        assert_eq!(absent(&layout, &path("new")).as_deref(), Some("alice"));
        std::fs::write(programs.join("launchctl.gui"), "").unwrap();
        assert_eq!(absent(&layout, &path("new")), None, "their session is behind the other one's");
        std::fs::remove_file(programs.join("launchctl.gui")).unwrap();
        sits(502);
        assert_eq!(absent(&layout, &path("new")), None);
    }
}
