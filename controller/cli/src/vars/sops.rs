//! The program sops. It gets values on standard input and prints them on standard output: nothing secret is
//! in its arguments, its environment or a file.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::process::Command;

use super::keys::{Recipients, sops_config};
use super::program::{self, Ended, ProgramError};
use super::repository::MAX_FILE;
use super::secret::{MAX_VALUE, SecretBytes};

/// The first version with `encrypt` and `decrypt` as commands.
const OLDEST: (u32, u32) = (3, 9);
const OLDEST_SHOWN: &str = "3.9";
/// A key on a token may wait for a touch.
const LIMIT: Duration = Duration::from_secs(300);
/// The largest file that sops writes for a value of [`MAX_VALUE`] bytes.
const MAX_ENCRYPTED: usize = MAX_FILE as usize;
/// Exit codes of sops (`cmd/sops/codes`).
const NO_KEY: [i32; 2] = [128, 111];
const ALTERED: [i32; 3] = [51, 52, 25];
const NO_DATA_KEY: &str = "Failed to get the data key";
/// What age says if a key is not one of the file's.
const FOREIGN: [&str; 2] =
    ["did not match any of the recipients", "no identity matched any of the recipients"];
/// Variables of sops that say how to get a key. All others could choose other recipients than ours.
const IDENTITIES: [&str; 6] = [
    "SOPS_AGE_KEY",
    "SOPS_AGE_KEY_FILE",
    "SOPS_AGE_KEY_CMD",
    "SOPS_AGE_SSH_PRIVATE_KEY_FILE",
    "SOPS_AGE_SSH_PRIVATE_KEY_CMD",
    "SOPS_GPG_EXEC",
];

#[derive(Debug, thiserror::Error)]
pub enum SopsError {
    #[error(
        "there is no `sops` on PATH, which encrypts and decrypts secrets: install version {OLDEST_SHOWN} or \
         newer, with `nix profile install nixpkgs#sops` for example"
    )]
    Missing,
    #[error("the `sops` on PATH is version {0}, and {OLDEST_SHOWN} or newer is needed: install a newer one")]
    TooOld(String),
    #[error("`{0} --version` does not say a version: put another sops into PATH")]
    NoVersion(String),
    #[error(
        "none of your keys reads {secret} ({message}): name the file with the right age key in \
         SOPS_AGE_KEY_FILE, or have an operator who reads it give you access with `muster vars fix \
         --add-user`"
    )]
    NoKey { secret: String, message: String },
    #[error(
        "a key of yours cannot be used for {secret}: {message}. The file is as it was, and nothing says that \
         it is damaged: fix what is named; for a plugin, the program age-plugin-NAME must be on PATH"
    )]
    KeyUnusable { secret: String, message: String },
    #[error("{0} was changed after it was encrypted: bring it back from git, or make it again")]
    Altered(String),
    #[error(
        "sops cannot read {secret}: it {how} ({message}). Nothing was changed, and the file may be sound: \
         see what `sops decrypt` says of it before you replace it"
    )]
    Decrypt { secret: String, how: String, message: String },
    #[error("sops cannot encrypt {secret}: it {how} ({message}); look at the keys in sops/")]
    Encrypt { secret: String, how: String, message: String },
    #[error("{secret} has more than {MAX_VALUE} bytes, which is too much for a secret")]
    TooLarge { secret: String },
    #[error("the recipients cannot be written for sops: {0}")]
    Config(std::io::Error),
    #[error(transparent)]
    Program(#[from] ProgramError),
}

/// A sops that is new enough.
#[derive(Debug)]
pub struct Sops {
    program: PathBuf,
}

impl Sops {
    pub async fn find() -> Result<Self, SopsError> {
        Self::at(program::find("sops").ok_or(SopsError::Missing)?).await
    }

    async fn at(program: PathBuf) -> Result<Self, SopsError> {
        let mut command = Command::new(&program);
        // Otherwise it would ask the network for a newer version.
        command.args(["--disable-version-check", "--version"]);
        let ended = program::run(command, b"", LIMIT, 64 * 1024).await?;
        let said = String::from_utf8_lossy(&ended.output);
        let version = said.split_whitespace().nth(1).unwrap_or_default();
        match version_of(version) {
            None => Err(SopsError::NoVersion(program.display().to_string())),
            Some(found) if found < OLDEST => Err(SopsError::TooOld(version.to_owned())),
            Some(_) => Ok(Self { program }),
        }
    }

    /// A file with `value` for these recipients. `secret` is its name, for display.
    pub async fn encrypt(
        &self,
        value: &[u8],
        recipients: &Recipients,
        secret: &str,
    ) -> Result<Vec<u8>, SopsError> {
        if value.len() > MAX_VALUE {
            return Err(SopsError::TooLarge { secret: secret.to_owned() });
        }
        let folder = tempfile::tempdir().map_err(SopsError::Config)?;
        let mut command = self.with_recipients(folder.path(), recipients)?;
        command.args(["encrypt", "--input-type", "binary", "--output-type", "json"]);
        command.args(["--filename-override", "secret", "/dev/stdin"]);
        let ended = program::run(command, value, LIMIT, MAX_ENCRYPTED).await?;
        match ended.well() {
            true => Ok(ended.output.to_vec()),
            false => Err(encrypt_error(&ended, secret)),
        }
    }

