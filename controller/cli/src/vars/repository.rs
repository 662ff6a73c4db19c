//! Reading the fleet's folder: who has keys, which secrets exist, and who may read them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use super::keys::{KeyFileError, Recipients, SopsFileError, parse_key_file, recipients_of};
use super::layout::{self, KEY_FILE, Kind, PER_MACHINE, SECRET, SHARED, SOPS, VALIDATION_HASH, VALUE, VARS};

/// The largest file of `vars/` or `sops/` that is read, in bytes.
pub const MAX_FILE: u64 = 16 * 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    #[error("{} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has more than {MAX_FILE} bytes, and is not a file of Muster's or Clan's", .0.display())]
    TooLarge(PathBuf),
    #[error("{} is in the way: a folder is wanted there", .0.display())]
    NotAFolder(PathBuf),
}

/// A machine, operator or group.
pub type Member = (Kind, String);

/// Who has keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Of machines and operators.
    pub keys: BTreeMap<Member, Result<Recipients, KeyFileError>>,
    /// The machines and operators in each group.
    pub groups: BTreeMap<String, BTreeSet<Member>>,
}

/// One secret: `FOLDER/secret`, and the links beside it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Secret {
    /// The links beside it, and their targets.
    pub links: BTreeMap<Member, PathBuf>,
    pub recipients: Result<Recipients, SopsFileError>,
}

/// Everything that decisions are based on. Paths are relative to the fleet's folder.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Snapshot {
    pub members: Members,
    /// By their folders, those in `sops/secrets` too.
    pub secrets: BTreeMap<PathBuf, Secret>,
    /// The folders that have a public value.
    pub values: BTreeSet<PathBuf>,
    /// By the generator's folder.
    pub hashes: BTreeMap<PathBuf, String>,
}

impl Snapshot {
    pub fn read(root: &Path) -> Result<Self, RepositoryError> {
        let mut snapshot = Self { members: members(root)?, ..Self::default() };
        let vars = Path::new(VARS);
        let mut generators = folders(root, &vars.join(SHARED))?;
        for machine in folders(root, &vars.join(PER_MACHINE))? {
            generators.extend(folders(root, &machine)?);
        }
        for generator in generators {
            if let Some(hash) = optional(&root.join(&generator).join(VALIDATION_HASH))? {
                let hash = String::from_utf8_lossy(&hash).trim().to_owned();
                snapshot.hashes.insert(generator.clone(), hash);
            }
            for file in folders(root, &generator)? {
                snapshot.look_at(root, file)?;
            }
        }
        for secret in folders(root, &Path::new(SOPS).join("secrets"))? {
            snapshot.look_at(root, secret)?;
        }
        Ok(snapshot)
    }

    fn look_at(&mut self, root: &Path, folder: PathBuf) -> Result<(), RepositoryError> {
        if root.join(&folder).join(VALUE).is_file() {
            self.values.insert(folder.clone());
        }
        let path = root.join(&folder).join(SECRET);
        // A file may itself be called `secret`; then this is its folder.
        if !path.is_file() {
            return Ok(());
        }
        let Some(text) = optional(&path)? else { return Ok(()) };
        let mut links = BTreeMap::new();
        for kind in Kind::ALL {
            for (name, target) in members_in(root, &folder.join(kind.folder()))? {
                links.insert((kind, name), target);
            }
        }
        self.secrets.insert(folder, Secret { links, recipients: recipients_of(&text) });
        Ok(())
    }

    /// Whether this public value, or this secret, exists.
    pub fn has(&self, folder: &Path, secret: bool) -> bool {
        if secret { self.secrets.contains_key(folder) } else { self.values.contains(folder) }
    }
}

fn members(root: &Path) -> Result<Members, RepositoryError> {
    let mut members = Members::default();
    for kind in [Kind::Machine, Kind::User] {
        for folder in folders(root, &Path::new(SOPS).join(kind.folder()))? {
            let (Some(text), Some(name)) = (optional(&root.join(&folder).join(KEY_FILE))?, name_of(&folder))
            else {
                continue;
            };
            members.keys.insert((kind, name), parse_key_file(&text));
        }
    }
    for folder in folders(root, &Path::new(SOPS).join(Kind::Group.folder()))? {
        let Some(group) = name_of(&folder) else { continue };
        let mut found = BTreeSet::new();
        for kind in [Kind::Machine, Kind::User] {
            found.extend(members_in(root, &folder.join(kind.folder()))?.into_keys().map(|name| (kind, name)));
        }
        members.groups.insert(group, found);
    }
    Ok(members)
}

fn name_of(path: &Path) -> Option<String> {
    Some(path.file_name()?.to_str()?.to_owned())
}

