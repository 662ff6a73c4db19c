//! Where things are.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;

use crate::config::Config;

/// The most entries of a folder that are read.
const MAX_ENTRIES: usize = 1024;

/// Where things are on this machine, for the agent and for every program that it starts.
///
/// In production all prefixes are empty. A stand-in machine lives in a folder: /run, /etc, /nix/var and
/// /Library are below it, and so are the files of its store if it has its own.
#[derive(Debug, Clone)]
pub struct Layout {
    pub(super) class: Class,
    pub(super) root: PathBuf,
    pub(super) store_root: Option<PathBuf>,
    pub(super) programs: Option<PathBuf>,
    pub(super) state: PathBuf,
}

impl Layout {
    pub fn new(config: &Config, class: Class) -> Self {
        let stand_in = config.stand_in.as_ref();
        Self {
            class,
            root: stand_in.map_or_else(|| PathBuf::from("/"), |stand_in| stand_in.root.clone()),
            store_root: stand_in.filter(|s| s.store.is_some()).map(|s| s.root.clone()),
            programs: stand_in.map(|stand_in| stand_in.path.clone()),
            state: config.state_dir.clone(),
        }
    }

    pub fn class(&self) -> Class {
        self.class
    }

    /// Whether this machine lives in a folder.
    pub fn is_stand_in(&self) -> bool {
        self.root != Path::new("/")
    }

    /// The location on this machine of a system path such as `/run/current-system`.
    pub fn system(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The files of a store path. Its name stays `/nix/store/…` wherever they are.
    pub fn physical(&self, path: &StorePath) -> PathBuf {
        match &self.store_root {
            Some(root) => root.join(path.as_str().trim_start_matches('/')),
            None => PathBuf::from(path.as_str()),
        }
    }

    /// The folder in which the files of every store path lie.
    pub fn store_prefix(&self) -> PathBuf {
        match &self.store_root {
            Some(root) => root.join("nix/store"),
            None => PathBuf::from("/nix/store"),
        }
    }

    /// The store path that a link's text means, whether it gives the name or the location of the files.
    pub fn logical(&self, text: &Path) -> Option<StorePath> {
        let text = match &self.store_root {
            Some(root) => {
                text.strip_prefix(root).map_or_else(|_| text.to_owned(), |rest| Path::new("/").join(rest))
            }
            None => text.to_owned(),
        };
        text.to_str()?.parse().ok()
    }

    /// The system profile: a private one is lost at reboot.
    pub fn profile(&self) -> PathBuf {
        self.system("/nix/var/nix/profiles/system")
    }

    pub fn current_system(&self) -> PathBuf {
        self.system("/run/current-system")
    }

    /// What the machine runs, as observed. A specialisation counts as the system that contains it, which is
    /// the one that was signed.
    pub fn running(&self) -> Option<StorePath> {
        let itself = self.running_itself()?;
        Some(self.base_of(&itself).map_or(itself, |(base, _)| base))
    }

    /// The same, but a specialisation counts as itself.
    pub fn running_itself(&self) -> Option<StorePath> {
        self.resolve(self.current_system())
    }

    /// The name of the running specialisation, if it is one.
    pub fn specialisation(&self) -> Option<String> {
        self.base_of(&self.running_itself()?).map(|(_, name)| name)
    }

    /// The specialisations of a system, by name.
    pub fn specialisations(&self, system: &StorePath) -> Vec<(String, StorePath)> {
        let folder = self.physical(system).join("specialisation");
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().take(MAX_ENTRIES);
        let named = |entry: std::fs::DirEntry| {
            Some((entry.file_name().into_string().ok()?, self.resolve(entry.path())?))
        };
        entries.filter_map(named).collect()
    }

    /// Which system of the profile contains this specialisation: the current one, or else an earlier one,
    /// since the profile changes as soon as a switch has begun.
    fn base_of(&self, running: &StorePath) -> Option<(StorePath, String)> {
        let current = self.profile_target();
        if self.class == Class::Darwin || current.as_ref() == Some(running) {
            return None;
        }
        let profile = self.profile();
        let links = profile.parent().and_then(|folder| std::fs::read_dir(folder).ok());
        let links = links.into_iter().flatten().flatten().take(MAX_ENTRIES);
        let numbered = |name: &str| name.starts_with("system-") && name.ends_with("-link");
        let earlier = links.filter(|entry| entry.file_name().to_str().is_some_and(numbered));
        let mut bases: Vec<StorePath> = current.into_iter().collect();
        bases.extend(earlier.filter_map(|entry| self.resolve(entry.path())));
        if bases.contains(running) {
            return None;
        }
        bases.into_iter().find_map(|base| {
            let found = self.specialisations(&base).into_iter().find(|(_, system)| system == running);
            found.map(|(name, _)| (base, name))
        })
    }

    /// What the system profile points to, as observed.
    pub fn profile_target(&self) -> Option<StorePath> {
        self.resolve(self.profile())
    }

    /// The generations of the system profile that are still there, by number.
    pub fn generations(&self) -> Vec<(u64, StorePath)> {
        let profile = self.profile();
        let links = profile.parent().and_then(|folder| std::fs::read_dir(folder).ok());
        let links = links.into_iter().flatten().flatten().take(MAX_ENTRIES);
        let numbered = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().ok()?;
            let number = name.strip_prefix("system-")?.strip_suffix("-link")?.parse().ok()?;
            Some((number, self.resolve(entry.path())?))
        };
        let mut generations: Vec<(u64, StorePath)> = links.filter_map(numbered).collect();
        generations.sort_unstable();
        generations
    }

