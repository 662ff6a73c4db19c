//! This machine's identity: what enrolment left on disk. The private keys never leave it.

use std::cell::RefCell;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use muster_protocol::age::{AgeKey, keys_in};
use muster_protocol::clock::UnixMillis;
use muster_protocol::ids::{Generation, MachineName, Sha256};
use muster_protocol::keys::{KeyError, SecretKey};
use muster_protocol::machine::{Class, System};
use muster_protocol::random::RandomError;
use muster_protocol::witness::{AgeClaim, Witness};
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::config::Config;
use crate::durable;

const ENROLMENT: &str = "enrolment.json";
const MACHINE_KEY: &str = "machine.pem";
/// The next key, from before the controller hears of it until it is known to have accepted it.
const NEXT_KEY: &str = "next-machine.pem";
/// The previous keys, newest first, each with the time until which it is kept.
pub const PREVIOUS_KEYS: &str = "previous-machine.json";
/// How long a replaced key is kept: a controller that was restored from a backup, or that lied, may know only
/// that one.
const PREVIOUS_KEY_MS: UnixMillis = 30 * 86_400_000;
/// How many of them are kept.
const MAX_PREVIOUS_KEYS: usize = 4;
/// The newest key first; older ones still decrypt earlier secrets, so that going back is possible.
pub const AGE_KEY: &str = "age.txt";
/// Proves to the operator who made the token that the age key is this machine's.
const WITNESS: &str = "witness";
/// How many age keys are kept.
const MAX_AGE_KEYS: usize = 8;
/// The certificate pinned by the token, for Nix (`ssl-cert-file`).
const CA_FILE: &str = "ca.pem";
const MAX_FILE_BYTES: u64 = 64 * 1024;
/// The version of `enrolment.json` that this agent writes. Later versions only add fields.
const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("{} cannot be read: {source}; {}", path.display(), crate::durable::read_remedy(source))]
    Read { path: PathBuf, source: io::Error },
    #[error("{} cannot be written: {source}; {}", path.display(), crate::durable::remedy(source))]
    Write { path: PathBuf, source: io::Error },
    #[error("{} is damaged ({detail}): enrol this machine again with a new token and --replace", path.display())]
    Damaged { path: PathBuf, detail: String },
    #[error("{} is missing though this machine is enrolled: enrol it again with a new token and --replace", .0.display())]
    KeyMissing(PathBuf),
    #[error(transparent)]
    Key(#[from] KeyError),
    #[error(transparent)]
    Random(#[from] RandomError),
}

/// An enrolled machine.
#[derive(Debug, Clone)]
pub struct Identity {
    pub machine: MachineName,
    pub class: Class,
    pub system: System,
    /// SHA-256 of `1.root.json`.
    pub fleet: Sha256,
    /// The controller's address, without a trailing slash.
    pub url: String,
    /// The lowest generation to accept.
    pub lowest: Generation,
    pub key: SecretKey,
    /// The recipient of this machine's secrets, `age1…`.
    pub age: String,
    /// The only authority to trust for the controller, in PEM; without it the public ones.
    pub tls_ca: Option<String>,
    /// The file of `tls_ca`.
    pub ca_file: Option<PathBuf>,
}

/// `enrolment.json`. Written last, so a machine that has it has everything else too.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Enrolment {
    pub version: u32,
    pub machine: MachineName,
    pub class: Class,
    pub system: System,
    pub fleet: Sha256,
    pub url: String,
    pub lowest_generation: Generation,
    /// DER in base64, as the token has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls_ca: Option<String>,
    /// Unix milliseconds.
    pub enrolled_at: i64,
}

impl Enrolment {
    pub fn version() -> u32 {
        VERSION
    }
}

