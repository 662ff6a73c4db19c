//! What one run of Nix may request, and what is known so far.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use axum::http::{HeaderMap, Method, header};
use muster_protocol::api;
use muster_protocol::ids::Sha256;
use muster_protocol::narinfo::NarFile;
use reqwest::Url;

use super::answers::{Stop, Trouble};

/// The most paths in a derivation's closure, and their total size in bytes, unpacked.
const MAX_PATHS: usize = 200_000;
pub const MAX_BYTES: u64 = 16 * 1024 * 1024 * 1024;
/// How many packings of the same content are tracked; each operator's zstd may produce its own.
pub const MAX_TWINS: usize = 8;
/// How much of an archive is moved at once, in bytes.
pub const PIECE: usize = 64 * 1024;

/// The controller's cache and a bearer for it.
#[derive(Clone)]
pub struct Cache {
    http: reqwest::Client,
    url: Url,
    bearer: String,
}

impl Cache {
    /// `http` must not follow redirects.
    pub fn new(http: reqwest::Client, url: Url, bearer: String) -> Self {
        Self { http, url, bearer }
    }

    pub fn ask(&self, method: Method, file: &str) -> Result<reqwest::RequestBuilder, Stop> {
        let url = self.url.join(&format!("{}/{file}", api::CACHE)).map_err(|_| Stop::Nothing)?;
        Ok(self.http.request(method, url).bearer_auth(&self.bearer))
    }
}

/// What Nix may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// Fetch content-addressed paths.
    Fetch,
    /// Ask what is there, and upload the rest.
    Push,
}

pub struct Shared {
    pub cache: Cache,
    pub way: Way,
    /// Known to Nix but not to other users of this computer, who can see its arguments but not its netrc
    /// file.
    pub password: Sha256,
    pub wait: Duration,
    pub described: Mutex<Described>,
    pub trouble: Mutex<Option<Trouble>>,
}

#[derive(Default)]
pub struct Described {
    /// By the file that Nix asks for: all have the same content, packed differently.
    pub archives: HashMap<NarFile, Vec<Archive>>,
    paths: HashSet<String>,
    bytes: u64,
}

impl Described {
    /// Nix may ask twice, two paths may share content, and the same content may have been packed twice.
    pub fn add(&mut self, hash: &str, file: &NarFile, archive: Archive) -> Result<(), &'static str> {
        let known = self.archives.get(file);
        if known.is_some_and(|twins| twins.iter().any(|twin| twin.size != archive.size)) {
            return Err("another description gives its content another size");
        }
        if known.is_none() {
            self.bytes = self.bytes.saturating_add(archive.size);
        }
        self.paths.insert(hash.to_owned());
        if self.paths.len() > MAX_PATHS || self.bytes > MAX_BYTES {
            return Err("more belongs together than any system has");
        }
        let twins = self.archives.entry(file.clone()).or_default();
        if twins.len() < MAX_TWINS && !twins.contains(&archive) {
            twins.push(archive);
        }
        Ok(())
    }
}

/// An archive as the controller has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Archive {
    pub file: NarFile,
    pub file_size: u64,
    pub packed: bool,
    pub size: u64,
}

pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    /// Compares hashes, so that timing reveals nothing.
    pub fn knows(&self, headers: &HeaderMap) -> bool {
        headers.get(header::AUTHORIZATION).is_some_and(|said| Sha256::of(said.as_bytes()) == self.password)
    }

    /// Keeps the first cause; but a controller that was unreachable may have come back.
    pub fn note(&self, trouble: Trouble) {
        let mut held = lock(&self.trouble);
        if !matches!(&*held, Some(Trouble::Altered(_) | Trouble::Unnamed(_))) {
            *held = Some(trouble);
        }
    }
}
