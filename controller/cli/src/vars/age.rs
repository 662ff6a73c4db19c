//! The operator's own age keys: where sops looks for them, and which operator has them.

use std::ffi::OsString;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::{fs, io};

use muster_protocol::age::{AgeKey, keys_in};
use muster_protocol::random::RandomError;
use zeroize::Zeroizing;

use super::keys::{Recipient, Recipients};

/// The largest identity file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum AgeError {
    #[error(
        "you have no age key on this computer (looked in {0}): make one with `muster vars keygen`, or name \
         its file in SOPS_AGE_KEY_FILE"
    )]
    None(String),
    #[error("your age keys in {} cannot be read: {source}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} holds no age key that this version reads", .0.display())]
    Empty(PathBuf),
    #[error("{} may be read by others: run `chmod 600` on it", .0.display())]
    Open(PathBuf),
    #[error("your new age key cannot be written to {}: {source}", path.display())]
    Write { path: PathBuf, source: io::Error },
    #[error("neither HOME nor XDG_CONFIG_HOME is set: name the file for your age key in SOPS_AGE_KEY_FILE")]
    NoHome,
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// Where this run looks for the operator's keys. Read from the environment once.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// `SOPS_AGE_KEY`.
    pub key: Option<Zeroizing<String>>,
    /// `SOPS_AGE_KEY_FILE`, or sops' default.
    pub file: Option<PathBuf>,
    /// The public half of the SSH key that sops takes as an identity.
    pub ssh: Option<PathBuf>,
    /// `SOPS_PGP_FP`.
    pub pgp: Vec<String>,
}

impl Places {
    pub fn of_environment() -> Self {
        let text = |name| std::env::var_os(name).filter(|value: &OsString| !value.is_empty());
        let path = |name| text(name).map(PathBuf::from);
        let key = text("SOPS_AGE_KEY").and_then(|key| key.into_string().ok()).map(Zeroizing::new);
        let home = path("HOME");
        // Like sops: Go's os.UserConfigDir, but XDG_CONFIG_HOME also on a Mac.
        let config = path("XDG_CONFIG_HOME").or_else(|| {
            home.as_ref().map(|home| match cfg!(target_os = "macos") {
                true => home.join("Library/Application Support"),
                false => home.join(".config"),
            })
        });
        let private = path("SOPS_AGE_SSH_PRIVATE_KEY_FILE")
            .or_else(|| home.map(|home| home.join(".ssh/id_ed25519")).filter(|path| path.exists()));
        Self {
            key,
            file: path("SOPS_AGE_KEY_FILE").or_else(|| config.map(|config| config.join("sops/age/keys.txt"))),
            ssh: private.map(|path| path.with_added_extension("pub")),
            pgp: text("SOPS_PGP_FP")
                .map(|keys| keys.to_string_lossy().split(',').map(|key| key.trim().to_owned()).collect())
                .unwrap_or_default(),
        }
    }

    /// The public halves of all keys that this operator can decrypt with.
    pub fn recipients(&self) -> Result<Recipients, AgeError> {
        let mut found = Recipients::new();
        if let Some(key) = &self.key {
            found.extend(public_halves(key));
        } else if let Some(path) = &self.file
            && let Some(text) = read(path)?
        {
            let keys = public_halves(&text);
            if keys.is_empty() {
                return Err(AgeError::Empty(path.clone()));
            }
            found.extend(keys);
        }
        let ssh = self.ssh.as_ref().and_then(|path| fs::read_to_string(path).ok());
        found.extend(ssh.as_deref().and_then(Recipient::age));
        found.extend(self.pgp.iter().filter_map(|key| Recipient::pgp(key)));
        Ok(found)
    }

    /// The same; an error if there are none.
    pub fn required(&self) -> Result<Recipients, AgeError> {
        let found = self.recipients()?;
        let looked = || {
            let file = self.file.as_ref().map(|path| path.display().to_string());
            AgeError::None(file.unwrap_or_else(|| "SOPS_AGE_KEY".to_owned()))
        };
        if found.is_empty() { Err(looked()) } else { Ok(found) }
    }

