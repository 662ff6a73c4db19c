//! The folder of a machine, with what a real one keeps at `/`.

use std::fs;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// The file that marks a machine's folder. A folder without it is never touched.
pub const MARK: &str = "stand-in-machine";
/// After this many links a path counts as a loop.
const MAX_LINKS: usize = 40;

/// The folder of one machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Root(PathBuf);

impl Root {
    /// The machine at `folder`, which must be one.
    pub fn open(folder: &Path) -> Result<Self> {
        let folder = fs::canonicalize(folder)
            .with_context(|| format!("there is no machine in {}", folder.display()))?;
        if !folder.join(MARK).is_file() {
            bail!("{} is no machine's folder: `muster-machine new` makes one", folder.display());
        }
        Ok(Self(folder))
    }

    /// The machine whose `bin` contains this program.
    pub fn of_this_program() -> Result<Self> {
        let program = std::env::current_exe().context("this program cannot find itself")?;
        let folder = program.parent().and_then(Path::parent).context("this program lies in no machine")?;
        Self::open(folder)
    }

    pub fn folder(&self) -> &Path {
        &self.0
    }

    /// Where the machine keeps `path`, without following links. A path inside the folder is unchanged.
    pub fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        if path.starts_with(&self.0) {
            return path.to_path_buf();
        }
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// Follows every link as the machine sees it. What the machine lacks (`/bin/sh`, or the host's Nix store)
    /// is taken from the host.
    pub fn resolve(&self, path: &Path) -> Result<PathBuf> {
        let mut wanted = path.to_path_buf();
        for _ in 0..MAX_LINKS {
            let inside = self.at(&wanted);
            let Some((place, link)) = first_link(&self.0, &inside) else {
                return Ok(if inside.exists() { inside } else { wanted });
            };
            let rest = inside.strip_prefix(&place).unwrap_or(Path::new(""));
            let target = if link.is_absolute() { link } else { place.parent().unwrap_or(&self.0).join(link) };
            wanted = if rest.as_os_str().is_empty() { target } else { target.join(rest) };
        }
        bail!("{} has too many links", path.display())
    }
}

/// The first part of `path` below `root` that is a symbolic link, and its target.
fn first_link(root: &Path, path: &Path) -> Option<(PathBuf, PathBuf)> {
    let mut place = root.to_path_buf();
    for part in path.strip_prefix(root).ok()?.components() {
        match part {
            Component::ParentDir => {
                place.pop();
            }
            part => place.push(part),
        }
        if let Ok(link) = fs::read_link(&place) {
            return Some((place, link));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn machine() -> (tempfile::TempDir, Root) {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MARK), "").unwrap();
        let root = Root::open(folder.path()).unwrap();
        (folder, root)
    }

    #[test]
    fn links_are_followed_inside_the_machine() {
        let (_folder, root) = machine();
        let system = root.at("/nix/store/abc-system");
        fs::create_dir_all(system.join("sw/bin")).unwrap();
        fs::create_dir_all(root.at("/nix/store/def-tool")).unwrap();
        fs::write(root.at("/nix/store/def-tool/tool"), "").unwrap();
        symlink("/nix/store/def-tool/tool", system.join("sw/bin/tool")).unwrap();
        fs::create_dir_all(root.at("/run")).unwrap();
        symlink("/nix/store/abc-system", root.at("/run/current-system")).unwrap();
        let found = root.resolve(Path::new("/run/current-system/sw/bin/tool")).unwrap();
        assert_eq!(found, root.at("/nix/store/def-tool/tool"));
    }

    #[test]
    fn what_the_machine_lacks_is_the_hosts() {
        let (_folder, root) = machine();
        assert_eq!(root.resolve(Path::new("/bin/sh")).unwrap(), Path::new("/bin/sh"));
        assert_eq!(root.at(root.at("/etc")), root.folder().join("etc"));
    }

    #[test]
    fn a_loop_of_links_ends() {
        let (_folder, root) = machine();
        symlink("/b", root.at("/a")).unwrap();
        symlink("/a", root.at("/b")).unwrap();
        assert!(root.resolve(Path::new("/a/x")).is_err());
    }

    #[test]
    fn a_folder_without_the_mark_is_no_machine() {
        let folder = tempfile::tempdir().unwrap();
        assert!(Root::open(folder.path()).is_err());
    }
}