impl Identity {
    /// This machine's identity, or `None` if it was never enrolled.
    pub fn load(config: &Config) -> Result<Option<Self>, IdentityError> {
        let Some(enrolment) = Self::enrolment(&config.state_dir)? else { return Ok(None) };
        let keys = Keys::load(&config.state_dir)?;
        // A stand-in may change its system between runs of the demo; a real machine never does.
        let system = config.stand_in.as_ref().map_or(enrolment.system, |stand_in| stand_in.system.clone());
        let tls_ca = enrolment.tls_ca.as_deref().map(pem_of);
        Ok(Some(Self {
            machine: enrolment.machine,
            class: enrolment.class,
            system,
            fleet: enrolment.fleet,
            url: enrolment.url.trim_end_matches('/').to_owned(),
            lowest: enrolment.lowest_generation,
            age: keys.recipient(),
            key: keys.machine,
            ca_file: tls_ca.is_some().then(|| config.state(CA_FILE)),
            tls_ca,
        }))
    }

    /// The enrolment in `folder`.
    pub fn enrolment(folder: &Path) -> Result<Option<Enrolment>, IdentityError> {
        let path = folder.join(ENROLMENT);
        let Some(bytes) = read(&path)? else { return Ok(None) };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|error| IdentityError::Damaged { path, detail: error.to_string() })
    }

    /// Stores an enrolment in `folder`: the certificate's file first, `enrolment.json` last.
    pub fn save(folder: &Path, enrolment: &Enrolment) -> Result<(), IdentityError> {
        let write = |name: &str, contents: &[u8], mode| {
            let path = folder.join(name);
            durable::write(&path, contents, mode).map_err(|source| IdentityError::Write { path, source })
        };
        if let Some(ca) = &enrolment.tls_ca {
            write(CA_FILE, pem_of(ca).as_bytes(), 0o644)?;
        }
        let json = serde_json::to_vec_pretty(enrolment).map_err(|error| IdentityError::Damaged {
            path: folder.join(ENROLMENT),
            detail: error.to_string(),
        })?;
        write(ENROLMENT, &json, 0o600)
    }
}

