//! What differs between NixOS and macOS, behind one name; both are compiled and tested on every system.

mod darwin;
mod nixos;
pub mod process;

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::machine::Class;
use muster_protocol::target::Action;

use crate::config::Config;
pub use darwin::Darwin;
pub use nixos::Nixos;
use process::Finished;

/// The limit of a question to systemd or launchd.
const SHORT: Duration = Duration::from_secs(60);
/// Changes at each boot of a stand-in, where the tests put it.
const STAND_IN_BOOT_ID: &str = "/proc-boot-id";

#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error("{program} cannot be run: {source}; check that it is there and that muster-agent runs as root")]
    Run { program: String, source: io::Error },
    #[error("{program} failed ({exit}): {output}")]
    Failed { program: String, exit: i32, output: String },
    #[error("{} cannot be written: {source}; free some space on that disk", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("{0}")]
    Other(String),
}

/// What a system's own checks say before anything is changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Preflight {
    Passed,
    /// A person has to do something first; the words say what.
    NeedsHuman(String),
    Failed(String),
}

/// What the exit code of an activation means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    Done,
    /// It is done, and some units failed, unrelated ones perhaps.
    UnitsFailed,
    RebootNeeded,
    /// Somebody else activates just now.
    Locked,
    Failed,
}

/// What the agent and its activator ask of a system. Blocking: the runner asks from a thread of its own.
pub trait Platform: Send + Sync {
    fn layout(&self) -> &Layout;
    /// Changes at each boot.
    fn boot_id(&self) -> Result<String, PlatformError>;
    /// The units that the service manager calls failed, sorted.
    fn failed_units(&self) -> Result<Vec<String>, PlatformError>;
    /// The system's own checks, as far as they change nothing.
    fn preflight(&self, new: &StorePath) -> Result<Preflight, PlatformError>;
    /// Starts `muster-agent activate` where nothing that happens to the agent reaches it.
    fn start_activator(&self, generation: Generation) -> Result<(), PlatformError>;
    /// Runs the system's own activation to its end, or to `limit` and then ends all that it started.
    fn activate(
        &self,
        system: &StorePath,
        action: Action,
        limit: Duration,
    ) -> Result<Finished, PlatformError>;
    fn outcome(&self, exit: i32) -> Outcome;
    /// The program that [`Platform::activate`] runs, to find one that an activator left behind.
    fn script(&self, system: &StorePath) -> PathBuf;
    /// What a person has to do, if the output of an activation asks for one.
    fn needs_human(&self, _exit: i32, _output: &str) -> Option<String> {
        None
    }
    /// Makes sure that the agent's own job runs, as `to` defines it; `from` is the system before.
    fn ensure_agent(&self, from: Option<&StorePath>, to: &StorePath);
}

/// The platform of a machine of this class.
pub fn open(config: &Config, class: Class) -> Result<Box<dyn Platform>, PlatformError> {
    let layout = Layout::new(config, class);
    let activator = activator_command(config)?;
    Ok(match class {
        Class::Nixos => Box::new(Nixos::new(layout, activator)),
        Class::Darwin => Box::new(Darwin::new(layout, activator)),
    })
}

/// The program and arguments of the activator: this very program, by its full path.
fn activator_command(config: &Config) -> Result<Vec<String>, PlatformError> {
    let program = std::env::current_exe()
        .map_err(|source| PlatformError::Run { program: "muster-agent".to_owned(), source })?;
    let mut command = vec![program.to_string_lossy().into_owned()];
    // The default file need not exist, but one that is named must.
    if config.source.exists() {
        command.extend(["--config".to_owned(), config.source.to_string_lossy().into_owned()]);
    }
    command.push("activate".to_owned());
    Ok(command)
}

/// Runs a short program and returns its output; another exit code than 0 is an error.
fn ask(layout: &Layout, program: &str, arguments: &[&str]) -> Result<String, PlatformError> {
    let finished = run(layout, program, arguments)?;
    if finished.exit == 0 {
        return Ok(finished.output);
    }
    let program = format!("{program} {}", arguments.first().unwrap_or(&""));
    Err(PlatformError::Failed { program, exit: finished.exit, output: finished.output.trim().to_owned() })
}

fn run(layout: &Layout, program: &str, arguments: &[&str]) -> Result<Finished, PlatformError> {
    let mut command = Command::new(program);
    command.args(arguments).env("PATH", layout.search_path());
    finish(layout, command, SHORT)
}

fn finish(layout: &Layout, mut command: Command, limit: Duration) -> Result<Finished, PlatformError> {
    process::run(&mut command, limit, &layout.state("")).map_err(|source| PlatformError::Run {
        program: command.get_program().to_string_lossy().into(),
        source,
    })
}

/// What a stand-in's tests call its boot; otherwise it is this computer's, of whichever class the stand-in is.
fn stand_in_boot_id(layout: &Layout) -> Option<String> {
    if !layout.is_stand_in() {
        return None;
    }
    let named = std::fs::read_to_string(layout.system(STAND_IN_BOOT_ID));
    let text = named.or_else(|_| std::fs::read_to_string(nixos::BOOT_ID)).ok()?;
    Some(text.trim().to_owned())
}

