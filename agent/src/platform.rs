//! The differences between NixOS and macOS behind one name; both are compiled and tested on every system.
//!
//! `nixos` and `darwin` implement `system`. They depend on `linux`, `programs` (systemd, launchd and others,
//! with a time limit), `boot_id` and `layout` (where everything is); nothing below depends on this file.

mod boot_id;
mod darwin;
mod layout;
mod linux;
mod nixos;
mod programs;
mod system;
#[cfg(test)]
pub(crate) mod testing;

use muster_protocol::machine::Class;

use crate::config::Config;
pub use crate::core::activate::{Ailing, Outcome, Way};
pub use darwin::{ACTIVATOR_PLIST, Darwin};
pub use layout::Layout;
pub use nixos::Nixos;
pub use programs::PlatformError;
pub use system::{Awake, Platform, Preflight};

/// The platform of a machine of this class.
pub fn open(config: &Config, class: Class) -> Result<Box<dyn Platform>, PlatformError> {
    let layout = Layout::new(config, class);
    let activator = activator_command(config)?;
    Ok(match class {
        Class::Nixos => Box::new(Nixos::new(layout, activator, &config.state_dir)),
        Class::Darwin => Box::new(Darwin::new(layout, activator)),
    })
}

/// The program and arguments of the activator: this same program, by its full path.
fn activator_command(config: &Config) -> Result<Vec<String>, PlatformError> {
    let program = std::env::current_exe()
        .map_err(|source| PlatformError::Run { program: "muster-agent".to_owned(), source })?;
    let mut command = vec![program.to_string_lossy().into_owned()];
    // The default file need not exist, but a named one must.
    if config.source.exists() {
        command.extend(["--config".to_owned(), config.source.to_string_lossy().into_owned()]);
    }
    command.push("activate".to_owned());
    Ok(command)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use super::testing::layout;
    use super::*;

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
