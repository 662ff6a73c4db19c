//! GC roots that protect every system that may still be needed.

use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use muster_protocol::ids::StorePath;

use crate::durable;
use crate::platform::Layout;

/// What is being built or tried.
pub const NEW: &str = "new";
/// What an undo goes back to.
const OLD: &str = "old";
/// The confirmed system, and its predecessor.
const CURRENT: &str = "current";
const PREVIOUS: &str = "previous";

/// The link of what `nix-store --add-root` builds.
pub fn new_link(layout: &Layout) -> PathBuf {
    layout.gcroots().join(NEW)
}

/// Before an activation: both systems stay.
pub fn hold(layout: &Layout, new: &StorePath, old: Option<&StorePath>) -> io::Result<()> {
    link(layout, NEW, new)?;
    let Some(old) = old else { return Ok(()) };
    // Usually the confirmed one: a hard link to the existing link, where the file system allows that (APFS
    // does not), so that nothing has to be created on disk.
    let named = points_to(layout, CURRENT, old)
        && !layout.gcroots().join(OLD).is_symlink()
        && std::fs::hard_link(layout.gcroots().join(CURRENT), layout.gcroots().join(OLD)).is_ok()
        && points_to(layout, OLD, old);
    if named { Ok(()) } else { link(layout, OLD, old) }
}

/// After a confirmation: the new system and the one before it stay.
pub fn confirm(layout: &Layout, new: &StorePath, previous: Option<&StorePath>) -> io::Result<()> {
    // Renamed if it exists: nothing has to be created on disk.
    let keep = |held: &str, name: &str, path: &StorePath| match points_to(layout, held, path) {
        true => std::fs::rename(layout.gcroots().join(held), layout.gcroots().join(name)),
        false => link(layout, name, path),
    };
    keep(NEW, CURRENT, new)?;
    if let Some(previous) = previous.filter(|previous| *previous != new) {
        keep(OLD, PREVIOUS, previous)?;
    }
    release(layout)
}

/// After an undo: the tried system may be collected.
pub fn release(layout: &Layout) -> io::Result<()> {
    durable::remove(&layout.gcroots().join(NEW))?;
    durable::remove(&layout.gcroots().join(OLD))
}

fn points_to(layout: &Layout, name: &str, path: &StorePath) -> bool {
    std::fs::read_link(layout.gcroots().join(name)).is_ok_and(|held| held.as_os_str() == path.as_str())
}

fn link(layout: &Layout, name: &str, path: &StorePath) -> io::Result<()> {
    if points_to(layout, name, path) {
        return Ok(());
    }
    let folder = layout.gcroots();
    std::fs::create_dir_all(&folder)?;
    let (link, temporary) = (folder.join(name), folder.join(format!("{name}.link")));
    durable::remove(&temporary)?;
    symlink(path.as_str(), &temporary)?;
    std::fs::rename(temporary, link)
}

#[cfg(test)]
mod tests {
    use muster_protocol::machine::Class;

    use super::*;
    use crate::core::records::tests::path;
    use crate::platform::testing::layout;

    #[test]
    fn old_and_new_are_rooted_until_it_is_decided_and_the_previous_one_after() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        let rooted = || {
            let mut found: Vec<String> = std::fs::read_dir(layout.gcroots())
                .unwrap()
                .map(|entry| {
                    let entry = entry.unwrap();
                    let target = std::fs::read_link(entry.path()).unwrap();
                    let base = target.to_string_lossy().rsplit_once('-').unwrap().1.to_owned();
                    format!("{}={base}", entry.file_name().to_string_lossy())
                })
                .collect();
            found.sort();
            found.join(" ")
        };
        hold(&layout, &path("b"), Some(&path("a"))).unwrap();
        assert_eq!(rooted(), "new=b old=a");
        confirm(&layout, &path("b"), Some(&path("a"))).unwrap();
        assert_eq!(rooted(), "current=b previous=a");
        hold(&layout, &path("c"), Some(&path("b"))).unwrap();
        assert_eq!(rooted(), "current=b new=c old=b previous=a");
        release(&layout).unwrap();
        assert_eq!(rooted(), "current=b previous=a");
        confirm(&layout, &path("b"), Some(&path("b"))).unwrap();
        assert_eq!(rooted(), "current=b previous=a");
    }
}
