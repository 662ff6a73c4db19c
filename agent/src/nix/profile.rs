//! The system profile. Also used by the activator, which has no async runtime.

use muster_protocol::ids::StorePath;

use super::error::{NixError, message};
use super::program::{MOST_MEMORY, Nix, SHORT_LIMIT};
use crate::core::prune::ProfileGeneration;
use crate::process;

impl Nix {
    /// Makes `path` the system profile.
    pub fn set_profile(&self, path: &StorePath) -> Result<(), NixError> {
        let profile = self.layout.profile();
        if let Some(folder) = profile.parent() {
            std::fs::create_dir_all(folder).map_err(|source| Self::root_error(&profile, &source))?;
        }
        let mut command = self.sync_command("nix-env")?;
        command.arg("-p").arg(&profile).args(["--set", path.as_str()]);
        let (status, stderr) =
            process::capture(command, "setting the system profile", SHORT_LIMIT, MOST_MEMORY)?;
        if status.success() {
            return Ok(());
        }
        let what = format!("the system profile cannot be set to {path}");
        Err(NixError::Failed { what, message: message(&stderr, status) })
    }

    /// Removes the system profile where there was none before. `nix-env` does not delete a current
    /// generation.
    pub fn remove_profile(&self) -> Result<(), NixError> {
        let profile = self.layout.profile();
        let generation = std::fs::read_link(&profile).ok();
        let removed = |path: &std::path::Path| match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Self::root_error(path, &error)),
            _ => Ok(()),
        };
        removed(&profile)?;
        match (profile.parent(), generation) {
            (Some(folder), Some(link)) if link.components().count() == 1 => removed(&folder.join(link)),
            _ => Ok(()),
        }
    }

    /// Every generation of the system profile (`system-7-link`).
    pub fn profile_generations(&self) -> Vec<ProfileGeneration> {
        let profile = self.layout.profile();
        let (Some(folder), Some(name)) = (profile.parent(), profile.file_name()) else { return Vec::new() };
        let current = std::fs::read_link(&profile).unwrap_or_default();
        let prefix = format!("{}-", name.to_string_lossy());
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let generation = |entry: std::fs::DirEntry| {
            let file = entry.file_name();
            let file = file.to_str()?;
            let number = file.strip_prefix(&prefix)?.strip_suffix("-link")?.parse().ok()?;
            let system = self.layout.logical(&std::fs::read_link(entry.path()).ok()?)?;
            let is_current = current.file_name().is_some_and(|current| current == file);
            Some(ProfileGeneration { number, system, is_current })
        };
        entries.filter_map(generation).collect()
    }

    /// Removes these generations of the system profile. Their systems stay until Nix collects garbage.
    pub fn forget_generations(&self, numbers: &[u64]) -> Result<(), NixError> {
        let mut command = self.sync_command("nix-env")?;
        command.arg("-p").arg(self.layout.profile()).arg("--delete-generations");
        command.args(numbers.iter().map(u64::to_string));
        let (status, stderr) =
            process::capture(command, "removing old generations", SHORT_LIMIT, MOST_MEMORY)?;
        if status.success() {
            return Ok(());
        }
        let what = "old generations of the system profile cannot be removed".to_owned();
        Err(NixError::Failed { what, message: message(&stderr, status) })
    }
}
