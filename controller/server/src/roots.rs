//! The fleet's chain of roots: a folder of `1.root.json`, `2.root.json` …, reread when it changes.
//! Controllers that share a database share the roots in it; the folder then has those that the chain began
//! with.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::SystemTime;

use bytes::Bytes;
use muster_protocol::ids::Sha256;
use muster_protocol::keys::PublicKey;
use muster_protocol::tuf::TufError;
use muster_protocol::tuf::metadata::{Role, Root};

use crate::core::roots::{MAX_ROOT_BYTES, OnlineKeyTooStrong, RootRefusal, next, require_online_keys_apart};
use crate::store::shared::SharedRoots;
use crate::store::{Failed, StoreError};

#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    #[error("cannot read {0}: {1}")]
    Read(PathBuf, std::io::Error),
    #[error("{0} has more than {MAX_ROOT_BYTES} bytes, so it is not a root")]
    TooLarge(PathBuf),
    #[error("{0} is not a root that machines would accept: {1}")]
    Bad(PathBuf, TufError),
    #[error(
        "{0} is not the root of that number in the database: remove it from the folder, since the database's \
            is in force"
    )]
    Other(PathBuf),
    #[error("{0} holds no 1.root.json: `muster init` makes it")]
    Empty(PathBuf),
    #[error(
        "the key {0} of online_key is not the one that the newest root names for timestamps: restore \
            that key, or have the root holders sign a root with this one"
    )]
    OnlineKey(String),
    #[error(transparent)]
    TooStrong(#[from] OnlineKeyTooStrong),
    #[error("the root cannot be kept in {0}: {1}; free some space, or let the controller write there")]
    Write(PathBuf, std::io::Error),
    /// Refused because of its contents, wherever it is stored.
    #[error(transparent)]
    Refused(RootRefusal),
}

/// The chain as it is in the folder, verified from its first root on.
pub struct Chain {
    files: Vec<Bytes>,
    newest: Root,
    changed: Option<SystemTime>,
}

impl Chain {
    /// The fleet ID: SHA-256 of `1.root.json`.
    pub fn fleet(&self) -> Sha256 {
        Sha256::of(self.files.first().map_or(&[], |file| &file[..]))
    }
    pub fn newest(&self) -> &Root {
        &self.newest
    }
    /// The bytes of `N.root.json`.
    pub fn file(&self, version: u64) -> Option<&Bytes> {
        let index = usize::try_from(version.checked_sub(1)?).ok()?;
        self.files.get(index)
    }
    pub fn newest_file(&self) -> &[u8] {
        self.files.last().map_or(&[], |file| &file[..])
    }
    pub fn knows(&self, root: &Sha256) -> bool {
        self.files.iter().any(|file| Sha256::of(file) == *root)
    }
    pub fn operators(&self) -> Vec<PublicKey> {
        self.newest.keys_of(Role::Targets)
    }
    pub fn is_operator(&self, key: &PublicKey) -> bool {
        self.newest.keys_of(Role::Targets).contains(key)
    }

    pub fn is_root_key(&self, key: &PublicKey) -> bool {
        self.newest.keys_of(Role::Root).contains(key)
    }

    /// Whether this is an operator key or a root key.
    pub fn names(&self, key: &PublicKey) -> bool {
        self.is_operator(key) || self.is_root_key(key)
    }

    pub fn may_sign_timestamps(&self, key: &PublicKey) -> bool {
        self.newest.keys_of(Role::Timestamp).contains(key)
    }

    fn read(folder: &Path) -> Result<Self, RootsError> {
        let changed = modified(folder);
        let first = folder.join("1.root.json");
        let bytes = read(&first)?.ok_or_else(|| RootsError::Empty(folder.to_owned()))?;
        let mut newest = Root::parse_self_signed(&bytes).map_err(|error| RootsError::Bad(first, error))?;
        let mut files = vec![Bytes::from(bytes)];
        loop {
            let path = folder.join(format!("{}.root.json", files.len() + 1));
            let Some(bytes) = read(&path)? else { break };
            newest = newest.successor(&bytes).map_err(|error| RootsError::Bad(path, error))?;
            files.push(bytes.into());
        }
        Ok(Self { files, newest, changed })
    }

    /// This chain with the roots that follow in the database.
    fn extended(&self, following: Vec<Vec<u8>>) -> Result<Self, RootsError> {
        let (mut files, mut newest) = (self.files.clone(), self.newest.clone());
        for bytes in following {
            let bad =
                |error| RootsError::Bad(format!("root {} in the database", files.len() + 1).into(), error);
            newest = newest.successor(&bytes).map_err(bad)?;
            files.push(bytes.into());
        }
        require_online_keys_apart(&newest)?;
        Ok(Self { files, newest, changed: None })
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, RootsError> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() > MAX_ROOT_BYTES as u64 => return Err(RootsError::TooLarge(path.to_owned())),
        _ => {}
    }
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(RootsError::Read(path.to_owned(), error)),
    }
}

/// Writes a root into a folder, durably.
pub fn write_root(folder: &Path, version: u64, bytes: &[u8]) -> Result<(), RootsError> {
    use std::io::Write as _;
    let failed = |error: std::io::Error| RootsError::Write(folder.to_owned(), error);
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.as_file().sync_all()).map_err(failed)?;
    // Never overwrites: another task may have been first.
    let kept = file
        .persist_noclobber(folder.join(format!("{version}.root.json")))
        .map_err(|error| failed(error.error))?;
    kept.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(failed)?;
    std::fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(failed)
}

fn modified(folder: &Path) -> Option<SystemTime> {
    std::fs::metadata(folder).and_then(|meta| meta.modified()).ok()
}

