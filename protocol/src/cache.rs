//! The controller's cache: what operators upload to it in few requests, and garbage collection as they ask
//! for it.

use serde::{Deserialize, Serialize};

use crate::bounded;
use crate::clock::UnixMillis;
use crate::ids::StorePath;

/// How long a file that nothing needs is kept, in seconds: as long again once operators are no longer told of
/// it. More than a `nix copy` and the publication after it take.
pub const GRACE_SECONDS: i64 = 86_400;
/// How many days of published generations are kept if the operator does not say.
pub const KEEP_DAYS: u32 = 30;
/// The most days that an operator may name: a hundred years.
pub const MAX_KEEP_DAYS: u32 = 36_500;

/// The most paths in one [`AskedFor`].
pub const MAX_ASKED_FOR: usize = 10_000;
/// The largest [`AskedFor`], in bytes: so many paths with the longest names.
pub const MAX_ASKED_FOR_BYTES: usize = MAX_ASKED_FOR * 256;

/// `POST /cache/missing`: paths that an operator's Nix has and a machine will need.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AskedFor {
    /// At most [`MAX_ASKED_FOR`].
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_ASKED_FOR>")]
    pub paths: Vec<StorePath>,
}

/// The reply to [`AskedFor`].
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// Those that the cache does not have, in the order of the question.
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_ASKED_FOR>")]
    pub paths: Vec<StorePath>,
}

/// The most paths in one [`Uploads`].
pub const MAX_UPLOADS: usize = 4_000;
/// The largest [`Uploads`], in bytes.
pub const MAX_UPLOADS_BYTES: usize = 8 * 1024 * 1024;

/// `POST /cache/paths`: small store paths, each with its archive; as if each had been uploaded alone. All of
/// them are checked before any is stored.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Uploads {
    /// At most [`MAX_UPLOADS`].
    #[serde(deserialize_with = "bounded::list::<_, _, MAX_UPLOADS>")]
    pub paths: Vec<UploadedPath>,
}

/// One path of [`Uploads`].
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadedPath {
    /// The text of its narinfo.
    pub narinfo: String,
    /// The archive that the narinfo names, in base 64.
    pub archive: String,
}

/// The reply to [`Uploads`].
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadsTaken {
    /// How many paths the cache has now, of those that were sent: all.
    pub stored: usize,
}

/// `POST /v1/operator/cache/collect`: removes what no signed generation needs. A run that is under way is
/// joined instead.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collect {
    /// Only counts; changes nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// What generations published in so many days need is kept, besides what the newest of each machine and
    /// the waiting drafts need.
    #[serde(default = "keep_days")]
    pub keep_days: u32,
}

fn keep_days() -> u32 {
    KEEP_DAYS
}

/// A run of the collector: the reply of `POST` and `GET /v1/operator/cache/collect`, which wait a while for
/// its end.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Collection {
    /// What was asked for.
    #[serde(flatten)]
    pub asked: Collect,
    /// When it began, in Unix milliseconds of the controller's clock.
    #[serde(deserialize_with = "bounded::time")]
    pub began_at: UnixMillis,
    /// Whether it has ended.
    pub ended: bool,
    /// Why it ended early, if it did. What it had done by then stays done.
    #[serde(default)]
    pub failed: Option<String>,
    /// What it found, up to now.
    #[serde(flatten)]
    pub found: Found,
}

/// Counts of files (descriptions and archives) and their bytes.
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Found {
    /// Signed generations that were looked at.
    pub generations: u64,
    /// Files that a generation, a draft or a recent upload needs.
    pub needed: u64,
    /// Paths that a needed path refers to and that the cache does not have.
    pub missing: u64,
    /// Files that nothing needs and that came too recently to be judged.
    pub recent: u64,
    /// Files that nothing needs, from now on kept from operators: a run a day later removes them.
    pub condemned: u64,
    /// Bytes of these.
    pub condemned_bytes: u64,
    /// Files that an earlier run condemned, less than a day ago.
    pub waiting: u64,
    /// Bytes of these.
    pub waiting_bytes: u64,
    /// Files that were removed.
    pub removed: u64,
    /// Bytes of these.
    pub removed_bytes: u64,
    /// Uploads that were never finished, removed.
    pub unfinished: u64,
}