    pub async fn decrypt(&self, file: &Path, secret: &str) -> Result<SecretBytes, SopsError> {
        let mut command = Command::new(&self.program);
        command.args([
            "--disable-version-check",
            "decrypt",
            "--input-type",
            "binary",
            "--output-type",
            "binary",
        ]);
        command.arg(file);
        let ended = program::run(command, b"", LIMIT, MAX_VALUE).await?;
        if ended.well() { Ok(ended.output) } else { Err(decrypt_error(&ended, secret)) }
    }

    /// The file's contents for other recipients. sops would write to the file in place, and half of it if
    /// killed, so it gets a copy.
    pub async fn rekey(
        &self,
        file: &Path,
        recipients: &Recipients,
        secret: &str,
    ) -> Result<Vec<u8>, SopsError> {
        let folder = tempfile::tempdir().map_err(SopsError::Config)?;
        let copy = folder.path().join("secret");
        std::fs::copy(file, &copy).map_err(SopsError::Config)?;
        let mut command = self.with_recipients(folder.path(), recipients)?;
        command.args(["updatekeys", "--yes", "--input-type", "binary"]).arg(&copy);
        let ended = program::run(command, b"", LIMIT, MAX_ENCRYPTED).await?;
        match ended.well() {
            true => std::fs::read(&copy).map_err(SopsError::Config),
            false => Err(decrypt_error(&ended, secret)),
        }
    }

    fn with_recipients(&self, folder: &Path, recipients: &Recipients) -> Result<Command, SopsError> {
        let config = folder.join("config.json");
        std::fs::write(&config, sops_config(recipients)).map_err(SopsError::Config)?;
        let mut command = Command::new(&self.program);
        for (name, _) in std::env::vars_os() {
            let name = name.to_string_lossy();
            if name.starts_with("SOPS_") && !IDENTITIES.contains(&&*name) {
                command.env_remove(&*name);
            }
        }
        // No other configuration is looked for above its working folder.
        command.current_dir(folder).arg("--disable-version-check").arg("--config").arg(config);
        Ok(command)
    }
}

fn decrypt_error(ended: &Ended, secret: &str) -> SopsError {
    match ended.code {
        Some(code) if NO_KEY.contains(&code) || ended.stderr.contains(NO_DATA_KEY) => {
            no_key(&ended.stderr, secret)
        }
        Some(code) if ALTERED.contains(&code) => SopsError::Altered(secret.to_owned()),
        _ => SopsError::Decrypt {
            secret: secret.to_owned(),
            how: ended.how(),
            message: in_short(&ended.stderr),
        },
    }
}

fn encrypt_error(ended: &Ended, secret: &str) -> SopsError {
    SopsError::Encrypt { secret: secret.to_owned(), how: ended.how(), message: in_short(&ended.stderr) }
}

/// Why no key opened it: none is one of the file's, or one could not be used.
fn no_key(stderr: &str, secret: &str) -> SopsError {
    let causes = causes(stderr);
    let foreign = |cause: &String| FOREIGN.iter().any(|text| cause.contains(text));
    let secret = secret.to_owned();
    match causes.iter().find(|cause| !foreign(cause)) {
        Some(cause) => SopsError::KeyUnusable { secret, message: in_short(cause) },
        None => {
            let message =
                causes.first().map_or_else(|| "sops found no key".to_owned(), |cause| in_short(cause));
            SopsError::NoKey { secret, message }
        }
    }
}

/// What sops says about each key: a paragraph with bars before its lines.
fn causes(stderr: &str) -> Vec<String> {
    let mut causes: Vec<String> = Vec::new();
    for line in stderr.lines().map(str::trim) {
        if let Some(first) = line.strip_prefix("- |") {
            causes.push(first.trim().to_owned());
        } else if let (Some(more), Some(cause)) = (line.strip_prefix('|'), causes.last_mut()) {
            cause.push(' ');
            cause.push_str(more.trim());
        }
    }
    // Where it looked for others is said every time, and is not a cause.
    for cause in &mut causes {
        let end = cause.find("Did not find keys in locations").unwrap_or(cause.len());
        cause.truncate(end);
        cause.truncate(cause.trim_end_matches([' ', '.']).len());
    }
    causes.retain(|cause| !cause.is_empty());
    causes
}

