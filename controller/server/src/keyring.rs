//! The controller's own secrets: what seals bearers and sessions, and the key that sessions are set up with.
//! They are in a file of their own, outside the database and its backups. Whoever loses it loses nothing:
//! machines sign their next check-in and get new ones.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use muster_protocol::ids::{Sha256, from_hex, to_hex};
use muster_protocol::random::{self, RandomError};
use muster_protocol::session::ExchangeSecret;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize as _, Zeroizing};

use crate::config::require_private;
use crate::core::seals::{SealKey, Seals};

/// Its name in the data folder.
pub const FILE: &str = "bearer-keys.json";
/// How long a key seals, in seconds.
const SEALS_S: i64 = 7 * 86_400;
/// How long an earlier key is accepted after another one began to seal, in seconds: longer than anything
/// that it sealed lives.
const ACCEPTED_S: i64 = 2 * 3600;
/// How long after it was added the next key of a shared file begins to seal, in seconds: until then the file
/// is copied to the other controllers, and each reads it again.
pub const NEXT_S: i64 = 3600;

#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("the keys of bearers {0}: {1}")]
    File(PathBuf, std::io::Error),
    #[error(
        "the keys of bearers {0} are not what `muster serve` writes: remove the file and start again; each \
            machine then gets a new bearer with its next check-in"
    )]
    Damaged(PathBuf),
    #[error(
        "the keys of bearers {0} are not what `muster serve` writes: copy the file from another controller; if \
            none has it, remove it and start again, and each machine gets a new bearer with its next check-in"
    )]
    DamagedShared(PathBuf),
    #[error("bearer_keys {0}")]
    Open(String),
    #[error(transparent)]
    Random(#[from] RandomError),
}

#[derive(Debug)]
pub struct Keyring {
    file: PathBuf,
    /// Whether it is this controller's alone.
    own: bool,
    fleet: Sha256,
    held: RwLock<Arc<Keys>>,
}

/// The keys at one moment.
#[derive(Debug)]
pub struct Keys {
    pub seals: Arc<Seals>,
    /// The private half of what sessions are set up with.
    pub exchange: ExchangeSecret,
}

/// The file.
#[derive(Serialize, Deserialize)]
struct Written {
    /// Newest first.
    keys: Vec<WrittenKey>,
    exchange: Hex,
}

/// A secret in hexadecimal; wiped from memory when dropped.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
struct Hex(String);

impl Hex {
    fn of(bytes: &[u8; 32]) -> Self {
        Self(to_hex(bytes))
    }
}

impl Drop for Hex {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

#[derive(Serialize, Deserialize)]
struct WrittenKey {
    id: u32,
    /// When it began to seal, or will; Unix seconds.
    made_at: i64,
    secret: Hex,
}

impl Keyring {
    /// Opens the keys in the data folder; makes them at the first start.
    pub fn open(data: &Path, fleet: &Sha256, now_s: i64) -> Result<Self, KeyringError> {
        Self::of(data.join(FILE), true, fleet, now_s)
    }

    /// The same, in a file that several controllers have: none of them replaces its keys, since the others
    /// would not know the new one. A key that was added to it ([`add_next`]) seals from its time on; the one
    /// before is accepted as long as what it sealed.
    pub fn shared(file: &Path, fleet: &Sha256, now_s: i64) -> Result<Self, KeyringError> {
        Self::of(file.to_owned(), false, fleet, now_s)
    }

    fn of(file: PathBuf, own: bool, fleet: &Sha256, now_s: i64) -> Result<Self, KeyringError> {
        let keys = in_force(&file, own, true, fleet, now_s)?;
        Ok(Self { file, own, fleet: *fleet, held: RwLock::new(Arc::new(keys)) })
    }