    /// Makes a new key and appends it to the file.
    pub fn make(&self) -> Result<(Recipient, PathBuf), AgeError> {
        let path = self.file.clone().ok_or(AgeError::NoHome)?;
        let key = AgeKey::generate()?;
        let mut text = read(&path)?.unwrap_or_default();
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        let text = Zeroizing::new(format!("{}{}", *text, *key.entry()));
        write(&path, text.as_bytes()).map_err(|source| AgeError::Write { path: path.clone(), source })?;
        let recipient = Recipient::age(&key.recipient()).ok_or_else(|| AgeError::Empty(path.clone()))?;
        Ok((recipient, path))
    }
}

/// The recipients of the keys in a text: computed for age's own, taken from the comment above for those of
/// plugins.
fn public_halves(text: &str) -> Recipients {
    let mut found: Recipients =
        keys_in(text).iter().filter_map(|key| Recipient::age(&key.recipient())).collect();
    let mut named = None;
    for line in text.lines().map(str::trim) {
        if let Some(comment) = line.strip_prefix('#') {
            named = comment.split_whitespace().find_map(Recipient::age).or(named);
        } else if line.starts_with("AGE-PLUGIN-") {
            found.extend(named.take());
        } else if !line.is_empty() {
            named = None;
        }
    }
    found
}

fn read(path: &Path) -> Result<Option<Zeroizing<String>>, AgeError> {
    use io::Read as _;
    let error = |source| AgeError::Read { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(error(source)),
    };
    if file.metadata().map_err(error)?.permissions().mode() & 0o077 != 0 {
        return Err(AgeError::Open(path.to_owned()));
    }
    let mut text = Zeroizing::new(String::with_capacity(8 * 1024));
    file.take(MAX_FILE).read_to_string(&mut text).map_err(error)?;
    Ok(Some(text))
}

/// Replaces the file atomically, with mode 0600.
fn write(path: &Path, contents: &[u8]) -> io::Result<()> {
    let folder = path.parent().ok_or_else(|| io::Error::other("a file needs a folder"))?;
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let new = path.with_added_extension("new");
    let _ = fs::remove_file(&new);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
    file.write_all(contents)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(folder: &Path) -> Places {
        Places { file: Some(folder.join("sops/age/keys.txt")), ..Places::default() }
    }

    #[test]
    fn a_new_key_is_added_below_the_old_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        assert!(places.recipients().unwrap().is_empty());
        assert!(places.required().unwrap_err().to_string().contains("muster vars keygen"));
        let (first, path) = places.make().unwrap();
        let (second, _) = places.make().unwrap();
        assert_eq!(places.required().unwrap(), Recipients::from([first, second]));
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let places = places(folder.path());
        let (_, path) = places.make().unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(places.recipients().unwrap_err(), AgeError::Open(_)));
    }

    #[test]
    fn keys_of_plugins_are_known_by_the_comment_above_them() {
        let key = AgeKey::generate().unwrap();
        let text = format!(
            "# recipient: age1yubikey1qqqqqqqqqqqqqqqqqqqqqqqqqq\nAGE-PLUGIN-YUBIKEY-1XXXX\n# public key: \
             age1wrongwrongwrongwrong\n{}",
            key.entry().lines().nth(1).unwrap()
        );
        let found = public_halves(&text);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found.iter().any(|it| it.key == key.recipient()));
    }

    #[test]
    fn the_variable_comes_before_the_file_and_ssh_keys_count() {
        let folder = tempfile::tempdir().unwrap();
        let mut places = places(folder.path());
        places.make().unwrap();
        let key = AgeKey::generate().unwrap();
        places.key = Some(key.entry());
        let ssh = folder.path().join("id.pub");
        fs::write(&ssh, "ssh-ed25519 AAAAC3Nz me@host\n").unwrap();
        places.ssh = Some(ssh);
        let found: Vec<String> = places.recipients().unwrap().into_iter().map(|it| it.key).collect();
        assert_eq!(found, [key.recipient(), "ssh-ed25519 AAAAC3Nz".to_owned()]);
    }
}