/// sops reports keys and files, never values: the format is binary, so it parses none. Progress lines begin
/// with a time; the cause follows them.
fn in_short(stderr: &str) -> String {
    const LONGEST: usize = 300;
    let is_cause = |line: &&str| !line.is_empty() && !line.contains("Syncing keys for file");
    let line = stderr.lines().map(str::trim).find(is_cause).unwrap_or("and said nothing");
    line.chars().take(LONGEST).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

fn version_of(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.trim_start_matches('v').split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        assert_eq!(version_of("3.11.0"), Some((3, 11)));
        assert_eq!(version_of("v3.9.4-rc1"), Some((3, 9)));
        assert!(version_of("3.10.2").unwrap() > OLDEST);
        assert!(version_of("3.8.1").unwrap() < OLDEST);
        assert_eq!(version_of("sops"), None);
    }

    #[test]
    fn what_sops_says_is_told_in_one_short_line() {
        let message = format!("\n  error: {}\u{1b}[31m\nmore\n", "x".repeat(300));
        let told = in_short(&message);
        assert!(told.starts_with("error: xxx") && told.chars().count() == 300 && !told.contains('\u{1b}'));
        assert_eq!(in_short("2026/11/28 09:00:05 Syncing keys for file /x\ncause\n"), "cause");
        assert_eq!(in_short(" \n"), "and said nothing");
    }

    /// Writes a program from a child process, so that no other test's child can hold the file open (ETXTBSY).
    fn program(folder: &Path, text: &str) -> PathBuf {
        let path = folder.join("sops");
        let write = "printf '#!/bin/sh\\n%s\\n' \"$1\" > \"$0\" && chmod 755 \"$0\"";
        let status = std::process::Command::new("/bin/sh").arg("-c").arg(write).arg(&path).arg(text).status();
        assert!(status.unwrap().success());
        path
    }

    /// As written by sops 3.11, with this as its only key.
    fn refused(lines: &str) -> Ended {
        let message = format!(
            "2026/11/28 09:00:05 Syncing keys for file /fleet/secret\nFailed to get the data key required to \
             decrypt the SOPS \
             file.\n\nGroup 0: FAILED\n  age1rnc: FAILED\n{lines}\nRecovery failed because no master key was \
             able to decrypt the file. \
             In\norder for SOPS to recover the file, at least one key has to be successful,\nbut none were.\n"
        );
        Ended { code: Some(128), output: SecretBytes::new(Vec::new()), stderr: message }
    }

    #[test]
    fn a_plugin_that_is_not_there_is_named_and_no_file_is_to_be_replaced_for_it() {
        let lines = "    - | failed to create reader for decrypting sops data key with\n      | age: yubikey \
             plugin: couldn't start plugin: \
                     exec:\n      | \"age-plugin-yubikey\": executable file not found in $PATH. \
                     Did\n      | not find keys in locations 'SOPS_AGE_KEY'.\n";
        for code in [Some(128), Some(1)] {
            let told = decrypt_error(&Ended { code, ..refused(lines) }, "tin/x").to_string();
            let cause =
                "couldn't start plugin: exec: \"age-plugin-yubikey\": executable file not found in $PATH.";
            assert!(told.contains(cause) && told.contains("on PATH"), "{told}");
            for wrong in ["git", "again", "Syncing", "none of your keys"] {
                assert!(!told.contains(wrong), "{wrong}: {told}");
            }
        }
    }

    #[test]
    fn a_key_that_is_not_one_of_the_files_is_told_from_one_that_cannot_be_used() {
        let lines = "    - | failed to create reader for decrypting sops data key with\n      | age: \
             identity did not match any of the recipients: \
                     incorrect\n      | identity for recipient block. Did not find keys in \
                     locations\n      | 'SOPS_AGE_KEY'.\n";
        let told = decrypt_error(&refused(lines), "tin/x").to_string();
        assert!(told.starts_with("none of your keys reads tin/x (failed to create reader"), "{told}");
        assert!(!told.contains("locations"), "{told}");
        let lines = "    - | failed to load age identities: invalid checksum.\n";
        let told = decrypt_error(&refused(lines), "tin/x").to_string();
        assert!(
            told.contains("cannot be used for tin/x: failed to load age identities: invalid checksum"),
            "{told}"
        );
        // An unknown answer is no reason to replace a file.
        let killed = Ended { code: Some(2), stderr: "no space left on device".into(), ..refused("") };
        let told = decrypt_error(&killed, "tin/x").to_string();
        assert!(told.contains("no space left on device") && !told.contains("git"), "{told}");
    }

    #[tokio::test]
    async fn a_sops_that_is_too_old_or_none_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let old = Sops::at(program(folder.path(), "echo sops 3.8.1")).await.unwrap_err();
        assert!(old.to_string().contains("version 3.8.1, and 3.9 or newer"), "{old}");
        let none = Sops::at(program(folder.path(), "echo hello")).await.unwrap_err();
        assert!(matches!(none, SopsError::NoVersion(_)), "{none}");
        assert!(Sops::at(program(folder.path(), "echo 'sops 3.11.0 (latest)'")).await.is_ok());
    }
}
