//! Signed-in keys, kept until they expire: each in a file only this user can read, in a private folder
//! outside backups and repositories.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use muster_protocol::ids::Sha256;
use muster_protocol::keys::SecretKey;
use muster_protocol::signin::SignIn;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::terminal::error::WithHint as _;

/// The most bytes read from a session file.
const MAX_BYTES: u64 = 4096;

/// The prefix of a session file that is still being written.
const NEW: &str = ".new-";

/// A key that may read in an operator's place, and the operator's statement that it may.
#[derive(Debug)]
pub struct SignedIn {
    pub sign_in: SignIn,
    pub key: SecretKey,
}

#[derive(Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
#[serde(deny_unknown_fields)]
struct Stored {
    sign_in: String,
    key: String,
}

/// Where one operator's session for one fleet is stored.
#[derive(Debug, Clone)]
pub struct Place {
    folder: PathBuf,
    pub fleet: Sha256,
    /// Identifies the operator's key without opening it.
    identity: Sha256,
}

impl Place {
    pub fn new(fleet: Sha256, identity: Sha256) -> Result<Self> {
        Ok(Self { folder: folder()?, fleet, identity })
    }

    #[cfg(test)]
    pub fn at(folder: PathBuf, fleet: Sha256, identity: Sha256) -> Self {
        Self { folder, fleet, identity }
    }

    pub fn file(&self) -> PathBuf {
        self.folder.join(format!("{}-{}.json", stem(&self.fleet), stem(&self.identity)))
    }

    /// The stored session, if it is still valid. A file that must not be used is an error, and is removed.
    pub fn load(&self, now: i64) -> Result<Option<SignedIn>> {
        if !self.folder.exists() {
            return Ok(None);
        }
        require_private(&self.folder)?;
        let file = self.file();
        match read(&file) {
            Ok(Some(kept)) if kept.sign_in.verify(&self.fleet, now).is_ok() => Ok(Some(kept)),
            Ok(None) => Ok(None),
            Ok(Some(_)) => {
                self.forget();
                Ok(None)
            }
            Err(error) => {
                self.forget();
                Err(error.context(format!("{} is removed", file.display())))
            }
        }
    }

    /// Stores the session atomically, and removes expired ones.
    pub fn keep(&self, signed_in: &SignedIn, now: i64) -> Result<()> {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        made.with_context(|| format!("cannot make {}", self.folder.display()))?;
        require_private(&self.folder)?;
        // Another command may be writing its file right now.
        remove(&self.folder, |file| {
            let kept = read(file).ok().flatten();
            !name(file).starts_with(NEW) && kept.is_none_or(|kept| kept.sign_in.ends <= now)
        });
        let stored =
            Stored { sign_in: signed_in.sign_in.to_string(), key: signed_in.key.to_pem()?.to_string() };
        let text = Zeroizing::new(serde_json::to_string(&stored)?);
        // Created with mode 0600 (mkstemp(3)), then moved into place in one step.
        let new = tempfile::Builder::new().prefix(NEW).tempfile_in(&self.folder);
        let written = new.and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.as_file().sync_all()?;
            file.persist(self.file()).map_err(|error| error.error)
        });
        written.map(drop).with_context(|| format!("cannot write {}", self.file().display()))
    }

    pub fn forget(&self) {
        let _ = fs::remove_file(self.file());
    }
}

/// Removes every signed-in key for this fleet, wherever earlier environments put it. Returns how many there
/// were.
pub fn sign_out(fleet: &Sha256) -> Result<usize> {
    let places = Places::of(variable);
    sign_out_of(&places.all(own()), fleet)
}

/// Searches every folder, even if one fails.
fn sign_out_of(folders: &[PathBuf], fleet: &Sha256) -> Result<usize> {
    let (mut found, mut trouble) = (0, None);
    for folder in folders {
        match sign_out_at(folder, fleet) {
            Ok(more) => found += more,
            Err(error) => trouble = trouble.or(Some(error)),
        }
    }
    match trouble {
        Some(error) => Err(error),
        None => Ok(found),
    }
}

