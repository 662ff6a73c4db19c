//! Who sits at a Mac, and whether a system can be activated without them.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use muster_protocol::ids::StorePath;

use crate::platform::Layout;

/// Where a system keeps the launch agents of its primary user.
const AGENTS: &str = "user/Library/LaunchAgents";

/// The owner of the console, unless it is root's: then nobody is logged in.
pub fn console(layout: &Layout) -> Option<u32> {
    let owner = std::fs::metadata(layout.system("/dev/console")).ok()?.uid();
    (owner != 0).then_some(owner)
}

/// Who has to be logged in before `new` can be activated, and is not: nix-darwin loads each changed launch agent into the
/// session of the primary user, and stops half way where there is none (nix-darwin#1758).
pub fn absent(layout: &Layout, new: &StorePath) -> Option<String> {
    if console(layout).is_some() {
        return None;
    }
    let agents = layout.physical(new).join(AGENTS);
    let old = layout.running().map(|running| layout.physical(&running).join(AGENTS));
    let changed = std::fs::read_dir(agents).ok()?.flatten().any(|entry| {
        let before = old.as_ref().map(|old| old.join(entry.file_name()));
        before.is_none_or(|before| differ(&entry.path(), &before))
    });
    let script = std::fs::read_to_string(layout.physical(new).join("activate")).unwrap_or_default();
    changed.then(|| primary_user(&script).unwrap_or("its user").to_owned())
}

fn differ(one: &Path, other: &Path) -> bool {
    match (std::fs::read(one), std::fs::read(other)) {
        (Ok(one), Ok(other)) => one != other,
        _ => true,
    }
}

/// `launchctl asuser "$(id -u -- NAME)" …`, as nix-darwin's script has it.
fn primary_user(script: &str) -> Option<&str> {
    let rest = &script[script.find("launchctl asuser \"$(id -u -- ")?..];
    let name = rest.split("id -u -- ").nth(1)?.split(')').next()?;
    let name = name.trim_matches('\'');
    (!name.is_empty() && name.len() < 64).then_some(name)
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;

    use super::super::super::tests::layout;
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
        let script = "launchctl asuser \"$(id -u -- alice)\" sudo --user=alice -- launchctl load -w x";
        std::fs::write(layout.physical(&path("new")).join("activate"), script).unwrap();
        std::fs::create_dir_all(layout.system("/run")).unwrap();
        std::os::unix::fs::symlink(path("old").as_str(), layout.current_system()).unwrap();
        assert_eq!(absent(&layout, &path("new")).as_deref(), Some("alice"));
        assert_eq!(absent(&layout, &path("same")), None);
        assert_eq!(absent(&layout, &path("without")), None);
        std::fs::create_dir_all(layout.system("/dev")).unwrap();
        std::fs::write(layout.system("/dev/console"), "").unwrap();
        std::os::unix::fs::chown(layout.system("/dev/console"), Some(501), None).unwrap();
        assert_eq!(console(&layout), Some(501));
        assert_eq!(absent(&layout, &path("new")), None);
    }
}
