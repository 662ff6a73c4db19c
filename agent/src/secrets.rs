//! Secrets that a system needs before its activation: the agent decrypts them with the machine's own key and
//! the system's sops into a folder in memory. Secrets of services and users are left to sops-nix during the
//! activation.

mod error;
mod ramdisk;
mod sops;
#[cfg(test)]
mod tests;

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _, chown};
use std::path::{Component, Path, PathBuf};

use muster_protocol::ids::StorePath;
use muster_protocol::machine::Class;
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

pub use self::error::SecretsError;
use self::error::{MANIFEST, VERSION};
use crate::durable;
use crate::platform::Layout;

const MAX_MANIFEST: u64 = 4 * 1024 * 1024;
/// The files in place, by their names on the system, so that they can be removed.
const RECORD: &str = "activation-secrets.json";

#[derive(Debug, Deserialize)]
struct Manifest {
    version: u32,
    /// The sops of the system's closure; `None` if there is no file.
    #[serde(default)]
    sops: Option<PathBuf>,
    /// Where the files go, in memory.
    #[serde(default)]
    directory: PathBuf,
    #[serde(default)]
    files: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    /// Relative to the directory.
    name: String,
    /// The encrypted file in the store.
    source: PathBuf,
    owner: String,
    group: String,
    /// Four octal digits.
    mode: String,
}

#[derive(Debug, Default, Serialize, Deserialize)]
struct Record {
    files: Vec<PathBuf>,
}

/// One decrypted file.
struct Opened<'a> {
    entry: &'a Entry,
    mode: u32,
    value: Zeroizing<Vec<u8>>,
}

/// Keeps the memory of this process and its children out of core dumps.
pub fn forbid_core_dumps() {
    use rustix::process::{Resource, Rlimit, setrlimit};
    // If lowering the limit is forbidden, nothing more can be done.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
}

/// Whether everything that `system` needs can be decrypted here. Nothing is written.
pub fn check(layout: &Layout, system: &StorePath) -> Result<(), SecretsError> {
    match read(layout, system)? {
        Some(manifest) => open(layout, &manifest).map(drop),
        None => Ok(()),
    }
}

/// Puts the secrets of `system` in place and removes those that it no longer has. Idempotent.
pub fn install(layout: &Layout, system: &StorePath) -> Result<(), SecretsError> {
    let manifest = read(layout, system)?;
    let opened = manifest.as_ref().map(|manifest| open(layout, manifest)).transpose()?.unwrap_or_default();
    let directory = manifest.as_ref().map(|manifest| manifest.directory.clone()).unwrap_or_default();
    let record_path = layout.state(RECORD);
    let old = record(&record_path)?;
    let new = Record { files: opened.iter().map(|it| directory.join(&it.entry.name)).collect() };
    if !new.files.is_empty() {
        let place = layout.system(&directory.to_string_lossy());
        folders(&place)?;
        if layout.class() == Class::Darwin {
            ramdisk::ensure(layout, &place)?;
        }
        // From here on, whatever happens, the record covers every file that may exist.
        let all = old.files.iter().chain(&new.files).cloned().collect();
        write_record(&record_path, &Record { files: all })?;
        for it in &opened {
            write(layout, &place, it)?;
        }
    }
    for path in old.files.iter().filter(|path| !new.files.contains(path)) {
        let path = layout.system(&path.to_string_lossy());
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(SecretsError::Write { path, source });
            }
            _ => {}
        }
    }
    if old.files != new.files { write_record(&record_path, &new) } else { Ok(()) }
}

fn read(layout: &Layout, system: &StorePath) -> Result<Option<Manifest>, SecretsError> {
    let path = layout.physical(system).join(MANIFEST);
    let path = below_the_store(layout, &path);
    let text = durable::read(&path, MAX_MANIFEST).map_err(|source| SecretsError::Read { path, source })?;
    let Some(text) = text else { return Ok(None) };
    let damaged = |detail: String| SecretsError::Manifest { detail };
    let manifest: Manifest = serde_json::from_slice(&text).map_err(|error| damaged(error.to_string()))?;
    if manifest.version > VERSION {
        return Err(SecretsError::Version(manifest.version));
    }
    let plain = |path: &Path| path.components().all(|part| matches!(part, Component::Normal(_)));
    for entry in &manifest.files {
        if entry.name.is_empty() || !plain(Path::new(&entry.name)) {
            return Err(damaged(format!("'{}' leads elsewhere", entry.name)));
        }
    }
    let inside =
        manifest.directory.strip_prefix("/").is_ok_and(|rest| plain(rest) && rest.components().count() >= 2);
    if !manifest.files.is_empty() && !inside {
        return Err(damaged(format!("'{}' is not a folder for secrets", manifest.directory.display())));
    }
    Ok(Some(manifest))
}

