//! A file that is being written: it appears under its name once it is complete and durable, or not at all.

use std::time::Duration;

use axum::body::Bytes;
use object_store::path::Path as Key;
use object_store::{MultipartUpload, ObjectStoreExt as _, PutPayload};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::timeout;

use super::error::BlobError;
use super::place::Blobs;
use crate::metrics::{Blob, COUNTED};

/// How long an upload waits for memory.
const CROWDED: Duration = Duration::from_secs(60);
/// Files larger than this count as large: only so many of those are buffered at once.
const SMALL: usize = 256 * 1024;

/// A file being written. Dropped without [`Upload::finish`], it leaves no trace.
pub struct Upload {
    blobs: Blobs,
    key: Key,
    /// `None` until the first part is full: a small file is sent in one request.
    begun: Option<Box<dyn MultipartUpload>>,
    part: Vec<u8>,
    memory: Option<OwnedSemaphorePermit>,
}

impl Upload {
    pub(super) fn new(blobs: Blobs, key: Key) -> Self {
        Self { blobs, key, begun: None, part: Vec::new(), memory: None }
    }

    pub async fn add(&mut self, mut bytes: &[u8]) -> Result<(), BlobError> {
        while !bytes.is_empty() {
            if self.memory.is_none() && self.part.len() + bytes.len() > SMALL {
                let wait = timeout(CROWDED, self.blobs.buffers.clone().acquire_owned()).await;
                // A semaphore that is never closed.
                self.memory = Some(wait.ok().and_then(Result::ok).ok_or(BlobError::Crowded)?);
            }
            let room = self.blobs.part_bytes - self.part.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.part.extend_from_slice(now);
            bytes = later;
            if self.part.len() >= self.blobs.part_bytes {
                self.flush().await?;
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), BlobError> {
        let part = Bytes::from(std::mem::take(&mut self.part));
        let upload = match &mut self.begun {
            Some(upload) => upload,
            None => {
                let begun = self.blobs.within(self.blobs.store.put_multipart(&self.key)).await?;
                self.begun.insert(begun)
            }
        };
        let sent = upload.put_part(PutPayload::from(part));
        COUNTED.blob(Blob::Part, self.blobs.within(sent)).await?;
        self.memory = None;
        Ok(())
    }

    /// Makes the file durable, then visible under its name.
    pub async fn finish(mut self) -> Result<(), BlobError> {
        if self.begun.is_none() {
            let bytes = Bytes::from(std::mem::take(&mut self.part));
            return self.blobs.put(&self.key, bytes).await;
        }
        if !self.part.is_empty() {
            self.flush().await?;
        }
        if let Some(upload) = &mut self.begun {
            COUNTED.blob(Blob::Finish, self.blobs.within(upload.complete())).await?;
        }
        self.begun = None;
        Ok(())
    }

    /// Removes what was stored of it.
    pub async fn abandon(mut self) {
        if let Some(upload) = self.begun.take() {
            abort(self.blobs.clone(), upload).await;
        }
    }
}

async fn abort(blobs: Blobs, mut upload: Box<dyn MultipartUpload>) {
    if let Err(error) = blobs.within(upload.abort()).await {
        tracing::warn!("a partial upload could not be removed ({error}): `muster cache gc` removes it later");
    }
}

impl Drop for Upload {
    /// Whoever uploads hung up: the handler ends wherever it waits.
    fn drop(&mut self) {
        if let (Some(upload), Ok(runtime)) = (self.begun.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(abort(self.blobs.clone(), upload));
        }
    }
}