fn sign_out_at(folder: &Path, fleet: &Sha256) -> Result<usize> {
    match fs::symlink_metadata(folder) {
        // Another user's sessions are theirs to remove.
        Ok(data) if data.uid() != own() => return Ok(0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(0),
        _ => require_private(folder)?,
    }
    let of_fleet = format!("{}-", stem(fleet));
    let found = remove(folder, |file| name(file).starts_with(&of_fleet));
    // Left by a command that was killed while writing.
    remove(folder, |file| name(file).starts_with(NEW));
    let left = entries(folder).into_iter().find(|file| name(file).starts_with(&of_fleet));
    match left {
        Some(file) => Err(anyhow!("{} cannot be removed", file.display()))
            .hint("remove it by hand: whoever has it may read"),
        None => Ok(found),
    }
}

fn remove(folder: &Path, which: impl Fn(&Path) -> bool) -> usize {
    entries(folder).iter().filter(|file| which(file) && fs::remove_file(file).is_ok()).count()
}

/// The session files in a folder; other files are ignored.
fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(found) = fs::read_dir(folder) else { return Vec::new() };
    found
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| name(path).ends_with(".json") || name(path).starts_with(NEW))
        .collect()
}

fn name(file: &Path) -> &str {
    file.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

fn stem(hash: &Sha256) -> String {
    hash.to_string().chars().take(32).collect()
}

fn own() -> u32 {
    rustix::process::geteuid().as_raw()
}

/// Where the environment puts such files (XDG Base Directory Specification; on a Mac `~/Library/Caches`).
struct Places {
    /// Removed at logout.
    runtime: Option<PathBuf>,
    /// For caches, in order of preference.
    caches: Vec<PathBuf>,
}

fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

impl Places {
    fn of(variable: impl Fn(&str) -> Option<OsString>) -> Self {
        let absolute = |name: &str| variable(name).map(PathBuf::from).filter(|path| path.is_absolute());
        let usual = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        let home = absolute("HOME").map(|home| home.join(usual));
        let caches = absolute("XDG_CACHE_HOME").into_iter().chain(home).collect();
        Self { runtime: absolute("XDG_RUNTIME_DIR"), caches }
    }

    /// Where a session is stored. After `sudo` or `su` a place may belong to another user; nothing is written
    /// there.
    fn first(&self, user: u32) -> Option<PathBuf> {
        let runtime = self.runtime.iter().filter(|path| path.is_dir());
        runtime.chain(&self.caches).find(|path| belongs_to(path, user)).map(|path| sessions(path))
    }

    /// Every place where a session may have been stored.
    fn all(&self, user: u32) -> Vec<PathBuf> {
        let logged_in = PathBuf::from(format!("/run/user/{user}"));
        let mut all: Vec<PathBuf> =
            self.runtime.iter().chain([&logged_in]).chain(&self.caches).map(|path| sessions(path)).collect();
        all.dedup();
        all
    }
}

fn sessions(place: &Path) -> PathBuf {
    place.join("muster/sessions")
}

/// Whether the path belongs to this user, or will once it is created.
fn belongs_to(path: &Path, user: u32) -> bool {
    let there = path.ancestors().find_map(|path| fs::metadata(path).ok());
    there.is_some_and(|data| data.is_dir() && data.uid() == user)
}

fn folder() -> Result<PathBuf> {
    Places::of(variable).first(own()).ok_or_else(|| {
        anyhow!("no folder that XDG_RUNTIME_DIR, XDG_CACHE_HOME and HOME lead to is this user's own")
    })
}

/// Refuses a folder that others can write to.
fn require_private(folder: &Path) -> Result<()> {
    let data =
        fs::symlink_metadata(folder).with_context(|| format!("cannot look at {}", folder.display()))?;
    let shown = folder.display();
    if !data.is_dir() {
        return Err(anyhow!("{shown} is not a folder")).hint(format!("remove {shown}"));
    }
    if data.uid() != own() {
        return Err(anyhow!("{shown} is another user's")).hint(format!("have {shown} removed by its owner"));
    }
    if data.mode() & 0o077 != 0 {
        return Err(anyhow!("{shown} is open to others")).hint(format!("run `chmod 700 {shown}`"));
    }
    Ok(())
}

fn read(path: &Path) -> Result<Option<SignedIn>> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or_default();
    let opened: std::io::Result<File> = File::options().read(true).custom_flags(flags).open(path);
    let file = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).context("it cannot be read"),
    };
    let data = file.metadata()?;
    if !data.is_file() || data.uid() != own() || data.mode() & 0o077 != 0 {
        return Err(anyhow!("it is not a file private to this user (mode 0600)"));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_BYTES).read_to_string(&mut text).context("it is not text")?;
    let stored: Stored = serde_json::from_str(&text).context("it is not what muster wrote")?;
    let sign_in: SignIn =
        stored.sign_in.parse().map_err(|why| anyhow!("it is not what muster wrote: {why}"))?;
    let key = SecretKey::from_pem(&stored.key).context("it is not what muster wrote")?;
    if key.public() != sign_in.key {
        return Err(anyhow!("its key is not the one that was signed in"));
    }
    Ok(Some(SignedIn { sign_in, key }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn place(folder: &Path, fleet: &[u8], identity: &[u8]) -> Place {
        Place::at(folder.to_owned(), Sha256::of(fleet), Sha256::of(identity))
    }
    fn signed_in(fleet: &[u8], begins: i64) -> SignedIn {
        let [operator, key] = [(); 2].map(|()| SecretKey::generate().unwrap());
        let sign_in = SignIn::make(&operator, &Sha256::of(fleet), key.public(), begins, 3600).unwrap();
        SignedIn { sign_in, key }
    }
    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().mode() & 0o777
    }
    fn set_mode(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_key_that_was_signed_in_is_kept_for_its_fleet_its_operator_and_its_time_alone() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = folder.path().join("muster/sessions");
        let ours = place(&sessions, b"fleet", b"alice");
        assert!(ours.load(NOW).unwrap().is_none());
        let made = signed_in(b"fleet", NOW);
        ours.keep(&made, NOW).unwrap();
        assert_eq!((mode(&sessions), mode(&ours.file())), (0o700, 0o600));
        let found = ours.load(NOW + 10).unwrap().unwrap();
        assert_eq!((found.sign_in, found.key.public()), (made.sign_in.clone(), made.key.public()));
        for (fleet, identity) in [(&b"fleet"[..], &b"bob"[..]), (b"other", b"alice")] {
            assert!(place(&sessions, fleet, identity).load(NOW).unwrap().is_none());
        }
        // Removed once it has expired, or when another session is stored.
        assert!(ours.load(NOW + 3600).unwrap().is_none() && !ours.file().exists());
        ours.keep(&made, NOW).unwrap();
        let other = place(&sessions, b"other", b"alice");
        other.keep(&signed_in(b"other", NOW + 3600), NOW + 3600).unwrap();
        assert_eq!(entries(&sessions), [other.file()]);
    }

    #[test]
    fn a_file_that_others_could_have_read_or_made_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        set_mode(folder.path(), 0o700);
        let ours = place(folder.path(), b"fleet", b"alice");
        let elsewhere = folder.path().join("elsewhere");
        let made = signed_in(b"fleet", NOW);
        ours.keep(&made, NOW).unwrap();
        let good = fs::read(ours.file()).unwrap();
        let put = |bytes: &[u8]| {
            let _ = fs::remove_file(ours.file());
            fs::write(ours.file(), bytes).unwrap();
            set_mode(ours.file().as_path(), 0o600);
        };
        let refused = |what: &str| {
            assert!(ours.load(NOW).is_err(), "{what}");
            assert!(fs::symlink_metadata(ours.file()).is_err(), "{what}: it is removed");
        };
        for wide in [0o644, 0o640, 0o604, 0o620, 0o602] {
            put(&good);
            set_mode(&ours.file(), wide);
            refused("a wider mode");
        }
        put(&good);
        fs::rename(ours.file(), &elsewhere).unwrap();
        symlink(&elsewhere, ours.file()).unwrap();
        refused("a link");
        assert_eq!(fs::read(&elsewhere).unwrap(), good, "what the link names is untouched");
        for length in [0, 1, good.len() / 2, good.len() - 1] {
            put(&good[..length]);
            refused("cut off");
        }
        for garbage in [&b"\xff\xfe"[..], b"{}", b"null", &b"[".repeat(100_000), &[&good[..], b"x"].concat()]
        {
            put(garbage);
            refused("garbage");
        }
        let text = String::from_utf8(good.clone()).unwrap();
        let stranger = signed_in(b"fleet", NOW);
        put(text.replace(&made.sign_in.to_string(), &stranger.sign_in.to_string()).as_bytes());
        refused("another one's key");
        // A damaged session is worth nothing: no error, and it is not used.
        put(text.replace(&made.sign_in.ends.to_string(), &(made.sign_in.ends + 1).to_string()).as_bytes());
        assert!(ours.load(NOW).unwrap().is_none());
        if rustix::process::geteuid().is_root() {
            put(&good);
            std::os::unix::fs::chown(ours.file(), Some(12345), None).unwrap();
            refused("another user's");
        }
        put(&good);
        assert!(ours.load(NOW).unwrap().is_some());
    }

    #[test]
    fn a_folder_that_others_can_enter_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let sessions = folder.path().join("sessions");
        let ours = place(&sessions, b"fleet", b"alice");
        let made = signed_in(b"fleet", NOW);
        ours.keep(&made, NOW).unwrap();
        for wide in [0o755, 0o710, 0o770, 0o777] {
            set_mode(&sessions, wide);
            assert!(ours.load(NOW).is_err() && ours.keep(&made, NOW).is_err(), "{wide:o}");
        }
        set_mode(&sessions, 0o700);
        let moved = folder.path().join("moved");
        fs::rename(&sessions, &moved).unwrap();
        symlink(&moved, &sessions).unwrap();
        assert!(ours.load(NOW).is_err() && ours.keep(&made, NOW).is_err(), "a link");
        if rustix::process::geteuid().is_root() {
            fs::remove_file(&sessions).unwrap();
            fs::rename(&moved, &sessions).unwrap();
            std::os::unix::fs::chown(&sessions, Some(12345), None).unwrap();
            assert!(ours.load(NOW).is_err() && ours.keep(&made, NOW).is_err(), "another user's");
        }
    }

    fn places(variables: &[(&str, &Path)]) -> Places {
        let variables: Vec<(String, PathBuf)> =
            variables.iter().map(|(name, path)| ((*name).to_owned(), path.to_path_buf())).collect();
        Places::of(move |name| {
            variables.iter().find(|(known, _)| known == name).map(|(_, path)| path.clone().into())
        })
    }

    #[test]
    fn signing_out_forgets_what_was_kept_under_other_variables() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir(at("run")).unwrap();
        let (run, cache, home) = (at("run"), at("cache"), at("home"));
        let all: &[(&str, &Path)] = &[("XDG_RUNTIME_DIR", &run), ("XDG_CACHE_HOME", &cache), ("HOME", &home)];
        let usual = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        for (skipped, wanted) in [(0, run.clone()), (1, cache.clone()), (2, home.join(usual))] {
            let kept = places(&all[skipped..]).first(own()).unwrap();
            assert_eq!(kept, sessions(&wanted));
            for fleet in [b"fleet", b"other"] {
                place(&kept, fleet, b"alice").keep(&signed_in(fleet, NOW), NOW).unwrap();
            }
        }
        let folders = places(all).all(own());
        assert!(folders.contains(&sessions(Path::new(&format!("/run/user/{}", own())))));
        let ours: Vec<PathBuf> = folders.into_iter().filter(|path| path.starts_with(folder.path())).collect();
        // One unusable folder does not hide the others.
        let broken = at("broken");
        symlink(&run, &broken).unwrap();
        let (with_broken, fleet) = ([vec![broken], ours.clone()].concat(), Sha256::of(b"fleet"));
        assert!(sign_out_of(&with_broken, &fleet).is_err());
        assert_eq!(sign_out_of(&ours, &fleet).unwrap(), 0, "nothing is left");
        assert_eq!(sign_out_of(&ours, &Sha256::of(b"other")).unwrap(), 3, "the other fleet's are kept");
    }

    #[test]
    fn nothing_is_left_in_the_places_of_another_user() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        for name in ["run", "home"] {
            fs::create_dir(at(name)).unwrap();
        }
        let (run, cache, home) = (at("run"), at("home/caches"), at("home"));
        let all: &[(&str, &Path)] = &[("XDG_RUNTIME_DIR", &run), ("XDG_CACHE_HOME", &cache), ("HOME", &home)];
        // None of these belong to another user, whether they exist yet or not.
        assert_eq!(places(all).first(own() + 1), None);
        assert_eq!(places(&[]).first(own()), None);
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&run, Some(12345), None).unwrap();
            assert_eq!(places(all).first(own()), Some(sessions(&cache)));
            std::os::unix::fs::chown(&home, Some(12345), None).unwrap();
            assert_eq!(places(all).first(own()), None);
            fs::create_dir(&cache).unwrap();
            assert_eq!(places(all).first(own()), Some(sessions(&cache)));
            // Their files are left alone and cause no error.
            let theirs = sessions(&run);
            fs::create_dir_all(&theirs).unwrap();
            std::os::unix::fs::chown(&theirs, Some(12345), None).unwrap();
            assert_eq!(sign_out_of(&places(all).all(own()), &Sha256::of(b"fleet")).unwrap(), 0);
            assert!(theirs.exists());
        }
    }
}