    /// What this boot brought up, before anything was switched.
    pub fn booted(&self) -> Option<StorePath> {
        self.resolve(self.system("/run/booted-system"))
    }

    /// Follows links by their texts until one names a store path.
    pub fn resolve(&self, mut link: PathBuf) -> Option<StorePath> {
        for _ in 0..8 {
            let text = std::fs::read_link(&link).ok()?;
            if let Some(path) = self.logical(&text) {
                return Some(path);
            }
            link = link.parent()?.join(text);
        }
        None
    }

    /// The folder of this agent's GC roots, inside Nix's own, so that a plain symlink there is a root.
    pub fn gcroots(&self) -> PathBuf {
        self.system("/nix/var/nix/gcroots/muster")
    }

    /// A file or folder of the agent's state.
    pub fn state(&self, name: &str) -> PathBuf {
        self.state.join(name)
    }

    /// A program of the machine, by its full path if it is found: a name would be looked up in the child,
    /// which requires copying this process (fork) instead of lending its memory (posix_spawn).
    pub fn command(&self, program: &str) -> Command {
        let path = self.search_path();
        let found = match program.contains('/') {
            true => None,
            false => {
                std::env::split_paths(&path).map(|folder| folder.join(program)).find(|file| file.is_file())
            }
        };
        let mut command = match found {
            Some(file) => Command::new(file),
            None => Command::new(program),
        };
        command.env("PATH", path).current_dir("/");
        command
    }

    /// PATH for every program that the agent starts: the stand-ins first, then the agent's own PATH, then
    /// where Nix and the system's tools are (launchd only gives /usr/bin:/bin:/usr/sbin:/sbin).
    pub fn search_path(&self) -> OsString {
        let mut folders: Vec<PathBuf> = self.programs.iter().cloned().collect();
        if let Some(given) = std::env::var_os("PATH") {
            folders.extend(std::env::split_paths(&given));
        }
        for known in [
            "/run/current-system/sw/bin",
            "/nix/var/nix/profiles/default/bin",
            "/usr/bin",
            "/bin",
            "/usr/sbin",
            "/sbin",
        ] {
            let known = PathBuf::from(known);
            if !folders.contains(&known) {
                folders.push(known);
            }
        }
        // A folder with a colon in its name cannot be in PATH at all.
        std::env::join_paths(&folders).unwrap_or_else(|_| OsString::from("/usr/bin:/bin:/usr/sbin:/sbin"))
    }
}