    pub fn keys(&self) -> Arc<Keys> {
        self.held.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the file again, and replaces a key that has sealed long enough. A file that is missing now,
    /// perhaps for a moment, is not made anew.
    pub fn renew(&self, now_s: i64) -> Result<(), KeyringError> {
        let keys = in_force(&self.file, self.own, false, &self.fleet, now_s)?;
        *self.held.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        Ok(())
    }
}

/// Adds the next key to a file that several controllers have. Returns when it begins to seal, in Unix
/// seconds.
pub fn add_next(file: &Path, now_s: i64) -> Result<i64, KeyringError> {
    let failed = |error| KeyringError::File(file.to_owned(), error);
    let text = Zeroizing::new(std::fs::read(file).map_err(failed)?);
    let written = serde_json::from_slice::<Written>(&text).ok().filter(|written| !written.keys.is_empty());
    let mut written = written.ok_or_else(|| KeyringError::Damaged(file.to_owned()))?;
    let from = now_s.saturating_add(NEXT_S);
    // One that has not begun yet is replaced: a copy of it seals nothing before its time.
    written.keys.retain(|key| key.made_at <= now_s);
    written.keys.retain({
        let mut replaced_at = from;
        move |key| accepted(std::mem::replace(&mut replaced_at, key.made_at), now_s)
    });
    written.keys.insert(0, new_key(from)?);
    write(file, &written).map_err(failed)?;
    Ok(from)
}

/// Whether a key is still accepted that another one replaced then.
fn accepted(replaced_at: i64, now_s: i64) -> bool {
    now_s.saturating_sub(replaced_at) < ACCEPTED_S
}

/// The keys in the file, which is brought up to date first: a key is on disk before it seals anything.
fn in_force(file: &Path, own: bool, make: bool, fleet: &Sha256, now_s: i64) -> Result<Keys, KeyringError> {
    let failed = |error| KeyringError::File(file.to_owned(), error);
    let damaged = || match own {
        true => KeyringError::Damaged(file.to_owned()),
        false => KeyringError::DamagedShared(file.to_owned()),
    };
    let (mut written, mut changed) = match std::fs::read(file) {
        Ok(text) => {
            let text = Zeroizing::new(text);
            require_private(file).map_err(KeyringError::Open)?;
            let written = serde_json::from_slice::<Written>(&text);
            (written.map_err(|_| damaged())?, false)
        }
        Err(error) if make && error.kind() == std::io::ErrorKind::NotFound => {
            let exchange = Hex::of(&ExchangeSecret::generate()?.to_bytes());
            (Written { keys: Vec::new(), exchange }, true)
        }
        Err(error) => return Err(failed(error)),
    };
    // A clock that was set back makes no key last longer.
    let seals = |key: &WrittenKey| !own || (0..SEALS_S).contains(&now_s.saturating_sub(key.made_at));
    if !written.keys.first().is_some_and(seals) {
        written.keys.insert(0, new_key(now_s)?);
        changed = true;
    }
    let mut keys = written.keys.into_iter();
    let mut kept: Vec<WrittenKey> = keys.next().into_iter().collect();
    for key in keys {
        let replaced_at = kept.last().map_or(now_s, |after| after.made_at);
        if !own || accepted(replaced_at, now_s) {
            kept.push(key);
        } else {
            changed = true;
        }
    }
    written.keys = kept;
    if changed {
        write(file, &written).map_err(failed)?;
    }
    read(&written, fleet, now_s).ok_or_else(damaged)
}

fn new_key(now_s: i64) -> Result<WrittenKey, KeyringError> {
    let secret = Zeroizing::new(random::bytes::<32>()?);
    let id = u32::from_be_bytes(random::bytes()?);
    Ok(WrittenKey { id, made_at: now_s, secret: Hex::of(&secret) })
}

fn read(written: &Written, fleet: &Sha256, now_s: i64) -> Option<Keys> {
    let exchange = ExchangeSecret::from_bytes(from_hex(&written.exchange.0)?);
    let read = |key: &WrittenKey| Some(SealKey::new(key.id, from_hex(&key.secret.0)?).of_fleet(fleet));
    // Another controller, whose clock is ahead, may seal with a key whose time has not come here.
    let begun = written.keys.iter().position(|key| key.made_at <= now_s);
    let seals = begun.unwrap_or(written.keys.len().checked_sub(1)?);
    let mut others = Vec::with_capacity(written.keys.len());
    let mut replaced_at = now_s;
    for (index, key) in written.keys.iter().enumerate() {
        if index != seals && (index < seals || accepted(replaced_at, now_s)) {
            others.push(read(key)?);
        }
        replaced_at = key.made_at;
    }
    let seals = Seals::new(read(written.keys.get(seals)?)?, others, exchange.public());
    Some(Keys { seals: Arc::new(seals), exchange })
}

/// Readable only by us; replaced as a whole, and durable.
fn write(file: &Path, written: &Written) -> std::io::Result<()> {
    let folder = file.parent().unwrap_or(Path::new("."));
    let text = Zeroizing::new(serde_json::to_vec(written)?);
    // Its mode is 0600.
    let mut new = tempfile::NamedTempFile::new_in(folder)?;
    new.write_all(&text)?;
    new.as_file().sync_all()?;
    new.persist(file).map_err(|error| error.error)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::core::seals::Claims;

    const NOW: i64 = 1_800_000_000;

    fn fleet() -> Sha256 {
        Sha256::of(b"fleet")
    }
    fn claims() -> Claims {
        Claims { machine: "tin".parse().unwrap(), enrolment: 1, counter: 0, seq: 1, expires: NOW + 60 }
    }

    #[test]
    fn the_keys_outlive_a_restart_in_a_file_that_nobody_else_reads() {
        let folder = tempfile::tempdir().unwrap();
        let first = Keyring::open(folder.path(), &fleet(), NOW).unwrap().keys();
        let mode = std::fs::metadata(folder.path().join(FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let bearer = first.seals.bearer(first.seals.newest(), &claims());
        let again = Keyring::open(folder.path(), &fleet(), NOW + 3600).unwrap().keys();
        assert_eq!(again.seals.read_bearer(&bearer), Some(claims()));
        assert_eq!(again.exchange.public(), first.exchange.public());
    }

    #[test]
    fn a_key_is_replaced_and_accepted_as_long_as_what_it_sealed() {
        let folder = tempfile::tempdir().unwrap();
        let keyring = Keyring::open(folder.path(), &fleet(), NOW).unwrap();
        let first = keyring.keys();
        let bearer = first.seals.bearer(first.seals.newest(), &claims());
        keyring.renew(NOW + SEALS_S - 1).unwrap();
        assert_eq!(keyring.keys().seals.newest(), first.seals.newest());
        keyring.renew(NOW + SEALS_S).unwrap();
        assert_ne!(keyring.keys().seals.newest(), first.seals.newest());
        assert!(keyring.keys().seals.read_bearer(&bearer).is_some());
        keyring.renew(NOW + SEALS_S + ACCEPTED_S).unwrap();
        assert!(keyring.keys().seals.read_bearer(&bearer).is_none());
    }

    #[test]
    fn a_shared_key_is_replaced_without_a_restart_and_every_bearer_is_accepted_until_it_ends() {
        let folder = tempfile::tempdir().unwrap();
        let [one, two] = ["one.json", "two.json"].map(|name| folder.path().join(name));
        let first = Keyring::shared(&one, &fleet(), NOW).unwrap();
        std::fs::copy(&one, &two).unwrap();
        let second = Keyring::shared(&two, &fleet(), NOW).unwrap();
        let bearer = |keyring: &Keyring| {
            let seals = &keyring.keys().seals;
            seals.bearer(seals.newest(), &claims())
        };
        let knows = |keyring: &Keyring, bearer: &str| keyring.keys().seals.read_bearer(bearer).is_some();
        let old = bearer(&first);
        let from = add_next(&one, NOW).unwrap();
        first.renew(NOW).unwrap();
        assert_eq!(bearer(&first), old, "it does not seal yet");
        std::fs::copy(&one, &two).unwrap();
        second.renew(from - 1).unwrap();
        first.renew(from).unwrap();
        let new = bearer(&first);
        assert_ne!(new, old);
        assert!(knows(&second, &new), "a controller whose clock is behind");
        assert_eq!(bearer(&second), old);
        assert!(knows(&first, &old));
        second.renew(from + ACCEPTED_S - 1).unwrap();
        assert!(knows(&second, &old) && bearer(&second) == new);
        for keyring in [&first, &second] {
            keyring.renew(from + ACCEPTED_S).unwrap();
            assert!(!knows(keyring, &old) && knows(keyring, &new));
        }
        // What has ended is left out when the next one is added, and one that never began is replaced.
        add_next(&one, from + ACCEPTED_S).unwrap();
        add_next(&one, from + ACCEPTED_S).unwrap();
        let text = std::fs::read_to_string(&one).unwrap();
        assert_eq!(text.matches("made_at").count(), 2);
        assert!(add_next(&folder.path().join("none.json"), NOW).is_err());
    }

    #[test]
    fn a_lost_file_is_made_anew_and_a_damaged_one_says_what_to_do() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join(FILE);
        let first = Keyring::open(folder.path(), &fleet(), NOW).unwrap().keys();
        std::fs::remove_file(&file).unwrap();
        let second = Keyring::open(folder.path(), &fleet(), NOW).unwrap().keys();
        assert_ne!(second.exchange.public(), first.exchange.public());
        for damaged in ["", "{}", r#"{"keys":[],"exchange":"00"}"#] {
            std::fs::write(&file, damaged).unwrap();
            let error = Keyring::open(folder.path(), &fleet(), NOW).unwrap_err().to_string();
            assert!(error.contains("remove the file"), "{error}");
        }
    }

    #[test]
    fn a_shared_file_is_private_and_is_never_made_anew_while_the_controller_runs() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("shared.json");
        let keyring = Keyring::shared(&file, &fleet(), NOW).unwrap();
        let (held, text) = (keyring.keys(), std::fs::read(&file).unwrap());
        std::fs::remove_file(&file).unwrap();
        keyring.renew(NOW + 600).unwrap_err();
        assert!(!file.exists());
        assert_eq!(keyring.keys().exchange.public(), held.exchange.public());
        std::fs::write(&file, text).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Keyring::shared(&file, &fleet(), NOW).unwrap_err().to_string();
        assert!(error.contains("chmod 600"), "{error}");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        keyring.renew(NOW + 600).unwrap();
        std::fs::write(&file, "{}").unwrap();
        let error = Keyring::shared(&file, &fleet(), NOW).unwrap_err().to_string();
        assert!(error.contains("copy the file from another controller"), "{error}");
    }
}
