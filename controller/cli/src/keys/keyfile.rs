//! Private keys in files: writing, reading, and asking for passphrases.

use std::fs;
use std::io::{ErrorKind, IsTerminal as _, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::keys::{KeyError, SecretKey, is_encrypted};
use zeroize::Zeroizing;

use crate::terminal::error::{Hint, WithHint as _};

/// Names a file with the passphrase, for programs without a terminal.
pub const PASSPHRASE_FILE: &str = "MUSTER_PASSPHRASE_FILE";
const SHORTEST_PASSPHRASE: usize = 12;
/// The most bytes read from a private key file.
const MAX_BYTES: u64 = 64 * 1024;

/// Reads an operator or root key, asking for its passphrase if it has one.
pub fn read(path: &Path) -> Result<SecretKey> {
    open(path, &text(path)?)
}

/// The text of a key file; one without a passphrase must be private to its user.
pub fn text(path: &Path) -> Result<Zeroizing<String>> {
    let mut file = fs::File::open(path)
        .with_context(|| unreadable(path))
        .hint("set operator_key in muster.toml to the file that holds your key")?;
    let mode = file.metadata().with_context(|| unreadable(path))?.mode() & 0o777;
    let mut bytes = Zeroizing::new(Vec::new());
    file.by_ref()
        .take(MAX_BYTES)
        .read_to_end(&mut bytes)
        .with_context(|| unreadable(path))
        .hint("name the file that holds the key")?;
    // A file that is not a key needs no `chmod`: that advice would help nobody.
    let text = std::str::from_utf8(&bytes).ok().filter(|text| text.contains("-----BEGIN"));
    let Some(text) = text else {
        return Err(anyhow!("{} holds no private key", path.display()))
            .hint("name a file that `muster init` or `muster keys generate` wrote");
    };
    if !is_encrypted(text) && mode & 0o077 != 0 {
        return Err(anyhow!("the private key {} may be read by others", path.display()))
            .hint(format!("run `chmod 600 {}`", path.display()));
    }
    Ok(Zeroizing::new(text.to_owned()))
}

/// The key in a key file's text.
pub fn open(path: &Path, text: &str) -> Result<SecretKey> {
    if !is_encrypted(text) {
        return SecretKey::from_pem(text).with_context(|| path.display().to_string());
    }
    let passphrase = passphrase(&format!("Passphrase of {}: ", path.display()), None)?;
    match SecretKey::from_encrypted_pem(text, &passphrase) {
        Err(error @ KeyError::WrongPassphrase) => {
            Err(error).with_context(|| path.display().to_string()).hint("try again with the right passphrase")
        }
        key => key.with_context(|| path.display().to_string()),
    }
}

fn unreadable(path: &Path) -> String {
    format!("cannot read the private key {}", path.display())
}

/// Writes a file that only its user can read. Refuses to replace a file.
pub fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(|error| {
            let hint = match error.kind() {
                ErrorKind::AlreadyExists => "a key is never written over another: name another file",
                _ => "name a file in a folder that is there and that you may write to",
            };
            anyhow!(error).context(format!("cannot write {}", path.display())).context(Hint(hint.to_owned()))
        })?;
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))?;
    file.sync_all().with_context(|| format!("cannot write {}", path.display()))
}

/// Puts such a file in the place of an older one, if there is one.
pub fn replace_private(path: &Path, text: &str) -> Result<()> {
    let new = path.with_added_extension("new");
    let _ = fs::remove_file(&new);
    write_private(&new, text)?;
    fs::rename(&new, path).with_context(|| format!("cannot write {}", path.display()))
}

/// A new passphrase: from a file, or typed twice.
pub fn new_passphrase(file: Option<PathBuf>) -> Result<Zeroizing<String>> {
    let from_file = file.is_some() || std::env::var_os(PASSPHRASE_FILE).is_some();
    let first = passphrase("New passphrase for the operator's and the root key: ", file)?;
    if first.chars().count() < SHORTEST_PASSPHRASE {
        return Err(anyhow!("the passphrase has fewer than {SHORTEST_PASSPHRASE} characters"))
            .hint("take four or more random words");
    }
    if !from_file {
        let second = passphrase("The same again: ", None)?;
        if *first != *second {
            return Err(anyhow!("the two passphrases differ")).hint("run the command again");
        }
    }
    Ok(first)
}

/// A passphrase from the named file, the environment's file, or the terminal; never from the arguments.
fn passphrase(prompt: &str, file: Option<PathBuf>) -> Result<Zeroizing<String>> {
    if let Some(path) = file.or_else(|| std::env::var_os(PASSPHRASE_FILE).map(PathBuf::from)) {
        let text = Zeroizing::new(
            fs::read_to_string(&path)
                .with_context(|| format!("cannot read the passphrase from {}", path.display()))
                .hint("name a file that holds the passphrase and nothing else")?,
        );
        return Ok(Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned()));
    }
    if !std::io::stdin().is_terminal() {
        return Err(anyhow!("a passphrase is needed and there is no terminal to ask for it"))
            .hint(format!("put it into a file that only you can read and name that in {PASSPHRASE_FILE}"));
    }
    rpassword::prompt_password(prompt).map(Zeroizing::new).context("cannot read the passphrase")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_plain_key_that_others_may_read_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.pem");
        let key = SecretKey::generate().unwrap();
        write_private(&path, &key.to_pem().unwrap()).unwrap();
        assert_eq!(read(&path).unwrap().public(), key.public());
        fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = crate::terminal::error::render(&read(&path).unwrap_err());
        assert!(refused.contains("chmod 600"), "{refused}");
    }

    #[test]
    fn a_key_is_never_written_over_another() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("operator.pem");
        write_private(&path, "one").unwrap();
        assert!(write_private(&path, "two").is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "one");
    }
}