/// A link in the system's `etc` names the store as Nix does, wherever the files are.
fn below_the_store(layout: &Layout, path: &Path) -> PathBuf {
    let mut real = PathBuf::new();
    for part in path.components() {
        real.push(part);
        for _ in 0..8 {
            let Ok(target) = fs::read_link(&real) else { break };
            real = match target.strip_prefix("/nix/store") {
                Ok(rest) => layout.store_prefix().join(rest),
                Err(_) => real.parent().unwrap_or(Path::new("/")).join(target),
            };
        }
    }
    real
}

/// A store file named by a manifest.
fn in_store(layout: &Layout, path: &Path) -> PathBuf {
    path.strip_prefix("/nix/store").map_or_else(|_| path.to_owned(), |rest| layout.store_prefix().join(rest))
}

fn open<'a>(layout: &Layout, manifest: &'a Manifest) -> Result<Vec<Opened<'a>>, SecretsError> {
    let damaged = |detail: String| SecretsError::Manifest { detail };
    manifest
        .files
        .iter()
        .map(|entry| {
            let mode = u32::from_str_radix(&entry.mode, 8).ok().filter(|mode| *mode <= 0o777);
            let mode = mode.ok_or_else(|| damaged(format!("'{}' is not a file mode", entry.mode)))?;
            let sops = manifest.sops.as_deref().ok_or_else(|| damaged("it names no sops".into()))?;
            let value = sops::decrypt(
                layout,
                &in_store(layout, sops),
                &in_store(layout, &entry.source),
                &entry.name,
            )?;
            Ok(Opened { entry, mode, value })
        })
        .collect()
}

/// Folders that only root can list and write; a file's own mode says who may read it.
fn folders(place: &Path) -> Result<(), SecretsError> {
    let error = |source| SecretsError::Write { path: place.to_owned(), source };
    // What the system itself has above (/run) stays as it is.
    let missing: Vec<&Path> = place.ancestors().take_while(|folder| !folder.exists()).collect();
    DirBuilder::new().recursive(true).mode(0o711).create(place).map_err(error)?;
    // Independent of the umask and of any earlier owner.
    for folder in missing.into_iter().chain([place]) {
        fs::set_permissions(folder, Permissions::from_mode(0o711)).map_err(error)?;
    }
    Ok(())
}

fn write(layout: &Layout, place: &Path, it: &Opened<'_>) -> Result<(), SecretsError> {
    let path = place.join(&it.entry.name);
    let error = |source| SecretsError::Write { path: path.clone(), source };
    if let Some(folder) = path.parent().filter(|folder| *folder != place) {
        folders(folder)?;
    }
    let new = path.with_added_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new).map_err(error)?;
    let written = file.write_all(&it.value).map_err(error).and_then(|()| {
        give(layout, &new, it.entry)?;
        fs::set_permissions(&new, Permissions::from_mode(it.mode)).map_err(error)?;
        fs::rename(&new, &path).map_err(error)
    });
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written
}

/// Owner and group. root's own need no lookup in a user database, which may not exist yet.
fn give(layout: &Layout, path: &Path, entry: &Entry) -> Result<(), SecretsError> {
    let failed = |words: String| SecretsError::Owner {
        name: entry.name.clone(),
        owner: entry.owner.clone(),
        group: entry.group.clone(),
        words,
    };
    if entry.owner == "root" && ["root", "wheel"].contains(&entry.group.as_str()) {
        // A stand-in's agent need not be root.
        return match rustix::process::geteuid().is_root() {
            true => chown(path, Some(0), Some(0)).map_err(|error| failed(error.to_string())),
            false => Ok(()),
        };
    }
    let ended = std::process::Command::new("chown")
        .env("PATH", layout.search_path())
        .arg(format!("{}:{}", entry.owner, entry.group))
        .arg(path)
        .output()
        .map_err(|error| failed(error.to_string()))?;
    match ended.status.success() {
        true => Ok(()),
        false => Err(failed(String::from_utf8_lossy(&ended.stderr).trim().to_owned())),
    }
}

fn record(path: &Path) -> Result<Record, SecretsError> {
    let text = durable::read(path, MAX_MANIFEST)
        .map_err(|source| SecretsError::Read { path: path.to_owned(), source })?;
    // A damaged record names nothing; its files disappear at the next boot.
    Ok(text.and_then(|text| serde_json::from_slice(&text).ok()).unwrap_or_default())
}

fn write_record(path: &Path, record: &Record) -> Result<(), SecretsError> {
    let text = serde_json::to_vec(record).unwrap_or_default();
    durable::write(path, &text, 0o600).map_err(|source| SecretsError::Write { path: path.to_owned(), source })
}