/// The folder or the database, and what was last read from it.
pub struct Roots {
    folder: PathBuf,
    /// The ID of the fleet, which no later root changes.
    fleet: Sha256,
    shared: Option<SharedRoots>,
    chain: RwLock<Arc<Chain>>,
    /// The last complaint, so that it is logged once.
    complaint: RwLock<String>,
}

impl Roots {
    pub fn open(folder: &Path) -> Result<Self, RootsError> {
        let chain = Chain::read(folder)?;
        require_online_keys_apart(&chain.newest)?;
        Ok(Self {
            folder: folder.to_owned(),
            fleet: chain.fleet(),
            shared: None,
            chain: RwLock::new(Arc::new(chain)),
            complaint: RwLock::default(),
        })
    }

    /// Refuses a chain whose newest root gives the online key no role.
    pub fn require(&self, online: &PublicKey) -> Result<(), RootsError> {
        match self.current().may_sign_timestamps(online) {
            true => Ok(()),
            false => Err(RootsError::OnlineKey(online.short())),
        }
    }

    /// From now on the roots are those in the database. What only the folder has is added to them, if the
    /// online key is named then.
    pub async fn share(
        mut self,
        shared: SharedRoots,
        online: &PublicKey,
    ) -> Result<Self, Failed<RootsError>> {
        let folder = self.current();
        let known = shared.after(0).await?;
        for (index, (file, held)) in folder.files.iter().zip(&known).enumerate() {
            if **held != **file {
                let file = self.folder.join(format!("{}.root.json", index + 1));
                return Err(Failed::Refused(RootsError::Other(file)));
            }
        }
        let following = known.get(folder.files.len()..).unwrap_or_default().to_vec();
        self.chain = RwLock::new(Arc::new(folder.extended(following).map_err(Failed::Refused)?));
        self.shared = Some(shared.clone());
        self.require(online).map_err(Failed::Refused)?;
        for (file, version) in folder.files.iter().zip(1..).skip(known.len()) {
            // Another controller may be doing the same.
            shared.add(version, file).await?;
        }
        self.refresh().await?;
        Ok(self)
    }

    /// Takes over what other controllers have published. If it cannot be read, nothing that depends on who an
    /// operator is may go on; if it is unsound, the last good chain stays in force.
    pub async fn refresh(&self) -> Result<(), StoreError> {
        let Some(shared) = &self.shared else { return Ok(()) };
        let held = self.held();
        let known = held.files.len() as u64;
        if shared.newest().await? <= known {
            return Ok(());
        }
        match held.extended(shared.after(known).await?) {
            Ok(chain) => self.replace(chain),
            Err(error) => drop(self.complain(held, error.to_string())),
        }
        Ok(())
    }

    /// The fleet ID, without a look at the folder.
    pub fn fleet(&self) -> Sha256 {
        self.fleet
    }

    pub fn shared(&self) -> bool {
        self.shared.is_some()
    }

    fn held(&self) -> Arc<Chain> {
        self.chain.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn replace(&self, chain: Chain) {
        let mut held = self.chain.write().unwrap_or_else(PoisonError::into_inner);
        if chain.files.len() > held.files.len() {
            tracing::info!(version = chain.newest.version(), "a new root is in force");
            *held = Arc::new(chain);
        }
    }

    /// The current chain. If the folder cannot be read, the last good chain stays in force.
    pub fn current(&self) -> Arc<Chain> {
        let held = self.held();
        if self.shared.is_some() {
            return held;
        }
        let changed = modified(&self.folder);
        if changed.is_some() && changed == held.changed {
            return held;
        }
        let read = Chain::read(&self.folder).and_then(|chain| {
            require_online_keys_apart(&chain.newest)?;
            Ok(chain)
        });
        match read {
            Ok(chain) if chain.fleet() == held.fleet() => {
                let chain = Arc::new(chain);
                if chain.files.len() != held.files.len() {
                    tracing::info!(version = chain.newest.version(), "a new root is in force");
                }
                *self.chain.write().unwrap_or_else(PoisonError::into_inner) = chain.clone();
                chain
            }
            Ok(_) => self.complain(held, "its 1.root.json is of another fleet".into()),
            Err(error) => self.complain(held, error.to_string()),
        }
    }

    /// The next root, if these bytes are one; it is not stored yet.
    pub fn check_next(&self, bytes: &[u8]) -> Result<Root, RootsError> {
        let chain = self.current();
        next(&chain.newest, bytes).map_err(|refusal| match refusal {
            RootRefusal::TooLarge => RootsError::TooLarge(self.folder.join("root.json")),
            RootRefusal::Unreadable(error) => RootsError::Bad("the root".into(), error),
            RootRefusal::Unsound(error) => {
                let file = format!("{}.root.json", chain.newest.version() + 1);
                RootsError::Bad(self.folder.join(file), error)
            }
            RootRefusal::OnlineKey(error) => error.into(),
            other => RootsError::Refused(other),
        })
    }

    /// Writes the next root into the folder, durably. [`Roots::current`] then includes it.
    pub fn put(&self, version: u64, bytes: &[u8]) -> Result<(), RootsError> {
        write_root(&self.folder, version, bytes)?;
        // The folder's mtime may be the same after two quick changes, so it is reread in any case.
        let chain = Chain::read(&self.folder)?;
        *self.chain.write().unwrap_or_else(PoisonError::into_inner) =
            Arc::new(Chain { changed: None, ..chain });
        Ok(())
    }

    fn complain(&self, held: Arc<Chain>, complaint: String) -> Arc<Chain> {
        let mut last = self.complaint.write().unwrap_or_else(PoisonError::into_inner);
        if *last != complaint {
            tracing::warn!("{}: {complaint}; the last good roots stay in force", self.folder.display());
            *last = complaint;
        }
        held
    }
}
