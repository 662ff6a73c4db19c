//! Where the files are, and what is done with them there.

use std::future::Future;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use muster_protocol::clock::UnixMillis;
use object_store::aws::AmazonS3;
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{GetOptions, ObjectStore, ObjectStoreExt as _};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::error::BlobError;
use super::{s3, unfinished};
use crate::config::{BlobsAt, S3};
use crate::metrics::{Blob, COUNTED};
use crate::threads;

/// How much of an upload into a folder is buffered before it is written, in bytes.
const PART_BYTES: usize = 1024 * 1024;
/// How many large uploads are buffered at the same time.
const LARGE_AT_ONCE: usize = 24;

#[derive(Debug, Clone)]
pub struct Blobs {
    pub(super) store: Arc<dyn ObjectStore>,
    /// What all names begin with, with a slash at the end where it is not empty.
    prefix: Arc<str>,
    bucket: Option<Bucket>,
    /// Where it is a folder.
    folder: Option<PathBuf>,
    pub(super) part_bytes: usize,
    pub(super) buffers: Arc<Semaphore>,
}

#[derive(Debug, Clone)]
struct Bucket {
    name: Arc<str>,
    client: Arc<AmazonS3>,
    http: reqwest::Client,
    /// How long one operation may take with all its repetitions.
    limit: Duration,
}

/// A file that is being read, or a part of it.
pub struct Reading {
    /// Bytes of the whole file.
    pub size: u64,
    pub range: Range<u64>,
    pub stream: BoxStream<'static, Result<Bytes, BlobError>>,
}

/// A file that is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub size: u64,
    pub modified: UnixMillis,
}

impl Blobs {
    pub fn open(at: &BlobsAt) -> Result<Self, BlobError> {
        match at {
            BlobsAt::Folder(folder) => Self::folder(folder),
            BlobsAt::S3(s3) => Self::s3(s3),
        }
    }

    /// Opens the folder, and removes partial files that a crash left there.
    pub fn folder(folder: &Path) -> Result<Self, BlobError> {
        let failed = |error| BlobError::Open(folder.display().to_string(), error);
        std::fs::create_dir_all(folder.join("nar")).map_err(failed)?;
        for place in [folder.to_owned(), folder.join("nar")] {
            remove_staged(&place).map_err(failed)?;
        }
        let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        Ok(Self {
            store: Arc::new(store),
            prefix: "".into(),
            bucket: None,
            folder: Some(folder.to_owned()),
            part_bytes: PART_BYTES,
            buffers: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        })
    }

    /// Does not use the network yet: a store that is away does not keep the controller from starting.
    fn s3(s3: &S3) -> Result<Self, BlobError> {
        let (client, http) = s3::open(s3)?;
        let client = Arc::new(client);
        let prefix = if s3.prefix.is_empty() { String::new() } else { format!("{}/", s3.prefix) };
        Ok(Self {
            store: client.clone(),
            prefix: prefix.into(),
            bucket: Some(Bucket {
                name: s3.bucket.as_str().into(),
                client,
                http,
                limit: s3.timeout.saturating_mul(2),
            }),
            folder: None,
            part_bytes: s3.part_bytes,
            buffers: Arc::new(Semaphore::new(LARGE_AT_ONCE)),
        })
    }

    /// Whether the store can be read now.
    pub async fn check(&self) -> Result<(), BlobError> {
        self.read("nix-cache-info").await.map(drop)
    }

    pub(super) fn key(&self, name: &str) -> Key {
        Key::from(format!("{}{name}", self.prefix))
    }

