//! What differs between NixOS and macOS, behind one name; both are compiled and tested on every system.

mod darwin;
mod layout;
mod linux;
mod nixos;
pub mod process;

use std::io;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use muster_protocol::ids::{Generation, StorePath};
use muster_protocol::machine::Class;
use muster_protocol::target::Action;

use crate::config::Config;
pub use crate::core::activate::{Ailing, Outcome, Way};
use crate::core::reboot::Due;
pub use darwin::{ACTIVATOR_PLIST, Darwin};
pub use layout::Layout;
pub use nixos::Nixos;
use process::Finished;

/// The limit of a question to systemd or launchd.
const SHORT: Duration = Duration::from_secs(60);
/// Changes at each boot of a stand-in, where the tests put it.
const STAND_IN_BOOT_ID: &str = "/proc-boot-id";

#[derive(Debug, thiserror::Error)]
pub enum PlatformError {
    #[error("{program} cannot be run: {source}; {}", crate::durable::read_remedy(source))]
    Run { program: String, source: io::Error },
    #[error("{program} failed ({exit}): {output}")]
    Failed { program: String, exit: i32, output: String },
    #[error("{} cannot be written: {source}; {}", path.display(), crate::durable::remedy(source))]
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
    /// It cannot be switched to while the machine runs; the words name what keeps it from that. A reboot brings it.
    Inhibited(String),
}

/// What the agent and its activator ask of a system. Blocking: the runner asks from a thread of its own.
pub trait Platform: Send + Sync {
    fn layout(&self) -> &Layout;
    /// Changes at each boot.
    fn boot_id(&self) -> Result<String, PlatformError>;
    /// The units that the service manager calls failed, sorted.
    fn failed_units(&self) -> Result<Vec<String>, PlatformError>;
    /// The units that count as failed before a switch, sorted.
    fn failed_before(&self) -> Result<Vec<String>, PlatformError> {
        self.failed_units()
    }
    /// The system's own checks, as far as they change nothing.
    fn preflight(&self, new: &StorePath, action: Action) -> Result<Preflight, PlatformError>;
    /// Starts `muster-agent activate` where nothing that happens to the agent reaches it.
    fn start_activator(&self, generation: Generation) -> Result<(), PlatformError>;
    /// Has the next boot start the activator as well, until [`Platform::activator_ends`]: the new system's agent may be the
    /// very thing that does not work. Called by the activator itself, under its lock.
    fn activator_begins(&self);
    /// The switch is over.
    fn activator_ends(&self);
    /// Runs the system's own activation to its end, or to `limit` and then ends all that it started. On the way back
    /// nothing that the system checks first may stop it.
    fn activate(
        &self,
        system: &StorePath,
        action: Action,
        way: Way,
        limit: Duration,
    ) -> Result<Finished, PlatformError>;
    fn outcome(&self, finished: &Finished) -> Outcome;
    /// What the output of an activation says that failed, though it came to its end.
    fn ailing(&self, _finished: &Finished) -> Ailing {
        Ailing::default()
    }
    /// The program that [`Platform::activate`] runs, to find one that an activator left behind.
    fn script(&self, system: &StorePath) -> PathBuf;
    /// What a person has to do, if the output of an activation asks for one.
    fn needs_human(&self, _exit: i32, _output: &str) -> Option<String> {
        None
    }
    /// Waits until the boot's own part in activating a system is over, if it has one.
    fn wait_for_boot(&self) {}
    /// What has to be done now and then, such as keeping logs small where nobody else does.
    fn tend(&self) {}
    /// Removes what `from` has left in place and `to` does not have.
    fn tidy(&self, _from: &StorePath, _to: &StorePath) {}
    /// Makes sure that the agent's own job runs, as `to` defines it; `from` is the system before.
    fn ensure_agent(&self, from: Option<&StorePath>, to: &StorePath);
    /// Who else switches this machine just now, if anybody.
    fn busy(&self) -> Result<Option<String>, PlatformError>;
    /// Keeps the machine from sleeping until the guard is dropped.
    fn keep_awake(&self) -> Option<Awake> {
        None
    }
    /// The charge in percent, while the machine runs on its battery.
    fn on_battery(&self) -> Option<u8>;
    /// Whether the network is paid for by use.
    fn metered(&self) -> bool;
    /// In bytes.
    fn free_memory(&self) -> Option<u64>;
    /// The user at the screen of a Mac, if there is one.
    fn console(&self) -> Option<u32> {
        None
    }
    /// Who has to log in before this system can be activated, if anybody.
    fn absent(&self, _new: &StorePath) -> Option<String> {
        None
    }
    /// What a reboot would bring.
    fn due(&self) -> Option<Due> {
        None
    }
    /// Who is logged in, and what inhibits a reboot, in words for people.
    fn blockers(&self) -> Result<Vec<String>, PlatformError> {
        Ok(Vec::new())
    }
    fn reboot(&self) -> Result<(), PlatformError>;
    /// Whether a unit or a job of this name is well, or else what is wrong with it.
    fn service(&self, name: &str) -> Result<(), String>;
}

/// Keeps a machine awake. Dropping it ends that.
pub struct Awake {
    program: std::process::Child,
}

impl Drop for Awake {
    fn drop(&mut self) {
        let _ = self.program.kill();
        let _ = self.program.wait();
    }
}

/// The platform of a machine of this class.
pub fn open(config: &Config, class: Class) -> Result<Box<dyn Platform>, PlatformError> {
    let layout = Layout::new(config, class);
    let activator = activator_command(config)?;
    Ok(match class {
        Class::Nixos => Box::new(Nixos::new(layout, activator, &config.state_dir)),
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
        return Ok(finished.said);
    }
    let program = format!("{program} {}", arguments.first().unwrap_or(&""));
    Err(PlatformError::Failed { program, exit: finished.exit, output: finished.output.trim().to_owned() })
}

fn run(layout: &Layout, program: &str, arguments: &[&str]) -> Result<Finished, PlatformError> {
    let mut command = layout.command(program);
    command.args(arguments);
    process::ask(&mut command, SHORT, &layout.state(""))
        .map_err(|source| PlatformError::Run { program: program.into(), source })
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

#[cfg(test)]
pub(crate) mod tests {
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use super::*;

    /// The configuration of an agent whose machine is a folder, with its programs in `programs`.
    pub(crate) fn stand_in(folder: &Path, settings: &str) -> crate::config::Config {
        let mut config = crate::config::Config::parse(settings, folder.join("agent.toml")).unwrap();
        config.state_dir = folder.join("state");
        config.stand_in = Some(crate::config::StandIn {
            root: folder.to_path_buf(),
            store: None,
            path: folder.join("programs"),
            system: "x86_64-linux".parse().unwrap(),
            nix_config: String::new(),
        });
        std::fs::create_dir_all(folder.join("state")).unwrap();
        config
    }

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
    fn failure_mode_17_the_profile_is_the_one_that_a_boot_goes_by() {
        for class in Class::ALL {
            let config = Config::parse("", PathBuf::from("/etc/muster/agent.toml")).unwrap();
            let layout = Layout::new(&config, class);
            assert_eq!(layout.profile(), Path::new("/nix/var/nix/profiles/system"));
            assert_eq!(layout.current_system(), Path::new("/run/current-system"));
        }
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