/// The links in a folder of members, and their targets. Anything else is neither ours nor Clan's.
fn members_in(root: &Path, folder: &Path) -> Result<BTreeMap<String, PathBuf>, RepositoryError> {
    let mut links = BTreeMap::new();
    for name in entries(&root.join(folder))? {
        let path = root.join(folder).join(&name);
        if let (Ok(target), Some(name)) = (fs::read_link(&path), name.to_str()) {
            links.insert(name.to_owned(), target);
        }
    }
    Ok(links)
}

/// The folders in a folder, relative to the fleet's.
fn folders(root: &Path, folder: &Path) -> Result<Vec<PathBuf>, RepositoryError> {
    let all = entries(&root.join(folder))?.into_iter().map(|name| folder.join(name));
    Ok(all.filter(|path| root.join(path).is_dir()).collect())
}

/// The names in a folder that may be missing, sorted.
fn entries(folder: &Path) -> Result<Vec<OsString>, RepositoryError> {
    let error = |source| RepositoryError::Read { path: folder.to_owned(), source };
    let read = match fs::read_dir(folder) {
        Ok(read) => read,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(RepositoryError::NotAFolder(folder.to_owned()));
        }
        Err(source) => return Err(error(source)),
    };
    let mut names =
        read.map(|entry| Ok(entry?.file_name())).collect::<Result<Vec<_>, io::Error>>().map_err(error)?;
    names.sort();
    Ok(names)
}

/// A file that may be missing.
pub fn optional(path: &Path) -> Result<Option<Vec<u8>>, RepositoryError> {
    let error = |source| RepositoryError::Read { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE + 1).read_to_end(&mut bytes).map_err(error)?;
    if bytes.len() as u64 > MAX_FILE {
        Err(RepositoryError::TooLarge(path.to_owned()))
    } else {
        Ok(Some(bytes))
    }
}

/// The public value in a folder.
pub fn value(root: &Path, folder: &Path) -> Result<Option<Vec<u8>>, RepositoryError> {
    optional(&root.join(folder).join(VALUE))
}

/// Whether Clan left a machine's private key here.
pub fn has_clans_key(root: &Path, machine: &str) -> bool {
    root.join(layout::clans_machine_key(machine)).exists()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn write(root: &Path, path: &str, text: &str) {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    #[test]
    fn a_folder_without_vars_is_an_empty_fleet() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(Snapshot::read(folder.path()).unwrap(), Snapshot::default());
    }

    #[test]
    fn keys_links_values_and_hashes_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        write(root, "sops/users/joe/key.json", r#"[{"publickey":"age1qqqqqqqqqqqqqq","type":"age"}]"#);
        write(root, "sops/machines/tin/key.json", "{");
        fs::create_dir_all(root.join("sops/groups/admins/users")).unwrap();
        symlink("../../../users/joe", root.join("sops/groups/admins/users/joe")).unwrap();
        write(
            root,
            "vars/shared/ca/key/secret",
            r#"{"data":"E","sops":{"mac":"m","age":[{"recipient":"age1x"}]}}"#,
        );
        fs::create_dir_all(root.join("vars/shared/ca/key/users")).unwrap();
        symlink("../../../../../sops/users/joe", root.join("vars/shared/ca/key/users/joe")).unwrap();
        write(root, "vars/shared/ca/.validation-hash", "abc");
        write(root, "vars/per-machine/tin/x/pub/value", "v");
        write(root, "vars/per-machine/tin/x/secret/secret", "damaged");
        write(root, "sops/secrets/token/secret", r#"{"data":"E","sops":{"mac":"m"}}"#);

        let found = Snapshot::read(root).unwrap();
        assert!(found.members.keys[&(Kind::Machine, "tin".into())].is_err());
        assert_eq!(found.members.keys[&(Kind::User, "joe".into())].as_ref().unwrap().len(), 1);
        assert_eq!(found.members.groups["admins"], BTreeSet::from([(Kind::User, "joe".into())]));
        let ca = &found.secrets[Path::new("vars/shared/ca/key")];
        assert_eq!(ca.links.keys().collect::<Vec<_>>(), [&(Kind::User, "joe".to_owned())]);
        assert_eq!(ca.recipients.as_ref().unwrap().len(), 1);
        assert!(found.secrets[Path::new("vars/per-machine/tin/x/secret")].recipients.is_err());
        assert!(found.secrets.contains_key(Path::new("sops/secrets/token")));
        assert_eq!(found.hashes[Path::new("vars/shared/ca")], "abc");
        assert!(found.has(Path::new("vars/per-machine/tin/x/pub"), false));
        assert!(!found.has(Path::new("vars/per-machine/tin/x/pub"), true));
    }

    #[test]
    fn a_file_in_the_place_of_a_folder_is_named() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), "vars/shared", "");
        let error = Snapshot::read(folder.path()).unwrap_err();
        assert!(
            matches!(&error, RepositoryError::NotAFolder(path) if path.ends_with("vars/shared")),
            "{error}"
        );
    }
}