    /// An operation of the store within its limit. `None` if the object is not there.
    async fn look<T>(
        &self,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<Option<T>, BlobError> {
        let Some(bucket) = &self.bucket else {
            return match work.await {
                Ok(done) => Ok(Some(done)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            };
        };
        match timeout(bucket.limit, work).await {
            Ok(Ok(done)) => Ok(Some(done)),
            Ok(Err(error)) => BlobError::of_bucket(&error, &bucket.name).map_or(Ok(None), Err),
            Err(_) => {
                tracing::warn!("the object store did not answer within {} s", bucket.limit.as_secs());
                Err(BlobError::Unreachable)
            }
        }
    }

    /// The same for one that needs nothing to be there.
    pub(super) async fn within<T>(
        &self,
        work: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BlobError> {
        self.look(work).await?.ok_or(BlobError::Unreachable)
    }

    pub async fn size(&self, name: &str) -> Result<Option<u64>, BlobError> {
        let (key, store) = (self.key(name), &self.store);
        Ok(COUNTED.blob(Blob::Size, self.look(store.head(&key))).await?.map(|meta| meta.size))
    }

    pub async fn read(&self, name: &str) -> Result<Option<Reading>, BlobError> {
        self.read_with(name, GetOptions::default()).await
    }

    /// Reads a part of a file; it must lie in it.
    pub async fn read_range(&self, name: &str, range: Range<u64>) -> Result<Option<Reading>, BlobError> {
        self.read_with(name, GetOptions { range: Some(range.into()), ..GetOptions::default() }).await
    }

    async fn read_with(&self, name: &str, options: GetOptions) -> Result<Option<Reading>, BlobError> {
        let key = self.key(name);
        let found = COUNTED.blob(Blob::Read, self.look(self.store.get_opts(&key, options))).await?;
        let Some(found) = found else { return Ok(None) };
        let (size, range) = (found.meta.size, found.range.clone());
        let Some(bucket) = self.bucket.clone() else {
            return Ok(Some(Reading {
                size,
                range,
                stream: found.into_stream().map_err(Into::into).boxed(),
            }));
        };
        let stream = futures_util::stream::try_unfold(found.into_stream(), move |mut stream| {
            let bucket = bucket.clone();
            async move {
                match timeout(bucket.limit, stream.next()).await {
                    Ok(None) => Ok(None),
                    Ok(Some(Ok(bytes))) => Ok(Some((bytes, stream))),
                    Ok(Some(Err(error))) => {
                        Err(BlobError::of_bucket(&error, &bucket.name).unwrap_or(BlobError::Unreachable))
                    }
                    Err(_) => Err(BlobError::Unreachable),
                }
            }
        });
        Ok(Some(Reading { size, range, stream: stream.boxed() }))
    }

    /// Writes a small file whole.
    pub async fn write(&self, name: &str, bytes: Bytes) -> Result<(), BlobError> {
        self.put(&self.key(name), bytes).await
    }

    pub(super) async fn put(&self, key: &Key, bytes: Bytes) -> Result<(), BlobError> {
        COUNTED.blob(Blob::Write, self.within(self.store.put(key, bytes.into()))).await.map(drop)
    }

    /// Every file, in any order.
    pub async fn list(&self) -> BoxStream<'static, Result<Listed, BlobError>> {
        let prefix = self.prefix.trim_end_matches('/');
        let listed = self.store.list(Some(&Key::from(prefix)).filter(|_| !prefix.is_empty()));
        let blobs = self.clone();
        let files = futures_util::stream::try_unfold(listed, move |mut listed| {
            let blobs = blobs.clone();
            async move {
                let next = blobs.look(async { listed.next().await.transpose() }).await?;
                let Some(meta) = next.flatten() else { return Ok(None) };
                let name = meta.location.as_ref();
                let file = Listed {
                    name: name.strip_prefix(&*blobs.prefix).unwrap_or(name).to_owned(),
                    size: meta.size,
                    modified: meta.last_modified.timestamp_millis(),
                };
                Ok(Some((file, listed)))
            }
        });
        files.boxed()
    }

    /// Removes a file; one that is gone already is no error.
    pub async fn remove(&self, name: &str) -> Result<(), BlobError> {
        self.look(self.store.delete(&self.key(name))).await.map(drop)
    }

    /// Removes what uploads that began before `before` left unfinished; only counts it if `dry`.
    pub async fn remove_unfinished(&self, before: UnixMillis, dry: bool) -> Result<u64, BlobError> {
        if let Some(bucket) = &self.bucket {
            let found = unfinished::in_bucket(&bucket.client, &bucket.http, &self.prefix, before, dry);
            return found.await;
        }
        let mut count = 0;
        for place in self.folder.iter().flat_map(|folder| [folder.clone(), folder.join("nar")]) {
            let failed = |error| BlobError::Open(place.display().to_string(), error);
            let found = threads::on(usize::MAX, || unfinished::in_folder(&place, before, dry));
            count += found.map_err(failed)?;
        }
        Ok(count)
    }
}

/// What a crash left.
fn remove_staged(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        if unfinished::is_staged(&entry.file_name()) {
            std::fs::remove_file(entry.path())?;
            tracing::info!("removed a partial upload left by a crash: {}", entry.path().display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn a_full_disk_is_recognised_however_deep_it_lies() {
        let full = std::io::Error::new(ErrorKind::StorageFull, "no space");
        let error = object_store::Error::Generic { store: "x", source: Box::new(full) };
        assert!(matches!(BlobError::from(error), BlobError::Full));
        let other = std::io::Error::new(ErrorKind::PermissionDenied, "no");
        let error = object_store::Error::Generic { store: "x", source: Box::new(other) };
        assert!(matches!(BlobError::from(error), BlobError::Other(_)));
    }

    #[tokio::test]
    async fn what_a_crash_left_is_gone_after_the_start_and_the_rest_stays() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("nar")).unwrap();
        for (name, text) in [("nar/a.nar#1", "half"), ("b.narinfo#12", "half"), ("nar/c.nar", "whole")] {
            std::fs::write(dir.path().join(name), text).unwrap();
        }
        let blobs = Blobs::folder(dir.path()).unwrap();
        assert_eq!(blobs.size("nar/c.nar").await.unwrap(), Some(5));
        assert!(!dir.path().join("nar/a.nar#1").exists());
        assert!(!dir.path().join("b.narinfo#12").exists());
    }

    #[tokio::test]
    async fn an_upload_that_is_not_finished_never_was() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::folder(dir.path()).unwrap();
        let mut upload = blobs.upload("nar/x.nar");
        upload.add(&vec![7; 3 * PART_BYTES]).await.unwrap();
        assert_eq!(blobs.size("nar/x.nar").await.unwrap(), None);
        upload.abandon().await;
        assert_eq!(std::fs::read_dir(dir.path().join("nar")).unwrap().count(), 0);
    }
}