/// Where things lie on this machine, for the agent and for every program that it starts.
///
/// In production all prefixes are empty. A stand-in machine lives in a folder: /run, /etc, /nix/var and /Library are
/// below it, and so are the files of its store if it has one of its own.
#[derive(Debug, Clone)]
pub struct Layout {
    class: Class,
    root: PathBuf,
    store_root: Option<PathBuf>,
    programs: Option<PathBuf>,
    state: PathBuf,
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

    /// A place of the system, `/run/current-system` for example, where it lies on this machine.
    pub fn system(&self, absolute: &str) -> PathBuf {
        self.root.join(absolute.trim_start_matches('/'))
    }

    /// The files of a store path. Its name stays `/nix/store/…` wherever they lie.
    pub fn physical(&self, path: &StorePath) -> PathBuf {
        match &self.store_root {
            Some(root) => root.join(path.as_str().trim_start_matches('/')),
            None => PathBuf::from(path.as_str()),
        }
    }

    /// The store path that a link's text means, whether it was written by name or by where the files lie.
    pub fn logical(&self, text: &Path) -> Option<StorePath> {
        let text = match &self.store_root {
            Some(root) => {
                text.strip_prefix(root).map_or_else(|_| text.to_owned(), |rest| Path::new("/").join(rest))
            }
            None => text.to_owned(),
        };
        text.to_str()?.parse().ok()
    }

    /// The one system profile: a private one is lost at reboot.
    pub fn profile(&self) -> PathBuf {
        self.system("/nix/var/nix/profiles/system")
    }

    pub fn current_system(&self) -> PathBuf {
        self.system("/run/current-system")
    }

    /// What the machine runs, by looking.
    pub fn running(&self) -> Option<StorePath> {
        self.resolve(self.current_system())
    }

    /// What the system profile points to, by looking.
    pub fn profile_target(&self) -> Option<StorePath> {
        self.resolve(self.profile())
    }

    /// Follows links by their texts until one names a store path.
    fn resolve(&self, mut link: PathBuf) -> Option<StorePath> {
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

    /// PATH for every program that the agent starts: the stand-ins first, then what the agent was given, then where
    /// Nix and the system's tools lie (launchd gives /usr/bin:/bin:/usr/sbin:/sbin alone).
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

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    pub(crate) fn layout(root: &Path, class: Class) -> Layout {
        let layout = Layout {
            class,
            root: root.to_path_buf(),
            store_root: Some(root.to_path_buf()),
            programs: Some(root.join("programs")),
            state: root.join("state"),
        };
        std::fs::create_dir_all(root.join("state")).unwrap();
        std::fs::create_dir_all(root.join("programs")).unwrap();
        layout
    }

    /// A shell script at `path`, executable. A child writes it: were it open for writing here, a program that another
    /// test starts at that moment would inherit it, and running the script would fail with ETXTBSY (execve(2)).
    pub(crate) fn script(path: &Path, text: &str) {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let status = std::process::Command::new("/bin/sh").arg("-c").arg(write).arg(path).arg(text).status();
        assert!(status.unwrap().success());
    }

    #[test]
    fn what_runs_is_found_through_relative_links_and_physical_names() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        let name = "/nix/store/0c0bm0n2hg4kd2x7q2g5p1l1c4cx8kpl-system";
        assert_eq!((layout.running(), layout.profile_target()), (None, None));
        let profiles = layout.profile().parent().unwrap().to_path_buf();
        std::fs::create_dir_all(&profiles).unwrap();
        std::fs::create_dir_all(layout.system("/run")).unwrap();
        symlink("system-7-link", layout.profile()).unwrap();
        symlink(name, profiles.join("system-7-link")).unwrap();
        symlink(layout.physical(&name.parse().unwrap()), layout.current_system()).unwrap();
        assert_eq!(layout.profile_target().unwrap().as_str(), name);
        assert_eq!(layout.running().unwrap().as_str(), name);
    }

    #[test]
    fn links_that_go_in_circles_or_elsewhere_are_no_system() {
        let folder = tempfile::tempdir().unwrap();
        let layout = layout(folder.path(), Class::Nixos);
        std::fs::create_dir_all(layout.system("/run")).unwrap();
        symlink("current-system", layout.current_system()).unwrap();
        assert_eq!(layout.running(), None);
        std::fs::remove_file(layout.current_system()).unwrap();
        symlink("/etc", layout.current_system()).unwrap();
        assert_eq!(layout.running(), None);
    }

    #[test]
    fn the_stand_ins_come_first_in_the_search_path() {
        let folder = tempfile::tempdir().unwrap();
        let path = layout(folder.path(), Class::Darwin).search_path();
        let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
        assert_eq!(folders[0], folder.path().join("programs"));
        assert!(folders.contains(&PathBuf::from("/run/current-system/sw/bin")));
    }
}