/// A certificate in PEM from its DER in base64.
pub fn pem_of(base64: &str) -> String {
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut column = 0;
    for character in base64.chars().filter(|c| !c.is_whitespace()) {
        pem.push(character);
        column += 1;
        if column % 64 == 0 {
            pem.push('\n');
        }
    }
    if !pem.ends_with('\n') {
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// The two private keys of a machine.
pub struct Keys {
    pub machine: SecretKey,
    /// At least one, the newest first.
    age: Vec<AgeKey>,
}

impl Keys {
    /// The keys in `folder`; missing ones are generated and stored before this returns, so that an enrolment
    /// whose reply was lost can be repeated with the same keys.
    pub fn load_or_make(folder: &Path) -> Result<Self, IdentityError> {
        let machine = folder.join(MACHINE_KEY);
        if read(&machine)?.is_none() {
            write_secret(&machine, &SecretKey::generate()?.to_pem()?)?;
        }
        let age = folder.join(AGE_KEY);
        if read(&age)?.is_none() {
            write_secret(&age, &AgeKey::generate()?.entry())?;
        }
        Self::load(folder)
    }

    fn load(folder: &Path) -> Result<Self, IdentityError> {
        let text = |path: &Path| -> Result<Zeroizing<String>, IdentityError> {
            let bytes = read(path)?.ok_or_else(|| IdentityError::KeyMissing(path.to_path_buf()))?;
            Ok(Zeroizing::new(String::from_utf8(bytes).unwrap_or_default()))
        };
        let path = folder.join(MACHINE_KEY);
        let machine = SecretKey::from_pem(&text(&path)?)
            .map_err(|error| IdentityError::Damaged { path, detail: error.to_string() })?;
        let path = folder.join(AGE_KEY);
        let age = keys_in(&text(&path)?);
        if age.is_empty() {
            return Err(IdentityError::Damaged { path, detail: "it holds no age key".into() });
        }
        Ok(Self { machine, age })
    }

    /// Puts the keys in `from` in force in `to`.
    pub fn install(from: &Path, to: &Path) -> Result<(), IdentityError> {
        for name in [MACHINE_KEY, AGE_KEY] {
            let path = from.join(name);
            let key = read(&path)?.map(Zeroizing::new).ok_or(IdentityError::KeyMissing(path))?;
            let path = to.join(name);
            durable::write(&path, &key, 0o600).map_err(|source| IdentityError::Write { path, source })?;
        }
        // A folder of an earlier version has none; then the old one belongs to another token.
        let witness = read(&from.join(WITNESS))?.map(Zeroizing::new).unwrap_or_default();
        let path = to.join(WITNESS);
        durable::write(&path, &witness, 0o600).map_err(|source| IdentityError::Write { path, source })
    }

    /// The recipient that this machine's secrets are encrypted to.
    pub fn recipient(&self) -> String {
        self.age.first().map(AgeKey::recipient).unwrap_or_default()
    }

    /// Generates a new age key for everything encrypted from now on; returns its recipient.
    pub fn renew_age(folder: &Path) -> Result<String, IdentityError> {
        let old = Self::load(folder)?;
        let new = AgeKey::generate()?;
        let mut text = Zeroizing::new(String::with_capacity(4096));
        for key in std::iter::once(&new).chain(&old.age).take(MAX_AGE_KEYS) {
            text.push_str(&key.entry());
        }
        write_secret(&folder.join(AGE_KEY), &text)?;
        Ok(new.recipient())
    }
}

/// Stores the token's secret that proves this machine's age key.
pub fn save_witness(folder: &Path, witness: &Witness) -> Result<(), IdentityError> {
    write_secret(&folder.join(WITNESS), &witness.to_text())
}

/// The token's secret that proves this machine's keys; none on a machine that an earlier version enrolled.
pub fn witness(folder: &Path) -> Result<Option<Witness>, IdentityError> {
    let text = read(&folder.join(WITNESS))?.map(Zeroizing::new);
    Ok(text.and_then(|text| Witness::parse(std::str::from_utf8(&text).ok()?).ok()))
}

/// This machine's claim about its age key, which may have been renewed.
fn age_claim(folder: &Path, fleet: &Sha256, machine: &MachineName) -> Result<AgeClaim, IdentityError> {
    let recipient = Keys::load(folder)?.recipient();
    let proof = witness(folder)?.map(|witness| witness.prove(fleet, machine, &recipient));
    Ok(AgeClaim { recipient, proof })
}

/// `age_claim`, computed once as long as the files are the same: an update has many check-ins.
#[derive(Default)]
pub struct AgeClaims(RefCell<Option<(Stamps, AgeClaim)>>);

/// Whether a file is still the same: its inode and modification time, in seconds and nanoseconds. Both files
/// are only ever replaced.
type Stamps = [Option<(u64, i64, i64)>; 2];

impl AgeClaims {
    pub fn get(
        &self,
        folder: &Path,
        fleet: &Sha256,
        machine: &MachineName,
    ) -> Result<AgeClaim, IdentityError> {
        let stamps = [AGE_KEY, WITNESS].map(|name| {
            let file = std::fs::metadata(folder.join(name)).ok()?;
            Some((file.ino(), file.mtime(), file.mtime_nsec()))
        });
        if let Some((_, claim)) = self.0.borrow().as_ref().filter(|(held, _)| *held == stamps) {
            return Ok(claim.clone());
        }
        let claim = age_claim(folder, fleet, machine)?;
        *self.0.borrow_mut() = Some((stamps, claim.clone()));
        Ok(claim)
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, IdentityError> {
    durable::read(path, MAX_FILE_BYTES)
        .map_err(|source| IdentityError::Read { path: path.to_path_buf(), source })
}

fn write_secret(path: &Path, text: &str) -> Result<(), IdentityError> {
    durable::write(path, text.as_bytes(), 0o600)
        .map_err(|source| IdentityError::Write { path: path.to_path_buf(), source })
}

/// A machine's next key, until the controller accepts it.
///
/// It is durable before it is shown, and replaces the old one only after the controller has confirmed that it
/// accepted it. As long as its file is there, every check-in brings it again, signed by both: whichever of
/// the two the controller has, such a check-in is valid. So a crash at any instant leaves a machine that can
/// check in.
pub fn next_key(folder: &Path) -> Result<Option<SecretKey>, IdentityError> {
    let path = folder.join(NEXT_KEY);
    let Some(bytes) = read(&path)?.map(Zeroizing::new) else { return Ok(None) };
    let text = std::str::from_utf8(&bytes).unwrap_or_default();
    SecretKey::from_pem(text)
        .map(Some)
        .map_err(|error| IdentityError::Damaged { path, detail: error.to_string() })
}

/// The next key; generated if there is none.
pub fn make_next_key(folder: &Path) -> Result<SecretKey, IdentityError> {
    if let Some(key) = next_key(folder)? {
        return Ok(key);
    }
    let key = SecretKey::generate()?;
    write_secret(&folder.join(NEXT_KEY), &key.to_pem()?)?;
    Ok(key)
}

/// A replaced key.
#[derive(Serialize, Deserialize)]
struct Previous {
    pem: String,
    until: UnixMillis,
}

impl Drop for Previous {
    fn drop(&mut self) {
        self.pem.zeroize();
    }
}

fn stored_previous(folder: &Path) -> Result<Vec<Previous>, IdentityError> {
    let bytes = read(&folder.join(PREVIOUS_KEYS))?.map(Zeroizing::new);
    // A damaged file counts as empty: that alone locks nobody out.
    Ok(bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default())
}

/// The keys that this machine signed with before and still keeps, newest first.
///
/// A check-in signed by one of them brings the key in force, which signs it too. So a thief of an old key
/// alone gains nothing from a controller that knows a newer one.
/// nothing by it with a controller that knows a newer one.
pub fn previous_keys(folder: &Path, now: UnixMillis) -> Result<Vec<SecretKey>, IdentityError> {
    let stored = stored_previous(folder)?;
    Ok(stored
        .iter()
        .filter(|previous| previous.until > now)
        .filter_map(|previous| SecretKey::from_pem(&previous.pem).ok())
        .collect())
}

/// When the key in force replaced another, if that is still recorded.
pub fn rotated_at(folder: &Path) -> Result<Option<UnixMillis>, IdentityError> {
    Ok(stored_previous(folder)?.first().map(|newest| newest.until.saturating_sub(PREVIOUS_KEY_MS)))
}

/// Puts the next key in force: the controller confirmed that it has it. The previous one is stored first.
pub fn take_next_key(folder: &Path, now: UnixMillis) -> Result<(), IdentityError> {
    let path = folder.join(MACHINE_KEY);
    if next_key(folder)?.is_none() {
        return Err(IdentityError::KeyMissing(folder.join(NEXT_KEY)));
    }
    let bytes = read(&path)?.map(Zeroizing::new).ok_or_else(|| IdentityError::KeyMissing(path.clone()))?;
    let pem = std::str::from_utf8(&bytes).unwrap_or_default().to_owned();
    let mut kept = stored_previous(folder)?;
    kept.retain(|previous| previous.until > now && previous.pem != pem);
    kept.insert(0, Previous { pem, until: now.saturating_add(PREVIOUS_KEY_MS) });
    kept.truncate(MAX_PREVIOUS_KEYS);
    let file = folder.join(PREVIOUS_KEYS);
    let json = serde_json::to_string(&kept)
        .map(Zeroizing::new)
        .map_err(|error| IdentityError::Damaged { path: file.clone(), detail: error.to_string() })?;
    write_secret(&file, &json)?;
    durable::replace(&folder.join(NEXT_KEY), &path).map_err(|source| IdentityError::Write { path, source })
}

/// Forgets a next key that no controller accepts.
pub fn forget_next_key(folder: &Path) -> Result<(), IdentityError> {
    let path = folder.join(NEXT_KEY);
    durable::remove(&path).map_err(|source| IdentityError::Write { path, source })
}

/// Forgets the keys that belong to a replaced enrolment: the next one, and the previous ones.
pub fn forget_other_keys(folder: &Path) -> Result<(), IdentityError> {
    forget_next_key(folder)?;
    let path = folder.join(PREVIOUS_KEYS);
    durable::remove(&path).map_err(|source| IdentityError::Write { path, source })
}

/// The newest key in an age file.
#[doc(hidden)]
pub fn parse_age(text: &str) -> Option<AgeKey> {
    keys_in(text).into_iter().next()
}

#[cfg(test)]
mod tests;
