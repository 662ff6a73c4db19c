//! The binary cache's files, in a folder or, later, in an object store. A file appears once it is complete
//! and durable, or not at all.

use std::error::Error as _;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use axum::body::Bytes;
use futures_util::stream::BoxStream;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::local::LocalFileSystem;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStore, ObjectStoreExt as _, PutPayload};

use crate::metrics::{Blob, COUNTED};

/// How much is buffered before it is written, in bytes.
const PART_BYTES: usize = 1024 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum BlobError {
    #[error("the controller's disk is full: nothing of this was stored; free some space and repeat")]
    Full,
    #[error("the controller's cache folder fails: {0}")]
    Other(object_store::Error),
    #[error("the controller's cache folder {0} cannot be used: {1}")]
    Open(String, std::io::Error),
}

impl From<object_store::Error> for BlobError {
    fn from(error: object_store::Error) -> Self {
        let mut cause = error.source();
        while let Some(error) = cause {
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            if matches!(kind, Some(ErrorKind::StorageFull | ErrorKind::QuotaExceeded)) {
                return Self::Full;
            }
            cause = error.source();
        }
        Self::Other(error)
    }
}

#[derive(Debug, Clone)]
pub struct Blobs {
    store: Arc<dyn ObjectStore>,
}

/// A file that is being read.
pub struct Reading {
    pub size: u64,
    pub stream: BoxStream<'static, Result<Bytes, BlobError>>,
}

impl Blobs {
    /// Opens the folder, and removes partial files that a crash left there.
    pub fn open(folder: &Path) -> Result<Self, BlobError> {
        let failed = |error| BlobError::Open(folder.display().to_string(), error);
        std::fs::create_dir_all(folder.join("nar")).map_err(failed)?;
        for place in [folder.to_owned(), folder.join("nar")] {
            remove_staged(&place).map_err(failed)?;
        }
        let store = LocalFileSystem::new_with_prefix(folder)?.with_fsync(true);
        Ok(Self { store: Arc::new(store) })
    }

    pub async fn size(&self, name: &str) -> Result<Option<u64>, BlobError> {
        match COUNTED.blob(Blob::Size, self.store.head(&Key::from(name))).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    pub async fn read(&self, name: &str) -> Result<Option<Reading>, BlobError> {
        match COUNTED.blob(Blob::Read, self.store.get(&Key::from(name))).await {
            Ok(found) => {
                let size = found.meta.size;
                Ok(Some(Reading { size, stream: found.into_stream().map_err(BlobError::from).boxed() }))
            }
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Reads a small file whole.
    pub async fn write(&self, name: &str, bytes: Bytes) -> Result<(), BlobError> {
        COUNTED.blob(Blob::Write, self.store.put(&Key::from(name), bytes.into())).await?;
        Ok(())
    }

    /// Starts writing a file of any size.
    pub async fn upload(&self, name: &str) -> Result<Upload, BlobError> {
        let upload = self.store.put_multipart(&Key::from(name)).await?;
        Ok(Upload { upload, part: Vec::new() })
    }
}

/// A file being written. Dropped without [`Upload::finish`], it leaves no trace.
pub struct Upload {
    upload: Box<dyn MultipartUpload>,
    part: Vec<u8>,
}

impl Upload {
    pub async fn add(&mut self, bytes: &[u8]) -> Result<(), BlobError> {
        self.part.extend_from_slice(bytes);
        if self.part.len() >= PART_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), BlobError> {
        let part = std::mem::take(&mut self.part);
        Ok(COUNTED.blob(Blob::Part, self.upload.put_part(PutPayload::from(part))).await?)
    }

    /// Makes the file durable, then visible under its name.
    pub async fn finish(mut self) -> Result<(), BlobError> {
        if !self.part.is_empty() {
            self.flush().await?;
        }
        COUNTED.blob(Blob::Finish, self.upload.complete()).await?;
        Ok(())
    }

    pub async fn abandon(mut self) {
        if let Err(error) = self.upload.abort().await {
            tracing::warn!("a partial upload could not be removed: {error}; it is removed at the next start");
        }
    }
}

/// `object_store` writes next to the final path, with `#` and a number appended to the name.
fn remove_staged(folder: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        let staged = name.to_str().and_then(|name| name.rsplit_once('#'));
        if staged.is_some_and(|(_, number)| number.bytes().all(|byte| byte.is_ascii_digit())) {
            std::fs::remove_file(entry.path())?;
            tracing::info!("removed a partial upload left by a crash: {}", entry.path().display());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
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
        let blobs = Blobs::open(dir.path()).unwrap();
        assert_eq!(blobs.size("nar/c.nar").await.unwrap(), Some(5));
        assert!(!dir.path().join("nar/a.nar#1").exists());
        assert!(!dir.path().join("b.narinfo#12").exists());
    }

    #[tokio::test]
    async fn an_upload_that_is_not_finished_never_was() {
        let dir = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(dir.path()).unwrap();
        let mut upload = blobs.upload("nar/x.nar").await.unwrap();
        upload.add(&vec![7; 3 * PART_BYTES]).await.unwrap();
        assert_eq!(blobs.size("nar/x.nar").await.unwrap(), None);
        upload.abandon().await;
        assert_eq!(std::fs::read_dir(dir.path().join("nar")).unwrap().count(), 0);
    }
}
